//! What the demo knows of its deliveries: the newest copy of each, as `WatchDeliveries` tells them.

use std::collections::HashMap;

use tokio::sync::mpsc;
use tonic::Streaming;

use super::super::Error;
use super::super::client::Client;
use crate::api::proto::{Delivery, DeliveryState, WatchDeliveriesRequest, WatchDeliveriesResponse};

/// Changes that may wait for being shown; beyond that the stream waits.
const WAITING: usize = 1_024;

/// Every delivery, by event and subscription.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    deliveries: HashMap<(String, String), Delivery>,
}

impl Ledger {
    /// Takes a change over; false when it tells nothing new.
    pub(super) fn apply(&mut self, delivery: &Delivery) -> bool {
        let key = (delivery.event_id.clone(), delivery.subscription_id.clone());
        let known = self.deliveries.get(&key).map_or(0, |known| known.revision);
        if delivery.revision <= known {
            return false;
        }
        self.deliveries.insert(key, delivery.clone());
        true
    }

    /// The delivery of an event to a subscription.
    pub(super) fn get(&self, event_id: &str, subscription_id: &str) -> Option<&Delivery> {
        self.deliveries.get(&(event_id.to_owned(), subscription_id.to_owned()))
    }

    /// All of them.
    pub(super) fn all(&self) -> impl Iterator<Item = &Delivery> {
        self.deliveries.values()
    }

    /// How many are in this state.
    pub(super) fn count(&self, state: DeliveryState) -> usize {
        self.all().filter(|delivery| delivery.state() == state).count()
    }

    /// How many attempts were made after the first ones.
    pub(super) fn retries(&self) -> i32 {
        self.all().map(|delivery| (delivery.attempt_count - 1).max(0)).sum()
    }
}

/// Whether nothing will follow by itself.
pub(super) fn has_ended(delivery: &Delivery) -> bool {
    !matches!(
        delivery.state(),
        DeliveryState::Unspecified
            | DeliveryState::Scheduled
            | DeliveryState::Delivering
            | DeliveryState::Held
    )
}

/// How many of its attempts failed.
pub(super) fn failures(delivery: &Delivery) -> i32 {
    delivery.attempt_count - i32::from(delivery.state() == DeliveryState::Succeeded)
}

/// A live stream of changes.
pub(super) struct Changes {
    receiver: mpsc::Receiver<Result<Delivery, Error>>,
    _reader: tokio::task::JoinSet<()>,
}

impl Changes {
    /// Begins to watch; everything that happens after this is told.
    ///
    /// # Errors
    /// When the service refuses.
    pub(super) async fn watch(client: &Client) -> Result<Self, Error> {
        let request = WatchDeliveriesRequest::default();
        let mut stream = client.deliveries().watch_deliveries(request).await?.into_inner();
        // The first response is a checkpoint: from there on nothing is missed.
        let first = stream.message().await?;
        let (sender, receiver) = mpsc::channel(WAITING);
        let mut reader = tokio::task::JoinSet::new();
        reader.spawn(read(stream, first, sender));
        Ok(Self { receiver, _reader: reader })
    }

    /// The next change.
    ///
    /// # Errors
    /// When the stream breaks: this service runs in the same process, and has no reason to.
    pub(super) async fn next(&mut self) -> Result<Delivery, Error> {
        let ended = || Err(Error::failure("the stream of deliveries has ended by itself"));
        self.receiver.recv().await.unwrap_or_else(ended)
    }
}

async fn read(
    mut stream: Streaming<WatchDeliveriesResponse>,
    first: Option<WatchDeliveriesResponse>,
    sender: mpsc::Sender<Result<Delivery, Error>>,
) {
    let mut response = Ok(first);
    loop {
        let change = match response {
            Ok(Some(response)) => response.delivery.map(Ok),
            Ok(None) => return,
            Err(status) => Some(Err(Error::from(status))),
        };
        let has_failed = matches!(change, Some(Err(_)));
        if let Some(change) = change
            && (sender.send(change).await.is_err() || has_failed)
        {
            return;
        }
        response = stream.message().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery(revision: i64, state: DeliveryState, attempt_count: i32) -> Delivery {
        let (event_id, subscription_id) = ("evt_1".into(), "sub_1".into());
        let state = state.into();
        Delivery {
            event_id,
            subscription_id,
            revision,
            state,
            attempt_count,
            ..Delivery::default()
        }
    }

    #[test]
    fn the_newest_copy_counts() {
        let mut ledger = Ledger::default();
        assert!(ledger.apply(&delivery(2, DeliveryState::Succeeded, 3)));
        assert!(!ledger.apply(&delivery(1, DeliveryState::Delivering, 2)));
        assert_eq!(ledger.count(DeliveryState::Succeeded), 1);
        assert_eq!(ledger.retries(), 2);
        let known = ledger.get("evt_1", "sub_1").unwrap();
        assert!(has_ended(known));
        assert_eq!(failures(known), 2);
    }
}
