//! Whether a delivery is attempted now, and what follows: each decision makes the next revision of
//! the delivery, which the store writes if nobody else was first.

use std::time::Duration;

use crate::domain::Timestamp;
use crate::domain::attempt::{Attempt, Outcome, Trigger};
use crate::domain::delivery::{
    Delivery, FailureReason, LastAttempt, Next, Standing, State, transition,
};
use crate::domain::event::Event;
use crate::domain::event_type::ChannelKind;
use crate::domain::health::{Gate, Observation};
use crate::domain::id::SubscriptionId;
use crate::domain::retry::RetryPolicy;
use crate::domain::subscription::{self, Subscription};
use crate::store::{Ended, SubscriptionRef};

use super::lanes::Place;

/// Interrupted leases in a row that are forgiven: the attempt that follows, the third, is made apart.
const FORGIVEN: u32 = 2;

/// What becomes of a delivery that must not be attempted now; `None` when it may be.
pub fn verdict(
    delivery: &Delivery,
    subscription: Option<&Subscription>,
    now: Timestamp,
) -> Option<(State, Option<FailureReason>)> {
    let Some(subscription) = subscription else {
        return Some((State::Canceled, Some(FailureReason::SubscriptionDeleted)));
    };
    if delivery.expire_time.is_some_and(|expiry| expiry <= now) {
        return Some((State::Expired, None));
    }
    (subscription.state != subscription::State::Active).then_some((State::Held, None))
}

/// Whether the endpoint may have the request of the delivery in `place`: what was true when it was
/// leased may not be any more. `awaits_probe` says whether a probe may still go.
pub fn may_attempt(place: &Place, gate: Gate, awaits_probe: bool) -> bool {
    if place.is_probe() {
        return awaits_probe;
    }
    matches!(gate, Gate::Open { in_flight } if in_flight > 0)
}

/// Whether it has to be attempted in a process of its own: its leases have ended with their processes,
/// and nobody knows whether it was to blame.
pub fn is_suspect(delivery: &Delivery) -> bool {
    delivery.interrupted_count >= FORGIVEN
        || delivery.failure_reason == Some(FailureReason::Quarantined)
}

/// The delivery as it waits on, without an attempt. It is due since when it was due before, so that
/// nothing that came later overtakes it.
pub fn given_back(delivery: Delivery, event: &Event, now: Timestamp) -> Delivery {
    let due = match delivery.automatic_count {
        0 => event.deliver_time.unwrap_or(delivery.create_time).max(delivery.create_time),
        // When it was leased: what was due later than that was not leased before it.
        _ => delivery.update_time,
    };
    let delivery = ended_without_attempt(delivery, State::Scheduled, None, now);
    Delivery { next_attempt_time: Some(due), ..delivery }
}

/// The delivery as it waits on for so long, without an attempt.
pub fn postponed(delivery: Delivery, wait: Duration, now: Timestamp) -> Delivery {
    let delivery = ended_without_attempt(delivery, State::Scheduled, None, now);
    Delivery { next_attempt_time: Some(now.plus(wait)), ..delivery }
}

/// The delivery in a state that it comes to without an attempt.
pub fn ended_without_attempt(
    delivery: Delivery,
    state: State,
    failure_reason: Option<FailureReason>,
    now: Timestamp,
) -> Delivery {
    Delivery {
        state,
        failure_reason,
        revision: delivery.revision + 1,
        update_time: now,
        ..delivery
    }
}

/// The delivery as it stands after an automatic attempt. `random` is uniform in [0, 1).
pub fn after_attempt(
    delivery: Delivery,
    attempt: &Attempt,
    policy: impl FnOnce() -> RetryPolicy,
    now: Timestamp,
    random: f64,
) -> Delivery {
    let mut delivery = with_attempt(delivery, attempt, now);
    let standing =
        Standing { automatic_count: delivery.automatic_count, expire_time: delivery.expire_time };
    let next = match &attempt.report.outcome {
        Outcome::Delivered => Next::Succeeded,
        outcome => transition(standing, outcome, &policy(), now, random),
    };
    (delivery.state, delivery.failure_reason, delivery.next_attempt_time) = match next {
        Next::Succeeded => (State::Succeeded, None, None),
        Next::Failed(reason) => (State::Failed, Some(reason), None),
        Next::Retry(due) => (State::Scheduled, None, Some(due)),
        Next::Expired => (State::Expired, None, None),
    };
    delivery
}

/// The delivery as it stands after an attempt that brought down a process in which it was alone.
pub fn quarantined(delivery: Delivery, attempt: &Attempt, now: Timestamp) -> Delivery {
    Delivery {
        state: State::Failed,
        failure_reason: Some(FailureReason::Quarantined),
        next_attempt_time: None,
        ..with_attempt(delivery, attempt, now)
    }
}

/// The delivery, leased for a manual attempt while it waited for a retry at `due`, as it stands after
/// `attempt`, or without one: with success it is over, else it waits on as before.
pub fn after_manual(
    mut delivery: Delivery,
    attempt: Option<&Attempt>,
    due: Timestamp,
    now: Timestamp,
) -> Delivery {
    (delivery.state, delivery.next_attempt_time) = (State::Scheduled, Some(due));
    let Some(attempt) = attempt else {
        return Delivery { revision: delivery.revision + 1, update_time: now, ..delivery };
    };
    if attempt.report.outcome == Outcome::Delivered {
        (delivery.state, delivery.next_attempt_time) = (State::Succeeded, None);
    }
    with_attempt(delivery, attempt, now)
}

/// The delivery's next revision, which counts `attempt` and remembers it as the last one. Whoever has a
/// result was not interrupted.
fn with_attempt(delivery: Delivery, attempt: &Attempt, now: Timestamp) -> Delivery {
    Delivery {
        attempt_count: attempt.number,
        automatic_count: delivery.automatic_count
            + u32::from(attempt.trigger == Trigger::Automatic),
        interrupted_count: 0,
        last_attempt: Some(LastAttempt::of(attempt)),
        revision: delivery.revision + 1,
        update_time: now,
        ..delivery
    }
}

/// What the end of a lease says about its endpoint, when that is to be written down: every failure,
/// but no success of an endpoint that is healthy anyway.
pub fn said_of_endpoint(
    ended: &Ended,
    awaits_success: impl FnOnce(SubscriptionId) -> bool,
) -> Option<(SubscriptionRef, Observation)> {
    let Ended { after, attempt } = ended;
    if after.channel != ChannelKind::Webhook {
        // A mail server's answer says nothing about whom a mail is for.
        return None;
    }
    let observation = Observation::of(attempt.as_ref()?)?;
    let id = after.subscription_id;
    if observation.failure.is_none() && !awaits_success(id) {
        return None;
    }
    Some((SubscriptionRef { tenant_id: after.tenant_id, id }, observation))
}
