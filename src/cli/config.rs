//! `tidings config`: shows the effective configuration, and where each value comes from.

use std::fmt::Write;
use std::process::ExitCode;

use serde_json::{Map, Value, json};

use crate::config::{AllFlags, Loaded, configuration_markdown};

use super::Error;
use super::output::{self, Output};

const EXAMPLES: &str = "\
Examples:
  tidings config
  tidings config --config /etc/tidings.toml --max-in-flight 500
  tidings config --json | jq '.\"database-url\"'
  tidings config > tidings.toml      a file to start from (passwords are masked)

It takes the options of `tidings serve`, reads the same variables and file, and fails in the same \
way when one of them is wrong: a check before a restart.";

/// Show the effective configuration and where each value comes from.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Print the reference of all options in Markdown instead
    #[arg(long, conflicts_with = "json")]
    reference: bool,
    #[command(flatten)]
    output: output::Options,
    #[command(flatten)]
    options: AllFlags,
}

/// Shows the configuration.
///
/// # Errors
/// When options are wrong.
pub fn run(args: &Args) -> Result<ExitCode, Error> {
    let output = Output::new(args.output);
    if args.reference {
        output.line(configuration_markdown().trim_end())?;
        return Ok(ExitCode::SUCCESS);
    }
    let loaded = args.options.load_from(&super::environment())?;
    if output.is_json() {
        output.document(&as_json(&loaded))?;
    } else {
        output.line(as_toml(&loaded).trim_end())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A TOML file with a comment per option that says where its value comes from.
fn as_toml(loaded: &Loaded) -> String {
    let mut text = String::new();
    let mut group = "";
    for shown in loaded.shown() {
        if shown.group != group {
            let separator = if group.is_empty() { "" } else { "\n" };
            let _ = writeln!(text, "{separator}# {}", shown.group);
            group = shown.group;
        }
        let setting = match shown.value {
            Some(value) => format!("{} = {value}", shown.key),
            None => format!("# {} is not set", shown.key),
        };
        let _ = writeln!(text, "{setting:<48} # {}", shown.origin);
    }
    text
}

fn as_json(loaded: &Loaded) -> Value {
    let entries = loaded.shown().map(|shown| {
        (shown.key, json!({ "value": shown.value, "origin": shown.origin.to_string() }))
    });
    Value::Object(entries.collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::config::Environment;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: AllFlags,
    }

    fn loaded(arguments: &[&str]) -> Loaded {
        let line = Line::parse_from(std::iter::once(&"tidings").chain(arguments));
        line.options.load_from(&Environment::default()).unwrap()
    }

    #[test]
    fn what_is_shown_can_be_read_again() {
        let loaded = loaded(&["--allow-cidr", "127.0.0.0/8", "--lease-ttl=1m"]);
        let text = as_toml(&loaded);
        assert!(text.contains("lease-ttl = \"1m\""), "{text}");
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tidings.toml"), &text).unwrap();
        let environment = Environment { folder: folder.path().into(), ..Environment::default() };
        let again = Line::parse_from(["tidings"]).options.load_from(&environment).unwrap();
        assert_eq!(again.options, loaded.options);
    }

    #[test]
    fn a_password_is_shown_to_nobody() {
        let loaded = loaded(&["--database-url", "postgres://me:hunter2@db/tidings"]);
        assert!(!as_toml(&loaded).contains("hunter2"));
        assert!(!as_json(&loaded).to_string().contains("hunter2"));
        assert_eq!(as_json(&loaded)["database-url"]["origin"], "--database-url");
    }
}
