//! Whether the service is ready, told to everybody who asks: `/readyz` and gRPC health.
//!
//! Readiness follows the database, asked once a second whoever asks us how often. Stopping is final.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{self, MissedTickBehavior};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::api::SERVICES;
use crate::store::Store;
use crate::web::Readiness;

/// How often the database is asked.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long it may take to answer.
const TIMEOUT: Duration = Duration::from_secs(3);

/// The service's readiness. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Health {
    told: watch::Sender<Readiness>,
    reporter: HealthReporter,
}

impl Health {
    /// A service that is starting.
    pub(super) fn new(reporter: HealthReporter) -> Self {
        let (told, _) = watch::channel(Readiness::Starting);
        Self { told, reporter }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Readiness> {
        self.told.subscribe()
    }

    /// Tells everybody. Once it is stopping, nothing else is told.
    pub(super) async fn tell(&self, readiness: Readiness) {
        let is_new = self.told.send_if_modified(|told| {
            let is_new = *told != readiness && *told != Readiness::Stopping;
            if is_new {
                *told = readiness;
            }
            is_new
        });
        if !is_new {
            return;
        }
        let status = match readiness {
            Readiness::Ready => ServingStatus::Serving,
            _ => ServingStatus::NotServing,
        };
        for service in SERVICES {
            self.reporter.set_service_status(service, status).await;
        }
    }

    /// Follows the database for as long as it is polled.
    pub(super) async fn follow(self, store: Store) {
        let mut ticks = time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut was_ready = true;
        loop {
            ticks.tick().await;
            let problem = match time::timeout(TIMEOUT, store.ping()).await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some(format!("no answer within {} s", TIMEOUT.as_secs())),
            };
            match (&problem, was_ready) {
                (Some(error), true) => tracing::error!(error, "the database does not answer"),
                (None, false) => tracing::info!("the database answers again"),
                _ => {}
            }
            was_ready = problem.is_none();
            let readiness =
                if was_ready { Readiness::Ready } else { Readiness::DatabaseUnavailable };
            self.tell(readiness).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn stopping_is_final() {
        let health = Health::new(HealthReporter::new());
        let readiness = health.subscribe();
        assert_eq!(*readiness.borrow(), Readiness::Starting);
        health.tell(Readiness::Ready).await;
        health.tell(Readiness::Stopping).await;
        health.tell(Readiness::Ready).await;
        assert_eq!(*readiness.borrow(), Readiness::Stopping);
    }
}
