//! Signatures and their secrets.
//!
//! Guarantees: a signature covers the exact bytes of the body; verification takes the same time
//! wherever a signature differs; no error and no log shows a secret.
//!
//! Does not read the clock: who verifies checks the timestamp against [`TOLERANCE_SECS`].
//!
//! Standard Webhooks: <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use rand::Rng;
use sha2::Sha256;

use super::channel::SignatureScheme;

/// The schemes that [`sign`] can make; the others come in a later version.
pub const SUPPORTED_SCHEMES: [SignatureScheme; 3] =
    [SignatureScheme::StandardWebhooks, SignatureScheme::HmacSha256Hex, SignatureScheme::None];
/// What a secret of Standard Webhooks starts with.
pub const SECRET_PREFIX: &str = "whsec_";
/// Bytes of randomness in a secret that Tidings makes.
pub const SECRET_BYTES: usize = 32;
/// How far a timestamp may be from the receiver's clock, as the libraries of Standard Webhooks
/// have it.
pub const TOLERANCE_SECS: i64 = 300;

/// The header that carries the message's id.
pub const ID_HEADER: &str = "webhook-id";
/// The header that carries the seconds of the signature's making.
pub const TIMESTAMP_HEADER: &str = "webhook-timestamp";
/// The header that carries the signatures of Standard Webhooks.
pub const SIGNATURE_HEADER: &str = "webhook-signature";

/// Bytes in a secret of Standard Webhooks, as its specification has it.
const STANDARD_SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;
/// Bytes in the text of any other secret.
const PLAIN_SECRET_BYTES: std::ops::RangeInclusive<usize> = 16..=128;

/// There is no signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// This version cannot make the scheme.
    #[error(
        "This version of Tidings does not support one of the subscription's signature schemes."
    )]
    Unsupported(SignatureScheme),
    /// No secret, or one that does not suit the scheme.
    #[error("The subscription has no secret that suits its signature schemes: rotate its secret.")]
    Secret,
}

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

/// The headers that sign `body` by `scheme`, made with `secrets`, of which the newest comes first.
///
/// `header_name` is that of [`SignatureScheme::HmacSha256Hex`]; `timestamp_secs` is the present.
///
/// # Errors
/// When the scheme is none of [`SUPPORTED_SCHEMES`], or no secret suits it.
pub fn sign<'a>(
    scheme: SignatureScheme,
    secrets: &[&str],
    message_id: &str,
    timestamp_secs: i64,
    body: &[u8],
    header_name: &'a str,
) -> Result<Vec<(&'a str, String)>, Error> {
    match scheme {
        SignatureScheme::None => Ok(Vec::new()),
        SignatureScheme::HmacSha256Hex => {
            let secret = secrets.first().ok_or(Error::Secret)?;
            let mac = keyed(secret.as_bytes())?.chain_update(body);
            Ok(vec![(header_name, hex::encode(mac.finalize().into_bytes()))])
        }
        SignatureScheme::StandardWebhooks => {
            let timestamp = timestamp_secs.to_string();
            let mut signatures = String::with_capacity(48 * secrets.len());
            for key in secrets.iter().filter_map(|secret| key_of(secret)) {
                let mac = standard_mac(&key, message_id, &timestamp, body)?;
                signatures.push_str(if signatures.is_empty() { "v1," } else { " v1," });
                STANDARD.encode_string(mac.finalize().into_bytes(), &mut signatures);
            }
            if signatures.is_empty() {
                return Err(Error::Secret);
            }
            Ok(vec![
                (ID_HEADER, message_id.to_owned()),
                (TIMESTAMP_HEADER, timestamp),
                (SIGNATURE_HEADER, signatures),
            ])
        }
        SignatureScheme::StandardWebhooksEd25519
        | SignatureScheme::Github
        | SignatureScheme::Stripe => Err(Error::Unsupported(scheme)),
    }
}

/// Whether `signatures`, the value of `webhook-signature`, holds one made with `secret`.
///
/// `timestamp` is the text of `webhook-timestamp`. Whether it is recent is the caller's to check.
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
    signatures
        .split(' ')
        .filter_map(|entry| entry.strip_prefix("v1,"))
        .filter_map(|encoded| STANDARD.decode(encoded).ok())
        .any(|signature| mac.clone().verify_slice(&signature).is_ok())
}

/// Whether `signature`, in hexadecimal digits, is the HMAC-SHA256 of `body` keyed with `secret`.
pub fn verify_hmac_hex(secret: &str, body: &[u8], signature: &str) -> bool {
    let Ok(signature) = hex::decode(signature) else {
        return false;
    };
    keyed(secret.as_bytes())
        .is_ok_and(|mac| mac.chain_update(body).verify_slice(&signature).is_ok())
}

/// The key of a secret of Standard Webhooks.
fn key_of(secret: &str) -> Option<Vec<u8>> {
    let key = STANDARD.decode(secret.strip_prefix(SECRET_PREFIX)?).ok()?;
    STANDARD_SECRET_BYTES.contains(&key.len()).then_some(key)
}

fn standard_mac(
    key: &[u8],
    message_id: &str,
    timestamp: &str,
    body: &[u8],
) -> Result<Hmac<Sha256>, Error> {
    let mac = keyed(key)?.chain_update(message_id).chain_update(".");
    Ok(mac.chain_update(timestamp).chain_update(".").chain_update(body))
}

/// HMAC takes keys of every length; the error is only a form of the interface.
fn keyed(key: &[u8]) -> Result<Hmac<Sha256>, Error> {
    Hmac::new_from_slice(key).map_err(|_| Error::Secret)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    /// From the specification's libraries: `javascript/src/index.test.ts`.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const TIME: i64 = 1_614_265_330;
    const BODY: &[u8] = br#"{"test": 2432232314}"#;
    const SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

    fn standard(secrets: &[&str]) -> Result<Vec<(&'static str, String)>, Error> {
        sign(SignatureScheme::StandardWebhooks, secrets, ID, TIME, BODY, "")
    }

    #[test]
    fn standard_webhooks_published_vector() {
        let headers = standard(&[SECRET]).expect("signed");
        assert_eq!(
            headers,
            [
                ("webhook-id", ID.to_owned()),
                ("webhook-timestamp", TIME.to_string()),
                ("webhook-signature", SIGNATURE.to_owned()),
            ]
        );
        assert!(verify_standard_webhooks(SECRET, ID, "1614265330", BODY, SIGNATURE));
    }

    #[test]
    fn one_entry_per_valid_secret_while_a_rotation_overlaps() {
        let new = generate_secret(&mut StdRng::seed_from_u64(1));
        let headers = standard(&[&new, SECRET]).expect("signed");
        let value = &headers[2].1;
        assert_eq!(value.split(' ').count(), 2);
        assert!(value.ends_with(&format!(" {SIGNATURE}")));
        for secret in [new.as_str(), SECRET] {
            assert!(verify_standard_webhooks(secret, ID, "1614265330", BODY, value));
        }
    }

    #[test]
    fn any_change_breaks_a_signature() {
        let good =
            |id, time, body: &[u8], value| verify_standard_webhooks(SECRET, id, time, body, value);
        assert!(good(ID, "1614265330", BODY, SIGNATURE));
        assert!(!good("msg_", "1614265330", BODY, SIGNATURE));
        assert!(!good(ID, "1614265331", BODY, SIGNATURE));
        assert!(!good(ID, "1614265330", b"{}", SIGNATURE));
        for value in ["", "v1,", "v1", "v1,AAAA", "v2,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="]
        {
            assert!(!good(ID, "1614265330", BODY, value), "{value}");
        }
        assert!(!verify_standard_webhooks("whsec_AAAA", ID, "1614265330", BODY, SIGNATURE));
    }

    #[test]
    fn hmac_sha256_follows_rfc_4231() {
        for (key, data, expected) in [
            (
                "\x0b".repeat(20),
                "Hi There".to_owned(),
                "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
            ),
            (
                "Jefe".to_owned(),
                "what do ya want for nothing?".to_owned(),
                "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
            ),
        ] {
            let scheme = SignatureScheme::HmacSha256Hex;
            let headers = sign(scheme, &[&key, "older"], ID, TIME, data.as_bytes(), "X-Mine");
            assert_eq!(headers, Ok(vec![("X-Mine", expected.to_owned())]));
            assert!(verify_hmac_hex(&key, data.as_bytes(), expected));
            assert!(!verify_hmac_hex("other", data.as_bytes(), expected));
            assert!(!verify_hmac_hex(&key, b"other", expected));
            assert!(!verify_hmac_hex(&key, data.as_bytes(), "zz"));
        }
        // Test case 6: a key that is longer than a block, which is no text.
        let mac = keyed(&[0xaa; 131]).expect("keyed");
        let mac = mac.chain_update("Test Using Larger Than Block-Size Key - Hash Key First");
        assert_eq!(
            hex::encode(mac.finalize().into_bytes()),
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"
        );
    }

    #[test]
    fn nothing_goes_out_unsigned_by_mistake() {
        assert_eq!(standard(&[]), Err(Error::Secret));
        assert_eq!(standard(&["a plain secret of some length"]), Err(Error::Secret));
        let scheme = SignatureScheme::HmacSha256Hex;
        assert_eq!(sign(scheme, &[], ID, TIME, BODY, "X"), Err(Error::Secret));
        let scheme = SignatureScheme::Github;
        assert_eq!(sign(scheme, &[SECRET], ID, TIME, BODY, "X"), Err(Error::Unsupported(scheme)));
        assert_eq!(sign(SignatureScheme::None, &[], ID, TIME, BODY, "X"), Ok(Vec::new()));
    }

    #[test]
    fn generated_secrets_suit_every_scheme_and_differ() {
        let mut random = StdRng::seed_from_u64(2);
        let (first, second) = (generate_secret(&mut random), generate_secret(&mut random));
        assert_ne!(first, second);
        assert_eq!(first.len(), 50);
        for scheme in SUPPORTED_SCHEMES {
            assert_eq!(check_secret(&first, &[scheme]), Ok(()));
        }
    }

    #[test]
    fn brought_secrets_are_checked_on_both_sides_of_the_limits() {
        let brought = |bytes: usize| format!("whsec_{}", STANDARD.encode(vec![7; bytes]));
        let standard = [SignatureScheme::StandardWebhooks, SignatureScheme::HmacSha256Hex];
        for (bytes, good) in [(23, false), (24, true), (64, true), (65, false)] {
            assert_eq!(check_secret(&brought(bytes), &standard).is_ok(), good, "{bytes}");
        }
        let secret = "not base64 at all, but long enough";
        let error = check_secret(secret, &standard).expect_err("refused");
        assert!(!error.contains(secret));
        let plain = [SignatureScheme::HmacSha256Hex];
        for (text, good) in [
            ("x".repeat(15), false),
            ("x".repeat(16), true),
            ("~ ".repeat(64), true),
            ("x".repeat(129), false),
            ("é".repeat(16), false),
            ("\n".repeat(16), false),
        ] {
            assert_eq!(check_secret(&text, &plain).is_ok(), good, "{text:?}");
        }
    }
}
