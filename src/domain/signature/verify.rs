//! Verifying, for receivers of ours (`tidings listen`) and for tests.
//!
//! Guarantees: verification takes the same time wherever a signature differs. Whether a timestamp is
//! recent is the caller's to check.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::Mac as _;

use super::secret::key_of;
use super::{
    ASYMMETRIC, GITHUB_PREFIX, PublicKey, SYMMETRIC, keyed, standard_content, standard_mac,
    stripe_mac,
};

/// Whether `signatures`, the value of `webhook-signature`, holds one made with `secret`.
///
/// `timestamp` is the text of `webhook-timestamp`.
pub fn verify_standard_webhooks(
    secret: &str,
    message_id: &str,
    timestamp: &str,
    body: &[u8],
    signatures: &str,
) -> bool {
    let Some(Ok(mac)) = key_of(secret).map(|key| standard_mac(&key, message_id, timestamp, body))
    else {
        return false;
    };
    entries(signatures, SYMMETRIC).any(|signature| mac.clone().verify_slice(&signature).is_ok())
}

/// Whether `signatures`, the value of `webhook-signature`, holds one made with the private key of
/// `public_key`.
///
/// `timestamp` is the text of `webhook-timestamp`.
pub fn verify_standard_webhooks_ed25519(
    public_key: &PublicKey,
    message_id: &str,
    timestamp: &str,
    body: &[u8],
    signatures: &str,
) -> bool {
    let signed = standard_content(message_id, timestamp, body);
    entries(signatures, ASYMMETRIC).any(|signature| public_key.verifies(&signed, &signature))
}

fn entries(signatures: &str, version: &str) -> impl Iterator<Item = Vec<u8>> {
    signatures
        .split(' ')
        .filter_map(move |entry| entry.strip_prefix(version))
        .filter_map(|encoded| STANDARD.decode(encoded).ok())
}

/// Whether `signature`, in hexadecimal digits, is the HMAC-SHA256 of `body` keyed with `secret`.
pub fn verify_hmac_hex(secret: &str, body: &[u8], signature: &str) -> bool {
    let Ok(signature) = hex::decode(signature) else {
        return false;
    };
    keyed(secret.as_bytes())
        .is_ok_and(|mac| mac.chain_update(body).verify_slice(&signature).is_ok())
}

/// Whether `value`, that of `X-Hub-Signature-256`, was made of `body` with `secret`.
pub fn verify_github(secret: &str, body: &[u8], value: &str) -> bool {
    value.strip_prefix(GITHUB_PREFIX).is_some_and(|hex| verify_hmac_hex(secret, body, hex))
}

/// The seconds that `value`, that of `Stripe-Signature`, names.
pub fn stripe_timestamp(value: &str) -> Option<i64> {
    value.split(',').find_map(|item| item.strip_prefix("t="))?.parse().ok()
}

/// Whether `value`, that of `Stripe-Signature`, holds a signature of `body` made with `secret`.
pub fn verify_stripe(secret: &str, body: &[u8], value: &str) -> bool {
    let Some(timestamp) = value.split(',').find_map(|item| item.strip_prefix("t=")) else {
        return false;
    };
    let Ok(mac) = stripe_mac(secret, timestamp, body) else {
        return false;
    };
    value
        .split(',')
        .filter_map(|item| item.strip_prefix("v1="))
        .filter_map(|digits| hex::decode(digits).ok())
        .any(|signature| mac.clone().verify_slice(&signature).is_ok())
}
