//! Verifies webhooks of Tidings: one function per signature scheme.
//!
//! The body is the raw bytes as they came. Give every secret or key that is valid now: two while a
//! rotation overlaps. Needs the crates base64, hex, hmac, http, ring and sha2.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::HeaderMap;
use ring::signature::{ED25519, UnparsedPublicKey};
use sha2::Sha256;

/// How many seconds a timestamp may be from now: anything older may be a replay.
const TOLERANCE_SECS: u64 = 300;

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn is_recent(timestamp: &str, now_secs: u64) -> bool {
    timestamp.parse().is_ok_and(|seconds: u64| now_secs.abs_diff(seconds) <= TOLERANCE_SECS)
}

/// Compares in constant time.
fn is_mac(key: &[u8], parts: &[&[u8]], signature: &[u8]) -> bool {
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return false };
    for part in parts {
        mac.update(part);
    }
    mac.verify_slice(signature).is_ok()
}

/// The entries of `webhook-signature` with this version.
fn entries<'a>(signatures: &'a str, version: &'a str) -> impl Iterator<Item = Vec<u8>> + 'a {
    signatures
        .split(' ')
        .filter_map(move |entry| entry.strip_prefix(version))
        .filter_map(|encoded| STANDARD.decode(encoded).ok())
}

pub fn standard_webhooks(
    secrets: &[&str],
    headers: &HeaderMap,
    body: &[u8],
    now_secs: u64,
) -> Option<bool> {
    let (id, timestamp) = (text(headers, "webhook-id")?, text(headers, "webhook-timestamp")?);
    let signatures = text(headers, "webhook-signature")?;
    let prefix = format!("{id}.{timestamp}.");
    let is_signed = |secret: &&str| {
        let key = secret.strip_prefix("whsec_").and_then(|key| STANDARD.decode(key).ok());
        let parts = [prefix.as_bytes(), body];
        key.is_some_and(|key| entries(signatures, "v1,").any(|mac| is_mac(&key, &parts, &mac)))
    };
    Some(secrets.iter().any(is_signed) && is_recent(timestamp, now_secs))
}

pub fn standard_webhooks_ed25519(
    public_keys: &[&str],
    headers: &HeaderMap,
    body: &[u8],
    now_secs: u64,
) -> Option<bool> {
    let (id, timestamp) = (text(headers, "webhook-id")?, text(headers, "webhook-timestamp")?);
    let signatures = text(headers, "webhook-signature")?;
    let signed = [format!("{id}.{timestamp}.").as_bytes(), body].concat();
    let is_signed = |key: &&str| {
        let key = key.strip_prefix("whpk_").and_then(|key| STANDARD.decode(key).ok());
        let key = key.map(|key| UnparsedPublicKey::new(&ED25519, key));
        key.is_some_and(|key| entries(signatures, "v1a,").any(|s| key.verify(&signed, &s).is_ok()))
    };
    Some(public_keys.iter().any(is_signed) && is_recent(timestamp, now_secs))
}

pub fn hmac_sha256_hex(secrets: &[&str], headers: &HeaderMap, body: &[u8]) -> Option<bool> {
    let signature = hex::decode(text(headers, "x-signature")?).ok()?;
    Some(secrets.iter().any(|secret| is_mac(secret.as_bytes(), &[body], &signature)))
}

pub fn github(secrets: &[&str], headers: &HeaderMap, body: &[u8]) -> Option<bool> {
    let digits = text(headers, "x-hub-signature-256")?.strip_prefix("sha256=")?;
    let signature = hex::decode(digits).ok()?;
    Some(secrets.iter().any(|secret| is_mac(secret.as_bytes(), &[body], &signature)))
}

pub fn stripe(secrets: &[&str], headers: &HeaderMap, body: &[u8], now_secs: u64) -> Option<bool> {
    let items = || text(headers, "stripe-signature").unwrap_or_default().split(',');
    let timestamp = items().find_map(|item| item.strip_prefix("t="))?;
    let prefix = format!("{timestamp}.");
    let is_signed = |secret: &&str| {
        let digits = items().filter_map(|item| item.strip_prefix("v1="));
        let mut signatures = digits.filter_map(|digits| hex::decode(digits).ok());
        signatures.any(|mac| is_mac(secret.as_bytes(), &[prefix.as_bytes(), body], &mac))
    };
    Some(secrets.iter().any(is_signed) && is_recent(timestamp, now_secs))
}
