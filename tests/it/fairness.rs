//! One loud tenant does not keep another one waiting, nor endpoints that hang one that answers.

use std::collections::HashSet;
use std::time::Duration;

use tidings::api::proto::{self, DeliveryState};

use crate::support::app::options;
use crate::support::{App, Database, Receiver, Reply};

/// No answer while the test lasts.
fn silent() -> Reply {
    Reply::status(200).after(Duration::from_hours(1))
}

/// A webhook whose attempts outlast the test, too.
fn patient(receiver: &Receiver) -> proto::WebhookChannel {
    let timeout = Some(prost_types::Duration { seconds: 30, nanos: 0 });
    proto::WebhookChannel { url: receiver.url(), timeout, ..Default::default() }
}

on_both! {
    /// Every endpoint of one tenant hangs, and it has far more deliveries than there are places. The
    /// other's only delivery arrives while not one of them has ended.
    async fn a_tenant_whose_endpoints_all_hang_does_not_starve_another(database: Database) {
        const SUBSCRIPTIONS: usize = 40;
        let mut config = options(&database).config();
        config.dispatch.max_in_flight = 16;
        config.dispatch.queue_size = 32;
        let app = App::start_configured(database, config).await;
        let hanging = Receiver::scripted(|_, _| silent()).await;
        let loud = app.operator.create_tenant("Loud").await;
        for number in 0..SUBSCRIPTIONS {
            let event_type = if number == 0 { "*" } else { "user.created" };
            app.operator.subscribe_with(&loud.id, &[event_type], patient(&hanging), None).await;
        }
        // One subscription with a backlog of its own, and all of them with more than they may have
        // under way.
        let backlog = (0..500).map(|_| crate::support::app::emit_request(&loud.id, "backlog", "{}"));
        let batch = proto::EmitBatchRequest { requests: backlog.collect(), ..Default::default() };
        app.operator.events().emit_batch(batch).await.expect("accepted");
        for _ in 0..20 {
            app.operator.emit(&loud.id, "user.created", "{}").await;
        }
        // Three quarters of the places that are not kept are the loud tenant's; it gets no more.
        hanging.wait_for(9).await;

        let quiet = app.operator.create_tenant("Quiet").await;
        let good = Receiver::answering(200).await;
        let (subscription, _) = app.operator.subscribe(&quiet.id, &["*"], &good.url()).await;
        for _ in 0..3 {
            let emitted = app.operator.emit(&quiet.id, "user.created", "{}").await;
            app.operator.wait_for_state(&quiet.id, &emitted.event_id, DeliveryState::Succeeded).await;
        }
        assert_eq!(app.operator.deliveries_to(&subscription).await.len(), 3);
        assert_eq!(hanging.requests().len(), 9, "none of the loud tenant's attempts has ended");
        assert_eq!(app.metric("tidings_attempts_in_flight").await, 9);
        drop(hanging);
        app.stop().await;
    }
}

on_both! {
    /// Every other endpoint hangs, of the same tenant and of others, and all places that they may have
    /// are theirs. One that has answered gets all its deliveries while not one of them has ended.
    async fn endpoints_that_hang_do_not_delay_one_that_answers(database: Database) {
        const HANGING: usize = 30;
        let mut config = options(&database).config();
        config.dispatch.max_in_flight = 16;
        config.dispatch.queue_size = 64;
        let app = App::start_configured(database, config).await;
        let hanging = Receiver::scripted(|_, _| silent()).await;
        let own = app.operator.create_tenant("Own").await;
        let good = Receiver::answering(200).await;
        let (subscription, _) = app.operator.subscribe(&own.id, &["good"], &good.url()).await;
        let emitted = app.operator.emit(&own.id, "good", "{}").await;
        app.operator.wait_for_state(&own.id, &emitted.event_id, DeliveryState::Succeeded).await;

        for number in 0..HANGING {
            let tenant = match number % 3 {
                0 => own.clone(),
                _ => app.operator.create_tenant("Other").await,
            };
            let event_type = format!("bad{number}");
            app.operator.subscribe_with(&tenant.id, &[&event_type], patient(&hanging), None).await;
            for _ in 0..8 {
                app.operator.emit(&tenant.id, &event_type, "{}").await;
            }
        }
        // A quarter of the places is kept.
        hanging.wait_for(12).await;
        assert!(app.metric("tidings_attempts_waiting").await > 0);

        for _ in 0..40 {
            app.operator.emit(&own.id, "good", "{}").await;
        }
        good.wait_for(41).await;
        assert_eq!(hanging.requests().len(), 12, "none of the others' attempts has ended");
        assert_eq!(app.operator.deliveries_to(&subscription).await.len(), 41);
        drop(hanging);
        app.stop().await;
    }
}

on_both! {
    /// An endpoint of which nothing is known gets two requests at once, and more with each answer.
    async fn an_endpoint_earns_its_requests_at_once(database: Database) {
        let app = App::start(database).await;
        let tenant = app.operator.create_tenant("Acme").await;
        let hanging = Receiver::scripted(|_, at| match at {
            0 | 1 => Reply::status(200).after(Duration::from_millis(50)),
            _ => silent(),
        })
        .await;
        app.operator.subscribe(&tenant.id, &["*"], &hanging.url()).await;
        for _ in 0..20 {
            app.operator.emit(&tenant.id, "user.created", "{}").await;
        }
        hanging.wait_for(6).await;
        // Nobody answers the four, so that nothing else can begin, however long one waits.
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(hanging.requests().len(), 6, "two, and after their answers four");
        assert_eq!(app.metric("tidings_attempts_in_flight").await, 4);
        drop(hanging);
        app.stop().await;
    }
}

on_both! {
    /// What finds no room waits in the database until there is some, and no longer: nobody looks by the
    /// clock here.
    async fn what_found_no_room_is_claimed_when_there_is_some(database: Database) {
        const EVENTS: usize = 60;
        let mut config = options(&database).config();
        config.dispatch.poll_interval = Duration::from_hours(1);
        let app = App::start_configured(database, config).await;
        let tenant = app.operator.create_tenant("Acme").await;
        let receiver =
            Receiver::scripted(|_, _| Reply::status(200).after(Duration::from_millis(5))).await;
        let webhook =
            proto::WebhookChannel { url: receiver.url(), max_in_flight: 1, ..Default::default() };
        app.operator.subscribe_with(&tenant.id, &["*"], webhook, None).await;
        // A new subscription has the node look once more.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let batch = (0..EVENTS).map(|_| crate::support::app::emit_request(&tenant.id, "a.b", "{}"));
        let batch = proto::EmitBatchRequest { requests: batch.collect(), ..Default::default() };
        app.operator.events().emit_batch(batch).await.expect("accepted");
        // Once a minute everything is read anew, whatever happens.
        let arrived = tokio::time::timeout(Duration::from_secs(40), receiver.wait_for(EVENTS)).await;
        assert!(arrived.is_ok(), "{} of {EVENTS} have arrived", receiver.requests().len());
        assert!(app.metric("tidings_deliveries_claimed_total").await > 40, "most had no room");
        app.stop().await;
    }
}

on_both! {
    /// While more events arrive than two full groups take, workers pause between attempts, and the callers get
    /// their answers; everything is delivered. With fewer events nobody pauses.
    async fn deliveries_make_way_for_callers(database: Database) {
        const CALLS: usize = 20;
        const EVENTS: usize = 200;
        const PAUSES: &str = "tidings_attempts_paused_total";
        let app = App::start(database).await;
        let tenant = app.operator.create_tenant("Acme").await;
        let receiver = Receiver::answering(200).await;
        app.operator.subscribe(&tenant.id, &["*"], &receiver.url()).await;
        let call = |events: usize| {
            let request = || crate::support::app::emit_request(&tenant.id, "user.created", "{}");
            let requests = (0..events).map(|_| request()).collect();
            let batch = proto::EmitBatchRequest { requests, ..Default::default() };
            let mut events = app.operator.events();
            async move { events.emit_batch(batch).await.expect("accepted").into_inner().results.len() }
        };
        assert_eq!(call(EVENTS).await, EVENTS);
        receiver.wait_for(EVENTS).await;
        assert_eq!(app.metric(PAUSES).await, 0, "there is enough for all");

        // Whether an attempt ends just then is chance: seldom is one burst not enough.
        let mut emitted = EVENTS;
        while app.metric(PAUSES).await == 0 {
            assert!(emitted < 10 * CALLS * EVENTS, "nobody made way");
            let answered = futures::future::join_all((0..CALLS).map(|_| call(EVENTS))).await;
            assert_eq!(answered.iter().sum::<usize>(), CALLS * EVENTS);
            emitted += CALLS * EVENTS;
        }
        let arrived = receiver.wait_for(emitted).await;
        let ids: HashSet<_> = arrived.iter().map(|request| request.header("webhook-id")).collect();
        assert_eq!(ids.len(), emitted);

        let pauses = app.metric(PAUSES).await;
        assert_eq!(call(EVENTS).await, EVENTS);
        receiver.wait_for(emitted + EVENTS).await;
        assert_eq!(app.metric(PAUSES).await, pauses, "callers have what they wanted");
        app.stop().await;
    }
}
