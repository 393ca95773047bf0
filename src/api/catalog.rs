//! `CatalogService`: keeps which kinds of event there are, and what they mean.

use std::sync::Arc;

use prost::Message;
use tonic::{Request, Response, Status};

use crate::domain::Violations;
use crate::domain::event_type::{EventType, EventTypeSpec, Status as TypeStatus};
use crate::domain::id::TenantId;
use crate::store::Update;

use super::Reason;
use super::context::{Context, caller, check_etag};
use super::convert::{self, catalog as convert_catalog};
use super::paging::{self, ITEM_OVERHEAD, MAX_PAGE_BYTES};
use super::proto as pb;
use super::proto::catalog_service_server::CatalogService;
use super::status::Failure;
use super::token::Binding;

/// Event types that are read at once: one may have 80 KiB of schema and text.
const CHUNK: u64 = 50;
/// Most event types that one call looks through for a filter, before it answers with what it has.
const MAX_SCANNED: u64 = 2_000;
/// How often a change is tried anew, when somebody else was faster and the client does not mind.
const MAX_TRIES: u32 = 5;

/// The service.
#[derive(Clone)]
pub(super) struct Catalog(pub Arc<Context>);

/// A place in the list: a name, and whether it was the platform's.
type Place = (String, bool);

/// Which event types to list.
struct Filter {
    category: String,
    statuses: Vec<TypeStatus>,
}

impl Filter {
    fn matches(&self, spec: &EventTypeSpec) -> bool {
        (self.category.is_empty() || self.category == spec.category)
            && (self.statuses.is_empty() || self.statuses.contains(&spec.status))
    }
}

impl Catalog {
    async fn create(
        &self,
        request: Request<pb::CreateEventTypeRequest>,
    ) -> Result<EventType, Failure> {
        let caller = caller(&request)?;
        let message = request.into_inner().event_type.unwrap_or_default();
        let tenant_id = self.0.tenant_or_platform(&caller, &message.tenant_id).await?;
        let mut violations = Violations::new();
        let spec = convert_catalog::new_event_type(message, &mut violations);
        let spec = validated(spec, violations)?;
        let now = self.0.now();
        let event_type =
            EventType { tenant_id, spec, revision: 1, create_time: now, update_time: now };
        match self.0.store.create_event_type(&event_type).await? {
            Update::Done => Ok(event_type),
            Update::Stale => Err(Failure::of(Reason::EventTypeExists)),
        }
    }

    async fn get(&self, request: Request<pb::GetEventTypeRequest>) -> Result<EventType, Failure> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let mut violations = Violations::new();
        convert::require(&request.name, "name", &mut violations);
        violations.or_ok(())?;
        let tenant_id = self.0.tenant_or_platform(&caller, &request.tenant_id).await?;
        match self.load(tenant_id, &request.name).await {
            Err(failure) if failure.reason == Reason::EventTypeNotFound && tenant_id.is_some() => {
                self.load(None, &request.name).await
            }
            result => result,
        }
    }

    async fn load(&self, tenant_id: Option<TenantId>, name: &str) -> Result<EventType, Failure> {
        let event_type = self.0.store.event_type(tenant_id, name).await?;
        event_type.ok_or_else(|| Failure::of(Reason::EventTypeNotFound))
    }

    async fn list(
        &self,
        request: Request<pb::ListEventTypesRequest>,
    ) -> Result<pb::ListEventTypesResponse, Failure> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let mut violations = Violations::new();
        let size = convert::page_size(request.page_size, &mut violations);
        let read = convert_catalog::status_filter;
        let statuses = convert::enum_list(&request.statuses, "statuses", &mut violations, read);
        violations.or_ok(())?;
        let tenant_id = self.0.tenant_or_platform(&caller, &request.tenant_id).await?;
        let owner = tenant_id.as_ref().map_or("", TenantId::as_str);
        let binding = Binding::new("ListEventTypes", owner)
            .with(&request.category)
            .with_list(request.statuses.iter().map(ToString::to_string));
        let start: Option<Place> = paging::place(&request.page_token, &binding)?;
        let filter = Filter { category: request.category, statuses };
        let (event_types, next) = self.gather(tenant_id, &filter, start, size).await?;
        let next_page_token = paging::next_token(next, &binding)?;
        Ok(pb::ListEventTypesResponse { event_types, next_page_token })
    }

    /// A page of what the tenant sees: its own types, and those of the platform's that it has not
    /// replaced. They come in order of name, and of one name the platform's first.
    async fn gather(
        &self,
        tenant_id: Option<TenantId>,
        filter: &Filter,
        start: Option<Place>,
        size: u64,
    ) -> Result<(Vec<pb::EventType>, Option<Place>), Failure> {
        let mut messages = Vec::new();
        let (mut bytes, mut scanned, mut last) = (0, 0, start);
        loop {
            let page = self.0.store.list_event_types(tenant_id, last.clone(), CHUNK).await?;
            scanned += CHUNK;
            let mut items = page.items.into_iter().peekable();
            while let Some(item) = items.next() {
                let next = items.peek();
                if next.is_none() && page.has_more && item.tenant_id.is_none() {
                    // Whether the tenant has replaced it stands on the next page, which begins
                    // with it. A chunk has more than one item, so this comes to an end.
                    break;
                }
                let replaced = next.is_some_and(|next| next.spec.name == item.spec.name);
                let place = (item.spec.name.clone(), item.tenant_id.is_none());
                if !replaced && filter.matches(&item.spec) {
                    let message = convert_catalog::event_type_to_proto(item);
                    bytes += message.encoded_len() + ITEM_OVERHEAD;
                    if bytes > MAX_PAGE_BYTES && !messages.is_empty() {
                        return Ok((messages, last));
                    }
                    messages.push(message);
                }
                last = Some(place);
                if messages.len() as u64 >= size {
                    let more = page.has_more || items.peek().is_some();
                    return Ok((messages, last.filter(|_| more)));
                }
            }
            if !page.has_more {
                return Ok((messages, None));
            }
            if scanned >= MAX_SCANNED {
                return Ok((messages, last));
            }
        }
    }

    async fn update(
        &self,
        request: Request<pb::UpdateEventTypeRequest>,
    ) -> Result<EventType, Failure> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let message = request.event_type.unwrap_or_default();
        let mask = request.update_mask.unwrap_or_default().paths;
        if message.name.is_empty() {
            return Err(judged_apart(&message, &mask).into());
        }
        let tenant_id = self.0.tenant_or_platform(&caller, &message.tenant_id).await?;
        for _ in 0..MAX_TRIES {
            let mut event_type = self.load(tenant_id, &message.name).await?;
            check_etag(&message.etag, event_type.revision, event_type.create_time)?;
            let mut violations = Violations::new();
            let populated = |path: &str| convert_catalog::is_populated(&message, path);
            let selection = convert_catalog::FIELDS.select(&mask, populated, &mut violations);
            let mut spec = event_type.spec.clone();
            convert_catalog::update_event_type(&mut spec, &message, &selection, &mut violations);
            spec = validated(spec, violations)?;
            if spec == event_type.spec {
                return Ok(event_type);
            }
            event_type.spec = spec;
            event_type.revision += 1;
            event_type.update_time = self.0.now();
            if self.0.store.update_event_type(&event_type).await? == Update::Done {
                return Ok(event_type);
            }
        }
        Err(Failure::of(Reason::EtagMismatch))
    }

    async fn delete(&self, request: Request<pb::DeleteEventTypeRequest>) -> Result<(), Failure> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let mut violations = Violations::new();
        convert::require(&request.name, "name", &mut violations);
        violations.or_ok(())?;
        let tenant_id = self.0.tenant_or_platform(&caller, &request.tenant_id).await?;
        let current = self.load(tenant_id, &request.name).await?;
        check_etag(&request.etag, current.revision, current.create_time)?;
        let revision = (!request.etag.is_empty()).then_some(current.revision);
        match self.0.store.delete_event_type(tenant_id, &request.name, revision).await? {
            Update::Done => Ok(()),
            Update::Stale if revision.is_some() => Err(Failure::of(Reason::EtagMismatch)),
            Update::Stale => Err(Failure::of(Reason::EventTypeNotFound)),
        }
    }
}

/// What is wrong with an update that does not say which event type it changes.
fn judged_apart(message: &pb::EventType, mask: &[String]) -> Violations {
    let mut violations = Violations::new();
    convert::require("", "event_type.name", &mut violations);
    let populated = |path: &str| convert_catalog::is_populated(message, path);
    let selection = convert_catalog::FIELDS.select(mask, populated, &mut violations);
    let (mut spec, mut found) = (EventTypeSpec::default(), Violations::new());
    convert_catalog::update_event_type(&mut spec, message, &selection, &mut found);
    if let Err(failure) = validated(spec, found) {
        selection.take_over("event_type", &failure.violations, &mut violations);
    }
    violations
}

/// `spec`, if neither the conversion nor the domain nor the schema's compiler found anything.
fn validated(spec: EventTypeSpec, mut violations: Violations) -> Result<EventTypeSpec, Failure> {
    convert_catalog::check_schema(&spec.json_schema, &mut violations);
    match spec.validated() {
        Ok(spec) => Ok(violations.or_ok(spec)?),
        Err(found) => {
            convert::merge(&mut violations, &found);
            Err(violations.into())
        }
    }
}

#[tonic::async_trait]
impl CatalogService for Catalog {
    async fn create_event_type(
        &self,
        request: Request<pb::CreateEventTypeRequest>,
    ) -> Result<Response<pb::CreateEventTypeResponse>, Status> {
        let event_type = convert_catalog::event_type_to_proto(self.create(request).await?);
        Ok(Response::new(pb::CreateEventTypeResponse { event_type: Some(event_type) }))
    }

    async fn get_event_type(
        &self,
        request: Request<pb::GetEventTypeRequest>,
    ) -> Result<Response<pb::GetEventTypeResponse>, Status> {
        let event_type = convert_catalog::event_type_to_proto(self.get(request).await?);
        Ok(Response::new(pb::GetEventTypeResponse { event_type: Some(event_type) }))
    }

    async fn list_event_types(
        &self,
        request: Request<pb::ListEventTypesRequest>,
    ) -> Result<Response<pb::ListEventTypesResponse>, Status> {
        Ok(Response::new(self.list(request).await?))
    }

    async fn update_event_type(
        &self,
        request: Request<pb::UpdateEventTypeRequest>,
    ) -> Result<Response<pb::UpdateEventTypeResponse>, Status> {
        let event_type = convert_catalog::event_type_to_proto(self.update(request).await?);
        Ok(Response::new(pb::UpdateEventTypeResponse { event_type: Some(event_type) }))
    }

    async fn delete_event_type(
        &self,
        request: Request<pb::DeleteEventTypeRequest>,
    ) -> Result<Response<pb::DeleteEventTypeResponse>, Status> {
        self.delete(request).await?;
        Ok(Response::new(pb::DeleteEventTypeResponse {}))
    }

    async fn import_catalog(
        &self,
        _request: Request<pb::ImportCatalogRequest>,
    ) -> Result<Response<pb::ImportCatalogResponse>, Status> {
        Err(Failure::not_implemented("ImportCatalog").into())
    }
}
