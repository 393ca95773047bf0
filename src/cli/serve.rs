//! `tidings serve`: runs the service until it is asked to stop.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::app::{self, Running};
use crate::config::AllFlags;
use crate::shutdown::Signals;
use crate::telemetry::logs;

use super::Error;

const EXAMPLES: &str = "\
Examples:
  tidings serve
      Everything by default: SQLite in ./tidings.db, gRPC on port 50051, HTTP on port 8080.

  tidings serve --allow-http --allow-cidr 127.0.0.0/8
      For development: deliver to receivers on this machine, such as `tidings listen`.

  (umask 077; tidings master-key generate > master.key)
  export TIDINGS_MASTER_KEY_FILE=master.key
  tidings migrate --database-url postgres://tidings@db/tidings
  tidings serve --database-url postgres://tidings@db/tidings --grpc-addr 0.0.0.0:50051
      On PostgreSQL, for more than one replica. All of them need the same master key.

  TIDINGS_LOG_FORMAT=json tidings serve --config /etc/tidings.toml
      Options from flags, variables and a file; `tidings config` shows what comes of them.

SIGTERM or SIGINT stops it gracefully: what is in flight is finished and recorded. A second signal \
stops it at once; nothing that was acknowledged is lost by that either.";

/// Exit code after a second signal: 128 and the number of SIGINT, as shells report it.
const STOPPED_AT_ONCE: u8 = 130;

/// Run the service.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    options: AllFlags,
}

/// Runs the service.
///
/// # Errors
/// When it cannot start, or a part of it ended by itself.
pub async fn run(args: Args) -> Result<ExitCode, Error> {
    let options = args.options.load_from(&super::environment())?.options;
    logs::start(&options.logs())?;
    let mut signals = Signals::install()?;
    let config = app::Config { program: this_program(), ..options.config() };
    let mut running = tokio::select! {
        running = app::start(config) => running?,
        // Nothing has been promised to anybody yet.
        signal = signals.next() => {
            tracing::info!(signal, "stopped while starting");
            return Ok(ExitCode::SUCCESS);
        }
    };
    let failed = tokio::select! {
        signal = signals.next() => {
            tracing::info!(signal, "stopping; a second signal stops at once");
            None
        }
        part = running.wait_failed() => {
            tracing::error!(part, "a part of the service has ended by itself; stopping");
            Some(part)
        }
    };
    stop(running, failed, &mut signals).await
}

/// The program that runs: also when a newer one has taken its place on disk.
fn this_program() -> Option<PathBuf> {
    let running = PathBuf::from("/proc/self/exe");
    if running.exists() { Some(running) } else { std::env::current_exe().ok() }
}

async fn stop(
    running: Running,
    failed: Option<&'static str>,
    signals: &mut Signals,
) -> Result<ExitCode, Error> {
    tokio::select! {
        () = running.stop() => {}
        signal = signals.next() => {
            tracing::warn!(signal, "stopped at once; leases run out by themselves");
            return Ok(ExitCode::from(STOPPED_AT_ONCE));
        }
    }
    match failed {
        Some(part) => Err(Error::failure(format!("{part} ended by itself"))
            .hint("the log says why; this is a fault in Tidings")),
        None => Ok(ExitCode::SUCCESS),
    }
}
