//! Page tokens and resume tokens: opaque to clients, and good only for the list they come from.
//!
//! A token is URL-safe Base64 of a checksum and a JSON document. The checksum covers the RPC, the
//! tenant, the filters and the document, so a token that is damaged, or that is used with another
//! list, is refused. It is no signature: a client that forges one only turns to another page of its
//! own, since every query is bound to the tenant by its key.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

/// Bytes of the checksum: enough that no accident passes.
const CHECKSUM_BYTES: usize = 12;
/// Longest token that is looked at; ours are a fraction of it.
const MAX_TOKEN_BYTES: usize = 2_048;

/// The text is not a token of this list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InvalidToken;

/// What a token is bound to: the RPC, the tenant and the filters.
#[derive(Clone, Debug)]
pub(super) struct Binding(Sha256);

impl Binding {
    /// A binding to `method` and to the tenant, which is empty where there is none.
    pub(super) fn new(method: &str, tenant_id: &str) -> Self {
        Self(Sha256::new()).with(method).with(tenant_id)
    }

    /// Also bound to one filter. Filters are told apart by their order.
    #[must_use]
    pub(super) fn with(mut self, text: &str) -> Self {
        self.0.update((text.len() as u64).to_le_bytes());
        self.0.update(text.as_bytes());
        self
    }

    /// Also bound to a filter that is a list.
    #[must_use]
    pub(super) fn with_list<T: AsRef<str>>(
        mut self,
        texts: impl ExactSizeIterator<Item = T>,
    ) -> Self {
        self.0.update((texts.len() as u64).to_le_bytes());
        texts.fold(self, |binding, text| binding.with(text.as_ref()))
    }

    fn checksum(&self, document: &[u8]) -> [u8; CHECKSUM_BYTES] {
        let digest = self.0.clone().chain_update(document).finalize();
        let mut checksum = [0; CHECKSUM_BYTES];
        checksum.copy_from_slice(&digest[..CHECKSUM_BYTES]);
        checksum
    }

    /// The token that says `place`.
    ///
    /// # Errors
    /// When `place` cannot be written as JSON, which is a mistake in its type.
    pub(super) fn seal(&self, place: &impl Serialize) -> Result<String, serde_json::Error> {
        let mut bytes = vec![0; CHECKSUM_BYTES];
        serde_json::to_writer(&mut bytes, place)?;
        let checksum = self.checksum(&bytes[CHECKSUM_BYTES..]);
        bytes[..CHECKSUM_BYTES].copy_from_slice(&checksum);
        Ok(URL_SAFE_NO_PAD.encode(bytes))
    }

    /// The place that `token` says.
    ///
    /// # Errors
    /// When it is not a token of this list.
    pub(super) fn open<T: DeserializeOwned>(&self, token: &str) -> Result<T, InvalidToken> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(InvalidToken);
        }
        let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| InvalidToken)?;
        let (checksum, document) =
            bytes.split_first_chunk::<CHECKSUM_BYTES>().ok_or(InvalidToken)?;
        if *checksum != self.checksum(document) {
            return Err(InvalidToken);
        }
        serde_json::from_slice(document).map_err(|_| InvalidToken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binding() -> Binding {
        Binding::new("ListEvents", "ten_a").with("subject").with_list(["a.*", "b"].iter())
    }

    #[test]
    fn a_token_reads_back_where_it_was_made() {
        let token = binding().seal(&("evt_x", 7)).expect("sealed");
        assert!(token.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)));
        assert_eq!(binding().open(&token), Ok(("evt_x".to_owned(), 7)));
    }

    #[test]
    fn a_token_is_refused_by_every_other_list() {
        let token = binding().seal(&1).expect("sealed");
        let others = [
            Binding::new("ListDeliveries", "ten_a").with("subject").with_list(["a.*", "b"].iter()),
            Binding::new("ListEvents", "ten_b").with("subject").with_list(["a.*", "b"].iter()),
            Binding::new("ListEvents", "ten_a").with("other").with_list(["a.*", "b"].iter()),
            Binding::new("ListEvents", "ten_a").with("subject").with_list(["a.*b"].iter()),
            Binding::new("ListEvents", "ten_a").with("subjecta.*").with_list(["b"].iter()),
        ];
        for other in others {
            assert_eq!(other.open::<i32>(&token), Err(InvalidToken));
        }
    }

    #[test]
    fn a_damaged_token_is_refused() {
        let token = binding().seal(&"evt_x").expect("sealed");
        for index in 0..token.len() {
            let mut bytes = token.clone().into_bytes();
            bytes[index] = if bytes[index] == b'A' { b'B' } else { b'A' };
            let damaged = String::from_utf8(bytes).expect("ASCII");
            assert_eq!(binding().open::<String>(&damaged), Err(InvalidToken), "{index}");
        }
        for text in ["", "A", "====", "ä", &token[..token.len() - 1], &"A".repeat(5_000)] {
            assert_eq!(binding().open::<String>(text), Err(InvalidToken), "{text}");
        }
    }
}
