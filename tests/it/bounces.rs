//! What comes back: reports by RPC and over HTTP, in every form, with every signature checked.

use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use sha2::Sha256;
use tidings::api::proto::{self, FeedbackKind, FeedbackOutcome};
use tidings::config::Options;
use tidings::domain::feedback::webhook::SendGridKey;

use crate::support::app::options;
use crate::support::http::{Answer, request};
use crate::support::mailing::Mailing;
use crate::support::{App, Client, Database};

/// The returned mail of a delivery, as Exim writes it.
pub(crate) fn bounce(delivery_id: &str, recipient: &str, action: &str, status: &str) -> String {
    format!(
        "Return-path: <>\r\nTo: bounces@company.com\r\nFrom: Mail Delivery System <Mailer-Daemon@mx.company.com>\r\n\
         Subject: Mail delivery failed: returning message to sender\r\nMIME-Version: 1.0\r\n\
         Content-Type: multipart/report; report-type=delivery-status; boundary=\"1700000000-eximdsn-1\"\r\n\r\n\
         --1700000000-eximdsn-1\r\nContent-Type: text/plain; charset=us-ascii\r\n\r\n\
         A message that you sent could not be delivered.\r\n\r\n\
         --1700000000-eximdsn-1\r\nContent-Type: message/delivery-status\r\n\r\n\
         Reporting-MTA: dns; mx.company.com\r\n\r\nAction: {action}\r\nFinal-Recipient: rfc822;{recipient}\r\n\
         Status: {status}\r\nDiagnostic-Code: smtp; 550 {status} no such user\r\n\r\n\
         --1700000000-eximdsn-1\r\nContent-Type: message/rfc822\r\n\r\n\
         Message-ID: <{delivery_id}@tidings.company.com>\r\nFrom: Acme <tidings@company.com>\r\n\
         To: {recipient}\r\nSubject: Paid\r\n\r\nPaid.\r\n\r\n--1700000000-eximdsn-1--\r\n"
    )
}

fn complaint(delivery_id: &str) -> String {
    format!(
        "From: <fbl@isp.com>\r\nSubject: FW: Paid\r\nMIME-Version: 1.0\r\n\
         Content-Type: multipart/report; report-type=feedback-report; boundary=\"b\"\r\n\r\n\
         --b\r\nContent-Type: text/plain\r\n\r\nAn abuse report.\r\n\r\n\
         --b\r\nContent-Type: message/feedback-report\r\n\r\nFeedback-Type: abuse\r\nUser-Agent: Isp/1.0\r\nVersion: 1\r\n\r\n\
         --b\r\nContent-Type: text/rfc822-headers\r\n\r\nFrom: Acme <tidings@company.com>\r\n\
         Tidings-Delivery-Id: {delivery_id}\r\nMessage-ID: <rewritten@isp.com>\r\n\r\n--b--\r\n"
    )
}

async fn report(client: &Client, message: &str) -> FeedbackOutcome {
    let report = proto::report_feedback_request::Report::Message(message.to_owned().into());
    let request = proto::ReportFeedbackRequest { report: Some(report), ..Default::default() };
    client.suppressions().report_feedback(request).await.expect("taken").into_inner().outcome()
}

on_both! {
    async fn a_returned_mail_suppresses_its_address_and_nobody_else(database: Database) {
        let app = App::start(database).await;
        let mailing = Mailing::of(&app, &["ann@company.com", "bob@company.com", "Cat@company.com"]).await;
        let deliveries = mailing.deliveries(&app.operator).await;
        let id = |of: &str| {
            let found = deliveries.iter().find(|delivery| delivery.recipient == of);
            found.expect("a delivery").id.as_str()
        };
        let nobody = "dlv_00000000000000000000000000";
        for (message, outcome) in [
            (bounce(id("ann@company.com"), "ann@company.com", "delayed", "4.4.1"), FeedbackOutcome::Temporary),
            (bounce(id("ann@company.com"), "ann@company.com", "failed", "4.4.7"), FeedbackOutcome::Temporary),
            (bounce(id("ann@company.com"), "ann@company.com", "failed", "5.2.2"), FeedbackOutcome::Temporary),
            (bounce(id("ann@company.com"), "member@list.com", "failed", "5.1.1"), FeedbackOutcome::OtherAddress),
            (bounce(nobody, "ann@company.com", "failed", "5.1.1"), FeedbackOutcome::UnknownDelivery),
            ("Subject: away\r\n\r\nUntil Monday.".into(), FeedbackOutcome::NotAReport),
            (String::new(), FeedbackOutcome::NotAReport),
        ] {
            assert_eq!(report(&app.operator, &message).await, outcome, "{message}");
        }
        assert!(mailing.suppressed(&app.operator).await.is_empty());
        let bounced = bounce(id("Cat@company.com"), "cat@COMPANY.com", "failed", "5.1.1");
        assert_eq!(report(&app.operator, &bounced).await, FeedbackOutcome::Suppressed);
        assert_eq!(report(&app.operator, &bounced).await, FeedbackOutcome::AlreadySuppressed);
        assert_eq!(report(&app.operator, &complaint(id("bob@company.com"))).await, FeedbackOutcome::Suppressed);
        let expected = ["bob@company.com|all|COMPLAINED", "cat@company.com|all|BOUNCED"];
        assert_eq!(mailing.suppressed(&app.operator).await, expected);
        app.stop().await;
    }
}

on_both! {
    async fn a_tenant_reports_on_its_own_deliveries_alone(database: Database) {
        let app = App::start(database).await;
        let victim = Mailing::of(&app, &["ann@company.com"]).await;
        let foreign = victim.deliveries(&app.operator).await.remove(0);
        let own = Mailing::of(&app, &["ann@company.com"]).await;
        let delivery = own.deliveries(&app.operator).await.remove(0);
        let api_key = proto::ApiKey {
            tenant_id: own.tenant.to_string(), display_name: "t".into(), scopes: vec!["subscriptions:write".into()],
            ..Default::default()
        };
        let request = proto::CreateApiKeyRequest { api_key: Some(api_key) };
        let secret = app.operator.tenants().create_api_key(request).await.expect("created").into_inner().secret;
        let tenant = Client::on(app.operator.channel.clone(), &secret);
        let of_foreign = report(&tenant, &bounce(&foreign.id, "ann@company.com", "failed", "5.1.1")).await;
        let unreal = "dlv_00000000000000000000000000";
        let of_nobody = report(&tenant, &bounce(unreal, "ann@company.com", "failed", "5.1.1")).await;
        assert_eq!((of_foreign, of_nobody), (FeedbackOutcome::UnknownDelivery, FeedbackOutcome::UnknownDelivery));
        assert!(victim.suppressed(&app.operator).await.is_empty());
        let outcome = report(&tenant, &bounce(&delivery.id, "ann@company.com", "failed", "5.1.1")).await;
        assert_eq!(outcome, FeedbackOutcome::Suppressed);
        // An address alone is enough for who says whose it is.
        let fields = |tenant_id: &str| proto::ReportFeedbackRequest {
            tenant_id: tenant_id.into(),
            report: Some(proto::report_feedback_request::Report::Feedback(proto::Feedback {
                kind: FeedbackKind::Complaint.into(), address: "zoe@company.com".into(), ..Default::default()
            })),
        };
        let told = tenant.suppressions().report_feedback(fields("")).await.expect("taken").into_inner();
        assert_eq!(told.outcome(), FeedbackOutcome::Suppressed);
        let refused = app.operator.suppressions().report_feedback(fields("")).await.expect_err("whose?");
        assert_eq!(crate::support::app::explain(&refused).2, ["tenant_id"]);
        assert_eq!(own.suppressed(&app.operator).await, ["ann@company.com|all|BOUNCED", "zoe@company.com|all|COMPLAINED"]);
        assert!(victim.suppressed(&app.operator).await.is_empty());
        app.stop().await;
    }
}

const SECRET: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3";

/// Options with a secret for reports in our own form.
fn with_secret(database: &Database) -> Options {
    let file = database.folder.path().join("bounces.secret");
    std::fs::write(&file, format!("# for the mail server\nwhsec_{SECRET}\n")).expect("written");
    Options { bounce_secret_file: Some(file), ..options(database) }
}

/// Signed as others would do it: no code of ours.
fn signature(timestamp: i64, body: &[u8]) -> String {
    let key = STANDARD.decode(SECRET).expect("Base64");
    let mac = Hmac::<Sha256>::new_from_slice(&key).expect("a key");
    let mac = mac.chain_update(format!("msg_1.{timestamp}.")).chain_update(body);
    format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
}

async fn post(app: &App, content_type: &str, age_secs: i64, body: &[u8]) -> Answer {
    post_signed(app.running.http_addr(), content_type, age_secs, body).await
}

pub(crate) async fn post_signed(
    addr: SocketAddr,
    content_type: &str,
    age_secs: i64,
    body: &[u8],
) -> Answer {
    let timestamp = now() - age_secs;
    let signature = signature(timestamp, body);
    let timestamp = timestamp.to_string();
    let headers = [
        ("content-type", content_type),
        ("webhook-id", "msg_1"),
        ("webhook-timestamp", &timestamp),
        ("webhook-signature", &signature),
    ];
    request(addr, ("POST", "/bounces"), &headers, body).await
}

fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(since.expect("after 1970").as_secs()).expect("small")
}

on_both! {
    async fn reports_are_posted_as_json_or_as_mail(database: Database) {
        let options = with_secret(&database);
        let app = App::start_with(database, &options).await;
        let mailing = Mailing::of(&app, &["ann@company.com", "bob@company.com", "cat@company.com"]).await;
        let deliveries = mailing.deliveries(&app.operator).await;
        let (ann, bob, cat) = (&deliveries[0].id, &deliveries[1].id, &deliveries[2].id);
        let json = format!(
            r#"[{{"kind":"bounce","delivery_id":"{ann}","status":"4.2.2"}},
                {{"kind":"bounce","message_id":"<{ann}@tidings.company.com>","status":"5.1.1","detail":"no such user"}},
                {{"kind":"complaint","delivery_id":"{ann}"}},
                {{"kind":"bounce","message_id":"<not-ours@company.com>","address":"ann@company.com"}}]"#
        );
        let answer = post(&app, "application/json; charset=utf-8", 0, json.as_bytes()).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.body, r#"{"outcomes":["TEMPORARY","SUPPRESSED","ALREADY_SUPPRESSED","UNKNOWN_DELIVERY"]}"#);
        let mail = bounce(bob, "bob@company.com", "failed", "5.1.1");
        let answer = post(&app, "message/rfc822", 0, mail.as_bytes()).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, r#"{"outcomes":["SUPPRESSED"]}"#));
        // The message's own header as the request's.
        let mail = bounce(cat, "cat@company.com", "failed", "5.1.1");
        let (head, body) = mail.split_once("\r\n\r\n").expect("a body");
        let content_type = head.lines().find_map(|line| line.strip_prefix("Content-Type: ")).expect("a type");
        let answer = post(&app, content_type, 0, body.as_bytes()).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, r#"{"outcomes":["SUPPRESSED"]}"#));
        let expected = ["ann", "bob", "cat"].map(|name| format!("{name}@company.com|all|BOUNCED"));
        assert_eq!(mailing.suppressed(&app.operator).await, expected);
        app.stop().await;
    }
}

on_both! {
    async fn what_is_not_signed_or_too_large_is_not_read(database: Database) {
        let options = with_secret(&database);
        let app = App::start_with(database, &options).await;
        let mailing = Mailing::of(&app, &["ann@company.com"]).await;
        let delivery = mailing.deliveries(&app.operator).await.remove(0);
        let body = format!(r#"{{"kind":"bounce","delivery_id":"{}"}}"#, delivery.id);
        let addr = app.running.http_addr();
        let (time, old) = (now().to_string(), (now() - 3_600).to_string());
        let good = signature(now(), body.as_bytes());
        let of_old = signature(now() - 3_600, body.as_bytes());
        let of_other = signature(now(), b"{}");
        for (timestamp, signed) in [("", ""), (&*time, ""), (&*time, "v1,AAAA"), (&*old, &*of_old), (&*old, &*good), (&*time, &*of_other), ("x", &*good)] {
            let headers = [("content-type", "application/json"), ("webhook-id", "msg_1"), ("webhook-timestamp", timestamp), ("webhook-signature", signed)];
            let answer = request(addr, ("POST", "/bounces"), &headers, body.as_bytes()).await;
            assert_eq!(answer.status, 401, "{timestamp} {signed}: {answer:?}");
        }
        let unsigned = request(addr, ("POST", "/bounces"), &[], body.as_bytes()).await;
        assert_eq!(unsigned.status, 401);
        assert!(mailing.suppressed(&app.operator).await.is_empty(), "nothing of that had an effect");
        for (content_type, body, status) in [
            ("text/plain", &b"{}"[..], 415),
            ("application/json", b"{", 400),
            ("application/json", b"{\"kind\":\"nonsense\"}", 400),
        ] {
            assert_eq!(post(&app, content_type, 0, body).await.status, status, "{content_type}");
        }
        let large = vec![b' '; 2 * 1024 * 1024 + 1];
        assert_eq!(post(&app, "application/json", 0, &large).await.status, 413);
        let got = request(addr, ("GET", "/bounces"), &[], b"").await;
        assert_eq!((got.status, got.header("allow")), (405, "POST"));
        // SendGrid is not configured, and it is said what would have to be.
        let answer = request(addr, ("POST", "/bounces/sendgrid"), &[], b"[]").await;
        assert_eq!((answer.status, answer.body.contains("sendgrid-key")), (404, true), "{answer:?}");
        let app = App::start(app.stop().await).await;
        let answer = post(&app, "application/json", 0, b"{}").await;
        assert_eq!((answer.status, answer.body.contains("bounce-secret-file")), (404, true), "{answer:?}");
        app.stop().await;
    }
}

on_both! {
    async fn sendgrids_events_are_taken_with_its_signature(database: Database) {
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_ASN1_SIGNING;
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).expect("a key");
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).expect("a key");
        // What the settings of SendGrid show: a SubjectPublicKeyInfo.
        let head = STANDARD.decode("MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgA=").expect("Base64");
        let key = SendGridKey::parse(&STANDARD.encode([&head, pair.public_key().as_ref()].concat())).expect("a key");
        let options = Options { sendgrid_key: Some(key), ..options(&database) };
        let app = App::start_with(database, &options).await;
        let mailing = Mailing::of(&app, &["ann@company.com", "bob@company.com"]).await;
        let deliveries = mailing.deliveries(&app.operator).await;
        let (ann, bob) = (&deliveries[0].id, &deliveries[1].id);
        let body = format!(
            "[{{\"email\":\"ann@company.com\",\"timestamp\":1700000000,\"smtp-id\":\"<{ann}@tidings.company.com>\",\
             \"event\":\"bounce\",\"category\":[\"x\"],\"sg_event_id\":\"e\",\"sg_message_id\":\"m\",\
             \"reason\":\"550 5.1.1 no such user\",\"status\":\"5.1.1\",\"type\":\"bounce\"}},\r\n\
             {{\"email\":\"bob@company.com\",\"smtp-id\":\"<{bob}@tidings.company.com>\",\"event\":\"delivered\",\"response\":\"250\"}},\r\n\
             {{\"email\":\"bob@company.com\",\"smtp-id\":\"<{bob}@tidings.company.com>\",\"event\":\"group_unsubscribe\"}}]\r\n"
        );
        let send = async |body: &str, signed: &str| {
            let timestamp = now().to_string();
            let content = [timestamp.as_bytes(), signed.as_bytes()].concat();
            let signature = STANDARD.encode(pair.sign(&random, &content).expect("signed").as_ref());
            let headers = [
                ("content-type", "application/json"),
                ("X-Twilio-Email-Event-Webhook-Signature", signature.as_str()),
                ("X-Twilio-Email-Event-Webhook-Timestamp", timestamp.as_str()),
            ];
            request(app.running.http_addr(), ("POST", "/bounces/sendgrid"), &headers, body.as_bytes()).await
        };
        assert_eq!(send(&body, &body.replace("5.1.1", "5.1.2")).await.status, 401);
        assert!(mailing.suppressed(&app.operator).await.is_empty());
        let answer = send(&body, &body).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, r#"{"outcomes":["SUPPRESSED","SUPPRESSED"]}"#));
        let expected = ["ann@company.com|all|BOUNCED", "bob@company.com|one|UNSUBSCRIBED"];
        assert_eq!(mailing.suppressed(&app.operator).await, expected);
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_secret_is_told_at_the_start_and_never_shown() {
    let database = Database::sqlite().await;
    let file = database.folder.path().join("bounces.secret");
    std::fs::write(&file, "whsec_hunter2\n").expect("written");
    for path in [file, database.folder.path().join("missing")] {
        let config = Options { bounce_secret_file: Some(path), ..options(&database) }.config();
        let error = tidings::app::start(config).await.err().expect("refused").to_string();
        assert!(error.starts_with("--bounce-secret-file "), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}
