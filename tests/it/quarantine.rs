//! A delivery whose attempts bring down the process that makes them is set apart; those that only
//! shared a process with it, or were under way when somebody killed it, are delivered.
//!
//! The processes are real and end for real. The fault is a fail point in the attempt, keyed by the
//! event's type: it fires in whatever process makes the attempt.

use std::collections::{HashMap, HashSet};
use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::time::Duration;

use tidings::api::proto::{self, AttemptTrigger, DeliveryState, ErrorKind, FailureReason};
use tidings::domain::delivery::{FailureReason as Reason, State};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::support::app::quick_retries;
use crate::support::make::{Maker, succeeded};
use crate::support::process::{Served, operator_key};
use crate::support::smtp::SmtpServer;
use crate::support::{Client, Database, Receiver, Reply};

const SIGABRT: i32 = 6;
/// Ends the process that attempts such an event.
const ABORT: (&str, &str) = ("FAILPOINTS", "attempt::abort=return(poison.pill)");

async fn quarantined(client: &Client, tenant_id: &str) -> Vec<proto::Delivery> {
    let request = proto::ListDeliveriesRequest {
        tenant_id: tenant_id.into(),
        failure_reasons: vec![FailureReason::Quarantined.into()],
        ..Default::default()
    };
    client.deliveries().list_deliveries(request).await.expect("listed").into_inner().deliveries
}

/// Waits until the process ends by itself, for which it has some time; `None` when it does not.
async fn death(served: &mut Served, patience: Duration) -> Option<i32> {
    let ended = timeout(patience, served.child.wait()).await.ok()?;
    ended.expect("waited").signal()
}

on_both! {
    async fn a_delivery_that_aborts_its_process_is_quarantined_at_the_third_claim(database: Database) {
        const NEIGHBOURS: usize = 30;
        let receiver = Receiver::scripted(|_, _| Reply::status(200).after(Duration::from_millis(200))).await;
        let key = operator_key(&database).await;
        let mut served = Served::start_in(&database, &[], &[ABORT]).await;
        let client = Client::connect(&served.endpoint, &key).await;
        let tenant = client.create_tenant("Acme").await;
        client.subscribe(&tenant.id, &["*"], &receiver.url()).await;
        let mut events = HashSet::new();
        for _ in 0..NEIGHBOURS {
            events.insert(client.emit(&tenant.id, "user.created", "{}").await.event_id);
        }
        // Its process may end before it has answered.
        let _ = client.events().emit(crate::support::app::emit_request(&tenant.id, "poison.pill", "{}")).await;

        let mut deaths = 0;
        while let Some(signal) = death(&mut served, Duration::from_secs(12)).await {
            assert_eq!(signal, SIGABRT, "it was the fault that ended it");
            deaths += 1;
            assert!(deaths <= 2, "the third claim must not end the service");
            served = Served::start_in(&database, &[], &[ABORT]).await;
        }
        assert_eq!(deaths, 2, "the first two claims end the process");
        let client = Client::connect(&served.endpoint, &key).await;
        let found = quarantined(&client, &tenant.id).await;
        let [poison] = found.as_slice() else { panic!("one is quarantined: {found:?}") };
        assert_eq!((poison.event_type.as_str(), poison.state()), ("poison.pill", DeliveryState::Failed));
        let attempts = client.attempts(&tenant.id, &poison.id).await;
        let [attempt] = attempts.as_slice() else { panic!("the third claim is recorded: {attempts:?}") };
        assert_eq!((attempt.error_kind(), attempt.trigger()), (ErrorKind::Internal, AttemptTrigger::Automatic));
        assert!(attempt.error_message.contains("quarantined"), "{}", attempt.error_message);
        assert_eq!(served.metric("tidings_deliveries_quarantined_total").await, 1);
        assert_eq!(served.metric("tidings_attempts_fatal_total").await, 1);

        // The neighbours, whatever they shared with it.
        for event_id in &events {
            client.wait_for_state(&tenant.id, event_id, DeliveryState::Succeeded).await;
        }
        let types: HashSet<_> =
            receiver.requests().iter().map(|request| request.header("tidings-event-type").to_owned()).collect();
        assert_eq!(types, HashSet::from(["user.created".to_owned()]));

        // Somebody tries again: the service outlives it.
        let retry = proto::RetryDeliveryRequest { tenant_id: tenant.id.clone(), delivery_id: poison.id.clone() };
        let retried = client.deliveries().retry_delivery(retry.clone()).await.expect("an attempt").into_inner();
        let attempt = retried.attempt.expect("an attempt");
        assert_eq!((attempt.error_kind(), attempt.trigger()), (ErrorKind::Internal, AttemptTrigger::Manual));
        assert_eq!(served.metric("tidings_attempts_fatal_total").await, 2);
        served.signal("TERM").await;
        let (code, log) = served.wait().await;
        assert_eq!(code, Some(0), "{}", log.join("\n"));
        let told = log.iter().filter(|line| line.contains("is quarantined") && line.contains(&poison.id));
        assert!(told.count() > 0, "the log names it: {}", log.join("\n"));

        // And once the fault is mended, it arrives.
        let served = Served::start(&database, &[]).await;
        let client = Client::connect(&served.endpoint, &key).await;
        let retried = client.deliveries().retry_delivery(retry).await.expect("an attempt").into_inner();
        let recovered = retried.delivery.expect("a delivery");
        assert_eq!(recovered.state(), DeliveryState::Failed, "ends are final");
        assert!(recovered.recover_time.is_some(), "{retried:?}", retried = retried.attempt);
        served.kill().await;
    }
}

on_both! {
    /// Whoever kills a busy node again and again fails nothing by that.
    async fn deliveries_that_are_interrupted_by_kills_are_delivered(database: Database) {
        // As many as a node leases for an endpoint that answers nothing.
        const EVENTS: usize = 4;
        const KILLS: usize = 3;
        let gate = Arc::new(Semaphore::new(0));
        let behind = Arc::clone(&gate);
        let receiver =
            Receiver::scripted(move |_, _| Reply::status(200).behind(Arc::clone(&behind))).await;
        let key = operator_key(&database).await;
        let mut served = Served::start(&database, &[]).await;
        let client = Client::connect(&served.endpoint, &key).await;
        let tenant = client.create_tenant("Acme").await;
        let (subscription, _) = client.subscribe(&tenant.id, &["*"], &receiver.url()).await;
        for _ in 0..EVENTS {
            client.emit(&tenant.id, "user.created", "{}").await;
        }
        // Nobody answers, so all that is attempted is under way at each kill: two at a time.
        for kill in 1..=KILLS {
            receiver.wait_for(2 * kill).await;
            served.kill().await;
            served = Served::start(&database, &[]).await;
        }
        let client = Client::connect(&served.endpoint, &key).await;
        receiver.wait_for(2 * (KILLS + 1)).await;
        let interrupted = client.deliveries_to(&subscription).await;
        let often = interrupted.iter().filter(|delivery| delivery.interrupted_count >= 3).count();
        assert!(often == EVENTS, "the kills hit {often} three times and more: {interrupted:?}");
        gate.add_permits(1_000);
        let all = client.wait_for_all(&subscription, DeliveryState::Succeeded).await;
        assert_eq!(all.len(), EVENTS);
        assert!(all.iter().all(|delivery| delivery.interrupted_count == 0), "a result clears them");
        assert_eq!(quarantined(&client, &tenant.id).await, []);
        // In a process of its own an attempt sends what any other does.
        let mut bodies = HashMap::new();
        for request in receiver.requests() {
            assert!(request.header("webhook-signature").starts_with("v1,"));
            let first = bodies.entry(request.header("webhook-id").to_owned());
            assert_eq!(*first.or_insert_with(|| request.body.clone()), request.body);
        }
        assert_eq!(served.metric("tidings_deliveries_quarantined_total").await, 0);
        served.kill().await;
    }
}

on_both! {
    async fn an_attempt_that_panics_is_recorded_and_retried_and_its_neighbours_are_delivered(database: Database) {
        const NEIGHBOURS: usize = 20;
        let receiver = Receiver::scripted(|_, _| Reply::status(200).after(Duration::from_millis(20))).await;
        let key = operator_key(&database).await;
        let panics = ("FAILPOINTS", "attempt::panic=return(panic.now)");
        let served = Served::start_in(&database, &[], &[panics]).await;
        let client = Client::connect(&served.endpoint, &key).await;
        let tenant = client.create_tenant("Acme").await;
        let webhook = proto::WebhookChannel { url: receiver.url(), ..Default::default() };
        client.subscribe_with(&tenant.id, &["*"], webhook, Some(quick_retries(2))).await;
        let mut events = HashSet::new();
        let mut panicked = String::new();
        for number in 0..=NEIGHBOURS {
            if number == NEIGHBOURS / 2 {
                panicked = client.emit(&tenant.id, "panic.now", "{}").await.event_id;
            } else {
                events.insert(client.emit(&tenant.id, "user.created", "{}").await.event_id);
            }
        }
        let failed = client.wait_for_state(&tenant.id, &panicked, DeliveryState::Failed).await;
        assert_eq!(failed.failure_reason(), FailureReason::Exhausted);
        let attempts = client.attempts(&tenant.id, &failed.id).await;
        assert_eq!(attempts.len(), 3, "each of them panicked: {attempts:?}");
        assert!(attempts.iter().all(|attempt| attempt.error_kind() == ErrorKind::Internal), "{attempts:?}");
        for event_id in &events {
            client.wait_for_state(&tenant.id, event_id, DeliveryState::Succeeded).await;
        }
        // One arrival each: the panic took nobody with it.
        assert_eq!(receiver.requests().len(), NEIGHBOURS);
        served.kill().await;
    }
}

on_both! {
    /// Mail under suspicion is sent by a process of its own, too; what brings that one down is set apart.
    async fn mail_is_attempted_apart_and_quarantined_like_the_rest(database: Database) {
        let smtp = SmtpServer::acting(&[]).await;
        let key = operator_key(&database).await;
        let options = ["--smtp-url", smtp.url(), "--mail-from", "Tidings <no-reply@tidings.company.com>"];
        let mut served = Served::start_in(&database, &options, &[ABORT]).await;
        let client = Client::connect(&served.endpoint, &key).await;
        let tenant = client.create_tenant("Acme").await;
        let channel = proto::EmailChannel { recipients: vec!["ada@company.com".into()], ..Default::default() };
        let subscription = proto::Subscription {
            tenant_id: tenant.id.clone(),
            event_types: vec!["*".into()],
            channel: Some(proto::subscription::Channel::Email(channel)),
            ..Default::default()
        };
        let request = proto::CreateSubscriptionRequest { subscription: Some(subscription), ..Default::default() };
        client.subscriptions().create_subscription(request).await.expect("created");
        let mut events = Vec::new();
        for event_type in ["user.created", "poison.pill"] {
            let in_an_hour = std::time::SystemTime::now() + Duration::from_hours(1);
            let request = proto::EmitRequest {
                deliver_time: Some(in_an_hour.into()),
                ..crate::support::app::emit_request(&tenant.id, event_type, "{}")
            };
            events.push(client.events().emit(request).await.expect("accepted").into_inner().event_id);
        }
        // As if two processes in a row had ended while they had them. Now they are due.
        database.execute("UPDATE deliveries SET interrupted_count = 2, next_attempt_time = 1").await;

        let sent = client.wait_for_state(&tenant.id, &events[0], DeliveryState::Succeeded).await;
        assert_eq!((sent.attempt_count, sent.interrupted_count), (1, 0));
        let attempts = client.attempts(&tenant.id, &sent.id).await;
        assert_eq!(attempts[0].smtp_reply, "250 2.0.0 Ok: queued as 7");
        assert_eq!(smtp.given().len(), 1, "once: {:?}", smtp.given());
        let relay = smtp.url().trim_start_matches("smtp://");
        let by_service = format!("tidings_mail_attempts_total{{relay=\"{relay}\",result=\"delivered\"}}");
        assert_eq!(served.metric(&by_service).await, 0, "another process has sent it");

        let failed = client.wait_for_state(&tenant.id, &events[1], DeliveryState::Failed).await;
        assert_eq!((failed.failure_reason(), failed.recipient.as_str()), (FailureReason::Quarantined, "ada@company.com"));
        let attempts = client.attempts(&tenant.id, &failed.id).await;
        assert_eq!((attempts.len(), attempts[0].error_kind()), (1, ErrorKind::Internal));
        assert_eq!(served.metric("tidings_attempts_fatal_total").await, 1);
        assert!(served.child.try_wait().expect("asked").is_none(), "the service has outlived it");
        // The place that it had at the relay is free again.
        let event = client.emit(&tenant.id, "user.created", "{}").await.event_id;
        client.wait_for_state(&tenant.id, &event, DeliveryState::Succeeded).await;
        assert_eq!(served.metric(&format!("tidings_mail_connections_in_use{{relay=\"{relay}\"}}")).await, 0);
        served.kill().await;
    }
}

on_both! {
    /// What the database remembers: who is taken over is counted, who is given back is not, and any
    /// result clears the count.
    async fn interruptions_are_counted_in_a_row(database: Database) {
        let store = database.open().await;
        let make = Maker::new(7);
        let now = store.now().await.expect("now");
        let tenant = make.tenant(&store, now).await;
        let subscription = make.subscription(&store, tenant.id, now).await;
        let dead = make.node(now);
        let deliveries = make.deliveries(&store, &subscription, 2, dead, true, now).await;
        let read = async |index: usize| {
            let id = deliveries[index].id;
            store.delivery(tenant.id, id).await.expect("read").expect("there")
        };
        // The node never registered: it is silent.
        assert_eq!(store.take_over(now, 100).await.expect("taken over").count, 2);
        assert_eq!(read(0).await.interrupted_count, 1);
        let room = |room| [tidings::store::Room {
            subscription: tidings::store::SubscriptionRef { tenant_id: tenant.id, id: subscription.id },
            room,
        }];
        let node = make.node(now);
        store.register_node(node, Duration::from_mins(1)).await.expect("registered");
        let claimed = store.claim(&room(2), node, now, |_| true).await.expect("claimed");
        assert_eq!(claimed.len(), 2);
        assert!(claimed.iter().all(|claimed| claimed.delivery.interrupted_count == 1));
        // One gets a result, the other is given back without one.
        let (with, without) = (&claimed[0].delivery, &claimed[1].delivery);
        store.record(&[succeeded(with, now)], now).await.expect("recorded");
        store.release(node, now, 100).await.expect("released");
        let of = async |id| store.delivery(tenant.id, id).await.expect("read").expect("there");
        assert_eq!((of(with.id).await.state, of(with.id).await.interrupted_count), (State::Succeeded, 0));
        assert_eq!((of(without.id).await.state, of(without.id).await.interrupted_count), (State::Scheduled, 1));
        // The schema takes the reason, and no number beyond the contract's.
        assert_eq!(Reason::from_code(6), Some(Reason::Quarantined));
        store.close().await;
        database.execute("UPDATE deliveries SET failure_reason = 6 WHERE state = 3").await;
    }
}
