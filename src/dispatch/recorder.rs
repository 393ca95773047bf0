//! Results into the database, in group commits: a batch is what arrived while the last one was
//! being written. While the database is away results wait here, bounded by the queue's permits,
//! and are written when it is back.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use crate::domain::Clock;
use crate::domain::delivery::State;
use crate::store::{Ended, Error, LateResult};

use super::Shared;
use super::queue::Permit;

/// Most results in one transaction.
const MAX_BATCH: usize = 512;
/// How long to wait before trying again to write, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// A result, and the place in the queue that it gives back once it is recorded.
pub(super) struct Finished {
    pub(super) ended: Ended,
    pub(super) permit: Permit,
}

/// Where results go. Cheap to clone.
#[derive(Clone)]
pub(super) struct Handle {
    results: mpsc::Sender<Finished>,
    closing: Arc<watch::Sender<bool>>,
    drained: watch::Receiver<bool>,
}

/// The recorder's end of a [`Handle`].
pub(super) struct Results {
    finished: mpsc::Receiver<Finished>,
    closing: watch::Receiver<bool>,
    drained: watch::Sender<bool>,
}

/// A way for at most `size` results that wait.
pub(super) fn channel(size: usize) -> (Handle, Results) {
    let (sender, results) = mpsc::channel(size);
    let (closing, is_closing) = watch::channel(false);
    let (drained, is_drained) = watch::channel(false);
    let handle = Handle { results: sender, closing: Arc::new(closing), drained: is_drained };
    (handle, Results { finished: results, closing: is_closing, drained })
}

impl Handle {
    /// Takes a result; waits while too many wait.
    pub(super) async fn send(&self, finished: Finished) {
        // The recorder is gone only when the process is about to end; the lease runs out then.
        let _ = self.results.send(finished).await;
    }

    /// Takes nothing more.
    pub(super) fn close(&self) {
        self.closing.send_replace(true);
    }

    /// Waits until everything that was taken is recorded.
    pub(super) async fn drained(&self) {
        let mut drained = self.drained.clone();
        // An error means that the recorder is gone, with nothing left.
        let _ = drained.wait_for(|is_drained| *is_drained).await;
    }
}

/// Records results until it is closed and empty.
pub(super) async fn run(shared: Arc<Shared>, mut results: Results) -> &'static str {
    let mut batch = Vec::with_capacity(MAX_BATCH);
    loop {
        tokio::select! {
            biased;
            count = results.finished.recv_many(&mut batch, MAX_BATCH) => if count == 0 { break },
            () = closed(&mut results.closing) => {
                results.finished.close();
                if results.finished.recv_many(&mut batch, MAX_BATCH).await == 0 { break }
            }
        }
        record(&shared, std::mem::take(&mut batch)).await;
    }
    results.drained.send_replace(true);
    // The end of this task by itself would be a fault; at the end of the process it is not.
    std::future::pending().await
}

/// Waits until the recorder is closed. Without a handle left it is, too.
async fn closed(closing: &mut watch::Receiver<bool>) {
    let _ = closing.wait_for(|is_closing| *is_closing).await;
}

/// Records a batch, however long the database takes.
async fn record(shared: &Shared, batch: Vec<Finished>) {
    let (mut ended, permits): (Vec<_>, Vec<_>) =
        batch.into_iter().map(|finished| (finished.ended, finished.permit)).unzip();
    // One order for all transactions, so that they never wait for each other in a circle.
    ended.sort_unstable_by_key(|ended| (ended.after.tenant_id, ended.after.id));
    shared.metrics.recorded_batch(ended.len());
    let mut pause = FIRST_PAUSE;
    loop {
        match write(shared, &ended).await {
            Ok(()) => break,
            Err(Error::Unavailable(error)) => {
                tracing::warn!(%error, results = ended.len(), "results cannot be recorded; trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            Err(error) if ended.len() > 1 => {
                tracing::error!(%error, "a result in a batch is refused; recording one by one");
                for one in &ended {
                    Box::pin(record_alone(shared, one)).await;
                }
                break;
            }
            Err(error) => {
                tracing::error!(%error, delivery.id = %ended[0].after.id, "a result is refused; the delivery will be repeated");
                break;
            }
        }
    }
    drop(permits);
    if ended.iter().any(|ended| ended.after.state == State::Scheduled) {
        shared.due.notify_one();
    }
}

async fn record_alone(shared: &Shared, ended: &Ended) {
    let mut pause = FIRST_PAUSE;
    loop {
        match write(shared, std::slice::from_ref(ended)).await {
            Ok(()) => return,
            Err(Error::Unavailable(_)) => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            Err(error) => {
                tracing::error!(%error, delivery.id = %ended.after.id, "a result is refused; the delivery will be repeated");
                return;
            }
        }
    }
}

async fn write(shared: &Shared, ended: &[Ended]) -> Result<(), Error> {
    let now = shared.clock.now();
    let recorded = shared.store.record(ended, now).await?;
    for ended in ended {
        if !recorded.fenced.contains(&ended.after.id) {
            shared.metrics.recorded(&ended.after);
            continue;
        }
        let Some(attempt) = &ended.attempt else { continue };
        match shared.store.record_after_end(ended.after.tenant_id, attempt.clone(), now).await? {
            LateResult::Added(_) | LateResult::Known => {}
            LateResult::Lost => {
                shared.metrics.fenced.inc();
                tracing::warn!(delivery.id = %ended.after.id, "a result came too late; another node has the delivery");
            }
        }
    }
    Ok(())
}
