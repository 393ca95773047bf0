//! The live state of deliveries, told to whoever watches, on whichever replica.
//!
//! Everything comes from the store's feed, so a watcher sees every change, whoever made it, and may
//! go on from where it stopped. The hub's rings are only a short cut that spares the database one
//! read per watcher, and that of what this process has written itself; a watcher that falls out of a ring
//! reads from the database again.

mod hub;
mod tasks;
mod wakes;
mod watcher;

use std::sync::Arc;

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};

use crate::domain::delivery::{Delivery, State};
use crate::domain::id::{DeliveryId, EventId, SubscriptionId, TenantId};
use crate::domain::pattern::Pattern;
use crate::store::{self, Store};

use hub::Hub;
use tasks::Tasks;
pub use watcher::Watcher;

/// Which deliveries to tell of; empty fields choose all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filter {
    /// Of this subscription.
    pub subscription_id: Option<SubscriptionId>,
    /// Of this event.
    pub event_id: Option<EventId>,
    /// Of any of these types of event.
    pub event_types: Vec<Pattern>,
    /// In any of these states after the change.
    pub states: Vec<State>,
}

impl Filter {
    /// Whether `delivery` is to be told of.
    pub fn matches(&self, delivery: &Delivery) -> bool {
        self.subscription_id.is_none_or(|id| id == delivery.subscription_id)
            && self.event_id.is_none_or(|id| id == delivery.event_id)
            && (self.states.is_empty() || self.states.contains(&delivery.state))
            && (self.event_types.is_empty()
                || self.event_types.iter().any(|pattern| pattern.matches(&delivery.event_type)))
    }
}

/// Where a watcher stands: what a resume token holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Every row of the feed up to this position has been told.
    #[serde(rename = "p")]
    pub position: i64,
    /// So many changes of the row behind it have been told, too.
    #[serde(rename = "i", default, skip_serializing_if = "is_zero")]
    pub index: u32,
    /// Where the snapshot stands, while there is one.
    #[serde(rename = "s", default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Snapshot>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields by reference")]
const fn is_zero(index: &u32) -> bool {
    *index == 0
}

/// A snapshot under way: deliveries up to `after` have been told, as of the cursor's position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The last delivery that was told; `None` at the beginning.
    #[serde(rename = "a", default, skip_serializing_if = "Option::is_none")]
    pub after: Option<DeliveryId>,
}

/// Where to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With what changes from now on.
    Now,
    /// With the deliveries as they stand, then with what changes.
    Current,
    /// Where an earlier watcher stopped.
    Resume(Cursor),
}

/// What a watcher hears.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// A delivery as it stood after a change, or as it stands in the snapshot.
    Change(Box<Delivery>),
    /// Nothing: the cursor has moved on.
    Checkpoint {
        /// Whether the snapshot ended here.
        snapshot_complete: bool,
    },
}

/// An item, and where to go on after it.
#[derive(Clone, Debug, PartialEq)]
pub struct Watched {
    /// What happened.
    pub item: Item,
    /// Where to go on.
    pub cursor: Cursor,
}

/// Why there is nothing more to hear.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The feed no longer reaches back to the cursor.
    #[error("the resume token is older than the feed's retention")]
    Expired,
    /// There is no such tenant.
    #[error("there is no such tenant")]
    UnknownTenant,
    /// The service is about to end; another replica goes on from the cursor.
    #[error("the service is shutting down")]
    ShuttingDown,
    /// The database did not answer; the watcher may go on from the cursor.
    #[error(transparent)]
    Unavailable(#[from] store::Error),
}

/// The feed. Cheap to clone.
#[derive(Clone)]
pub struct Feed {
    hub: Arc<Hub>,
    tasks: Tasks,
}

impl Feed {
    /// Starts to follow the store's feed.
    pub fn start(store: &Store, registry: &mut Registry) -> Self {
        let watchers = Gauge::default();
        registry.register("tidings_watchers", "Open streams of WatchDeliveries", watchers.clone());
        let hub = Arc::new(Hub::new(store.clone(), watchers));
        let tasks = Tasks::new();
        tasks.spawn("the feed's hub", hub::run(Arc::clone(&hub)));
        // An embedded database has no other replicas.
        if !store.is_embedded() {
            tasks.spawn("the feed's call to replicas", wakes::tell_others(store.clone()));
            let hear = wakes::hear_others(Arc::clone(&hub), store.clone());
            tasks.spawn("the feed's ear for replicas", hear);
        }
        Self { hub, tasks }
    }

    /// Watches a tenant's deliveries.
    ///
    /// # Errors
    /// When the tenant does not exist, or the cursor is too old.
    pub async fn watch(
        &self,
        tenant_id: TenantId,
        filter: Filter,
        start: Start,
    ) -> Result<Watcher, Error> {
        Watcher::open(Arc::clone(&self.hub), self.tasks.closing(), tenant_id, filter, start).await
    }

    /// Ends every watcher, with an error that says where to go on.
    pub fn close(&self) {
        self.tasks.close();
    }

    /// Waits, once closed, until the feed's own tasks have ended.
    pub async fn drained(&self) {
        self.tasks.drained().await;
    }

    /// Waits until one of the feed's own tasks has ended by itself, which is a fault; tells which.
    pub async fn failed(&self) -> &'static str {
        self.tasks.failed().await
    }

    /// Has a task of the feed end by itself.
    #[cfg(test)]
    pub(crate) fn break_down(&self) {
        self.tasks.spawn("the feed's broken part", async {});
    }
}
