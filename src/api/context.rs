//! What all services share, and what each of their calls begins with: whose call is it, and about
//! which tenant.

use std::sync::{Arc, Mutex, PoisonError};

use rand::rngs::StdRng;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tonic::Request;
use tonic::metadata::MetadataMap;

use crate::domain::id::TenantId;
use crate::domain::key::Scope;
use crate::domain::mail::Look;
use crate::domain::tenant::Tenant;
use crate::domain::trace::{FinishedSpan, SpanSink, TraceContext};
use crate::domain::{Clock, Timestamp, Violations, endpoint};
use crate::feed::Feed;
use crate::intake::Intake;
use crate::store::Store;

use super::auth::{Auth, Caller};
use super::status::Failure;
use super::{Attempts, Kick, Reason};

/// The parts of the house, as the services use them.
pub(super) struct Context {
    pub store: Store,
    pub clock: Arc<dyn Clock>,
    pub intake: Intake,
    pub feed: Feed,
    pub attempts: Arc<dyn Attempts>,
    pub kick: Kick,
    pub spans: Arc<dyn SpanSink>,
    pub random: Mutex<StdRng>,
    pub urls: endpoint::Admission,
    /// How mails look, for previews.
    pub look: Look,
    /// Whether there is somewhere to send mail by.
    pub sends_mail: bool,
    pub auth: Arc<Auth>,
    /// One permit per open stream.
    pub streams: Arc<Semaphore>,
    pub shutdown: CancellationToken,
    pub max_payload_bytes: usize,
    pub max_subscriptions: u32,
}

impl Context {
    /// The present.
    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Draws something at random.
    pub(super) fn random<T>(&self, draw: impl FnOnce(&mut StdRng) -> T) -> T {
        draw(&mut self.random.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The tenant that a call is about, which exists. `field` is where the request names it.
    /// `violations` is what else is wrong with the request: it is told together with a tenant that
    /// is not named, and before anything is looked up.
    pub(super) async fn tenant(
        &self,
        caller: &Caller,
        requested: &str,
        field: &str,
        mut violations: Violations,
    ) -> Result<TenantId, Failure> {
        let tenant_id = named_tenant(caller, requested, field, &mut violations)?;
        violations.or_ok(())?;
        // A tenant's own key goes with its tenant; an operator may name one that never was.
        if caller.principal.tenant_id().is_none() {
            let exists = self.store.has_tenant(tenant_id).await?;
            exists.then_some(()).ok_or_else(|| Failure::of(Reason::TenantNotFound))?;
        }
        Ok(tenant_id)
    }

    /// The tenant that a call is about, or `None` for the platform: an operator who names none.
    pub(super) async fn tenant_or_platform(
        &self,
        caller: &Caller,
        requested: &str,
    ) -> Result<Option<TenantId>, Failure> {
        if caller.principal.tenant_id().is_none() && requested.is_empty() {
            return Ok(None);
        }
        self.tenant(caller, requested, "tenant_id", Violations::new()).await.map(Some)
    }

    /// The tenant.
    pub(super) async fn existing_tenant(&self, tenant_id: TenantId) -> Result<Tenant, Failure> {
        let tenant = self.store.tenant(tenant_id).await?;
        tenant.ok_or_else(|| Failure::of(Reason::TenantNotFound))
    }

    /// A place for one more stream.
    pub(super) fn open_stream(&self) -> Result<OwnedSemaphorePermit, Failure> {
        let permit = Arc::clone(&self.streams).try_acquire_owned();
        permit.map_err(|_| Failure::of(Reason::TooManyStreams))
    }

    /// Begins the span of a call: part of the caller's trace when there is one.
    pub(super) fn begin_span(&self, parent: Option<TraceContext>) -> OpenSpan {
        let context = self.random(|random| match parent {
            Some(parent) => parent.child(random),
            None => TraceContext::root(random),
        });
        let start_time = self.spans.is_enabled().then(|| self.now());
        OpenSpan { context, parent_span_id: parent.map(|parent| parent.span_id), start_time }
    }

    /// Ends the span of a call, and hands it over.
    pub(super) fn end_span(&self, span: OpenSpan, name: &'static str, failure: Option<&Failure>) {
        let Some(start_time) = span.start_time else {
            return;
        };
        let status = failure.map_or(0, |failure| failure.reason.info().code as i32);
        self.spans.record(FinishedSpan {
            name,
            context: span.context,
            parent_span_id: span.parent_span_id,
            is_client: false,
            start_time,
            end_time: self.now(),
            error: failure.map(|failure| failure.reason.info().name.to_owned()),
            attributes: vec![
                ("rpc.system", "grpc".to_owned()),
                ("rpc.grpc.status_code", status.to_string()),
            ],
        });
    }
}

/// A span that has begun.
#[derive(Clone, Copy, Debug)]
pub(super) struct OpenSpan {
    /// The span itself.
    pub context: TraceContext,
    parent_span_id: Option<u64>,
    /// `None` when nobody collects spans.
    start_time: Option<Timestamp>,
}

/// The trace that the caller is in, when it sent one.
pub(super) fn parent_trace(metadata: &MetadataMap) -> Option<TraceContext> {
    TraceContext::parse(metadata.get("traceparent")?.to_str().ok()?)
}

/// Who calls. The layer has let it in.
pub(super) fn caller<T>(request: &Request<T>) -> Result<Caller, Failure> {
    let caller = request.extensions().get::<Caller>();
    caller.cloned().ok_or_else(|| Failure::internal(&"a call came past the layer"))
}

/// The tenant that a call is about, which may not exist. A foreign tenant, one that is not there
/// and a text that is no id are answered alike.
///
/// When an operator names none, this is noted in `violations`, and the id that is returned is
/// nobody's: so that everything else that is wrong can be told with it.
pub(super) fn named_tenant(
    caller: &Caller,
    requested: &str,
    field: &str,
    violations: &mut Violations,
) -> Result<TenantId, Failure> {
    let not_found = || Failure::of(Reason::TenantNotFound);
    match caller.principal.tenant_id() {
        Some(own) if requested.is_empty() || requested == own.as_str() => Ok(own),
        Some(_) => Err(not_found()),
        None if requested.is_empty() => {
            violations.add(field, "must name the tenant, because this key serves all tenants");
            Ok(TenantId::first_at(Timestamp::default()))
        }
        None => TenantId::parse(requested).map_err(|_| not_found()),
    }
}

/// Refuses everybody but operators with all permissions.
pub(super) fn require_admin(caller: &Caller) -> Result<(), Failure> {
    if caller.principal.permits(Scope::Admin) {
        return Ok(());
    }
    Err(Failure::new(Reason::ScopeMissing, "The API key does not have the scope admin."))
}

/// Refuses a change of something that is no longer what the client saw.
pub(super) fn check_etag(etag: &str, revision: i64, create_time: Timestamp) -> Result<(), Failure> {
    if etag.is_empty() || etag == super::convert::etag(revision, create_time) {
        return Ok(());
    }
    Err(Failure::of(Reason::EtagMismatch))
}
