//! `SubscriptionService`: keeps who wants to be told of what, and how.

mod health;
mod preview;
mod secrets;
mod settings;

use std::sync::Arc;
use std::time::Duration;

use tonic::{Request, Response, Status};

use crate::domain::Violations;
use crate::domain::id::{SubscriptionId, TenantId};
use crate::domain::subscription::{State, Subscription};
use crate::store::Update;

use crate::api::auth::Caller;
use crate::api::context::{Context, caller, check_etag, named_tenant};
use crate::api::convert::{self, subscription as convert_subscription};
use crate::api::proto as pb;
use crate::api::proto::subscription_service_server::SubscriptionService;
use crate::api::status::Failure;
use crate::api::token::Binding;
use crate::api::{Reason, paging};

/// Subscriptions that are read at once: one may have 128 KiB of headers.
const CHUNK: u64 = 50;
/// How often a change is tried anew, when somebody else was faster and the client does not mind.
const MAX_TRIES: u32 = 5;
/// Deliveries that are settled at once, and how often, before a call answers. What is left follows
/// in the background.
const SETTLE_LIMIT: u32 = 1_000;
const MAX_SETTLES: u32 = 5;
/// The time that statistics look back, unless the client says otherwise.
const DEFAULT_WINDOW: Duration = Duration::from_hours(24);
const MIN_WINDOW: Duration = Duration::from_mins(1);
const MAX_WINDOW: Duration = Duration::from_hours(30 * 24);

/// The service.
#[derive(Clone)]
pub(super) struct Subscriptions(pub Arc<Context>);

impl Subscriptions {
    /// The subscription that a call is about. `others` is what else is wrong with the request: it is
    /// told with a name that is missing. When the names are there it is the caller's to tell, who
    /// may see more when it knows the subscription.
    async fn named(
        &self,
        caller: &Caller,
        (tenant_id, tenant_field): (&str, &str),
        (id, id_field): (&str, &str),
        others: &Violations,
    ) -> Result<Subscription, Failure> {
        let mut violations = Violations::new();
        named_tenant(caller, tenant_id, tenant_field, &mut violations)?;
        convert::require(id, id_field, &mut violations);
        if !violations.is_empty() {
            convert::merge(&mut violations, others);
            return Err(violations.into());
        }
        let tenant_id = self.0.tenant(caller, tenant_id, tenant_field, violations).await?;
        let id = SubscriptionId::parse(id);
        self.load(tenant_id, id.map_err(|_| Failure::of(Reason::SubscriptionNotFound))?).await
    }

    fn shown(&self, subscription: &Subscription) -> pb::Subscription {
        convert_subscription::subscription_to_proto(subscription, self.0.now())
    }

    async fn plainly_named(
        &self,
        caller: &Caller,
        tenant_id: &str,
        id: &str,
    ) -> Result<Subscription, Failure> {
        let others = &Violations::new();
        self.named(caller, (tenant_id, "tenant_id"), (id, "subscription_id"), others).await
    }

    async fn load(&self, tenant_id: TenantId, id: SubscriptionId) -> Result<Subscription, Failure> {
        let subscription = self.0.store.subscription(tenant_id, id).await?;
        subscription.ok_or_else(|| Failure::of(Reason::SubscriptionNotFound))
    }

    /// Changes a subscription by `change`, which says whether there is anything to store. When
    /// somebody else was faster, it is changed anew from what is there then.
    async fn change(
        &self,
        mut subscription: Subscription,
        etag: &str,
        change: impl Fn(&mut Subscription) -> Result<bool, Failure>,
    ) -> Result<Subscription, Failure> {
        for _ in 0..MAX_TRIES {
            check_etag(etag, subscription.revision, subscription.create_time)?;
            if !change(&mut subscription)? {
                return Ok(subscription);
            }
            subscription.revision += 1;
            subscription.update_time = self.0.now();
            match self.0.store.update_subscription(&subscription).await? {
                Update::Done => return Ok(subscription),
                Update::Stale => {
                    subscription = self.load(subscription.tenant_id, subscription.id).await?;
                }
            }
        }
        Err(Failure::of(Reason::EtagMismatch))
    }

    async fn list(
        &self,
        request: Request<pb::ListSubscriptionsRequest>,
    ) -> Result<pb::ListSubscriptionsResponse, Failure> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let mut violations = Violations::new();
        let size = convert::page_size(request.page_size, &mut violations);
        let read = convert_subscription::state;
        let states = &*convert::enum_list(&request.states, "states", &mut violations, read);
        let tenant_id = self.0.tenant(&caller, &request.tenant_id, "tenant_id", violations).await?;
        let binding = Binding::new("ListSubscriptions", tenant_id.as_str())
            .with_list(request.states.iter().map(ToString::to_string));
        let start: Option<SubscriptionId> = paging::place(&request.page_token, &binding)?;
        let (store, now) = (&self.0.store, self.0.now());
        let (mut subscriptions, next) = paging::gather(
            (size, CHUNK),
            start,
            |after, limit| store.list_subscriptions(tenant_id, states, after, limit),
            |subscription| subscription.id,
            |subscription| convert_subscription::subscription_to_proto(&subscription, now),
        )
        .await?;
        let next_page_token = paging::next_token(next, &binding)?;
        self.add_health(tenant_id, &mut subscriptions).await?;
        Ok(pb::ListSubscriptionsResponse { subscriptions, next_page_token })
    }

    async fn delete(&self, request: Request<pb::DeleteSubscriptionRequest>) -> Result<(), Failure> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let current =
            self.plainly_named(&caller, &request.tenant_id, &request.subscription_id).await?;
        check_etag(&request.etag, current.revision, current.create_time)?;
        let revision = (!request.etag.is_empty()).then_some(current.revision);
        let (tenant_id, id) = (current.tenant_id, current.id);
        match self.0.store.delete_subscription(tenant_id, id, revision, self.0.now()).await? {
            Update::Done => self.settle(tenant_id, id).await,
            Update::Stale if revision.is_some() => Err(Failure::of(Reason::EtagMismatch)),
            Update::Stale => Err(Failure::of(Reason::SubscriptionNotFound)),
        }
    }

    /// Brings a subscription into `state`, and its deliveries with it.
    async fn switch(
        &self,
        caller: &Caller,
        tenant_id: &str,
        id: &str,
        state: State,
    ) -> Result<Subscription, Failure> {
        let current = self.plainly_named(caller, tenant_id, id).await?;
        if state == State::Active {
            // First: a result that comes in between must not disable it again for old failures.
            self.0.store.reset_health(current.tenant_id, current.id, self.0.now()).await?;
        }
        let subscription = self
            .change(current, "", |subscription| {
                let changed = subscription.state != state;
                subscription.state = state;
                subscription.disable_reason = None;
                Ok(changed)
            })
            .await?;
        self.settle(subscription.tenant_id, subscription.id).await?;
        Ok(subscription)
    }

    /// Lets the deliveries follow their subscription: all of them when there are few, else some
    /// now and the rest in the background.
    async fn settle(&self, tenant_id: TenantId, id: SubscriptionId) -> Result<(), Failure> {
        (self.0.kick)();
        for _ in 0..MAX_SETTLES {
            let settled = self.0.store.settle(tenant_id, id, self.0.now(), SETTLE_LIMIT).await;
            match settled {
                Ok(count) if count < SETTLE_LIMIT as usize => break,
                Ok(_) => {}
                Err(error) => {
                    // The change itself is stored, and the janitor carries it through.
                    tracing::warn!(error = %error, "deliveries follow their subscription later");
                    break;
                }
            }
        }
        (self.0.kick)();
        Ok(())
    }

    async fn test(
        &self,
        request: Request<pb::TestSubscriptionRequest>,
    ) -> Result<pb::TestSubscriptionResponse, Failure> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let current =
            self.plainly_named(&caller, &request.tenant_id, &request.subscription_id).await?;
        let result = self.0.attempts.test(current.tenant_id, current.id).await;
        let result = result.map_err(|error| error.failure(Reason::SubscriptionNotFound))?;
        Ok(pb::TestSubscriptionResponse {
            attempt: Some(convert::delivery::attempt_to_proto(result.attempt)),
            event_id: result.event_id.to_string(),
        })
    }

    async fn stats(
        &self,
        request: Request<pb::GetSubscriptionStatsRequest>,
    ) -> Result<pb::SubscriptionStats, Failure> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let mut violations = Violations::new();
        let window = convert::duration(request.window.as_ref(), "window", &mut violations);
        let window = window.unwrap_or(DEFAULT_WINDOW);
        if !(MIN_WINDOW..=MAX_WINDOW).contains(&window) {
            violations.add("window", "must be from 60s to 30 days (2592000s)");
        }
        let (owner, id) = (&*request.tenant_id, &*request.subscription_id);
        let (owner, id) = ((owner, "tenant_id"), (id, "subscription_id"));
        let current = self.named(&caller, owner, id, &violations).await?;
        violations.or_ok(())?;
        let now = self.0.now();
        let from = now.minus(window);
        let stats = self.0.store.subscription_stats(current.tenant_id, current.id, from).await?;
        Ok(convert_subscription::stats_to_proto(&stats, from, now))
    }
}

#[tonic::async_trait]
impl SubscriptionService for Subscriptions {
    async fn create_subscription(
        &self,
        request: Request<pb::CreateSubscriptionRequest>,
    ) -> Result<Response<pb::CreateSubscriptionResponse>, Status> {
        Ok(Response::new(self.create(request).await?))
    }

    async fn get_subscription(
        &self,
        request: Request<pb::GetSubscriptionRequest>,
    ) -> Result<Response<pb::GetSubscriptionResponse>, Status> {
        let caller = caller(&request)?;
        let message = request.get_ref();
        let found =
            self.plainly_named(&caller, &message.tenant_id, &message.subscription_id).await?;
        let subscription = Some(self.with_health(&found).await?);
        Ok(Response::new(pb::GetSubscriptionResponse { subscription }))
    }

    async fn list_subscriptions(
        &self,
        request: Request<pb::ListSubscriptionsRequest>,
    ) -> Result<Response<pb::ListSubscriptionsResponse>, Status> {
        Ok(Response::new(self.list(request).await?))
    }

    async fn update_subscription(
        &self,
        request: Request<pb::UpdateSubscriptionRequest>,
    ) -> Result<Response<pb::UpdateSubscriptionResponse>, Status> {
        let updated = self.update(request).await?;
        let subscription = Some(self.with_health(&updated).await?);
        Ok(Response::new(pb::UpdateSubscriptionResponse { subscription }))
    }

    async fn delete_subscription(
        &self,
        request: Request<pb::DeleteSubscriptionRequest>,
    ) -> Result<Response<pb::DeleteSubscriptionResponse>, Status> {
        self.delete(request).await?;
        Ok(Response::new(pb::DeleteSubscriptionResponse {}))
    }

    async fn pause_subscription(
        &self,
        request: Request<pb::PauseSubscriptionRequest>,
    ) -> Result<Response<pb::PauseSubscriptionResponse>, Status> {
        let caller = caller(&request)?;
        let message = request.get_ref();
        let (tenant_id, id) = (&message.tenant_id, &message.subscription_id);
        let paused = self.switch(&caller, tenant_id, id, State::Paused).await?;
        let subscription = Some(self.with_health(&paused).await?);
        Ok(Response::new(pb::PauseSubscriptionResponse { subscription }))
    }

    async fn resume_subscription(
        &self,
        request: Request<pb::ResumeSubscriptionRequest>,
    ) -> Result<Response<pb::ResumeSubscriptionResponse>, Status> {
        let caller = caller(&request)?;
        let message = request.get_ref();
        let (tenant_id, id) = (&message.tenant_id, &message.subscription_id);
        let resumed = self.switch(&caller, tenant_id, id, State::Active).await?;
        let subscription = Some(self.with_health(&resumed).await?);
        Ok(Response::new(pb::ResumeSubscriptionResponse { subscription }))
    }

    async fn rotate_secret(
        &self,
        request: Request<pb::RotateSecretRequest>,
    ) -> Result<Response<pb::RotateSecretResponse>, Status> {
        Ok(Response::new(self.rotate(request).await?))
    }

    async fn test_subscription(
        &self,
        request: Request<pb::TestSubscriptionRequest>,
    ) -> Result<Response<pb::TestSubscriptionResponse>, Status> {
        Ok(Response::new(self.test(request).await?))
    }

    async fn check_subscription(
        &self,
        _request: Request<pb::CheckSubscriptionRequest>,
    ) -> Result<Response<pb::CheckSubscriptionResponse>, Status> {
        Err(Failure::not_implemented("CheckSubscription").into())
    }

    async fn preview_email(
        &self,
        request: Request<pb::PreviewEmailRequest>,
    ) -> Result<Response<pb::PreviewEmailResponse>, Status> {
        Ok(Response::new(self.preview(request).await?))
    }

    async fn get_subscription_stats(
        &self,
        request: Request<pb::GetSubscriptionStatsRequest>,
    ) -> Result<Response<pb::GetSubscriptionStatsResponse>, Status> {
        let stats = Some(self.stats(request).await?);
        Ok(Response::new(pb::GetSubscriptionStatsResponse { stats }))
    }
}
