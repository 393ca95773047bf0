//! Rows to domain types and back. A document that cannot be read is [`Error::Corrupt`].

use std::time::Duration;

use bytes::Bytes;

use crate::domain::Timestamp;
use crate::domain::attempt::{Attempt, Outcome, Report, Trigger};
use crate::domain::delivery::{Delivery, FailureReason, State};
use crate::domain::event::Event;
use crate::domain::event_type::{ChannelKind, EventType};
use crate::domain::key::{ApiKey, Scope};
use crate::domain::subscription::{self, DisableReason, Subscription, SubscriptionSpec};
use crate::domain::tenant::{Tenant, TenantSpec};
use crate::domain::trace::TraceContext;

use super::Error;
use super::entity::{
    api_key, attempt, delivery, event, event_type, subscription as subscription_row, tenant,
};

/// Most bytes of a document that is written with each event: below PostgreSQL's threshold of about 2,000,
/// from which on it would try to compress the row and store it apart.
pub(super) const MAX_ROW_BYTES: usize = 1_900;
/// The tenant of an operator's key and of the platform's own event types.
pub(super) const PLATFORM: &str = "";

pub(super) fn id<T: std::str::FromStr>(text: &str) -> Result<T, Error> {
    text.parse().map_err(|_| Error::Corrupt(format!("{text:?} is no id")))
}

pub(super) fn optional_id<T: std::str::FromStr>(text: &str) -> Result<Option<T>, Error> {
    if text == PLATFORM { Ok(None) } else { id(text).map(Some) }
}

pub(super) fn json<T: serde::Serialize>(value: &T) -> Result<String, Error> {
    Ok(serde_json::to_string(value)?)
}

fn optional_json<T: serde::de::DeserializeOwned>(text: Option<&str>) -> Result<Option<T>, Error> {
    text.map(serde_json::from_str).transpose().map_err(Error::from)
}

fn count(value: i32) -> u32 {
    u32::try_from(value).unwrap_or(0)
}

fn trace(text: &str) -> Result<TraceContext, Error> {
    TraceContext::parse(text).ok_or_else(|| Error::Corrupt(format!("{text:?} is no traceparent")))
}

/// A duration as it is stored.
pub(super) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

const fn time(micros: i64) -> Timestamp {
    Timestamp::from_micros(micros)
}

/// Without what is sealed.
impl TryFrom<&tenant::Model> for Tenant {
    type Error = Error;

    fn try_from(row: &tenant::Model) -> Result<Self, Error> {
        Ok(Self {
            id: id(&row.id)?,
            spec: TenantSpec {
                display_name: row.display_name.clone(),
                environment: row.environment.clone(),
                account_id: row.account_id,
                primary_contact: row.primary_contact.clone(),
                primary_contact_off: serde_json::from_str(&row.primary_contact_off)?,
                locale: row.locale.clone(),
                time_zone: row.time_zone.clone(),
                webhook_url: String::new(),
                labels: serde_json::from_str(&row.labels)?,
                retry_policy: optional_json(row.retry_policy.as_deref())?,
            },
            unreadable: false,
            revision: row.revision,
            create_time: time(row.create_time),
            update_time: time(row.update_time),
        })
    }
}

impl TryFrom<api_key::Model> for ApiKey {
    type Error = Error;

    fn try_from(row: api_key::Model) -> Result<Self, Error> {
        let scopes = row.scopes.split(' ').filter(|text| !text.is_empty());
        let scopes: Option<Vec<_>> = scopes.map(Scope::parse).collect();
        Ok(Self {
            id: id(&row.id)?,
            tenant_id: optional_id(&row.tenant_id)?,
            display_name: row.display_name,
            prefix: row.prefix,
            scopes: scopes.ok_or_else(|| Error::Corrupt("a scope is unknown".into()))?,
            create_time: time(row.create_time),
            expire_time: row.expire_time.map(time),
            revoke_time: row.revoke_time.map(time),
            last_use_time: row.last_use_time.map(time),
        })
    }
}

impl TryFrom<event_type::Model> for EventType {
    type Error = Error;

    fn try_from(row: event_type::Model) -> Result<Self, Error> {
        Ok(Self {
            tenant_id: optional_id(&row.tenant_id)?,
            spec: serde_json::from_str(&row.spec)?,
            revision: row.revision,
            create_time: time(row.create_time),
            update_time: time(row.update_time),
        })
    }
}

pub(super) const fn state_code(state: subscription::State) -> i16 {
    match state {
        subscription::State::Active => 1,
        subscription::State::Paused => 2,
        subscription::State::Disabled => 3,
    }
}

pub(super) const fn disable_code(reason: DisableReason) -> i16 {
    match reason {
        DisableReason::Gone => 1,
        DisableReason::Failing => 2,
    }
}

/// Without what is sealed.
impl TryFrom<&subscription_row::Model> for Subscription {
    type Error = Error;

    fn try_from(row: &subscription_row::Model) -> Result<Self, Error> {
        Ok(Self {
            id: id(&row.id)?,
            tenant_id: id(&row.tenant_id)?,
            spec: SubscriptionSpec {
                display_name: row.display_name.clone(),
                event_types: serde_json::from_str(&row.event_types)?,
                channel: serde_json::from_str(&row.channel)?,
                retry_policy: optional_json(row.retry_policy.as_deref())?,
                labels: serde_json::from_str(&row.labels)?,
            },
            state: match row.state {
                1 => subscription::State::Active,
                2 => subscription::State::Paused,
                _ => subscription::State::Disabled,
            },
            disable_reason: row
                .disable_reason
                .map(|code| if code == 1 { DisableReason::Gone } else { DisableReason::Failing }),
            secrets: Vec::new(),
            unreadable: false,
            revision: row.revision,
            create_time: time(row.create_time),
            update_time: time(row.update_time),
        })
    }
}

impl TryFrom<event::Model> for Event {
    type Error = Error;

    fn try_from(row: event::Model) -> Result<Self, Error> {
        Ok(Self {
            id: id(&row.id)?,
            tenant_id: id(&row.tenant_id)?,
            event_type: row.r#type,
            subject: row.subject,
            data: Bytes::from(row.data),
            labels: serde_json::from_str(&row.labels)?,
            occur_time: time(row.occur_time),
            create_time: time(row.create_time),
            deliver_time: row.deliver_time.map(time),
            expire_time: row.expire_time.map(time),
            trace: trace(&row.trace)?,
        })
    }
}

pub(super) const fn channel_code(channel: ChannelKind) -> i32 {
    match channel {
        ChannelKind::Webhook => 1,
        ChannelKind::Email => 2,
    }
}

impl TryFrom<delivery::Model> for Delivery {
    type Error = Error;

    fn try_from(row: delivery::Model) -> Result<Self, Error> {
        let state = State::from_code(row.state)
            .ok_or_else(|| Error::Corrupt(format!("{} is no state", row.state)))?;
        Ok(Self {
            id: id(&row.id)?,
            tenant_id: id(&row.tenant_id)?,
            event_id: id(&row.event_id)?,
            event_type: row.event_type,
            subscription_id: id(&row.subscription_id)?,
            channel: if row.channel == 2 { ChannelKind::Email } else { ChannelKind::Webhook },
            recipient: row.recipient,
            state,
            failure_reason: row.failure_reason.and_then(FailureReason::from_code),
            attempt_count: count(row.attempt_count),
            automatic_count: count(row.automatic_count),
            interrupted_count: count(row.interrupted_count),
            next_attempt_time: row.next_attempt_time.map(time),
            expire_time: row.expire_time.map(time),
            recover_time: row.recover_time.map(time),
            last_attempt: optional_json(row.last_attempt.as_deref())?,
            trace_id: row.trace_id,
            revision: row.revision,
            create_time: time(row.create_time),
            update_time: time(row.update_time),
        })
    }
}

pub(super) const fn outcome_code(outcome: &Outcome) -> i16 {
    match outcome {
        Outcome::Delivered => 1,
        Outcome::Retry { .. } => 2,
        Outcome::Permanent => 3,
        Outcome::Gone => 4,
        Outcome::Bounced => 5,
    }
}

pub(super) const fn trigger_code(trigger: Trigger) -> i16 {
    match trigger {
        Trigger::Automatic => 1,
        Trigger::Manual => 2,
        Trigger::Test => 3,
    }
}

impl TryFrom<attempt::Model> for Attempt {
    type Error = Error;

    fn try_from(row: attempt::Model) -> Result<Self, Error> {
        Ok(Self {
            delivery_id: id(&row.delivery_id)?,
            number: count(row.number),
            trigger: match row.trigger_code {
                2 => Trigger::Manual,
                3 => Trigger::Test,
                _ => Trigger::Automatic,
            },
            report: Report {
                outcome: match row.outcome {
                    1 => Outcome::Delivered,
                    2 => Outcome::Retry { retry_after: None },
                    3 => Outcome::Permanent,
                    5 => Outcome::Bounced,
                    _ => Outcome::Gone,
                },
                start_time: time(row.start_time),
                duration: Duration::from_micros(u64::try_from(row.duration_us).unwrap_or(0)),
                timings: optional_json(row.timings.as_deref())?,
                http_status: row.http_status.and_then(|status| u16::try_from(status).ok()),
                request_headers: serde_json::from_str(&row.request_headers)?,
                response_headers: serde_json::from_str(&row.response_headers)?,
                response_body: row.response_body,
                smtp_reply: row.smtp_reply,
                failure: optional_json(row.failure.as_deref())?,
            },
            trace: trace(&row.trace)?,
        })
    }
}
