//! Whether a request comes from who knows the secret: what every receiver of webhooks should check.

use hyper::HeaderMap;

use crate::domain::Timestamp;
use crate::domain::signature::{
    GITHUB_HEADER, HMAC_HEADER, ID_HEADER, PublicKey, SIGNATURE_HEADER, STRIPE_HEADER,
    TIMESTAMP_HEADER, TOLERANCE_SECS, stripe_timestamp, verify_github, verify_hmac_hex,
    verify_standard_webhooks, verify_standard_webhooks_ed25519, verify_stripe,
};

/// What signatures are checked with.
#[derive(Clone, Debug)]
pub struct Verifier {
    /// The valid secrets; several while one is being replaced.
    pub secrets: Vec<String>,
    /// The valid public keys, for Ed25519. Without any, and without a secret, nothing is checked.
    pub public_keys: Vec<PublicKey>,
    /// The header of the plain HMAC.
    pub signature_header: String,
    /// The header of the Stripe scheme.
    pub stripe_signature_header: String,
}

/// What a request's signatures say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No secret is known: nothing was checked.
    Unchecked,
    /// All signatures that could be checked are right; these schemes were found.
    Verified(Vec<&'static str>),
    /// It cannot be trusted, because of this.
    Refused(String),
}

/// The text of `webhook-signature`, and what it signs.
struct Standard<'a> {
    id: &'a str,
    timestamp: &'a str,
    signatures: &'a str,
    body: &'a [u8],
}

impl Verifier {
    /// Checks with these, under the usual headers.
    pub fn new(secrets: Vec<String>, public_keys: Vec<PublicKey>) -> Self {
        let signature_header = HMAC_HEADER.to_owned();
        let stripe_signature_header = STRIPE_HEADER.to_owned();
        Self { secrets, public_keys, signature_header, stripe_signature_header }
    }

    /// Checks with this secret, under the usual headers.
    pub fn of(secret: impl Into<String>) -> Self {
        Self::new(vec![secret.into()], Vec::new())
    }

    /// Whether there is anything to check with.
    pub fn is_blind(&self) -> bool {
        self.secrets.is_empty() && self.public_keys.is_empty()
    }

    /// Checks every signature that is there and for which there is a secret or a key, at the instant
    /// `now`. There must be one at least, and none may be wrong.
    pub fn verify(&self, headers: &HeaderMap, body: &[u8], now: Timestamp) -> Verdict {
        if self.is_blind() {
            return Verdict::Unchecked;
        }
        match self.verified(headers, body, now) {
            Err(problem) => Verdict::Refused(problem),
            Ok(schemes) if schemes.is_empty() => Verdict::Refused(self.nothing_to_check(headers)),
            Ok(schemes) => Verdict::Verified(schemes),
        }
    }

    /// The schemes that were found, and hold.
    fn verified(
        &self,
        headers: &HeaderMap,
        body: &[u8],
        now: Timestamp,
    ) -> Result<Vec<&'static str>, String> {
        let mut verified = Vec::new();
        if headers.contains_key(SIGNATURE_HEADER) {
            verified = self.standard(headers, body, now)?;
        }
        if self.secrets.is_empty() {
            return Ok(verified);
        }
        let any = |right: &dyn Fn(&str) -> bool| self.secrets.iter().any(|secret| right(secret));
        let wrong = |header: &str| {
            format!("{} does not match the body and the secret", header.to_lowercase())
        };
        if let Some(value) = text(headers, &self.signature_header) {
            if !any(&|secret| verify_hmac_hex(secret, body, value)) {
                return Err(wrong(&self.signature_header));
            }
            verified.push("hmac-sha256-hex");
        }
        if let Some(value) = text(headers, GITHUB_HEADER) {
            if !any(&|secret| verify_github(secret, body, value)) {
                return Err(wrong(GITHUB_HEADER));
            }
            verified.push("github");
        }
        if let Some(value) = text(headers, &self.stripe_signature_header) {
            let name = self.stripe_signature_header.to_lowercase();
            let seconds = stripe_timestamp(value).ok_or_else(|| format!("{name} has no t="))?;
            check_time(&name, seconds, now)?;
            if !any(&|secret| verify_stripe(secret, body, value)) {
                return Err(wrong(&name));
            }
            verified.push("stripe");
        }
        Ok(verified)
    }

    fn standard(
        &self,
        headers: &HeaderMap,
        body: &[u8],
        now: Timestamp,
    ) -> Result<Vec<&'static str>, String> {
        let get = |name| text(headers, name).ok_or_else(|| format!("{name} is missing"));
        let (id, timestamp) = (get(ID_HEADER)?, get(TIMESTAMP_HEADER)?);
        let message = Standard { id, timestamp, signatures: get(SIGNATURE_HEADER)?, body };
        let seconds = timestamp.parse().map_err(|_| format!("{TIMESTAMP_HEADER} is no number"))?;
        check_time(TIMESTAMP_HEADER, seconds, now)?;
        let mut verified = Vec::new();
        if message.has("v1,") && !self.secrets.is_empty() {
            if !self.secrets.iter().any(|secret| message.is_by(secret)) {
                return Err(format!(
                    "{SIGNATURE_HEADER} does not match the message and the secret"
                ));
            }
            verified.push("standard-webhooks");
        }
        if message.has("v1a,") && !self.public_keys.is_empty() {
            if !self.public_keys.iter().any(|key| message.is_by_owner_of(key)) {
                return Err(format!(
                    "{SIGNATURE_HEADER} does not match the message and the public key"
                ));
            }
            verified.push("standard-webhooks-ed25519");
        }
        Ok(verified)
    }

    /// Why nothing could be verified, and what would help.
    fn nothing_to_check(&self, headers: &HeaderMap) -> String {
        let signatures = text(headers, SIGNATURE_HEADER).unwrap_or_default();
        if self.public_keys.is_empty() && signatures.contains("v1a,") {
            return "the signature is Ed25519: give --public-key whpk_…".to_owned();
        }
        let by_secret = [
            SIGNATURE_HEADER,
            &self.signature_header,
            GITHUB_HEADER,
            &self.stripe_signature_header,
        ];
        if self.secrets.is_empty() && by_secret.iter().any(|name| headers.contains_key(*name)) {
            return "the signature is made with the secret: give --secret".to_owned();
        }
        let names = by_secret.map(str::to_lowercase).join(", ");
        format!("no signature is there: looked for {names}")
    }
}

impl Standard<'_> {
    fn has(&self, version: &str) -> bool {
        self.signatures.split(' ').any(|entry| entry.starts_with(version))
    }

    fn is_by(&self, secret: &str) -> bool {
        verify_standard_webhooks(secret, self.id, self.timestamp, self.body, self.signatures)
    }

    fn is_by_owner_of(&self, key: &PublicKey) -> bool {
        verify_standard_webhooks_ed25519(key, self.id, self.timestamp, self.body, self.signatures)
    }
}

fn check_time(header: &str, seconds: i64, now: Timestamp) -> Result<(), String> {
    let distance = now.as_secs().abs_diff(seconds);
    if distance > TOLERANCE_SECS.unsigned_abs() {
        return Err(format!("{header} is {distance} s from the present: a replay?"));
    }
    Ok(())
}

/// A header's value, when it is there and is text.
pub fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

#[cfg(test)]
mod tests {
    use hyper::header::{HeaderName, HeaderValue};
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;
    use crate::domain::channel::{SignatureScheme, WebhookChannel};
    use crate::domain::signature::{Message, sign};
    use crate::domain::subscription::Secret;

    use SignatureScheme::{
        Github, HmacSha256Hex, StandardWebhooks, StandardWebhooksEd25519, Stripe,
    };

    const BODY: &[u8] = br#"{"a":1}"#;
    const NOW: Timestamp = Timestamp::from_micros(1_770_283_800_000_000);
    const ALL: [(SignatureScheme, &str); 5] = [
        (StandardWebhooks, "standard-webhooks"),
        (StandardWebhooksEd25519, "standard-webhooks-ed25519"),
        (HmacSha256Hex, "hmac-sha256-hex"),
        (Github, "github"),
        (Stripe, "stripe"),
    ];

    fn secret(seed: u64) -> Secret {
        Secret::new(String::new(), &mut StdRng::seed_from_u64(seed))
    }

    fn public_key(secret: &Secret) -> PublicKey {
        secret.signing_key.as_ref().and_then(|key| key.public_key().ok()).unwrap()
    }

    fn signed(schemes: &[SignatureScheme]) -> HeaderMap {
        let webhook = WebhookChannel { signatures: schemes.to_vec(), ..WebhookChannel::default() };
        let message = Message { id: "evt_1", timestamp_secs: NOW.as_secs(), body: BODY };
        let made = sign(&webhook, &[&secret(1)], &message).unwrap();
        made.into_iter()
            .map(|(name, value)| {
                (HeaderName::try_from(name).unwrap(), HeaderValue::try_from(value).unwrap())
            })
            .collect()
    }

    /// Knows the secret and the key of `seed`.
    fn knowing(seed: u64) -> Verifier {
        Verifier::new(vec![secret(seed).text], vec![public_key(&secret(seed))])
    }

    fn is_refused(verdict: &Verdict) -> bool {
        matches!(verdict, Verdict::Refused(_))
    }

    #[test]
    fn every_scheme_is_verified_alone_and_beside_the_others() {
        for (scheme, name) in ALL {
            let headers = signed(&[scheme]);
            assert_eq!(knowing(1).verify(&headers, BODY, NOW), Verdict::Verified(vec![name]));
            assert!(is_refused(&knowing(2).verify(&headers, BODY, NOW)), "{name}: another secret");
            assert!(is_refused(&knowing(1).verify(&headers, b"{}", NOW)), "{name}: another body");
        }
        let headers = signed(&ALL.map(|(scheme, _)| scheme));
        let all = ALL.map(|(_, name)| name).to_vec();
        assert_eq!(knowing(1).verify(&headers, BODY, NOW), Verdict::Verified(all));
    }

    #[test]
    fn every_signature_that_is_there_must_be_right() {
        for name in [SIGNATURE_HEADER, HMAC_HEADER, GITHUB_HEADER, STRIPE_HEADER] {
            let mut headers = signed(&ALL.map(|(scheme, _)| scheme));
            let good = headers[name].to_str().unwrap().to_owned();
            let end = good.len() - 8;
            let forged = format!("{}{}", &good[..end], &good[end..].replace(|_| true, "0"));
            headers.insert(HeaderName::try_from(name).unwrap(), forged.parse().unwrap());
            assert!(is_refused(&knowing(1).verify(&headers, BODY, NOW)), "{name}");
        }
    }

    #[test]
    fn a_request_without_signature_or_from_another_time_is_refused() {
        assert!(is_refused(&knowing(1).verify(&HeaderMap::new(), BODY, NOW)));
        for scheme in [StandardWebhooks, StandardWebhooksEd25519, Stripe] {
            let headers = signed(&[scheme]);
            let at = |seconds| NOW.plus(std::time::Duration::from_secs(seconds));
            assert!(!is_refused(&knowing(1).verify(&headers, BODY, at(300))));
            let Verdict::Refused(problem) = knowing(1).verify(&headers, BODY, at(301)) else {
                panic!("accepted a replay");
            };
            assert!(problem.contains("301 s"), "{problem}");
        }
    }

    #[test]
    fn what_is_missing_to_verify_is_said() {
        let headers = signed(&[StandardWebhooksEd25519]);
        let blind = Verifier::of(secret(1).text);
        let Verdict::Refused(problem) = blind.verify(&headers, BODY, NOW) else {
            panic!("accepted without the key");
        };
        assert!(problem.contains("--public-key"), "{problem}");
        let keys = Verifier::new(Vec::new(), vec![public_key(&secret(1))]);
        for (scheme, _) in ALL.into_iter().filter(|(scheme, _)| *scheme != StandardWebhooksEd25519)
        {
            let Verdict::Refused(problem) = keys.verify(&signed(&[scheme]), BODY, NOW) else {
                panic!("accepted without the secret");
            };
            assert!(problem.contains("--secret"), "{problem}");
        }
        // Who knows only the key checks what it can.
        let headers = signed(&ALL.map(|(scheme, _)| scheme));
        let verified = Verdict::Verified(vec!["standard-webhooks-ed25519"]);
        assert_eq!(keys.verify(&headers, BODY, NOW), verified);
    }

    #[test]
    fn either_secret_of_a_rotation_will_do() {
        for (scheme, name) in ALL {
            let headers = signed(&[scheme]);
            let mut verifier = knowing(2);
            assert!(is_refused(&verifier.verify(&headers, BODY, NOW)));
            verifier.secrets.push(secret(1).text);
            verifier.public_keys.push(public_key(&secret(1)));
            assert_eq!(verifier.verify(&headers, BODY, NOW), Verdict::Verified(vec![name]));
            verifier.secrets.clear();
            verifier.public_keys.clear();
            assert_eq!(verifier.verify(&headers, BODY, NOW), Verdict::Unchecked);
        }
    }
}
