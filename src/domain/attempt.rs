//! One attempt to deliver, and what came of it.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Timestamp;
use super::event::Event;
use super::header_list::HeaderList;
use super::id::DeliveryId;
use super::subscription::Subscription;
use super::tenant::Tenant;
use super::trace::TraceContext;

/// Why an attempt was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Trigger {
    /// By the schedule.
    Automatic,
    /// By `RetryDelivery`.
    Manual,
    /// By `TestSubscription`.
    Test,
}

/// What went wrong, as far as a tenant may know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ErrorKind {
    /// The name did not resolve.
    Dns,
    /// The address is not one that Tidings connects to.
    AddressRefused,
    /// The URL breaks the rules.
    UrlRefused,
    /// No connection.
    Connect,
    /// No TLS session: an invalid certificate, for example.
    Tls,
    /// The time was up.
    Timeout,
    /// The answer was not HTTP, or the connection broke.
    Protocol,
    /// The answer was larger than the limits.
    ResponseTooLarge,
    /// A status other than 2xx.
    HttpStatus,
    /// The mail server said no.
    Smtp,
    /// The service or the subscription is not configured for this.
    Configuration,
    /// A fault of Tidings itself.
    Internal,
}

impl ErrorKind {
    /// Every kind, in the order of the contract's enumeration.
    pub const ALL: [Self; 12] = [
        Self::Dns,
        Self::AddressRefused,
        Self::UrlRefused,
        Self::Connect,
        Self::Tls,
        Self::Timeout,
        Self::Protocol,
        Self::ResponseTooLarge,
        Self::HttpStatus,
        Self::Smtp,
        Self::Configuration,
        Self::Internal,
    ];

    /// The kinds that an attempt by mail can end with.
    pub const OF_MAIL: [Self; 8] = [
        Self::Dns,
        Self::Connect,
        Self::Tls,
        Self::Timeout,
        Self::Protocol,
        Self::Smtp,
        Self::Configuration,
        Self::Internal,
    ];

    /// The kind as a label of metrics and logs, for example `address_refused`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::AddressRefused => "address_refused",
            Self::UrlRefused => "url_refused",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::Protocol => "protocol",
            Self::ResponseTooLarge => "response_too_large",
            Self::HttpStatus => "http_status",
            Self::Smtp => "smtp",
            Self::Configuration => "configuration",
            Self::Internal => "internal",
        }
    }
}

/// What a channel needs for one attempt. Built before it, thrown away after it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    /// The delivery.
    pub delivery_id: DeliveryId,
    /// The attempt's number, from 1.
    pub number: u32,
    /// Why it is made.
    pub trigger: Trigger,
    /// The event to deliver.
    pub event: Arc<Event>,
    /// Its tenant.
    pub tenant: Arc<Tenant>,
    /// The subscription to deliver to.
    pub subscription: Arc<Subscription>,
    /// The address that a mail goes to; empty for a webhook.
    pub recipient: String,
    /// When the delivery was created: the date of a mail, the same over all attempts.
    pub create_time: Timestamp,
    /// The event type's template of a mail; empty for none.
    pub email_template: String,
    /// Where the recipient unsubscribes with one click; empty for nowhere.
    pub unsubscribe_url: String,
    /// Further events of the same mail; empty unless it is a digest.
    pub digest: Vec<DigestItem>,
    /// The attempt's own span.
    pub trace: TraceContext,
}

/// One event more in a mail, with a delivery of its own.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DigestItem {
    /// The delivery that goes out with the mail.
    pub delivery_id: DeliveryId,
    /// Its event.
    pub event: Arc<Event>,
}

/// What came of an attempt: data, never an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The receiver has it.
    Delivered,
    /// It may work later; `retry_after` is the receiver's wish.
    Retry {
        /// Not before this long.
        retry_after: Option<Duration>,
    },
    /// It will never work.
    Permanent,
    /// It will never work, and neither will anything else to this endpoint (410 Gone).
    Gone,
    /// It will never work, and neither will anything else to this address: a hard bounce.
    Bounced,
}

/// A failure as it is told to the tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What went wrong.
    pub kind: ErrorKind,
    /// A sentence that helps, without addresses or secrets.
    pub message: String,
}

/// Where an attempt's time went: one phase after the other. A phase that was never begun has no
/// time; the last one that has one is where a failed attempt ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timings {
    /// Looking up the name.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "dns_us", with = "micros")]
    pub dns: Option<Duration>,
    /// Connecting to one of its addresses, all that were tried included.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        rename = "connect_us",
        with = "micros"
    )]
    pub connect: Option<Duration>,
    /// The TLS handshake.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "tls_us", with = "micros")]
    pub tls: Option<Duration>,
    /// Sending the request and waiting for the answer, until its head was there.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        rename = "first_byte_us",
        with = "micros"
    )]
    pub first_byte: Option<Duration>,
    /// Whether the connection had been opened for an earlier request.
    #[serde(default)]
    pub connection_reused: bool,
}

/// Durations in documents: whole microseconds, as the database has them everywhere.
mod micros {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[expect(clippy::ref_option, reason = "serde's signature")]
    pub(super) fn serialize<S: Serializer>(
        duration: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let micros = duration.map(|it| u64::try_from(it.as_micros()).unwrap_or(u64::MAX));
        micros.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<u64>::deserialize(deserializer)?.map(Duration::from_micros))
    }
}

/// What a channel reports of one attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What is to become of the delivery.
    pub outcome: Outcome,
    /// When it began.
    pub start_time: Timestamp,
    /// How long it took.
    pub duration: Duration,
    /// Where the time went. `None` of a channel that has no phases.
    pub timings: Option<Timings>,
    /// The HTTP status, when there was one.
    pub http_status: Option<u16>,
    /// The request's headers, signatures masked.
    pub request_headers: HeaderList,
    /// The response's headers.
    pub response_headers: HeaderList,
    /// The first 4 KiB of the response's body.
    pub response_body: Vec<u8>,
    /// The mail server's last reply on one line, bounded; empty when there was none.
    #[serde(default)]
    pub smtp_reply: String,
    /// What went wrong, when something did.
    pub failure: Option<Failure>,
}

impl Report {
    /// A report of which nothing more is known yet.
    pub fn new(outcome: Outcome, start_time: Timestamp) -> Self {
        Self {
            outcome,
            start_time,
            duration: Duration::ZERO,
            timings: None,
            http_status: None,
            request_headers: HeaderList::default(),
            response_headers: HeaderList::default(),
            response_body: Vec::new(),
            smtp_reply: String::new(),
            failure: None,
        }
    }
}

/// An attempt as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Attempt {
    /// The delivery that it belongs to.
    pub delivery_id: DeliveryId,
    /// Its number, from 1.
    pub number: u32,
    /// Why it was made.
    pub trigger: Trigger,
    /// What came of it.
    pub report: Report,
    /// Its own span.
    pub trace: TraceContext,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timings_are_stored_in_microseconds_and_without_what_did_not_happen() {
        let reused = Timings { connection_reused: true, ..Timings::default() };
        let first = Some(Duration::from_millis(2));
        for (timings, document) in [
            (Timings::default(), r#"{"connection_reused":false}"#),
            (
                Timings { first_byte: first, ..reused },
                r#"{"first_byte_us":2000,"connection_reused":true}"#,
            ),
            (
                Timings { dns: Some(Duration::ZERO), tls: first, ..Timings::default() },
                r#"{"dns_us":0,"tls_us":2000,"connection_reused":false}"#,
            ),
        ] {
            assert_eq!(serde_json::to_string(&timings).expect("document"), document);
            assert_eq!(serde_json::from_str::<Timings>(document).expect("timings"), timings);
        }
    }
}
