//! `tidings errors`: explains the reasons that errors carry.

use std::process::ExitCode;

use crate::api::{Reason, errors_markdown};

use super::Error;
use super::output::{Options, Output};

const EXAMPLES: &str = "\
Examples:
  tidings errors                        every reason, what it means and what to do
  tidings errors DELIVERY_NOT_RETRYABLE one of them

Every error of the API carries one of these reasons in google.rpc.ErrorInfo.";

/// Explain the reasons that errors carry.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The reason to explain; all of them without it
    #[arg(value_name = "REASON")]
    reason: Option<String>,
}

/// Explains.
///
/// # Errors
/// When there is no such reason.
pub fn run(args: &Args) -> Result<ExitCode, Error> {
    let output = Output::new(Options::default());
    let Some(wanted) = &args.reason else {
        output.line(errors_markdown().trim_end())?;
        return Ok(ExitCode::SUCCESS);
    };
    let known = Reason::ALL.iter().find(|reason| reason.info().name.eq_ignore_ascii_case(wanted));
    let Some(reason) = known else {
        return Err(
            Error::usage(format!("there is no reason {wanted}")).hint("list them: tidings errors")
        );
    };
    let info = reason.info();
    output.line(&format!("{}\n  {}\n  What to do: {}", info.name, info.cause, info.remedy))?;
    Ok(ExitCode::SUCCESS)
}
