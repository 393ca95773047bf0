//! Answers for programs: the contract's messages in the JSON form of Protocol Buffers
//! (<https://protobuf.dev/programming-guides/json/>), with field names as in the contract.
//!
//! Every protobuf library can read it back. 64-bit integers are strings, bytes are Base64, times
//! RFC 3339, durations seconds with an `s`; fields without presence are always there, others only
//! when they are set. Each message is taken apart field by field, so that a field that the contract
//! gains does not compile until it is named here.

use std::collections::{BTreeMap, HashMap};
use std::marker::PhantomData;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::names::Enumeration;
use super::time;
use crate::api::proto;

/// What the contract calls `map<string, string>`.
type Texts = HashMap<String, String>;

/// A message that can be written as JSON.
pub trait Message {
    /// Writes the fields in the order of this file.
    ///
    /// # Errors
    /// Those of the serializer.
    fn fields<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error>;
}

/// A message on its way to being JSON.
pub struct Json<'a, T>(pub &'a T);

impl<T: Message> Serialize for Json<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        self.0.fields(&mut map)?;
        map.end()
    }
}

macro_rules! messages {
    ($($name:path { $($field:ident: $kind:ty),* $(,)? })+) => {$(
        impl Message for $name {
            fn fields<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error> {
                let Self { $($field),* } = self;
                $(<$kind>::write(map, stringify!($field), $field)?;)*
                Ok(())
            }
        }
    )+};
}

messages! {
    proto::Tenant {
        id: Plain, display_name: Plain, environment: Plain, account_id: OptionalInt64,
        primary_contact: Plain, webhook_url: Plain, labels: TextMap, retry_policy: Nested,
        create_time: Time, update_time: Time, etag: Plain, locale: Plain, time_zone: Plain,
        primary_contact_exclusions: Plain,
    }
    proto::ApiKey {
        id: Plain, tenant_id: Plain, display_name: Plain, prefix: Plain, scopes: Plain,
        create_time: Time, expire_time: Time, revoke_time: Time,
        last_use_time: Time,
    }
    proto::EventType {
        tenant_id: Plain, name: Plain, description: Plain, category: Plain, since: Plain,
        status: Enum<proto::EventTypeStatus>, json_schema: Plain,
        retry_policy: Nested, recommended_channels: Enums<proto::Channel>,
        guidance: Plain, create_time: Time, update_time: Time, etag: Plain,
        email_template: Plain,
    }
    proto::RetryPolicy { max_retries: Optional, backoff: Member, jitter: Optional }
    proto::retry_policy::Exponential {
        initial_interval: Seconds, multiplier: Plain, max_interval: Seconds,
    }
    proto::retry_policy::Schedule { intervals: Seconds }
    proto::Subscription {
        id: Plain, tenant_id: Plain, display_name: Plain, event_types: Plain,
        state: Enum<proto::SubscriptionState>,
        disable_reason: Enum<proto::DisableReason>, channel: Member,
        retry_policy: Nested, labels: TextMap, create_time: Time, update_time: Time,
        etag: Plain, signing_public_keys: Plain, health: Nested,
    }
    proto::EndpointHealth {
        state: Enum<proto::EndpointState>, consecutive_failures: Plain, failing_since: Time,
        next_probe_time: Time, last_error_kind: Enum<proto::ErrorKind>,
    }
    proto::WebhookChannel {
        url: Plain, signatures: Enums<proto::SignatureScheme>, signature_header: Plain,
        payload_format: Enum<proto::PayloadFormat>, headers: TextMap,
        timeout: Seconds, max_in_flight: Plain, max_requests_per_second: Plain,
        stripe_signature_header: Plain,
    }
    proto::EmailChannel { recipients: Plain, template: Plain, reply_to: Plain, digest: Nested }
    proto::EmailDigest { interval: Seconds, max_per_hour: Plain }
    proto::PreviewEmailResponse { subject: Plain, text: Plain, html: Plain }
    proto::SubscriptionStats {
        start_time: Time, end_time: Time, delivery_counts: List,
        attempt_count: Int64, success_rate: Optional, consecutive_failures: Int64,
        last_success_time: Time, last_failure_time: Time, p50_duration: Seconds,
        p95_duration: Seconds, p99_duration: Seconds,
    }
    proto::DeliveryStateCount { state: Enum<proto::DeliveryState>, count: Int64 }
    proto::Delivery {
        id: Plain, tenant_id: Plain, event_id: Plain, event_type: Plain, subscription_id: Plain,
        channel: Enum<proto::Channel>, recipient: Plain,
        state: Enum<proto::DeliveryState>,
        failure_reason: Enum<proto::FailureReason>, attempt_count: Plain,
        next_attempt_time: Time, last_attempt: Nested, trace_id: Plain, revision: Int64,
        create_time: Time, update_time: Time, expire_time: Time,
        recover_time: Time, interrupted_count: Plain,
    }
    proto::Attempt {
        delivery_id: Plain, number: Plain, trigger: Enum<proto::AttemptTrigger>,
        start_time: Time, duration: Seconds, http_status: Plain, request_headers: List,
        response_headers: List, response_body: Bytes, smtp_reply: Plain,
        error_kind: Enum<proto::ErrorKind>, error_message: Plain, trace_id: Plain,
        span_id: Plain, timings: Nested,
    }
    proto::AttemptTimings {
        dns: Seconds, connect: Seconds, tls: Seconds, first_byte: Seconds,
        connection_reused: Plain,
    }
    proto::Header { name: Plain, value: Plain }
    proto::EmitResponse { event_id: Plain, delivery_count: Plain, duplicate: Plain }
    proto::EmitError {
        code: Plain, message: Plain, reason: Plain, violations: List, retry_delay: Seconds,
    }
    proto::EmitResult { result: Member }
    proto::FieldViolation { field: Plain, description: Plain }
    proto::WatchDeliveriesResponse {
        resume_token: Plain, delivery: Nested, snapshot_complete: Plain,
    }

    proto::CreateTenantResponse { tenant: Nested }
    proto::GetTenantResponse { tenant: Nested }
    proto::UpdateTenantResponse { tenant: Nested }
    proto::ListTenantsResponse { tenants: List, next_page_token: Plain }
    proto::CreateApiKeyResponse { api_key: Nested, secret: Plain }
    proto::RevokeApiKeyResponse { api_key: Nested }
    proto::ListApiKeysResponse { api_keys: List, next_page_token: Plain }
    proto::Suppression {
        tenant_id: Plain, address: Plain, subscription_id: Plain,
        reason: Enum<proto::SuppressionReason>, detail: Plain, delivery_id: Plain,
        create_time: Time,
    }
    proto::ListSuppressionsResponse { suppressions: List, next_page_token: Plain }
    proto::CreateSuppressionResponse { suppression: Nested }
    proto::ReportFeedbackResponse { outcome: Enum<proto::FeedbackOutcome>, suppression: Nested }
    proto::CreateEventTypeResponse { event_type: Nested }
    proto::GetEventTypeResponse { event_type: Nested }
    proto::UpdateEventTypeResponse { event_type: Nested }
    proto::ListEventTypesResponse { event_types: List, next_page_token: Plain }
    proto::CreateSubscriptionResponse {
        subscription: Nested, signing_secret: Plain, signing_public_key: Plain,
        warnings: Plain,
    }
    proto::GetSubscriptionResponse { subscription: Nested }
    proto::UpdateSubscriptionResponse { subscription: Nested }
    proto::PauseSubscriptionResponse { subscription: Nested }
    proto::ResumeSubscriptionResponse { subscription: Nested }
    proto::ListSubscriptionsResponse { subscriptions: List, next_page_token: Plain }
    proto::RotateSecretResponse {
        subscription: Nested, signing_secret: Plain, previous_expire_time: Time,
        signing_public_key: Plain,
    }
    proto::TestSubscriptionResponse { attempt: Nested, event_id: Plain }
    proto::GetSubscriptionStatsResponse { stats: Nested }
    proto::ListDeliveriesResponse { deliveries: List, next_page_token: Plain }
    proto::RetryDeliveryResponse { delivery: Nested, attempt: Nested }
    proto::CancelDeliveryResponse { delivery: Nested }
}

macro_rules! empty_messages {
    ($($name:path),+ $(,)?) => {$(
        impl Message for $name {
            fn fields<M: SerializeMap>(&self, _: &mut M) -> Result<(), M::Error> {
                let Self {} = self;
                Ok(())
            }
        }
    )+};
}

empty_messages! {
    proto::DeleteTenantResponse, proto::DeleteEventTypeResponse, proto::DeleteSubscriptionResponse,
    proto::DeleteSuppressionResponse,
}

/// How fields of the type `V` are written.
trait Kind<V: ?Sized> {
    fn write<M: SerializeMap>(map: &mut M, key: &str, value: &V) -> Result<(), M::Error>;
}

/// As serde has it.
struct Plain;
/// Likewise, when it is set.
struct Optional;
/// As a string: JavaScript's numbers end at 2^53.
struct Int64;
/// Likewise, when it is set.
struct OptionalInt64;
/// As Base64.
struct Bytes;
/// As an object, sorted by key.
struct TextMap;
/// As RFC 3339, when it is set.
struct Time;
/// As seconds.
struct Seconds;
/// As the value's full name; an unknown one as its number.
struct Enum<E>(PhantomData<E>);
/// Likewise, a list of them.
struct Enums<E>(PhantomData<E>);
/// As an object, when it is set.
struct Nested;
/// As a list of objects.
struct List;
/// As the member of a oneof that is set.
struct Member;

impl<V: Serialize> Kind<V> for Plain {
    fn write<M: SerializeMap>(map: &mut M, key: &str, value: &V) -> Result<(), M::Error> {
        map.serialize_entry(key, value)
    }
}

impl<V: Serialize> Kind<Option<V>> for Optional {
    fn write<M: SerializeMap>(map: &mut M, key: &str, value: &Option<V>) -> Result<(), M::Error> {
        value.as_ref().map_or(Ok(()), |value| map.serialize_entry(key, value))
    }
}

impl Kind<i64> for Int64 {
    fn write<M: SerializeMap>(map: &mut M, key: &str, value: &i64) -> Result<(), M::Error> {
        map.serialize_entry(key, &value.to_string())
    }
}

impl Kind<Option<i64>> for OptionalInt64 {
    fn write<M: SerializeMap>(map: &mut M, key: &str, value: &Option<i64>) -> Result<(), M::Error> {
        value.as_ref().map_or(Ok(()), |value| Int64::write(map, key, value))
    }
}

impl Kind<bytes::Bytes> for Bytes {
    fn write<M: SerializeMap>(
        map: &mut M,
        key: &str,
        value: &bytes::Bytes,
    ) -> Result<(), M::Error> {
        map.serialize_entry(key, &STANDARD.encode(value))
    }
}

impl Kind<Texts> for TextMap {
    fn write<M: SerializeMap>(map: &mut M, key: &str, value: &Texts) -> Result<(), M::Error> {
        map.serialize_entry(key, &value.iter().collect::<BTreeMap<_, _>>())
    }
}

impl Kind<Option<prost_types::Timestamp>> for Time {
    fn write<M: SerializeMap>(
        map: &mut M,
        key: &str,
        value: &Option<prost_types::Timestamp>,
    ) -> Result<(), M::Error> {
        let text = value.as_ref().map(|time| time::from_proto(time).to_string());
        Optional::write(map, key, &text)
    }
}

impl Kind<Option<prost_types::Duration>> for Seconds {
    fn write<M: SerializeMap>(
        map: &mut M,
        key: &str,
        value: &Option<prost_types::Duration>,
    ) -> Result<(), M::Error> {
        Optional::write(map, key, &value.as_ref().map(ToString::to_string))
    }
}

impl Kind<Vec<prost_types::Duration>> for Seconds {
    fn write<M: SerializeMap>(
        map: &mut M,
        key: &str,
        value: &Vec<prost_types::Duration>,
    ) -> Result<(), M::Error> {
        map.serialize_entry(key, &value.iter().map(ToString::to_string).collect::<Vec<_>>())
    }
}

impl<E: Enumeration> Kind<i32> for Enum<E> {
    fn write<M: SerializeMap>(map: &mut M, key: &str, value: &i32) -> Result<(), M::Error> {
        match E::full(*value) {
            Some(name) => map.serialize_entry(key, name),
            None => map.serialize_entry(key, value),
        }
    }
}

impl<E: Enumeration> Kind<Vec<i32>> for Enums<E> {
    fn write<M: SerializeMap>(map: &mut M, key: &str, value: &Vec<i32>) -> Result<(), M::Error> {
        let name = |value: &i32| E::full(*value).map_or_else(|| value.to_string(), str::to_owned);
        map.serialize_entry(key, &value.iter().map(name).collect::<Vec<_>>())
    }
}

impl<T: Message> Kind<Option<T>> for Nested {
    fn write<M: SerializeMap>(map: &mut M, key: &str, value: &Option<T>) -> Result<(), M::Error> {
        Optional::write(map, key, &value.as_ref().map(Json))
    }
}

impl<T: Message> Kind<Vec<T>> for List {
    fn write<M: SerializeMap>(map: &mut M, key: &str, value: &Vec<T>) -> Result<(), M::Error> {
        map.serialize_entry(key, &value.iter().map(Json).collect::<Vec<_>>())
    }
}

macro_rules! oneofs {
    ($($name:path { $($member:ident: $key:literal),+ $(,)? })+) => {$(
        impl Kind<Option<$name>> for Member {
            fn write<M: SerializeMap>(
                map: &mut M,
                _: &str,
                value: &Option<$name>,
            ) -> Result<(), M::Error> {
                use $name as Oneof;
                match value {
                    $(Some(Oneof::$member(member)) => map.serialize_entry($key, &Json(member)),)+
                    None => Ok(()),
                }
            }
        }
    )+};
}

oneofs! {
    proto::retry_policy::Backoff { Exponential: "exponential", Schedule: "schedule" }
    proto::subscription::Channel { Webhook: "webhook", Email: "email" }
    proto::emit_result::Result { Response: "response", Error: "error" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json<T: Message>(message: &T) -> String {
        serde_json::to_string(&Json(message)).unwrap()
    }

    #[test]
    fn a_message_is_proto_json() {
        let attempt = proto::Attempt {
            number: 2,
            trigger: proto::AttemptTrigger::Manual.into(),
            start_time: Some(prost_types::Timestamp { seconds: 0, nanos: 250_000_000 }),
            duration: Some(prost_types::Duration { seconds: 1, nanos: 500_000_000 }),
            response_body: prost::bytes::Bytes::from_static(b"\xff\x00"),
            ..proto::Attempt::default()
        };
        let text = json(&attempt);
        for part in [
            r#""number":2"#,
            r#""trigger":"ATTEMPT_TRIGGER_MANUAL""#,
            r#""start_time":"1970-01-01T00:00:00.25Z""#,
            r#""duration":"1.500s""#,
            r#""response_body":"/wA=""#,
            r#""error_kind":"ERROR_KIND_UNSPECIFIED""#,
            r#""response_headers":[]"#,
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn what_is_not_set_is_left_out() {
        assert_eq!(json(&proto::RetryPolicy::default()), "{}");
        let tenant = proto::Tenant { account_id: Some(1 << 60), ..proto::Tenant::default() };
        assert!(json(&tenant).contains(r#""account_id":"1152921504606846976""#));
        assert!(!json(&proto::Tenant::default()).contains("account_id"));
    }

    #[test]
    fn a_oneof_shows_the_member_that_is_set() {
        let policy = proto::RetryPolicy {
            max_retries: Some(0),
            backoff: Some(proto::retry_policy::Backoff::Schedule(proto::retry_policy::Schedule {
                intervals: vec![prost_types::Duration { seconds: 5, nanos: 0 }],
            })),
            jitter: None,
        };
        assert_eq!(json(&policy), r#"{"max_retries":0,"schedule":{"intervals":["5s"]}}"#);
    }
}
