//! The contract's enumerations as people write and read them: `SUCCEEDED`, `hmac-sha256-hex`.
//!
//! The contract prefixes every value (`DELIVERY_STATE_SUCCEEDED`); with `--json` the full name
//! stands, as the JSON form of Protocol Buffers has it.

use clap::builder::{PossibleValuesParser, TypedValueParser};

use crate::api::proto::{
    AttemptTrigger, Channel, DeliveryState, DisableReason, EndpointState, ErrorKind,
    EventTypeStatus, FailureReason, FeedbackOutcome, PayloadFormat, SignatureScheme,
    SubscriptionState, SuppressionReason,
};

/// An enumeration of the contract.
pub trait Enumeration: Copy + Default + Send + Sync + 'static {
    /// What every value's name starts with.
    const PREFIX: &'static str;

    /// The full name of the value with this number, when it is known.
    fn full(number: i32) -> Option<&'static str>;

    /// The value with this full name.
    fn from_full(name: &str) -> Option<Self>;
}

macro_rules! enumerations {
    ($($name:ident: $prefix:literal;)+) => {$(
        impl Enumeration for $name {
            const PREFIX: &'static str = $prefix;

            fn full(number: i32) -> Option<&'static str> {
                Self::try_from(number).ok().map(|value| value.as_str_name())
            }

            fn from_full(name: &str) -> Option<Self> {
                Self::from_str_name(name)
            }
        }
    )+};
}

enumerations! {
    AttemptTrigger: "ATTEMPT_TRIGGER_";
    Channel: "CHANNEL_";
    DeliveryState: "DELIVERY_STATE_";
    DisableReason: "DISABLE_REASON_";
    EndpointState: "ENDPOINT_STATE_";
    ErrorKind: "ERROR_KIND_";
    EventTypeStatus: "EVENT_TYPE_STATUS_";
    FailureReason: "FAILURE_REASON_";
    FeedbackOutcome: "FEEDBACK_OUTCOME_";
    PayloadFormat: "PAYLOAD_FORMAT_";
    SignatureScheme: "SIGNATURE_SCHEME_";
    SubscriptionState: "SUBSCRIPTION_STATE_";
    SuppressionReason: "SUPPRESSION_REASON_";
}

/// A value without its prefix: `SUCCEEDED`. Empty when unspecified, the number when unknown.
pub fn short<E: Enumeration>(number: i32) -> String {
    match E::full(number).map(|name| name.strip_prefix(E::PREFIX).unwrap_or(name)) {
        Some("UNSPECIFIED") => String::new(),
        Some(name) => name.to_owned(),
        None => number.to_string(),
    }
}

/// A value for people to read in a sentence: `hmac-sha256-hex`.
pub fn plain<E: Enumeration>(number: i32) -> String {
    short::<E>(number).to_lowercase().replace('_', "-")
}

/// Reads an option's value, one of `values`, and shows them in the help.
pub fn parser<E: Enumeration>(values: &'static [&'static str]) -> impl TypedValueParser<Value = E> {
    PossibleValuesParser::new(values).map(|text| parse(&text))
}

fn parse<E: Enumeration>(text: &str) -> E {
    let name = format!("{}{}", E::PREFIX, text.to_uppercase().replace('-', "_"));
    E::from_full(&name).unwrap_or_default()
}

/// All states of a delivery.
pub const DELIVERY_STATES: &[&str] = &[
    "scheduled",
    "delivering",
    "succeeded",
    "failed",
    "canceled",
    "expired",
    "suppressed",
    "held",
];
/// All reasons why a delivery ended.
pub const FAILURE_REASONS: &[&str] =
    &["exhausted", "permanent", "subscription-deleted", "unsubscribed", "bounced", "quarantined"];
/// All states of a subscription.
pub const SUBSCRIPTION_STATES: &[&str] = &["active", "paused", "disabled"];
/// All signature schemes.
pub const SIGNATURE_SCHEMES: &[&str] = &[
    "standard-webhooks",
    "standard-webhooks-ed25519",
    "hmac-sha256-hex",
    "github",
    "stripe",
    "none",
];
/// All payload formats.
pub const PAYLOAD_FORMATS: &[&str] =
    &["standard", "flat", "data-only", "cloudevents-structured", "cloudevents-binary"];
/// All statuses of an event type.
pub const EVENT_TYPE_STATUSES: &[&str] = &["beta", "ga", "deprecated"];
/// All channels.
pub const CHANNELS: &[&str] = &["webhook", "email"];

#[cfg(test)]
mod tests {
    use super::*;

    fn all_known<E: Enumeration + Into<i32>>(values: &[&str]) {
        for (index, text) in values.iter().enumerate() {
            let number: i32 = parse::<E>(text).into();
            assert_eq!(usize::try_from(number).unwrap(), index + 1, "{text}");
            assert_eq!(plain::<E>(number), *text);
        }
        let next = i32::try_from(values.len() + 1).unwrap();
        assert_eq!(E::full(next), None, "{next} is missing from the list");
    }

    #[test]
    fn every_value_can_be_written_and_read() {
        all_known::<DeliveryState>(DELIVERY_STATES);
        all_known::<FailureReason>(FAILURE_REASONS);
        all_known::<SubscriptionState>(SUBSCRIPTION_STATES);
        all_known::<SignatureScheme>(SIGNATURE_SCHEMES);
        all_known::<PayloadFormat>(PAYLOAD_FORMATS);
        all_known::<EventTypeStatus>(EVENT_TYPE_STATUSES);
        all_known::<Channel>(CHANNELS);
    }

    #[test]
    fn an_unknown_value_is_shown_as_its_number() {
        assert_eq!(short::<DeliveryState>(3), "SUCCEEDED");
        assert_eq!(short::<DeliveryState>(0), "");
        assert_eq!(short::<DeliveryState>(99), "99");
    }
}
