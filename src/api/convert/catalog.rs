//! Event types.

use crate::api::mask::{Fields, Selection};
use crate::api::proto as pb;
use crate::domain::Violations;
use crate::domain::event_type::{ChannelKind, EventType, EventTypeSpec, Status};
use crate::domain::schema;

use super::{retry, timestamp_to_proto};

/// Most recommended channels: there are no more kinds.
const MAX_CHANNELS: usize = 8;

/// The fields of an event type, for update masks.
pub(crate) const FIELDS: Fields = Fields {
    mutable: &[
        "description",
        "category",
        "since",
        "status",
        "json_schema",
        "retry_policy",
        "recommended_channels",
        "guidance",
        "email_template",
    ],
    fixed: &["tenant_id", "name", "create_time", "update_time", "etag"],
};

/// Whether a field of `message` is set: what an update without a mask changes.
pub(crate) fn is_populated(message: &pb::EventType, path: &str) -> bool {
    match path {
        "description" => !message.description.is_empty(),
        "category" => !message.category.is_empty(),
        "since" => !message.since.is_empty(),
        "status" => message.status != 0,
        "json_schema" => !message.json_schema.is_empty(),
        "retry_policy" => message.retry_policy.is_some(),
        "recommended_channels" => !message.recommended_channels.is_empty(),
        "guidance" => !message.guidance.is_empty(),
        "email_template" => !message.email_template.is_empty(),
        _ => false,
    }
}

/// An event type to create. The domain's own rules are checked later.
pub(crate) fn new_event_type(message: pb::EventType, violations: &mut Violations) -> EventTypeSpec {
    EventTypeSpec {
        status: status(message.status, violations),
        retry_policy: retry_policy(&message, violations),
        recommended_channels: channels(&message.recommended_channels, violations),
        name: message.name,
        description: message.description,
        category: message.category,
        since: message.since,
        json_schema: message.json_schema,
        guidance: message.guidance,
        email_template: message.email_template,
    }
}

/// `spec` with the selected fields of `message`.
pub(crate) fn update_event_type(
    spec: &mut EventTypeSpec,
    message: &pb::EventType,
    selection: &Selection,
    violations: &mut Violations,
) {
    for (path, ours, theirs) in [
        ("description", &mut spec.description, &message.description),
        ("category", &mut spec.category, &message.category),
        ("since", &mut spec.since, &message.since),
        ("json_schema", &mut spec.json_schema, &message.json_schema),
        ("guidance", &mut spec.guidance, &message.guidance),
        ("email_template", &mut spec.email_template, &message.email_template),
    ] {
        if selection.has(path) {
            ours.clone_from(theirs);
        }
    }
    if selection.has("status") {
        spec.status = status(message.status, violations);
    }
    if selection.has("retry_policy") {
        spec.retry_policy = retry_policy(message, violations);
    }
    if selection.has("recommended_channels") {
        spec.recommended_channels = channels(&message.recommended_channels, violations);
    }
}

fn retry_policy(
    message: &pb::EventType,
    violations: &mut Violations,
) -> Option<crate::domain::retry::RetryPolicy> {
    let policy = message.retry_policy.as_ref()?;
    Some(retry::policy(policy, "event_type.retry_policy", violations))
}

fn status(number: i32, violations: &mut Violations) -> Status {
    status_filter(number).unwrap_or_else(|| {
        if number != 0 {
            violations.add("event_type.status", "must be one of the named values");
        }
        Status::default()
    })
}

/// A status in a filter.
pub(crate) fn status_filter(number: i32) -> Option<Status> {
    match pb::EventTypeStatus::try_from(number).ok()? {
        pb::EventTypeStatus::Unspecified => None,
        pb::EventTypeStatus::Beta => Some(Status::Beta),
        pb::EventTypeStatus::Ga => Some(Status::Ga),
        pb::EventTypeStatus::Deprecated => Some(Status::Deprecated),
    }
}

fn channels(numbers: &[i32], violations: &mut Violations) -> Vec<ChannelKind> {
    const FIELD: &str = "event_type.recommended_channels";
    let mut channels = Vec::new();
    for (index, number) in numbers.iter().enumerate().take(MAX_CHANNELS) {
        let channel = match pb::Channel::try_from(*number) {
            Ok(pb::Channel::Webhook) => ChannelKind::Webhook,
            Ok(pb::Channel::Email) => ChannelKind::Email,
            Ok(pb::Channel::Unspecified) | Err(_) => {
                violations.add(format!("{FIELD}[{index}]"), "must be one of the named values");
                continue;
            }
        };
        if channels.contains(&channel) {
            violations.add(format!("{FIELD}[{index}]"), "must not be named twice");
        }
        channels.push(channel);
    }
    if numbers.len() > MAX_CHANNELS {
        violations.add(FIELD, format!("must have at most {MAX_CHANNELS} values"));
    }
    channels
}

/// A kind of channel as the contract writes it.
pub(crate) const fn channel_to_proto(channel: ChannelKind) -> pb::Channel {
    match channel {
        ChannelKind::Webhook => pb::Channel::Webhook,
        ChannelKind::Email => pb::Channel::Email,
    }
}

/// An event type as the contract writes it.
pub(crate) fn event_type_to_proto(event_type: EventType) -> pb::EventType {
    let spec = event_type.spec;
    pb::EventType {
        tenant_id: event_type.tenant_id.map(|id| id.to_string()).unwrap_or_default(),
        name: spec.name,
        description: spec.description,
        category: spec.category,
        since: spec.since,
        status: match spec.status {
            Status::Beta => pb::EventTypeStatus::Beta,
            Status::Ga => pb::EventTypeStatus::Ga,
            Status::Deprecated => pb::EventTypeStatus::Deprecated,
        } as i32,
        json_schema: spec.json_schema,
        retry_policy: spec.retry_policy.as_ref().map(retry::policy_to_proto),
        recommended_channels: spec
            .recommended_channels
            .iter()
            .map(|channel| channel_to_proto(*channel) as i32)
            .collect(),
        guidance: spec.guidance,
        email_template: spec.email_template,
        create_time: Some(timestamp_to_proto(event_type.create_time)),
        update_time: Some(timestamp_to_proto(event_type.update_time)),
        etag: super::etag(event_type.revision, event_type.create_time),
    }
}

/// Notes in `violations` when `schema` is no JSON Schema that payloads can be held against.
pub(crate) fn check_schema(schema: &str, violations: &mut Violations) {
    const FIELD: &str = "event_type.json_schema";
    if schema.is_empty() {
        return;
    }
    if let Err(error) = schema::compile(schema) {
        violations.add(FIELD, error);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema_is_fine(schema: &str) -> bool {
        let mut violations = Violations::new();
        check_schema(schema, &mut violations);
        violations.is_empty()
    }

    #[test]
    fn schemas_are_checked_and_fetch_nothing() {
        for schema in
            ["", "true", "{}", r#"{"properties":{"a":{"type":"string","pattern":"^[a-z]+$"}}}"#]
        {
            assert!(schema_is_fine(schema), "{schema}");
        }
        for schema in [
            "{",
            r#"{"type":"nonsense"}"#,
            r#"{"pattern":"("}"#,
            r#"{"$ref":"https://example.com/schema.json"}"#,
            r#"{"$ref":"file:///etc/passwd"}"#,
            r#"{"properties":{"a":{"$ref":"other.json"}}}"#,
            r##"{"$ref":"#/$defs/missing"}"##,
        ] {
            assert!(!schema_is_fine(schema), "{schema}");
        }
    }

    #[test]
    fn event_types_read_back() {
        let message = pb::EventType {
            name: "billing.paid".into(),
            status: pb::EventTypeStatus::Beta as i32,
            recommended_channels: vec![2, 1],
            retry_policy: Some(pb::RetryPolicy { max_retries: Some(3), ..Default::default() }),
            ..Default::default()
        };
        let mut violations = Violations::new();
        let spec = new_event_type(message, &mut violations);
        let now = crate::domain::Timestamp::from_micros(7);
        let stored = EventType {
            tenant_id: None,
            spec: spec.clone(),
            revision: 1,
            create_time: now,
            update_time: now,
        };
        let again = new_event_type(event_type_to_proto(stored), &mut violations);
        assert_eq!(again, spec);
        assert!(violations.is_empty(), "{violations}");
        for message in [
            pb::EventType { status: 99, ..Default::default() },
            pb::EventType { recommended_channels: vec![1, 1], ..Default::default() },
            pb::EventType { recommended_channels: vec![0], ..Default::default() },
        ] {
            let mut violations = Violations::new();
            new_event_type(message, &mut violations);
            assert_eq!(violations.iter().count(), 1);
        }
    }
}
