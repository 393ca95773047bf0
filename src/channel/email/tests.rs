//! Attempts on the wire, against a server that does what a script says.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;
use crate::domain::attempt::Trigger;
use crate::domain::channel::Channel;
use crate::domain::event::Event;
use crate::domain::id::{DeliveryId, EventId, SubscriptionId, TenantId};
use crate::domain::subscription::{State, Subscription, SubscriptionSpec};
use crate::domain::tenant::{Tenant, TenantSpec};
use crate::domain::trace::TraceContext;

use smtp::{Act, CONTENT, GREETING, SmtpServer};

#[expect(dead_code, reason = "the tests of the whole service use all of it")]
#[path = "../../../tests/it/support/smtp.rs"]
mod smtp;

/// 2026-11-21 15:49 in UTC.
const NOW: Timestamp = Timestamp::from_micros(1_795_276_140_000_000);
/// How long a busy machine may take.
const PATIENCE: Duration = Duration::from_mins(1);

/// A steady clock from [`NOW`] on.
struct Steady(Instant);

impl Clock for Steady {
    #[expect(clippy::disallowed_methods, reason = "this is where a test's clock comes from")]
    fn now(&self) -> Timestamp {
        NOW.plus(self.0.elapsed())
    }
}

fn mailer(urls: &[String]) -> Mailer {
    with(urls, |_| {})
}

#[expect(clippy::disallowed_methods, reason = "this is where a test's clock comes from")]
fn with(urls: &[String], change: impl FnOnce(&mut Config)) -> Mailer {
    let mut config = Config {
        servers: urls.iter().map(|url| url.parse().expect("a server")).collect(),
        sender: Some("Tidings <no-reply@tidings.company.com>".parse().expect("a sender")),
        ..Config::default()
    };
    change(&mut config);
    Mailer::new(&config, Arc::new(Steady(Instant::now())), &mut Registry::default())
        .expect("a mailer")
}

fn task() -> Task {
    let trace = TraceContext::root(&mut StdRng::seed_from_u64(7));
    let tenant_id = TenantId::first_at(NOW);
    let event = Event {
        id: EventId::first_at(NOW),
        tenant_id,
        event_type: "billing.paid".to_owned(),
        subject: "INV-7\r\nBcc: all@company.com".to_owned(),
        data: r#"{"message":"Grüße\r\n.\r\nMAIL FROM:<x>","n":1}"#.into(),
        labels: BTreeMap::new(),
        occur_time: NOW,
        create_time: NOW,
        deliver_time: None,
        expire_time: None,
        trace,
    };
    let spec = TenantSpec { display_name: "Acme".to_owned(), ..TenantSpec::default() };
    let (create_time, update_time) = (NOW, NOW);
    let tenant =
        Tenant { id: tenant_id, spec, unreadable: false, revision: 1, create_time, update_time };
    let subscription = Subscription {
        id: SubscriptionId::first_at(NOW),
        tenant_id,
        spec: SubscriptionSpec {
            display_name: String::new(),
            event_types: Vec::new(),
            channel: Channel::Email(EmailChannel::default()),
            retry_policy: None,
            labels: BTreeMap::new(),
        },
        state: State::Active,
        disable_reason: None,
        unreadable: false,
        secrets: Vec::new(),
        revision: 1,
        create_time,
        update_time,
    };
    Task {
        delivery_id: DeliveryId::first_at(NOW),
        number: 1,
        trigger: Trigger::Automatic,
        event: Arc::new(event),
        tenant: Arc::new(tenant),
        subscription: Arc::new(subscription),
        recipient: "ada@Company.com".to_owned(),
        create_time: NOW,
        email_template: String::new(),
        unsubscribe_url: "https://tidings.company.com/unsubscribe/secret".to_owned(),
        digest: Vec::new(),
        trace,
    }
}

/// Waits for a turn, and makes the attempt in it.
async fn in_turn(mailer: &Mailer, task: &Task) -> Report {
    let turn = mailer.turn(task).await.expect("a turn");
    mailer.attempt(task, &EmailChannel::default(), Some(turn)).await
}

async fn attempt(mailer: &Mailer, task: &Task) -> Report {
    let settings = EmailChannel::default();
    let attempt = mailer.attempt(task, &settings, None);
    tokio::time::timeout(PATIENCE, attempt).await.expect("an attempt ends")
}

/// A server that acts once by each of `acts`, and takes everything else.
async fn server(acts: &[Act]) -> (String, SmtpServer) {
    let server = SmtpServer::acting(acts).await;
    (server.url().to_owned(), server)
}

/// The contents that it was given, and how often somebody connected to it.
fn seen(server: &SmtpServer) -> (Vec<String>, usize) {
    let contents = server.given().into_iter().map(|given| given.content).collect();
    (contents, server.commands(GREETING).len())
}

fn told(report: &Report) -> Option<ErrorKind> {
    report.failure.as_ref().map(|failure| failure.kind)
}

const RETRY: Outcome = Outcome::Retry { retry_after: None };

#[tokio::test]
async fn a_message_has_what_readers_need() {
    let (url, relay) = server(&[]).await;
    let task = task();
    let report = attempt(&mailer(&[url]), &task).await;
    assert_eq!((&report.outcome, told(&report)), (&Outcome::Delivered, None));
    assert_eq!(report.smtp_reply, "250 2.0.0 Ok: queued as 7");
    let (messages, _) = seen(&relay);
    let [message] = &messages[..] else { panic!("one message") };
    let (head, body) = message.split_once("\r\n\r\n").expect("a head");
    let (delivery, subscription) = (task.delivery_id, task.subscription.id);
    for line in [
        "From: Tidings <no-reply@tidings.company.com>".to_owned(),
        "To: ada@company.com".to_owned(),
        "Subject: Billing paid: INV-7 Bcc: all@company.com".to_owned(),
        "Date: Sat, 21 Nov 2026 15:49:00 +0000".to_owned(),
        format!("Message-ID: <{delivery}@tidings.company.com>"),
        format!("List-Id: <{subscription}.tidings.company.com>"),
        "List-Unsubscribe: <https://tidings.company.com/unsubscribe/secret>".to_owned(),
        "List-Unsubscribe-Post: List-Unsubscribe=One-Click".to_owned(),
        "Auto-Submitted: auto-generated".to_owned(),
        format!("Tidings-Delivery-Id: {delivery}"),
        "Tidings-Event-Type: billing.paid".to_owned(),
        "MIME-Version: 1.0".to_owned(),
    ] {
        assert!(head.replace("\r\n ", " ").split("\r\n").any(|it| it == line), "{line} in {head}");
    }
    assert!(!head.split("\r\n").any(|line| line.starts_with("Bcc")), "{head}");
    let (text, html) = (body.find("text/plain"), body.find("text/html"));
    assert!(text.is_some() && text < html, "{body}");
    assert!(message.split("\r\n").all(|line| line.len() <= 998 && !line.contains('\r')));
    let recorded = format!("{:?}", report.request_headers);
    assert!(recorded.contains("Message-ID") && !recorded.contains("secret"), "{recorded}");
}

#[tokio::test]
async fn refusals_mean_what_the_table_says() {
    use Act::Say;
    use ErrorKind::{Configuration, Smtp};
    for (act, outcome, kind) in [
        (Say("MAIL", "421 4.3.2 closing"), RETRY, Smtp),
        (Say("MAIL", "550 5.7.1 who are you"), RETRY, Configuration),
        (Say("RCPT", "450 4.2.1 greylisted"), RETRY, Smtp),
        (Say("RCPT", "550 5.1.1 no such user"), Outcome::Bounced, Smtp),
        (Say("RCPT", "552 5.2.2 full"), Outcome::Permanent, Smtp),
        (Say("RCPT", "554 5.7.1 policy"), Outcome::Permanent, Smtp),
        (Say("DATA", "554 no valid recipients"), Outcome::Permanent, Smtp),
        (Say(CONTENT, "451 4.3.0 later"), RETRY, Smtp),
        (Say(CONTENT, "552 5.3.4 too large"), Outcome::Permanent, Smtp),
        (Say(CONTENT, "554 5.7.1 spam"), Outcome::Permanent, Smtp),
        (Say(GREETING, "554 go away"), RETRY, Configuration),
    ] {
        let (url, _relay) = server(&[act]).await;
        let mailer = mailer(&[url]);
        let report = attempt(&mailer, &task()).await;
        assert_eq!((&report.outcome, told(&report)), (&outcome, Some(kind)), "{act:?}");
        let Say(_, reply) = act else { unreachable!() };
        assert_eq!(report.smtp_reply, reply, "{act:?}");
        // The next one is taken, whatever became of the session.
        assert_eq!(attempt(&mailer, &task()).await.outcome, Outcome::Delivered, "{act:?}");
    }
}

#[tokio::test]
async fn a_drop_is_retried_with_the_same_bytes() {
    for at in [CONTENT, "DATA", "RCPT", "EHLO", GREETING] {
        let (url, relay) = server(&[Act::Drop(at)]).await;
        let mailer = mailer(&[url]);
        let first = attempt(&mailer, &task()).await;
        assert_eq!((&first.outcome, told(&first).is_some()), (&RETRY, true), "{at}");
        let again = Task { number: 2, ..task() };
        assert_eq!(attempt(&mailer, &again).await.outcome, Outcome::Delivered, "{at}");
        let (messages, _) = seen(&relay);
        assert!(messages.iter().all(|message| *message == messages[0]), "{at}");
        assert_eq!(messages.len(), if at == CONTENT { 2 } else { 1 }, "{at}");
    }
}

#[tokio::test]
async fn the_next_relay_is_asked_but_never_after_the_content() {
    for (act, takes) in [
        (Act::Drop(GREETING), 1),
        (Act::Say("MAIL", "550 no"), 1),
        (Act::Say("RCPT", "421 closing"), 1),
        (Act::Hang("EHLO"), 1),
        (Act::Drop(CONTENT), 0),
        (Act::Say("RCPT", "550 5.1.1 no"), 0),
    ] {
        let ((first, _relay), (second, relay)) = (server(&[act]).await, server(&[]).await);
        let report = attempt(&mailer(&[first, second]), &task()).await;
        assert_eq!(seen(&relay).0.len(), takes, "{act:?}");
        assert_eq!(report.outcome == Outcome::Delivered, takes == 1, "{act:?}");
    }
}

#[tokio::test]
async fn sessions_are_used_again_and_bounded() {
    let (url, relay) = server(&[]).await;
    let mailer = mailer(&[url]);
    for _ in 0..5 {
        assert_eq!(attempt(&mailer, &task()).await.outcome, Outcome::Delivered);
    }
    assert_eq!((seen(&relay).1, seen(&relay).0.len()), (1, 5));
    let tasks: Vec<_> = (0..40).map(|_| task()).collect();
    let attempts = tasks.iter().map(|task| attempt(&mailer, task));
    let reports = futures::future::join_all(attempts).await;
    assert!(reports.iter().all(|report| report.outcome == Outcome::Delivered));
    assert!(seen(&relay).1 <= DEFAULT_MAX_CONNECTIONS, "{}", seen(&relay).1);
}

#[tokio::test]
async fn a_turn_is_waited_for_before_the_attempt_or_not_had() {
    let (url, relay) = server(&[Act::Hold(CONTENT)]).await;
    let mailer = with(&[url], |config| config.max_connections = 1);
    let task = task();
    let (mut first, mut second) = (Box::pin(in_turn(&mailer, &task)), Box::pin(mailer.turn(&task)));
    tokio::select! {
        _ = &mut first => panic!("it is held"),
        () = relay.wait_for_command(CONTENT) => {}
    }
    assert!(second.as_mut().now_or_never().is_none(), "the only place is taken");
    relay.go_on();
    assert_eq!(first.await.outcome, Outcome::Delivered);
    let held = second.await.expect("its turn");
    // No more than one has a place.
    let again = mailer.turn(&task).await.expect_err("the only place is taken");
    assert!(again >= Duration::from_secs(1), "{again:?}");
    drop(held);
    assert!(mailer.turn(&task).await.is_ok());
}

#[tokio::test]
async fn a_turn_that_is_too_far_away_is_told() {
    let (url, _relay) = server(&[]).await;
    let mailer = with(&[url], |config| config.max_domain_rate = 0.1);
    let task = task();
    assert_eq!(in_turn(&mailer, &task).await.outcome, Outcome::Delivered);
    let again = mailer.turn(&task).await.expect_err("ten seconds");
    assert!((8..=10).contains(&again.as_secs()), "{again:?}");
    let behind = mailer.turn(&task).await.expect_err("twenty seconds");
    assert!((18..=20).contains(&behind.as_secs()), "{behind:?}");
    let elsewhere = Task { recipient: "ada@elsewhere.com".into(), ..task.clone() };
    assert!(mailer.turn(&elsewhere).await.is_ok(), "another domain's turn is its own");
    // Who asks for an attempt now is told so in the attempt.
    let report = attempt(&mailer, &task).await;
    let Outcome::Retry { retry_after: Some(_) } = report.outcome else { panic!("{report:?}") };
}

#[tokio::test]
async fn a_relay_that_hangs_is_passed_over_and_the_next_time_not_asked() {
    let (first, hanging) = server(&[Act::Hang("EHLO"), Act::Hang("EHLO")]).await;
    let (second, relay) = server(&[]).await;
    let mailer = mailer(&[first, second]);
    let report = in_turn(&mailer, &task()).await;
    assert_eq!(report.outcome, Outcome::Delivered);
    assert_eq!(report.response_headers, [("Relay", "relay 2")].into_iter().collect());
    assert_eq!(hanging.commands(GREETING).len(), 1);
    let report = in_turn(&mailer, &task()).await;
    assert_eq!((report.outcome, seen(&relay).0.len()), (Outcome::Delivered, 2));
    assert!(report.duration < Duration::from_secs(5), "{:?}", report.duration);
    assert_eq!(hanging.commands(GREETING).len(), 1, "it is spared");
}

#[tokio::test]
async fn an_answer_without_an_end_is_not_read_to_it() {
    for at in [GREETING, "EHLO", "MAIL", "RCPT", "DATA", CONTENT] {
        let (url, _relay) = server(&[Act::Flood(at)]).await;
        let report = attempt(&mailer(&[url]), &task()).await;
        assert_eq!((&report.outcome, told(&report)), (&RETRY, Some(ErrorKind::Protocol)), "{at}");
        assert!(report.duration < Duration::from_secs(5), "{at}: {:?}", report.duration);
    }
}

#[tokio::test]
async fn failures_name_the_relay() {
    let (url, _relay) = server(&[Act::Say("RCPT", "550 5.1.1 no such user")]).await;
    let report = attempt(&mailer(&[url]), &task()).await;
    assert_eq!(report.smtp_reply, "550 5.1.1 no such user", "the reply stays as it was");
    let message = report.failure.expect("told").message;
    assert_eq!(message, "There is no such address. The relay: relay 1.");
    assert_eq!(report.response_headers, [("Relay", "relay 1")].into_iter().collect());
}

#[tokio::test]
async fn sendgrid_is_told_the_delivery_and_nobody_else() {
    let (url, relay) = server(&[]).await;
    let task = task();
    attempt(&mailer(&[format!("{url}?provider=sendgrid")]), &task).await;
    attempt(&mailer(&[url]), &task).await;
    let (messages, _) = seen(&relay);
    let header = format!(
        "X-SMTPAPI: {{\"unique_args\": {{\"tidings_delivery_id\": \"{}\"}}}}\r\n",
        task.delivery_id
    );
    assert_eq!(messages[0], format!("{header}{}", messages[1]));
    assert!(!messages[1].contains("X-SMTPAPI"));
}

#[tokio::test]
async fn nothing_is_sent_in_the_clear_where_encryption_is_enforced() {
    let (url, relay) = server(&[]).await;
    let report = attempt(&mailer(&[format!("{url}?starttls=required")]), &task()).await;
    assert_eq!((report.outcome.clone(), told(&report)), (RETRY, Some(ErrorKind::Tls)));
    assert!(seen(&relay).0.is_empty());
    let injected = Act::Say("STARTTLS", "220 go on\r\n250 injected");
    let offered = Act::Say("EHLO", "250-test\r\n250 STARTTLS");
    let (url, _relay) = server(&[offered, injected]).await;
    let report = attempt(&mailer(&[format!("{url}?starttls=required")]), &task()).await;
    assert_eq!(told(&report), Some(ErrorKind::Protocol));
}

#[tokio::test]
async fn a_folder_has_the_message_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let url = format!("file://{}/mail", folder.path().display());
    let task = task();
    let report = attempt(&mailer(&[url]), &task).await;
    assert_eq!(report.outcome, Outcome::Delivered);
    let name = format!("{}.eml", task.delivery_id);
    let path = folder.path().join("mail").join(&name);
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(&path).expect("a file").permissions(),
    );
    assert_eq!(mode & 0o777, 0o600, "it is for nobody else on the machine");
    assert!(std::fs::read_to_string(path).expect("a file").contains("Message-ID: <dlv_"));
    assert_eq!(report.smtp_reply, format!("250 written to {name}"));
}

#[tokio::test]
async fn without_a_relay_the_report_says_which_options_to_set() {
    let report = attempt(&mailer(&[]), &task()).await;
    assert_eq!((report.outcome.clone(), told(&report)), (RETRY, Some(ErrorKind::Configuration)));
    assert!(report.failure.expect("told").message.contains("smtp-url and mail-from"));
    let nobody = Task { recipient: "ada@[127.0.0.1]".into(), ..task() };
    let (url, relay) = server(&[]).await;
    assert_eq!(attempt(&mailer(&[url]), &nobody).await.outcome, Outcome::Permanent);
    assert_eq!(seen(&relay).1, 0);
}
