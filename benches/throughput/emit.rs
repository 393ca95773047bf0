//! The load generator: callers that emit and wait for the answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tidings::api::proto::event_service_client::EventServiceClient;
use tidings::api::proto::{EmitBatchRequest, EmitRequest, emit_request, emit_result};
use tidings::domain::id::EventId;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tonic::Code;

use crate::Result;
use crate::line::Line;

/// Callers that emit at once.
pub(crate) const CALLERS: usize = 64;
/// Connections that they share.
pub(crate) const CONNECTIONS: usize = 4;
/// Bytes of a payload.
pub(crate) const PAYLOAD_BYTES: usize = 1_024;
/// Types of events, evenly used.
pub(crate) const TYPES: usize = 100;
/// The pause before a refused call is repeated.
const PAUSE: Duration = Duration::from_millis(5);
/// Refusals of one call after which the run has failed.
const MAX_REFUSALS: usize = 2_000;

pub(crate) type Events = EventServiceClient<Line>;

/// An acknowledged event.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Emission {
    pub(crate) event: EventId,
    /// Just before the call.
    pub(crate) start: Instant,
    /// When the answer was there.
    pub(crate) end: Instant,
    /// How often the call was refused, and repeated, before.
    pub(crate) refusals: usize,
}

/// What is emitted, event by event.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// The events go to these tenants in turn.
    pub(crate) tenants: Arc<[String]>,
    /// What types begin with: `bench` makes `bench.t0` and so on.
    pub(crate) prefix: &'static str,
    /// Types, in turn.
    pub(crate) types: usize,
    /// Makes idempotency keys of this source differ from those of others.
    pub(crate) label: &'static str,
}

impl Source {
    fn request(&self, number: usize) -> EmitRequest {
        EmitRequest {
            tenant_id: self.tenants[number % self.tenants.len()].clone(),
            // Each tenant gets all types, not only those whose turn coincides with its own.
            r#type: format!("{}.t{}", self.prefix, number / self.tenants.len() % self.types),
            payload: Some(emit_request::Payload::DataJson(payload(number))),
            idempotency_key: format!("{}-{number}", self.label),
            ..EmitRequest::default()
        }
    }
}

/// A JSON document of [`PAYLOAD_BYTES`] bytes.
pub(crate) fn payload(number: usize) -> String {
    const TEXT: &str = "The quick brown fox jumps over the lazy dog. ";
    let mut json = format!(r#"{{"number":{number},"text":""#);
    while json.len() + TEXT.len() + 2 <= PAYLOAD_BYTES {
        json.push_str(TEXT);
    }
    while json.len() + 2 < PAYLOAD_BYTES {
        json.push('x');
    }
    json.push_str("\"}");
    json
}

/// Emits through the clients in turn.
#[derive(Clone)]
pub(crate) struct Emitter(pub(crate) Arc<[Events]>);

impl Emitter {
    fn client(&self, caller: usize) -> Events {
        self.0[caller % self.0.len()].clone()
    }

    /// [`CALLERS`] callers emit `count` events, one or `batch` a call, each waiting for its answer.
    pub(crate) async fn closed(
        &self,
        source: &Source,
        count: usize,
        batch: usize,
    ) -> Result<Vec<Emission>> {
        let next = Arc::new(AtomicUsize::new(0));
        let mut callers = JoinSet::new();
        for caller in 0..CALLERS {
            let (mut client, source, next) =
                (self.client(caller), source.clone(), Arc::clone(&next));
            callers.spawn(async move {
                let mut emissions = Vec::with_capacity(count / CALLERS + batch);
                loop {
                    let first = next.fetch_add(batch, Ordering::Relaxed);
                    if first >= count {
                        return Ok(emissions);
                    }
                    let numbers = first..(first + batch).min(count);
                    if batch == 1 {
                        emissions.push(one(&mut client, source.request(first)).await?);
                    } else {
                        let requests = numbers.map(|number| source.request(number)).collect();
                        emissions.extend(many(&mut client, requests).await?);
                    }
                }
            });
        }
        gather(callers, count).await
    }

    /// Emits at a steady rate, whether or not earlier calls have been answered.
    pub(crate) async fn paced(
        &self,
        source: &Source,
        per_second: u32,
        duration: Duration,
    ) -> Result<Vec<Emission>> {
        let interval = Duration::from_secs(1) / per_second;
        let count = usize::try_from(duration.as_nanos() / interval.as_nanos())?;
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut calls = JoinSet::new();
        for number in 0..count {
            ticks.tick().await;
            let (mut client, request) = (self.client(number), source.request(number));
            calls.spawn(async move { Ok(vec![one(&mut client, request).await?]) });
        }
        gather(calls, count).await
    }
}

async fn gather(
    mut callers: JoinSet<Result<Vec<Emission>>>,
    count: usize,
) -> Result<Vec<Emission>> {
    let mut emissions = Vec::with_capacity(count);
    while let Some(caller) = callers.join_next().await {
        emissions.extend(caller??);
    }
    Ok(emissions)
}

/// Whether the service asks to try again later.
fn is_refusal(code: Code) -> bool {
    matches!(code, Code::ResourceExhausted | Code::Unavailable)
}

async fn one(client: &mut Events, request: EmitRequest) -> Result<Emission> {
    let start = Instant::now();
    let mut refusals = 0;
    let response = loop {
        match client.emit(request.clone()).await {
            Ok(response) => break response.into_inner(),
            Err(status) if is_refusal(status.code()) && refusals < MAX_REFUSALS => {
                refusals += 1;
                tokio::time::sleep(PAUSE).await;
            }
            Err(status) => return Err(format!("Emit failed: {status}").into()),
        }
    };
    let event = EventId::parse(&response.event_id)?;
    Ok(Emission { event, start, end: Instant::now(), refusals })
}

async fn many(client: &mut Events, mut requests: Vec<EmitRequest>) -> Result<Vec<Emission>> {
    let start = Instant::now();
    let mut emissions = Vec::with_capacity(requests.len());
    let mut refusals = 0;
    while !requests.is_empty() {
        let batch = EmitBatchRequest { requests: requests.clone(), ..EmitBatchRequest::default() };
        let results = match client.emit_batch(batch).await {
            Ok(response) => response.into_inner().results,
            Err(status) if is_refusal(status.code()) && refusals < MAX_REFUSALS => {
                refusals += 1;
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            Err(status) => return Err(format!("EmitBatch failed: {status}").into()),
        };
        let end = Instant::now();
        let mut again = Vec::new();
        for (request, result) in requests.into_iter().zip(results) {
            match result.result {
                Some(emit_result::Result::Response(response)) => {
                    let event = EventId::parse(&response.event_id)?;
                    emissions.push(Emission { event, start, end, refusals });
                }
                Some(emit_result::Result::Error(error))
                    if is_refusal(Code::from(error.code)) && refusals < MAX_REFUSALS =>
                {
                    again.push(request);
                }
                other => return Err(format!("an item of EmitBatch failed: {other:?}").into()),
            }
        }
        if !again.is_empty() {
            refusals += 1;
            tokio::time::sleep(PAUSE).await;
        }
        requests = again;
    }
    Ok(emissions)
}
