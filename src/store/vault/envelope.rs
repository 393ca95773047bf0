//! Sealing and opening bytes: AES-256-GCM under a master key.
//!
//! An envelope is `version (1) | key id (8) | nonce (12) | ciphertext | tag (16)`. What it belongs to
//! (purpose, tenant, row) and its own head are authenticated with it: an envelope that was moved to
//! another row, column or tenant does not open, nor does one with another key's id written on it.
//!
//! Nonces are 96 random bits of the operating system's, drawn for each sealing. NIST SP 800-38D
//! (section 8.3) allows 2^32 sealings under one key then: the odds that a nonce has come twice are
//! below 2^-32 up to there. One sealing is one change of a subscription or of a tenant, so a key is
//! good for 136 years of one change a second.

use ring::aead::{Aad, LessSafeKey, NONCE_LEN, Nonce};
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use super::key::{ID_BYTES, KeyId, Keyring};

/// The only version so far.
const VERSION: u8 = 1;
/// Where the id, the nonce and the ciphertext begin.
pub(super) const ID_AT: usize = 1;
const NONCE_AT: usize = ID_AT + ID_BYTES;
const TEXT_AT: usize = NONCE_AT + NONCE_LEN;
/// Bytes of the tag.
const TAG_BYTES: usize = 16;

/// What an envelope belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Binding<'a> {
    /// What the content is for; also tells the columns apart.
    pub(super) purpose: &'static str,
    /// The tenant's id; empty where there is none.
    pub(super) tenant_id: &'a str,
    /// The row's id; empty where there is only one.
    pub(super) row_id: &'a str,
}

impl Binding<'_> {
    /// What is authenticated beside the content. No part contains a NUL, so no two differ only in
    /// where one part ends.
    fn associated(self, head: &[u8]) -> Vec<u8> {
        let parts = ["tidings", self.purpose, self.tenant_id, self.row_id];
        let mut data = Vec::with_capacity(head.len() + 128);
        for part in parts {
            data.extend_from_slice(part.as_bytes());
            data.push(0);
        }
        data.extend_from_slice(head);
        data
    }
}

/// Why something does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum OpenError {
    /// It is no envelope, or one of a later version.
    #[error("it is not sealed as this version of Tidings seals")]
    Malformed,
    /// The key is not there.
    #[error("it is sealed with the master key {0}, which is not there")]
    UnknownKey(KeyId),
    /// It was changed, or belongs to another row.
    #[error("it was changed, or belongs to another row (master key {0})")]
    Forged(KeyId),
}

/// It could not be sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the operating system gives no randomness, so nothing can be sealed")]
pub(super) struct SealError;

/// Seals `content` under the ring's first key.
pub(super) fn seal(
    ring: &Keyring,
    random: &SystemRandom,
    binding: Binding<'_>,
    content: &[u8],
) -> Result<Vec<u8>, SealError> {
    let (id, key) = ring.first();
    let mut nonce = [0; NONCE_LEN];
    random.fill(&mut nonce).map_err(|_| SealError)?;
    let mut sealed = Vec::with_capacity(TEXT_AT + content.len() + TAG_BYTES);
    sealed.push(VERSION);
    sealed.extend_from_slice(&id.0);
    sealed.extend_from_slice(&nonce);
    sealed.extend_from_slice(content);
    let associated = Aad::from(binding.associated(&sealed[..NONCE_AT]));
    let nonce = Nonce::assume_unique_for_key(nonce);
    let tag = key
        .seal_in_place_separate_tag(nonce, associated, &mut sealed[TEXT_AT..])
        .map_err(|_| SealError)?;
    sealed.extend_from_slice(tag.as_ref());
    Ok(sealed)
}

/// Opens what was sealed for `binding`.
pub(super) fn open(
    ring: &Keyring,
    binding: Binding<'_>,
    sealed: &[u8],
) -> Result<Zeroizing<Vec<u8>>, OpenError> {
    let id = key_id(sealed).ok_or(OpenError::Malformed)?;
    let key = ring.find(id).ok_or(OpenError::UnknownKey(id))?;
    open_with(key, binding, sealed).ok_or(OpenError::Forged(id))
}

fn open_with(key: &LessSafeKey, binding: Binding<'_>, sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let nonce = Nonce::try_assume_unique_for_key(sealed.get(NONCE_AT..TEXT_AT)?).ok()?;
    let associated = Aad::from(binding.associated(sealed.get(..NONCE_AT)?));
    let mut content = Zeroizing::new(sealed.get(TEXT_AT..)?.to_vec());
    let length = key.open_in_place(nonce, associated, &mut content).ok()?.len();
    content.truncate(length);
    Some(content)
}

/// The id of the key under which something was sealed; `None` when it is no envelope.
pub(super) fn key_id(sealed: &[u8]) -> Option<KeyId> {
    if sealed.first() != Some(&VERSION) || sealed.len() < TEXT_AT + TAG_BYTES {
        return None;
    }
    sealed.get(ID_AT..NONCE_AT)?.try_into().ok().map(KeyId)
}

#[cfg(test)]
mod tests {
    use super::super::key::MasterKey;
    use super::*;

    const HERE: Binding<'static> =
        Binding { purpose: "subscription", tenant_id: "ten_1", row_id: "sub_1" };

    fn ring(keys: &[&MasterKey]) -> Keyring {
        let texts: Vec<_> = keys.iter().map(|key| key.text().expose().to_owned()).collect();
        Keyring::parse(&texts.join("\n")).unwrap()
    }

    fn sealed(ring: &Keyring, content: &[u8]) -> Vec<u8> {
        seal(ring, &SystemRandom::new(), HERE, content).unwrap()
    }

    #[test]
    fn what_is_sealed_opens_again_and_shows_nothing() {
        let ring = ring(&[&MasterKey::generate().unwrap()]);
        for content in [&b""[..], b"whsec_canary", &[7; 4_000]] {
            let (one, other) = (sealed(&ring, content), sealed(&ring, content));
            assert_eq!(open(&ring, HERE, &one).unwrap().as_slice(), content);
            assert_ne!(one, other, "no nonce comes twice");
            let shown = !content.is_empty() && one.windows(content.len()).any(|w| w == content);
            assert!(!shown, "the content is not there in the clear");
        }
    }

    #[test]
    fn it_opens_in_its_own_place_alone() {
        let ring = ring(&[&MasterKey::generate().unwrap()]);
        let envelope = sealed(&ring, b"secret");
        for elsewhere in [
            Binding { purpose: "tenant", ..HERE },
            Binding { tenant_id: "ten_2", ..HERE },
            Binding { row_id: "sub_2", ..HERE },
            Binding { tenant_id: "ten_1s", row_id: "ub_1", ..HERE },
        ] {
            let error = open(&ring, elsewhere, &envelope).unwrap_err();
            assert!(matches!(error, OpenError::Forged(_)), "{elsewhere:?}: {error}");
        }
    }

    #[test]
    fn one_changed_bit_anywhere_is_seen() {
        let (key, other) = (MasterKey::generate().unwrap(), MasterKey::generate().unwrap());
        let ring = ring(&[&key, &other]);
        let envelope = sealed(&ring, b"secret");
        for place in 0..envelope.len() {
            let mut changed = envelope.clone();
            changed[place] ^= 1;
            assert!(open(&ring, HERE, &changed).is_err(), "byte {place}");
        }
        // Another known key's id on it.
        let mut relabelled = envelope.clone();
        relabelled[ID_AT..NONCE_AT].copy_from_slice(&other.id().0);
        assert_eq!(open(&ring, HERE, &relabelled).unwrap_err(), OpenError::Forged(other.id()));
        for length in 0..envelope.len() {
            assert!(open(&ring, HERE, &envelope[..length]).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn the_first_key_seals_and_all_open() {
        let (new, old) = (MasterKey::generate().unwrap(), MasterKey::generate().unwrap());
        let before = sealed(&ring(&[&old]), b"before");
        let both = ring(&[&new, &old]);
        let after = sealed(&both, b"after");
        assert_eq!((key_id(&before), key_id(&after)), (Some(old.id()), Some(new.id())));
        assert_eq!(open(&both, HERE, &before).unwrap().as_slice(), b"before");
        let only_new = ring(&[&new]);
        assert_eq!(open(&only_new, HERE, &after).unwrap().as_slice(), b"after");
        assert_eq!(open(&only_new, HERE, &before).unwrap_err(), OpenError::UnknownKey(old.id()));
    }
}
