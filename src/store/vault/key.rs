//! Master keys: their text, their ids, and the ring of those that open.
//!
//! Guarantees: no key shows itself in a debug text or in an error; its bytes are wiped when it is
//! dropped. An id is derived from its key, so that the same key has the same id everywhere, and
//! tells nothing of it.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::aead::{AES_256_GCM, LessSafeKey, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::domain::unsubscribe::LinkKey;

/// What a key's text starts with: recognisable to people and to scanners for lost secrets.
pub const PREFIX: &str = "tdmk_";
/// Bytes of a key.
const KEY_BYTES: usize = 32;
/// Bytes of a key's id: enough that the few keys which a database ever sees are told apart.
pub(super) const ID_BYTES: usize = 8;
/// Most keys in one file: a rotation needs two.
const MAX_KEYS: usize = 16;

/// Names a key without telling it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub(super) [u8; ID_BYTES]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&hex::encode(self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A key as text, wiped when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyText(Zeroizing<String>);

impl KeyText {
    /// Takes over a text with one or several keys.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// Hides the text, so that no log can show it.
impl fmt::Debug for KeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyText(***)")
    }
}

/// A key.
#[derive(Clone, PartialEq, Eq)]
pub struct MasterKey(Zeroizing<[u8; KEY_BYTES]>);

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MasterKey({})", self.id())
    }
}

/// The operating system gives no randomness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the operating system gives no randomness")]
pub struct NoRandomness;

impl MasterKey {
    /// A new key, from the operating system's randomness.
    ///
    /// # Errors
    /// When there is none.
    pub fn generate() -> Result<Self, NoRandomness> {
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        SystemRandom::new().fill(&mut *bytes).map_err(|_| NoRandomness)?;
        Ok(Self(bytes))
    }

    /// Reads a key's text.
    pub fn parse(text: &str) -> Option<Self> {
        let encoded = text.strip_prefix(PREFIX)?;
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        // The decoder wants room for a whole last group.
        let mut room = Zeroizing::new([0; KEY_BYTES + 1]);
        let length = URL_SAFE_NO_PAD.decode_slice(encoded, &mut *room).ok()?;
        bytes.copy_from_slice(room.get(..KEY_BYTES).filter(|_| length == KEY_BYTES)?);
        Some(Self(bytes))
    }

    /// The key's text.
    pub fn text(&self) -> KeyText {
        let mut text = String::with_capacity(PREFIX.len() + KEY_BYTES.div_ceil(3) * 4);
        text.push_str(PREFIX);
        URL_SAFE_NO_PAD.encode_string(&self.0[..], &mut text);
        KeyText::new(text)
    }

    /// The key's id: the start of a hash that is used for nothing else.
    pub fn id(&self) -> KeyId {
        let hash = Sha256::new()
            .chain_update(b"tidings master key id\0")
            .chain_update(&self.0[..])
            .finalize();
        let mut id = [0; ID_BYTES];
        id.copy_from_slice(&hash[..ID_BYTES]);
        KeyId(id)
    }

    /// The key that signs unsubscribe links.
    fn link_key(&self) -> LinkKey {
        LinkKey::derive(&self.0)
    }

    fn cipher(&self) -> Option<LessSafeKey> {
        UnboundKey::new(&AES_256_GCM, &self.0[..]).ok().map(LessSafeKey::new)
    }
}

/// Keys in order: the first seals, all of them open.
pub(super) struct Keyring(Vec<(KeyId, LessSafeKey, LinkKey)>);

impl Keyring {
    /// Reads keys, one a line or separated by commas. Empty lines and lines that start with `#`
    /// are passed over.
    ///
    /// # Errors
    /// What is wrong, and in which line; never the line.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut keys: Vec<(KeyId, LessSafeKey, LinkKey)> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            if line.trim_start().starts_with('#') {
                continue;
            }
            for part in line.split(',').map(str::trim).filter(|part| !part.is_empty()) {
                let wrong =
                    || format!("line {} is no master key: {PREFIX} and 43 characters", index + 1);
                let key = MasterKey::parse(part).ok_or_else(wrong)?;
                let id = key.id();
                if keys.iter().all(|(known, ..)| *known != id) {
                    keys.push((id, key.cipher().ok_or_else(wrong)?, key.link_key()));
                }
            }
        }
        if keys.is_empty() {
            return Err("there is no master key in it".to_owned());
        }
        if keys.len() > MAX_KEYS {
            return Err(format!("there are more than {MAX_KEYS} master keys in it"));
        }
        Ok(Self(keys))
    }

    /// The key that seals.
    pub(super) fn first(&self) -> (KeyId, &LessSafeKey) {
        // A ring is never empty: `parse` refuses that.
        let (id, key, _) = &self.0[0];
        (*id, key)
    }

    /// The key with this id.
    pub(super) fn find(&self, id: KeyId) -> Option<&LessSafeKey> {
        self.0.iter().find(|(known, ..)| *known == id).map(|(_, key, _)| key)
    }

    /// The key that signs unsubscribe links now.
    pub(super) fn link_key(&self) -> &LinkKey {
        &self.0[0].2
    }

    /// All keys that unsubscribe links may be signed with.
    pub(super) fn link_keys(&self) -> impl Iterator<Item = &LinkKey> {
        self.0.iter().map(|(_, _, key)| key)
    }

    /// All ids in order.
    pub(super) fn ids(&self) -> Vec<KeyId> {
        self.0.iter().map(|(id, ..)| *id).collect()
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Keyring").field(&self.ids()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_reads_back_and_hides() {
        let key = MasterKey::generate().unwrap();
        let text = key.text();
        assert_eq!(text.expose().len(), PREFIX.len() + 43);
        assert_eq!(MasterKey::parse(text.expose()), Some(key.clone()));
        assert_ne!(key, MasterKey::generate().unwrap());
        for shown in [format!("{key:?}"), format!("{text:?}")] {
            assert!(!shown.contains(&text.expose()[PREFIX.len()..]), "{shown}");
        }
    }

    #[test]
    fn what_is_no_key_is_refused_without_being_shown() {
        let good = MasterKey::generate().unwrap().text();
        let (short, long) = (&good.expose()[..good.expose().len() - 1], "AAAA");
        for wrong in ["", "tdmk_", "tdmk_!", short, &format!("{}{long}", good.expose())] {
            assert_eq!(MasterKey::parse(wrong), None, "{wrong}");
        }
        let error = Keyring::parse(&format!("# a comment\n\n{short}\n")).unwrap_err();
        assert!(error.starts_with("line 3 "), "{error}");
        assert!(!error.contains(&short[PREFIX.len()..]), "{error}");
        assert!(Keyring::parse("# nothing\n").is_err());
    }

    #[test]
    fn the_first_of_several_seals() {
        let keys = [MasterKey::generate().unwrap(), MasterKey::generate().unwrap()];
        let texts = keys.clone().map(|key| key.text().expose().to_owned());
        for separator in ["\n", ", ", "\n# the old one\n"] {
            let ring = Keyring::parse(&texts.join(separator)).unwrap();
            assert_eq!(ring.first().0, keys[0].id());
            assert_eq!(ring.ids(), [keys[0].id(), keys[1].id()]);
        }
    }
}
