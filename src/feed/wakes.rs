//! Replicas wake each other, so that a watcher on one hears of a change on another at once. A lost
//! wake-up costs only time: the hub also looks by itself.

use std::sync::Arc;
use std::time::Duration;

use crate::store::Store;

use super::hub::Hub;

/// The shortest time between two wake-ups of the others: many commits share one.
const BREATH: Duration = Duration::from_millis(20);
/// The pause after a database error.
const ERROR_PAUSE: Duration = Duration::from_secs(1);

/// Wakes the other replicas after changes of this one.
pub(super) async fn tell_others(store: Store) {
    let mut changes = store.changes();
    while changes.changed().await.is_ok() {
        if let Err(error) = store.notify().await {
            tracing::debug!(%error, "other replicas could not be woken");
        }
        tokio::time::sleep(BREATH).await;
    }
}

/// Has the hub look when another replica has changed something.
pub(super) async fn hear_others(hub: Arc<Hub>, store: Store) {
    loop {
        match store.listen().await {
            // There is nothing to hear: the hub looks by itself. Ending would count as a fault.
            Ok(None) => std::future::pending().await,
            Ok(Some(mut listener)) => {
                while listener.next().await.is_ok() {
                    hub.wake();
                }
                tracing::debug!("the connection that hears other replicas broke");
            }
            Err(error) => tracing::debug!(%error, "other replicas cannot be heard"),
        }
        hub.wake();
        tokio::time::sleep(ERROR_PAUSE).await;
    }
}
