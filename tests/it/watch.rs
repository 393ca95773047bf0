//! `WatchDeliveries`: snapshot, tail, checkpoints, resume, slow readers, every replica.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tidings::api::proto::{self, DeliveryState, WatchDeliveriesRequest, WatchDeliveriesResponse};
use tonic::{Code, Streaming};

use crate::support::app::explain;
use crate::support::{App, Client, Database, Receiver};

/// Long enough for everything on a busy machine. Checkpoints come all the time, so waiting for one
/// message is not what ends a test that misses a delivery.
const PATIENCE: Duration = Duration::from_mins(2);
/// Events of the test with a slow reader.
const COUNT: usize = 6_000;

pub(crate) async fn watch(
    client: &Client,
    request: WatchDeliveriesRequest,
) -> Streaming<WatchDeliveriesResponse> {
    client.deliveries().watch_deliveries(request).await.expect("opened").into_inner()
}

pub(crate) async fn next(
    stream: &mut Streaming<WatchDeliveriesResponse>,
) -> WatchDeliveriesResponse {
    let next =
        tokio::time::timeout(Duration::from_secs(30), stream.message()).await.expect("in time");
    next.expect("no error").expect("no end")
}

/// Reads changes until `count` deliveries are SUCCEEDED, and checks their order on the way.
pub(crate) async fn read_until_succeeded(
    stream: &mut Streaming<WatchDeliveriesResponse>,
    revisions: &mut HashMap<String, i64>,
    succeeded: &mut usize,
    count: usize,
) -> String {
    let mut token = String::new();
    while *succeeded < count {
        let response = next(stream).await;
        assert!(!response.resume_token.is_empty(), "every response carries a token");
        token = response.resume_token;
        let Some(delivery) = response.delivery else { continue };
        let last = revisions.insert(delivery.id.clone(), delivery.revision).unwrap_or(0);
        assert_eq!(
            delivery.revision,
            last + 1,
            "every change of {} is told, in order",
            delivery.id
        );
        *succeeded += usize::from(delivery.state() == DeliveryState::Succeeded);
    }
    token
}

on_both! {
    async fn every_change_is_told_and_a_token_goes_on_where_it_stopped(database: Database) {
        let app = App::start(database).await;
        let receiver = Receiver::answering(200).await;
        let tenant = app.operator.create_tenant("Acme").await;
        app.operator.subscribe(&tenant.id, &["*"], &receiver.url()).await;
        let request = WatchDeliveriesRequest { tenant_id: tenant.id.clone(), ..Default::default() };
        let mut stream = watch(&app.operator, request.clone()).await;
        assert!(next(&mut stream).await.delivery.is_none(), "first a checkpoint");

        let (mut revisions, mut succeeded) = (HashMap::new(), 0);
        let emit = |count: usize| {
            let (client, tenant_id) = (app.operator.clone(), tenant.id.clone());
            async move {
                for _ in 0..count {
                    client.emit(&tenant_id, "user.created", "{}").await;
                }
            }
        };
        emit(20).await;
        let token = read_until_succeeded(&mut stream, &mut revisions, &mut succeeded, 20).await;
        drop(stream);

        // Nobody watches; then somebody goes on.
        emit(20).await;
        receiver.wait_for(40).await;
        let resumed = WatchDeliveriesRequest { resume_token: token, ..request };
        let mut stream = watch(&app.operator, resumed).await;
        read_until_succeeded(&mut stream, &mut revisions, &mut succeeded, 40).await;
        assert_eq!(revisions.len(), 40);
        app.stop().await;
    }
}

on_both! {
    async fn a_snapshot_joins_the_tail_without_a_gap(database: Database) {
        let app = App::start(database).await;
        let receiver = Receiver::answering(200).await;
        let tenant = app.operator.create_tenant("Acme").await;
        app.operator.subscribe(&tenant.id, &["*"], &receiver.url()).await;
        let batch = |count| proto::EmitBatchRequest {
            tenant_id: tenant.id.clone(),
            requests: vec![crate::support::app::emit_request("", "user.created", "{}"); count],
        };
        app.operator.events().emit_batch(batch(600)).await.expect("accepted");
        let request = WatchDeliveriesRequest { tenant_id: tenant.id.clone(), include_current: true, ..Default::default() };
        let mut stream = watch(&app.operator, request.clone()).await;
        let during = tokio::spawn({
            let (client, batch) = (app.operator.clone(), batch(300));
            async move { client.events().emit_batch(batch).await.expect("accepted") }
        });
        let mut last: HashMap<String, (i64, DeliveryState)> = HashMap::new();
        let (mut complete, mut halfway) = (false, None);
        let finished = |last: &HashMap<String, (i64, DeliveryState)>| {
            last.len() == 900 && last.values().all(|(_, state)| *state == DeliveryState::Succeeded)
        };
        let enough = Instant::now() + PATIENCE;
        while !complete || !finished(&last) {
            assert!(Instant::now() < enough, "{} of 900 deliveries were told to their end", last.values().filter(|(_, state)| *state == DeliveryState::Succeeded).count());
            let response = next(&mut stream).await;
            complete |= response.snapshot_complete;
            if let Some(delivery) = response.delivery {
                let (id, revision, state) = (delivery.id.clone(), delivery.revision, delivery.state());
                let before = last.insert(id, (revision, state)).map_or(0, |(revision, _)| revision);
                assert!(revision > before, "{} went from {before} to {revision}", delivery.id);
                if last.len() == 300 {
                    halfway.get_or_insert((response.resume_token, last.clone()));
                }
            }
        }
        during.await.expect("emitted");

        // A token from within the snapshot goes on within it.
        let (resume_token, mut last) = halfway.expect("300 were told");
        let request = WatchDeliveriesRequest { include_current: false, resume_token, ..request };
        let mut stream = watch(&app.operator, request).await;
        let enough = Instant::now() + PATIENCE;
        while !finished(&last) {
            assert!(Instant::now() < enough, "a resumed snapshot misses deliveries");
            if let Some(delivery) = next(&mut stream).await.delivery {
                let (id, revision, state) = (delivery.id.clone(), delivery.revision, delivery.state());
                let before = last.insert(id, (revision, state)).map_or(0, |(revision, _)| revision);
                assert!(revision > before, "{} went from {before} to {revision}", delivery.id);
            }
        }
        app.stop().await;
    }
}

on_both! {
    async fn filters_choose_what_is_told(database: Database) {
        let app = App::start(database).await;
        let receiver = Receiver::answering(200).await;
        let tenant = app.operator.create_tenant("Acme").await;
        let (subscription, _) = app.operator.subscribe(&tenant.id, &["billing.*"], &receiver.url()).await;
        app.operator.subscribe(&tenant.id, &["*"], &receiver.url()).await;
        let request = WatchDeliveriesRequest {
            tenant_id: tenant.id.clone(),
            subscription_id: subscription.id.clone(),
            event_types: vec!["billing.*".into()],
            states: vec![DeliveryState::Succeeded as i32],
            ..Default::default()
        };
        let mut stream = watch(&app.operator, request).await;
        next(&mut stream).await;
        app.operator.emit(&tenant.id, "user.created", "{}").await;
        let wanted = app.operator.emit(&tenant.id, "billing.paid", "{}").await;
        let delivery = next(&mut stream).await.delivery.expect("a change");
        assert_eq!(delivery.event_id, wanted.event_id);
        assert_eq!(delivery.subscription_id, subscription.id);
        assert_eq!(delivery.state(), DeliveryState::Succeeded);
        app.stop().await;
    }
}

on_both! {
    async fn a_watch_ends_with_its_tenant(database: Database) {
        let app = App::start(database).await;
        let tenant = app.operator.create_tenant("Acme").await;
        let request = WatchDeliveriesRequest { tenant_id: tenant.id.clone(), ..Default::default() };
        let mut stream = watch(&app.operator, request.clone()).await;
        next(&mut stream).await;
        let delete = proto::DeleteTenantRequest { tenant_id: tenant.id, ..Default::default() };
        app.operator.tenants().delete_tenant(delete).await.expect("deleted");
        let gone = (Code::NotFound, "TENANT_NOT_FOUND".to_owned(), vec![]);
        let ended = async {
            loop {
                // Checkpoints may come before.
                if let Err(error) = stream.message().await {
                    return error;
                }
            }
        };
        let ended = tokio::time::timeout(PATIENCE, ended).await.expect("an operator's watch ends, too");
        assert_eq!(explain(&ended), gone);
        let refused = app.operator.deliveries().watch_deliveries(request).await.expect_err("gone");
        assert_eq!(explain(&refused), gone);
        app.stop().await;
    }
}

on_both! {
    async fn tokens_are_bound_to_their_watch(database: Database) {
        let app = App::start(database).await;
        let (tenant, other) = (app.operator.create_tenant("Acme").await, app.operator.create_tenant("Globex").await);
        let request = WatchDeliveriesRequest { tenant_id: tenant.id.clone(), ..Default::default() };
        let token = next(&mut watch(&app.operator, request.clone()).await).await.resume_token;
        let wrong = [
            WatchDeliveriesRequest { tenant_id: other.id, resume_token: token.clone(), ..Default::default() },
            WatchDeliveriesRequest { event_types: vec!["a.b".into()], resume_token: token.clone(), ..request.clone() },
            WatchDeliveriesRequest { resume_token: "nonsense".into(), ..request.clone() },
        ];
        for request in wrong {
            let refused = app.operator.deliveries().watch_deliveries(request).await.expect_err("refused");
            assert_eq!(explain(&refused).1, "RESUME_TOKEN_INVALID");
        }
        let both = WatchDeliveriesRequest { include_current: true, resume_token: token, ..request };
        let refused = app.operator.deliveries().watch_deliveries(both).await.expect_err("refused");
        assert_eq!(explain(&refused).0, Code::InvalidArgument);
        app.stop().await;
    }
}

on_both! {
    async fn a_token_older_than_the_feed_is_out_of_range(database: Database) {
        let store = database.open().await;
        let app = App::start(database).await;
        let receiver = Receiver::answering(200).await;
        let tenant = app.operator.create_tenant("Acme").await;
        app.operator.subscribe(&tenant.id, &["*"], &receiver.url()).await;
        let request = WatchDeliveriesRequest { tenant_id: tenant.id.clone(), ..Default::default() };
        let token = next(&mut watch(&app.operator, request.clone()).await).await.resume_token;
        let emitted = app.operator.emit(&tenant.id, "user.created", "{}").await;
        app.operator.wait_for_state(&tenant.id, &emitted.event_id, DeliveryState::Succeeded).await;

        let retention = tidings::store::Retention {
            events: Duration::from_hours(1),
            feed: Duration::ZERO,
            idempotency_keys: Duration::from_hours(1),
        };
        let now = store.now().await.expect("now").plus(Duration::from_secs(1));
        store.purge(retention, now, Duration::ZERO).await.expect("purged");
        let expired = WatchDeliveriesRequest { resume_token: token, ..request };
        let refused = app.operator.deliveries().watch_deliveries(expired).await;
        let error = match refused {
            Err(error) => error,
            Ok(stream) => stream.into_inner().message().await.expect_err("expired"),
        };
        assert_eq!(explain(&error), (Code::OutOfRange, "RESUME_TOKEN_EXPIRED".into(), vec![]));
        app.stop().await;
    }
}

on_both! {
    /// A reader that does not read costs bounded memory and misses nothing: it falls out of the ring
    /// and reads from the database.
    async fn a_slow_reader_misses_nothing(database: Database) {
        let app = App::start(database).await;
        let receiver = Receiver::answering(200).await;
        let tenant = app.operator.create_tenant("Acme").await;
        app.operator.subscribe(&tenant.id, &["*"], &receiver.url()).await;
        let request = WatchDeliveriesRequest { tenant_id: tenant.id.clone(), ..Default::default() };
        // A connection of its own, whose flow control fills up.
        let slow = Client::connect(&app.endpoint(), &app.operator_key).await;
        let mut stream = watch(&slow, request).await;
        next(&mut stream).await;
        for _ in 0..COUNT / 500 {
            let requests = vec![crate::support::app::emit_request("", "user.created", "{}"); 500];
            let batch = proto::EmitBatchRequest { tenant_id: tenant.id.clone(), requests };
            app.operator.events().emit_batch(batch).await.expect("accepted");
        }
        receiver.wait_for(COUNT).await;
        let (mut revisions, mut succeeded) = (HashMap::new(), 0);
        read_until_succeeded(&mut stream, &mut revisions, &mut succeeded, COUNT).await;
        assert_eq!(revisions.len(), COUNT);
        app.stop().await;
    }
}

/// What one replica changes, a watcher on another one hears.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_hears_of_other_replicas() {
    let database = Database::postgres().await;
    let options = crate::support::app::options(&database);
    let app = App::start(database).await;
    let second = tidings::app::start(options.config()).await.expect("a second replica");
    let other = Client::connect(&format!("http://{}", second.grpc_addr()), &app.operator_key).await;
    let receiver = Receiver::answering(200).await;
    let tenant = app.operator.create_tenant("Acme").await;
    app.operator.subscribe(&tenant.id, &["*"], &receiver.url()).await;
    let request = WatchDeliveriesRequest { tenant_id: tenant.id.clone(), ..Default::default() };
    let mut stream = watch(&app.operator, request).await;
    next(&mut stream).await;
    for _ in 0..10 {
        other.emit(&tenant.id, "user.created", "{}").await;
    }
    let (mut revisions, mut succeeded) = (HashMap::new(), 0);
    read_until_succeeded(&mut stream, &mut revisions, &mut succeeded, 10).await;
    second.stop().await;
    app.stop().await;
}

on_both! {
    async fn a_stop_ends_watchers_with_an_error_to_resume_from(database: Database) {
        let app = App::start(database).await;
        let tenant = app.operator.create_tenant("Acme").await;
        let request = WatchDeliveriesRequest { tenant_id: tenant.id.clone(), ..Default::default() };
        let mut stream = watch(&app.operator, request).await;
        next(&mut stream).await;
        let database = app.stop().await;
        let ended = stream.message().await.expect_err("ended");
        assert_eq!(explain(&ended), (Code::Unavailable, "SHUTTING_DOWN".into(), vec![]));
        drop(database);
    }
}
