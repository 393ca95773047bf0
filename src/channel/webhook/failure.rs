//! What went wrong, in the words that a tenant may read, and whether to try again.
//!
//! Guarantees: no message contains an address, a URL or a secret; every refused address has the
//! same message, whatever the reason, so that nobody can map a private network with our help.
//!
//! Whether to try again: nearly always. Only what no time will mend is permanent: a URL that breaks
//! the rules, a refused address that stands in the URL itself, and what this version cannot do. A
//! *name* that leads to a refused address is retried, because a DNS zone can be wrong for an hour.

use std::error::Error as StdError;
use std::io;
use std::time::Duration;

use http::StatusCode;
use hyper_util::client::legacy;
use rustls::CertificateError;

use super::connector::{self, Origin};
use super::phases::Phase;
use super::response::{MAX_HEADER_BYTES, MAX_HEADERS};
use crate::domain::attempt::{ErrorKind, Failure, Outcome};

/// A failed attempt: what to tell, and what is to become of the delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failed {
    pub(super) outcome: Outcome,
    pub(super) failure: Failure,
}

impl Failed {
    pub(super) fn retry(kind: ErrorKind, message: impl Into<String>) -> Self {
        let failure = Failure { kind, message: message.into() };
        Self { outcome: Outcome::Retry { retry_after: None }, failure }
    }

    pub(super) fn permanent(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { outcome: Outcome::Permanent, ..Self::retry(kind, message) }
    }

    pub(super) fn url_refused() -> Self {
        Self::permanent(
            ErrorKind::UrlRefused,
            "The URL is not one that Tidings sends to: it must be an https URL with a public host.",
        )
    }

    /// The deadline came, in this phase.
    pub(super) fn timeout(limit: Duration, phase: Phase) -> Self {
        let what = match phase {
            Phase::Dns => "The host name of the URL could not be resolved",
            Phase::Connect => "No connection to the endpoint could be made",
            Phase::Tls => "The endpoint did not complete the TLS handshake",
            Phase::FirstByte => "The endpoint did not answer",
        };
        Self::retry(ErrorKind::Timeout, format!("{what} within {} s.", limit.as_secs_f64()))
    }

    pub(super) fn too_large() -> Self {
        let message = format!(
            "The endpoint's answer is too large: it has more than {MAX_HEADERS} headers, or {} KiB of \
             them, or a length that no body can have.",
            MAX_HEADER_BYTES / 1_024
        );
        Self::retry(ErrorKind::ResponseTooLarge, message)
    }

    /// A status other than 2xx.
    pub(super) fn status(status: StatusCode, retry_after: Option<Duration>) -> Self {
        let code = status.as_u16();
        let message = match code {
            410 => "The endpoint answered 410 Gone: it wants no more deliveries.".to_owned(),
            300..=399 => format!(
                "The endpoint answered with status {code}. Redirects are not followed: subscribe \
                 with the final URL."
            ),
            _ => format!("The endpoint answered with status {code}."),
        };
        let outcome = if code == 410 { Outcome::Gone } else { Outcome::Retry { retry_after } };
        Self { outcome, failure: Failure { kind: ErrorKind::HttpStatus, message } }
    }

    /// What the client says when there is no answer.
    pub(super) fn from_client(error: &legacy::Error) -> Self {
        if let Some(error) = find::<connector::Error>(error) {
            return Self::from_connector(error);
        }
        let Some(error) = find::<hyper::Error>(error) else {
            return Self::retry(ErrorKind::Connect, NO_CONNECTION);
        };
        if error.is_parse_too_large() {
            return Self::too_large();
        }
        let message = if error.is_parse() {
            "The endpoint's answer is not valid HTTP."
        } else {
            "The connection broke before the endpoint had answered."
        };
        Self::retry(ErrorKind::Protocol, message)
    }

    fn from_connector(error: &connector::Error) -> Self {
        const REFUSED: &str = "The URL leads to an address that Tidings does not connect to.";
        match error {
            connector::Error::Dns => {
                Self::retry(ErrorKind::Dns, "The host name of the URL could not be resolved.")
            }
            connector::Error::Refused(Origin::Literal) => {
                Self::permanent(ErrorKind::AddressRefused, REFUSED)
            }
            connector::Error::Refused(Origin::Name) => {
                Self::retry(ErrorKind::AddressRefused, REFUSED)
            }
            connector::Error::Connect(error) if is_ours(error) => {
                tracing::warn!(%error, "an attempt found no file or memory for its connection");
                Self::retry(ErrorKind::Internal, NOTHING_LEFT)
            }
            connector::Error::Connect(_) => Self::retry(ErrorKind::Connect, NO_CONNECTION),
            connector::Error::Timeout => {
                Self::retry(ErrorKind::Timeout, "Connecting to the endpoint took too long.")
            }
            connector::Error::Tls(error) => {
                Self::retry(ErrorKind::Tls, tls_message(find::<rustls::Error>(error.as_ref())))
            }
        }
    }
}

const NOTHING_LEFT: &str =
    "Tidings could open no further connection when it made this attempt; it is tried again.";

/// Whether it is our machine that has no files or memory left. The endpoint is not to blame.
pub(super) fn is_ours(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let ours = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    Errno::from_io_error(error).is_some_and(|error| ours.contains(&error))
}

const NO_CONNECTION: &str = "No connection to the endpoint could be made.";

fn tls_message(error: Option<&rustls::Error>) -> &'static str {
    let Some(rustls::Error::InvalidCertificate(error)) = error else {
        return "The TLS handshake with the endpoint failed.";
    };
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "The endpoint's certificate has expired."
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "The endpoint's certificate is not valid yet."
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "The endpoint's certificate is for another host name."
        }
        // A bad signature is an authority with the name of a trusted one, and another key.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "The endpoint's certificate is self-signed, comes from an authority that is not \
             trusted, or was sent without its intermediate certificates."
        }
        CertificateError::Revoked => "The endpoint's certificate has been revoked.",
        _ => "The endpoint's certificate is not valid.",
    }
}

/// The first error of the type `E` in the chain of causes. An [`io::Error`] hides the error that
/// it was made from, so that one is looked into.
fn find<'a, E: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_no_time_will_mend_is_permanent() {
        let of = |error| Failed::from_connector(&error);
        let literal = of(connector::Error::Refused(Origin::Literal));
        let name = of(connector::Error::Refused(Origin::Name));
        assert_eq!(literal.outcome, Outcome::Permanent);
        assert_eq!(name.outcome, Outcome::Retry { retry_after: None });
        assert_eq!(literal.failure, name.failure, "one kind, one text");
        assert_eq!(of(connector::Error::Dns).failure.kind, ErrorKind::Dns);
        assert_eq!(Failed::url_refused().outcome, Outcome::Permanent);
    }

    #[test]
    fn what_our_machine_lacks_is_not_the_endpoints_fault() {
        let of = |errno: rustix::io::Errno| {
            Failed::from_connector(&connector::Error::Connect(errno.into())).failure.kind
        };
        assert_eq!(of(rustix::io::Errno::MFILE), ErrorKind::Internal);
        assert_eq!(of(rustix::io::Errno::NFILE), ErrorKind::Internal);
        assert_eq!(of(rustix::io::Errno::CONNREFUSED), ErrorKind::Connect);
    }

    #[test]
    fn a_cause_is_found_inside_of_io_errors() {
        let cause = rustls::Error::InvalidCertificate(CertificateError::Expired);
        let error = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, cause));
        let message = tls_message(find::<rustls::Error>(&error));
        assert_eq!(message, "The endpoint's certificate has expired.");
    }

    #[test]
    fn statuses_are_told_with_what_to_do() {
        let failed = Failed::status(StatusCode::MOVED_PERMANENTLY, None);
        assert!(failed.failure.message.contains("301. Redirects are not followed"));
        assert_eq!(Failed::status(StatusCode::GONE, None).outcome, Outcome::Gone);
    }
}
