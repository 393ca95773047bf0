//! The message of a delivery: its headers, its text and its HTML.
//!
//! Guarantees: the same delivery makes the same bytes, whichever attempt it is and whichever node
//! makes it, as long as its subscription, its tenant and the configuration stay as they are; no value
//! starts a header of its own; every line keeps to the limits of SMTP.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, UNIX_EPOCH};

use lettre::Address;
use lettre::message::header::{ContentType, HeaderName, HeaderValue};
use lettre::message::{Mailbox, MultiPart, MultiPartKind, SinglePart};
use serde::{Deserialize, Serialize};

use super::dkim::Signer;
use super::reply::Verdict;
use crate::domain::Timestamp;
use crate::domain::attempt::{ErrorKind, Task};
use crate::domain::channel::EmailChannel;
use crate::domain::feedback::webhook::SENDGRID_ARGUMENT;
use crate::domain::header_list::HeaderList;
use crate::domain::id::DeliveryId;
use crate::domain::mail::{self, Look, Occasion};
use crate::domain::mail_address::MailAddress;

/// Most characters of a header's value that comes from outside.
const MAX_VALUE_CHARS: usize = 200;
/// Most bytes of a link in a header: a line has at most 998 (RFC 5322).
const MAX_LINK_BYTES: usize = 900;

/// Who sends: `name@company.com`, or `Name <name@company.com>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sender {
    name: String,
    address: String,
}

/// What is no sender. Says what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an address such as no-reply@company.com or 'Company <no-reply@company.com>'")]
pub struct InvalidSender;

impl Sender {
    /// The domain that Message-IDs are made of.
    pub fn domain(&self) -> &str {
        self.address.rsplit_once('@').map_or("localhost", |(_, domain)| domain)
    }
}

impl FromStr for Sender {
    type Err = InvalidSender;

    fn from_str(text: &str) -> Result<Self, InvalidSender> {
        let (name, address) = match text.strip_suffix('>').and_then(|rest| rest.rsplit_once('<')) {
            Some((name, address)) => (name.trim().trim_matches('"'), address),
            None => ("", text.trim()),
        };
        let address = MailAddress::parse(address).map_err(|_| InvalidSender)?;
        let is_plain = !name.chars().any(char::is_control) && !name.contains(['<', '>']);
        let is_usable = Address::from_str(address.as_str()).is_ok();
        if !is_plain || !is_usable {
            return Err(InvalidSender);
        }
        Ok(Self { name: mail::line(name, MAX_VALUE_CHARS), address: address.to_string() })
    }
}

impl fmt::Display for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name.as_str() {
            "" => f.write_str(&self.address),
            name => write!(f, "{name} <{}>", self.address),
        }
    }
}

impl TryFrom<String> for Sender {
    type Error = InvalidSender;

    fn try_from(text: String) -> Result<Self, InvalidSender> {
        text.parse()
    }
}

impl From<Sender> for String {
    fn from(sender: Sender) -> Self {
        sender.to_string()
    }
}

/// A message, ready to be handed over.
pub(super) struct Message {
    from: Address,
    to: Address,
    delivery_id: DeliveryId,
    bytes: Vec<u8>,
    recorded: HeaderList,
}

impl Message {
    /// Builds the message of `task`.
    pub(super) fn build(
        task: &Task,
        settings: &EmailChannel,
        sender: &Sender,
        look: &Look,
        signer: &Signer,
    ) -> Result<Self, Verdict> {
        let to = address(&task.recipient).ok_or_else(|| {
            let message = "The recipient is no address that mail can be sent to.";
            Verdict::permanent(ErrorKind::Smtp, message)
        })?;
        let from = Address::from_str(&sender.address)
            .map_err(|_| Verdict::ours("mail-from is no address that can send."))?;
        let template = match settings.template.as_str() {
            "" => &task.email_template,
            own => own,
        };
        let occasion = Occasion {
            event: &task.event,
            further: &task.digest,
            tenant: &task.tenant,
            locale: task.tenant.spec.locale(),
            time_zone: task.tenant.spec.time_zone(),
            look,
            unsubscribe_url: &task.unsubscribe_url,
        };
        let rendered = mail::render(occasion, template)
            .map_err(|error| Verdict::permanent(ErrorKind::Internal, &error.to_string()))?;
        let own = own_headers(task, sender, rendered.template_error.as_deref());
        let name = Some(sender.name.clone()).filter(|name| !name.is_empty());
        let mut builder = lettre::Message::builder()
            .from(Mailbox::new(name, from.clone()))
            .to(Mailbox::new(None, to.clone()))
            .subject(rendered.content.subject)
            .date(UNIX_EPOCH + since_epoch(task.create_time));
        if let Some(reply_to) = address(&settings.reply_to) {
            builder = builder.reply_to(Mailbox::new(None, reply_to));
        }
        for (name, value) in own {
            let name = HeaderName::new_from_ascii(name.to_owned());
            if let Ok(name) = name {
                builder = builder.raw_header(HeaderValue::new(name, value));
            }
        }
        let parts = MultiPart::builder()
            .kind(MultiPartKind::Alternative)
            .boundary(format!("part-{}", task.delivery_id))
            .singlepart(part(ContentType::TEXT_PLAIN, rendered.content.text))
            .singlepart(part(ContentType::TEXT_HTML, rendered.content.html));
        let message = builder
            .multipart(parts)
            .map_err(|error| Verdict::permanent(ErrorKind::Internal, &error.to_string()))?;
        let bytes = message.formatted();
        let recorded = recorded(&bytes);
        let bytes = signer.sign(bytes, task.create_time.as_secs());
        Ok(Self { from, to, delivery_id: task.delivery_id, bytes, recorded })
    }

    pub(super) const fn from(&self) -> &Address {
        &self.from
    }

    pub(super) const fn to(&self) -> &Address {
        &self.to
    }

    pub(super) const fn delivery_id(&self) -> DeliveryId {
        self.delivery_id
    }

    /// The whole message.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The message as it is handed to lettre, which ends the last line itself.
    pub(super) fn wire(&self) -> &[u8] {
        self.bytes.strip_suffix(b"\r\n").unwrap_or(&self.bytes)
    }

    /// The header by which SendGrid's events name the delivery: of what a reader does it promises
    /// no Message-ID.
    pub(super) fn sendgrid_header(&self) -> String {
        let argument = SENDGRID_ARGUMENT;
        let id = self.delivery_id;
        format!("X-SMTPAPI: {{\"unique_args\": {{\"{argument}\": \"{id}\"}}}}\r\n")
    }

    /// Whether the recipient's address has letters beyond ASCII.
    pub(super) fn needs_utf8(&self) -> bool {
        !self.to.to_string().is_ascii()
    }

    /// The headers as they are recorded: without the link that unsubscribes.
    pub(super) fn recorded(&self) -> HeaderList {
        self.recorded.clone()
    }
}

/// An address whose domain is written in ASCII and in lower case.
fn address(text: &str) -> Option<Address> {
    MailAddress::parse(text).ok()?.as_str().parse().ok()
}

fn part(kind: ContentType, content: String) -> SinglePart {
    SinglePart::builder().header(kind).body(content)
}

/// The headers that tell what the message is, in order.
fn own_headers(
    task: &Task,
    sender: &Sender,
    template_error: Option<&str>,
) -> Vec<(&'static str, String)> {
    let domain = sender.domain();
    let (delivery, subscription) = (task.delivery_id, task.subscription.id);
    let event_type = value(&task.event.event_type);
    // RFC 2919 has dots and letters alone: an id is one word.
    let list_id = format!("<{subscription}.{domain}>");
    let feedback_id = format!("{subscription}:{}:{event_type}:tidings", task.tenant.id);
    let mut headers = vec![
        ("Message-ID", format!("<{delivery}@{domain}>")),
        ("Auto-Submitted", "auto-generated".to_owned()),
        ("X-Auto-Response-Suppress", "All".to_owned()),
        ("Feedback-ID", feedback_id),
        ("List-Id", list_id),
    ];
    let link = &task.unsubscribe_url;
    let is_link = link.starts_with("http") && link.len() <= MAX_LINK_BYTES;
    if is_link && link.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'>') {
        headers.push(("List-Unsubscribe", format!("<{link}>")));
        headers.push(("List-Unsubscribe-Post", "List-Unsubscribe=One-Click".to_owned()));
    }
    headers.push(("Tidings-Delivery-Id", delivery.to_string()));
    headers.push(("Tidings-Event-Type", event_type));
    if !task.digest.is_empty() {
        headers.push(("Tidings-Digest", format!("{} events", task.digest.len() + 1)));
    }
    if let Some(error) = template_error {
        headers.push(("Tidings-Template-Error", value(error)));
    }
    headers
}

/// What comes from outside as the value of a header.
fn value(text: &str) -> String {
    mail::line(text, MAX_VALUE_CHARS)
}

fn since_epoch(time: Timestamp) -> Duration {
    Duration::from_secs(u64::try_from(time.as_secs()).unwrap_or(0))
}

/// The headers of a message, each on one line.
fn recorded(bytes: &[u8]) -> HeaderList {
    let head = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or(bytes.len());
    let head = String::from_utf8_lossy(&bytes[..head]).replace("\r\n ", " ");
    head.split("\r\n")
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| match name {
            "List-Unsubscribe" => (name, "***"),
            _ => (name, value),
        })
        .collect()
}
