//! Signs messages: DKIM (RFC 6376) with RSA, and with Ed25519 (RFC 8463) beside it.
//!
//! lettre can sign, but with the present as the time of the signature, so that no two attempts would
//! be the same bytes, and with an RSA implementation whose timing tells of the key (RUSTSEC-2023-0071).
//! Here the time is the delivery's, and ring signs, as everywhere else.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, RSA_PKCS1_SHA256, RsaKeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256};

use super::DkimKey;

/// The headers that are signed. Those that must not be added later are named once more than they
/// stand in the message.
const SIGNED: [&str; 18] = [
    "from",
    "from",
    "to",
    "to",
    "subject",
    "subject",
    "date",
    "date",
    "reply-to",
    "message-id",
    "mime-version",
    "content-type",
    "auto-submitted",
    "list-id",
    "list-unsubscribe",
    "list-unsubscribe-post",
    "feedback-id",
    "tidings-delivery-id",
];
/// Characters of a signature on one line.
const FOLD: usize = 68;

/// Why messages cannot be signed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("--dkim-key-file {} cannot be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file holds no such key.
    #[error(
        "--dkim-key-file {} must be a PEM file with an RSA private key of 2048 to 4096 bits or an \
         Ed25519 private key",
        path.display()
    )]
    Invalid {
        /// The file.
        path: PathBuf,
    },
}

/// Signs messages with every configured key.
#[derive(Clone)]
pub(super) struct Signer {
    keys: Arc<[Key]>,
    domain: String,
}

struct Key {
    selector: String,
    pair: Pair,
}

enum Pair {
    Rsa(Box<RsaKeyPair>),
    Ed25519(Box<Ed25519KeyPair>),
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("domain", &self.domain).finish_non_exhaustive()
    }
}

impl Signer {
    /// Reads the keys.
    pub(super) fn new(keys: &[DkimKey], domain: String) -> Result<Self, Error> {
        let keys = keys.iter().map(Key::read).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { keys: keys.into(), domain })
    }

    /// The message with its signatures before it. `seconds` is the time of the signatures.
    pub(super) fn sign(&self, message: Vec<u8>, seconds: i64) -> Vec<u8> {
        if self.keys.is_empty() {
            return message;
        }
        let end = message.windows(4).position(|four| four == b"\r\n\r\n");
        let (head, body) = match end {
            Some(end) => (&message[..end + 2], &message[end + 4..]),
            None => (&message[..], &[][..]),
        };
        let head = String::from_utf8_lossy(head);
        let headers = unfolded(&head);
        let body_hash = BASE64.encode(Sha256::digest(relaxed_body(body)));
        let mut signed = Vec::with_capacity(message.len() + 1_024 * self.keys.len());
        for key in &*self.keys {
            let value = self.value(key, &headers, &body_hash, seconds);
            signed.extend_from_slice(format!("DKIM-Signature: {value}\r\n").as_bytes());
        }
        signed.extend_from_slice(&message);
        signed
    }

    fn value(
        &self,
        key: &Key,
        headers: &[(String, String)],
        body_hash: &str,
        seconds: i64,
    ) -> String {
        let (names, hashed) = chosen(headers);
        let unsigned = format!(
            "v=1; a={}-sha256; c=relaxed/relaxed; d={}; s={};\r\n\tt={seconds}; h={};\r\n\tbh={body_hash};\r\n\tb=",
            key.algorithm(),
            self.domain,
            key.selector,
            names.join(":\r\n\t "),
        );
        let canonical = format!("{hashed}dkim-signature:{}", relaxed(&unsigned));
        let signature = BASE64.encode(key.sign(canonical.as_bytes()));
        let mut value = unsigned;
        for (index, c) in signature.chars().enumerate() {
            if index > 0 && index % FOLD == 0 {
                value.push_str("\r\n\t ");
            }
            value.push(c);
        }
        value
    }
}

impl Key {
    fn read(key: &DkimKey) -> Result<Self, Error> {
        let path = || key.file.clone();
        let pem = std::fs::read(&key.file)
            .map_err(|source| Error::Unreadable { path: path(), source })?;
        let pem = zeroize::Zeroizing::new(pem);
        let invalid = || Error::Invalid { path: path() };
        let der = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| invalid())?;
        let pair = match &der {
            PrivateKeyDer::Pkcs1(der) => {
                RsaKeyPair::from_der(der.secret_pkcs1_der()).ok().map(Box::new).map(Pair::Rsa)
            }
            PrivateKeyDer::Pkcs8(der) => {
                let der = der.secret_pkcs8_der();
                let rsa = || RsaKeyPair::from_pkcs8(der).ok().map(Box::new).map(Pair::Rsa);
                let ed25519 = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der);
                ed25519.ok().map(Box::new).map(Pair::Ed25519).or_else(rsa)
            }
            _ => None,
        };
        Ok(Self { selector: key.selector.clone(), pair: pair.ok_or_else(invalid)? })
    }

    const fn algorithm(&self) -> &'static str {
        match self.pair {
            Pair::Rsa(_) => "rsa",
            Pair::Ed25519(_) => "ed25519",
        }
    }

    fn sign(&self, canonical: &[u8]) -> Vec<u8> {
        match &self.pair {
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                // It blinds with randomness; the signature itself has none. It cannot fail with a
                // buffer of this size.
                let made =
                    pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), canonical, &mut signature);
                debug_assert!(made.is_ok(), "RSA signs");
                signature
            }
            // RFC 8463: the hash is what Ed25519 signs.
            Pair::Ed25519(pair) => pair.sign(&Sha256::digest(canonical)).as_ref().to_vec(),
        }
    }
}

/// Headers by their lower-case names, each on one line.
fn unfolded(head: &str) -> Vec<(String, String)> {
    let mut headers: Vec<(String, String)> = Vec::new();
    for line in head.split("\r\n") {
        match (line.starts_with([' ', '\t']), headers.last_mut(), line.split_once(':')) {
            (true, Some((_, value)), _) => value.push_str(line),
            (false, _, Some((name, value))) => {
                headers.push((name.to_ascii_lowercase(), value.to_owned()));
            }
            _ => {}
        }
    }
    headers
}

/// The names to list, and what of the headers is hashed.
fn chosen(headers: &[(String, String)]) -> (Vec<&'static str>, String) {
    let mut names = Vec::new();
    let mut hashed = String::new();
    for (index, name) in SIGNED.iter().enumerate() {
        let is_again = index > 0 && SIGNED[index - 1] == *name;
        let header = headers.iter().rev().find(|(header, _)| header == name);
        match header {
            // Listed once more than it is there: nobody can add another.
            _ if is_again => names.push(*name),
            Some((_, value)) => {
                names.push(*name);
                hashed.push_str(name);
                hashed.push(':');
                hashed.push_str(&relaxed(value));
                hashed.push_str("\r\n");
            }
            None => {}
        }
    }
    (names, hashed)
}

/// A header's value as it is hashed (RFC 6376, section 3.4.2).
fn relaxed(value: &str) -> String {
    value
        .split([' ', '\t', '\r', '\n'])
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

/// A body as it is hashed (RFC 6376, section 3.4.4).
fn relaxed_body(body: &[u8]) -> Vec<u8> {
    let mut canonical = Vec::with_capacity(body.len());
    let mut lines: Vec<&[u8]> = body.split(|byte| *byte == b'\n').collect();
    // What follows the last line's end is no line.
    if lines.last().is_some_and(|line| line.is_empty()) {
        lines.pop();
    }
    let mut empty = 0;
    for line in lines {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let kept = line.trim_ascii_end();
        if kept.is_empty() {
            empty += 1;
            continue;
        }
        for _ in 0..std::mem::take(&mut empty) {
            canonical.extend_from_slice(b"\r\n");
        }
        let mut was_space = false;
        for byte in kept {
            let is_space = matches!(byte, b' ' | b'\t');
            if !is_space {
                canonical.push(*byte);
            } else if !was_space {
                canonical.push(b' ');
            }
            was_space = is_space;
        }
        canonical.extend_from_slice(b"\r\n");
    }
    canonical
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of RFC 6376, section 3.4.5.
    #[test]
    fn what_is_hashed_is_the_standards() {
        let headers = unfolded("A: X\r\nB : Y\t\r\n\tZ  \r\n");
        assert_eq!(headers[0], ("a".to_owned(), " X".to_owned()));
        assert_eq!(relaxed(&headers[1].1), "Y Z");
        assert_eq!(relaxed_body(b" C \r\nD \t E\r\n\r\n\r\n"), b" C\r\nD E\r\n");
        assert_eq!(relaxed_body(b""), b"");
        assert_eq!(relaxed_body(b"\r\n\r\n"), b"");
        assert_eq!(relaxed_body(b"a\r\n\r\nb"), b"a\r\n\r\nb\r\n");
    }

    #[test]
    fn without_keys_nothing_changes() {
        let signer = Signer::new(&[], "company.com".into()).expect("none");
        assert_eq!(signer.sign(b"A: b\r\n\r\nc".to_vec(), 7), b"A: b\r\n\r\nc");
    }
}
