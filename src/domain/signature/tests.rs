//! Published vectors, every combination, rotations, and that any change breaks a signature.

use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;
use crate::domain::Timestamp;

use SignatureScheme::{
    Github, HmacSha256Hex, None as Unsigned, StandardWebhooks, StandardWebhooksEd25519, Stripe,
};

/// From the specification's libraries: `javascript/src/index.test.ts`.
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
const TIME: i64 = 1_614_265_330;
const BODY: &[u8] = br#"{"test": 2432232314}"#;
const SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

const ALL: [SignatureScheme; 5] =
    [StandardWebhooks, StandardWebhooksEd25519, HmacSha256Hex, Github, Stripe];

fn secret(text: &str) -> Secret {
    Secret { text: text.to_owned(), expire_time: None, signing_key: None }
}

fn made(seed: u64) -> Secret {
    Secret::new(String::new(), &mut StdRng::seed_from_u64(seed))
}

fn public_key(secret: &Secret) -> PublicKey {
    secret.signing_key.as_ref().expect("a key").public_key().expect("a public key")
}

fn webhook(schemes: &[SignatureScheme]) -> WebhookChannel {
    WebhookChannel { signatures: schemes.to_vec(), ..WebhookChannel::default() }
}

fn signed(
    schemes: &[SignatureScheme],
    secrets: &[&Secret],
    body: &[u8],
) -> Result<Vec<(String, String)>, Error> {
    let webhook = webhook(schemes);
    let headers = sign(&webhook, secrets, &Message { id: ID, timestamp_secs: TIME, body })?;
    Ok(headers.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

/// The value of the one header with this name.
fn value<'a>(headers: &'a [(String, String)], name: &str) -> &'a str {
    let mut found = headers.iter().filter(|(known, _)| known == name);
    let value = &found.next().expect("the header").1;
    assert_eq!(found.next(), None, "{name} comes twice");
    value
}

fn owned(headers: &[(&str, &str)]) -> Vec<(String, String)> {
    headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn standard_webhooks_published_vector() {
    let headers = signed(&[StandardWebhooks], &[&secret(SECRET)], BODY).expect("signed");
    let time = TIME.to_string();
    assert_eq!(
        headers,
        owned(&[
            ("webhook-id", ID),
            ("webhook-timestamp", &time),
            ("webhook-signature", SIGNATURE)
        ])
    );
    assert!(verify_standard_webhooks(SECRET, ID, &time, BODY, SIGNATURE));
}

#[test]
fn ed25519_follows_rfc_8032() {
    // Section 7.1, tests 1 and 3.
    for (seed, public, message, signature) in [
        (
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
        ),
        (
            "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
            "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
            "af82",
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
        ),
    ] {
        let seed = STANDARD.encode(hex::decode(seed).expect("hex"));
        let key: SigningKey = serde_json::from_value(seed.into()).expect("a key");
        let public = STANDARD.encode(hex::decode(public).expect("hex"));
        let public_key = key.public_key().expect("a public key");
        assert_eq!(public_key.to_string(), format!("whpk_{public}"));
        let message = hex::decode(message).expect("hex");
        assert_eq!(hex::encode(key.sign(&message).expect("signed")), signature);
        assert!(public_key.verifies(&message, &hex::decode(signature).expect("hex")));
        assert!(!public_key.verifies(b"other", &hex::decode(signature).expect("hex")));
    }
}

#[test]
fn hmac_sha256_follows_rfc_4231() {
    for (key, data, expected) in [
        (
            "\x0b".repeat(20),
            "Hi There",
            "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
        ),
        (
            "Jefe".to_owned(),
            "what do ya want for nothing?",
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
        ),
    ] {
        let data = data.as_bytes();
        let headers = signed(&[HmacSha256Hex, Github], &[&secret(&key)], data).expect("signed");
        let github = format!("sha256={expected}");
        assert_eq!(headers, owned(&[("X-Signature", expected), ("X-Hub-Signature-256", &github)]));
        assert!(verify_hmac_hex(&key, data, expected) && verify_github(&key, data, &github));
        for (key, data, hex) in
            [("other", data, expected), (&key, b"other", expected), (&key, data, "zz")]
        {
            assert!(!verify_hmac_hex(key, data, hex));
            assert!(!verify_github(key, data, &format!("sha256={hex}")));
        }
        assert!(!verify_github(&key, data, expected), "the prefix is part of it");
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
fn one_signature_per_valid_secret_where_the_scheme_has_room() {
    let (new, old) = (made(1), made(2));
    let headers = signed(&ALL, &[&new, &old], BODY).expect("signed");
    let time = TIME.to_string();

    let standard = value(&headers, SIGNATURE_HEADER);
    let versions: Vec<_> = standard.split(' ').map(|entry| &entry[..3]).collect();
    assert_eq!(versions, ["v1,", "v1,", "v1a", "v1a"], "one header for both schemes");
    let stripe = value(&headers, STRIPE_HEADER);
    assert_eq!(stripe.matches(",v1=").count(), 2);
    assert_eq!(stripe_timestamp(stripe), Some(TIME));
    for secret in [&new, &old] {
        assert!(verify_standard_webhooks(&secret.text, ID, &time, BODY, standard));
        let key = public_key(secret);
        assert!(verify_standard_webhooks_ed25519(&key, ID, &time, BODY, standard));
        assert!(verify_stripe(&secret.text, BODY, stripe));
    }

    // One alone: by the secret that a receiver that has not changed over knows.
    for (secret, is_right) in [(&old, true), (&new, false)] {
        let text = &secret.text;
        assert_eq!(verify_hmac_hex(text, BODY, value(&headers, HMAC_HEADER)), is_right);
        assert_eq!(verify_github(text, BODY, value(&headers, GITHUB_HEADER)), is_right);
    }
}

#[test]
fn every_combination_stands_side_by_side() {
    let secret = made(1);
    for chosen in 1..1_u32 << ALL.len() {
        let schemes: Vec<_> =
            ALL.into_iter().enumerate().filter(|(i, _)| chosen & (1 << i) != 0).collect();
        let schemes: Vec<_> = schemes.into_iter().map(|(_, scheme)| scheme).collect();
        let headers = signed(&schemes, &[&secret], BODY).expect("signed");
        let has = |name| headers.iter().filter(|(known, _)| known == name).count();
        let lists = |scheme| usize::from(schemes.contains(&scheme));
        assert_eq!(has(HMAC_HEADER), lists(HmacSha256Hex), "{schemes:?}");
        assert_eq!(has(GITHUB_HEADER), lists(Github), "{schemes:?}");
        assert_eq!(has(STRIPE_HEADER), lists(Stripe), "{schemes:?}");
        let standard = lists(StandardWebhooks) + lists(StandardWebhooksEd25519);
        for name in [ID_HEADER, TIMESTAMP_HEADER, SIGNATURE_HEADER] {
            assert_eq!(has(name), standard.min(1), "{schemes:?}");
        }
        if standard > 0 {
            assert_eq!(value(&headers, SIGNATURE_HEADER).split(' ').count(), standard);
        }
    }
    assert_eq!(signed(&[Unsigned], &[&secret], BODY), Ok(Vec::new()));
}

#[test]
fn any_change_breaks_a_signature() {
    let secret = made(1);
    let key = public_key(&secret);
    let headers = signed(&ALL, &[&secret], BODY).expect("signed");
    let both = value(&headers, SIGNATURE_HEADER);
    let (symmetric, asymmetric) = both.split_once(' ').expect("two entries");
    let time = "1614265330";
    let good = |id, time, body: &[u8], value: &str| {
        (
            verify_standard_webhooks(&secret.text, id, time, body, value),
            verify_standard_webhooks_ed25519(&key, id, time, body, value),
        )
    };
    assert_eq!(good(ID, time, BODY, both), (true, true));
    assert_eq!(good(ID, time, BODY, symmetric), (true, false));
    assert_eq!(good(ID, time, BODY, asymmetric), (false, true));
    assert_eq!(good("msg_", time, BODY, both), (false, false));
    assert_eq!(good(ID, "1614265331", BODY, both), (false, false));
    assert_eq!(good(ID, time, b"{}", both), (false, false));
    let swapped = both.replace("v1,", "v2,").replace("v1a,", "v1,");
    for value in ["", "v1,", "v1", "v1,AAAA", "v1a,", "v1a,AAAA", &swapped] {
        assert_eq!(good(ID, time, BODY, value), (false, false), "{value}");
    }
    assert!(!verify_standard_webhooks("whsec_AAAA", ID, time, BODY, both));

    let stripe = value(&headers, STRIPE_HEADER);
    assert!(verify_stripe(&secret.text, BODY, stripe));
    assert!(!verify_stripe(SECRET, BODY, stripe) && !verify_stripe(&secret.text, b"{}", stripe));
    let later = stripe.replace("t=1614265330", "t=1614265331");
    for value in [&later, &stripe.replace("v1=", "v0="), "", "t=", "v1=00", "t=1,v1=zz"] {
        assert!(!verify_stripe(&secret.text, BODY, value), "{value}");
    }
}

#[test]
fn nothing_goes_out_unsigned_by_mistake() {
    for scheme in ALL {
        assert_eq!(signed(&[scheme], &[], BODY), Err(Error::Secret));
        // Beside one that can be made, one that cannot still stops the request.
        let schemes = [HmacSha256Hex, scheme];
        let plain = secret("a plain secret of some length");
        let can = matches!(scheme, HmacSha256Hex | Github | Stripe);
        assert_eq!(signed(&schemes, &[&plain], BODY).is_ok(), can, "{scheme:?}");
    }
}

#[test]
fn secrets_that_are_made_suit_every_scheme_and_share_nothing() {
    let mut random = StdRng::seed_from_u64(2);
    let first = Secret::new(String::new(), &mut random);
    let second = Secret::new(String::new(), &mut random);
    assert_ne!(first.text, second.text);
    assert_ne!(public_key(&first), public_key(&second));
    assert_eq!(first.text.len(), 50);
    for scheme in ALL {
        assert_eq!(check_secret(&first.text, &[scheme]), Ok(()));
    }
    // Whoever knows the text cannot find the key: the same text has another key each time.
    let mine = |random: &mut _| Secret::new(SECRET.to_owned(), random);
    assert_ne!(public_key(&mine(&mut random)), public_key(&mine(&mut random)));
}

#[test]
fn a_private_key_is_never_printed_and_reads_back() {
    let secret = made(3);
    let stored = serde_json::to_value(&secret).expect("JSON");
    let seed = stored["signing_key"].as_str().expect("stored").to_owned();
    let shown = format!("{secret:?} {secret:#?} {:?}", secret.signing_key);
    assert!(!shown.contains(&seed) && !shown.contains(&secret.text), "{shown}");
    assert_eq!(serde_json::from_value::<Secret>(stored).expect("read"), secret);
    // Documents from before there were keys.
    let old = format!(r#"{{"text":"{SECRET}","expire_time":1614265330000000}}"#);
    let old: Secret = serde_json::from_str(&old).expect("read");
    assert_eq!((old.text.as_str(), old.signing_key), (SECRET, None));
    // An error names no key.
    let broken = seed.replace('=', "");
    let error = serde_json::from_value::<SigningKey>(broken.clone().into()).expect_err("refused");
    assert!(!error.to_string().contains(&broken));
}

#[test]
fn public_keys_are_read_as_they_are_shown() {
    let key = public_key(&made(1));
    let text = key.to_string();
    assert_eq!(text.parse(), Ok(key));
    for wrong in ["", "whpk_", "whpk_AAAA", &text[5..], &text.replace("whpk_", "whsec_")] {
        assert!(wrong.parse::<PublicKey>().is_err(), "{wrong}");
    }
}

#[test]
fn what_is_recorded_shows_the_form_and_no_signature() {
    let (new, old) = (made(1), made(2));
    let channel = WebhookChannel {
        stripe_signature_header: "X-Paid".to_owned(),
        signature_header: "X-Plain".to_owned(),
        ..webhook(&ALL)
    };
    let message = Message { id: ID, timestamp_secs: TIME, body: BODY };
    let headers = sign(&channel, &[&new, &old], &message).expect("signed");
    for (name, shown) in [
        (SIGNATURE_HEADER, "v1,*** v1,*** v1a,*** v1a,***"),
        ("X-Plain", "***"),
        (GITHUB_HEADER, "sha256=***"),
        ("X-Paid", "t=1614265330,v1=***,v1=***"),
    ] {
        let value = &headers.iter().find(|(known, _)| *known == name).expect("the header").1;
        assert_eq!(masked(&channel, &name.to_lowercase(), value), shown);
    }
    // A customer's own header that looks like a signature is none.
    assert_eq!(masked(&channel, "x-other", "t=1,v1=secret"), "***");
    assert_eq!(masked(&channel, "x-paid", "secret"), "***");
    assert_eq!(masked(&webhook(&[StandardWebhooks]), "stripe-signature", "t=1,v1=a"), "***");
}

#[test]
fn brought_secrets_are_checked_on_both_sides_of_the_limits() {
    let brought = |bytes: usize| format!("whsec_{}", STANDARD.encode(vec![7; bytes]));
    let standard = [StandardWebhooks, HmacSha256Hex];
    for (bytes, good) in [(23, false), (24, true), (64, true), (65, false)] {
        assert_eq!(check_secret(&brought(bytes), &standard).is_ok(), good, "{bytes}");
    }
    let secret = "not base64 at all, but long enough";
    let error = check_secret(secret, &standard).expect_err("refused");
    assert!(!error.contains(secret));
    for plain in [HmacSha256Hex, Github, Stripe, StandardWebhooksEd25519] {
        for (text, good) in [
            ("x".repeat(15), false),
            ("x".repeat(16), true),
            ("~ ".repeat(64), true),
            ("x".repeat(129), false),
            ("é".repeat(16), false),
            ("\n".repeat(16), false),
        ] {
            assert_eq!(check_secret(&text, &[plain]).is_ok(), good, "{text:?}");
        }
    }
}

#[test]
fn a_secret_ends_at_its_instant() {
    let end = Timestamp::from_micros(1_614_265_330_000_000);
    let secret = Secret { expire_time: Some(end), ..made(1) };
    assert!(secret.is_valid_at(end.minus(Duration::from_micros(1))));
    assert!(!secret.is_valid_at(end) && made(1).is_valid_at(Timestamp::MAX));
}
