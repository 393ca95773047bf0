//! Deliveries and attempts.

use crate::api::proto as pb;
use crate::domain::attempt::{Attempt, ErrorKind, Failure, Timings, Trigger};
use crate::domain::delivery::{Delivery, LastAttempt, State};
use crate::domain::header_list::HeaderList;
use crate::domain::id::{EventId, SubscriptionId};
use crate::domain::{Timestamp, Violations};
use crate::feed::Filter;
use crate::store::DeliveryFilter;

use super::catalog::channel_to_proto;
use super::{
    count_to_proto, duration_to_proto, enum_list, patterns, timestamp, timestamp_to_proto,
};

/// A delivery as the contract writes it.
pub(crate) fn delivery_to_proto(delivery: Delivery) -> pb::Delivery {
    pb::Delivery {
        last_attempt: delivery.last_attempt.as_ref().map(|last| last_attempt(&delivery, last)),
        id: delivery.id.to_string(),
        tenant_id: delivery.tenant_id.to_string(),
        event_id: delivery.event_id.to_string(),
        event_type: delivery.event_type,
        subscription_id: delivery.subscription_id.to_string(),
        recipient: delivery.recipient,
        // The domain's numbers are the contract's; a test says so.
        state: i32::from(delivery.state.code()),
        failure_reason: delivery.failure_reason.map_or(0, |reason| i32::from(reason.code())),
        attempt_count: count_to_proto(delivery.attempt_count),
        next_attempt_time: delivery.next_attempt_time.map(timestamp_to_proto),
        trace_id: delivery.trace_id,
        revision: delivery.revision,
        create_time: Some(timestamp_to_proto(delivery.create_time)),
        update_time: Some(timestamp_to_proto(delivery.update_time)),
        channel: channel_to_proto(delivery.channel) as i32,
        expire_time: delivery.expire_time.map(timestamp_to_proto),
        recover_time: delivery.recover_time.map(timestamp_to_proto),
        interrupted_count: count_to_proto(delivery.interrupted_count),
    }
}

fn last_attempt(delivery: &Delivery, last: &LastAttempt) -> pb::Attempt {
    let (error_kind, error_message) = failure_to_proto(last.failure.as_ref());
    pb::Attempt {
        delivery_id: delivery.id.to_string(),
        number: count_to_proto(last.number),
        trigger: trigger_to_proto(last.trigger) as i32,
        start_time: Some(timestamp_to_proto(last.start_time)),
        duration: Some(duration_to_proto(last.duration)),
        http_status: last.http_status.map_or(0, i32::from),
        error_kind,
        error_message,
        trace_id: delivery.trace_id.clone(),
        span_id: last.span_id.clone(),
        ..pb::Attempt::default()
    }
}

/// An attempt as the contract writes it, with what was sent and what came back.
pub(crate) fn attempt_to_proto(attempt: Attempt) -> pb::Attempt {
    let report = attempt.report;
    let (error_kind, error_message) = failure_to_proto(report.failure.as_ref());
    pb::Attempt {
        delivery_id: attempt.delivery_id.to_string(),
        number: count_to_proto(attempt.number),
        trigger: trigger_to_proto(attempt.trigger) as i32,
        start_time: Some(timestamp_to_proto(report.start_time)),
        duration: Some(duration_to_proto(report.duration)),
        http_status: report.http_status.map_or(0, i32::from),
        response_headers: headers_to_proto(&report.response_headers),
        response_body: report.response_body.into(),
        smtp_reply: report.smtp_reply,
        error_kind,
        error_message,
        trace_id: attempt.trace.trace_id_hex(),
        span_id: attempt.trace.span_id_hex(),
        request_headers: headers_to_proto(&report.request_headers),
        timings: report.timings.map(timings_to_proto),
    }
}

fn timings_to_proto(timings: Timings) -> pb::AttemptTimings {
    pb::AttemptTimings {
        dns: timings.dns.map(duration_to_proto),
        connect: timings.connect.map(duration_to_proto),
        tls: timings.tls.map(duration_to_proto),
        first_byte: timings.first_byte.map(duration_to_proto),
        connection_reused: timings.connection_reused,
    }
}

fn headers_to_proto(headers: &HeaderList) -> Vec<pb::Header> {
    let header =
        |(name, value): (&str, &str)| pb::Header { name: name.into(), value: value.into() };
    headers.iter().map(header).collect()
}

fn failure_to_proto(failure: Option<&Failure>) -> (i32, String) {
    failure.map_or((0, String::new()), |failure| {
        (error_kind_to_proto(failure.kind) as i32, failure.message.clone())
    })
}

const fn trigger_to_proto(trigger: Trigger) -> pb::AttemptTrigger {
    match trigger {
        Trigger::Automatic => pb::AttemptTrigger::Automatic,
        Trigger::Manual => pb::AttemptTrigger::Manual,
        Trigger::Test => pb::AttemptTrigger::Test,
    }
}

pub(super) const fn error_kind_to_proto(kind: ErrorKind) -> pb::ErrorKind {
    match kind {
        ErrorKind::Dns => pb::ErrorKind::Dns,
        ErrorKind::AddressRefused => pb::ErrorKind::AddressRefused,
        ErrorKind::UrlRefused => pb::ErrorKind::UrlRefused,
        ErrorKind::Connect => pb::ErrorKind::Connect,
        ErrorKind::Tls => pb::ErrorKind::Tls,
        ErrorKind::Timeout => pb::ErrorKind::Timeout,
        ErrorKind::Protocol => pb::ErrorKind::Protocol,
        ErrorKind::ResponseTooLarge => pb::ErrorKind::ResponseTooLarge,
        ErrorKind::HttpStatus => pb::ErrorKind::HttpStatus,
        ErrorKind::Smtp => pb::ErrorKind::Smtp,
        ErrorKind::Configuration => pb::ErrorKind::Configuration,
        ErrorKind::Internal => pb::ErrorKind::Internal,
    }
}

/// A state in a filter.
pub(crate) fn state(number: i32) -> Option<State> {
    i16::try_from(number).ok().and_then(State::from_code)
}

/// A reason in a filter.
fn failure_reason(number: i32) -> Option<i16> {
    let known = pb::FailureReason::try_from(number).ok();
    known.filter(|reason| *reason != pb::FailureReason::Unspecified)?;
    i16::try_from(number).ok()
}

/// Which deliveries to list.
pub(crate) fn delivery_filter(
    request: &pb::ListDeliveriesRequest,
    violations: &mut Violations,
) -> DeliveryFilter {
    let (from, until) = (request.create_time_from.as_ref(), request.create_time_until.as_ref());
    DeliveryFilter {
        subscription_id: subscription_filter(&request.subscription_id),
        event_id: event_filter(&request.event_id),
        event_types: patterns(&request.event_types, "event_types", violations),
        states: enum_list(&request.states, "states", violations, state),
        failure_reasons: enum_list(
            &request.failure_reasons,
            "failure_reasons",
            violations,
            failure_reason,
        ),
        create_time_from: timestamp(from, "create_time_from", violations),
        create_time_until: timestamp(until, "create_time_until", violations),
    }
}

/// Which deliveries to watch.
pub(crate) fn watch_filter(
    request: &pb::WatchDeliveriesRequest,
    violations: &mut Violations,
) -> Filter {
    Filter {
        subscription_id: subscription_filter(&request.subscription_id),
        event_id: event_filter(&request.event_id),
        event_types: patterns(&request.event_types, "event_types", violations),
        states: enum_list(&request.states, "states", violations, state),
    }
}

/// The subscription in a filter. A text that is no id is answered like the id of a foreign
/// subscription: with nothing. So it becomes an id that nothing has.
fn subscription_filter(text: &str) -> Option<SubscriptionId> {
    let nobodys = || SubscriptionId::first_at(Timestamp::default());
    (!text.is_empty()).then(|| SubscriptionId::parse(text).unwrap_or_else(|_| nobodys()))
}

fn event_filter(text: &str) -> Option<EventId> {
    let nobodys = || EventId::first_at(Timestamp::default());
    (!text.is_empty()).then(|| EventId::parse(text).unwrap_or_else(|_| nobodys()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::delivery::FailureReason;
    use crate::domain::event_type::ChannelKind;

    #[test]
    fn the_domains_numbers_are_the_contracts() {
        for state in State::ALL {
            let wire = pb::DeliveryState::try_from(i32::from(state.code())).expect("known");
            assert_eq!(wire.as_str_name(), format!("DELIVERY_STATE_{}", state.as_str()));
            assert_eq!(super::state(wire as i32), Some(state));
        }
        assert_eq!(super::state(0), None);
        let reasons = [
            (FailureReason::Exhausted, pb::FailureReason::Exhausted),
            (FailureReason::Permanent, pb::FailureReason::Permanent),
            (FailureReason::SubscriptionDeleted, pb::FailureReason::SubscriptionDeleted),
            (FailureReason::Unsubscribed, pb::FailureReason::Unsubscribed),
            (FailureReason::Bounced, pb::FailureReason::Bounced),
            (FailureReason::Quarantined, pb::FailureReason::Quarantined),
        ];
        assert_eq!(reasons.len(), FailureReason::ALL.len());
        for (ours, wire) in reasons {
            assert_eq!(i32::from(ours.code()), wire as i32);
        }
        for kind in ErrorKind::ALL {
            let wire = error_kind_to_proto(kind).as_str_name();
            assert_eq!(wire, format!("ERROR_KIND_{}", kind.as_str().to_uppercase()));
        }
        assert_eq!(channel_to_proto(ChannelKind::Email), pb::Channel::Email);
    }

    #[test]
    fn a_filter_by_a_malformed_id_matches_nothing() {
        assert_eq!(subscription_filter(""), None);
        let nobodys = subscription_filter("x' OR 1=1").expect("a filter");
        assert_eq!(nobodys.as_str(), "sub_00000000000000000000000000");
        assert_eq!(event_filter(nobodys.as_str()).expect("a filter").time(), Timestamp::default());
    }
}
