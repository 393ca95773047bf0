//! The text of a signing secret, which the receiver knows too.
//!
//! Guarantees: a secret that Tidings makes suits every scheme; no error repeats a secret.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rand::Rng;

use crate::domain::channel::SignatureScheme;

/// What a secret of Standard Webhooks starts with.
pub const SECRET_PREFIX: &str = "whsec_";
/// Bytes of randomness in a secret that Tidings makes.
pub const SECRET_BYTES: usize = 32;

/// Bytes in a secret of Standard Webhooks, as its specification has it.
const STANDARD_SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;
/// Bytes in the text of any other secret.
const PLAIN_SECRET_BYTES: std::ops::RangeInclusive<usize> = 16..=128;

/// A new secret, which suits every scheme: `whsec_` and the base64 of 32 random bytes.
pub fn generate_secret(random: &mut impl Rng) -> String {
    let mut bytes = [0; SECRET_BYTES];
    random.fill_bytes(&mut bytes);
    let mut text = String::with_capacity(SECRET_PREFIX.len() + SECRET_BYTES.div_ceil(3) * 4);
    text.push_str(SECRET_PREFIX);
    STANDARD.encode_string(bytes, &mut text);
    text
}

/// Whether a secret that a client brings suits `schemes`.
///
/// # Errors
/// A sentence for the client, without the secret.
pub fn check_secret(text: &str, schemes: &[SignatureScheme]) -> Result<(), String> {
    if schemes.contains(&SignatureScheme::StandardWebhooks) {
        return key_of(text).map(|_| ()).ok_or_else(|| {
            "must be whsec_ and the base64 of 24 to 64 random bytes, as STANDARD_WEBHOOKS wants it"
                .to_owned()
        });
    }
    let printable = text.bytes().all(|byte| (0x20..0x7f).contains(&byte));
    if printable && PLAIN_SECRET_BYTES.contains(&text.len()) {
        return Ok(());
    }
    Err("must be 16 to 128 printable ASCII characters".to_owned())
}

/// The key of a secret of Standard Webhooks.
pub(super) fn key_of(secret: &str) -> Option<Vec<u8>> {
    let key = STANDARD.decode(secret.strip_prefix(SECRET_PREFIX)?).ok()?;
    STANDARD_SECRET_BYTES.contains(&key.len()).then_some(key)
}
