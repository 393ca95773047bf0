//! Delivers: one attempt at a time, to the outside world.
//!
//! Guarantees: an attempt ends within the subscription's timeout, in bounded memory, and its result
//! is data ([`Report`]), never an error. Connections to addresses that tenants chose are opened
//! here and nowhere else.
//!
//! Does not record anything and cannot: this module does not see the store. What becomes of the
//! delivery is decided by `domain::delivery::transition`.

pub mod webhook;

use std::time::Duration;

use crate::domain::attempt::{ErrorKind, Failure, Outcome, Report, Task};
use crate::domain::channel::Channel;

/// The channels of a running service. Cheap to clone; clones share connections.
#[derive(Clone, Debug)]
pub struct Channels {
    webhook: webhook::Client,
}

impl Channels {
    /// The channels, ready to deliver.
    pub fn new(webhook: webhook::Client) -> Self {
        Self { webhook }
    }

    /// Makes one attempt through the subscription's channel.
    pub async fn attempt(&self, task: &Task) -> Report {
        match &task.subscription.spec.channel {
            Channel::Webhook(settings) => self.webhook.attempt(task, settings).await,
            Channel::Email(_) => self.email_unsupported(),
        }
    }

    /// The API refuses to store email channels for now; one that is there anyway ends here.
    fn email_unsupported(&self) -> Report {
        Report {
            outcome: Outcome::Permanent,
            start_time: self.webhook.now(),
            duration: Duration::ZERO,
            http_status: None,
            request_headers: Vec::new(),
            response_headers: Vec::new(),
            response_body: Vec::new(),
            failure: Some(Failure {
                kind: ErrorKind::Configuration,
                message: "This version of Tidings does not deliver by email yet.".to_owned(),
            }),
        }
    }
}
