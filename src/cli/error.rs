//! What a command reports when it fails: one sentence, what belongs to it, a hint, an exit code.
//!
//! An error is written for the person at the terminal and goes to standard error, so that standard
//! output stays clean for programs. `client` makes one of every answer that the service refuses.

use std::fmt;
use std::process::ExitCode;

use crate::{app, config, store, telemetry};

/// A command failed.
///
/// It is shown as `error: …`, indented details such as the wrong fields and, where there is one,
/// `hint: …` on standard error.
#[derive(Debug)]
pub struct Error {
    message: String,
    details: Vec<String>,
    hint: Option<String>,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Failure,
    Usage,
    OutputClosed,
}

impl Error {
    /// Exit code of a command that was called with wrong arguments or options.
    pub const USAGE: u8 = 2;
    /// Exit code of a command that could not do what it was asked to do.
    pub const FAILURE: u8 = 1;

    /// The arguments or options are wrong: exit code 2.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::of(Kind::Usage, message)
    }

    /// The command could not do what it was asked to do: exit code 1.
    pub fn failure(message: impl Into<String>) -> Self {
        Self::of(Kind::Failure, message)
    }

    fn of(kind: Kind, message: impl Into<String>) -> Self {
        Self { message: message.into(), details: Vec::new(), hint: None, kind }
    }

    /// Adds a line that belongs to the message, such as one wrong field.
    #[must_use]
    pub fn detail(mut self, line: impl Into<String>) -> Self {
        self.details.push(line.into());
        self
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The sentence alone.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Whether nobody reads our output any more (`| head`): no reason to complain.
    pub fn is_output_closed(&self) -> bool {
        self.kind == Kind::OutputClosed
    }

    /// The process's exit code.
    pub fn exit_code(&self) -> ExitCode {
        match self.kind {
            Kind::Failure => ExitCode::from(Self::FAILURE),
            Kind::Usage => ExitCode::from(Self::USAGE),
            Kind::OutputClosed => ExitCode::SUCCESS,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        for line in &self.details {
            write!(f, "\n  {line}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\nhint: {}", hint.replace('\n', "\n      "))?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

impl From<config::Invalid> for Error {
    fn from(error: config::Invalid) -> Self {
        Self::usage(error.to_string())
            .hint("`tidings config` shows every option's value and where it comes from")
    }
}

impl From<telemetry::Error> for Error {
    fn from(error: telemetry::Error) -> Self {
        Self::failure(error.to_string())
    }
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        let unavailable = error.is_unavailable();
        match &error {
            store::Error::Configuration(_) => Self::usage(error.to_string()),
            store::Error::MasterKey(_) => {
                Self::failure(error.to_string()).hint("see: tidings master-key --help")
            }
            _ if error.is_full() => Self::failure(error.to_string())
                .hint("the disk of the database is full: make room, then try again"),
            _ if unavailable => {
                Self::failure(error.to_string()).hint("is it running, and is --database-url right?")
            }
            _ => Self::failure(error.to_string()),
        }
    }
}

impl From<app::Error> for Error {
    fn from(error: app::Error) -> Self {
        match error {
            app::Error::Store(error) => error.into(),
            app::Error::Traces(error) => error.into(),
            app::Error::Locked { .. } => Self::failure(error.to_string())
                .hint("stop that process, give this one another --database-url, or use PostgreSQL"),
            app::Error::Listen { .. } => Self::failure(error.to_string())
                .hint("is the port taken by another process? `:0` takes a free one"),
            error => Self::failure(error.to_string()),
        }
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        let closed = error.kind() == std::io::ErrorKind::BrokenPipe;
        Self::of(if closed { Kind::OutputClosed } else { Kind::Failure }, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_a_sentence_and_a_hint() {
        let error = Error::usage("--page-size must be at least 1").hint("leave it out for 50");
        assert_eq!(
            error.to_string(),
            "error: --page-size must be at least 1\nhint: leave it out for 50"
        );
        assert_eq!(error.exit_code(), ExitCode::from(2));
        assert_eq!(Error::failure("no").exit_code(), ExitCode::from(1));
    }

    #[test]
    fn details_are_indented_below_the_sentence() {
        let error =
            Error::failure("2 fields are wrong").detail("a: no").detail("b: no").hint("x\ny");
        assert_eq!(
            error.to_string(),
            "error: 2 fields are wrong\n  a: no\n  b: no\nhint: x\n      y"
        );
    }

    #[test]
    fn a_closed_output_is_no_failure() {
        let error = Error::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        assert!(error.is_output_closed());
        assert_eq!(error.exit_code(), ExitCode::SUCCESS);
    }
}
