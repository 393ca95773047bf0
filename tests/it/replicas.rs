//! Replicas on one database share what they know of endpoints, and the subscriptions' limits.

use std::time::{Duration, Instant};

use tidings::api::proto::{self, DeliveryState, EndpointState};
use tidings::app::{self, Running};
use tidings::domain::health::Policy;

use crate::support::app::{metric, options, quick_retries};
use crate::support::{App, Client, Database, Receiver, Reply};

/// Two services on one database, which know of each other.
struct Pair {
    first: App,
    second: Running,
    other: Client,
}

impl Pair {
    async fn start(health: Policy) -> Self {
        let database = Database::postgres().await;
        let mut config = options(&database).config();
        config.dispatch.health = health;
        let first = App::start_configured(database, config.clone()).await;
        let second = app::start(config).await.expect("started");
        let other =
            Client::connect(&format!("http://{}", second.grpc_addr()), &first.operator_key).await;
        let pair = Self { first, second, other };
        for addr in [pair.first.running.http_addr(), pair.second.http_addr()] {
            pair.wait_for_replicas(addr, 2).await;
        }
        pair
    }

    async fn wait_for_replicas(&self, addr: std::net::SocketAddr, count: i64) {
        for _ in 0..1_000 {
            if metric(addr, "tidings_replicas").await == count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the replicas never were {count}");
    }

    /// Emits `count` events, half of them on each.
    async fn emit(&self, tenant_id: &str, count: usize) {
        for number in 0..count {
            let client = if number % 2 == 0 { &self.first.operator } else { &self.other };
            client.emit(tenant_id, "user.created", "{}").await;
        }
    }

    async fn stop(self) {
        self.second.stop().await;
        self.first.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_probe_once_per_cool_down() {
    const COOL_DOWN: Duration = Duration::from_millis(600);
    let health =
        Policy { first_cool_down: COOL_DOWN, longest_cool_down: COOL_DOWN, ..Policy::default() };
    let pair = Pair::start(health).await;
    let receiver = Receiver::answering(500).await;
    let tenant = pair.first.operator.create_tenant("Acme").await;
    let webhook = proto::WebhookChannel { url: receiver.url(), ..Default::default() };
    let policy = Some(quick_retries(100));
    let (subscription, _) =
        pair.first.operator.subscribe_with(&tenant.id, &["*"], webhook, policy).await;
    pair.emit(&tenant.id, 60).await;
    for client in [&pair.first.operator, &pair.other] {
        let is_open = |s: &proto::Subscription| {
            s.health.as_ref().is_some_and(|health| health.state() == EndpointState::Open)
        };
        client.wait_for_subscription(&subscription, is_open).await;
    }
    // Both have heard of it when both have probed, or when a cool-down has passed: what came before
    // that does not count here.
    let opened = receiver.requests().len();
    let requests = receiver.wait_for(opened + 9).await;
    let times: Vec<Instant> =
        requests.iter().skip(opened + 3).map(|request| request.time).collect();
    let gaps: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps.len() >= 5);
    assert!(gaps.iter().all(|gap| *gap >= COOL_DOWN.mul_f64(0.89)), "{gaps:?}");
    let waiting = pair.first.operator.wait_for_all(&subscription, DeliveryState::Scheduled).await;
    let attempts: i32 = waiting.iter().map(|delivery| delivery.attempt_count).sum();
    let arrived = i32::try_from(receiver.requests().len()).expect("few");
    assert!(attempts <= arrived, "waiting burns no attempts");
    pair.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_hold_max_in_flight_in_sum() {
    let pair = Pair::start(Policy::default()).await;
    let tenant = pair.first.operator.create_tenant("Acme").await;
    // With a limit of 1 one of the two has nothing, and leaves its deliveries to the other; 5 leaves
    // a remainder.
    for limit in [1_usize, 2, 5] {
        let count = 12 * limit;
        // Long enough for as many as may be under way to be so at the same time, also on a busy machine.
        let delay = Duration::from_millis(120);
        let receiver = Receiver::scripted(move |_, _| Reply::status(200).after(delay)).await;
        let webhook = proto::WebhookChannel {
            url: receiver.url(),
            max_in_flight: i32::try_from(limit).expect("small"),
            ..Default::default()
        };
        let (subscription, _) =
            pair.first.operator.subscribe_with(&tenant.id, &["user.*"], webhook, None).await;
        pair.emit(&tenant.id, count).await;
        let all = pair.first.operator.wait_for_all(&subscription, DeliveryState::Succeeded).await;
        assert_eq!(all.len(), count);
        let requests = receiver.requests();
        assert_eq!(requests.len(), count);
        let most = requests.iter().map(|request| request.under_way).max();
        assert_eq!(most, Some(limit), "requests at once, of {limit}");
        let delete = proto::DeleteSubscriptionRequest {
            tenant_id: tenant.id.clone(),
            subscription_id: subscription.id,
            ..Default::default()
        };
        pair.first.operator.subscriptions().delete_subscription(delete).await.expect("deleted");
    }
    pair.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_that_a_replica_has_not_heard_of_is_read_when_it_claims_for_it() {
    let pair = Pair::start(Policy::default()).await;
    let tenant = pair.first.operator.create_tenant("Acme").await;
    let receiver = Receiver::answering(200).await;
    pair.first.operator.subscribe(&tenant.id, &["user.*"], &receiver.url()).await;
    for number in 0..12 {
        // By this the other one knows the tenant's settings as they are now, and needs not ask for a while.
        pair.other.emit(&tenant.id, "user.created", "{}").await;
        // Only one of the two may attempt what this one gets: here this one, there the other.
        let webhook =
            proto::WebhookChannel { url: receiver.url(), max_in_flight: 1, ..Default::default() };
        let event_type = format!("run.number_{number}");
        let (subscription, _) =
            pair.first.operator.subscribe_with(&tenant.id, &[&event_type], webhook, None).await;
        pair.first.operator.emit(&tenant.id, &event_type, "{}").await;
        let all = pair.first.operator.wait_for_all(&subscription, DeliveryState::Succeeded).await;
        assert_eq!(all.len(), 1);
    }
    pair.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_hold_a_rate_in_sum_and_one_takes_over_all_of_it() {
    const PER_SECOND: f64 = 20.0;
    let pair = Pair::start(Policy::default()).await;
    let tenant = pair.first.operator.create_tenant("Acme").await;
    let receiver = Receiver::answering(200).await;
    let webhook = proto::WebhookChannel {
        url: receiver.url(),
        max_requests_per_second: PER_SECOND,
        ..Default::default()
    };
    let (subscription, _) =
        pair.first.operator.subscribe_with(&tenant.id, &["*"], webhook, None).await;
    pair.emit(&tenant.id, 60).await;
    let all = pair.first.operator.wait_for_all(&subscription, DeliveryState::Succeeded).await;
    assert_eq!(all.len(), 60);
    let times: Vec<Instant> = receiver.requests().iter().map(|request| request.time).collect();
    // Of any 22 requests the last comes a second after the first at the earliest: 20 in a second, and
    // one more per replica. A tenth is for the way to the receiver.
    for window in times.windows(22) {
        let time = window[21] - window[0];
        assert!(time >= Duration::from_millis(850), "22 requests in {time:?}");
    }

    let Pair { first, second, .. } = pair;
    second.stop().await;
    for _ in 0..1_000 {
        if first.metric("tidings_replicas").await == 1 {
            first.stop().await;
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the one that is left never took over");
}
