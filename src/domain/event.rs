//! An event: something happened, and a tenant's subscriptions are to hear of it.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::id::{EventId, TenantId};
use super::labels::{self, Labels};
use super::trace::TraceContext;
use super::{Timestamp, Violations, pattern, payload};

/// Most bytes in a subject.
pub const MAX_SUBJECT_BYTES: usize = 256;
/// Most bytes in an idempotency key.
pub const MAX_IDEMPOTENCY_KEY_BYTES: usize = 256;
/// What an event takes in memory beside its payload, its labels and its subject.
const OVERHEAD_BYTES: usize = 1024;
/// How far ahead an event may be scheduled.
pub const MAX_DELIVER_AHEAD: Duration = Duration::from_hours(8784);

/// What the types of the service's own events start with. No client may emit them.
const RESERVED: &str = "tidings.";

/// Whether events of this type are the service's own.
pub fn is_reserved(event_type: &str) -> bool {
    event_type.starts_with(RESERVED)
}

/// What a service says when it emits.
#[derive(Clone, Debug, PartialEq)]
pub struct NewEvent {
    /// Whose event it is.
    pub tenant_id: TenantId,
    /// Its type, for example `billing.paid`.
    pub event_type: String,
    /// What it is about, for example an invoice's number; empty for nothing.
    pub subject: String,
    /// The payload as it was emitted.
    pub data: Bytes,
    /// The request's field that the payload came in: what violations name.
    pub data_field: &'static str,
    /// Labels.
    pub labels: Labels,
    /// When it happened; `None` for now.
    pub occur_time: Option<Timestamp>,
    /// Not to be delivered before; `None` for at once.
    pub deliver_time: Option<Timestamp>,
    /// Not to be delivered from then on; `None` for never.
    pub expire_time: Option<Timestamp>,
    /// The client's key against double emission; empty for none.
    pub idempotency_key: String,
    /// The span in which it was emitted.
    pub trace: TraceContext,
}

/// An event as it is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Its id.
    pub id: EventId,
    /// Whose it is.
    pub tenant_id: TenantId,
    /// Its type.
    pub event_type: String,
    /// What it is about.
    pub subject: String,
    /// The payload as it was emitted.
    pub data: Bytes,
    /// Labels.
    pub labels: Labels,
    /// When it happened.
    pub occur_time: Timestamp,
    /// When it was accepted.
    pub create_time: Timestamp,
    /// Not to be delivered before.
    pub deliver_time: Option<Timestamp>,
    /// Not to be delivered from then on.
    pub expire_time: Option<Timestamp>,
    /// The span in which it was emitted.
    pub trace: TraceContext,
}

/// About how many bytes an event takes in memory whose payload, labels and subject have
/// `content_bytes` together: what limits of memory count.
pub const fn weight(content_bytes: usize) -> usize {
    content_bytes.saturating_add(OVERHEAD_BYTES)
}

fn content_bytes(data: &[u8], labels: &Labels, subject: &str) -> usize {
    let labels: usize = labels.iter().map(|(key, value)| key.len() + value.len()).sum();
    data.len() + labels + subject.len()
}

impl Event {
    /// See [`weight`].
    pub fn weight(&self) -> usize {
        weight(content_bytes(&self.data, &self.labels, &self.subject))
    }
}

impl NewEvent {
    /// See [`weight`].
    pub fn weight(&self) -> usize {
        weight(content_bytes(&self.data, &self.labels, &self.subject))
    }

    /// Notes in `violations` everything that is wrong. `max_data_bytes` limits the payload.
    pub fn check(&self, now: Timestamp, max_data_bytes: usize, violations: &mut Violations) {
        if let Err(error) = pattern::check_name(&self.event_type) {
            violations.add("type", error);
        } else if is_reserved(&self.event_type) {
            violations
                .add("type", "must not start with tidings., which is for the service's own events");
        }
        for (field, text, limit) in [
            ("subject", &self.subject, MAX_SUBJECT_BYTES),
            ("idempotency_key", &self.idempotency_key, MAX_IDEMPOTENCY_KEY_BYTES),
        ] {
            if text.len() > limit {
                violations
                    .add(field, format!("must have at most {limit} bytes, has {}", text.len()));
            }
            if text.chars().any(char::is_control) {
                violations.add(field, "must not contain control characters");
            }
        }
        match std::str::from_utf8(&self.data) {
            Err(_) => violations.add(self.data_field, "must be UTF-8"),
            Ok(json) => {
                if let Err(error) = payload::check(json, max_data_bytes) {
                    violations.add(self.data_field, error);
                }
            }
        }
        labels::check(&self.labels, "labels", violations);
        let delivered_from = self.deliver_time.unwrap_or(now).max(now);
        if delivered_from.since(now) > MAX_DELIVER_AHEAD {
            violations.add("deliver_time", "must be within the next 366 days");
        }
        if self.expire_time.is_some_and(|expiry| expiry <= delivered_from) {
            violations.add("expire_time", "must lie in the future, and after deliver_time");
        }
    }

    /// A fingerprint of everything but the key and the trace: two requests with the same key and
    /// the same fingerprint are the same request.
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        let mut field = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        field(self.event_type.as_bytes());
        field(self.subject.as_bytes());
        field(&self.data);
        for (key, value) in &self.labels {
            field(key.as_bytes());
            field(value.as_bytes());
        }
        for time in [self.occur_time, self.deliver_time, self.expire_time] {
            field(&time.map_or([0; 8], |time| time.as_micros().to_le_bytes()));
        }
        hash.finalize().into()
    }

    /// The event that is stored, accepted at `now` under `id`.
    pub fn accepted(self, id: EventId, now: Timestamp) -> Event {
        Event {
            id,
            tenant_id: self.tenant_id,
            event_type: self.event_type,
            subject: self.subject,
            data: self.data,
            labels: self.labels,
            occur_time: self.occur_time.unwrap_or(now),
            create_time: now,
            deliver_time: self.deliver_time,
            expire_time: self.expire_time,
            trace: self.trace,
        }
    }
}
