//! What is signed, as it arrives: verified by libraries that others wrote, over rotations too.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::Write;
use std::sync::Arc;

use prost_types::Duration as ProtoDuration;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tidings::api::proto::{self, DeliveryState, PayloadFormat, SignatureScheme};
use tidings::domain::channel::{self, WebhookChannel};
use tidings::domain::id::TenantId;
use tidings::domain::payload::{DEFAULT_MAX_BYTES, MAX_DEPTH};
use tidings::domain::signature::{Message, sign};
use tidings::domain::subscription::Secret;
use tokio::sync::Semaphore;

use crate::support::app::quick_retries;
use crate::support::foreign::{Item, Known, SCHEMES, examples_refuse, verify, verify_in_time};
use crate::support::make::Maker;
use crate::support::receiver::Captured;
use crate::support::{App, Database, Receiver, Reply};

/// Payloads that are drawn at random, and the number that they are drawn from.
const RANDOM_PAYLOADS: usize = 200;
const SEED: u64 = 0x7164_696e_6773;

/// JSON that a careless sender or receiver would change on the way.
fn awkward_payloads() -> Vec<String> {
    let mut payloads: Vec<String> = [
        "{}",
        // One byte, and other values that are no objects.
        "1",
        "[]",
        "\"\"",
        "null",
        "-0",
        r#"{"name":"Zoë","city":"東京","mood":"🙂🏽","joined":"e\u0301 is not é","rtl":"שלום"}"#,
        r#"{"schlüssel":1,"ключ":2,"鍵":3}"#,
        r#"{"a":1,"a":2,"b":0,"a":1}"#,
        r#"{"type":"theirs","event_type":"theirs","timestamp":"theirs","id":"theirs","data":"theirs"}"#,
        r#"{"big":123456789012345678901234567890,"small":-123456789012345678901234567890}"#,
        r#"{"float":0.10,"exponent":1e400,"tiny":1E-400,"whole":1.0,"precise":3.141592653589793238462643}"#,
        " { \"a\" :\t1 ,\r\n  \"b\":[ 1,2 ,3 ]\n}\r\n ",
        r#"{"escapes":"\u0000\u001f\"\\\/\b\f\n\r\t\u2028\ud83d\ude42","slash":"/","amp":"&<>'"}"#,
        "{\"raw\":\"\u{2028}\u{2029}\u{feff}\u{7f}\u{10ffff}\"}",
        r#"{"":"","a.b":{"":[{}]},"__proto__":{"x":1},"constructor":null}"#,
    ]
    .map(str::to_owned)
    .to_vec();
    payloads.push("[".repeat(MAX_DEPTH) + &"]".repeat(MAX_DEPTH));
    // As large as it may be: all ASCII, and with characters of three bytes.
    payloads.extend(["a", "鍵"].map(largest));
    // Lengths around the blocks of the hash.
    payloads.extend(
        (0..42).map(|length| format!(r#"{{"n":{length},"é":"{}"}}"#, "é".repeat(3 * length))),
    );
    payloads
}

/// A payload of 256 KiB.
fn largest(character: &str) -> String {
    let (start, end) = (r#"{"text":""#, r#""}"#);
    let room = DEFAULT_MAX_BYTES - start.len() - end.len();
    let text = character.repeat(room / character.len());
    let payload = format!("{start}{text}{}{end}", " ".repeat(room % character.len()));
    assert_eq!(payload.len(), 256 * 1024);
    payload
}

/// Text with characters of one to four bytes, as it stands in JSON.
fn random_text(random: &mut StdRng) -> String {
    const CHARACTERS: [&str; 10] =
        ["a", "Z", " ", "é", "ß", "鍵", "🙂", "\\\"", "\\u0000", "\\ud83d\\ude42"];
    let length = random.random_range(1..60);
    (0..length).map(|_| CHARACTERS[random.random_range(0..CHARACTERS.len())]).collect()
}

/// An integer of 30 digits, which no float holds.
fn random_integer(random: &mut StdRng) -> String {
    let digits = (0..30).map(|place| random.random_range(i32::from(place == 0)..10).to_string());
    digits.collect()
}

/// Payloads of every kind in turn, the same in each run.
fn random_payloads() -> Vec<String> {
    let mut random = StdRng::seed_from_u64(SEED);
    let payload = |number| match number % 8 {
        0 => format!(r#"{{"name":"{}","é{number}":"東京"}}"#, random_text(&mut random)),
        1 => random.random_range(0..10).to_string(),
        2 => "{}".to_owned(),
        3 => format!(r#"{{"a":{number},"a":"{}","a":null}}"#, random_text(&mut random)),
        4 => format!(r#"{{"big":{0},"list":[-{0}]}}"#, random_integer(&mut random)),
        5 if number < 24 => largest(["a", "é", "鍵"][number / 8]),
        5 | 6 => {
            let mut object = "{".to_owned();
            for member in 0..random.random_range(1..200) {
                let comma = if member > 0 { " ,\n" } else { "" };
                let _ = write!(object, "{comma}\"k{member}\" : \"{}\"", random_text(&mut random));
            }
            object + "}"
        }
        _ => format!(
            "[{0},\"{1}\",{{}},[ ],1.0e2]",
            random_integer(&mut random),
            random_text(&mut random)
        ),
    };
    (0..RANDOM_PAYLOADS).map(payload).collect()
}

fn webhook(
    url: String,
    schemes: &[SignatureScheme],
    format: PayloadFormat,
) -> proto::WebhookChannel {
    proto::WebhookChannel {
        url,
        signatures: schemes.iter().map(|scheme| *scheme as i32).collect(),
        payload_format: format as i32,
        ..Default::default()
    }
}

/// A subscription to everything, and what its receiver is told.
async fn subscribe(
    app: &App,
    tenant_id: &str,
    webhook: proto::WebhookChannel,
) -> (proto::Subscription, Known) {
    let subscription = proto::Subscription {
        tenant_id: tenant_id.into(),
        event_types: vec!["*".into()],
        channel: Some(proto::subscription::Channel::Webhook(webhook)),
        retry_policy: Some(quick_retries(3)),
        ..Default::default()
    };
    let request =
        proto::CreateSubscriptionRequest { subscription: Some(subscription), ..Default::default() };
    let created = app.operator.subscriptions().create_subscription(request).await.expect("created");
    let created = created.into_inner();
    let known = Known { secret: created.signing_secret, public_key: created.signing_public_key };
    (created.subscription.expect("a subscription"), known)
}

async fn rotate(
    app: &App,
    subscription: &proto::Subscription,
    overlap: Option<ProtoDuration>,
) -> (proto::RotateSecretResponse, Known) {
    let request = proto::RotateSecretRequest {
        tenant_id: subscription.tenant_id.clone(),
        subscription_id: subscription.id.clone(),
        overlap,
        ..Default::default()
    };
    let rotated = app.operator.subscriptions().rotate_secret(request).await.expect("rotated");
    let rotated = rotated.into_inner();
    let known = Known {
        secret: rotated.signing_secret.clone(),
        public_key: rotated.signing_public_key.clone(),
    };
    (rotated, known)
}

/// What somebody else than the receiver knows.
fn strangers() -> Known {
    let secret = Secret::new(String::new(), &mut StdRng::seed_from_u64(99));
    let public_key = secret.signing_key.expect("a key").public_key().expect("a public key");
    Known { secret: secret.text, public_key: public_key.to_string() }
}

on_both! {
    async fn libraries_of_others_verify_random_payloads_by_every_scheme(database: Database) {
        let app = App::start(database).await;
        let receiver = Receiver::answering(204).await;
        let tenant = app.operator.create_tenant("Acme").await;
        let webhook = webhook(receiver.url(), &SCHEMES, PayloadFormat::DataOnly);
        let (_, known) = subscribe(&app, &tenant.id, webhook).await;
        let mut emitted = HashMap::new();
        for payload in random_payloads() {
            let event = app.operator.emit(&tenant.id, "user.created", &payload).await;
            emitted.insert(event.event_id, payload);
        }
        assert_eq!(emitted.len(), RANDOM_PAYLOADS);
        let requests = receiver.wait_for(RANDOM_PAYLOADS).await;

        let (mut genuine, mut forged) = (Vec::new(), Vec::new());
        for (number, request) in requests.iter().enumerate() {
            assert_eq!(request.body, emitted.remove(request.header("webhook-id")).expect("emitted once"));
            let item = Item::captured(request, &SCHEMES, &known);
            let other_id = requests[(number + 1) % requests.len()].header("webhook-id");
            forged.extend(item.forgeries(other_id, &strangers()));
            genuine.push(item);
        }
        let matrix = verify(&genuine, &forged).await;
        matrix.print();
        for scheme in SCHEMES {
            // Body, signature and secret for each scheme; the id for two, the time for three.
            let forgeries = match scheme {
                SignatureScheme::HmacSha256Hex | SignatureScheme::Github => 4,
                SignatureScheme::Stripe => 5,
                _ => 6,
            };
            assert_eq!(matrix.counts(scheme), [(RANDOM_PAYLOADS, forgeries * RANDOM_PAYLOADS)].into());
        }
        assert_eq!(matrix.libraries(SignatureScheme::StandardWebhooks).len(), 9);
        assert_eq!(matrix.libraries(SignatureScheme::StandardWebhooksEd25519).len(), 5);
        assert_eq!(matrix.libraries(SignatureScheme::HmacSha256Hex).len(), 5);
        assert_eq!(matrix.libraries(SignatureScheme::Github).len(), 5);
        assert_eq!(matrix.libraries(SignatureScheme::Stripe).len(), 6);
        app.stop().await;
    }
}

#[tokio::test]
async fn the_examples_say_no_to_a_request_without_the_headers_that_they_look_for() {
    let headers: [&[(&str, &str)]; 6] = [
        &[],
        &[("webhook-id", "evt_1"), ("webhook-timestamp", "1770283800")],
        &[("webhook-signature", "v1,x v1a,x v1a, v1")],
        &[("x-hub-signature-256", "sha256")],
        &[("stripe-signature", "v1,v1=,v1=x")],
        &[("stripe-signature", "t,t=x,v1")],
    ];
    let refused = examples_refuse(&headers, &strangers()).await;
    assert_eq!(refused, headers.len() * SCHEMES.len() * 4, "in four languages");
}

/// Signed by us with a time of our own: no service could be made to do that.
#[tokio::test]
async fn what_is_too_old_is_refused_although_its_signature_holds() {
    let timed = [
        SignatureScheme::StandardWebhooks,
        SignatureScheme::StandardWebhooksEd25519,
        SignatureScheme::Stripe,
    ];
    let secret = Secret::new(String::new(), &mut StdRng::seed_from_u64(1));
    let public_key = secret.signing_key.clone().expect("a key").public_key().expect("a public key");
    let known = Known { secret: secret.text.clone(), public_key: public_key.to_string() };
    let settings = WebhookChannel {
        signatures: vec![
            channel::SignatureScheme::StandardWebhooks,
            channel::SignatureScheme::StandardWebhooksEd25519,
            channel::SignatureScheme::Stripe,
        ],
        ..WebhookChannel::default()
    };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = i64::try_from(now.expect("after 1970").as_secs()).expect("small");
    let signed = |timestamp_secs| {
        let message = Message { id: "evt_1", timestamp_secs, body: b"{}" };
        let headers = sign(&settings, &[&secret], &message).expect("signed");
        let headers =
            headers.into_iter().map(|(name, value)| (name.to_lowercase(), value)).collect();
        let captured = Captured {
            time: std::time::Instant::now(),
            under_way: 1,
            target: "/".into(),
            headers,
            body: "{}".into(),
        };
        Item::captured(&captured, &timed, &known)
    };
    // The tolerance is five minutes; the programs may take one to start.
    let matrix = verify_in_time(
        &[signed(now), signed(now - 200)],
        &[signed(now - 301), signed(now - 86_400)],
    )
    .await;
    assert_eq!(matrix.counts(SignatureScheme::StandardWebhooks), [(2, 2)].into());
    assert_eq!(matrix.counts(SignatureScheme::Stripe), [(2, 2)].into());
    // All but the one that knows no time.
    assert_eq!(matrix.counts(SignatureScheme::StandardWebhooksEd25519), [(2, 0), (2, 2)].into());
}

on_both! {
    async fn awkward_payloads_are_verified_in_every_format(database: Database) {
        let app = App::start(database).await;
        let receiver = Receiver::answering(204).await;
        let tenant = app.operator.create_tenant("Zoë & 東京 \"Söhne\"").await;
        let formats = [
            PayloadFormat::Standard,
            PayloadFormat::Flat,
            PayloadFormat::DataOnly,
            PayloadFormat::CloudeventsStructured,
            PayloadFormat::CloudeventsBinary,
        ];
        let mut known = HashMap::new();
        // A scheme alone for each format: what all of them do side by side is another test's matter.
        for (format, scheme) in formats.into_iter().zip(SCHEMES) {
            let mut webhook = webhook(receiver.url(), &[scheme], format);
            webhook.headers.insert("X-Format".into(), format.as_str_name().into());
            known.insert(format.as_str_name(), (scheme, subscribe(&app, &tenant.id, webhook).await.1));
        }
        let mut emitted = HashMap::new();
        for payload in awkward_payloads() {
            let event = app.operator.emit(&tenant.id, "user.created", &payload).await;
            let deliveries = app.operator.deliveries_of(&tenant.id, &event.event_id).await;
            assert_eq!(deliveries.len(), formats.len());
            emitted.extend(deliveries.into_iter().map(|delivery| (delivery.id, payload.clone())));
        }
        let requests = receiver.wait_for(emitted.len()).await;

        let (mut genuine, mut forged, mut arrived) = (Vec::new(), Vec::new(), HashSet::new());
        for request in &requests {
            let (id, format) = (request.header("tidings-delivery-id"), request.header("x-format"));
            let payload = &emitted[id];
            let ends_with = |text: &str| request.body.ends_with(text.as_bytes());
            match PayloadFormat::from_str_name(format).expect("a format") {
                PayloadFormat::DataOnly | PayloadFormat::CloudeventsBinary => assert_eq!(request.body, payload),
                PayloadFormat::Standard | PayloadFormat::CloudeventsStructured => {
                    assert!(ends_with(&format!("\"data\":{payload}}}")));
                }
                // Read as bytes: our own JSON reader knows no number as large as 1e400.
                _ => assert!(request.body.starts_with(br#"{"event_type":"user.created","#)),
            }
            assert!(arrived.insert(id), "{id} came twice");
            let (scheme, known) = &known[format];
            let item = Item::captured(request, &[*scheme], known);
            if request.body.len() < 10_000 {
                forged.extend(item.forgeries("evt_another", &strangers()));
            }
            genuine.push(item);
        }
        assert_eq!(arrived.len(), emitted.len(), "every event in every format");
        verify(&genuine, &forged).await;
        app.stop().await;
    }
}

on_both! {
    async fn while_a_rotation_overlaps_each_scheme_is_verified_as_documented(database: Database) {
        let app = App::start(database).await;
        let receiver = Receiver::answering(204).await;
        let tenant = app.operator.create_tenant("Acme").await;
        let webhook = webhook(receiver.url(), &SCHEMES, PayloadFormat::Standard);
        let (subscription, first) = subscribe(&app, &tenant.id, webhook).await;
        let arrives = async |count| {
            app.operator.emit(&tenant.id, "user.created", r#"{"name":"Zoë"}"#).await;
            receiver.wait_for(count).await.remove(count - 1)
        };

        let before = arrives(1).await;
        let (rotated, second) = rotate(&app, &subscription, None).await;
        assert!(rotated.previous_expire_time.is_some());
        let shown = rotated.subscription.expect("a subscription").signing_public_keys;
        assert_eq!(shown, [second.public_key.clone(), first.public_key.clone()], "the newest first");
        let during = arrives(2).await;
        let (rotated, third) = rotate(&app, &subscription, Some(ProtoDuration::default())).await;
        assert_eq!(rotated.previous_expire_time, None);
        let shown = rotated.subscription.expect("a subscription").signing_public_keys;
        assert_eq!(shown, std::slice::from_ref(&third.public_key));
        let after = arrives(3).await;

        let (mut genuine, mut forged) = (Vec::new(), Vec::new());
        for scheme in SCHEMES {
            // Room for one signature: that which a receiver that has not changed over knows.
            let is_single = matches!(scheme, SignatureScheme::HmacSha256Hex | SignatureScheme::Github);
            let both = if is_single { vec![&first] } else { vec![&first, &second] };
            for (request, valid) in [(&before, vec![&first]), (&during, both), (&after, vec![&third])] {
                for known in [&first, &second, &third] {
                    let kind = if valid.contains(&known) { &mut genuine } else { &mut forged };
                    kind.push(Item::captured(request, &[scheme], known));
                }
            }
        }
        assert_eq!((genuine.len(), forged.len()), (18, 27));
        verify(&genuine, &forged).await;
        app.stop().await;
    }
}

on_both! {
    async fn a_repeated_rotation_ends_the_overlap_early(database: Database) {
        let app = App::start(database).await;
        let receiver = Receiver::answering(204).await;
        let tenant = app.operator.create_tenant("Acme").await;
        let webhook = webhook(receiver.url(), &SCHEMES, PayloadFormat::Standard);
        let (subscription, first) = subscribe(&app, &tenant.id, webhook).await;
        let (_, second) = rotate(&app, &subscription, None).await;
        let request = proto::RotateSecretRequest {
            tenant_id: tenant.id.clone(),
            subscription_id: subscription.id.clone(),
            signing_secret: second.secret.clone(),
            overlap: Some(ProtoDuration::default()),
        };
        let ended = app.operator.subscriptions().rotate_secret(request).await.expect("rotated").into_inner();
        assert_eq!((&ended.signing_secret, &ended.signing_public_key), (&second.secret, &second.public_key));
        app.operator.emit(&tenant.id, "user.created", "{}").await;
        let request = receiver.wait_for(1).await.remove(0);
        verify(
            &[Item::captured(&request, &SCHEMES, &second)],
            &[Item::captured(&request, &SCHEMES, &first)],
        )
        .await;
        app.stop().await;
    }
}

on_both! {
    async fn after_an_emergency_what_was_waiting_is_signed_with_the_new_secret_alone(database: Database) {
        let app = App::start(database).await;
        // The receiver holds its answers back, so that the lane is full.
        let gate = Arc::new(Semaphore::new(0));
        let held = Arc::clone(&gate);
        let receiver = Receiver::after_answers(1, move |_, number| {
            // The first delivery is tried again, and then waits in the database.
            Reply::status(if number == 0 { 500 } else { 204 }).behind(Arc::clone(&held))
        })
        .await;
        let tenant = app.operator.create_tenant("Acme").await;
        let webhook = proto::WebhookChannel {
            max_in_flight: 1,
            ..webhook(receiver.url(), &SCHEMES, PayloadFormat::Standard)
        };
        let (subscription, leaked) = subscribe(&app, &tenant.id, webhook).await;
        let emit = async || app.operator.emit(&tenant.id, "user.created", "{}").await.event_id;
        app.operator.earn(&tenant.id, 1).await;
        let under_way = emit().await;
        receiver.wait_for(2).await;
        // Leased to this node, and waiting in its lane, with the settings of their birth.
        let waiting = [emit().await, emit().await];
        for event_id in &waiting {
            let delivery = app.operator.wait_for_state(&tenant.id, event_id, DeliveryState::Delivering).await;
            assert_eq!(delivery.attempt_count, 0);
        }
        // Kept in the database.
        let pause = proto::PauseSubscriptionRequest { tenant_id: tenant.id.clone(), subscription_id: subscription.id.clone() };
        let resume = proto::ResumeSubscriptionRequest { tenant_id: tenant.id.clone(), subscription_id: subscription.id.clone() };
        let paused_for_a_moment = async || {
            app.operator.subscriptions().pause_subscription(pause.clone()).await.expect("paused");
            let kept = emit().await;
            app.operator.wait_for_state(&tenant.id, &kept, DeliveryState::Held).await;
            kept
        };
        let kept = paused_for_a_moment().await;
        app.operator.subscriptions().resume_subscription(resume).await.expect("resumed");

        let (_, new) = rotate(&app, &subscription, Some(ProtoDuration::default())).await;
        gate.add_permits(Semaphore::MAX_PERMITS >> 1);
        let requests = receiver.wait_for(6).await.split_off(1);
        let ids: BTreeSet<_> = requests[1..].iter().map(|request| request.header("webhook-id")).collect();
        assert_eq!(ids, [&under_way, &waiting[0], &waiting[1], &kept].map(String::as_str).into());

        let (mut genuine, mut forged) = (Vec::new(), Vec::new());
        for (number, request) in requests.iter().enumerate() {
            // What was sent before the rotation was signed before.
            let (valid, ended) = if number == 0 { (&leaked, &new) } else { (&new, &leaked) };
            genuine.push(Item::captured(request, &SCHEMES, valid));
            forged.push(Item::captured(request, &SCHEMES, ended));
            assert_eq!(request.header("webhook-signature").split(' ').count(), 2, "one entry per scheme");
            assert_eq!(request.header("stripe-signature").split(',').count(), 2, "one signature");
        }
        verify(&genuine, &forged).await;
        app.stop().await;
    }
}

on_both! {
    async fn a_subscription_can_get_ed25519_later_even_when_its_secret_is_from_before(database: Database) {
        let app = App::start(database).await;
        let receiver = Receiver::answering(204).await;
        let tenant = app.operator.create_tenant("Acme").await;
        // As it was stored before there were keys beside secrets.
        let store = app.database.open().await;
        let tenant_id = TenantId::parse(&tenant.id).expect("an id");
        let now = store.now().await.expect("now");
        let mut old = Maker::new(1).unstored_subscription(tenant_id, now);
        old.spec.channel = channel::Channel::Webhook(WebhookChannel { url: receiver.url(), ..WebhookChannel::default() });
        assert_eq!(old.secrets[0].signing_key, None);
        store.create_subscription(&old).await.expect("stored");
        store.close().await;

        let update = async |schemes: &[SignatureScheme]| {
            let webhook = webhook(String::new(), schemes, PayloadFormat::Unspecified);
            let subscription = proto::Subscription {
                id: old.id.to_string(),
                tenant_id: tenant.id.clone(),
                channel: Some(proto::subscription::Channel::Webhook(webhook)),
                ..Default::default()
            };
            let update_mask = Some(prost_types::FieldMask { paths: vec!["webhook.signatures".into()] });
            let request = proto::UpdateSubscriptionRequest { subscription: Some(subscription), update_mask };
            let updated = app.operator.subscriptions().update_subscription(request).await.expect("updated");
            updated.into_inner().subscription.expect("a subscription").signing_public_keys
        };
        let both = [SignatureScheme::StandardWebhooks, SignatureScheme::StandardWebhooksEd25519];
        let keys = update(&both).await;
        assert_eq!(keys.len(), 1);
        app.operator.emit(&tenant.id, "user.created", "{}").await;
        let request = receiver.wait_for(1).await.remove(0);
        let known = Known { secret: old.secrets[0].text.clone(), public_key: keys[0].clone() };
        let strangers = Item::captured(&request, &both, &strangers());
        verify(&[Item::captured(&request, &both, &known)], &[strangers]).await;

        // The key is kept, and shown only while the scheme is listed.
        assert_eq!(update(&both[..1]).await, [""; 0]);
        assert_eq!(update(&both[1..]).await, keys);
        app.stop().await;
    }
}
