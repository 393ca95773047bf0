//! What the body of a request looks like: the payload formats.
//!
//! Guarantees: the event's data stands in the body byte for byte (FLAT: the name and the value of
//! each member do, in their order). Nothing is parsed into numbers and written again, so big
//! integers, duplicate keys and escapes stay what they were. The same event and tenant make the
//! same bytes, on every attempt.

mod cloudevents;

use std::fmt;

use bytes::Bytes;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::channel::PayloadFormat;
use super::event::Event;
use super::tenant::Tenant;

/// The media type of every body but one.
const JSON_TYPE: &str = "application/json";
/// The names of FLAT's own fields, which win over members of the data.
const FLAT_FIELDS: [&str; 5] =
    ["event_type", "environment", "account_id", "account_name", "timestamp"];
/// Room for everything but the data.
const ENVELOPE_BYTES: usize = 256;

/// There is no body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The stored data is not JSON, although only JSON is accepted.
    #[error("The event's data is not valid JSON.")]
    NotJson,
}

/// The body of every request that delivers `event` of `tenant` in `format`.
///
/// # Errors
/// When the stored data is not JSON, and the format has to look into it.
pub fn body(format: PayloadFormat, event: &Event, tenant: &Tenant) -> Result<Bytes, Error> {
    match format {
        PayloadFormat::Standard => Ok(standard(event, tenant)),
        PayloadFormat::Flat => flat(event, tenant),
        PayloadFormat::DataOnly | PayloadFormat::CloudEventsBinary => Ok(event.data.clone()),
        PayloadFormat::CloudEventsStructured => Ok(cloudevents::structured(event)),
    }
}

/// The media type of the body.
pub const fn content_type(format: PayloadFormat) -> &'static str {
    match format {
        PayloadFormat::CloudEventsStructured => cloudevents::STRUCTURED_TYPE,
        _ => JSON_TYPE,
    }
}

/// The headers that belong to the format, with values that are printable ASCII: the attributes of
/// CloudEvents in binary mode.
pub fn headers(format: PayloadFormat, event: &Event) -> Vec<(String, String)> {
    match format {
        PayloadFormat::CloudEventsBinary => cloudevents::headers(event),
        _ => Vec::new(),
    }
}

fn standard(event: &Event, tenant: &Tenant) -> Bytes {
    let mut body = Writer::new(event.data.len());
    body.raw(b"{\"id\":").string(event.id.as_str());
    body.raw(b",\"type\":").string(&event.event_type);
    body.raw(b",\"timestamp\":").string(&event.occur_time.to_string());
    body.raw(b",\"organization\":{\"id\":").string(tenant.id.as_str());
    body.raw(b",\"name\":").string(&tenant.spec.display_name);
    body.raw(b"},\"data\":").raw(&event.data).raw(b"}");
    body.finish()
}

fn flat(event: &Event, tenant: &Tenant) -> Result<Bytes, Error> {
    let mut body = Writer::new(event.data.len());
    body.raw(b"{\"event_type\":").string(&event.event_type);
    body.raw(b",\"environment\":").string(&tenant.spec.environment);
    body.raw(b",\"account_id\":");
    match tenant.spec.account_id {
        Some(number) => body.raw(number.to_string().as_bytes()),
        None => body.raw(b"null"),
    };
    body.raw(b",\"account_name\":").string(&tenant.spec.display_name);
    body.raw(b",\"timestamp\":").string(&event.occur_time.to_string());
    if event.data.trim_ascii_start().starts_with(b"{") {
        let mut json = serde_json::Deserializer::from_slice(&event.data);
        let members = Members(&mut body);
        json.deserialize_map(members).and_then(|()| json.end()).map_err(|_| Error::NotJson)?;
    } else {
        body.raw(b",\"data\":").raw(&event.data);
    }
    body.raw(b"}");
    Ok(body.finish())
}

/// Writes the members of a JSON object as they stand, without those that have a field's name.
struct Members<'w>(&'w mut Writer);

impl<'de> Visitor<'de> for Members<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some((name, value)) = map.next_entry::<&RawValue, &RawValue>()? {
            if !is_flat_field(name.get()) {
                self.0.raw(b",").raw(name.get().as_bytes());
                self.0.raw(b":").raw(value.get().as_bytes());
            }
        }
        Ok(())
    }
}

/// Whether a member's name, as it is written with its quotes, means one of FLAT's own fields.
fn is_flat_field(written: &str) -> bool {
    if written.contains('\\') {
        return serde_json::from_str::<String>(written)
            .is_ok_and(|name| FLAT_FIELDS.contains(&name.as_str()));
    }
    FLAT_FIELDS.contains(&written.trim_matches('"'))
}

/// Writes JSON from pieces that are JSON already, and from text.
struct Writer(Vec<u8>);

impl Writer {
    fn new(data_bytes: usize) -> Self {
        Self(Vec::with_capacity(data_bytes + ENVELOPE_BYTES))
    }

    fn raw(&mut self, json: &[u8]) -> &mut Self {
        self.0.extend_from_slice(json);
        self
    }

    /// A string with its quotes, escaped as RFC 8259, section 7, wants it.
    fn string(&mut self, text: &str) -> &mut Self {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        self.0.push(b'"');
        for byte in text.bytes() {
            match byte {
                b'"' | b'\\' => self.0.extend_from_slice(&[b'\\', byte]),
                0..0x20 => {
                    let digits = [HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]];
                    self.0.extend_from_slice(b"\\u00");
                    self.0.extend_from_slice(&digits);
                }
                _ => self.0.push(byte),
            }
        }
        self.0.push(b'"');
        self
    }

    fn finish(self) -> Bytes {
        Bytes::from(self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use serde_json::Value;

    use super::*;
    use crate::domain::Timestamp;
    use crate::domain::id::{EventId, TenantId};
    use crate::domain::tenant::TenantSpec;
    use crate::domain::trace::TraceContext;

    fn tenant(display_name: &str, account_id: Option<i64>) -> Tenant {
        let now = Timestamp::from_micros(1_770_283_800_000_000);
        Tenant {
            id: TenantId::first_at(now),
            spec: TenantSpec {
                display_name: display_name.to_owned(),
                environment: "production".to_owned(),
                account_id,
                ..TenantSpec::default()
            },
            unreadable: false,
            revision: 1,
            create_time: now,
            update_time: now,
        }
    }

    fn event(data: &str) -> Event {
        let now = Timestamp::from_micros(1_770_283_800_250_000);
        Event {
            id: EventId::first_at(now),
            tenant_id: TenantId::first_at(now),
            event_type: "billing.paid".to_owned(),
            subject: String::new(),
            data: Bytes::copy_from_slice(data.as_bytes()),
            labels: std::collections::BTreeMap::new(),
            occur_time: now,
            create_time: now,
            deliver_time: None,
            expire_time: None,
            trace: TraceContext::root(&mut StdRng::seed_from_u64(1)),
        }
    }

    fn text(format: PayloadFormat, data: &str) -> String {
        let body = body(format, &event(data), &tenant("Acme \"Ltd\"\n", Some(42))).expect("body");
        String::from_utf8(body.to_vec()).expect("UTF-8")
    }

    const AWKWARD: &str =
        r#" { "a" : 123456789012345678901234567890, "a":1.0e2 , "\u0062":"\u00e9\/", "n":null} "#;

    #[test]
    fn standard_wraps_the_data_byte_for_byte() {
        let event = event(AWKWARD);
        assert_eq!(
            text(PayloadFormat::Standard, AWKWARD),
            format!(
                r#"{{"id":"{}","type":"billing.paid","timestamp":"2026-02-05T09:30:00.25Z","organization":{{"id":"{}","name":"Acme \"Ltd\"\u000a"}},"data":{AWKWARD}}}"#,
                event.id,
                tenant("", None).id,
            )
        );
    }

    #[test]
    fn flat_puts_the_members_beside_the_common_fields() {
        assert_eq!(
            text(PayloadFormat::Flat, AWKWARD),
            r#"{"event_type":"billing.paid","environment":"production","account_id":42,"account_name":"Acme \"Ltd\"\u000a","timestamp":"2026-02-05T09:30:00.25Z","a":123456789012345678901234567890,"a":1.0e2,"\u0062":"\u00e9\/","n":null}"#
        );
    }

    #[test]
    fn in_flat_the_common_fields_win() {
        let data =
            r#"{"x":1,"timestamp":0,"account\u005fid":2,"event_type":{},"y":{"timestamp":1}}"#;
        let body = text(PayloadFormat::Flat, data);
        assert!(body.ends_with(r#"Z","x":1,"y":{"timestamp":1}}"#), "{body}");
        let none = body_of_flat_without_account();
        assert!(none.contains(r#""account_id":null"#), "{none}");
    }

    fn body_of_flat_without_account() -> String {
        let body = body(PayloadFormat::Flat, &event("{}"), &tenant("A", None)).expect("body");
        String::from_utf8(body.to_vec()).expect("UTF-8")
    }

    #[test]
    fn in_flat_data_that_is_no_object_goes_under_data() {
        for data in ["[1,2]", "3.10", "\"x\"", "null", " true "] {
            assert!(text(PayloadFormat::Flat, data).ends_with(&format!(r#","data":{data}}}"#)));
        }
    }

    #[test]
    fn data_only_is_the_data() {
        assert_eq!(text(PayloadFormat::DataOnly, AWKWARD), AWKWARD);
    }

    #[test]
    fn what_cannot_be_made_is_an_error() {
        for data in ["{", "{\"a\":1}}", "{a:1}"] {
            let made = body(PayloadFormat::Flat, &event(data), &tenant("A", None));
            assert_eq!(made, Err(Error::NotJson), "{data}");
        }
    }

    /// JSON as text, with spacing, duplicate keys, escapes and numbers of any size.
    fn json() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("null".to_owned()),
            "-?[1-9][0-9]{0,40}(\\.[0-9]{1,30})?([eE][+-]?[0-9]{1,2})?",
            "\"([ !#-\\[\\]-~é]|\\\\u00[0-7][0-9a-f]|\\\\[nrt/\"\\\\]){0,20}\"",
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            let key = "\"[a-c]{1,2}\"|\"timestamp\"|\"account\\\\u005fid\"";
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6)
                    .prop_map(|items| format!("[{}]", items.join(" , "))),
                proptest::collection::vec((key, inner), 0..6).prop_map(|members| {
                    let members: Vec<_> =
                        members.iter().map(|(k, v)| format!("{k} : {v}")).collect();
                    format!("{{ {}\n}}", members.join(",\t"))
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn cloudevents_hold_the_data_byte_for_byte(data in json(), subject in ".{0,20}") {
            let event = Event { subject, ..event(&data) };
            let tenant = tenant("A", None);
            let binary = body(PayloadFormat::CloudEventsBinary, &event, &tenant).expect("body");
            prop_assert_eq!(binary, &event.data);
            let body = body(PayloadFormat::CloudEventsStructured, &event, &tenant).expect("body");
            let tail = format!(",\"data\":{data}}}");
            prop_assert!(body.ends_with(tail.as_bytes()));
            let parsed: Value = serde_json::from_slice(&body).expect("JSON");
            prop_assert_eq!(parsed["subject"].as_str().unwrap_or_default(), &event.subject);
            for (name, value) in headers(PayloadFormat::CloudEventsBinary, &event) {
                prop_assert!(name.starts_with("ce-"));
                prop_assert!(value.bytes().all(|byte| (0x21..=0x7e).contains(&byte)), "{}", value);
            }
        }

        #[test]
        fn standard_contains_the_data_and_parses(data in json(), name in ".{0,20}") {
            let body = body(PayloadFormat::Standard, &event(&data), &tenant(&name, None)).expect("body");
            let tail = format!("\"data\":{data}}}");
            prop_assert!(body.ends_with(tail.as_bytes()));
            let parsed: Value = serde_json::from_slice(&body).expect("JSON");
            prop_assert_eq!(parsed["organization"]["name"].as_str(), Some(name.as_str()));
        }

        #[test]
        fn flat_keeps_each_member_and_parses(values in proptest::collection::vec(json(), 0..6)) {
            let members: Vec<_> =
                values.iter().enumerate().map(|(i, value)| format!("\"k{i}\":{value}")).collect();
            let body = text(PayloadFormat::Flat, &format!("{{{}}}", members.join(",")));
            let comma = if members.is_empty() { "" } else { "," };
            let tail = format!("{comma}{}}}", members.join(","));
            prop_assert!(body.ends_with(&tail), "{}", body);
            prop_assert!(serde_json::from_str::<Value>(&body).is_ok());
        }

        #[test]
        fn flat_takes_any_json(data in json()) {
            let body = text(PayloadFormat::Flat, &data);
            let parsed: Value = serde_json::from_str(&body).expect("JSON");
            prop_assert_eq!(&parsed["timestamp"], "2026-02-05T09:30:00.25Z");
            prop_assert_eq!(&parsed["account_id"], 42);
        }
    }
}
