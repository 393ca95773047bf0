//! The only maker of [`tonic::Status`]: every error that leaves has a reason that a program can
//! act on, and tells nothing of the inside.
//!
//! A [`Failure`] is the error type of all of `api`. Turned into a status it carries
//! `google.rpc.ErrorInfo`; with violations also `BadRequest`; and `RetryInfo` wherever trying again
//! is worth it. What went wrong inside is logged once, here, and answered with a plain sentence.
//!
//! The details travel in a trailer, and common clients refuse more than 8 KiB of them: violations
//! are told in [`MAX_VIOLATION_BYTES`], shorter where there are many (`told.rs`).

use std::collections::HashMap;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

use crate::domain::Violations;
use crate::{feed, intake, store};

use super::reason::Reason;
use super::told::{shortened, told};

/// The `domain` of every `ErrorInfo`.
pub const DOMAIN: &str = "tidings";
/// Most bytes that the violations of one answer take.
const MAX_VIOLATION_BYTES: usize = 3 * 1024;
/// Most bytes of a status message.
const MAX_MESSAGE_BYTES: usize = 512;

/// Why a call failed, before it becomes a [`Status`] or the error of one item among many.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// The reason, for programs.
    pub reason: Reason,
    /// A sentence, for people.
    pub message: String,
    /// All wrong fields, when the input was bad.
    pub violations: Violations,
    /// After how long to try again, when more is known than the reason says.
    retry_after: Option<Duration>,
}

impl Failure {
    /// A failure for `reason`, which is explained by `message`.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), violations: Violations::new(), retry_after: None }
    }

    /// A failure for `reason` in the reason's own words.
    pub fn of(reason: Reason) -> Self {
        Self::new(reason, reason.info().message)
    }

    /// One wrong field.
    pub fn invalid(field: &str, description: impl Into<String>) -> Self {
        Violations::of(field, description).into()
    }

    /// Something that a later version does.
    pub fn not_implemented(what: &str) -> Self {
        Self::new(Reason::NotImplemented, format!("This version does not support {what} yet."))
    }

    /// A fault of ours: `cause` is logged, and the caller learns only that it happened.
    pub fn internal(cause: &dyn std::fmt::Display) -> Self {
        tracing::error!(error = %cause, "a request failed because of a fault of the service");
        Self::of(Reason::Internal)
    }

    /// The same, with the time after which it is worth trying again.
    #[must_use]
    pub fn retry_after(self, delay: Duration) -> Self {
        Self { retry_after: Some(delay), ..self }
    }

    /// After how long it is worth trying again; `None` when it is not.
    pub fn retry_delay(&self) -> Option<Duration> {
        self.retry_after.or(self.reason.info().retry_delay)
    }

    /// The violations that fit into an answer of `budget` bytes, as (field, description).
    pub fn told_violations(&self, budget: usize) -> Vec<(String, String)> {
        told(&self.violations, budget)
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let info = failure.reason.info();
        let mut details = ErrorDetails::new();
        details.set_error_info(info.name, DOMAIN, HashMap::new());
        if !failure.violations.is_empty() {
            let told = failure.told_violations(MAX_VIOLATION_BYTES);
            details.set_bad_request(
                told.into_iter()
                    .map(|(field, description)| FieldViolation::new(field, description))
                    .collect::<Vec<_>>(),
            );
        }
        if let Some(delay) = failure.retry_delay() {
            details.set_retry_info(Some(delay));
        }
        Self::with_error_details(info.code, shortened(&failure.message, MAX_MESSAGE_BYTES), details)
    }
}

impl From<Violations> for Failure {
    fn from(violations: Violations) -> Self {
        let count = violations.iter().count();
        let first = violations.iter().next();
        let first = first.map(|first| format!("{} {}", first.field, first.description));
        let message = match (count, first) {
            (0 | 1, first) => first.unwrap_or_else(|| "a field is wrong".to_owned()),
            (_, first) => format!("{count} fields are wrong; {}", first.unwrap_or_default()),
        };
        Self { violations, ..Self::new(Reason::InvalidFields, message) }
    }
}

impl From<store::Error> for Failure {
    fn from(error: store::Error) -> Self {
        if error.is_full() {
            tracing::error!(error = %error, "a request failed because the disk of the database is full");
            return Self::of(Reason::StorageFull);
        }
        if error.is_unavailable() {
            tracing::warn!(error = %error, "a request failed because the database is unavailable");
            return Self::of(Reason::DatabaseUnavailable);
        }
        Self::internal(&error)
    }
}

impl From<intake::Error> for Failure {
    fn from(error: intake::Error) -> Self {
        match error {
            intake::Error::Invalid(violations) => violations.into(),
            intake::Error::UnknownTenant => Self::of(Reason::TenantNotFound),
            intake::Error::KeyReused => Self::of(Reason::IdempotencyKeyReused),
            intake::Error::Overloaded => Self::of(Reason::Overloaded),
            intake::Error::ShuttingDown => Self::of(Reason::ShuttingDown),
            intake::Error::DeadlineExceeded => Self::of(Reason::DeadlineExceeded),
            intake::Error::Unavailable => Self::new(
                Reason::DatabaseUnavailable,
                "The database is unavailable. Try again a little later with the same \
                 idempotency_key, since the event may have been stored.",
            ),
            intake::Error::StorageFull => Self::of(Reason::StorageFull),
            // The cause was logged by the intake, which knows it.
            intake::Error::Internal => Self::of(Reason::Internal),
        }
    }
}

impl From<feed::Error> for Failure {
    fn from(error: feed::Error) -> Self {
        match error {
            feed::Error::Expired => Self::of(Reason::ResumeTokenExpired),
            feed::Error::UnknownTenant => Self::of(Reason::TenantNotFound),
            feed::Error::ShuttingDown => Self::of(Reason::ShuttingDown),
            feed::Error::Unavailable(error) => error.into(),
        }
    }
}

/// What an error that tonic made by itself means in our words.
///
/// tonic tells its errors apart by code and text only, so this is the one place that looks at
/// texts; a text that changes costs a less exact reason, nothing else. Everything that tonic says
/// while it reads a request is about the request.
pub(super) fn of_transport(code: Code, message: &str) -> Failure {
    match code {
        Code::OutOfRange | Code::ResourceExhausted => Failure::of(Reason::RequestTooLarge),
        Code::Unimplemented if message.contains("compressed") => {
            Failure::of(Reason::CompressionUnsupported)
        }
        Code::Unimplemented => Failure::of(Reason::MethodUnknown),
        Code::DeadlineExceeded => Failure::of(Reason::DeadlineExceeded),
        Code::Internal if message.starts_with(UNDECODABLE) => {
            malformed(&message[UNDECODABLE.len()..])
        }
        _ => Failure::of(Reason::MalformedRequest),
    }
}

/// What prost says before it says what is wrong.
const UNDECODABLE: &str = "failed to decode Protobuf message: ";

/// A message that cannot be decoded. `cause` names the field.
fn malformed(cause: &str) -> Failure {
    if cause.contains("recursion limit") {
        // The path would be as long as the message is deep.
        let message =
            "The request is malformed: it is nested too deep. Use data_json for such data.";
        return Failure::new(Reason::MalformedRequest, message);
    }
    // A field that is a word of Rust's, such as `type`, is told by its name in the contract.
    let cause = cause.replace(".r#", ".");
    Failure::new(Reason::MalformedRequest, format!("The request is malformed: {cause}."))
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::api::proto as pb;

    #[test]
    fn every_status_says_why_in_an_error_info() {
        for reason in Reason::ALL {
            let status = Status::from(Failure::of(reason));
            let info = reason.info();
            assert_eq!(status.code(), info.code, "{}", info.name);
            let details = status.get_error_details();
            let told = details.error_info().expect(info.name);
            assert_eq!((told.reason.as_str(), told.domain.as_str()), (info.name, "tidings"));
            let retries = matches!(info.code, Code::ResourceExhausted | Code::Unavailable);
            assert_eq!(details.retry_info().is_some(), retries, "{}", info.name);
            assert!(!status.details().is_empty());
        }
    }

    #[test]
    fn bad_input_tells_all_wrong_fields() {
        let mut violations = Violations::new();
        violations.add("type", "must not be empty");
        violations.add("subject", "is too long");
        let status = Status::from(Failure::from(violations));
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.message(), "2 fields are wrong; type must not be empty");
        let details = status.get_error_details();
        let fields: Vec<_> = details
            .bad_request()
            .expect("violations")
            .field_violations
            .iter()
            .map(|violation| violation.field.as_str())
            .collect();
        assert_eq!(fields, ["type", "subject"]);
    }

    #[test]
    fn details_fit_into_the_headers_that_clients_accept() {
        let mut violations = Violations::new();
        for index in 0..100 {
            violations.add(format!("labels[{index}]"), "ä".repeat(10_000));
        }
        let status = Status::from(Failure::from(violations));
        assert!(status.details().len() < 5_000, "{}", status.details().len());
        let details = status.get_error_details();
        let told = &details.bad_request().expect("violations").field_violations;
        assert_eq!((told.len(), told[0].field.as_str()), (1, "labels"));
    }

    #[test]
    fn a_database_error_tells_nothing_of_the_database() {
        let secret = "relation \"events\" at /var/lib/db";
        let failure = Failure::from(store::Error::Corrupt(secret.to_owned()));
        let status = Status::from(failure);
        assert_eq!(status.code(), Code::Internal);
        assert!(!status.message().contains("events") && !status.message().contains("/var"));
    }

    #[test]
    fn only_an_emit_is_told_of_its_idempotency_key() {
        let of_emit = Failure::from(intake::Error::Unavailable);
        assert!(of_emit.message.contains("idempotency_key"), "{}", of_emit.message);
        let of_others = Failure::of(Reason::DatabaseUnavailable).message;
        assert!(!of_others.contains("idempotency") && !of_others.contains("Emit"), "{of_others}");
    }

    #[test]
    fn a_field_is_told_by_its_name_in_the_contract() {
        let error = pb::EmitRequest::decode([0x12, 1, 0xff].as_slice()).expect_err("not UTF-8");
        let failure = of_transport(Code::Internal, &error.to_string());
        assert!(failure.message.contains("EmitRequest.type: "), "{}", failure.message);
    }

    #[test]
    fn errors_of_the_transport_get_a_reason() {
        let cases = [
            (Code::OutOfRange, "decoded message length too large", Reason::RequestTooLarge),
            (Code::Unimplemented, "", Reason::MethodUnknown),
            (Code::Unimplemented, "Content is compressed with `x`", Reason::CompressionUnsupported),
            (Code::Internal, "failed to decode Protobuf message: x", Reason::MalformedRequest),
            (Code::Internal, "Missing request message.", Reason::MalformedRequest),
        ];
        for (code, message, reason) in cases {
            assert_eq!(of_transport(code, message).reason, reason, "{message}");
        }
    }
}
