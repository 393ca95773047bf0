//! Results into the database, in group commits: a batch is what arrived while the last one was being
//! written, and during a rest after it. What says something about its endpoint takes several statements
//! instead of one, so it is written apart, and failures wait a moment for each other. While the database is
//! away results wait here, bounded by the queue's permits, and are written when it is back.

use std::collections::HashSet;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};

use crate::domain::Clock;
use crate::domain::delivery::State;
use crate::store::{Ended, Error, HealthChange, LateResult, Observed};

use super::Shared;
use super::decide::delivery::said_of_endpoint;
use super::queue::Permit;

/// Most results that are taken at once.
const MAX_BATCH: usize = 512;
/// How long failures wait for further ones. A thousand endpoints that time out one after another share
/// transactions, then; nobody waits for a failure.
const COMPANY: Duration = Duration::from_millis(50);
/// The longest rest after a batch of one tenant: results keep places of the queue until they are recorded.
const REST: Duration = Duration::from_millis(5);
/// The longest rest. A delivery that ends soon is usually recorded then before its birth is told of by itself.
const LONGEST_REST: Duration = Duration::from_millis(30);
/// A rest is over when results keep this part of the queue's places, an eighth, or fill a batch.
const PART: usize = 8;
/// How long to wait before trying again to write, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// A result, and the place in the queue that it gives back once it is recorded.
pub(super) struct Finished {
    pub(super) ended: Ended,
    /// What it says about its endpoint, when that is to be written down.
    pub(super) seen: Option<Observed>,
    pub(super) permit: Permit,
}

impl Finished {
    /// Whether it is tried again later, and nothing else came of it.
    fn is_failure(&self) -> bool {
        self.ended.attempt.is_some() && self.ended.after.state == State::Scheduled
    }

    /// Whether it is written with what it says about its endpoint, which takes longer than the rest, or
    /// waits for others.
    fn is_apart(&self) -> bool {
        self.seen.is_some() || self.is_failure()
    }
}

/// Where results go. Cheap to clone.
#[derive(Clone)]
pub(super) struct Handle {
    results: mpsc::Sender<Box<Finished>>,
    /// Ends the recorder's rest.
    enough: Arc<Notify>,
    closing: Arc<watch::Sender<bool>>,
    drained: watch::Receiver<bool>,
}

/// The recorder's end of a [`Handle`].
pub(super) struct Results {
    finished: mpsc::Receiver<Box<Finished>>,
    enough: Arc<Notify>,
    closing: watch::Receiver<bool>,
    drained: watch::Sender<bool>,
}

/// A way for at most `size` results that wait.
pub(super) fn channel(size: usize) -> (Handle, Results) {
    let (sender, results) = mpsc::channel(size);
    let (closing, is_closing) = watch::channel(false);
    let (drained, is_drained) = watch::channel(false);
    let (enough, closing) = (Arc::new(Notify::new()), Arc::new(closing));
    let handle =
        Handle { results: sender, enough: Arc::clone(&enough), closing, drained: is_drained };
    (handle, Results { finished: results, enough, closing: is_closing, drained })
}

impl Handle {
    /// Takes a result; waits while too many wait.
    pub(super) async fn send(&self, finished: Box<Finished>) {
        // The recorder is gone only when the process is about to end; the lease runs out then.
        let _ = self.results.send(finished).await;
        let size = self.results.max_capacity();
        if size - self.results.capacity() >= enough_of(size) {
            self.enough.notify_one();
        }
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
    let (mut batch, mut apart) = (Vec::with_capacity(MAX_BATCH), Vec::new());
    let mut company = pin!(tokio::time::sleep(COMPANY));
    let mut is_over = false;
    while !is_over {
        tokio::select! {
            biased;
            () = &mut company, if !apart.is_empty() => {}
            count = results.finished.recv_many(&mut batch, MAX_BATCH) => is_over = count == 0,
            () = closed(&mut results.closing) => {
                results.finished.close();
                is_over = results.finished.recv_many(&mut batch, MAX_BATCH).await == 0;
            }
        }
        let is_first = apart.is_empty();
        apart.extend(batch.extract_if(.., |finished| finished.is_apart()));
        if is_first && !apart.is_empty() {
            company.set(tokio::time::sleep(COMPANY));
        }
        let (begin, size) = (shared.clock.now(), batch.len());
        let tenants = match size {
            0 => 0,
            _ => record(&shared, std::mem::take(&mut batch)).await,
        };
        let is_due = is_over || company.is_elapsed() || apart.len() >= MAX_BATCH;
        if apart.iter().any(|finished| is_due || !finished.is_failure()) {
            record(&shared, std::mem::take(&mut apart)).await;
        }
        let took = shared.clock.now().since(begin);
        tokio::select! {
            () = tokio::time::sleep(rest_after(took, tenants, size)) => {}
            () = has_enough(&results.finished, &results.enough) => {}
            () = &mut company, if !apart.is_empty() => {}
            () = closed(&mut results.closing) => {}
        }
    }
    results.drained.send_replace(true);
    // The end of this task by itself would be a fault; at the end of the process it is not.
    std::future::pending().await
}

/// How long to rest after a batch: as long as it took, so that there are half as many, and no caller waits for one.
/// Results of one tenant share a row of its feed, so it is longer when they are of many tenants and few of them share
/// one: for each tenant, times the part of the results that had a row of their own.
fn rest_after(took: Duration, tenants: usize, results: usize) -> Duration {
    let factor = tenants.saturating_mul(tenants) / results.max(1);
    let factor = u32::try_from(factor.max(1)).unwrap_or(u32::MAX);
    took.min(REST).saturating_mul(factor).min(LONGEST_REST)
}

/// How many results end a rest, when the queue has so many places.
fn enough_of(size: usize) -> usize {
    (size / PART).clamp(1, MAX_BATCH)
}

/// Waits until so many results wait that they should be written.
async fn has_enough<T>(finished: &mpsc::Receiver<T>, arrived: &Notify) {
    while finished.len() < enough_of(finished.max_capacity()) {
        arrived.notified().await;
    }
}

/// Waits until the recorder is closed. Without a handle left it is, too.
async fn closed(closing: &mut watch::Receiver<bool>) {
    let _ = closing.wait_for(|is_closing| *is_closing).await;
}

/// Records a batch, however long the database takes. Returns how many tenants its results belong to.
async fn record(shared: &Shared, batch: Vec<Box<Finished>>) -> usize {
    let (mut ended, mut permits, mut seen) = (Vec::new(), Vec::new(), Vec::new());
    for finished in batch {
        let Finished { ended: one, seen: of_endpoint, permit } = *finished;
        ended.push(one);
        permits.push(permit);
        seen.extend(of_endpoint);
    }
    // One order for all transactions, so that they never wait for each other in a circle.
    // (Results are large: the keys are sorted, and each result is moved once.)
    ended.sort_by_cached_key(|ended| (ended.after.tenant_id, ended.after.id));
    shared.metrics.recorded_batch(ended.len());
    let mut pause = FIRST_PAUSE;
    loop {
        match write(shared, &ended, &seen).await {
            Ok(()) => break,
            Err(Error::Unavailable(error)) => {
                tracing::warn!(%error, results = ended.len(), "results cannot be recorded; trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            Err(error) if ended.len() > 1 => {
                tracing::error!(%error, "a result in a batch is refused; recording one by one");
                for one in &ended {
                    Box::pin(record_alone(shared, one, &seen)).await;
                }
                break;
            }
            Err(error) => {
                tracing::error!(%error, delivery.id = %ended[0].after.id, "a result is refused; the delivery will be repeated");
                break;
            }
        }
    }
    // What was refused says nothing any more.
    shared.endpoints.settle(seen.iter(), [], shared.clock.now());
    drop(permits);
    if ended.iter().any(|ended| ended.after.state == State::Scheduled) {
        shared.due.notify_one();
    }
    ended.chunk_by(|one, next| one.after.tenant_id == next.after.tenant_id).count()
}

async fn record_alone(shared: &Shared, ended: &Ended, seen: &[Observed]) {
    let mut pause = FIRST_PAUSE;
    loop {
        match write(shared, std::slice::from_ref(ended), seen).await {
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

/// Writes results, and what those of them that are among `seen` say about their endpoints.
async fn write(shared: &Shared, ended: &[Ended], seen: &[Observed]) -> Result<(), Error> {
    let now = shared.clock.now();
    let recorded = shared.store.record_observed(ended, seen, &shared.config.health, now).await?;
    let written: HashSet<_> = ended.iter().map(|ended| ended.after.id).collect();
    let is_written = |seen: &&Observed| written.contains(&seen.delivery_id);
    let rows = recorded.health.iter().map(HealthChange::row);
    shared.endpoints.settle(seen.iter().filter(is_written), rows, now);
    for change in &recorded.health {
        shared.endpoint_changed(change);
    }
    let (fenced, mut done): (Vec<_>, Vec<_>) =
        ended.iter().partition(|ended| recorded.fenced.contains(&ended.after.id));
    for ended in fenced {
        let Some(attempt) = &ended.attempt else { continue };
        match shared.store.record_after_end(ended.after.tenant_id, attempt.clone(), now).await? {
            LateResult::Added(_) => {}
            // Recorded by a commit of ours that was not confirmed, and therefore not counted yet.
            LateResult::Known => done.push(ended),
            LateResult::Lost => {
                shared.metrics.fenced.inc();
                tracing::warn!(delivery.id = %ended.after.id, "a result came too late; another node has the delivery");
            }
        }
    }
    // Last: whoever has to write again after an error has counted nothing.
    for ended in done {
        // What was given back without an attempt is no retry.
        if ended.attempt.is_some() || ended.after.state != State::Scheduled {
            shared.metrics.recorded(&ended.after);
        }
    }
    Ok(())
}

impl Shared {
    /// What an attempt says about its endpoint, when that is to be written down: every failure, but
    /// no success of an endpoint that is healthy anyway. From now on it counts on this node.
    pub(super) fn seen(&self, ended: &Ended) -> Option<Observed> {
        let awaits_success = |id| self.endpoints.awaits_success(id);
        let (subscription, observation) = said_of_endpoint(ended, awaits_success)?;
        let random = self.random_unit();
        let delivery_id = ended.after.id;
        let seen = Observed { delivery_id, subscription, observation, random };
        self.endpoints.see(seen, self.clock.now());
        Some(seen)
    }

    /// Tells of an endpoint's new health, and has everybody follow.
    pub(super) fn endpoint_changed(&self, change: &HealthChange) {
        let HealthChange { subscription, before, after, disabled, .. } = *change;
        match (before.breaker, after.breaker) {
            (None, Some(_)) => {
                self.metrics.breaker_opened();
                tracing::warn!(subscription.id = %subscription.id, failures = after.consecutive_failures, "the endpoint keeps failing; its deliveries wait, and one is tried now and then");
            }
            (Some(_), None) => {
                self.metrics.breaker_closed();
                tracing::info!(subscription.id = %subscription.id, "the endpoint works again");
            }
            (None, None) | (Some(_), Some(_)) => {}
        }
        if let Some(reason) = disabled {
            self.metrics.disabled(reason);
            tracing::warn!(subscription.id = %subscription.id, reason = reason.as_str(), "the subscription was disabled");
            // Its deliveries follow, and the tenant is told.
            self.chores.notify_one();
        }
        if before.awaits_success() && !after.awaits_success() {
            self.due.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const fn ms(number: u64) -> Duration {
        Duration::from_millis(number)
    }

    #[test]
    fn the_fewer_results_share_a_row_the_longer_is_the_rest() {
        assert_eq!(rest_after(ms(2), 1, 1), ms(2));
        assert_eq!(rest_after(ms(2), 1, 500), ms(2));
        assert_eq!(rest_after(ms(2), 4, 4), ms(8), "a row each");
        assert_eq!(rest_after(ms(2), 4, 8), ms(4), "two share one");
        assert_eq!(rest_after(ms(2), 11, 110), ms(2), "one tenant has nearly all");
        assert_eq!(rest_after(ms(2), 95, 300), LONGEST_REST);
        assert_eq!(rest_after(ms(1_000), 1, 1), REST, "the database was away");
        assert_eq!(rest_after(ms(2), 0, 0), ms(2), "nothing but failures");
        assert_eq!(rest_after(ms(1_000), usize::MAX, 1), LONGEST_REST);
    }

    #[tokio::test]
    async fn enough_results_end_a_rest() {
        assert_eq!([1, 16, 4_096, 100_000].map(enough_of), [1, 2, 512, 512]);
        let (sender, results) = mpsc::channel(16);
        let arrived = Notify::new();
        let mut wait = pin!(has_enough(&results, &arrived));
        for is_enough in [false, true] {
            sender.send(()).await.expect("there is room");
            arrived.notify_one();
            assert_eq!(wait.as_mut().now_or_never().is_some(), is_enough);
        }
    }
}
