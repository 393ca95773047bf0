//! Reports that come as mail: delivery status notifications (RFC 3464) and abuse reports (RFC 5965).
//!
//! Guarantees: any bytes are read without a panic, in memory bounded by their length; what is no
//! report is told apart from one that is.
//!
//! A report has a part with groups of fields for machines, and as a rule the message that it is
//! about, or its headers: there the delivery's id is found, in `Message-ID` or `Tidings-Delivery-Id`.

use mail_parser::{HeaderValue, Message, MessageParser, MessagePart, MimeHeaders};

use super::{Feedback, Kind, delivery_of_message_id, kind_of_status};
use crate::domain::id::DeliveryId;
use crate::domain::mail_address::MailAddress;
use crate::domain::suppression::detail;

/// Most bytes of a message that is read as a report: those that return a whole message stay below.
pub const MAX_BYTES: usize = 1024 * 1024;
/// Most groups of fields in one report that are looked at: ours have one recipient each.
const MAX_GROUPS: usize = 32;

/// The header that carries the delivery's id beside the message's own.
const DELIVERY_HEADER: &str = "Tidings-Delivery-Id";

/// Reads a mail; `None` when it is no report.
pub fn read(bytes: &[u8]) -> Option<Feedback> {
    if bytes.len() > MAX_BYTES {
        return None;
    }
    let message = MessageParser::default().parse(bytes)?;
    let mut feedback = message.parts.iter().find_map(|part| match media_type(part).as_str() {
        "message/delivery-status" | "message/global-delivery-status" => {
            delivery_status(&text_of(part))
        }
        "message/feedback-report" => feedback_report(&text_of(part)),
        _ => None,
    })?;
    feedback.delivery_id = message.parts.iter().find_map(returned);
    Some(feedback)
}

fn media_type(part: &MessagePart<'_>) -> String {
    let content_type = part.content_type();
    let text =
        content_type.map(|it| format!("{}/{}", it.ctype(), it.subtype().unwrap_or_default()));
    text.unwrap_or_default().to_ascii_lowercase()
}

fn text_of(part: &MessagePart<'_>) -> String {
    String::from_utf8_lossy(part.contents()).into_owned()
}

/// The delivery that the message in this part, or the headers in it, are of.
fn returned(part: &MessagePart<'_>) -> Option<DeliveryId> {
    if let Some(message) = part.message() {
        return delivery_of(message);
    }
    match media_type(part).as_str() {
        "text/rfc822-headers" | "message/rfc822" | "message/global" | "message/global-headers" => {
            let headers = MessageParser::default().parse_headers(part.contents())?;
            delivery_of(&headers)
        }
        _ => None,
    }
}

fn delivery_of(message: &Message<'_>) -> Option<DeliveryId> {
    let own = message.header(DELIVERY_HEADER).and_then(HeaderValue::as_text);
    own.and_then(delivery_of_message_id)
        .or_else(|| message.message_id().and_then(delivery_of_message_id))
}

/// A group of fields: names in lower case, folded lines joined.
type Fields = Vec<(String, String)>;

/// The groups of fields of a part, which empty lines separate.
fn groups(text: &str) -> Vec<Fields> {
    let mut groups: Vec<Fields> = vec![Vec::new()];
    for line in text.lines() {
        let last = groups.len() - 1;
        if line.trim().is_empty() {
            if !groups[last].is_empty() {
                if groups.len() >= MAX_GROUPS {
                    break;
                }
                groups.push(Vec::new());
            }
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = groups[last].last_mut() {
                value.push(' ');
                value.push_str(line.trim());
            }
        } else if let Some((name, value)) = line.split_once(':') {
            groups[last].push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    groups
}

fn field<'a>(fields: &'a Fields, name: &str) -> Option<&'a str> {
    fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

/// The address in a field such as `rfc822; jane@company.com`.
fn address(value: &str) -> Option<MailAddress> {
    let text = value.split_once(';').map_or(value, |(_, address)| address);
    MailAddress::parse(text).ok()
}

/// RFC 3464: groups with `Final-Recipient` are about recipients. One that failed for good decides.
fn delivery_status(text: &str) -> Option<Feedback> {
    let mut decisive: Option<Feedback> = None;
    for fields in groups(text) {
        let Some(action) = field(&fields, "action") else { continue };
        let status = field(&fields, "status").unwrap_or_default();
        let kind = match action.to_ascii_lowercase().split_whitespace().next() {
            Some("failed") => kind_of_status(status),
            // delayed, delivered, relayed, expanded: nothing that has failed.
            _ => Kind::Delay,
        };
        let named = ["original-recipient", "final-recipient"];
        let addresses: Vec<_> =
            named.iter().filter_map(|name| field(&fields, name)).filter_map(address).collect();
        let code = field(&fields, "diagnostic-code").unwrap_or_default();
        let said = Feedback {
            kind,
            delivery_id: None,
            addresses,
            detail: detail(&format!("{status} {code}")),
        };
        if kind == Kind::Bounce {
            return Some(said);
        }
        decisive.get_or_insert(said);
    }
    decisive
}

/// RFC 5965: one group. What says that a message is no spam, or tells of failed authentication, is
/// no complaint.
fn feedback_report(text: &str) -> Option<Feedback> {
    let fields = groups(text).into_iter().next()?;
    let feedback_type = field(&fields, "feedback-type")?.to_ascii_lowercase();
    let kind = match feedback_type.as_str() {
        "abuse" | "fraud" | "virus" | "other" | "miscategorized" => Kind::Complaint,
        "opt-out" | "opt-out-list" => Kind::Unsubscribe,
        _ => Kind::Delay,
    };
    let named = ["original-rcpt-to", "removal-recipient"];
    let addresses = named.iter().filter_map(|name| field(&fields, name)).filter_map(address);
    let agent = field(&fields, "user-agent").unwrap_or_default();
    Some(Feedback {
        kind,
        delivery_id: None,
        addresses: addresses.collect(),
        detail: detail(&format!("{feedback_type} reported by {agent}")),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DELIVERY: &str = "dlv_01kafq3v2mzs9k6e9n6r3c8f0t";

    /// A report as Postfix writes it.
    fn bounce(action: &str, status: &str, returned: &str) -> String {
        format!(
            "Return-Path: <>\r\nFrom: MAILER-DAEMON@mx.company.com (Mail Delivery System)\r\n\
             Subject: Undelivered Mail Returned to Sender\r\nTo: bounces@tidings.company.com\r\n\
             Auto-Submitted: auto-replied\r\nMIME-Version: 1.0\r\n\
             Content-Type: multipart/report; report-type=delivery-status;\r\n\
             \tboundary=\"4Zk1yB0Q8Pz.1700000000/mx.company.com\"\r\n\r\n\
             This is a MIME-encapsulated message.\r\n\r\n\
             --4Zk1yB0Q8Pz.1700000000/mx.company.com\r\nContent-Description: Notification\r\n\
             Content-Type: text/plain; charset=us-ascii\r\n\r\n\
             I'm sorry to have to inform you that your message could not be delivered.\r\n\r\n\
             --4Zk1yB0Q8Pz.1700000000/mx.company.com\r\nContent-Description: Delivery report\r\n\
             Content-Type: message/delivery-status\r\n\r\n\
             Reporting-MTA: dns; mx.company.com\r\nX-Postfix-Queue-ID: 4Zk1yB0Q8Pz\r\n\
             Arrival-Date: Fri, 21 Nov 2025 10:00:00 +0000 (UTC)\r\n\r\n\
             Final-Recipient: rfc822; jane@company.com\r\n\
             Original-Recipient: rfc822;Jane@Company.com\r\nAction: {action}\r\nStatus: {status}\r\n\
             Remote-MTA: dns; mail.company.com\r\nDiagnostic-Code: smtp; 550 5.1.1\r\n\
             \x20   <jane@company.com>: Recipient address rejected\r\n\r\n\
             --4Zk1yB0Q8Pz.1700000000/mx.company.com\r\nContent-Description: Undelivered Message\r\n\
             {returned}\r\n--4Zk1yB0Q8Pz.1700000000/mx.company.com--\r\n"
        )
    }

    fn whole() -> String {
        format!(
            "Content-Type: message/rfc822\r\n\r\nMessage-ID: <{DELIVERY}@tidings.company.com>\r\n\
             From: tidings@company.com\r\nSubject: x\r\n\r\nbody\r\n"
        )
    }

    #[test]
    fn a_bounce_names_its_delivery_its_address_and_its_cause() {
        let headers = format!(
            "Content-Type: text/rfc822-headers\r\n\r\nFrom: tidings@company.com\r\n\
             Tidings-Delivery-Id: {DELIVERY}\r\nMessage-ID: <changed@relay>\r\n"
        );
        for returned in [whole(), headers] {
            let feedback = read(bounce("failed", "5.1.1", &returned).as_bytes()).expect("a report");
            assert_eq!(feedback.kind, Kind::Bounce);
            assert_eq!(feedback.delivery_id.map(|id| id.to_string()).as_deref(), Some(DELIVERY));
            let named: Vec<_> = feedback.addresses.iter().map(MailAddress::key).collect();
            assert_eq!(named, ["jane@company.com", "jane@company.com"]);
            assert!(feedback.detail.contains("Recipient address rejected"), "{}", feedback.detail);
        }
    }

    #[test]
    fn what_is_late_or_relayed_is_no_bounce() {
        for (action, status) in [
            ("delayed", "4.4.1"),
            ("failed", "4.4.7"),
            ("relayed", "2.0.0"),
            ("delivered", "5.1.1"),
        ] {
            let feedback = read(bounce(action, status, &whole()).as_bytes()).expect("a report");
            assert_eq!(feedback.kind, Kind::Delay, "{action} {status}");
        }
    }

    fn complaint(feedback_type: &str) -> String {
        format!(
            "From: <feedback@isp.com>\r\nSubject: FW: x\r\nMIME-Version: 1.0\r\n\
             Content-Type: multipart/report; report-type=feedback-report; boundary=\"b\"\r\n\r\n\
             --b\r\nContent-Type: text/plain\r\n\r\nThis is an abuse report.\r\n\
             --b\r\nContent-Type: message/feedback-report\r\n\r\n\
             Feedback-Type: {feedback_type}\r\nUser-Agent: SomeGenerator/1.0\r\nVersion: 1\r\n\
             Original-Rcpt-To: <jane@company.com>\r\n\r\n\
             --b\r\nContent-Type: message/rfc822\r\nContent-Disposition: inline\r\n\r\n\
             From: <tidings@company.com>\r\nMessage-ID:\r\n <{DELIVERY}@tidings.company.com>\r\n\r\nx\r\n\
             --b--\r\n"
        )
    }

    #[test]
    fn an_abuse_report_is_a_complaint() {
        for (feedback_type, kind) in [
            ("abuse", Kind::Complaint),
            ("Fraud", Kind::Complaint),
            ("opt-out", Kind::Unsubscribe),
            ("not-spam", Kind::Delay),
            ("auth-failure", Kind::Delay),
        ] {
            let feedback = read(complaint(feedback_type).as_bytes()).expect("a report");
            assert_eq!(feedback.kind, kind, "{feedback_type}");
            assert_eq!(feedback.delivery_id.map(|id| id.to_string()).as_deref(), Some(DELIVERY));
            assert_eq!(feedback.addresses[0].key(), "jane@company.com");
        }
    }

    #[test]
    fn other_mail_is_no_report() {
        let vacation = "From: jane@company.com\r\nSubject: Out of office\r\n\r\nI am away.\r\n";
        for text in [vacation, "", "\r\n\r\n", &whole(), "Action: failed\r\nStatus: 5.1.1\r\n"] {
            assert_eq!(read(text.as_bytes()), None, "{text:?}");
        }
        assert_eq!(read(&vec![b'a'; MAX_BYTES + 1]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..2_000)) {
            let _ = read(&bytes);
        }

        /// A report with a part cut out, and with bytes changed.
        #[test]
        fn a_damaged_report_is_read_without_a_panic(
            start in 0..2_000_usize,
            length in 0..500_usize,
            changes in prop::collection::vec((0..2_000_usize, any::<u8>()), 0..20),
        ) {
            let mut bytes = bounce("failed", "5.1.1", &whole()).into_bytes();
            for (at, byte) in changes {
                let at = at % bytes.len();
                bytes[at] = byte;
            }
            let start = start.min(bytes.len());
            let end = (start + length).min(bytes.len());
            bytes.drain(start..end);
            let _ = read(&bytes);
        }
    }
}
