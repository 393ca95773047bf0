//! What is said of a message after it was handed over: it came back, it is late, its reader
//! complained. And what follows from that.
//!
//! Guarantees: a report can suppress one address alone, the one that the delivery went to; what is
//! only late suppresses nobody; a report about an unknown delivery, or about another address (that
//! of a mailing list's member, of a forwarding), suppresses nobody.
//!
//! The forms in which it comes: [`mail`] reads what mail servers send (RFC 3464, RFC 5965),
//! [`webhook`] what providers post.

pub mod mail;
pub mod webhook;

use super::id::{DeliveryId, TenantId};
use super::mail_address::{MailAddress, key_of};
use super::suppression::{Mailed, Reason};

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It came back for good: the address does not work.
    Bounce,
    /// It is late, or came back for a reason that may pass: a full mailbox, a busy server.
    Delay,
    /// Its reader reported it as spam.
    Complaint,
    /// Its reader unsubscribed at the provider.
    Unsubscribe,
}

/// One report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feedback {
    /// What happened.
    pub kind: Kind,
    /// The delivery that it is about, when it says so.
    pub delivery_id: Option<DeliveryId>,
    /// The addresses that it is about: the one that we wrote to, and what became of it on the way.
    /// Empty when it names none.
    pub addresses: Vec<MailAddress>,
    /// What more it says, for people.
    pub detail: String,
}

/// Why a report has no consequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ignored {
    /// It is no report.
    NotAReport,
    /// The message is only late, or came back for a reason that may pass.
    Temporary,
    /// It names no delivery that is known, or one of another tenant.
    UnknownDelivery,
    /// It is about another address than the delivery's.
    OtherAddress,
}

/// Whom a report suppresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Whose mail.
    pub tenant_id: TenantId,
    /// The folded address.
    pub address: String,
    /// Why.
    pub reason: Reason,
    /// The delivery, when the report named one.
    pub mailed: Option<Mailed>,
}

/// The kind of a report with an enhanced status code (RFC 3463): only class 5 is for good, and of
/// that only what is said of the address, or of the way to it.
pub fn kind_of_status(status: &str) -> Kind {
    let mut parts = status.trim().split('.');
    let (class, subject, detail) = (parts.next(), parts.next(), parts.next());
    if class != Some("5") {
        return Kind::Delay;
    }
    match (subject, detail) {
        // The sender's address.
        (Some("1"), Some("7" | "8"))
        // The mailbox is full, or the message too large for it.
        | (Some("2"), Some("2" | "3"))
        // The directory, congestion, loops, too long under way.
        | (Some("4"), Some("3" | "5" | "6" | "7"))
        // Commands: how the servers speak with each other. (5.5.0 is said of unknown mailboxes, too.)
        | (Some("5"), Some("1" | "2" | "3" | "4" | "5" | "6"))
        // The mail system has trouble; the content, and policies: about the message or its sender.
        | (Some("3" | "6" | "7"), _) => Kind::Delay,
        _ => Kind::Bounce,
    }
}

/// The delivery that a message id names: `<dlv_…@domain>`, or the id alone.
pub fn delivery_of_message_id(text: &str) -> Option<DeliveryId> {
    let text = text.trim().trim_start_matches('<').trim_end_matches('>');
    let id = text.split('@').next().unwrap_or_default();
    // Ours have only the delivery's id before the @; what follows a dot is left to later versions.
    DeliveryId::parse(id.split('.').next().unwrap_or_default()).ok()
}

impl Feedback {
    /// Whom it suppresses. `mailed` is the delivery that it names, when that is known; `tenant_id`
    /// who reports, when it is not the operator, for a report that names no delivery.
    ///
    /// # Errors
    /// Why it has no consequence.
    pub fn target(
        &self,
        mailed: Option<Mailed>,
        tenant_id: Option<TenantId>,
    ) -> Result<Target, Ignored> {
        let reason = match self.kind {
            Kind::Delay => return Err(Ignored::Temporary),
            Kind::Bounce => Reason::Bounced,
            Kind::Complaint => Reason::Complained,
            Kind::Unsubscribe => Reason::Unsubscribed,
        };
        match (mailed, self.delivery_id) {
            (Some(mailed), _) => {
                if tenant_id.is_some_and(|own| own != mailed.tenant_id) {
                    return Err(Ignored::UnknownDelivery);
                }
                let address = key_of(&mailed.recipient);
                let is_named = self.addresses.iter().any(|named| named.key() == address);
                if !self.addresses.is_empty() && !is_named {
                    return Err(Ignored::OtherAddress);
                }
                Ok(Target { tenant_id: mailed.tenant_id, address, reason, mailed: Some(mailed) })
            }
            // It names one that is not known: no address that it names can be believed.
            (None, Some(_)) => Err(Ignored::UnknownDelivery),
            (None, None) => match (tenant_id, self.addresses.as_slice()) {
                (Some(tenant_id), [address]) => {
                    Ok(Target { tenant_id, address: address.key(), reason, mailed: None })
                }
                _ => Err(Ignored::UnknownDelivery),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELIVERY: &str = "dlv_01kafq3v2mzs9k6e9n6r3c8f0t";

    fn tenant(last: char) -> TenantId {
        TenantId::parse(&format!("ten_01kafq3v2mzs9k6e9n6r3c8f0{last}")).expect("an id")
    }

    fn mailed() -> Mailed {
        Mailed {
            delivery_id: DeliveryId::parse(DELIVERY).expect("an id"),
            tenant_id: tenant('a'),
            subscription_id: None,
            recipient: "Ops@company.com".into(),
        }
    }

    fn feedback(kind: Kind, addresses: &[&str]) -> Feedback {
        let read = |text: &&str| MailAddress::parse(text).expect("an address");
        Feedback {
            kind,
            delivery_id: DeliveryId::parse(DELIVERY).ok(),
            addresses: addresses.iter().map(read).collect(),
            detail: String::new(),
        }
    }

    #[test]
    fn a_report_suppresses_the_deliverys_address_alone() {
        for addresses in [&[][..], &["OPS@company.com"], &["x@elsewhere.com", "ops@company.com"]] {
            let target = feedback(Kind::Bounce, addresses).target(Some(mailed()), None);
            let target = target.expect("a target");
            assert_eq!(
                (target.address.as_str(), target.reason),
                ("ops@company.com", Reason::Bounced)
            );
        }
        let other = feedback(Kind::Bounce, &["member@list.com"]);
        assert_eq!(other.target(Some(mailed()), None), Err(Ignored::OtherAddress));
        assert_eq!(other.target(None, Some(tenant('a'))), Err(Ignored::UnknownDelivery));
    }

    #[test]
    fn what_is_late_suppresses_nobody() {
        let late = feedback(Kind::Delay, &["ops@company.com"]);
        assert_eq!(late.target(Some(mailed()), None), Err(Ignored::Temporary));
    }

    #[test]
    fn a_tenant_cannot_report_on_another_ones_deliveries() {
        let report = feedback(Kind::Complaint, &[]);
        let foreign = report.target(Some(mailed()), Some(tenant('b')));
        assert_eq!(foreign, Err(Ignored::UnknownDelivery));
        assert!(report.target(Some(mailed()), Some(tenant('a'))).is_ok());
    }

    #[test]
    fn without_a_delivery_a_tenant_names_one_address() {
        let report = Feedback { delivery_id: None, ..feedback(Kind::Complaint, &["a@b.com"]) };
        let target = report.target(None, Some(tenant('a'))).expect("a target");
        assert_eq!((target.address.as_str(), target.reason), ("a@b.com", Reason::Complained));
        assert_eq!(report.target(None, None), Err(Ignored::UnknownDelivery));
    }

    #[test]
    fn only_class_5_about_the_address_is_for_good() {
        for status in ["5.1.1", "5.0.0", "5.1.10", " 5.2.1", "5.4.1", "5.4.4", "5.5.0", "5"] {
            assert_eq!(kind_of_status(status), Kind::Bounce, "{status}");
        }
        for status in [
            "4.2.2", "4.4.7", "2.0.0", "5.1.7", "5.1.8", "5.2.2", "5.3.4", "5.4.6", "5.5.1",
            "5.5.3", "5.7.1", "5.6.0", "", "x",
        ] {
            assert_eq!(kind_of_status(status), Kind::Delay, "{status}");
        }
    }

    #[test]
    fn a_message_id_names_its_delivery() {
        for text in [DELIVERY, &format!("<{DELIVERY}@mail.company.com>"), &format!(" {DELIVERY}@x")]
        {
            assert_eq!(
                delivery_of_message_id(text).map(|id| id.to_string()).as_deref(),
                Some(DELIVERY)
            );
        }
        for text in ["", "<>", "<@x>", "<evt_01kafq3v2mzs9k6e9n6r3c8f0t@x>", "<dlv_@x>"] {
            assert_eq!(delivery_of_message_id(text), None, "{text}");
        }
    }
}
