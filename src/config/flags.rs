//! The options as flags of clap commands, made from their declarations.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches, value_parser};

use super::Invalid;
use super::load::{Environment, Loaded};
use super::options::{DATABASE, Declaration, declarations};
use super::setting::Shape;

/// The file that is read when none is named.
pub(super) const DEFAULT_FILE: &str = "tidings.toml";
/// Names the file.
pub(super) const FILE_VARIABLE: &str = "TIDINGS_CONFIG";

/// Flags as they were given: text by the option's key, not yet read.
#[derive(Clone, Debug, Default)]
pub(super) struct Given {
    pub(super) file: Option<PathBuf>,
    pub(super) values: BTreeMap<String, String>,
}

macro_rules! flag_sets {
    ($($(#[$doc:meta])* $name:ident: $takes:expr;)+) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, Default)]
        pub struct $name(Given);

        impl $name {
            /// Reads all options: from these flags, and the variables and the file of `environment`.
            ///
            /// # Errors
            /// When options are wrong: all of them.
            pub fn load_from(&self, environment: &Environment) -> Result<Loaded, Invalid> {
                Loaded::read(&self.0, environment)
            }
        }

        impl clap::Args for $name {
            fn augment_args(command: Command) -> Command {
                augment(command, $takes)
            }

            fn augment_args_for_update(command: Command) -> Command {
                augment(command, $takes)
            }
        }

        impl FromArgMatches for $name {
            fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
                Ok(Self(given(matches, $takes)))
            }

            fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
                self.0 = given(matches, $takes);
                Ok(())
            }
        }
    )+};
}

flag_sets! {
    /// Every option of the service, as flags.
    AllFlags: |_| true;
    /// The options that say which database, as flags. The others are still read from variables and
    /// the file.
    DatabaseFlags: |declaration| declaration.group == DATABASE;
}

fn augment(command: Command, takes: fn(&Declaration) -> bool) -> Command {
    let file = Arg::new("config")
        .long("config")
        .value_name("PATH")
        .value_parser(value_parser!(PathBuf))
        .help(format!(
            "A TOML file with options; a flag or variable wins over it \
             [default: {DEFAULT_FILE} if it exists] [env: {FILE_VARIABLE}]"
        ));
    declarations()
        .iter()
        .filter(|declaration| takes(declaration))
        .fold(command.arg(file), |command, declaration| command.arg(arg(declaration)))
}

fn arg(declaration: &'static Declaration) -> Arg {
    let default = match declaration.default {
        "" => "none",
        default => default,
    };
    let help = format!(
        "{} [default: {default}] [env: {}]",
        declaration.help.trim_end_matches('.'),
        declaration.variable
    );
    let arg = Arg::new(declaration.key.as_str())
        .long(declaration.flag.as_str())
        .value_name(declaration.value_name)
        .help_heading(declaration.group)
        .help(help);
    match declaration.shape {
        Shape::One => arg.action(ArgAction::Set),
        Shape::Many => arg.action(ArgAction::Append),
        Shape::Switch => arg
            .action(ArgAction::Set)
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true"),
    }
}

fn given(matches: &ArgMatches, takes: fn(&Declaration) -> bool) -> Given {
    let mut values = BTreeMap::new();
    for declaration in declarations().iter().filter(|declaration| takes(declaration)) {
        let key = &declaration.key;
        if let Some(texts) = matches.get_many::<String>(key) {
            let texts: Vec<_> = texts.map(String::as_str).collect();
            values.insert(key.clone(), texts.join(","));
        }
    }
    Given { file: matches.get_one::<PathBuf>("config").cloned(), values }
}
