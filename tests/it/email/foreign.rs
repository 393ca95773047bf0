//! Mail to a server that others wrote (aiosmtpd), read by libraries that others wrote (Python's
//! `email`, dkimpy).

use std::path::Path;
use std::process::Stdio;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use rcgen::PublicKeyData;
use serde_json::{Value, json};
use tempfile::TempDir;
use tidings::api::proto::{DeliveryState, ErrorKind};
use tidings::channel::email;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout};

use super::{by_way_of, channel, only, start, subscribed};
use crate::support::Database;
use crate::support::authority::{Authority, params};
use crate::support::foreign::{PATIENCE, ask, python};

/// An RSA key of the tests alone, and the record that publishes it.
const RSA_KEY: &str = include_str!("dkim_rsa.pem");
const RSA_RECORD: &str = include_str!("dkim_rsa.txt");

/// The server, with STARTTLS and a log-in; it ends when it is dropped.
struct Server {
    port: u64,
    folder: TempDir,
    lines: Lines<BufReader<ChildStdout>>,
    _child: Child,
}

impl Server {
    /// Starts a server whose certificate is of `authority`.
    async fn start(authority: &Authority, answers: Value) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (certificate, key) = authority.certificate(&params(&["localhost", "127.0.0.1"]));
        let file = |name: &str, content: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, content).expect("written");
            path
        };
        let settings = json!({
            "folder": folder.path(),
            "certificate": file("certificate.pem", &certificate),
            "key": file("key.pem", &key),
            "user": "tidings@company.com",
            "password": "a secret: 100%",
            "answers": answers,
        });
        let mut command = python("tests/foreign/smtp_server.py");
        command.env("SMTP_SERVER", settings.to_string());
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("started");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut server = Self { port: 0, folder, lines, _child: child };
        server.port = server.report().await["port"].as_u64().expect("a port");
        server
    }

    /// The next line that it prints.
    async fn report(&mut self) -> Value {
        let line = tokio::time::timeout(PATIENCE, self.lines.next_line()).await.expect("in time");
        serde_json::from_str(&line.expect("readable").expect("no end")).expect("JSON")
    }

    /// How mail is sent to it, by whoever knows this password.
    fn configured(&self, password: &str, authority: Option<&Authority>) -> email::Config {
        let url = format!(
            "smtp://tidings%40company.com:{password}@127.0.0.1:{}?starttls=required",
            self.port
        );
        let ca_file = authority.map(|authority| authority.path().to_owned());
        email::Config { ca_file, ..by_way_of(&[&url]) }
    }

    fn message(&self, report: &Value) -> Vec<u8> {
        let name = report["file"].as_str().expect("a name");
        std::fs::read(self.folder.path().join(name)).expect("a file")
    }
}

const PASSWORD: &str = "a%20secret:%20100%25";

/// Two keys that sign side by side, and the records that publish them.
fn signing(folder: &Path) -> (Vec<email::DkimKey>, Value) {
    let ed25519 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
    let record = format!("v=DKIM1; k=ed25519; p={}", BASE64.encode(ed25519.der_bytes()));
    let keys = [("rsa", RSA_KEY.to_owned()), ("ed", ed25519.serialize_pem())];
    let keys = keys.map(|(selector, pem)| {
        let file = folder.join(format!("{selector}.pem"));
        std::fs::write(&file, pem).expect("written");
        email::DkimKey { file, selector: selector.to_owned() }
    });
    let records = json!({
        "rsa._domainkey.tidings.company.com": RSA_RECORD.trim(),
        "ed._domainkey.tidings.company.com": record,
    });
    (keys.into(), records)
}

/// The values of a header that was read.
fn header<'a>(read: &'a Value, name: &str) -> Vec<&'a str> {
    let headers = read["headers"].as_array().expect("headers");
    let named = headers.iter().filter(|header| header[0] == name);
    named.map(|header| header[1].as_str().expect("a value")).collect()
}

on_both! {
    async fn a_real_server_takes_mail_that_libraries_read_and_verify(database: Database) {
        let authority = Authority::new();
        let answers = json!({ "rcpt ada@company.com": ["450 4.2.1 greylisted"], "data": ["451 4.3.0 later"] });
        let mut server = Server::start(&authority, answers).await;
        let keys = tempfile::tempdir().expect("a folder");
        let (dkim_keys, records) = signing(keys.path());
        let email = email::Config { dkim_keys, ..server.configured(PASSWORD, Some(&authority)) };
        let app = start(database, email).await;
        let (tenant, subscription) = subscribed(&app, channel(&["ada@company.com"])).await;
        let data = r#"{"message":"Zoë says „hi“","amount":"12.30","city":"東京","note":".\r\n.","url":"https://company.com/invoices/7?a=1&b=2","long":"{long}"}"#;
        let data = data.replace("{long}", &"very long ".repeat(300));
        let event = app.operator.emit(&tenant.id, "billing.invoice_paid", &data).await;

        let (delivery, attempts) = only(&app, &tenant.id, &event.event_id).await;
        assert_eq!(delivery.state(), DeliveryState::Succeeded, "{attempts:?}");
        let replies: Vec<_> = attempts.iter().map(|attempt| attempt.smtp_reply.as_str()).collect();
        assert_eq!(replies, ["450 4.2.1 greylisted", "451 4.3.0 later", "250 2.0.0 Ok: kept as 1.eml"]);
        let report = server.report().await;
        let expected = json!({
            "file": "1.eml", "sender": "no-reply@tidings.company.com",
            "recipients": ["ada@company.com"], "tls": true, "user": "tidings@company.com",
        });
        assert_eq!(report, expected);

        let message = server.message(&report);
        let item = json!({ "message_base64": BASE64.encode(&message), "records": records });
        let read = ask(python("tests/foreign/read_mail.py"), &[item]).await.remove(0);
        assert_eq!(read["defects"], json!([]), "{}", String::from_utf8_lossy(&message));
        assert_eq!(read["type"], "multipart/alternative");
        let created = delivery.create_time.expect("a time").seconds;
        for (name, value) in [
            ("From", "Tidings <no-reply@tidings.company.com>".to_owned()),
            ("To", "ada@company.com".to_owned()),
            ("Subject", "Billing invoice paid".to_owned()),
            // Not that of the attempt.
            ("Date", jiff::Timestamp::from_second(created).expect("a time").strftime("%a, %d %b %Y %H:%M:%S +0000").to_string()),
            ("Message-ID", format!("<{}@tidings.company.com>", delivery.id)),
            ("Auto-Submitted", "auto-generated".to_owned()),
            ("List-Id", format!("<{}.tidings.company.com>", subscription.id)),
            ("Feedback-ID", format!("{}:{}:billing.invoice_paid:tidings", subscription.id, tenant.id)),
            ("Tidings-Delivery-Id", delivery.id.clone()),
            ("Tidings-Event-Type", "billing.invoice_paid".to_owned()),
            ("MIME-Version", "1.0".to_owned()),
        ] {
            assert_eq!(header(&read, name), [value], "{name}");
        }

        // Text first: the last part is the one that readers prefer.
        let parts = read["parts"].as_array().expect("parts");
        let types: Vec<_> = parts.iter().map(|part| (&part["type"], &part["charset"])).collect();
        assert_eq!(types, [(&json!("text/plain"), &json!("utf-8")), (&json!("text/html"), &json!("utf-8"))]);
        let (text, html) = (parts[0]["content"].as_str().expect("text"), parts[1]["content"].as_str().expect("HTML"));
        for shown in ["Zoë says „hi“", "12.30", "東京"] {
            assert!(text.contains(shown) && html.contains(shown), "{shown} in {text}\n{html}");
        }
        assert!(text.contains("https://company.com/invoices/7?a=1&b=2"), "{text}");
        assert!(html.contains(r#"href="https://company.com/invoices/7?a=1&amp;b=2""#), "{html}");

        let signatures = read["dkim"].as_array().expect("signatures");
        let algorithms: Vec<_> = signatures.iter().map(|signature| &signature["algorithm"]).collect();
        assert_eq!(algorithms, ["rsa-sha256", "ed25519-sha256"]);
        for signature in signatures {
            assert_eq!(signature["verified"], true, "{signature}");
            let forgeries = signature["forgeries"].as_object().expect("forgeries");
            assert_eq!(forgeries.len(), 18, "{forgeries:?}");
            assert!(forgeries.values().all(|verified| *verified == false), "{signature}");
        }
        app.stop().await;
    }
}

on_both! {
    async fn a_certificate_of_nobody_we_trust_gets_no_mail(database: Database) {
        let (theirs, ours) = (Authority::new(), Authority::named("another one"));
        let server = Server::start(&theirs, json!({})).await;
        let app = start(database, server.configured(PASSWORD, Some(&ours))).await;
        let (tenant, _) = subscribed(&app, channel(&["ada@company.com"])).await;
        let event = app.operator.emit(&tenant.id, "billing.paid", "{}").await;
        let (delivery, attempts) = only(&app, &tenant.id, &event.event_id).await;
        assert_eq!(delivery.state(), DeliveryState::Failed);
        assert_eq!(attempts.len(), 6, "it may be mended");
        for attempt in attempts {
            assert_eq!((attempt.error_kind(), attempt.smtp_reply.as_str()), (ErrorKind::Tls, ""));
        }
        assert!(!server.folder.path().join("1.eml").exists());
        app.stop().await;
    }
}

on_both! {
    async fn a_wrong_password_is_ours_to_mend_and_blames_no_recipient(database: Database) {
        let authority = Authority::new();
        let mut server = Server::start(&authority, json!({})).await;
        let app = start(database, server.configured("wrong", Some(&authority))).await;
        let (tenant, subscription) = subscribed(&app, channel(&["ada@company.com"])).await;
        let event = app.operator.emit(&tenant.id, "billing.paid", "{}").await;
        assert_eq!(server.report().await, json!({ "refused": "tidings@company.com" }));
        let (_, attempts) = only(&app, &tenant.id, &event.event_id).await;
        for attempt in &attempts {
            assert_eq!(attempt.error_kind(), ErrorKind::Configuration, "{attempt:?}");
            assert!(attempt.smtp_reply.starts_with("535 5.7.8"), "{attempt:?}");
            assert!(!format!("{attempt:?}").contains("wrong"), "no password is shown: {attempt:?}");
        }
        // With the right one the same address gets its mail.
        let mut config = crate::support::app::options(&app.database).config();
        let database = app.stop().await;
        config.email = server.configured(PASSWORD, Some(&authority));
        let app = crate::support::App::start_configured(database, config).await;
        let event = app.operator.emit(&subscription.tenant_id, "billing.paid", "{}").await;
        let (delivery, _) = only(&app, &tenant.id, &event.event_id).await;
        assert_eq!(delivery.state(), DeliveryState::Succeeded);
        app.stop().await;
    }
}
