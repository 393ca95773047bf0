//! Accepting events: validate, match, commit in groups, hand over.
//!
//! Concurrent Emits share one transaction. There is no artificial wait: a batch is what arrived
//! while the last one was being committed. The answer goes out after the commit, so acknowledged
//! means durable. The hand-over to `dispatch` is only a short cut: what it does not take is born
//! due in the database.

mod batch;
mod committer;
mod judge;
mod metrics;

use std::sync::{Arc, Mutex, PoisonError, Weak};

use prometheus_client::registry::Registry;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::dispatch::Queue;
use crate::domain::event::NewEvent;
use crate::domain::id::EventId;
use crate::domain::{Clock, Violations, payload};
use crate::store::{CatalogCache, Store};

use judge::{Judge, Verdict};
use metrics::Metrics;

/// How intake is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Most bytes in a payload.
    pub max_payload_bytes: usize,
    /// Events that may wait for a commit; more are refused, never dropped.
    pub queue_size: usize,
    /// Bytes that those events may have together. Several times the largest event.
    pub queue_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_payload_bytes: payload::DEFAULT_MAX_BYTES,
            queue_size: 10_000,
            queue_bytes: 64 * 1024 * 1024,
        }
    }
}

/// What intake works with.
pub struct Parts {
    /// The database.
    pub store: Store,
    /// The present.
    pub clock: Arc<dyn Clock>,
    /// The tenants' settings.
    pub catalog: Arc<CatalogCache>,
    /// Where deliveries are handed over.
    pub queue: Queue,
    /// Where randomness (ids) starts.
    pub seed: u64,
}

/// An event is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Its id.
    pub event_id: EventId,
    /// How many deliveries it has.
    pub delivery_count: u32,
    /// Whether an earlier request with the same key had made it.
    pub duplicate: bool,
}

/// An event was not accepted, and nothing of it is stored, unless the error is
/// [`Error::Unavailable`]: then the commit may have happened without its confirmation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The request is wrong.
    #[error("{0}")]
    Invalid(Violations),
    /// There is no such tenant.
    #[error("there is no such tenant")]
    UnknownTenant,
    /// The idempotency key stands for another request.
    #[error("the idempotency key stands for another request")]
    KeyReused,
    /// Too many events wait.
    #[error("too many events wait to be committed")]
    Overloaded,
    /// The service is about to end.
    #[error("the service is shutting down")]
    ShuttingDown,
    /// The client's time was up before the commit began.
    #[error("the deadline passed")]
    DeadlineExceeded,
    /// The database is away.
    #[error("the database is unavailable")]
    Unavailable,
    /// The database has no space left. Nothing is stored.
    #[error("the database's disk is full")]
    StorageFull,
    /// A fault of ours.
    #[error("internal error")]
    Internal,
}

/// An event that waits for its commit.
struct Pending {
    event: NewEvent,
    /// Its bytes in memory, given back when it is answered.
    _bytes: OwnedSemaphorePermit,
    verdict: Verdict,
    deadline: Option<Instant>,
    reply: oneshot::Sender<Result<Accepted, Error>>,
}

/// The way in. Cheap to clone.
#[derive(Clone)]
pub struct Intake {
    inner: Arc<Inner>,
}

/// A way in that keeps nothing alive: for whom intake itself depends on.
#[derive(Clone)]
pub struct WeakIntake(Weak<Inner>);

impl WeakIntake {
    /// The way in, as long as somebody else has it.
    pub fn upgrade(&self) -> Option<Intake> {
        self.0.upgrade().map(|inner| Intake { inner })
    }
}

struct Inner {
    config: Config,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    judge: Judge,
    /// The bytes that are left for events that wait.
    bytes: Arc<Semaphore>,
    /// Empty once closed.
    sender: Mutex<Option<mpsc::Sender<Pending>>>,
    committer: Mutex<Option<JoinHandle<()>>>,
}

impl Intake {
    /// Starts to accept.
    pub fn start(config: Config, parts: Parts, registry: &mut Registry) -> Self {
        let metrics = Arc::new(Metrics::new(registry));
        let (sender, receiver) = mpsc::channel(config.queue_size);
        let clock = Arc::clone(&parts.clock);
        let judge = Judge::new(parts.store.clone(), Arc::clone(&parts.catalog));
        let committers = committer::run(parts, Arc::clone(&metrics), receiver);
        let inner = Inner {
            config,
            clock,
            metrics,
            judge,
            bytes: Arc::new(Semaphore::new(config.queue_bytes.min(Semaphore::MAX_PERMITS))),
            sender: Mutex::new(Some(sender)),
            committer: Mutex::new(Some(tokio::spawn(committers))),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Validates an event and waits until it is durable. Dropping the future before the commit has
    /// begun stores nothing.
    ///
    /// # Errors
    /// All violations at once, or why the event was not taken.
    pub async fn emit(
        &self,
        event: NewEvent,
        deadline: Option<Instant>,
    ) -> Result<Accepted, Error> {
        let inner = &self.inner;
        let start = inner.clock.now();
        let mut violations = Violations::new();
        event.check(start, inner.config.max_payload_bytes, &mut violations);
        let result = match violations.or_ok(()) {
            Ok(()) => self.submit(event, deadline).await,
            Err(violations) => Err(Error::Invalid(violations)),
        };
        inner.metrics.emitted(result.as_ref(), inner.clock.now().since(start));
        result
    }

    /// Emits an event of the service itself, which needs no check: its type and its key are such as
    /// no client may use.
    ///
    /// # Errors
    /// Why the event was not taken.
    pub async fn announce(&self, event: NewEvent) -> Result<Accepted, Error> {
        self.submit(event, None).await
    }

    async fn submit(&self, event: NewEvent, deadline: Option<Instant>) -> Result<Accepted, Error> {
        let inner = &self.inner;
        let sender = inner.sender.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let sender = sender.ok_or(Error::ShuttingDown)?;
        let weight = u32::try_from(event.weight()).unwrap_or(u32::MAX);
        let bytes = Arc::clone(&inner.bytes).try_acquire_many_owned(weight);
        let bytes = bytes.map_err(|_| Error::Overloaded)?;
        let verdict = inner.judge.judge(&event).await?;
        let (reply, answer) = oneshot::channel();
        let pending = Pending { event, _bytes: bytes, verdict, deadline, reply };
        sender.try_send(pending).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Error::Overloaded,
            mpsc::error::TrySendError::Closed(_) => Error::ShuttingDown,
        })?;
        drop(sender);
        answer.await.unwrap_or(Err(Error::Internal))
    }

    /// A way in that keeps nothing alive.
    pub fn downgrade(&self) -> WeakIntake {
        WeakIntake(Arc::downgrade(&self.inner))
    }

    /// Takes nothing more. What was taken before is still committed and answered.
    pub fn close(&self) {
        self.inner.sender.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Waits, once closed, until everything that was taken is answered.
    pub async fn drained(&self) {
        let committer = self.inner.committer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(committer) = committer {
            // It ends when the last sender is gone; a panic has been reported by then.
            let _ = committer.await;
        }
    }

    /// Waits until the committer has ended by itself, which is a fault.
    pub async fn failed(&self) {
        let sender = self.inner.sender.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match sender {
            Some(sender) => {
                let weak = sender.downgrade();
                drop(sender);
                loop {
                    tokio::time::sleep(std::time::Duration::from_millis(250)).await;
                    match weak.upgrade() {
                        Some(sender) if sender.is_closed() => return,
                        Some(_) => {}
                        None => std::future::pending().await,
                    }
                }
            }
            None => std::future::pending().await,
        }
    }
}
