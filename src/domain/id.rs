//! Identifiers: a prefix that tells the kind, and a time-ordered part.
//!
//! `evt_01kafq3v2mzs9k6e9n6r3c8f0t`: four characters of prefix and a ULID in lower case (48 bits of
//! milliseconds, 80 random bits). Ids sort by the time they were made, are opaque to clients, and
//! are never chosen by them. An id is 30 bytes and `Copy`: passing one around allocates nothing.

use std::fmt;
use std::time::Duration;

use rand::Rng;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Timestamp;

/// Length of every id in bytes: the prefix and 26 characters of Crockford's Base32.
pub const LENGTH: usize = 30;

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// The text is not an id of the wanted kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a valid id")]
pub struct InvalidId;

/// The 26 characters for `millis` and 80 bits of `random`.
fn encode(prefix: &str, millis: u64, random: u128) -> [u8; LENGTH] {
    let mut value = (u128::from(millis) << 80) | (random & ((1 << 80) - 1));
    let mut text = [0; LENGTH];
    text[..4].copy_from_slice(prefix.as_bytes());
    for place in text[4..].iter_mut().rev() {
        *place = ALPHABET[(value & 31) as usize];
        value >>= 5;
    }
    text
}

fn parse(prefix: &str, text: &str) -> Result<[u8; LENGTH], InvalidId> {
    let bytes: [u8; LENGTH] = text.as_bytes().try_into().map_err(|_| InvalidId)?;
    let known = bytes.starts_with(prefix.as_bytes())
        && bytes[4] <= b'7'
        && bytes[4..].iter().all(|byte| ALPHABET.contains(byte));
    if known { Ok(bytes) } else { Err(InvalidId) }
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $prefix:literal;)+) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; LENGTH]);

        impl $name {
            /// What every id of this kind starts with.
            pub const PREFIX: &str = $prefix;

            /// A new id for the instant `now`, unique by 80 random bits.
            pub fn new(now: Timestamp, random: &mut impl Rng) -> Self {
                let high = u128::from(random.next_u64()) << 64;
                Self(encode($prefix, now.as_millis(), high | u128::from(random.next_u64())))
            }

            /// The smallest id of this kind for the millisecond of `instant`: where a range of
            /// ids that were made from then on begins.
            pub fn first_at(instant: Timestamp) -> Self {
                Self(encode($prefix, instant.as_millis(), 0))
            }

            /// Reads an id as it was written.
            ///
            /// # Errors
            /// When the text is not an id of this kind.
            pub fn parse(text: &str) -> Result<Self, InvalidId> {
                parse($prefix, text).map(Self)
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                std::str::from_utf8(&self.0).unwrap_or_default()
            }

            /// The millisecond in which the id was made.
            pub fn time(&self) -> Timestamp {
                let millis = self.0[4..14].iter().fold(0_i64, |value, byte| {
                    let digit = ALPHABET.iter().position(|known| known == byte).unwrap_or(0);
                    (value << 5) | i64::try_from(digit).unwrap_or(0)
                });
                Timestamp::from_micros(millis * 1_000)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::parse(text)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                Self::parse(&text).map_err(serde::de::Error::custom)
            }
        }
    )+};
}

ids! {
    /// Names a tenant.
    TenantId = "ten_";
    /// Names an API key (not its secret).
    KeyId = "key_";
    /// Names a subscription.
    SubscriptionId = "sub_";
    /// Names an event: the receiver's key against duplicates.
    EventId = "evt_";
    /// Names a delivery.
    DeliveryId = "dlv_";
    /// Names a running service process.
    NodeId = "nod_";
}

impl SubscriptionId {
    /// The id under which a tenant's primary contact gets its mail: that of the tenant, as a
    /// subscription's. It belongs to no subscription that anybody made.
    pub fn of_primary_contact(tenant: TenantId) -> Self {
        let mut bytes = tenant.0;
        bytes[..Self::PREFIX.len()].copy_from_slice(Self::PREFIX.as_bytes());
        Self(bytes)
    }
}

impl DeliveryId {
    /// The ids, from the first one until before the second one, among which those of an event's
    /// deliveries are. They are made in the same millisecond as the event, and carry it: a range of
    /// the primary key serves instead of an index of its own.
    pub fn range_of(event: EventId) -> (Self, Self) {
        let born = event.time();
        (Self::first_at(born), Self::first_at(born.plus(Duration::from_millis(1))))
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn ids_are_thirty_plain_characters_and_read_back() {
        let mut random = StdRng::seed_from_u64(1);
        let now = Timestamp::from_micros(1_770_283_800_250_000);
        let id = EventId::new(now, &mut random);
        assert_eq!(id.as_str().len(), LENGTH);
        assert!(id.as_str().starts_with("evt_"));
        assert!(id.as_str().bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'));
        assert_eq!(EventId::parse(id.as_str()), Ok(id));
        assert_eq!(DeliveryId::parse(id.as_str()), Err(InvalidId));
        assert_eq!(id.time(), now);
    }

    #[test]
    fn ids_sort_by_time() {
        let mut random = StdRng::seed_from_u64(2);
        let mut last = DeliveryId::first_at(Timestamp::from_micros(0));
        for step in 1..2_000_i64 {
            let id = DeliveryId::new(Timestamp::from_micros(step * 1_000), &mut random);
            assert!(id > last, "{id} after {last}");
            last = id;
        }
    }

    #[test]
    fn foreign_text_is_no_id() {
        for text in [
            "",
            "evt_",
            "evt_01KAFQ3V2MZS9K6E9N6R3C8F0T",
            "evt_01kafq3v2mzs9k6e9n6r3c8f0u",
            "evt_81kafq3v2mzs9k6e9n6r3c8f0t",
            "../../etc/passwd",
            "evt_01kafq3v2mzs9k6e9n6r3c8f0é",
        ] {
            assert_eq!(EventId::parse(text), Err(InvalidId), "{text}");
        }
    }
}
