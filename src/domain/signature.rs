//! Signatures: what the headers of a request say to prove who sent it.
//!
//! Guarantees: a signature covers the exact bytes of the body; every scheme that a subscription lists
//! is there, or nothing is sent; no error and no log shows a secret.
//!
//! While a rotation overlaps several secrets are valid. The schemes that can carry several signatures
//! carry one by each. Those that carry one alone carry that of the oldest secret: a receiver that has
//! not changed over yet knows no other, and one that has still knows the old one.
//!
//! Does not read the clock: who verifies checks the timestamp against [`TOLERANCE_SECS`].
//!
//! Standard Webhooks: <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>.

mod key;
mod secret;
mod verify;

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

pub use key::{PUBLIC_KEY_PREFIX, PublicKey, SigningKey};
pub use secret::{SECRET_BYTES, SECRET_PREFIX, check_secret, generate_secret};
pub use verify::{
    stripe_timestamp, verify_github, verify_hmac_hex, verify_standard_webhooks,
    verify_standard_webhooks_ed25519, verify_stripe,
};

use super::channel::{SignatureScheme, WebhookChannel};
use super::subscription::Secret;

/// How far a timestamp may be from the receiver's clock, as the libraries of Standard Webhooks and of
/// Stripe have it.
pub const TOLERANCE_SECS: i64 = 300;

/// The header that carries the message's id.
pub const ID_HEADER: &str = "webhook-id";
/// The header that carries the seconds of the signature's making.
pub const TIMESTAMP_HEADER: &str = "webhook-timestamp";
/// The header that carries the signatures of Standard Webhooks, symmetric and asymmetric.
pub const SIGNATURE_HEADER: &str = "webhook-signature";
/// The header of [`SignatureScheme::HmacSha256Hex`] unless the subscription names another.
pub const HMAC_HEADER: &str = "X-Signature";
/// The header of [`SignatureScheme::Github`].
pub const GITHUB_HEADER: &str = "X-Hub-Signature-256";
/// The header of [`SignatureScheme::Stripe`] unless the subscription names another.
pub const STRIPE_HEADER: &str = "Stripe-Signature";

/// What an entry of `webhook-signature` begins with: symmetric, asymmetric.
const SYMMETRIC: &str = "v1,";
const ASYMMETRIC: &str = "v1a,";
/// What the value of [`GITHUB_HEADER`] begins with.
const GITHUB_PREFIX: &str = "sha256=";

/// There is no signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No secret, or one that does not suit the scheme.
    #[error("The subscription has no secret that suits its signature schemes: rotate its secret.")]
    Secret,
}

/// What is signed.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// The same over all attempts: the event's id.
    pub id: &'a str,
    /// The present, in seconds since the Unix epoch.
    pub timestamp_secs: i64,
    /// The body as it is sent.
    pub body: &'a [u8],
}

/// The headers that sign `message` by the schemes of `webhook`, made with the valid `secrets`, of
/// which the newest comes first. No name comes twice, as [`WebhookChannel::validated`] sees to it.
///
/// # Errors
/// When no secret suits one of the schemes.
pub fn sign<'a>(
    webhook: &'a WebhookChannel,
    secrets: &[&Secret],
    message: &Message<'_>,
) -> Result<Vec<(&'a str, String)>, Error> {
    let mut headers = Vec::with_capacity(6);
    let mut standard = String::new();
    for scheme in &webhook.signatures {
        match scheme {
            SignatureScheme::None => {}
            SignatureScheme::StandardWebhooks => symmetric(secrets, message, &mut standard)?,
            SignatureScheme::StandardWebhooksEd25519 => {
                asymmetric(secrets, message, &mut standard)?;
            }
            SignatureScheme::HmacSha256Hex => {
                headers.push((webhook.hmac_header(), body_hex(secrets, message)?));
            }
            SignatureScheme::Github => {
                let hex = body_hex(secrets, message)?;
                headers.push((GITHUB_HEADER, format!("{GITHUB_PREFIX}{hex}")));
            }
            SignatureScheme::Stripe => {
                headers.push((webhook.stripe_header(), stripe(secrets, message)?));
            }
        }
    }
    if !standard.is_empty() {
        headers.push((ID_HEADER, message.id.to_owned()));
        headers.push((TIMESTAMP_HEADER, message.timestamp_secs.to_string()));
        headers.push((SIGNATURE_HEADER, standard));
    }
    Ok(headers)
}

/// A signature's value as it may be shown: what it is made of, without what it proves.
///
/// `webhook-signature: v1,*** v1a,***`, `X-Hub-Signature-256: sha256=***`,
/// `Stripe-Signature: t=1770283800,v1=***`, and `***` for anything else.
pub fn masked(webhook: &WebhookChannel, name: &str, value: &str) -> String {
    const MASK: &str = "***";
    if name.eq_ignore_ascii_case(SIGNATURE_HEADER) {
        let entries = value.split(' ').map(|entry| match entry.split_once(',') {
            Some((version @ ("v1" | "v1a"), _)) => format!("{version},{MASK}"),
            _ => MASK.to_owned(),
        });
        return entries.collect::<Vec<_>>().join(" ");
    }
    let is_listed = |scheme| webhook.signatures.contains(&scheme);
    if is_listed(SignatureScheme::Github) && name.eq_ignore_ascii_case(GITHUB_HEADER) {
        return format!("{GITHUB_PREFIX}{MASK}");
    }
    if is_listed(SignatureScheme::Stripe)
        && name.eq_ignore_ascii_case(webhook.stripe_header())
        && let Some(seconds) = stripe_timestamp(value)
    {
        let count = value.split(',').skip(1).count();
        return format!("t={seconds}{}", format!(",v1={MASK}").repeat(count));
    }
    MASK.to_owned()
}

/// Adds one entry for each secret that suits Standard Webhooks.
fn symmetric(
    secrets: &[&Secret],
    message: &Message<'_>,
    entries: &mut String,
) -> Result<(), Error> {
    let before = entries.len();
    let timestamp = message.timestamp_secs.to_string();
    for key in secrets.iter().filter_map(|secret| secret::key_of(&secret.text)) {
        let mac = standard_mac(&key, message.id, &timestamp, message.body)?;
        add(entries, SYMMETRIC, &mac.finalize().into_bytes());
    }
    if entries.len() == before { Err(Error::Secret) } else { Ok(()) }
}

/// Adds one entry for each secret that has an Ed25519 key.
fn asymmetric(
    secrets: &[&Secret],
    message: &Message<'_>,
    entries: &mut String,
) -> Result<(), Error> {
    let before = entries.len();
    let timestamp = message.timestamp_secs.to_string();
    let signed = standard_content(message.id, &timestamp, message.body);
    for key in secrets.iter().filter_map(|secret| secret.signing_key.as_ref()) {
        add(entries, ASYMMETRIC, key.sign(&signed)?.as_ref());
    }
    if entries.len() == before { Err(Error::Secret) } else { Ok(()) }
}

fn add(entries: &mut String, version: &str, signature: &[u8]) {
    if !entries.is_empty() {
        entries.push(' ');
    }
    entries.push_str(version);
    STANDARD.encode_string(signature, entries);
}

/// The HMAC of the body in hexadecimal digits, by the oldest of the valid secrets.
fn body_hex(secrets: &[&Secret], message: &Message<'_>) -> Result<String, Error> {
    let secret = secrets.last().ok_or(Error::Secret)?;
    let mac = keyed(secret.text.as_bytes())?.chain_update(message.body);
    Ok(hex::encode(mac.finalize().into_bytes()))
}

/// `t=<seconds>`, and `,v1=<hex>` for each secret: as Stripe does while one of its secrets is rolled.
fn stripe(secrets: &[&Secret], message: &Message<'_>) -> Result<String, Error> {
    let timestamp = message.timestamp_secs.to_string();
    let mut value = format!("t={timestamp}");
    for secret in secrets {
        let mac = stripe_mac(&secret.text, &timestamp, message.body)?;
        let signature = hex::encode(mac.finalize().into_bytes());
        // Writing into a text cannot fail; the error is only a form of the interface.
        let _ = write!(value, ",v1={signature}");
    }
    if secrets.is_empty() { Err(Error::Secret) } else { Ok(value) }
}

/// What Standard Webhooks signs: `id.timestamp.body`.
fn standard_content(id: &str, timestamp: &str, body: &[u8]) -> Vec<u8> {
    [id.as_bytes(), b".", timestamp.as_bytes(), b".", body].concat()
}

fn standard_mac(key: &[u8], id: &str, timestamp: &str, body: &[u8]) -> Result<Hmac<Sha256>, Error> {
    let mac = keyed(key)?.chain_update(id).chain_update(".");
    Ok(mac.chain_update(timestamp).chain_update(".").chain_update(body))
}

fn stripe_mac(secret: &str, timestamp: &str, body: &[u8]) -> Result<Hmac<Sha256>, Error> {
    Ok(keyed(secret.as_bytes())?.chain_update(timestamp).chain_update(".").chain_update(body))
}

/// HMAC takes keys of every length; the error is only a form of the interface.
fn keyed(key: &[u8]) -> Result<Hmac<Sha256>, Error> {
    Hmac::new_from_slice(key).map_err(|_| Error::Secret)
}

#[cfg(test)]
mod tests;
