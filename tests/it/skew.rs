//! Replicas whose machines have the wrong time, ten minutes ahead and ten minutes behind: nothing that
//! anybody can see depends on it, because the database's clock is the only one.
//!
//! The clock is shifted by a few lines of C that the replica is started with (`LD_PRELOAD`): Linux's
//! time namespaces leave the wall clock alone, and libfaketime would be one more package to install,
//! and shifts the steady clock, too, unless it is told not to.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tidings::api::proto::{
    ApiKey, CreateApiKeyRequest, DeliveryState, EmitRequest, GetEventRequest,
    PauseSubscriptionRequest, RetryPolicy, WebhookChannel, retry_policy,
};

use crate::support::app::emit_request;
use crate::support::fleet::Fleet;
use crate::support::preload::preload;
use crate::support::{Client, Database, Receiver, Reply};

const SHIFT_SECONDS: i64 = 600;
/// How far apart two right clocks may seem to be on a busy machine.
const TOLERANCE: Duration = Duration::from_mins(1);

/// One replica ahead, one behind. The first lines of their logs show that it is so.
async fn skewed(database: Database) -> Fleet {
    let library = preload("shifted_clock", database.folder.path()).await;
    let mut fleet = Fleet::on(database).await;
    for (number, shift) in [SHIFT_SECONDS, -SHIFT_SECONDS].into_iter().enumerate() {
        let seconds = shift.to_string();
        let variables = [("LD_PRELOAD", library.as_str()), ("CLOCK_SHIFT_SECONDS", &seconds)];
        fleet.add(&[], &variables).await;
        let line: serde_json::Value =
            serde_json::from_str(&fleet.replica(number).ready).expect("a line of JSON");
        let time = line["timestamp"].as_str().expect("a time");
        let time: jiff::Timestamp = time.parse().expect("RFC 3339");
        let off = time.as_second() - now_seconds();
        assert!((off - shift).abs() < 60, "the clock is off by {off} s, not by {shift} s");
    }
    fleet.wait_until_known().await;
    fleet
}

fn now_seconds() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    i64::try_from(now.as_secs()).expect("small")
}

fn is_now(seconds: i64) -> bool {
    now_seconds().abs_diff(seconds) < TOLERANCE.as_secs()
}

fn after(duration: Duration) -> SystemTime {
    SystemTime::now() + duration
}

fn system(time: prost_types::Timestamp) -> SystemTime {
    SystemTime::try_from(time).expect("a time")
}

async fn emit(client: &Client, request: EmitRequest) -> String {
    client.events().emit(request).await.expect("accepted").into_inner().event_id
}

/// Two replicas, a tenant whose events are delivered, and one whose are held.
struct Skewed {
    fleet: Fleet,
    receiver: Receiver,
    tenant: String,
    held: String,
}

impl Skewed {
    async fn start() -> Self {
        let fleet = skewed(Database::postgres().await).await;
        // The first attempt of a delivery of "user.retried" fails; an answer to "user.slow" takes
        // longer than two leases.
        let receiver = Receiver::scripted(|request, _| {
            let is_first = request.header("tidings-attempt") == "1";
            match request.header("tidings-event-type") {
                "user.retried" if is_first => Reply::status(503),
                "user.slow" => Reply::status(200).after(Duration::from_secs(7)),
                _ => Reply::status(200),
            }
        })
        .await;
        let (client, other) = (fleet.client(0), fleet.client(1));
        let tenant = client.create_tenant("Acme").await.id;
        let webhook = WebhookChannel { url: receiver.url(), ..Default::default() };
        let intervals = vec![prost_types::Duration { seconds: 2, nanos: 0 }];
        let schedule = retry_policy::Schedule { intervals };
        let policy = RetryPolicy {
            max_retries: Some(3),
            jitter: Some(0.0),
            backoff: Some(retry_policy::Backoff::Schedule(schedule)),
        };
        client.subscribe_with(&tenant, &["*"], webhook, Some(policy)).await;
        let held = other.create_tenant("Held").await.id;
        let (paused, _) = other.subscribe(&held, &["*"], &receiver.url()).await;
        let pause =
            PauseSubscriptionRequest { tenant_id: held.clone(), subscription_id: paused.id };
        other.subscriptions().pause_subscription(pause).await.expect("paused");
        Self { fleet, receiver, tenant, held }
    }

    fn request(&self, event_type: &str) -> EmitRequest {
        emit_request(&self.tenant, event_type, "{}")
    }

    /// When the attempts of the event's delivery began, once it has succeeded.
    async fn attempts(&self, client: &Client, event_id: &str) -> Vec<SystemTime> {
        let done = client.wait_for_state(&self.tenant, event_id, DeliveryState::Succeeded).await;
        let attempts = client.attempts(&self.tenant, &done.id).await;
        let mut times: Vec<_> =
            attempts.iter().map(|attempt| system(attempt.start_time.expect("a time"))).collect();
        times.sort_unstable();
        times
    }

    /// A key that ends in five minutes is good on both, and what it makes bears the right time.
    async fn keys_and_times_of_events(&self, client: &Client) -> usize {
        let api_key = ApiKey {
            tenant_id: self.tenant.clone(),
            display_name: "short".into(),
            scopes: vec!["events:emit".into(), "events:read".into()],
            expire_time: Some(after(Duration::from_mins(5)).into()),
            ..Default::default()
        };
        let request = CreateApiKeyRequest { api_key: Some(api_key) };
        let key = client.tenants().create_api_key(request).await.expect("created").into_inner();
        for number in 0..2 {
            let client = Client::on(self.fleet.client(number).channel.clone(), &key.secret);
            let event_id = emit(&client, self.request("user.created")).await;
            let request = GetEventRequest { tenant_id: self.tenant.clone(), event_id };
            let event = client.events().get_event(request).await.expect("found").into_inner();
            let created = event.event.expect("an event").create_time.expect("a time");
            assert!(is_now(created.seconds), "{created:?}");
        }
        2
    }

    /// What is due in two seconds is not attempted now, which is past by one clock, and not in
    /// twenty minutes; a retry comes after its two seconds.
    async fn due_times_and_retries(&self, client: &Client) -> usize {
        let due = after(Duration::from_secs(2));
        let later = EmitRequest { deliver_time: Some(due.into()), ..self.request("user.later") };
        let event_id = emit(client, later).await;
        let start = self.attempts(client, &event_id).await[0];
        assert!(start >= due && start < due + TOLERANCE, "due {due:?}, attempted {start:?}");

        let event_id = emit(client, self.request("user.retried")).await;
        let times = self.attempts(client, &event_id).await;
        assert_eq!(times.len(), 2);
        let pause = times[1].duration_since(times[0]).expect("in order");
        assert!(pause >= Duration::from_secs(2) && pause < TOLERANCE, "{pause:?}");
        3
    }

    /// What expires in five minutes is delivered; what is held expires after its three seconds.
    async fn expiry(&self, client: &Client) -> usize {
        let expire_time = Some(after(Duration::from_mins(5)).into());
        let lasting = EmitRequest { expire_time, ..self.request("user.lasting") };
        let event_id = emit(client, lasting).await;
        self.attempts(client, &event_id).await;

        let expiry = after(Duration::from_secs(3));
        let fleeting = EmitRequest {
            expire_time: Some(expiry.into()),
            ..emit_request(&self.held, "user.fleeting", "{}")
        };
        let event_id = emit(client, fleeting).await;
        client.wait_for_state(&self.held, &event_id, DeliveryState::Held).await;
        client.wait_for_state(&self.held, &event_id, DeliveryState::Expired).await;
        let now = SystemTime::now();
        assert!(now >= expiry && now < expiry + TOLERANCE, "it expires {expiry:?}, did {now:?}");
        1
    }

    /// An idempotency key names the same event on both.
    async fn idempotency(&self, client: &Client, other: &Client, key: &str) -> usize {
        let keyed = EmitRequest { idempotency_key: key.into(), ..self.request("user.created") };
        let first = client.events().emit(keyed.clone()).await.expect("accepted").into_inner();
        let again = other.events().emit(keyed).await.expect("known").into_inner();
        assert!(again.duplicate && again.event_id == first.event_id);
        1
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clocks_ten_minutes_off_change_nothing() {
    let skewed = Skewed::start().await;
    let fleet = &skewed.fleet;
    let mut expected = 0;
    for number in 0..2 {
        let (client, other) = (fleet.client(number), fleet.client(1 - number));
        expected += skewed.keys_and_times_of_events(&client).await;
        expected += skewed.due_times_and_retries(&client).await;
        expected += skewed.expiry(&client).await;
        expected += skewed.idempotency(&client, &other, &format!("invoice-{number}")).await;
    }

    // Two leases' time passes with attempts under way on both, and nobody takes anything over.
    let mut slow = Vec::new();
    for number in 0..2 {
        slow.push(emit(&fleet.client(number), skewed.request("user.slow")).await);
        expected += 1;
    }
    let requests = skewed.receiver.wait_for(expected).await;
    for request in &requests {
        let signed: i64 = request.header("webhook-timestamp").parse().expect("seconds");
        assert!(is_now(signed), "a receiver would refuse {signed}");
    }
    for (number, event_id) in slow.iter().enumerate() {
        skewed.attempts(&fleet.client(number), event_id).await;
    }
    assert_eq!(skewed.receiver.requests().len(), expected, "nothing was sent twice");
    for number in 0..2 {
        assert_eq!(fleet.metric(number, "tidings_replicas").await, 2);
        assert_eq!(fleet.metric(number, "tidings_results_fenced_total").await, 0);
    }
    skewed.fleet.kill().await;
}
