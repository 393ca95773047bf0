//! `tidings migrate`: brings the database's schema to this version.

use std::process::ExitCode;

use crate::app::DatabaseLock;
use crate::config::DatabaseFlags;
use crate::store::Store;

use super::Error;
use super::output::{self, Output};

const EXAMPLES: &str = "\
Examples:
  (umask 077; tidings master-key generate > master.key)
  tidings migrate --database-url postgres://tidings@db/tidings --master-key-file master.key
  TIDINGS_DATABASE_URL=postgres://tidings@db/tidings tidings migrate
  tidings migrate --config /etc/tidings.toml

Run it once before `tidings serve` of a new version starts; it is safe to run it several times, and \
from several places at once. It also seals secrets that older versions stored in the clear, which \
needs the master key: see `tidings master-key --help`. An embedded SQLite database is migrated by `tidings serve` itself.";

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
    let config = args.database.load_from(&super::environment())?.options.store();
    let output = Output::new(args.output);
    let lock = DatabaseLock::wait(&config, |locked| {
        output.note(&format!("waiting for the database file: {locked}"));
    });
    let _lock = lock.await?;
    let steps = Store::migrate(&config).await?;
    let store = Store::open(&config).await?;
    let prepared = store.prepare_vault().await;
    store.close().await;
    let prepared = prepared?;
    if output.is_json() {
        output.document(&serde_json::json!({ "applied": steps, "sealed": prepared.sealed }))?;
    } else if steps.is_empty() {
        output.line("The schema is up to date.")?;
    } else {
        for step in &steps {
            output.line(&format!("applied {step}"))?;
        }
    }
    if let Some((path, id)) = prepared.made {
        output.note(&format!("made the master key {id} in {}: keep a copy", path.display()));
    }
    if prepared.sealed > 0 {
        output.note(&format!("sealed the secrets of {} rows", prepared.sealed));
    }
    if prepared.is_left_over {
        output.note(
            "long transactions keep dead rows with secrets in the clear in the database's files: \
             run it again when they are over, or let the next start remove them",
        );
    }
    Ok(ExitCode::SUCCESS)
}
