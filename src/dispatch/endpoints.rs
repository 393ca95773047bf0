//! What this node knows of endpoints that are not healthy, kept up with the database: its own
//! attempts at once, what others write every second. What follows from it is decided in
//! [`super::decide::endpoints`].

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::domain::health::{Gate, Policy, State};
use crate::domain::id::SubscriptionId;
use crate::domain::replicas::Replicas;
use crate::domain::subscription::Subscription;
use crate::domain::{Clock, Timestamp};
use crate::store::{EndpointHealth, Error, Observed, Store};

use super::Shared;
use super::decide::endpoints::Known;
use super::decide::trust::{Allowance, Sign};

/// How often others' changes are read.
const INTERVAL: Duration = Duration::from_secs(1);
/// Every how many rounds everything is read anew.
const RELOAD: u32 = 60;
/// Rows that are read at once.
const PAGE: u32 = 1_000;

/// What is known, for all tasks.
#[derive(Debug)]
pub(super) struct Endpoints(RwLock<Known>);

impl Endpoints {
    pub(super) fn new(policy: Policy) -> Self {
        Self(RwLock::new(Known::new(policy)))
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Known> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Known> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// See [`Known::gate`].
    pub(super) fn gate(
        &self,
        id: SubscriptionId,
        subscription: Option<&Subscription>,
        now: Timestamp,
    ) -> Gate {
        self.read().gate(id, subscription, now)
    }

    /// See [`Known::allowance`].
    pub(super) fn allowance(
        &self,
        id: SubscriptionId,
        subscription: Option<&Subscription>,
        now: Timestamp,
    ) -> Allowance {
        self.read().allowance(id, subscription, now)
    }

    /// See [`Known::trust`]. Most attempts end as the ones before.
    pub(super) fn trust(&self, subscription: &Subscription, sign: Sign, now: Timestamp) {
        let is_news = self.read().is_news(subscription, sign, now);
        if is_news {
            self.write().trust(subscription, sign, now);
        }
    }

    /// See [`Known::rate`].
    pub(super) fn rate(&self, subscription: Option<&Subscription>) -> Option<f64> {
        self.read().rate(subscription)
    }

    /// See [`Known::awaits_probe`].
    pub(super) fn awaits_probe(&self, id: SubscriptionId) -> bool {
        self.read().awaits_probe(id)
    }

    /// See [`Known::awaits_success`].
    pub(super) fn awaits_success(&self, id: SubscriptionId) -> bool {
        self.read().awaits_success(id)
    }

    /// See [`Known::see`].
    pub(super) fn see(&self, seen: Observed, now: Timestamp) {
        self.write().see(seen, now);
    }

    /// See [`Known::settle`]. At once: in between an attempt would count twice, or not at all.
    pub(super) fn settle<'s>(
        &self,
        seen: impl Iterator<Item = &'s Observed>,
        rows: impl IntoIterator<Item = EndpointHealth>,
        now: Timestamp,
    ) {
        self.write().settle(seen, rows, now);
    }

    /// See [`Known::learn`].
    pub(super) fn learn(
        &self,
        rows: impl IntoIterator<Item = EndpointHealth>,
        now: Timestamp,
    ) -> bool {
        self.write().learn(rows, now)
    }

    fn prune(&self, now: Timestamp, all: Option<(&[EndpointHealth], Timestamp)>) {
        self.write().prune(now, all);
    }

    fn counts(&self, now: Timestamp) -> HashMap<State, i64> {
        self.read().counts(now)
    }

    fn set_replicas(&self, replicas: Replicas) -> bool {
        self.write().set_replicas(replicas)
    }

    /// Reads everything: before the first attempt, and now and then.
    pub(super) async fn reload(&self, store: &Store, now: Timestamp) -> Result<(), Error> {
        let rows = read(store, Timestamp::from_micros(0)).await?;
        self.learn(rows.iter().copied(), now);
        self.write().was_read(now);
        self.prune(now, Some((&rows, now)));
        Ok(())
    }
}

async fn read(store: &Store, since: Timestamp) -> Result<Vec<EndpointHealth>, Error> {
    let mut rows: Vec<EndpointHealth> = Vec::new();
    loop {
        let after =
            rows.last().map_or((since, None), |row| (row.update_time, Some(row.subscription)));
        let page = store.health_changes(after, PAGE).await?;
        let is_last = page.len() < PAGE as usize;
        rows.extend(page);
        if is_last {
            return Ok(rows);
        }
    }
}

/// Follows what other replicas find out, until it is stopped.
pub(super) async fn follow(shared: Arc<Shared>, stop: CancellationToken) -> &'static str {
    let mut round = 0_u32;
    while !stop.is_cancelled() {
        round = round.wrapping_add(1);
        if let Err(error) = look(&shared, round.is_multiple_of(RELOAD)).await {
            tracing::warn!(%error, "the health of endpoints cannot be read; trying again");
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
    std::future::pending().await
}

async fn look(shared: &Shared, at_everything: bool) -> Result<(), Error> {
    let endpoints = &shared.endpoints;
    let mut has_changed = look_for_replicas(shared).await?;
    let now = shared.clock.now();
    if at_everything {
        endpoints.reload(&shared.store, now).await?;
        has_changed = true;
    } else {
        let since = endpoints.read().unread_since(now);
        has_changed |= endpoints.learn(read(&shared.store, since).await?, now);
        endpoints.write().was_read(now);
        endpoints.prune(now, None);
    }
    shared.metrics.endpoints(&endpoints.counts(now));
    if has_changed {
        // What may be sent has changed, perhaps.
        shared.due.notify_one();
    }
    Ok(())
}

/// Reads who shares the limits.
pub(super) async fn look_for_replicas(shared: &Shared) -> Result<bool, Error> {
    // An embedded database has one replica.
    if shared.store.is_embedded() {
        return Ok(false);
    }
    let live = shared.store.live_nodes().await?;
    shared.metrics.replicas.set(i64::try_from(live.len()).unwrap_or(i64::MAX));
    Ok(shared.endpoints.set_replicas(Replicas::of(shared.lease.node(), &live)))
}
