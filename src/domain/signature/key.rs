//! Ed25519 keys: the private one that signs, and the public one that receivers are told.
//!
//! Guarantees: a private key is drawn at random and never derived from anything that a customer
//! knows; nothing prints it. It leaves this type only into the document that is stored.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rand::Rng;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Error;

/// What the text of a public key starts with, as Standard Webhooks has it.
pub const PUBLIC_KEY_PREFIX: &str = "whpk_";
/// Bytes of a key, private (its seed, RFC 8032) or public.
const KEY_BYTES: usize = 32;

/// A private Ed25519 key: the seed of RFC 8032.
#[derive(Clone, PartialEq, Eq)]
pub struct SigningKey([u8; KEY_BYTES]);

impl SigningKey {
    /// A new key.
    pub fn generate(random: &mut impl Rng) -> Self {
        let mut seed = [0; KEY_BYTES];
        random.fill_bytes(&mut seed);
        Self(seed)
    }

    /// The key that verifies what this one signs.
    ///
    /// # Errors
    /// None for a seed of 32 bytes, as this is; it is a form of the interface.
    pub fn public_key(&self) -> Result<PublicKey, Error> {
        let pair = self.pair()?;
        let bytes = pair.public_key().as_ref().try_into().map_err(|_| Error::Secret)?;
        Ok(PublicKey(bytes))
    }

    pub(super) fn sign(&self, message: &[u8]) -> Result<impl AsRef<[u8]> + use<>, Error> {
        Ok(self.pair()?.sign(message))
    }

    fn pair(&self) -> Result<Ed25519KeyPair, Error> {
        Ed25519KeyPair::from_seed_unchecked(&self.0).map_err(|_| Error::Secret)
    }
}

/// Hides the key, so that no log can show it.
impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(***)")
    }
}

/// As it stands in the stored document: Base64.
impl Serialize for SigningKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(self.0))
    }
}

impl<'de> Deserialize<'de> for SigningKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The text is not repeated in the error, because errors are logged.
        let error = || serde::de::Error::custom("a signing key must be 32 bytes in Base64");
        let text = String::deserialize(deserializer)?;
        bytes_of(&text).map(Self).ok_or_else(error)
    }
}

/// A public Ed25519 key. Its text is `whpk_` and the Base64 of its 32 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey([u8; KEY_BYTES]);

impl PublicKey {
    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, self.0).verify(message, signature).is_ok()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PUBLIC_KEY_PREFIX}{}", STANDARD.encode(self.0))
    }
}

impl FromStr for PublicKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.strip_prefix(PUBLIC_KEY_PREFIX).and_then(bytes_of).map(Self).ok_or_else(|| {
            format!(
                "must be {PUBLIC_KEY_PREFIX} and the Base64 of 32 bytes, as the service shows it"
            )
        })
    }
}

fn bytes_of(base64: &str) -> Option<[u8; KEY_BYTES]> {
    STANDARD.decode(base64).ok()?.try_into().ok()
}
