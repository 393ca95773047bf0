//! Whether a request comes from who knows the secret: what every receiver of webhooks should check.

use hyper::HeaderMap;

use crate::domain::Timestamp;
use crate::domain::channel::DEFAULT_SIGNATURE_HEADER;
use crate::domain::signature::{
    ID_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER, TOLERANCE_SECS, verify_hmac_hex,
    verify_standard_webhooks,
};

/// What signatures are checked with.
#[derive(Clone, Debug)]
pub struct Verifier {
    /// The valid secrets; several while one is being replaced. Without any, nothing is checked.
    pub secrets: Vec<String>,
    /// The header of the plain HMAC.
    pub signature_header: String,
}

/// What a request's signatures say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No secret is known: nothing was checked.
    Unchecked,
    /// All signatures are right; these schemes were found.
    Verified(Vec<&'static str>),
    /// It cannot be trusted, because of this.
    Refused(String),
}

impl Verifier {
    /// Checks with this secret, and the usual header.
    pub fn of(secret: impl Into<String>) -> Self {
        let signature_header = DEFAULT_SIGNATURE_HEADER.to_owned();
        Self { secrets: vec![secret.into()], signature_header }
    }

    /// Checks every signature that is there, at the instant `now`. There must be one at least, and
    /// none may be wrong.
    pub fn verify(&self, headers: &HeaderMap, body: &[u8], now: Timestamp) -> Verdict {
        if self.secrets.is_empty() {
            return Verdict::Unchecked;
        }
        let mut verified = Vec::new();
        if headers.contains_key(SIGNATURE_HEADER) {
            if let Err(problem) = self.verify_standard(headers, body, now) {
                return Verdict::Refused(problem);
            }
            verified.push("standard-webhooks");
        }
        if let Some(signature) = text(headers, &self.signature_header) {
            if !self.secrets.iter().any(|secret| verify_hmac_hex(secret, body, signature)) {
                let header = self.signature_header.to_lowercase();
                return Verdict::Refused(format!(
                    "{header} does not match the body and the secret"
                ));
            }
            verified.push("hmac-sha256-hex");
        }
        if verified.is_empty() {
            let header = self.signature_header.to_lowercase();
            return Verdict::Refused(format!("neither {SIGNATURE_HEADER} nor {header} is there"));
        }
        Verdict::Verified(verified)
    }

    fn verify_standard(
        &self,
        headers: &HeaderMap,
        body: &[u8],
        now: Timestamp,
    ) -> Result<(), String> {
        let get = |name| text(headers, name).ok_or_else(|| format!("{name} is missing"));
        let (id, timestamp) = (get(ID_HEADER)?, get(TIMESTAMP_HEADER)?);
        let signatures = get(SIGNATURE_HEADER)?;
        let seconds: i64 =
            timestamp.parse().map_err(|_| format!("{TIMESTAMP_HEADER} is no number"))?;
        let distance = now.as_secs().abs_diff(seconds);
        if distance > TOLERANCE_SECS.unsigned_abs() {
            return Err(format!("{TIMESTAMP_HEADER} is {distance} s from the present: a replay?"));
        }
        let right =
            |secret: &String| verify_standard_webhooks(secret, id, timestamp, body, signatures);
        if self.secrets.iter().any(right) {
            Ok(())
        } else {
            Err(format!("{SIGNATURE_HEADER} does not match the message and the secret"))
        }
    }
}

/// A header's value, when it is there and is text.
pub fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

#[cfg(test)]
mod tests {
    use hyper::header::{HeaderName, HeaderValue};

    use super::*;
    use crate::domain::channel::SignatureScheme;
    use crate::domain::signature::sign;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const BODY: &[u8] = br#"{"a":1}"#;
    const NOW: Timestamp = Timestamp::from_micros(1_770_283_800_000_000);

    fn signed(schemes: &[SignatureScheme]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for scheme in schemes {
            let made = sign(*scheme, &[SECRET], "evt_1", NOW.as_secs(), BODY, "X-Signature");
            for (name, value) in made.unwrap() {
                headers.insert(
                    HeaderName::try_from(name).unwrap(),
                    HeaderValue::try_from(value).unwrap(),
                );
            }
        }
        headers
    }

    #[test]
    fn every_signature_that_is_there_must_be_right() {
        let mut headers =
            signed(&[SignatureScheme::StandardWebhooks, SignatureScheme::HmacSha256Hex]);
        let verifier = Verifier::of(SECRET);
        assert_eq!(
            verifier.verify(&headers, BODY, NOW),
            Verdict::Verified(vec!["standard-webhooks", "hmac-sha256-hex"])
        );
        assert!(matches!(verifier.verify(&headers, b"{}", NOW), Verdict::Refused(_)));
        headers.insert("x-signature", HeaderValue::from_static("00"));
        assert!(matches!(verifier.verify(&headers, BODY, NOW), Verdict::Refused(_)));
    }

    #[test]
    fn a_request_without_signature_or_from_another_time_is_refused() {
        let verifier = Verifier::of(SECRET);
        assert!(matches!(verifier.verify(&HeaderMap::new(), BODY, NOW), Verdict::Refused(_)));
        let headers = signed(&[SignatureScheme::StandardWebhooks]);
        let later = NOW.plus(std::time::Duration::from_secs(301));
        let Verdict::Refused(problem) = verifier.verify(&headers, BODY, later) else {
            panic!("accepted a replay");
        };
        assert!(problem.contains("301 s"), "{problem}");
    }

    #[test]
    fn either_secret_of_a_rotation_will_do() {
        let headers = signed(&[SignatureScheme::HmacSha256Hex]);
        let mut verifier = Verifier::of("another secret of 16 bytes");
        assert!(matches!(verifier.verify(&headers, BODY, NOW), Verdict::Refused(_)));
        verifier.secrets.push(SECRET.into());
        assert_eq!(
            verifier.verify(&headers, BODY, NOW),
            Verdict::Verified(vec!["hmac-sha256-hex"])
        );
        verifier.secrets.clear();
        assert_eq!(verifier.verify(&headers, BODY, NOW), Verdict::Unchecked);
    }
}
