//! The unsubscribe page over real HTTP: what a mail program does, what a person sees, what a forger
//! gets.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tidings::api::proto;
use tidings::domain::id::SubscriptionId;
use tidings::store::{Store, add_master_key};

use crate::support::http::{Answer, request};
use crate::support::mailing::Mailing;
use crate::support::process::{Served, operator_key};
use crate::support::{App, Client, Database, Receiver};

const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");
const ONE_CLICK: &[u8] = b"List-Unsubscribe=One-Click";

async fn get(addr: SocketAddr, path: &str) -> Answer {
    request(addr, ("GET", path), &[], b"").await
}

/// Until everything that is to be told was emitted.
async fn told_of(store: &Store) {
    let waiting = async {
        while !store.announcements(1).await.expect("read").is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(1), waiting).await.expect("emitted in time");
}

async fn post(addr: SocketAddr, path: &str, body: &[u8]) -> Answer {
    request(addr, ("POST", path), &[FORM], body).await
}

on_both! {
    async fn one_click_unsubscribes_and_looking_does_not(database: Database) {
        let app = App::start(database).await;
        let mailing = Mailing::of(&app, &["Jane@company.com"]).await;
        let receiver = Receiver::answering(200).await;
        app.operator.subscribe(mailing.tenant.as_str(), &["tidings.*"], &receiver.url()).await;
        let addr = app.running.http_addr();
        let path = mailing.path("Jane@company.com", Some(mailing.subscription));
        // What follows links (scanners, previews) changes nothing, however often.
        for method in ["GET", "HEAD", "GET"] {
            let page = request(addr, (method, &path), &[], b"").await;
            assert_eq!(page.status, 200, "{page:?}");
        }
        for method in ["PUT", "DELETE", "OPTIONS"] {
            let page = request(addr, (method, &path), &[FORM], ONE_CLICK).await;
            assert_eq!((page.status, page.header("allow")), (405, "GET, HEAD, POST"));
        }
        for body in [&b""[..], b"List-Unsubscribe=", b"x=y", &[0xff; 10]] {
            assert_eq!(post(addr, &path, body).await.status, 400);
        }
        assert_eq!(post(addr, &path, &[b'a'; 5_000]).await.status, 413);
        assert!(mailing.suppressed(&app.operator).await.is_empty());

        let page = get(addr, &path).await;
        for part in ["Unsubscribe?", "Acme &amp; Söhne", "Invoices &lt;monthly&gt;", "Jane@company.com", "value=\"unsubscribe\""] {
            assert!(page.body.contains(part), "{part} is not in {}", page.body);
        }
        assert!(!page.body.contains("<script") && !page.body.contains("http://") && !page.body.contains("https://"));
        for (name, value) in [
            ("cache-control", "no-store"), ("referrer-policy", "no-referrer"), ("x-frame-options", "DENY"),
            ("x-robots-tag", "noindex"), ("x-content-type-options", "nosniff"), ("content-type", "text/html; charset=utf-8"),
        ] {
            assert_eq!(page.header(name), value, "{name}");
        }
        let policy = page.header("content-security-policy");
        assert!(policy.starts_with("default-src 'none';") && policy.contains("frame-ancestors 'none'"), "{policy}");

        // A mail program's click, and again.
        for _ in 0..2 {
            let done = post(addr, &path, ONE_CLICK).await;
            assert_eq!(done.status, 200, "{done:?}");
            assert!(done.body.contains("You are unsubscribed"), "{}", done.body);
        }
        assert_eq!(mailing.suppressed(&app.operator).await, ["jane@company.com|one|UNSUBSCRIBED"]);
        assert!(get(addr, &path).await.body.contains("value=\"resubscribe\""));
        let told = receiver.wait_for(1).await.remove(0).json();
        assert_eq!((&told["type"], &told["data"]["reason"]), (&"tidings.recipient.suppressed".into(), &"UNSUBSCRIBED".into()));
        assert_eq!(told["data"]["subscription_id"], mailing.subscription.as_str());

        // And back.
        let done = post(addr, &path, b"action=resubscribe").await;
        assert!(done.body.contains("You are subscribed again"), "{}", done.body);
        assert!(mailing.suppressed(&app.operator).await.is_empty());
        let multipart = b"--x\r\nContent-Disposition: form-data; name=\"List-Unsubscribe\"\r\n\r\nOne-Click\r\n--x--\r\n";
        let headers = [("content-type", "multipart/form-data; boundary=x")];
        assert_eq!(request(addr, ("POST", &path), &headers, multipart).await.status, 200);
        assert_eq!(mailing.suppressed(&app.operator).await.len(), 1);
        app.stop().await;
    }
}

on_both! {
    async fn a_link_is_no_lever_to_flood_a_tenant(database: Database) {
        let app = App::start(database).await;
        let mailing = Mailing::of(&app, &["jane@company.com", "joe@company.com"]).await;
        let receiver = Receiver::answering(200).await;
        app.operator.subscribe(mailing.tenant.as_str(), &["tidings.*"], &receiver.url()).await;
        let (store, addr) = (&mailing.store, app.running.http_addr());
        let path = mailing.path("jane@company.com", Some(mailing.subscription));
        // Again while the event waits to be emitted, and again after that.
        for round in 1..=3 {
            for _ in 0..3 {
                post(addr, &path, ONE_CLICK).await;
                post(addr, &path, b"action=resubscribe").await;
            }
            told_of(store).await;
            let told = receiver.wait_for(1).await.len();
            // The hour may end meanwhile.
            assert!(told <= 2, "{told} events in round {round}");
        }
        post(addr, &path, ONE_CLICK).await;
        assert_eq!(mailing.suppressed(&app.operator).await, ["jane@company.com|one|UNSUBSCRIBED"]);
        // Another one's is told all the same, after those of the first.
        let before = receiver.requests().len();
        post(addr, &mailing.path("joe@company.com", Some(mailing.subscription)), ONE_CLICK).await;
        let told = receiver.wait_for(before + 1).await;
        assert_eq!(told.last().expect("one").json()["data"]["address"], "joe@company.com");
        app.stop().await;
    }
}

on_both! {
    async fn a_primary_contacts_link_is_for_all_mail(database: Database) {
        let app = App::start(database).await;
        let mailing = Mailing::of(&app, &["jane@company.com"]).await;
        let addr = app.running.http_addr();
        let (of_all, of_one) = (mailing.path("jane@company.com", None), mailing.path("jane@company.com", Some(mailing.subscription)));
        assert!(get(addr, &of_all).await.body.contains("This stops all mail"));
        post(addr, &of_all, b"action=unsubscribe").await;
        assert_eq!(mailing.suppressed(&app.operator).await, ["jane@company.com|all|UNSUBSCRIBED"]);
        // The other link shows it, too, and its owner can take it back there.
        assert!(get(addr, &of_one).await.body.contains("You are unsubscribed"));
        post(addr, &of_one, ONE_CLICK).await;
        assert_eq!(mailing.suppressed(&app.operator).await.len(), 2);
        assert!(post(addr, &of_one, b"action=resubscribe").await.body.contains("subscribed again"));
        assert!(mailing.suppressed(&app.operator).await.is_empty());
        app.stop().await;
    }
}

on_both! {
    async fn only_an_own_word_is_taken_back(database: Database) {
        let app = App::start(database).await;
        let mailing = Mailing::of(&app, &["jane@company.com"]).await;
        let delivery = mailing.deliveries(&app.operator).await.remove(0);
        let (addr, path) = (app.running.http_addr(), mailing.path("jane@company.com", Some(mailing.subscription)));
        post(addr, &path, ONE_CLICK).await;
        let bounced = proto::Feedback { kind: proto::FeedbackKind::Bounce.into(), delivery_id: delivery.id, ..Default::default() };
        let report = Some(proto::report_feedback_request::Report::Feedback(bounced));
        let request = proto::ReportFeedbackRequest { report, ..Default::default() };
        app.operator.suppressions().report_feedback(request).await.expect("taken");
        let page = post(addr, &path, b"action=resubscribe").await;
        assert!(page.body.contains("This address gets no mail") && !page.body.contains("<button"), "{}", page.body);
        assert_eq!(mailing.suppressed(&app.operator).await, ["jane@company.com|all|BOUNCED"]);
        app.stop().await;
    }
}

on_both! {
    async fn every_link_that_is_not_ours_is_answered_alike(database: Database) {
        let app = App::start(database).await;
        let mailing = Mailing::of(&app, &["jane@company.com"]).await;
        let gone = Mailing::of(&app, &["jane@company.com"]).await;
        let of_gone = gone.path("jane@company.com", Some(gone.subscription));
        let delete = proto::DeleteTenantRequest { tenant_id: gone.tenant.to_string(), force: true, ..Default::default() };
        app.operator.tenants().delete_tenant(delete).await.expect("deleted");
        let good = mailing.path("jane@company.com", Some(mailing.subscription));
        // The signature of one address under another, and a signature of one bit less or more.
        let signed = URL_SAFE_NO_PAD.decode(good.trim_start_matches("/unsubscribe/")).expect("Base64");
        let path = |bytes: &[u8]| format!("/unsubscribe/{}", URL_SAFE_NO_PAD.encode(bytes));
        assert_eq!(path(&signed), good);
        let at = signed.windows(4).position(|bytes| bytes == b"jane").expect("the address");
        let mut forged = signed.clone();
        forged[at..at + 4].copy_from_slice(b"john");
        let mut changed = signed.clone();
        *changed.last_mut().expect("bytes") ^= 1;
        let (forged, changed) = (path(&forged), path(&changed));
        let long = format!("/unsubscribe/{}", "A".repeat(4_000));
        let addr = app.running.http_addr();
        let expected = get(addr, "/unsubscribe/").await;
        assert_eq!(expected.status, 404);
        let body = |answer: &Answer| (answer.status, answer.body.clone());
        for path in [&*forged, &changed, &long, "/unsubscribe/x", "/unsubscribe/a/b", "/unsubscribe/%00", &format!("{good}A"), &of_gone] {
            assert_eq!(body(&get(addr, path).await), body(&expected), "{path}");
            assert_eq!(body(&post(addr, path, ONE_CLICK).await), body(&expected), "{path}");
        }
        // A subscription that is gone is no reason to refuse.
        let nobody = SubscriptionId::parse("sub_00000000000000000000000000").expect("an id");
        let of_nobody = mailing.path("jane@company.com", Some(nobody));
        assert_eq!(post(addr, &of_nobody, ONE_CLICK).await.status, 200);
        app.stop().await;
    }
}

on_both! {
    async fn links_outlive_a_rotation(database: Database) {
        let app = App::start(database).await;
        let mailing = Mailing::of(&app, &["jane@company.com"]).await;
        let (addr, old) = (app.running.http_addr(), mailing.path("jane@company.com", Some(mailing.subscription)));
        let key_file = app.database.key_file();
        add_master_key(&key_file).await.expect("added");
        // Made by another process under the new key, before this one has read it.
        let other = app.database.open().await;
        let newer = Mailing { store: other, tenant: mailing.tenant, subscription: mailing.subscription };
        let new = newer.path("jane@company.com", Some(mailing.subscription));
        assert_ne!(old, new);
        for path in [&old, &new] {
            assert_eq!(get(addr, path).await.status, 200);
        }
        app.stop().await;
    }
}

on_both! {
    async fn no_address_and_no_link_is_logged(database: Database) {
        let key = operator_key(&database).await;
        let secret = database.folder.path().join("bounces.secret");
        std::fs::write(&secret, "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3\n").expect("written");
        let secret = secret.display().to_string();
        // Also what is only said when it is asked for.
        let served = Served::start(&database, &["--bounce-secret-file", &secret, "--log-filter", "trace"]).await;
        let client = Client::connect(&served.endpoint, &key).await;
        let mailing = Mailing::on(&database, &client, &["canary.jane@company.com"]).await;
        let delivery = mailing.deliveries(&client).await.remove(0);
        let addr: SocketAddr = served.http.parse().expect("an address");
        let path = mailing.path("canary.jane@company.com", Some(mailing.subscription));
        for body in [ONE_CLICK, b"action=resubscribe"] {
            assert_eq!(post(addr, &path, body).await.status, 200);
        }
        assert_eq!(get(addr, &format!("{path}x")).await.status, 404);
        assert_eq!(post(addr, &path, b"canary.jane@company.com").await.status, 400);
        assert_eq!(post(addr, "/bounces", b"canary.jane@company.com").await.status, 401);
        let broken = b"{\"kind\":\"bounce\",\"address\":\"canary.jane@company.com\",\"x\":1}";
        assert_eq!(crate::bounces::post_signed(addr, "application/json", 0, broken).await.status, 400);
        let late = br#"{"kind":"delay","address":"canary.jane@company.com"}"#;
        assert_eq!(crate::bounces::post_signed(addr, "application/json", 0, late).await.status, 200);
        for address in ["canary.jane@company.com", "canary.jane@localhost"] {
            let suppression = proto::Suppression { tenant_id: mailing.tenant.to_string(), address: address.into(), ..Default::default() };
            let request = proto::CreateSuppressionRequest { suppression: Some(suppression) };
            let _ = client.suppressions().create_suppression(request).await;
            let tenant_id = mailing.tenant.to_string();
            let request = proto::DeleteSuppressionRequest { tenant_id, address: address.into(), ..Default::default() };
            let _ = client.suppressions().delete_suppression(request).await;
        }
        let bounce = crate::bounces::bounce(&delivery.id, "canary.jane@company.com", "failed", "5.1.1");
        let report = Some(proto::report_feedback_request::Report::Message(bounce.into()));
        let request = proto::ReportFeedbackRequest { report, ..Default::default() };
        let told = client.suppressions().report_feedback(request).await.expect("taken").into_inner();
        assert_eq!(told.outcome(), proto::FeedbackOutcome::Suppressed);
        served.signal("TERM").await;
        let (_, log) = served.wait().await;
        // The search finds what was logged of it.
        assert!(log.iter().any(|line| line.contains("a recipient has unsubscribed")), "{log:?}");
        let token = path.trim_start_matches("/unsubscribe/");
        for line in &log {
            assert!(!line.contains("canary.jane") && !line.contains(token), "{line}");
            // The secret of the reports, as it is written in the file.
            assert!(!line.contains("MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3"), "{line}");
        }
    }
}

/// The browser, where there is one.
fn chromium() -> Option<PathBuf> {
    let folders = std::env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome"];
    std::env::split_paths(&folders)
        .flat_map(|folder| names.map(|name| folder.join(name)))
        .find(|path| path.is_file())
}

/// A picture of a page: its width, its height, and whether it is dark.
async fn picture(
    browser: &Path,
    url: &str,
    path: &Path,
    (width, height, is_dark): (u32, u32, bool),
) {
    let profile = tempfile::tempdir().expect("a folder");
    let run = tokio::process::Command::new(browser)
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
        ])
        .args([
            "--force-device-scale-factor=2",
            "--no-first-run",
            "--disable-background-networking",
        ])
        .arg(format!("--blink-settings=preferredColorScheme={}", u8::from(!is_dark)))
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("--window-size={width},{height}"))
        .arg(format!("--screenshot={}", path.display()))
        .arg(url)
        .kill_on_drop(true)
        .output();
    let output =
        tokio::time::timeout(Duration::from_mins(2), run).await.expect("in time").expect("ran");
    let written = std::fs::read(path).unwrap_or_default();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(written.starts_with(b"\x89PNG") && written.len() > 10_000, "{error}");
}

/// Renders the page in a browser. `TIDINGS_TEST_IMAGES` says where the pictures are kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_shows_the_page() {
    let Some(browser) = chromium() else {
        eprintln!("skipped: there is no Chromium here");
        return;
    };
    let app = App::start(Database::sqlite().await).await;
    let mailing = Mailing::of(&app, &["jane.doe@company.com"]).await;
    let addr = app.running.http_addr();
    let path = mailing.path("jane.doe@company.com", Some(mailing.subscription));
    let temporary = tempfile::tempdir().expect("a folder");
    let folder =
        std::env::var_os("TIDINGS_TEST_IMAGES").map_or(temporary.path().into(), PathBuf::from);
    let url = format!("http://{addr}{path}");
    let file = |name: &str| folder.join(format!("unsubscribe-{name}.png"));
    picture(&browser, &url, &file("light"), (900, 620, false)).await;
    picture(&browser, &url, &file("phone-dark"), (500, 760, true)).await;
    post(addr, &path, ONE_CLICK).await;
    picture(&browser, &url, &file("done-dark"), (900, 620, true)).await;
    picture(&browser, &url, &file("done-phone"), (500, 760, false)).await;
    picture(&browser, &format!("http://{addr}/unsubscribe/x"), &file("unknown"), (900, 620, false))
        .await;
    // The style is let in by the policy: without it light and dark would be the same.
    assert_ne!(
        std::fs::read(file("light")).expect("there"),
        std::fs::read(file("done-dark")).expect("there")
    );
    app.stop().await;
}
