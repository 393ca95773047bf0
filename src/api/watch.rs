//! `WatchDeliveries`: a stream of changes that can be resumed.
//!
//! Nothing is buffered here: the next change is asked of the feed when the client has room for it,
//! and a client that reads slowly is served from the database later on. Every response carries the
//! place to go on from, bound to the tenant and the filters.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tonic::Status;

use crate::domain::Violations;
use crate::domain::id::TenantId;
use crate::feed::{Cursor, Item, Start, Watched, Watcher};

use super::Reason;
use super::auth::{Caller, RECHECK};
use super::context::Context;
use super::convert::delivery as convert;
use super::proto as pb;
use super::status::Failure;
use super::token::Binding;

/// The stream of a watch.
pub(super) type WatchStream = BoxStream<'static, Result<pb::WatchDeliveriesResponse, Status>>;

struct Watch {
    context: Arc<Context>,
    caller: Caller,
    tenant_id: TenantId,
    watcher: Watcher,
    binding: Binding,
    recheck: Interval,
    ended: bool,
    _place: OwnedSemaphorePermit,
}

/// Begins to watch.
pub(super) async fn watch(
    context: &Arc<Context>,
    caller: Caller,
    request: pb::WatchDeliveriesRequest,
) -> Result<WatchStream, Failure> {
    let mut violations = Violations::new();
    let filter = convert::watch_filter(&request, &mut violations);
    if request.include_current && !request.resume_token.is_empty() {
        violations.add("resume_token", "must be empty together with include_current");
    }
    let tenant_id = context.tenant(&caller, &request.tenant_id, "tenant_id", violations).await?;
    let binding = Binding::new("WatchDeliveries", tenant_id.as_str())
        .with(&request.subscription_id)
        .with(&request.event_id)
        .with_list(request.event_types.iter())
        .with_list(request.states.iter().map(ToString::to_string));
    let start = match (request.include_current, request.resume_token.as_str()) {
        (true, _) => Start::Current,
        (false, "") => Start::Now,
        (false, token) => {
            let cursor = binding.open::<Cursor>(token);
            Start::Resume(cursor.map_err(|_| Failure::of(Reason::ResumeTokenInvalid))?)
        }
    };
    let place = context.open_stream()?;
    let watcher = context.feed.watch(tenant_id, filter, start).await?;
    let mut recheck = interval(RECHECK);
    recheck.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let context = Arc::clone(context);
    // In a box: it is moved into each of the stream's futures, and out again.
    let watch = Box::new(Watch {
        context,
        caller,
        tenant_id,
        watcher,
        binding,
        recheck,
        ended: false,
        _place: place,
    });
    let responses = stream::unfold(watch, |mut watch| async move {
        if watch.ended {
            return None;
        }
        let response = watch.next().await;
        watch.ended = response.is_err();
        Some((response, watch))
    });
    Ok(AssertUnwindSafe(responses)
        .catch_unwind()
        .map(|response| {
            let panicked = |_| Err(Failure::internal(&"a watch panicked"));
            response.unwrap_or_else(panicked).map_err(Status::from)
        })
        .boxed())
}

impl Watch {
    async fn next(&mut self) -> Result<pb::WatchDeliveriesResponse, Failure> {
        loop {
            // A busy feed must not keep a revoked key alive, so the others are looked at first.
            tokio::select! {
                biased;
                () = self.context.shutdown.cancelled() => {
                    return Err(Failure::of(Reason::ShuttingDown));
                }
                _ = self.recheck.tick() => self.recheck().await?,
                watched = self.watcher.next() => return self.response(watched?),
            }
        }
    }

    /// Whether there is still somebody to watch, and something to be watched.
    async fn recheck(&self) -> Result<(), Failure> {
        self.context.auth.recheck(&self.caller).await?;
        // A tenant's own key ends with it. A database that does not answer ends no stream.
        if self.caller.principal.tenant_id().is_none()
            && let Ok(false) = self.context.store.has_tenant(self.tenant_id).await
        {
            return Err(Failure::of(Reason::TenantNotFound));
        }
        Ok(())
    }

    fn response(&self, watched: Watched) -> Result<pb::WatchDeliveriesResponse, Failure> {
        let token = self.binding.seal(&watched.cursor);
        let resume_token = token.map_err(|error| Failure::internal(&error))?;
        Ok(match watched.item {
            Item::Change(delivery) => pb::WatchDeliveriesResponse {
                resume_token,
                delivery: Some(convert::delivery_to_proto(*delivery)),
                snapshot_complete: false,
            },
            Item::Checkpoint { snapshot_complete } => {
                pb::WatchDeliveriesResponse { resume_token, delivery: None, snapshot_complete }
            }
        })
    }
}
