//! `tidings attempt-apart`: makes one attempt for a running service, which starts this by itself. Not
//! for people.

use std::process::ExitCode;

use crate::channel::apart;

use super::Error;

const EXAMPLES: &str = "\
There are none: the service starts this by itself, for a delivery whose attempts have brought it down \
before. It reads what to do from standard input.";

/// Make one attempt for a running service, which starts this by itself.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {}

/// Makes the attempt.
///
/// # Errors
/// When standard input orders nothing that can be done.
pub async fn run(_: Args) -> Result<ExitCode, Error> {
    let made = apart::make().await;
    made.map_err(|error| Error::failure(format!("no attempt was made: {error}")))?;
    Ok(ExitCode::SUCCESS)
}
