//! Mail: one message per recipient, through the operator's relays.
//!
//! The way of an attempt: `message` builds it (and `dkim` signs it), `pace` gives it its turn,
//! `relays` chooses a relay and goes on to the next when one is out of order, `session` speaks SMTP
//! over a connection that `stream` opened, and `reply` says what an answer means for the delivery.
//!
//! Guarantees: an attempt ends within [`MAX_TIMEOUT`] and a wait for its turn; what is sent is
//! encrypted unless the relay is on loopback; all attempts of a delivery send the same bytes; once
//! the content has gone to a relay no other one gets it in the same attempt; only what a server
//! said about the recipient is held against the recipient.
//!
//! Does not choose relays by what tenants say: they are the operator's.

mod dkim;
mod file;
mod message;
mod pace;
mod relay;
mod relays;
mod reply;
mod server;
mod session;
mod stream;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::domain::attempt::{ErrorKind, Failure, Outcome, Report, Task};
use crate::domain::channel::{EmailChannel, MAX_TIMEOUT};
use crate::domain::mail::Look;
use crate::domain::{Clock, Timestamp};

pub use dkim::Error as DkimError;
pub use message::{InvalidSender, Sender};
pub use server::{InvalidServer, Server};

use super::webhook::ConfigError as TlsError;
use dkim::Signer;
use message::Message;
use pace::Pace;
use relays::Relays;
use reply::Verdict;

/// Connections to one relay unless configured otherwise.
pub const DEFAULT_MAX_CONNECTIONS: usize = 8;
/// How long an attempt waits for its turn; what would wait longer is tried later.
const MAX_WAIT: Duration = Duration::from_secs(8);

/// How mail is sent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// The relays in order of preference. None: no mail is sent.
    pub servers: Vec<Server>,
    /// Who sends. `None`: no mail is sent.
    pub sender: Option<Sender>,
    /// Most connections to each relay.
    pub max_connections: usize,
    /// Most messages a second to each relay; 0 for no limit.
    pub max_rate: f64,
    /// Most messages a second to each recipient domain; 0 for no limit.
    pub max_domain_rate: f64,
    /// A PEM file with certificates of authorities to trust beside Mozilla's and the system's.
    pub ca_file: Option<PathBuf>,
    /// The keys that sign, with their selectors.
    pub dkim_keys: Vec<DkimKey>,
    /// The domain that signs; empty for the sender's.
    pub dkim_domain: String,
    /// How messages look.
    pub look: Look,
}

/// A key that signs messages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DkimKey {
    /// A PEM file with an RSA or Ed25519 private key.
    pub file: PathBuf,
    /// The name of its record in the DNS, below `_domainkey`.
    pub selector: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            sender: None,
            max_connections: DEFAULT_MAX_CONNECTIONS,
            max_rate: 0.0,
            max_domain_rate: 0.0,
            ca_file: None,
            dkim_keys: Vec::new(),
            dkim_domain: String::new(),
            look: Look::default(),
        }
    }
}

/// Why no mail can be sent as configured.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The authorities cannot be used.
    #[error("smtp-ca-file: {0}")]
    Tls(#[source] TlsError),
    /// A key cannot be used.
    #[error(transparent)]
    Dkim(#[from] DkimError),
    /// The folder for messages cannot be made.
    #[error("the folder {} for messages cannot be made", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

/// Sends mail. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct Mailer {
    shared: Arc<Shared>,
}

struct Shared {
    sender: Option<Sender>,
    look: Look,
    signer: Signer,
    relays: Relays,
    domains: Pace,
    clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for Mailer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mailer").finish_non_exhaustive()
    }
}

impl Mailer {
    /// Builds the mailer. Reads keys and certificates from files, and connects to nothing.
    ///
    /// # Errors
    /// When a file is no good.
    pub fn new(config: &Config, clock: Arc<dyn Clock>) -> Result<Self, ConfigError> {
        let domain = match (&config.sender, config.dkim_domain.as_str()) {
            (Some(sender), "") => sender.domain().to_owned(),
            (_, domain) => domain.to_owned(),
        };
        let shared = Shared {
            sender: config.sender.clone(),
            look: config.look.clone(),
            signer: Signer::new(&config.dkim_keys, domain)?,
            relays: Relays::new(config, &clock)?,
            domains: Pace::new(config.max_domain_rate),
            clock,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    fn now(&self) -> Timestamp {
        self.shared.clock.now()
    }

    /// Makes one attempt to deliver `task` as `settings`, those of its subscription, say.
    pub async fn attempt(&self, task: &Task, settings: &EmailChannel) -> Report {
        let start_time = self.now();
        let mut report = Report {
            outcome: Outcome::Delivered,
            start_time,
            duration: Duration::ZERO,
            timings: None,
            http_status: None,
            request_headers: Vec::new(),
            response_headers: Vec::new(),
            response_body: Vec::new(),
            smtp_reply: String::new(),
            failure: None,
        };
        let verdict = match self.message(task, settings) {
            Ok(message) => {
                report.request_headers = message.recorded();
                self.send(&message).await
            }
            Err(verdict) => verdict,
        };
        report.outcome = verdict.outcome;
        report.smtp_reply = verdict.reply;
        report.failure = verdict.failure;
        report.duration = self.now().since(start_time);
        report
    }

    fn message(&self, task: &Task, settings: &EmailChannel) -> Result<Message, Verdict> {
        let shared = &self.shared;
        let sender = shared.sender.as_ref().filter(|_| !shared.relays.is_empty());
        let Some(sender) = sender else {
            return Err(Verdict::ours(
                "No mail can be sent: the service has no relay and sender. An operator has to set \
                 smtp-url and mail-from.",
            ));
        };
        Message::build(task, settings, sender, &shared.look, &shared.signer)
    }

    async fn send(&self, message: &Message) -> Verdict {
        let now = self.now();
        match self.shared.domains.turn(message.recipient_domain(), now, MAX_WAIT) {
            Ok(wait) => tokio::time::sleep(wait).await,
            Err(wait) => return Verdict::paced(wait),
        }
        self.shared.relays.send(message, MAX_TIMEOUT).await
    }
}

/// A failure that is told to the tenant.
#[expect(clippy::unnecessary_wraps, reason = "it stands where a success has none")]
fn failure(kind: ErrorKind, message: impl Into<String>) -> Option<Failure> {
    Some(Failure { kind, message: message.into() })
}
