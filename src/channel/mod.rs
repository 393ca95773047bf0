//! Delivers: one attempt at a time, to the outside world.
//!
//! Guarantees: an attempt ends within the subscription's timeout, in bounded memory, and its result
//! is data ([`Report`]), never an error. Connections to addresses that tenants chose are opened
//! here and nowhere else.
//!
//! Does not record anything and cannot: this module does not see the store. What becomes of the
//! delivery is decided by `domain::delivery::transition`.

pub mod apart;
mod counted;
pub mod email;
pub mod webhook;

use std::time::Duration;

use crate::domain::attempt::{Report, Task};
use crate::domain::channel::Channel;

use apart::{Apart, Processes};

pub(crate) use counted::Counted;

/// The channels of a running service. Cheap to clone; clones share connections.
#[derive(Clone, Debug)]
pub struct Channels {
    webhook: webhook::Client,
    mailer: email::Mailer,
    /// For attempts in a process of their own.
    processes: Option<Processes>,
}

/// The turn of one attempt; over when dropped.
#[derive(Debug)]
pub struct Turn(Option<email::Turn>);

impl Channels {
    /// The channels, ready to deliver.
    pub fn new(webhook: webhook::Client, mailer: email::Mailer) -> Self {
        Self { webhook, mailer, processes: None }
    }

    /// Has `processes` make the attempts that are to be made apart.
    #[must_use]
    pub fn with_processes(self, processes: Processes) -> Self {
        Self { processes: Some(processes), ..self }
    }

    /// Makes one attempt in a process of its own; `None` where there are none.
    pub async fn attempt_apart(&self, task: &Task) -> Option<Apart> {
        let processes = self.processes.as_ref()?;
        Some(processes.attempt(task, self.webhook.now()).await)
    }

    /// Waits until there may be an attempt: a relay has no more connections, and takes no more messages,
    /// than its operator says. That waiting is no part of the attempt.
    ///
    /// # Errors
    /// After how long to come again, when it takes too long.
    pub async fn turn(&self, task: &Task) -> Result<Turn, Duration> {
        match &task.subscription.spec.channel {
            Channel::Webhook(_) => Ok(Turn(None)),
            Channel::Email(_) => {
                Box::pin(self.mailer.turn(task)).await.map(|turn| Turn(Some(turn)))
            }
        }
    }

    /// Makes one attempt through the subscription's channel, in its turn, or without waiting for one
    /// before it.
    pub async fn attempt(&self, task: &Task, turn: Option<Turn>) -> Report {
        #[cfg(feature = "failpoints")]
        crate::failpoint::fail_at(&task.event.event_type);
        match &task.subscription.spec.channel {
            // Both apart: whoever waits for an attempt hands its future on, and these are large.
            Channel::Webhook(settings) => Box::pin(self.webhook.attempt(task, settings)).await,
            Channel::Email(settings) => {
                let turn = turn.and_then(|Turn(turn)| turn);
                Box::pin(self.mailer.attempt(task, settings, turn)).await
            }
        }
    }
}
