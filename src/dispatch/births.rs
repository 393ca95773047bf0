//! Has watchers hear of deliveries that are under way for longer than a moment. The others' beginnings are told
//! of with their ends.

use std::sync::Arc;
use std::time::Duration;

use crate::domain::Clock;

use super::Shared;

/// How often to look: a delivery is told of after one to two of these.
const INTERVAL: Duration = Duration::from_millis(50);
/// The pause after a database error.
const ERROR_PAUSE: Duration = Duration::from_secs(1);

/// Tells of them until the process ends: what is not told of then, whoever takes over tells of.
pub(super) async fn tell(shared: Arc<Shared>) -> &'static str {
    loop {
        shared.store.births().await;
        tokio::time::sleep(INTERVAL).await;
        if let Err(error) = shared.store.tell_births(shared.clock.now()).await {
            tracing::warn!(%error, "watchers cannot be told of deliveries under way; trying again");
            tokio::time::sleep(ERROR_PAUSE).await;
        }
    }
}
