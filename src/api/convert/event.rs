//! Events, in and out.

use bytes::Bytes;

use crate::api::proto as pb;
use crate::api::status::Failure;
use crate::domain::Violations;
use crate::domain::event::{Event, NewEvent};
use crate::domain::id::TenantId;
use crate::domain::trace::TraceContext;
use crate::intake::Accepted;
use crate::store::EventFilter;

use super::{count_to_proto, duration_to_proto, patterns, timestamp, timestamp_to_proto};

/// Whole numbers below this are exact as doubles, so they are written as integers.
const EXACT_INTEGERS: f64 = 9_007_199_254_740_992.0;
/// The payload of an event that has none.
const NO_DATA: Bytes = Bytes::from_static(b"{}");
/// Most bytes of violations in the error of one item: a batch of a thousand stays below 4 MiB.
const ITEM_VIOLATION_BYTES: usize = 2 * 1024;

/// An event to accept. What the contract's types allow and the domain's do not is noted in
/// `violations`; the domain's own rules are checked later. Texts are taken over without a copy.
pub(crate) fn new_event(
    request: pb::EmitRequest,
    tenant_id: TenantId,
    trace: TraceContext,
    violations: &mut Violations,
) -> NewEvent {
    let (data_field, data) = match request.payload {
        None => ("data", NO_DATA),
        Some(pb::emit_request::Payload::DataJson(json)) => ("data_json", Bytes::from(json)),
        Some(pb::emit_request::Payload::Data(data)) => {
            let mut json = String::new();
            write_object(data.fields, &mut json, violations);
            ("data", Bytes::from(json))
        }
    };
    NewEvent {
        tenant_id,
        data,
        data_field,
        occur_time: timestamp(request.occur_time.as_ref(), "occur_time", violations),
        deliver_time: timestamp(request.deliver_time.as_ref(), "deliver_time", violations),
        expire_time: timestamp(request.expire_time.as_ref(), "expire_time", violations),
        event_type: request.r#type,
        subject: request.subject,
        labels: request.labels.into_iter().collect(),
        idempotency_key: request.idempotency_key,
        trace,
    }
}

/// Writes the fields in the order of their keys: the same data always gives the same bytes.
fn write_object(
    fields: std::collections::BTreeMap<String, prost_types::Value>,
    json: &mut String,
    violations: &mut Violations,
) {
    json.push('{');
    for (index, (key, value)) in fields.into_iter().enumerate() {
        if index > 0 {
            json.push(',');
        }
        write_string(&key, json);
        json.push(':');
        write_value(value, json, violations);
    }
    json.push('}');
}

fn write_value(value: prost_types::Value, json: &mut String, violations: &mut Violations) {
    use prost_types::value::Kind;
    match value.kind {
        None | Some(Kind::NullValue(_)) => json.push_str("null"),
        Some(Kind::BoolValue(value)) => json.push_str(if value { "true" } else { "false" }),
        Some(Kind::StringValue(text)) => write_string(&text, json),
        Some(Kind::NumberValue(number)) => write_number(number, json, violations),
        Some(Kind::StructValue(object)) => write_object(object.fields, json, violations),
        Some(Kind::ListValue(list)) => {
            json.push('[');
            for (index, item) in list.values.into_iter().enumerate() {
                if index > 0 {
                    json.push(',');
                }
                write_value(item, json, violations);
            }
            json.push(']');
        }
    }
}

fn write_number(number: f64, json: &mut String, violations: &mut Violations) {
    use std::fmt::Write;
    if !number.is_finite() {
        violations.add("data", "must not contain NaN or infinite numbers: JSON has none");
        // What is written stays JSON, so that nobody complains again of what is told already.
        json.push_str("null");
        return;
    }
    if number.fract() == 0.0 && number.abs() < EXACT_INTEGERS {
        // Writing into a String cannot fail.
        let _ = write!(json, "{number:.0}");
    } else {
        // Finite numbers are always writable as JSON.
        json.push_str(&serde_json::to_string(&number).unwrap_or_default());
    }
}

fn write_string(text: &str, json: &mut String) {
    // A string is always writable as JSON.
    json.push_str(&serde_json::to_string(text).unwrap_or_default());
}

/// An event as the contract writes it.
pub(crate) fn event_to_proto(event: Event) -> pb::Event {
    pb::Event {
        id: event.id.to_string(),
        tenant_id: event.tenant_id.to_string(),
        r#type: event.event_type,
        subject: event.subject,
        // What was accepted is UTF-8.
        data_json: String::from_utf8_lossy(&event.data).into_owned(),
        labels: event.labels.into_iter().collect(),
        occur_time: Some(timestamp_to_proto(event.occur_time)),
        create_time: Some(timestamp_to_proto(event.create_time)),
        expire_time: event.expire_time.map(timestamp_to_proto),
        trace_id: event.trace.trace_id_hex(),
        deliver_time: event.deliver_time.map(timestamp_to_proto),
    }
}

/// The acknowledgement of one event.
pub(crate) fn accepted_to_proto(accepted: &Accepted) -> pb::EmitResponse {
    pb::EmitResponse {
        event_id: accepted.event_id.to_string(),
        delivery_count: count_to_proto(accepted.delivery_count),
        duplicate: accepted.duplicate,
    }
}

/// What became of one event among many.
pub(crate) fn result_to_proto(result: Result<pb::EmitResponse, Failure>) -> pb::EmitResult {
    let result = match result {
        Ok(response) => pb::emit_result::Result::Response(response),
        Err(failure) => pb::emit_result::Result::Error(failure_to_proto(failure)),
    };
    pb::EmitResult { result: Some(result) }
}

fn failure_to_proto(failure: Failure) -> pb::EmitError {
    let info = failure.reason.info();
    let violations = failure.told_violations(ITEM_VIOLATION_BYTES);
    pb::EmitError {
        code: info.code as i32,
        reason: info.name.to_owned(),
        violations: violations
            .into_iter()
            .map(|(field, description)| pb::FieldViolation { field, description })
            .collect(),
        retry_delay: failure.retry_delay().map(duration_to_proto),
        message: failure.message,
    }
}

/// Which events to list.
pub(crate) fn event_filter(
    request: &pb::ListEventsRequest,
    violations: &mut Violations,
) -> EventFilter {
    let (from, until) = (request.create_time_from.as_ref(), request.create_time_until.as_ref());
    EventFilter {
        event_types: patterns(&request.event_types, "event_types", violations),
        subject: request.subject.clone(),
        create_time_from: timestamp(from, "create_time_from", violations),
        create_time_until: timestamp(until, "create_time_until", violations),
    }
}

#[cfg(test)]
mod tests {
    use prost_types::value::Kind;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;
    use crate::domain::Timestamp;

    fn read(payload: Option<pb::emit_request::Payload>) -> (NewEvent, Violations) {
        let mut random = StdRng::seed_from_u64(1);
        let tenant_id = TenantId::new(Timestamp::from_micros(0), &mut random);
        let trace = TraceContext::root(&mut random);
        let request = pb::EmitRequest { payload, r#type: "a.b".into(), ..Default::default() };
        let mut violations = Violations::new();
        (new_event(request, tenant_id, trace, &mut violations), violations)
    }

    fn value(kind: Kind) -> prost_types::Value {
        prost_types::Value { kind: Some(kind) }
    }

    fn data(fields: Vec<(&str, Kind)>) -> pb::emit_request::Payload {
        let fields = fields.into_iter().map(|(key, kind)| (key.to_owned(), value(kind))).collect();
        pb::emit_request::Payload::Data(prost_types::Struct { fields })
    }

    #[test]
    fn json_text_is_taken_byte_for_byte() {
        let json = r#" {"b":9007199254740993, "a":1.0,"a":2} "#;
        let event = read(Some(pb::emit_request::Payload::DataJson(json.into()))).0;
        assert_eq!(event.data, json);
        assert_eq!(read(None).0.data, "{}");
    }

    #[test]
    fn a_struct_becomes_json_with_sorted_keys_and_whole_integers() {
        let list = prost_types::ListValue {
            values: vec![
                value(Kind::NumberValue(1.5)),
                value(Kind::NullValue(0)),
                value(Kind::BoolValue(true)),
            ],
        };
        let payload = data(vec![
            ("z", Kind::NumberValue(42.0)),
            ("a", Kind::ListValue(list)),
            ("q\"", Kind::StringValue("\u{1}ä".into())),
            ("n", Kind::NumberValue(-3.0)),
        ]);
        let (event, violations) = read(Some(payload));
        assert!(violations.is_empty());
        assert_eq!(event.data, "{\"a\":[1.5,null,true],\"n\":-3,\"q\\\"\":\"\\u0001ä\",\"z\":42}");
    }

    #[test]
    fn every_finite_double_is_written_as_json_that_means_it() {
        for number in [0.1, -0.0, 1e300, -2.5e-300, 9_007_199_254_740_991.0, 9.1e15, f64::MAX] {
            let (event, _) = read(Some(data(vec![("n", Kind::NumberValue(number))])));
            let json: serde_json::Value = serde_json::from_slice(&event.data).expect("JSON");
            assert_eq!(json["n"].as_f64(), Some(number), "{:?}", event.data);
        }
        for number in [f64::NAN, f64::INFINITY] {
            assert!(!read(Some(data(vec![("n", Kind::NumberValue(number))]))).1.is_empty());
        }
    }

    #[test]
    fn an_items_error_says_what_a_status_would() {
        let failure = Failure::from(Violations::of("type", "must not be empty"));
        let error = failure_to_proto(failure);
        assert_eq!((error.code, error.reason.as_str()), (3, "INVALID_FIELDS"));
        assert_eq!(error.violations[0].field, "type");
        assert_eq!(error.retry_delay, None);
        let full = failure_to_proto(Failure::of(crate::api::Reason::Overloaded));
        assert!(full.retry_delay.is_some());
    }
}
