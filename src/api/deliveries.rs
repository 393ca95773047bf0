//! `DeliveryService`: shows what became of events, and lets people step in.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use crate::domain::Violations;
use crate::domain::id::{DeliveryId, TenantId};
use crate::store::CancelResult;

use super::context::{Context, caller};
use super::convert::{self, delivery as convert_delivery};
use super::proto as pb;
use super::proto::delivery_service_server::DeliveryService;
use super::status::Failure;
use super::token::Binding;
use super::watch::{WatchStream, watch};
use super::{Reason, paging};

/// Deliveries that are read at once.
const CHUNK: u64 = 250;
/// Attempts that are read at once: one has up to 20 KiB of headers and body.
const ATTEMPT_CHUNK: u64 = 50;

/// The service.
#[derive(Clone)]
pub(super) struct Deliveries(pub Arc<Context>);

impl Deliveries {
    /// The delivery that a call is about. `violations` is what else is wrong with the request.
    async fn named<T>(
        &self,
        request: &Request<T>,
        tenant_id: &str,
        delivery_id: &str,
        mut violations: Violations,
    ) -> Result<(TenantId, DeliveryId), Failure> {
        let caller = caller(request)?;
        convert::require(delivery_id, "delivery_id", &mut violations);
        let tenant_id = self.0.tenant(&caller, tenant_id, "tenant_id", violations).await?;
        let delivery_id = DeliveryId::parse(delivery_id);
        Ok((tenant_id, delivery_id.map_err(|_| Failure::of(Reason::DeliveryNotFound))?))
    }

    /// The same where there is nothing else in the request.
    async fn plainly_named<T>(
        &self,
        request: &Request<T>,
        tenant_id: &str,
        delivery_id: &str,
    ) -> Result<(TenantId, DeliveryId), Failure> {
        self.named(request, tenant_id, delivery_id, Violations::new()).await
    }

    async fn get(
        &self,
        request: &Request<pb::GetDeliveryRequest>,
    ) -> Result<pb::Delivery, Failure> {
        let message = request.get_ref();
        let (tenant, id) =
            self.plainly_named(request, &message.tenant_id, &message.delivery_id).await?;
        let delivery = self.0.store.delivery(tenant, id).await?;
        let delivery = delivery.ok_or_else(|| Failure::of(Reason::DeliveryNotFound))?;
        Ok(convert_delivery::delivery_to_proto(delivery))
    }

    async fn list(
        &self,
        request: Request<pb::ListDeliveriesRequest>,
    ) -> Result<pb::ListDeliveriesResponse, Failure> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let mut violations = Violations::new();
        let size = convert::page_size(request.page_size, &mut violations);
        let filter = &convert_delivery::delivery_filter(&request, &mut violations);
        let tenant_id = self.0.tenant(&caller, &request.tenant_id, "tenant_id", violations).await?;
        let binding = Binding::new("ListDeliveries", tenant_id.as_str())
            .with(&request.subscription_id)
            .with(&request.event_id)
            .with_list(request.event_types.iter())
            .with_list(request.states.iter().map(ToString::to_string))
            .with_list(request.failure_reasons.iter().map(ToString::to_string))
            .with(&format!("{:?} {:?}", filter.create_time_from, filter.create_time_until));
        let start: Option<DeliveryId> = paging::place(&request.page_token, &binding)?;
        let store = &self.0.store;
        let (deliveries, next) = paging::gather(
            (size, CHUNK),
            start,
            |before, limit| store.list_deliveries(tenant_id, filter, before, limit),
            |delivery| delivery.id,
            convert_delivery::delivery_to_proto,
        )
        .await?;
        let next_page_token = paging::next_token(next, &binding)?;
        Ok(pb::ListDeliveriesResponse { deliveries, next_page_token })
    }

    async fn attempts(
        &self,
        request: &Request<pb::ListAttemptsRequest>,
    ) -> Result<pb::ListAttemptsResponse, Failure> {
        let message = request.get_ref();
        let mut violations = Violations::new();
        let size = convert::page_size(message.page_size, &mut violations);
        let (tenant, id) =
            self.named(request, &message.tenant_id, &message.delivery_id, violations).await?;
        let binding = Binding::new("ListAttempts", tenant.as_str()).with(id.as_str());
        let start: Option<u32> = paging::place(&message.page_token, &binding)?;
        let store = &self.0.store;
        let delivery = store.delivery(tenant, id).await?;
        delivery.ok_or_else(|| Failure::of(Reason::DeliveryNotFound))?;
        let (attempts, next) = paging::gather(
            (size, ATTEMPT_CHUNK),
            start,
            |after, limit| store.list_attempts(tenant, id, after.unwrap_or(0), limit),
            |attempt| attempt.number,
            convert_delivery::attempt_to_proto,
        )
        .await?;
        let next_page_token = paging::next_token(next, &binding)?;
        Ok(pb::ListAttemptsResponse { attempts, next_page_token })
    }

    async fn retry(
        &self,
        request: &Request<pb::RetryDeliveryRequest>,
    ) -> Result<pb::RetryDeliveryResponse, Failure> {
        let message = request.get_ref();
        let (tenant, id) =
            self.plainly_named(request, &message.tenant_id, &message.delivery_id).await?;
        let result = self.0.attempts.retry(tenant, id).await;
        let result = result.map_err(|error| error.failure(Reason::DeliveryNotFound))?;
        Ok(pb::RetryDeliveryResponse {
            delivery: Some(convert_delivery::delivery_to_proto(result.delivery)),
            attempt: Some(convert_delivery::attempt_to_proto(result.attempt)),
        })
    }

    async fn cancel(
        &self,
        request: &Request<pb::CancelDeliveryRequest>,
    ) -> Result<pb::Delivery, Failure> {
        let message = request.get_ref();
        let (tenant, id) =
            self.plainly_named(request, &message.tenant_id, &message.delivery_id).await?;
        match self.0.store.cancel(tenant, id, self.0.now()).await? {
            CancelResult::Canceled(delivery) => Ok(convert_delivery::delivery_to_proto(*delivery)),
            CancelResult::NotFound => Err(Failure::of(Reason::DeliveryNotFound)),
            CancelResult::Ended(delivery) => {
                let state = delivery.state.as_str();
                let message = format!("The delivery has ended already: it is {state}.");
                Err(Failure::new(Reason::DeliveryEnded, message))
            }
        }
    }
}

#[tonic::async_trait]
impl DeliveryService for Deliveries {
    type WatchDeliveriesStream = WatchStream;

    async fn get_delivery(
        &self,
        request: Request<pb::GetDeliveryRequest>,
    ) -> Result<Response<pb::GetDeliveryResponse>, Status> {
        let delivery = Some(self.get(&request).await?);
        Ok(Response::new(pb::GetDeliveryResponse { delivery }))
    }

    async fn list_deliveries(
        &self,
        request: Request<pb::ListDeliveriesRequest>,
    ) -> Result<Response<pb::ListDeliveriesResponse>, Status> {
        Ok(Response::new(self.list(request).await?))
    }

    async fn list_attempts(
        &self,
        request: Request<pb::ListAttemptsRequest>,
    ) -> Result<Response<pb::ListAttemptsResponse>, Status> {
        Ok(Response::new(self.attempts(&request).await?))
    }

    async fn watch_deliveries(
        &self,
        request: Request<pb::WatchDeliveriesRequest>,
    ) -> Result<Response<WatchStream>, Status> {
        let caller = caller(&request)?;
        Ok(Response::new(watch(&self.0, caller, request.into_inner()).await?))
    }

    async fn retry_delivery(
        &self,
        request: Request<pb::RetryDeliveryRequest>,
    ) -> Result<Response<pb::RetryDeliveryResponse>, Status> {
        Ok(Response::new(self.retry(&request).await?))
    }

    async fn cancel_delivery(
        &self,
        request: Request<pb::CancelDeliveryRequest>,
    ) -> Result<Response<pb::CancelDeliveryResponse>, Status> {
        let delivery = Some(self.cancel(&request).await?);
        Ok(Response::new(pb::CancelDeliveryResponse { delivery }))
    }
}
