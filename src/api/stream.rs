//! `EmitStream`: events in, acknowledgements out, in order.
//!
//! A stream reads ahead by [`MAX_IN_FLIGHT`] items or [`MAX_BYTES_IN_FLIGHT`], whichever comes
//! first, and then stops reading: flow control slows the client down, and memory stays bounded. An
//! item that is refused is its own result. What ends the stream is said after the acknowledgements
//! of everything that came before.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt};
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Interval, MissedTickBehavior, interval};
use tonic::{Status, Streaming};

use crate::domain::trace::TraceContext;

use super::Reason;
use super::auth::{Caller, RECHECK};
use super::convert::event::result_to_proto;
use super::events::Events;
use super::proto as pb;
use super::status::{self, Failure};

/// Most items of one stream that are being stored at the same time.
const MAX_IN_FLIGHT: usize = 1_000;
/// Most bytes of one stream that are being stored at the same time.
const MAX_BYTES_IN_FLIGHT: u32 = 16 * 1024 * 1024;

/// The reading side of a stream.
struct Inbound {
    events: Events,
    caller: Caller,
    messages: Streaming<pb::EmitStreamRequest>,
    recheck: Interval,
    budget: Arc<Semaphore>,
    ended: bool,
}

/// An item, and the memory that it takes.
type Item = (pb::EmitStreamRequest, OwnedSemaphorePermit);

impl Inbound {
    /// The next item; `None` when the client has said all, or after an error.
    async fn next(&mut self) -> Option<Result<Item, Failure>> {
        if self.ended {
            return None;
        }
        let item = self.read().await.transpose();
        self.ended = !matches!(item, Some(Ok(_)));
        item
    }

    /// Counts an item against the key's rate. Too many are not refused: reading stops until there
    /// is some of the rate left, and flow control tells the client.
    async fn pace(&self) {
        while let Err(failure) = self.events.0.auth.count(&self.caller) {
            tokio::time::sleep(failure.retry_delay().unwrap_or_default()).await;
        }
    }

    async fn read(&mut self) -> Result<Option<Item>, Failure> {
        let context = Arc::clone(&self.events.0);
        loop {
            tokio::select! {
                biased;
                () = context.shutdown.cancelled() => return Err(Failure::of(Reason::ShuttingDown)),
                _ = self.recheck.tick() => context.auth.recheck(&self.caller).await?,
                message = self.messages.message() => {
                    let message = message
                        .map_err(|error| status::of_transport(error.code(), error.message()))?;
                    let Some(message) = message else { return Ok(None) };
                    self.pace().await;
                    let bytes = u32::try_from(message.encoded_len()).unwrap_or(u32::MAX);
                    let budget = Arc::clone(&self.budget);
                    let memory = budget.acquire_many_owned(bytes.clamp(1, MAX_BYTES_IN_FLIGHT)).await;
                    return Ok(Some((message, memory.map_err(|error| Failure::internal(&error))?)));
                }
            }
        }
    }
}

/// The acknowledgements of a stream. `place` is given back when it ends.
pub(super) fn emit_stream(
    events: Events,
    caller: Caller,
    parent: Option<TraceContext>,
    messages: Streaming<pb::EmitStreamRequest>,
    place: OwnedSemaphorePermit,
) -> BoxStream<'static, Result<pb::EmitStreamResponse, Status>> {
    // The stream's deadline is no item's: items are stored while the client still listens.
    let caller = caller.without_deadline();
    let mut recheck = interval(RECHECK);
    recheck.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let inbound = Inbound {
        events: events.clone(),
        caller: caller.clone(),
        messages,
        recheck,
        budget: Arc::new(Semaphore::new(MAX_BYTES_IN_FLIGHT as usize)),
        ended: false,
    };
    let items = stream::unfold(inbound, |mut inbound| async move {
        let item = inbound.next().await?;
        Some((item, inbound))
    });
    let responses = items
        .map(move |item| {
            let (events, caller) = (events.clone(), caller.clone());
            async move {
                let (message, _memory) = item?;
                Ok(answer(&events, &caller, parent, message).await)
            }
        })
        .buffered(MAX_IN_FLIGHT);
    AssertUnwindSafe(responses)
        .catch_unwind()
        .map(move |response| {
            // The place is held for as long as the stream lives.
            let _ = &place;
            let panicked = |_| Err(Failure::internal(&"a stream panicked"));
            response.unwrap_or_else(panicked).map_err(Status::from)
        })
        .boxed()
}

/// What became of one item.
async fn answer(
    events: &Events,
    caller: &Caller,
    parent: Option<TraceContext>,
    message: pb::EmitStreamRequest,
) -> pb::EmitStreamResponse {
    let sequence = message.sequence;
    let span = events.0.begin_span(parent);
    let result = match message.request {
        None => Err(Failure::invalid("request", "must be set")),
        // An item that panics is a fault of that item alone.
        Some(request) => AssertUnwindSafe(events.accept(caller, "", request, span.context))
            .catch_unwind()
            .await
            .unwrap_or_else(|_| Err(Failure::internal(&"an item of a stream panicked"))),
    };
    events.0.end_span(span, "tidings.v1.EventService/EmitStream", result.as_ref().err());
    pb::EmitStreamResponse { sequence, result: Some(result_to_proto(result)) }
}
