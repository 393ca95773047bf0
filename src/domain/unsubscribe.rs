//! The link by which a recipient unsubscribes: signed, so that nobody else can.
//!
//! A token names the tenant, the subscription and the address, and carries an HMAC-SHA256 of them, cut
//! to 128 bits. It is the same whenever it is made (a message that is sent again must be equal byte by
//! byte), it does not expire (old messages are still in mailboxes), and nothing is stored for it.
//!
//! Guarantees: without the key no token can be made or changed; a token is good for its tenant,
//! subscription and address alone. Does not hide the address from who has the link: who has it has
//! the message.
//!
//! The key is derived from a master key for this purpose alone.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::id::{LENGTH as ID_BYTES, SubscriptionId, TenantId};
use super::mail_address::{MAX_ADDRESS_BYTES, MailAddress};

/// Where the links lead, below the public URL.
pub const PATH: &str = "/unsubscribe/";
/// The body of a one-click request (RFC 8058, section 3.1), as a field and its value.
pub const ONE_CLICK: (&str, &str) = ("List-Unsubscribe", "One-Click");

/// What the key is derived for.
const KEY_PURPOSE: &[u8] = b"tidings unsubscribe link key 1\0";
/// The first byte of a token's content.
const VERSION: u8 = 1;
/// Bytes of the signature: more than can be guessed over a network.
const MAC_BYTES: usize = 16;
/// Longest token that is looked at.
const MAX_TOKEN_BYTES: usize = (2 + 2 * ID_BYTES + MAX_ADDRESS_BYTES + MAC_BYTES) * 4 / 3 + 4;

/// Signs tokens. Wiped when it is dropped.
#[derive(Clone)]
pub struct LinkKey(Zeroizing<[u8; 32]>);

/// Hides the key, so that no log can show it.
impl std::fmt::Debug for LinkKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LinkKey(***)")
    }
}

impl LinkKey {
    /// The key that goes with a master key.
    pub fn derive(master: &[u8; 32]) -> Self {
        let derived = mac(master, KEY_PURPOSE);
        Self(Zeroizing::new(derived))
    }
}

fn keyed(key: &[u8; 32]) -> Hmac<Sha256> {
    // A shorter key than the hash's block is one with zeros after it (RFC 2104, section 2).
    let mut block = Zeroizing::new([0; 64]);
    block[..key.len()].copy_from_slice(key);
    Hmac::new(&(*block).into())
}

fn mac(key: &[u8; 32], content: &[u8]) -> [u8; 32] {
    keyed(key).chain_update(content).finalize().into_bytes().into()
}

/// Who unsubscribes from what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Whose mail.
    pub tenant_id: TenantId,
    /// The subscription; `None` for all of the tenant's mail: that to its primary contact.
    pub subscription_id: Option<SubscriptionId>,
    /// The address as the message was sent to it.
    pub address: String,
}

impl Link {
    /// The token that names this.
    pub fn token(&self, key: &LinkKey) -> String {
        let mut content = self.content();
        let signature = mac(&key.0, &content);
        content.extend_from_slice(&signature[..MAC_BYTES]);
        URL_SAFE_NO_PAD.encode(content)
    }

    fn content(&self) -> Vec<u8> {
        let mut content = vec![VERSION, u8::from(self.subscription_id.is_some())];
        content.extend_from_slice(self.tenant_id.as_str().as_bytes());
        if let Some(subscription_id) = &self.subscription_id {
            content.extend_from_slice(subscription_id.as_str().as_bytes());
        }
        content.extend_from_slice(self.address.as_bytes());
        content
    }

    /// What a token names, when one of `keys` has signed it.
    pub fn read<'k>(token: &str, keys: impl IntoIterator<Item = &'k LinkKey>) -> Option<Self> {
        if token.len() > MAX_TOKEN_BYTES {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (content, signature) = bytes.split_last_chunk::<MAC_BYTES>()?;
        let is_signed = |key: &LinkKey| {
            keyed(&key.0).chain_update(content).verify_truncated_left(signature).is_ok()
        };
        if keys.into_iter().any(is_signed) { Self::of_content(content) } else { None }
    }

    fn of_content(content: &[u8]) -> Option<Self> {
        let [VERSION, with_subscription, rest @ ..] = content else { return None };
        let text = std::str::from_utf8(rest).ok()?;
        let (tenant_id, text) = text.split_at_checked(ID_BYTES)?;
        let (subscription_id, address) = match with_subscription {
            0 => (None, text),
            1 => {
                let (id, address) = text.split_at_checked(ID_BYTES)?;
                (Some(SubscriptionId::parse(id).ok()?), address)
            }
            _ => return None,
        };
        let address = MailAddress::parse(address).ok()?.as_str().to_owned();
        Some(Self { tenant_id: TenantId::parse(tenant_id).ok()?, subscription_id, address })
    }
}

/// The link with this token, below the service's public URL.
pub fn url(public_url: &str, token: &str) -> String {
    format!("{}{PATH}{token}", public_url.trim_end_matches('/'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(byte: u8) -> LinkKey {
        LinkKey::derive(&[byte; 32])
    }

    fn link(with_subscription: bool) -> Link {
        let subscription = SubscriptionId::parse("sub_01kafq3v2mzs9k6e9n6r3c8f0t").expect("an id");
        Link {
            tenant_id: TenantId::parse("ten_01kafq3v2mzs9k6e9n6r3c8f0t").expect("an id"),
            subscription_id: with_subscription.then_some(subscription),
            address: "Ops+x@company.com".into(),
        }
    }

    #[test]
    fn a_token_reads_back_with_its_key_or_an_older_one() {
        for link in [link(true), link(false)] {
            let token = link.token(&key(1));
            assert!(token.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)));
            assert_eq!(Link::read(&token, [&key(1)]), Some(link.clone()));
            assert_eq!(Link::read(&token, [&key(2), &key(1)]), Some(link.clone()));
            assert_eq!(Link::read(&token, [&key(2)]), None);
            assert_eq!(Link::read(&token, []), None);
            assert_eq!(token, link.token(&key(1)), "it is the same whenever it is made");
        }
        assert!(!format!("{:?}", key(7)).contains('7'));
    }

    #[test]
    fn the_longest_address_fits() {
        let address = format!("{}@{}.com", "a".repeat(64), vec!["b".repeat(61); 3].join("."));
        let longest = Link { address, ..link(true) };
        assert_eq!(Link::read(&longest.token(&key(1)), [&key(1)]), Some(longest));
    }

    #[test]
    fn a_link_stands_below_the_public_url() {
        for base in ["https://t.company.com", "https://t.company.com/"] {
            assert_eq!(url(base, "abc"), "https://t.company.com/unsubscribe/abc");
        }
        assert_eq!(
            url("https://company.com/tidings/", "x"),
            "https://company.com/tidings/unsubscribe/x"
        );
    }

    #[test]
    fn no_changed_token_is_read() {
        let token = link(true).token(&key(1));
        for index in 0..token.len() {
            let mut bytes = token.clone().into_bytes();
            bytes[index] = if bytes[index] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).expect("ASCII");
            assert_eq!(Link::read(&changed, [&key(1)]), None, "{index}");
        }
        for text in [
            "",
            "A",
            "====",
            "ä",
            &token[1..],
            &token[..token.len() - 1],
            &format!("{token}A"),
            &"A".repeat(5_000),
        ] {
            assert_eq!(Link::read(text, [&key(1)]), None, "{text}");
        }
        // What is signed for all mail is not good for a subscription, and the other way round.
        let of_all = link(false).token(&key(1));
        let bytes = URL_SAFE_NO_PAD.decode(&of_all).expect("Base64");
        let mut changed = bytes;
        changed[1] = 1;
        assert_eq!(Link::read(&URL_SAFE_NO_PAD.encode(changed), [&key(1)]), None);
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in any::<String>(), bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(Link::read(&text, [&key(1)]), None);
            prop_assert_eq!(Link::read(&URL_SAFE_NO_PAD.encode(bytes), [&key(1)]), None);
        }
    }
}
