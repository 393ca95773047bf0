//! Relays: waiting for a turn is no attempt, a relay that is out of order is passed over, and all of it
//! is counted.

use tidings::api::proto::{DeliveryState, ErrorKind};
use tidings::channel::email;

use super::{by_mail, by_way_of, channel, create, only, start, subscribed};
use crate::support::Database;
use crate::support::app::{quick_retries, value};
use crate::support::smtp::{Act, CONTENT, SmtpServer};

/// Takes no longer than what is waited for.
fn is_short(attempt: &tidings::api::proto::Attempt) -> bool {
    attempt.duration.is_some_and(|duration| duration.seconds < 2)
}

on_both! {
    /// With no retry at all: whoever waited has lost nothing by it.
    async fn waiting_for_a_turn_burns_no_attempt(database: Database) {
        let server = SmtpServer::acting(&[]).await;
        // One message in five seconds, which is more than a new one waits for.
        let paced = email::Config { max_domain_rate: 0.2, ..by_way_of(&[server.url()]) };
        let app = start(database, paced).await;
        let tenant = app.operator.create_tenant("Acme").await;
        let subscription = by_mail(&tenant.id, channel(&["ada@company.com"]));
        let subscription =
            tidings::api::proto::Subscription { retry_policy: Some(quick_retries(0)), ..subscription };
        let created = create(&app.operator, subscription).await.expect("created");
        assert_eq!(created.warnings, Vec::<String>::new());
        let mut events = Vec::new();
        for _ in 0..2 {
            events.push(app.operator.emit(&tenant.id, "billing.paid", "{}").await.event_id);
        }
        for event_id in &events {
            let (delivery, attempts) = only(&app, &tenant.id, event_id).await;
            assert_eq!((delivery.state(), delivery.attempt_count), (DeliveryState::Succeeded, 1));
            assert!(attempts.iter().all(is_short), "waiting is not the relay's time: {attempts:?}");
        }
        assert!(app.metric("tidings_mail_turns_postponed_total").await >= 1);
        assert_eq!(app.metric("tidings_deliveries_retried_total").await, 0);
        app.stop().await;
    }
}

on_both! {
    async fn waiting_for_a_connection_burns_no_attempt(database: Database) {
        let server = SmtpServer::acting(&[Act::Hold(CONTENT)]).await;
        let narrow = email::Config { max_connections: 1, ..by_way_of(&[server.url()]) };
        let app = start(database, narrow).await;
        let (tenant, _) = subscribed(&app, channel(&["ada@company.com"])).await;
        let first = app.operator.emit(&tenant.id, "billing.paid", "{}").await.event_id;
        server.wait_for_command(CONTENT).await;
        let second = app.operator.emit(&tenant.id, "billing.paid", "{}").await.event_id;
        app.wait_for_metric("tidings_mail_turns_postponed_total", 1).await;
        let relay = server.url().trim_start_matches("smtp://");
        assert_eq!(app.metric(&format!("tidings_mail_connections_in_use{{relay=\"{relay}\"}}")).await, 1);
        server.go_on();
        for event_id in [first, second.clone()] {
            let (delivery, attempts) = only(&app, &tenant.id, &event_id).await;
            assert_eq!((delivery.state(), delivery.attempt_count), (DeliveryState::Succeeded, 1));
            assert!(event_id != second || attempts.iter().all(is_short), "{attempts:?}");
        }
        app.stop().await;
    }
}

on_both! {
    async fn a_relay_that_accepts_and_hangs_is_passed_over_and_then_spared(database: Database) {
        let (hanging, good) = (SmtpServer::acting(&[Act::Hang("RCPT")]).await, SmtpServer::acting(&[]).await);
        let names = [&hanging, &good].map(|server| server.url().trim_start_matches("smtp://").to_owned());
        let series = |name: &str, relay: &str, further: &str| format!("tidings_mail_{name}{{relay=\"{relay}\"{further}}}");
        let app = start(database, by_way_of(&[hanging.url(), good.url()])).await;
        let page = app.metrics().await;
        for relay in &names {
            for name in ["connections", "connections_in_use", "relay_out_of_order", "attempt_duration_seconds_count"] {
                assert!(value(&page, &series(name, relay, "")).abs() < f64::EPSILON, "{name}");
            }
            for result in ["delivered", "timeout", "smtp", "tls", "configuration"] {
                let result = format!(",result=\"{result}\"");
                assert!(value(&page, &series("attempts_total", relay, &result)).abs() < f64::EPSILON);
            }
        }
        let (tenant, _) = subscribed(&app, channel(&["ada@company.com"])).await;
        for _ in 0..3 {
            let event = app.operator.emit(&tenant.id, "billing.paid", "{}").await;
            let (delivery, attempts) = only(&app, &tenant.id, &event.event_id).await;
            assert_eq!((delivery.state(), attempts.len()), (DeliveryState::Succeeded, 1), "{attempts:?}");
            assert_eq!(attempts[0].error_kind(), ErrorKind::Unspecified);
            let by: Vec<_> = attempts[0].response_headers.iter().map(|it| (it.name.as_str(), it.value.as_str())).collect();
            assert_eq!(by, [("Relay", "relay 2")]);
        }
        assert_eq!((hanging.commands("RCPT").len(), good.given().len()), (1, 3), "it hung once");
        for (series, expected) in [
            (series("attempts_total", &names[0], ",result=\"timeout\""), 1),
            (series("attempts_total", &names[0], ",result=\"delivered\""), 0),
            (series("attempts_total", &names[1], ",result=\"delivered\""), 3),
            (series("relay_out_of_order", &names[0], ""), 1),
            (series("relay_out_of_order", &names[1], ""), 0),
            (series("connections", &names[1], ""), 1),
            (series("connections_in_use", &names[1], ""), 0),
            (series("attempt_duration_seconds_count", &names[1], ""), 3),
        ] {
            assert_eq!(app.metric(&series).await, expected, "{series}");
        }
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_cannot_be_used_is_told_at_the_start() {
    let database = Database::sqlite().await;
    let missing = database.folder.path().join("missing.pem");
    let wrong = database.folder.path().join("wrong.pem");
    std::fs::write(&wrong, "hunter2").expect("written");
    for (file, says) in [(missing, "No such file"), (wrong, "PEM")] {
        let mut config = crate::support::app::options(&database).config();
        config.email = by_way_of(&["smtp://127.0.0.1:1"]);
        config.email.dkim_keys = vec![email::DkimKey { file: file.clone(), selector: "a".into() }];
        let error = tidings::app::start(config).await.err().expect("refused").to_string();
        assert!(
            error.starts_with("mail cannot be sent as configured: --dkim-key-file "),
            "{error}"
        );
        assert!(error.contains(&file.display().to_string()) && error.contains(says), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}
