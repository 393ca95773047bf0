//! `tidings migrate`: brings the database's schema to this version.

use std::process::ExitCode;

use crate::app::DatabaseLock;
use crate::config::DatabaseFlags;
use crate::store::Store;

use super::Error;
use super::output::{self, Output};

const EXAMPLES: &str = "\
Examples:
  tidings migrate --database-url postgres://tidings@db/tidings
  TIDINGS_DATABASE_URL=postgres://tidings@db/tidings tidings migrate
  tidings migrate --config /etc/tidings.toml

Run it once before `tidings serve` of a new version starts; it is safe to run it several times, and \
from several places at once. An embedded SQLite database is migrated by `tidings serve` itself.";

/// Bring the database's schema to this version.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    database: DatabaseFlags,
    #[command(flatten)]
    output: output::Options,
}

/// Migrates the database.
///
/// # Errors
/// When the database does not take it.
pub async fn run(args: Args) -> Result<ExitCode, Error> {
    let config = args.database.load()?.options.store();
    let _lock = DatabaseLock::take(&config)?;
    let steps = Store::migrate(&config).await?;
    let output = Output::new(args.output);
    if output.is_json() {
        output.document(&serde_json::json!({ "applied": steps }))?;
    } else if steps.is_empty() {
        output.line("The schema is up to date.")?;
    } else {
        for step in &steps {
            output.line(&format!("applied {step}"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
