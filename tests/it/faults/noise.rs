//! What happens beside the load, on a tenant of its own, so that every durable step is taken again and
//! again: settings change, a subscription is paused and resumed, another one is disabled by its
//! endpoint, deliveries are attempted by hand, tenants are made and deleted.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use sea_orm::Database as SeaDatabase;
use tidings::api::proto::{self, DeliveryState, SubscriptionState};
use tidings::domain::delivery::State;
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use super::world::count;
use crate::support::app::{emit_request, quick_retries};
use crate::support::{Client, Database, Receiver, Reply};

const PAUSE: Duration = Duration::from_millis(30);
const DEADLINE: Duration = Duration::from_secs(5);
/// The event that tells of a subscription that its endpoint has disabled.
const DISABLED: &str = "tidings.subscription.disabled";

pub(super) struct Noise {
    shared: Arc<Shared>,
    task: JoinSet<()>,
    _receivers: [Receiver; 3],
}

struct Shared {
    target: Mutex<Option<Channel>>,
    key: String,
    tenant_id: String,
    /// Follows its tenant's events.
    good: proto::Subscription,
    /// Its endpoint says that it is gone, each time.
    gone: proto::Subscription,
    /// Its endpoint fails the first attempts, and no tests.
    ill: proto::Subscription,
    rounds: AtomicUsize,
}

fn until_answered<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(DEADLINE);
    request
}

impl Noise {
    pub(super) async fn begin(client: &Client, key: &str) -> Self {
        let ill = Receiver::scripted(|captured, _| {
            let is_failed = captured.header("tidings-attempt") == "1"
                && captured.header("tidings-event-type") != "tidings.ping";
            Reply::status(if is_failed { 500 } else { 200 })
        });
        let receivers = [Receiver::answering(200).await, Receiver::answering(410).await, ill.await];
        let tenant_id = client.create_tenant("Noise").await.id;
        let subscribe = async |types: &[&str], receiver: &Receiver| {
            let webhook =
                proto::WebhookChannel { url: receiver.url(), ..proto::WebhookChannel::default() };
            client.subscribe_with(&tenant_id, types, webhook, Some(quick_retries(50))).await.0
        };
        let good = subscribe(&["noise.*", "tidings.*"], &receivers[0]).await;
        let gone = subscribe(&["gone.*"], &receivers[1]).await;
        let ill = subscribe(&["ill.*"], &receivers[2]).await;
        let target = Mutex::default();
        let shared = Arc::new(Shared {
            target,
            key: key.into(),
            tenant_id,
            good,
            gone,
            ill,
            rounds: AtomicUsize::new(0),
        });
        let mut task = JoinSet::new();
        let own = Arc::clone(&shared);
        task.spawn(async move {
            loop {
                // What fails is asked for again in the next round.
                if own.round().await.is_ok() {
                    own.rounds.fetch_add(1, Ordering::Relaxed);
                }
                tokio::time::sleep(PAUSE).await;
            }
        });
        Self { shared, task, _receivers: receivers }
    }

    /// Asks another replica from now on.
    pub(super) fn go_to(&self, endpoint: &str) {
        let channel = Endpoint::from_shared(endpoint.to_owned()).expect("a URL").connect_lazy();
        *self.shared.target.lock().unwrap_or_else(PoisonError::into_inner) = Some(channel);
    }

    /// Waits until everything has happened once more.
    pub(super) async fn wait_for_a_round(&self) {
        let rounds = || self.shared.rounds.load(Ordering::Relaxed);
        let (before, start) = (rounds(), Instant::now());
        while rounds() == before {
            assert!(start.elapsed() < Duration::from_mins(1), "the noise comes to no end");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends the noise, and checks that the tenant was told once of each time that its subscription
    /// was disabled.
    pub(super) async fn end(mut self, database: &Database) {
        self.task.shutdown().await;
        let connection =
            SeaDatabase::connect(&database.config.database_url).await.expect("connected");
        let tenant_id = &self.shared.tenant_id;
        // In one look: what ends between two of them leaves an announcement that neither has seen. What the
        // last round left is still to be attempted.
        let open = format!(
            "SELECT (SELECT count(*) FROM announcements WHERE tenant_id = '{tenant_id}')
                + (SELECT count(*) FROM deliveries WHERE tenant_id = '{tenant_id}'
                   AND (state = {delivering} OR state = {scheduled} AND subscription_id = '{gone}'))",
            delivering = State::Delivering.code(),
            scheduled = State::Scheduled.code(),
            gone = self.shared.gone.id,
        );
        let start = Instant::now();
        while count(&connection, &open).await > 0 {
            assert!(start.elapsed() < Duration::from_mins(1), "announcements are never emitted");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let revision = format!(
            "SELECT CAST(revision AS BIGINT) FROM subscriptions WHERE id = '{}'",
            self.shared.gone.id
        );
        // It is made active, and every other change disables it.
        let disabled = count(&connection, &revision).await / 2;
        let told = format!(
            "SELECT count(*) FROM events WHERE tenant_id = '{tenant_id}' AND type = '{DISABLED}'"
        );
        assert_eq!(count(&connection, &told).await, disabled, "told once each time");
        connection.close().await.expect("closed");
    }
}

impl Shared {
    fn client(&self) -> Option<Client> {
        let channel = self.target.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        Some(Client::on(channel, &self.key))
    }

    async fn round(&self) -> Result<(), Status> {
        let Some(client) = self.client() else { return Ok(()) };
        self.pause_and_resume(&client).await?;
        self.disable_and_resume(&client).await?;
        self.attempt_by_hand(&client).await?;
        self.test(&client).await?;
        let tenant = proto::Tenant { display_name: "Short".into(), ..proto::Tenant::default() };
        let request = proto::CreateTenantRequest { tenant: Some(tenant) };
        let made = client.tenants().create_tenant(until_answered(request)).await?.into_inner();
        let tenant_id = made.tenant.unwrap_or_default().id;
        let request = proto::DeleteTenantRequest { tenant_id, ..Default::default() };
        client.tenants().delete_tenant(until_answered(request)).await?;
        Ok(())
    }

    async fn emit(&self, client: &Client, event_type: &str) -> Result<(), Status> {
        let request = emit_request(&self.tenant_id, event_type, "{}");
        client.events().emit(until_answered(request)).await?;
        Ok(())
    }

    async fn pause_and_resume(&self, client: &Client) -> Result<(), Status> {
        let (tenant_id, subscription_id) = (self.tenant_id.clone(), self.good.id.clone());
        let pause = proto::PauseSubscriptionRequest {
            tenant_id: tenant_id.clone(),
            subscription_id: subscription_id.clone(),
        };
        client.subscriptions().pause_subscription(until_answered(pause)).await?;
        let emitted = self.emit(client, "noise.held").await;
        tokio::time::sleep(PAUSE).await;
        let resume = proto::ResumeSubscriptionRequest { tenant_id, subscription_id };
        client.subscriptions().resume_subscription(until_answered(resume)).await?;
        emitted?;
        self.emit(client, "noise.sent").await
    }

    async fn disable_and_resume(&self, client: &Client) -> Result<(), Status> {
        let (tenant_id, subscription_id) = (self.tenant_id.clone(), self.gone.id.clone());
        let get = proto::GetSubscriptionRequest {
            tenant_id: tenant_id.clone(),
            subscription_id: subscription_id.clone(),
        };
        let found = client.subscriptions().get_subscription(until_answered(get)).await?;
        let state = found.into_inner().subscription.map(|found| found.state());
        if state == Some(SubscriptionState::Disabled) {
            let resume = proto::ResumeSubscriptionRequest {
                tenant_id: tenant_id.clone(),
                subscription_id: subscription_id.clone(),
            };
            client.subscriptions().resume_subscription(until_answered(resume)).await?;
        }
        self.emit(client, "gone.now").await
    }

    /// Has the endpoint that fails be seen to work.
    async fn test(&self, client: &Client) -> Result<(), Status> {
        self.emit(client, "ill.now").await?;
        let (tenant_id, subscription_id) = (self.tenant_id.clone(), self.ill.id.clone());
        let test = proto::TestSubscriptionRequest { tenant_id, subscription_id };
        client.subscriptions().test_subscription(until_answered(test)).await?;
        Ok(())
    }

    /// Attempts one delivery that waits for tomorrow, and one that has ended.
    async fn attempt_by_hand(&self, client: &Client) -> Result<(), Status> {
        let tomorrow = SystemTime::now() + Duration::from_hours(24);
        let request = proto::EmitRequest {
            deliver_time: Some(tomorrow.into()),
            ..emit_request(&self.tenant_id, "noise.later", "{}")
        };
        client.events().emit(until_answered(request)).await?;
        for state in [DeliveryState::Scheduled, DeliveryState::Succeeded] {
            let list = proto::ListDeliveriesRequest {
                tenant_id: self.tenant_id.clone(),
                subscription_id: self.good.id.clone(),
                states: vec![state as i32],
                page_size: 1,
                ..Default::default()
            };
            let found = client.deliveries().list_deliveries(until_answered(list)).await?;
            for delivery in found.into_inner().deliveries {
                let retry = proto::RetryDeliveryRequest {
                    tenant_id: self.tenant_id.clone(),
                    delivery_id: delivery.id,
                };
                client.deliveries().retry_delivery(until_answered(retry)).await?;
            }
        }
        Ok(())
    }
}
