//! `SuppressionService`: keeps the addresses that get nothing more, and takes reports about messages.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use crate::domain::feedback::Ignored;
use crate::domain::id::{SubscriptionId, TenantId};
use crate::domain::suppression::{Reason as Why, Suppression, detail};
use crate::domain::{Violations, mail_address};
use crate::store::{FeedbackResult, Suppressing};

use super::context::{Context, caller};
use super::convert::{self, suppression as convert_suppression};
use super::proto as pb;
use super::proto::suppression_service_server::SuppressionService;
use super::status::Failure;
use super::token::Binding;
use super::{Reason, paging};

/// Suppressions that are read at once.
const CHUNK: u64 = 500;

/// The service.
#[derive(Clone)]
pub(super) struct Suppressions(pub Arc<Context>);

impl Suppressions {
    async fn list(
        &self,
        request: Request<pb::ListSuppressionsRequest>,
    ) -> Result<pb::ListSuppressionsResponse, Failure> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let mut violations = Violations::new();
        let size = convert::page_size(request.page_size, &mut violations);
        let address = if request.address.is_empty() {
            String::new()
        } else {
            let address = mail_address::check_one(&request.address, "address", &mut violations);
            address.map(|address| address.key()).unwrap_or_default()
        };
        let tenant_id = self.0.tenant(&caller, &request.tenant_id, "tenant_id", violations).await?;
        let binding = Binding::new("ListSuppressions", tenant_id.as_str()).with(&address);
        let start: Option<(String, String)> = paging::place(&request.page_token, &binding)?;
        let (store, wanted) = (&self.0.store, address.as_str());
        let (suppressions, next) = paging::gather(
            (size, CHUNK),
            start,
            |after, limit| store.list_suppressions(tenant_id, wanted, after, limit),
            |suppression| {
                let subscription_id = suppression.subscription_id.map(|id| id.to_string());
                (suppression.address.clone(), subscription_id.unwrap_or_default())
            },
            convert_suppression::suppression_to_proto,
        )
        .await?;
        let next_page_token = paging::next_token(next, &binding)?;
        Ok(pb::ListSuppressionsResponse { suppressions, next_page_token })
    }

    async fn create(
        &self,
        request: Request<pb::CreateSuppressionRequest>,
    ) -> Result<Suppression, Failure> {
        let caller = caller(&request)?;
        let message = request.into_inner().suppression.unwrap_or_default();
        let mut violations = Violations::new();
        let address =
            mail_address::check_one(&message.address, "suppression.address", &mut violations);
        let owner = (&message.tenant_id, "suppression.tenant_id");
        let tenant_id = self.0.tenant(&caller, owner.0, owner.1, violations).await?;
        let subscription_id = self.subscription(tenant_id, &message.subscription_id).await?;
        let wanted = Suppression {
            tenant_id,
            address: address.map(|address| address.key()).unwrap_or_default(),
            subscription_id,
            reason: Why::Manual,
            detail: detail(&message.detail),
            delivery_id: None,
            create_time: self.0.now(),
        };
        match self.0.store.suppress(&wanted).await? {
            Suppressing::Done(suppression) | Suppressing::Known(suppression) => Ok(suppression),
            Suppressing::NoTenant => Err(Failure::of(Reason::TenantNotFound)),
        }
    }

    /// The subscription that a request names, which the tenant has.
    async fn subscription(
        &self,
        tenant_id: TenantId,
        id: &str,
    ) -> Result<Option<SubscriptionId>, Failure> {
        if id.is_empty() {
            return Ok(None);
        }
        let not_found = || Failure::of(Reason::SubscriptionNotFound);
        let id = SubscriptionId::parse(id).map_err(|_| not_found())?;
        let found = self.0.store.subscription(tenant_id, id).await?;
        Ok(Some(found.ok_or_else(not_found)?.id))
    }

    async fn delete(&self, request: Request<pb::DeleteSuppressionRequest>) -> Result<(), Failure> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let mut violations = Violations::new();
        let address = mail_address::check_one(&request.address, "address", &mut violations);
        let tenant_id = self.0.tenant(&caller, &request.tenant_id, "tenant_id", violations).await?;
        let not_found = || Failure::of(Reason::SuppressionNotFound);
        // It may be of a subscription that is gone.
        let subscription_id = match request.subscription_id.as_str() {
            "" => None,
            id => Some(SubscriptionId::parse(id).map_err(|_| not_found())?),
        };
        let address = address.map(|address| address.key()).unwrap_or_default();
        let was_there = self.0.store.unsuppress(tenant_id, &address, subscription_id, None).await?;
        was_there.then_some(()).ok_or_else(not_found)
    }

    async fn report(
        &self,
        request: Request<pb::ReportFeedbackRequest>,
    ) -> Result<FeedbackResult, Failure> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        // An operator who names no tenant reports on everybody's deliveries.
        let tenant_id = self.0.tenant_or_platform(&caller, &request.tenant_id).await?;
        let mut violations = Violations::new();
        let feedback = convert_suppression::feedback(request.report.as_ref(), &mut violations);
        if tenant_id.is_none() && names_no_delivery(&request) {
            violations
                .add("tenant_id", "must name the tenant, because the report names no delivery");
        }
        violations.or_ok(())?;
        let Some(feedback) = feedback else {
            return Ok(FeedbackResult::Ignored(Ignored::NotAReport));
        };
        let result = self.0.store.take_feedback(&feedback, tenant_id, self.0.now()).await?;
        if matches!(result, FeedbackResult::Suppressed(_)) {
            (self.0.kick)();
        }
        Ok(result)
    }
}

fn names_no_delivery(request: &pb::ReportFeedbackRequest) -> bool {
    use pb::report_feedback_request::Report;
    matches!(&request.report, Some(Report::Feedback(feedback)) if feedback.delivery_id.is_empty())
}

#[tonic::async_trait]
impl SuppressionService for Suppressions {
    async fn list_suppressions(
        &self,
        request: Request<pb::ListSuppressionsRequest>,
    ) -> Result<Response<pb::ListSuppressionsResponse>, Status> {
        Ok(Response::new(self.list(request).await?))
    }

    async fn create_suppression(
        &self,
        request: Request<pb::CreateSuppressionRequest>,
    ) -> Result<Response<pb::CreateSuppressionResponse>, Status> {
        let created = self.create(request).await?;
        let suppression = Some(convert_suppression::suppression_to_proto(created));
        Ok(Response::new(pb::CreateSuppressionResponse { suppression }))
    }

    async fn delete_suppression(
        &self,
        request: Request<pb::DeleteSuppressionRequest>,
    ) -> Result<Response<pb::DeleteSuppressionResponse>, Status> {
        self.delete(request).await?;
        Ok(Response::new(pb::DeleteSuppressionResponse {}))
    }

    async fn report_feedback(
        &self,
        request: Request<pb::ReportFeedbackRequest>,
    ) -> Result<Response<pb::ReportFeedbackResponse>, Status> {
        let result = self.report(request).await?;
        Ok(Response::new(convert_suppression::result_to_proto(result)))
    }
}
