//! A delivery for unit tests, with something in each of its fields.

use std::time::Duration;

use crate::domain::Timestamp;
use crate::domain::attempt::{ErrorKind, Failure, Trigger};
use crate::domain::delivery::{Delivery, FailureReason, LastAttempt, State};
use crate::domain::event_type::ChannelKind;
use crate::domain::id::{DeliveryId, EventId};

/// The `number`th in time.
pub(super) fn delivery(number: u32) -> Delivery {
    let event_id: EventId = "evt_01m7zd34f0bnpg89v9hp0qaraq".parse().expect("an id");
    Delivery {
        id: DeliveryId::first_at(Timestamp::from_micros(i64::from(number) * 1_000)),
        tenant_id: "ten_01m7zd34f0bnpg89v9hp0qaraq".parse().expect("an id"),
        event_id,
        event_type: "order.paid".into(),
        subscription_id: "sub_01m7zd34f0bnpg89v9hp0qaraq".parse().expect("an id"),
        channel: ChannelKind::Email,
        recipient: "a@example.com".into(),
        state: State::Failed,
        failure_reason: Some(FailureReason::Exhausted),
        attempt_count: 3,
        automatic_count: 2,
        interrupted_count: 1,
        next_attempt_time: Some(Timestamp::from_micros(11)),
        expire_time: Some(Timestamp::from_micros(12)),
        recover_time: Some(Timestamp::from_micros(13)),
        last_attempt: Some(LastAttempt {
            number: 3,
            trigger: Trigger::Manual,
            start_time: Timestamp::from_micros(14),
            duration: Duration::from_micros(15),
            http_status: Some(503),
            failure: Some(Failure { kind: ErrorKind::Dns, message: "No \"name\".".into() }),
            span_id: "0123456789abcdef".into(),
        }),
        trace_id: "0123456789abcdef0123456789abcdef".into(),
        revision: 16 + i64::from(number),
        create_time: Timestamp::from_micros(17),
        update_time: Timestamp::from_micros(18),
    }
}
