//! What the service's refusals, and broken connections, mean to a person.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{FieldViolation, StatusExt};

use crate::cli::Error;
use crate::cli::output::time;

/// The error for a field that the service always sets, and did not.
pub fn incomplete(what: &str) -> Error {
    Error::failure(format!("the service's answer lacks its {what}"))
        .hint("are this program and the service of the same version?")
}

/// Whether a call that ended with this status may be tried again as it is.
pub fn is_transient(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::ResourceExhausted)
        || is_connection_lost(status)
}

/// After how long the service asks to try again.
pub fn retry_delay(status: &Status) -> Option<Duration> {
    status.get_details_retry_info().and_then(|info| info.retry_delay)
}

/// The service's reason in `UPPER_SNAKE`; empty when the status is not its own.
fn reason(status: &Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        let reason = reason(&status);
        // A call of ours is only cancelled by what is between us and the service.
        let is_broken = matches!(status.code(), Code::Unavailable | Code::Cancelled);
        if reason.is_empty() && (is_connection_lost(&status) || is_broken) {
            return lost(&status);
        }
        let violations =
            status.get_details_bad_request().map(|bad| bad.field_violations).unwrap_or_default();
        let label = if reason.is_empty() { code_name(status.code()) } else { reason.clone() };
        let sentence = match (violations.len(), status.message().trim().trim_end_matches('.')) {
            (0, "") => "the service refused".to_owned(),
            (0, message) => message.to_owned(),
            (1, _) => "1 field is wrong".to_owned(),
            (count, _) => format!("{count} fields are wrong"),
        };
        let mut error = Self::failure(format!("{sentence} [{label}]"));
        for violation in violations {
            error = error.detail(format!("{}: {}", violation.field, violation.description));
        }
        match advice(&status, &reason) {
            Some(text) => error.hint(text),
            None => error,
        }
    }
}

/// What to do about a refusal, where the message itself does not say it.
fn advice(status: &Status, reason: &str) -> Option<String> {
    let text = match reason {
        "API_KEY_MISSING" => {
            "give one with --api-key or in TIDINGS_API_KEY; \
            `tidings keys create --operator` makes the first"
        }
        "API_KEY_INVALID" => {
            "is it complete, of this service, and not revoked or expired? \
            An operator sees a tenant's keys with `tidings keys list --tenant ten_…`"
        }
        "SCOPE_MISSING" => {
            "use a key that has the scope; \
            an operator makes one with `tidings keys create --scope …`"
        }
        "TENANT_NOT_FOUND" => "`tidings tenants list` shows those that there are",
        "SUBSCRIPTION_NOT_FOUND" => {
            "`tidings subscriptions list` shows those that there are; \
            with an operator key add --tenant"
        }
        "DELIVERY_NOT_FOUND" => {
            "`tidings deliveries list` shows those that there are; \
            with an operator key add --tenant"
        }
        "API_KEY_NOT_FOUND" => {
            "`tidings keys list` shows those that there are, by ids (key_…); \
            those of a tenant with --tenant"
        }
        "EVENT_TYPE_NOT_FOUND" => "`tidings event-types list` shows those that there are",
        "EVENT_NOT_FOUND" => "is the id complete? With an operator key add --tenant",
        "ETAG_MISMATCH" => "somebody else was faster: read it again, then repeat the change",
        "RESUME_TOKEN_EXPIRED" => "begin again with --include-current",
        "RESUME_TOKEN_INVALID" | "PAGE_TOKEN_INVALID" => {
            "a token goes with the tenant and the filters that it came from"
        }
        "TENANT_NOT_EMPTY" => "repeat with --force to delete all of it",
        "IDEMPOTENCY_KEY_REUSED" => "a key stands for one request; use another for another event",
        "NOT_IMPLEMENTED" => "a later version will do it",
        _ => match (retry_delay(status), status.code()) {
            (Some(delay), _) => {
                return Some(format!("try again in {}", time::coarse(delay)));
            }
            (None, Code::Unimplemented) => "is this program newer than the service?",
            _ if reason == "INVALID_FIELDS" => return advice_on_fields(status),
            _ if reason.is_empty() => return None,
            _ => return Some(format!("`tidings errors {reason}` explains it")),
        },
    };
    Some(text.to_owned())
}

/// What to do about wrong fields, where the service cannot know what the command line calls it.
fn advice_on_fields(status: &Status) -> Option<String> {
    let violations = status.get_details_bad_request()?.field_violations;
    let is_wrong = |name: &str| violations.iter().any(|violation| violation.field.ends_with(name));
    if is_wrong("tenant_id") {
        let text = "say which with --tenant or TIDINGS_TENANT; `tidings tenants list` shows them";
        return Some(text.to_owned());
    }
    let of_url = |violation: &&FieldViolation| {
        ["webhook.url", "webhook_url"].iter().any(|name| violation.field.ends_with(name))
    };
    // The descriptions say what else can be wrong with a URL, and then none of this would help.
    let text = violations.iter().find(of_url)?.description.as_str();
    if text.contains("begin with https") && !text.contains("http://") {
        return Some("for development, `serve --allow-http` permits receivers without TLS".into());
    }
    text.contains("IP address that webhooks may not be sent to").then(|| {
        "for receivers of your own, `serve --allow-cidr` opens the networks that it names (in \
         development 127.0.0.0/8)"
            .to_owned()
    })
}

pub(super) fn unreachable(endpoint: &str, error: &(dyn std::error::Error + 'static)) -> Error {
    let hint = if speaks_no_tls(error) {
        "what answers there does not speak TLS: write http://, or let the service have \
         --grpc-tls-cert and --grpc-tls-key"
    } else {
        "start a service with `tidings serve`, or say where it is with --endpoint or \
         TIDINGS_ENDPOINT"
    };
    Error::failure(format!("cannot reach {endpoint}: {}", causes(error))).hint(hint)
}

/// The error for a connection that broke. A service with TLS ends one without in many ways.
fn lost(status: &Status) -> Error {
    Error::failure(format!("cannot reach the service: {}", lost_because(status))).hint(
        "start a service with `tidings serve`, or say where it is with --endpoint or \
         TIDINGS_ENDPOINT; one that serves TLS is reached by https://. What was asked may have been \
         done all the same: repeat an emit with the same --idempotency-key",
    )
}

/// Whether a handshake failed because the other side answered with something else than TLS.
fn speaks_no_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    let of_tls = |error: &(dyn std::error::Error + 'static)| {
        let inner = error.downcast_ref::<std::io::Error>()?.get_ref()?;
        inner.downcast_ref::<rustls::Error>().cloned()
    };
    std::iter::successors(Some(error), |error| error.source())
        .any(|error| matches!(of_tls(error), Some(rustls::Error::InvalidMessage(_))))
}

/// Whether the connection broke, rather than the service answering.
fn is_connection_lost(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
        && matches!(status.code(), Code::Unknown | Code::Unavailable | Code::Internal)
}

fn lost_because(status: &Status) -> String {
    std::error::Error::source(status).map_or_else(|| status.message().to_owned(), causes)
}

/// The innermost cause, which alone says something: `Connection refused (os error 111)`.
pub(super) fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// `InvalidArgument` as `INVALID_ARGUMENT`.
fn code_name(code: Code) -> String {
    let mut name = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.extend(letter.to_uppercase());
    }
    name
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn wrong_fields_come_with_the_option_that_mends_them() {
        let (plain, other, refused, fragment) = (
            "must begin with https://",
            "must begin with https:// or http://",
            "must not have an IP address that webhooks may not be sent to: private",
            "must not contain a fragment",
        );
        for (field, wrong, option) in [
            ("tenant_id", "must be set", Some("--tenant")),
            ("subscription.tenant_id", "must be set", Some("--tenant")),
            ("subscription.webhook.url", plain, Some("--allow-http")),
            ("subscription.webhook.url", other, None),
            ("subscription.webhook.url", refused, Some("--allow-cidr")),
            ("tenant.webhook_url", refused, Some("--allow-cidr")),
            ("subscription.webhook.url", fragment, None),
            ("type", "is wrong", None),
        ] {
            let mut details = ErrorDetails::with_error_info("INVALID_FIELDS", "tidings", []);
            details.add_bad_request_violation(field, wrong);
            let status = Status::with_error_details(Code::InvalidArgument, "wrong", details);
            let text = Error::from(status).to_string();
            match option {
                Some(option) => assert!(text.contains(option), "{text}"),
                None => assert!(!text.contains("hint"), "{text}"),
            }
        }
    }

    fn refused(code: Code, message: &str, reason: &str) -> (ErrorDetails, Code, String) {
        let details = ErrorDetails::with_error_info(reason, "tidings", [("k".into(), "v".into())]);
        (details, code, message.to_owned())
    }

    #[test]
    fn a_refusal_names_every_field() {
        let (mut details, code, message) =
            refused(Code::InvalidArgument, "Some fields are wrong.", "INVALID_FIELDS");
        details.add_bad_request_violation("type", "must not be empty");
        details.add_bad_request_violation("data_json", "must be JSON");
        let error = Error::from(Status::with_error_details(code, message, details));
        assert_eq!(
            error.to_string(),
            "error: 2 fields are wrong [INVALID_FIELDS]\n  type: must not be empty\n  \
             data_json: must be JSON"
        );
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        let (mut details, code, message) =
            refused(Code::ResourceExhausted, "Too much at once.", "OVERLOADED");
        details.set_retry_info(Some(Duration::from_secs(2)));
        let status = Status::with_error_details(code, message, details);
        assert!(is_transient(&status));
        assert_eq!(retry_delay(&status), Some(Duration::from_secs(2)));
        assert!(Error::from(status).to_string().ends_with("hint: try again in 2.0 s"));

        let (details, code, message) = refused(Code::Unauthenticated, "No key.", "API_KEY_MISSING");
        let error = Error::from(Status::with_error_details(code, message, details)).to_string();
        assert!(error.contains("TIDINGS_API_KEY"), "{error}");
        assert_eq!(code_name(Code::InvalidArgument), "INVALID_ARGUMENT");
    }
}
