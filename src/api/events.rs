//! `EventService`: takes events in, and gives them out again.

use std::sync::Arc;

use futures::future::join_all;
use futures::stream::BoxStream;
use tonic::{Request, Response, Status, Streaming};

use crate::domain::Violations;
use crate::domain::id::EventId;
use crate::domain::trace::TraceContext;

use super::Reason;
use super::auth::Caller;
use super::context::{Context, caller, named_tenant, parent_trace};
use super::convert::{self, event as convert_event};
use super::paging;
use super::proto as pb;
use super::proto::event_service_server::EventService;
use super::status::Failure;
use super::stream::emit_stream;
use super::token::Binding;

/// Most events in one batch.
const MAX_BATCH: usize = 1_000;
/// Events that are read at once: a payload may have 256 KiB.
const CHUNK: u64 = 32;

/// The service.
#[derive(Clone)]
pub(super) struct Events(pub Arc<Context>);

impl Events {
    /// Accepts one event: what `Emit` does, and what is done with each item of many.
    pub(super) async fn accept(
        &self,
        caller: &Caller,
        default_tenant: &str,
        request: pb::EmitRequest,
        trace: TraceContext,
    ) -> Result<pb::EmitResponse, Failure> {
        let mut violations = Violations::new();
        let requested =
            if request.tenant_id.is_empty() { default_tenant } else { &request.tenant_id };
        let tenant_id = named_tenant(caller, requested, "tenant_id", &mut violations)?;
        let event = convert_event::new_event(request, tenant_id, trace, &mut violations);
        if !violations.is_empty() {
            event.check(self.0.now(), self.0.max_payload_bytes, &mut violations);
            return Err(violations.into());
        }
        let accepted = self.0.intake.emit(event, caller.deadline).await?;
        Ok(convert_event::accepted_to_proto(&accepted))
    }

    async fn get(&self, request: Request<pb::GetEventRequest>) -> Result<pb::Event, Failure> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let mut violations = Violations::new();
        convert::require(&request.event_id, "event_id", &mut violations);
        let tenant_id = self.0.tenant(&caller, &request.tenant_id, "tenant_id", violations).await?;
        let event = match EventId::parse(&request.event_id) {
            Ok(id) => self.0.store.event(tenant_id, id).await?,
            Err(_) => None,
        };
        let event = event.ok_or_else(|| Failure::of(Reason::EventNotFound))?;
        Ok(convert_event::event_to_proto(event))
    }

    async fn list(
        &self,
        request: Request<pb::ListEventsRequest>,
    ) -> Result<pb::ListEventsResponse, Failure> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let mut violations = Violations::new();
        let size = convert::page_size(request.page_size, &mut violations);
        let filter = &convert_event::event_filter(&request, &mut violations);
        let tenant_id = self.0.tenant(&caller, &request.tenant_id, "tenant_id", violations).await?;
        let binding = Binding::new("ListEvents", tenant_id.as_str())
            .with_list(request.event_types.iter())
            .with(&request.subject)
            .with(&format!("{:?} {:?}", filter.create_time_from, filter.create_time_until));
        let start: Option<EventId> = paging::place(&request.page_token, &binding)?;
        let store = &self.0.store;
        let (events, next) = paging::gather(
            (size, CHUNK),
            start,
            |before, limit| store.list_events(tenant_id, filter, before, limit),
            |event| event.id,
            convert_event::event_to_proto,
        )
        .await?;
        let next_page_token = paging::next_token(next, &binding)?;
        Ok(pb::ListEventsResponse { events, next_page_token })
    }
}

#[tonic::async_trait]
impl EventService for Events {
    type EmitStreamStream = BoxStream<'static, Result<pb::EmitStreamResponse, Status>>;

    async fn emit(
        &self,
        request: Request<pb::EmitRequest>,
    ) -> Result<Response<pb::EmitResponse>, Status> {
        let caller = caller(&request)?;
        let span = self.0.begin_span(parent_trace(request.metadata()));
        let result = self.accept(&caller, "", request.into_inner(), span.context).await;
        self.0.end_span(span, "tidings.v1.EventService/Emit", result.as_ref().err());
        Ok(Response::new(result?))
    }

    async fn emit_batch(
        &self,
        request: Request<pb::EmitBatchRequest>,
    ) -> Result<Response<pb::EmitBatchResponse>, Status> {
        let caller = caller(&request)?;
        let span = self.0.begin_span(parent_trace(request.metadata()));
        let batch = request.into_inner();
        let count = batch.requests.len();
        let result = if !batch.tenant_id.is_empty()
            && let Err(failure) =
                named_tenant(&caller, &batch.tenant_id, "tenant_id", &mut Violations::new())
        {
            // Somebody else's tenant: no item can be accepted.
            Err(failure)
        } else if (1..=MAX_BATCH).contains(&count) {
            self.0.auth.count_more(&caller, count - 1);
            // All at once, so that they share a commit.
            let items = batch.requests.into_iter();
            let items =
                items.map(|item| self.accept(&caller, &batch.tenant_id, item, span.context));
            let results = join_all(items).await;
            Ok(results.into_iter().map(convert_event::result_to_proto).collect())
        } else {
            let description = format!("must have 1 to {MAX_BATCH} items, has {count}");
            Err(Failure::invalid("requests", description))
        };
        self.0.end_span(span, "tidings.v1.EventService/EmitBatch", result.as_ref().err());
        Ok(Response::new(pb::EmitBatchResponse { results: result? }))
    }

    async fn emit_stream(
        &self,
        request: Request<Streaming<pb::EmitStreamRequest>>,
    ) -> Result<Response<Self::EmitStreamStream>, Status> {
        let caller = caller(&request)?;
        let place = self.0.open_stream()?;
        let parent = parent_trace(request.metadata());
        let responses = emit_stream(self.clone(), caller, parent, request.into_inner(), place);
        Ok(Response::new(responses))
    }

    async fn get_event(
        &self,
        request: Request<pb::GetEventRequest>,
    ) -> Result<Response<pb::GetEventResponse>, Status> {
        let event = Some(self.get(request).await?);
        Ok(Response::new(pb::GetEventResponse { event }))
    }

    async fn list_events(
        &self,
        request: Request<pb::ListEventsRequest>,
    ) -> Result<Response<pb::ListEventsResponse>, Status> {
        Ok(Response::new(self.list(request).await?))
    }

    async fn poll_events(
        &self,
        _request: Request<pb::PollEventsRequest>,
    ) -> Result<Response<pb::PollEventsResponse>, Status> {
        Err(Failure::not_implemented("PollEvents").into())
    }
}
