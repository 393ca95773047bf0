//! Reports that are posted over HTTP: our own JSON, signed by Standard Webhooks, and the Event
//! Webhook of SendGrid, signed with ECDSA.
//!
//! Guarantees: nothing is read before its signature was checked, over the exact bytes; a signature
//! made too long ago is refused.
//!
//! SendGrid: <https://www.twilio.com/docs/sendgrid/for-developers/tracking-events/event>.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use serde::Deserialize;

use super::{Feedback, Ignored, Kind, delivery_of_message_id, kind_of_status};
use crate::domain::Timestamp;
use crate::domain::channel::SignatureScheme;
use crate::domain::id::DeliveryId;
use crate::domain::mail_address::MailAddress;
use crate::domain::signature::{TOLERANCE_SECS, check_secret, verify_standard_webhooks};
use crate::domain::suppression::detail;

/// Most reports in one request.
pub const MAX_REPORTS: usize = 5_000;
/// How old a signature of SendGrid's may be: it tries for a day to post what is not taken.
const SENDGRID_AGE_SECS: i64 = 26 * 60 * 60;
/// What stands before the point of a P-256 key in a `SubjectPublicKeyInfo` (RFC 5480).
const P256_HEAD: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// Bytes of an uncompressed point.
const POINT_BYTES: usize = 65;

/// The body is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// Not JSON of the form that is documented.
    #[error("the body is not the JSON that is documented")]
    Json,
    /// More than [`MAX_REPORTS`].
    #[error("the body has more than {MAX_REPORTS} reports")]
    TooMany,
}

/// The secrets that sign what is posted in our own form; more than one while they are changed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secrets(Vec<String>);

/// Hides them, so that no log can show them.
impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secrets({})", self.0.len())
    }
}

impl Secrets {
    /// Reads secrets, one a line; empty lines and lines that start with `#` are passed over.
    ///
    /// # Errors
    /// What is wrong, and in which line; never the line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut secrets = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            check_secret(line, &[SignatureScheme::StandardWebhooks])
                .map_err(|error| format!("line {}: {error}", index + 1))?;
            secrets.push(line.to_owned());
        }
        if secrets.is_empty() { Err("there is no secret in it".into()) } else { Ok(Self(secrets)) }
    }

    /// Whether a request is signed with one of them (Standard Webhooks), and recently.
    pub fn verify(&self, signed: &Signed<'_>, body: &[u8], now: Timestamp) -> bool {
        is_recent(signed.timestamp, now, TOLERANCE_SECS)
            && self.0.iter().any(|secret| {
                let Signed { id, timestamp, signature } = *signed;
                verify_standard_webhooks(secret, id, timestamp, body, signature)
            })
    }
}

/// What a request's headers say of its signature, as they say it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Signed<'a> {
    /// The request's id; SendGrid has none.
    pub id: &'a str,
    /// Seconds since the Unix epoch.
    pub timestamp: &'a str,
    /// The signature.
    pub signature: &'a str,
}

fn is_recent(timestamp: &str, now: Timestamp, within_secs: i64) -> bool {
    let seconds: Option<i64> = timestamp.parse().ok();
    seconds.is_some_and(|seconds| now.as_secs().abs_diff(seconds) <= within_secs.unsigned_abs())
}

/// SendGrid's public key of a webhook: what its settings show as the verification key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SendGridKey([u8; POINT_BYTES]);

impl SendGridKey {
    /// Reads the key as the settings show it: Base64 of a `SubjectPublicKeyInfo`.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = STANDARD.decode(text.trim()).ok()?;
        let point = bytes.strip_prefix(&P256_HEAD)?;
        // Other forms of a point are not used.
        let point: [u8; POINT_BYTES] = point.try_into().ok()?;
        (point[0] == 4).then_some(Self(point))
    }

    /// The key as it was read.
    pub fn text(&self) -> String {
        STANDARD.encode([&P256_HEAD[..], &self.0].concat())
    }

    /// Whether SendGrid has signed `body`, and within about a day.
    pub fn verify(&self, signed: &Signed<'_>, body: &[u8], now: Timestamp) -> bool {
        let Ok(signature) = STANDARD.decode(signed.signature) else { return false };
        let content = [signed.timestamp.as_bytes(), body].concat();
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &self.0);
        is_recent(signed.timestamp, now, SENDGRID_AGE_SECS)
            && key.verify(&content, &signature).is_ok()
    }
}

/// One report of our own form.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Plain {
    kind: PlainKind,
    #[serde(default)]
    delivery_id: String,
    #[serde(default)]
    message_id: String,
    #[serde(default)]
    address: String,
    #[serde(default)]
    status: String,
    #[serde(default)]
    detail: String,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum PlainKind {
    Bounce,
    Delay,
    Complaint,
    Unsubscribe,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    Many(Vec<T>),
    One(T),
}

fn reports<T: for<'a> Deserialize<'a>>(body: &[u8]) -> Result<Vec<T>, Unreadable> {
    let reports = match serde_json::from_slice(body).map_err(|_| Unreadable::Json)? {
        OneOrMany::Many(reports) => reports,
        OneOrMany::One(report) => vec![report],
    };
    if reports.len() > MAX_REPORTS { Err(Unreadable::TooMany) } else { Ok(reports) }
}

/// Reads a body of our own form: one object, or an array of them. A report of a message that is none of
/// ours has no consequence: the operator's server sends others, too.
///
/// # Errors
/// When it is not of that form.
pub fn read_plain(body: &[u8]) -> Result<Vec<Result<Feedback, Ignored>>, Unreadable> {
    let plain: Vec<Plain> = reports(body)?;
    let read = plain.into_iter().map(|plain| {
        let kind = match plain.kind {
            PlainKind::Bounce => of_status(&plain.status),
            PlainKind::Delay => Kind::Delay,
            PlainKind::Complaint => Kind::Complaint,
            PlainKind::Unsubscribe => Kind::Unsubscribe,
        };
        let named = [&plain.delivery_id, &plain.message_id];
        let named = named.into_iter().find(|text| !text.is_empty());
        let delivery_id = named.map(|text| delivery_of_message_id(text)).unwrap_or_default();
        if named.is_some() && delivery_id.is_none() {
            return Err(Ignored::UnknownDelivery);
        }
        let said = format!("{} {}", plain.status, plain.detail);
        Ok(Feedback { delivery_id, ..of(kind, &plain.address, &said) })
    });
    Ok(read.collect())
}

/// A bounce with a status; without one it is for good, as its sender says.
fn of_status(status: &str) -> Kind {
    if status.trim().is_empty() { Kind::Bounce } else { kind_of_status(status) }
}

/// A report that names no delivery yet.
fn of(kind: Kind, address: &str, said: &str) -> Feedback {
    Feedback {
        kind,
        delivery_id: None,
        addresses: MailAddress::parse(address).ok().into_iter().collect(),
        detail: detail(said),
    }
}

/// The argument of a message by which SendGrid's events name its delivery.
pub const SENDGRID_ARGUMENT: &str = "tidings_delivery_id";

/// One event of SendGrid's. A map, because any sender's own arguments stand among its fields: what is
/// of another type than it should be is as good as not there, and spoils nothing else in the request.
#[derive(Deserialize)]
#[serde(transparent)]
struct SendGridEvent(serde_json::Map<String, serde_json::Value>);

impl SendGridEvent {
    fn text(&self, field: &str) -> &str {
        self.0.get(field).and_then(serde_json::Value::as_str).unwrap_or_default()
    }

    /// `None` for what says nothing about an address.
    fn kind(&self) -> Option<Kind> {
        match self.text("event") {
            // The other types, `blocked` and `expired`, are about a server, the sender or the time.
            "bounce" if !matches!(self.text("type"), "" | "bounce") => Some(Kind::Delay),
            "bounce" => Some(of_status(self.text("status"))),
            "dropped" => match self.text("reason") {
                "Bounced Address" | "Invalid" => Some(Kind::Bounce),
                "Spam Reporting Address" => Some(Kind::Complaint),
                "Unsubscribed Address" => Some(Kind::Unsubscribe),
                _ => None,
            },
            "deferred" => Some(Kind::Delay),
            "spamreport" => Some(Kind::Complaint),
            "unsubscribe" | "group_unsubscribe" => Some(Kind::Unsubscribe),
            _ => None,
        }
    }

    /// The delivery, by the argument or by the Message-ID. SendGrid promises the Message-ID only for
    /// what happens under way, not for what a reader does.
    fn delivery_id(&self) -> Option<DeliveryId> {
        let named = [SENDGRID_ARGUMENT, "smtp-id"];
        named.into_iter().find_map(|field| delivery_of_message_id(self.text(field)))
    }
}

/// Reads a body of SendGrid's Event Webhook. Events about other messages than ours, and of kinds that
/// say nothing about an address, are passed over.
///
/// # Errors
/// When it is not of that form.
pub fn read_sendgrid(body: &[u8]) -> Result<Vec<Feedback>, Unreadable> {
    let events: Vec<SendGridEvent> = reports(body)?;
    let read = events.into_iter().filter_map(|event| {
        let (kind, delivery_id) = (event.kind()?, event.delivery_id()?);
        let said = format!("{} {}", event.text("status"), event.text("reason"));
        let feedback = of(kind, event.text("email"), &said);
        Some(Feedback { delivery_id: Some(delivery_id), ..feedback })
    });
    Ok(read.collect())
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use ring::rand::SystemRandom;
    use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};

    use super::*;

    const DELIVERY: &str = "dlv_01kafq3v2mzs9k6e9n6r3c8f0t";
    const NOW: Timestamp = Timestamp::from_micros(1_700_000_000_000_000);

    #[test]
    fn sendgrids_signature_covers_the_time_and_every_byte() {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref(), &random)
                .unwrap();
        let text = STANDARD.encode([&P256_HEAD[..], pair.public_key().as_ref()].concat());
        let key = SendGridKey::parse(&text).unwrap();
        assert_eq!(key.text(), text);
        let (timestamp, body) = ("1700000000", b"[{\"event\":\"bounce\"}]\r\n");
        let signature = pair.sign(&random, &[timestamp.as_bytes(), body].concat()).unwrap();
        let signature = STANDARD.encode(signature.as_ref());
        let signed = Signed { id: "", timestamp, signature: &signature };
        assert!(key.verify(&signed, body, NOW));
        assert!(!key.verify(&signed, b"[{\"event\":\"bounce\"}]", NOW));
        assert!(!key.verify(&Signed { timestamp: "1700000001", ..signed }, body, NOW));
        assert!(!key.verify(&Signed { signature: "AAAA", ..signed }, body, NOW));
        assert!(!key.verify(&Signed { signature: "", ..signed }, body, NOW));
        // An old request is not taken twice.
        let later = NOW.plus(std::time::Duration::from_hours(27));
        assert!(!key.verify(&signed, body, later));
        for wrong in ["", "AAAA", &text[4..], &text[..text.len() - 8]] {
            assert_eq!(SendGridKey::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn secrets_are_read_by_line_and_never_shown() {
        let good = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz";
        let secrets = Secrets::parse(&format!("# old\n{good}\n\n{good}\n")).unwrap();
        assert_eq!(format!("{secrets:?}"), "Secrets(2)");
        for wrong in ["", "# nothing", "whsec_hunter2", &format!("{good}\nwhsec_hunter2")] {
            let error = Secrets::parse(wrong).unwrap_err();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn our_own_form_is_one_or_many() {
        let one = format!(
            r#"{{"kind":"bounce","delivery_id":"{DELIVERY}","status":"5.1.1","detail":"no such user"}}"#
        );
        let read: Result<Vec<_>, _> = read_plain(one.as_bytes()).unwrap().into_iter().collect();
        let read = read.unwrap();
        assert_eq!((read.len(), read[0].kind), (1, Kind::Bounce));
        assert_eq!(read[0].detail, "5.1.1 no such user");
        let many = format!(
            r#"[{{"kind":"bounce","message_id":"<{DELIVERY}@m.com>","address":"a@b.com"}},
                {{"kind":"bounce","delivery_id":"{DELIVERY}","status":"4.2.2"}},
                {{"kind":"complaint","delivery_id":"{DELIVERY}"}},
                {{"kind":"bounce","message_id":"<somebody-elses@m.com>","address":"a@b.com"}}]"#
        );
        let read = read_plain(many.as_bytes()).unwrap();
        let kinds: Vec<_> = read
            .iter()
            .map(|one| one.as_ref().map(|feedback| feedback.kind).map_err(|it| *it))
            .collect();
        let ours = [Ok(Kind::Bounce), Ok(Kind::Delay), Ok(Kind::Complaint)];
        assert_eq!(kinds, [&ours[..], &[Err(Ignored::UnknownDelivery)]].concat());
        assert!(read[..3].iter().flatten().all(|feedback| feedback.delivery_id.is_some()));
        assert_eq!(read[0].as_ref().unwrap().addresses[0].key(), "a@b.com");
        for wrong in
            ["", "x", "1", "{}", r#"{"kind":"x"}"#, r#"{"kind":"bounce","adress":"a@b.com"}"#]
        {
            assert_eq!(read_plain(wrong.as_bytes()), Err(Unreadable::Json), "{wrong}");
        }
        let many = format!("[{}]", vec![r#"{"kind":"delay"}"#; MAX_REPORTS + 1].join(","));
        assert_eq!(read_plain(many.as_bytes()), Err(Unreadable::TooMany));
    }

    #[test]
    fn sendgrids_events_are_told_apart() {
        let event = |fields: &str| {
            format!(
                r#"{{"email":"a@b.com","timestamp":1700000000,"smtp-id":"<{DELIVERY}@m.com>",{fields}}}"#
            )
        };
        let kind = |fields: &str| {
            let read = read_sendgrid(format!("[{}]", event(fields)).as_bytes()).unwrap();
            read.first().map(|feedback| feedback.kind)
        };
        for (fields, expected) in [
            (
                r#""event":"bounce","type":"bounce","status":"5.1.1","reason":"550 no""#,
                Some(Kind::Bounce),
            ),
            (r#""event":"bounce","type":"blocked","status":"5.7.1""#, Some(Kind::Delay)),
            (r#""event":"bounce","type":"expired","status":"5.0.0""#, Some(Kind::Delay)),
            (r#""event":"bounce","status":"4.2.2""#, Some(Kind::Delay)),
            (r#""event":"bounce","status":null,"reason":550"#, Some(Kind::Bounce)),
            (r#""event":"deferred","attempt":"5""#, Some(Kind::Delay)),
            (r#""event":"dropped","reason":"Bounced Address""#, Some(Kind::Bounce)),
            (r#""event":"dropped","reason":"Spam Content""#, None),
            (r#""event":"spamreport""#, Some(Kind::Complaint)),
            (r#""event":"group_unsubscribe""#, Some(Kind::Unsubscribe)),
            (r#""event":"delivered""#, None),
            (r#""event":"open","useragent":"x""#, None),
        ] {
            assert_eq!(kind(fields), expected, "{fields}");
        }
        let other = r#"[{"email":"a@b.com","event":"bounce","smtp-id":"<other@m.com>"}]"#;
        assert_eq!(read_sendgrid(other.as_bytes()), Ok(vec![]));
        // What a reader does comes without a Message-ID: then the message's own argument tells.
        let argument = format!(
            r#"[{{"email":"a@b.com","event":"spamreport","tidings_delivery_id":"{DELIVERY}"}},
                {{"email":["a@b.com"],"event":"spamreport","smtp-id":7,"category":["x"]}}]"#
        );
        let read = read_sendgrid(argument.as_bytes()).unwrap();
        assert_eq!((read.len(), read[0].kind), (1, Kind::Complaint));
        assert_eq!(read[0].delivery_id.map(|id| id.to_string()).as_deref(), Some(DELIVERY));
    }
}
