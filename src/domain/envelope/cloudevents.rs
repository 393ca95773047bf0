//! CloudEvents 1.0: an event's attributes, and its data as it was emitted.
//!
//! Guarantees: the attributes are those of the event, so they are the same on every attempt and in
//! both modes; `source` and `id` together name one event for all time.
//!
//! Specification: <https://github.com/cloudevents/spec/tree/v1.0.2/cloudevents>. The trace is that in
//! which the event was emitted (extension "Distributed Tracing"); the `traceparent` header of HTTP
//! is that of the attempt.

use bytes::Bytes;

use super::{JSON_TYPE, Writer};
use crate::domain::event::Event;

/// The media type of the structured mode.
pub(super) const STRUCTURED_TYPE: &str = "application/cloudevents+json; charset=utf-8";

/// Most characters in the name of an extension: what the specification recommends, and some of its
/// libraries insist on.
const MAX_NAME_BYTES: usize = 20;
/// Names that a label cannot have as an extension: the attributes of the specification, and ours.
const TAKEN: [&str; 11] = [
    "data",
    "datacontenttype",
    "dataschema",
    "id",
    "source",
    "specversion",
    "subject",
    "time",
    "traceparent",
    "tracestate",
    "type",
];
/// Where an attribute stands among the headers.
const HEADER_PREFIX: &str = "ce-";

/// The whole event as one JSON object.
pub(super) fn structured(event: &Event) -> Bytes {
    let mut body = Writer::new(event.data.len());
    let mut separator = "{";
    for (name, value) in attributes(event) {
        body.raw(separator.as_bytes()).string(name).raw(b":").string(&value);
        separator = ",";
        if name == "time" {
            body.raw(b",\"datacontenttype\":").string(JSON_TYPE);
        }
    }
    body.raw(b",\"data\":").raw(&event.data).raw(b"}");
    body.finish()
}

/// The attributes as headers of the binary mode. `datacontenttype` is the `Content-Type`.
pub(super) fn headers(event: &Event) -> Vec<(String, String)> {
    attributes(event)
        .map(|(name, value)| (format!("{HEADER_PREFIX}{name}"), percent_encoded(&value)))
        .collect()
}

/// The attributes but `datacontenttype`, in the order of the specification; the extensions last.
fn attributes(event: &Event) -> impl Iterator<Item = (&str, String)> {
    let subject = Some(event.subject.clone()).filter(|subject| !subject.is_empty());
    [
        ("specversion", Some("1.0".to_owned())),
        ("id", Some(event.id.to_string())),
        ("source", Some(format!("/tenants/{}", event.tenant_id))),
        ("type", Some(event.event_type.clone())),
        ("subject", subject),
        ("time", Some(event.occur_time.to_string())),
        ("traceparent", Some(event.trace.to_string())),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name, value?)))
    .chain(extensions(event))
}

/// The labels that can be extensions; the others are left out.
fn extensions(event: &Event) -> impl Iterator<Item = (&str, String)> {
    event
        .labels
        .iter()
        .filter(|(name, value)| is_name(name) && is_string(value))
        .map(|(name, value)| (name.as_str(), value.clone()))
}

/// Lower-case letters and digits, and not the name of another attribute.
fn is_name(name: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_lowercase())
        && !TAKEN.contains(&name)
}

/// The type String of CloudEvents: neither control characters nor noncharacters. An empty one would
/// be an attribute without a value.
fn is_string(value: &str) -> bool {
    let is_noncharacter =
        |c: char| matches!(c, '\u{fdd0}'..='\u{fdef}') || u32::from(c) & 0xfffe == 0xfffe;
    !value.is_empty() && !value.chars().any(|c| c.is_control() || is_noncharacter(c))
}

/// A value as a header carries it (HTTP binding, section 3.1.3.2): everything but printable ASCII,
/// and the space, `"` and `%`, as the percent-encoded bytes of its UTF-8.
fn percent_encoded(value: &str) -> String {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut encoded = String::with_capacity(value.len());
    for byte in value.bytes() {
        if (0x21..=0x7e).contains(&byte) && byte != b'"' && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            encoded.push('%');
            encoded.push(char::from(HEX[usize::from(byte >> 4)]));
            encoded.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;
    use crate::domain::Timestamp;
    use crate::domain::id::{EventId, TenantId};
    use crate::domain::trace::TraceContext;

    fn event(subject: &str, labels: &[(&str, &str)]) -> Event {
        let now = Timestamp::from_micros(1_770_283_800_250_000);
        Event {
            id: EventId::first_at(now),
            tenant_id: TenantId::first_at(now),
            event_type: "billing.paid".to_owned(),
            subject: subject.to_owned(),
            data: Bytes::from_static(b"{ \"a\" :1e3}"),
            labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            occur_time: now,
            create_time: now,
            deliver_time: None,
            expire_time: None,
            trace: TraceContext::root(&mut StdRng::seed_from_u64(1)),
        }
    }

    #[test]
    fn both_modes_hold_the_same_attributes() {
        let event = event("invoice/7 \"ü\"", &[("region", "eu 50%")]);
        let (id, tenant, trace) = (event.id, event.tenant_id, event.trace);
        let body = structured(&event);
        assert_eq!(
            String::from_utf8_lossy(&body),
            format!(
                r#"{{"specversion":"1.0","id":"{id}","source":"/tenants/{tenant}","type":"billing.paid","subject":"invoice/7 \"ü\"","time":"2026-02-05T09:30:00.25Z","datacontenttype":"application/json","traceparent":"{trace}","region":"eu 50%","data":{{ "a" :1e3}}}}"#
            )
        );
        let headers: BTreeMap<_, _> = headers(&event).into_iter().collect();
        assert_eq!(headers["ce-subject"], "invoice/7%20%22%C3%BC%22");
        assert_eq!(headers["ce-region"], "eu%2050%25");
        assert_eq!(headers["ce-source"], format!("/tenants/{tenant}"));
        assert_eq!(headers.len(), 8, "{headers:?}");
        assert!(!headers.contains_key("ce-datacontenttype"), "it is the Content-Type");
    }

    #[test]
    fn what_is_not_set_is_no_attribute() {
        let event = event("", &[]);
        assert!(!headers(&event).iter().any(|(name, _)| name == "ce-subject"));
        assert!(!String::from_utf8_lossy(&structured(&event)).contains("subject"));
    }

    #[test]
    fn only_labels_with_valid_names_and_values_are_extensions() {
        let long = "a".repeat(MAX_NAME_BYTES + 1);
        let labels = [
            ("ok1", "v"),
            (&long[1..], "v"),
            (&long, "v"),
            ("Upper", "v"),
            ("with_underscore", "v"),
            ("with-hyphen", "v"),
            ("ä", "v"),
            ("id", "another"),
            ("data", "another"),
            ("traceparent", "another"),
            ("empty", ""),
            ("control", "a\nb"),
            ("nonchar", "\u{fffe}"),
            ("emoji", "🙂"),
        ];
        let event = event("", &labels);
        let names: Vec<_> = extensions(&event).map(|(name, _)| name).collect();
        assert_eq!(names, [&long[1..], "emoji", "ok1"]);
    }
}
