//! One attempt to deliver, and what came of it.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Timestamp;
use super::event::Event;
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
#[derive(Clone, Debug)]
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
    /// The attempt's own span.
    pub trace: TraceContext,
}

/// What came of an attempt: data, never an error.
#[derive(Clone, Debug, PartialEq, Eq)]
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
}

/// A failure as it is told to the tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What went wrong.
    pub kind: ErrorKind,
    /// A sentence that helps, without addresses or secrets.
    pub message: String,
}

/// Header names and values in order.
pub type HeaderList = Vec<(String, String)>;

/// What a channel reports of one attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// What is to become of the delivery.
    pub outcome: Outcome,
    /// When it began.
    pub start_time: Timestamp,
    /// How long it took.
    pub duration: Duration,
    /// The HTTP status, when there was one.
    pub http_status: Option<u16>,
    /// The request's headers, signatures masked.
    pub request_headers: HeaderList,
    /// The response's headers.
    pub response_headers: HeaderList,
    /// The first 4 KiB of the response's body.
    pub response_body: Vec<u8>,
    /// What went wrong, when something did.
    pub failure: Option<Failure>,
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
