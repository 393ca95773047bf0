//! Deliveries under suspicion: those whose leases have ended with the process that had them.
//!
//! A lease that ends like this says little about a delivery: it may have waited, or shared its node
//! with the one that is to blame. So the first two are forgiven. From then on it is attempted in a
//! process of its own, and only what brings down that one is quarantined: it was alone there, so
//! nothing else can be to blame, and no crash of the service ever fails a delivery by itself.

use std::io;
use std::time::Duration;

use crate::channel::Turn;
use crate::channel::apart::Apart;
use crate::domain::attempt::{Attempt, ErrorKind, Failure, Outcome, Report, Task};
use crate::domain::delivery::Delivery;
use crate::domain::{Clock, Timestamp};

use super::Shared;
use super::decide::delivery::is_suspect;

/// Where no processes can be started, so many interrupted leases in a row are blamed on the delivery.
const BLAMED: u32 = 10;
/// How long to wait when no process can be started just now.
pub(super) const PAUSE: Duration = Duration::from_secs(5);

/// What came of a wish to attempt.
pub(super) enum Made {
    /// An attempt, which ended.
    Attempt(Attempt),
    /// An attempt, which brought down its process.
    Fatal(Attempt),
    /// Nothing: no process could be started.
    Nothing,
    /// Nothing: its turn is too far away, and comes about then.
    Waits(Duration),
}

/// Whether no time will mend that a process cannot be started.
fn is_forbidden(error: &io::Error) -> bool {
    use io::ErrorKind::{NotFound, PermissionDenied, Unsupported};
    matches!(error.kind(), NotFound | PermissionDenied | Unsupported)
}

impl Shared {
    /// Waits for the turn of an attempt, and makes it. Waiting is no attempt, whatever comes of it.
    pub(super) async fn attempt_in_turn(&self, delivery: &Delivery, task: &Task) -> Made {
        match self.channels.turn(task).await {
            Ok(turn) => self.attempt_of(delivery, task, Some(turn)).await,
            Err(wait) => Made::Waits(wait),
        }
    }

    /// Makes an attempt in the way that is right for the delivery.
    pub(super) async fn attempt_of(
        &self,
        delivery: &Delivery,
        task: &Task,
        turn: Option<Turn>,
    ) -> Made {
        if !is_suspect(delivery) {
            return Made::Attempt(self.attempt(task, turn).await);
        }
        Box::pin(self.attempt_of_suspect(delivery, task, turn)).await
    }

    async fn attempt_of_suspect(
        &self,
        delivery: &Delivery,
        task: &Task,
        turn: Option<Turn>,
    ) -> Made {
        let start_time = self.clock.now();
        // The turn is kept here while another process uses it.
        let Some(apart) = self.channels.attempt_apart(task).await else {
            return self.attempt_here(delivery, task, turn).await;
        };
        match apart {
            Apart::NotBegun(error) if is_forbidden(&error) => {
                tracing::error!(%error, "no processes may be started for attempts; those that were interrupted are attempted in this one");
                self.attempt_here(delivery, task, turn).await
            }
            Apart::Reported(report) => {
                Made::Attempt(self.attempted(task, report.map(|report| *report), start_time))
            }
            Apart::Died(how) => Made::Fatal(self.fatal(delivery, task, start_time, &how)),
            Apart::NotBegun(error) => {
                tracing::error!(%error, delivery.id = %delivery.id, "a process for an attempt cannot be started; trying again");
                Made::Nothing
            }
        }
    }

    /// The attempt of a suspect where it cannot be made apart.
    async fn attempt_here(&self, delivery: &Delivery, task: &Task, turn: Option<Turn>) -> Made {
        if delivery.interrupted_count < BLAMED {
            return Made::Attempt(self.attempt(task, turn).await);
        }
        let how = format!("{} leases in a row were interrupted", delivery.interrupted_count);
        Made::Fatal(self.fatal(delivery, task, self.clock.now(), &how))
    }

    /// The record of an attempt that brought down its process.
    fn fatal(&self, delivery: &Delivery, task: &Task, start_time: Timestamp, how: &str) -> Attempt {
        self.metrics.fatal_attempts.inc();
        tracing::error!(
            delivery.id = %delivery.id,
            tenant.id = %delivery.tenant_id,
            event.id = %delivery.event_id,
            event.r#type = %delivery.event_type,
            subscription.id = %delivery.subscription_id,
            how,
            "an attempt brought down the process that made it; the delivery is quarantined"
        );
        let report = Report {
            duration: self.clock.now().since(start_time),
            failure: Some(Failure {
                kind: ErrorKind::Internal,
                message:
                    "Tidings' process ended while it made this attempt, as it had before. The \
                          delivery is quarantined; the operator of the service has to look at it."
                        .into(),
            }),
            ..Report::new(Outcome::Permanent, start_time)
        };
        self.attempted(task, Some(report), start_time)
    }
}
