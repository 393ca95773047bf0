//! Addresses that get nothing more: of one subscription, or of all of a tenant's mail.
//!
//! Guarantees: an address is suppressed in every spelling; what only its mailbox's owner said
//! (unsubscribed) is what its owner can take back, and nothing else.

use serde::Serialize;

use super::Timestamp;
use super::id::{DeliveryId, SubscriptionId, TenantId};

/// The type of the event by which a tenant hears that one of its recipients gets nothing more.
pub const SUPPRESSED_EVENT: &str = "tidings.recipient.suppressed";
/// Most bytes of what is kept of a reason's details.
pub const MAX_DETAIL_BYTES: usize = 512;

/// Why an address is suppressed. The numbers are those of the database and of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i16)]
pub enum Reason {
    /// Somebody added it through the API.
    Manual = 1,
    /// Its owner followed the link of a message.
    Unsubscribed = 2,
    /// A message came back: the address does not work.
    Bounced = 3,
    /// Its owner reported a message as spam.
    Complained = 4,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 4] = [Self::Manual, Self::Unsubscribed, Self::Bounced, Self::Complained];

    /// The reason's number in the database.
    pub const fn code(self) -> i16 {
        self as i16
    }

    /// The reason with this number.
    pub fn from_code(code: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.code() == code)
    }

    /// The reason's name, for example `BOUNCED`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Manual => "MANUAL",
            Self::Unsubscribed => "UNSUBSCRIBED",
            Self::Bounced => "BOUNCED",
            Self::Complained => "COMPLAINED",
        }
    }

    /// Whether it came from outside: then the tenant is told by [`SUPPRESSED_EVENT`].
    pub const fn is_told(self) -> bool {
        !matches!(self, Self::Manual)
    }
}

/// An address that gets nothing more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suppression {
    /// Whose mail it is about.
    pub tenant_id: TenantId,
    /// The folded address: `MailAddress::key`.
    pub address: String,
    /// The subscription; `None` for all of the tenant's mail.
    pub subscription_id: Option<SubscriptionId>,
    /// Why.
    pub reason: Reason,
    /// What more is known, for example what the mail server said; see [`detail`].
    pub detail: String,
    /// The delivery that it came of, when that is known.
    pub delivery_id: Option<DeliveryId>,
    /// Since when.
    pub create_time: Timestamp,
}

/// A delivery by mail, as far as a report about it needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mailed {
    /// Its id.
    pub delivery_id: DeliveryId,
    /// Whose it is.
    pub tenant_id: TenantId,
    /// The subscription; `None` for the tenant's primary contact.
    pub subscription_id: Option<SubscriptionId>,
    /// The address that it went to.
    pub recipient: String,
}

/// The payload of [`SUPPRESSED_EVENT`].
#[derive(Clone, Debug, Serialize)]
pub struct Suppressed<'a> {
    /// The address.
    pub address: &'a str,
    /// The subscription that no longer reaches it; `null` when none of the tenant's mail does.
    pub subscription_id: Option<SubscriptionId>,
    /// Why: `UNSUBSCRIBED`, `BOUNCED` or `COMPLAINED`.
    pub reason: &'static str,
    /// What more is known, for example what the mail server said.
    pub detail: &'a str,
    /// The delivery that it came of; `null` when that is not known.
    pub delivery_id: Option<DeliveryId>,
}

impl<'a> Suppressed<'a> {
    /// Tells of a suppression.
    pub fn new(of: &'a Suppression) -> Self {
        Self {
            address: &of.address,
            subscription_id: of.subscription_id,
            reason: of.reason.as_str(),
            detail: &of.detail,
            delivery_id: of.delivery_id,
        }
    }
}

/// `text` as it is kept: on one line, without control characters, at most [`MAX_DETAIL_BYTES`].
pub fn detail(text: &str) -> String {
    let words = text.split(|c: char| c.is_whitespace() || c.is_control());
    let mut kept = words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    kept.truncate(kept.floor_char_boundary(MAX_DETAIL_BYTES));
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_read_back() {
        for reason in Reason::ALL {
            assert_eq!(Reason::from_code(reason.code()), Some(reason));
        }
        assert_eq!((Reason::from_code(0), Reason::from_code(5)), (None, None));
    }

    #[test]
    fn details_stay_on_one_short_line() {
        assert_eq!(detail("  550 5.1.1\r\n\tno\0such \x1b[31muser "), "550 5.1.1 no such [31muser");
        let long = detail(&"ä".repeat(1_000));
        assert!(long.len() <= MAX_DETAIL_BYTES && long.ends_with('ä'));
    }
}
