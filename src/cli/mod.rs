//! The command line: `tidings <command>`.
//!
//! One file per command, each with `Args` and `run`. What a command prints for programs goes to
//! standard output; hints, logs and errors go to standard error. Exit codes: 0 done, 1 failed,
//! 2 wrongly used, 130 stopped at once by a second signal.

pub mod attempt;
pub mod attempt_apart;
pub mod client;
pub mod config;
pub mod deliveries;
pub mod demo;
pub mod emit;
mod error;
pub mod errors;
pub mod event_types;
pub mod keys;
pub mod listen;
pub mod master_key;
pub mod migrate;
pub mod operator_key;
pub mod output;
pub mod serve;
pub mod subscriptions;
pub mod suppressions;
pub mod tenants;
pub mod watch;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::Environment;

pub use error::Error;

const STORY: &str = "\
Tidings turns one Emit into signed webhooks that are retried, recorded and watched.

A tenant subscribes URLs to types of events. Your application emits an event once, over gRPC; \
Tidings stores it before it answers, makes one delivery for each subscription that matches, and \
sends each until the receiver accepts it or the retry policy ends. Whoever wants to know follows \
the deliveries as they happen.";

const EXAMPLES: &str = "\
Try it:
  tidings demo                                  everything at once, in a temporary folder

Run it, with receivers on this machine:
  tidings serve --allow-http --allow-cidr 127.0.0.0/8 &
  export TIDINGS_API_KEY=$(tidings keys create --operator)
  tidings tenants create --display-name Acme    prints its id
  export TIDINGS_TENANT=ten_…
  tidings subscriptions create --event-type 'billing.*' --url http://127.0.0.1:9000/
  tidings listen --secret whsec_… &             a receiver that verifies signatures
  tidings emit billing.paid --data '{\"amount\":1200}'
  tidings watch --include-current

Each command explains itself and has examples: tidings <command> --help";

/// Durable notifications: one Emit becomes signed webhooks, retried, recorded and watched.
#[derive(Debug, Parser)]
#[command(
    name = "tidings",
    version,
    long_about = STORY,
    after_help = EXAMPLES,
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 100
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the main job in one command: service, receivers, events, a live table, a summary
    Demo(demo::Args),
    /// Run the service
    Serve(serve::Args),
    /// Bring the database's schema to this version
    Migrate(migrate::Args),
    /// Show the effective configuration and where each value comes from
    Config(config::Args),
    /// Make, rotate and look after the keys that seal secrets in the database
    MasterKey(master_key::Args),
    /// Create and revoke API keys; `--operator` makes the first one
    Keys(keys::Args),
    /// Create and manage tenants
    Tenants(tenants::Args),
    /// Create and manage subscriptions: who is told about what, and where
    Subscriptions(subscriptions::Args),
    /// Look after addresses that get no more mail; report bounces and complaints
    Suppressions(suppressions::Args),
    /// Describe the types of events that are emitted
    EventTypes(event_types::Args),
    /// Emit an event
    Emit(emit::Args),
    /// Look at deliveries and their attempts; retry or cancel them
    Deliveries(deliveries::Args),
    /// Follow deliveries as they happen
    Watch(watch::Args),
    /// Receive webhooks locally, verify their signatures and print them
    Listen(listen::Args),
    /// Explain the reasons that errors carry
    Errors(errors::Args),
    /// Make one attempt for a running service, which starts this by itself
    #[command(hide = true)]
    AttemptApart(attempt_apart::Args),
}

/// Reads the command line.
///
/// # Errors
/// What is wrong with it, or the help that was asked for.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let arguments: Vec<_> = arguments.into_iter().collect();
    let mut command = Cli::command();
    let matches = command.try_get_matches_from_mut(&arguments);
    let cli = matches.and_then(|mut matches| Cli::from_arg_matches_mut(&mut matches));
    cli.map_err(|mut error| {
        // clap shows what is set already, by a variable or by default, as if it were required.
        if error.get(ContextKind::Usage).is_some() {
            command.build();
            let mut meant = command;
            for name in arguments.iter().skip(1) {
                if let Some(below) = meant.find_subcommand(name).cloned() {
                    meant = below;
                }
            }
            let usage = ContextValue::StyledStr(meant.render_usage());
            error.insert(ContextKind::Usage, usage);
        }
        error
    })
}

/// The variables and the file that options are read from. Variables of client commands, as they are
/// declared there, are no options of the service, and no mistake either.
fn environment() -> Environment {
    let mut others = BTreeSet::new();
    let mut commands = vec![Cli::command()];
    while let Some(command) = commands.pop() {
        let variables = command.get_arguments().filter_map(clap::Arg::get_env);
        others.extend(variables.map(|name| name.to_string_lossy().into_owned()));
        commands.extend(command.get_subcommands().cloned());
    }
    Environment::of_process(others)
}

/// Runs the command.
///
/// # Errors
/// When it cannot do what it was asked to do.
pub async fn run(cli: Cli) -> Result<ExitCode, Error> {
    match cli.command {
        Command::Demo(args) => demo::run(args).await,
        Command::Serve(args) => serve::run(args).await,
        Command::Migrate(args) => migrate::run(args).await,
        Command::Config(args) => config::run(&args),
        Command::MasterKey(args) => master_key::run(args).await,
        Command::Keys(args) => keys::run(args).await,
        Command::Tenants(args) => tenants::run(args).await,
        Command::Subscriptions(args) => subscriptions::run(args).await,
        Command::Suppressions(args) => suppressions::run(args).await,
        Command::EventTypes(args) => event_types::run(args).await,
        Command::Emit(args) => emit::run(args).await,
        Command::Deliveries(args) => deliveries::run(args).await,
        Command::Watch(args) => watch::run(args).await,
        Command::Listen(args) => listen::run(args).await,
        Command::Errors(args) => errors::run(&args),
        Command::AttemptApart(args) => attempt_apart::run(args).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_usage_shows_only_what_is_required_as_required() {
        for (arguments, usage) in [
            ("tidings emit", "Usage: tidings emit [OPTIONS] <TYPE>\n"),
            (
                "tidings --api-key tdk_x subscriptions rotate --overlap 1h",
                "Usage: tidings subscriptions rotate-secret [OPTIONS] <SUBSCRIPTION_ID>\n",
            ),
            ("tidings keys --frob", "Usage: tidings keys [OPTIONS] <COMMAND>\n"),
        ] {
            let error = parse(arguments.split(' ').map(OsString::from)).expect_err(arguments);
            let text = error.to_string();
            assert!(text.contains(usage), "{text}");
            assert_eq!(error.exit_code(), 2, "{text}");
        }
    }

    #[test]
    fn every_command_has_examples() {
        for command in Cli::command().get_subcommands() {
            assert!(command.get_about().is_some(), "{} says what it does", command.get_name());
            assert!(command.get_after_help().is_some(), "{} has examples", command.get_name());
        }
    }
}
