//! Mail: one message per recipient, through the operator's relays.
//!
//! The way of an attempt: before it, [`Mailer::turn`] waits for its turn (`pace`) and for a place
//! among a relay's connections; `message` builds it (and `dkim` signs it), `relays` goes on to the next
//! relay when one is out of order (`health`), `session` speaks SMTP over a connection that `stream`
//! opened, and `reply` says what an answer means for the delivery.
//!
//! Guarantees: an attempt ends within [`MAX_TIMEOUT`]; waiting for a turn is no part of it, and ends
//! within seconds, or else the delivery is to be given back without an attempt; what is sent is
//! encrypted unless the relay is on loopback; all attempts of a delivery send the same bytes; once
//! the content has gone to a relay no other one gets it in the same attempt; only what a server
//! said about the recipient is held against the recipient.
//!
//! Does not choose relays by what tenants say: they are the operator's.

mod dkim;
mod file;
mod health;
mod message;
mod metrics;
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

use prometheus_client::registry::Registry;
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
use metrics::Metrics;
use pace::Pace;
use relays::{Held, Relays};
use reply::Verdict;

/// Connections to one relay unless configured otherwise.
pub const DEFAULT_MAX_CONNECTIONS: usize = 8;
/// How long a message waits for its turn; what would wait longer comes again later.
const MAX_WAIT: Duration = Duration::from_secs(8);
/// The same for what is newer than [`MAX_WAIT`]. The rest of the time is for those who came again, so
/// that newcomers cannot take every turn before them.
const NEWCOMERS_WAIT: Duration = Duration::from_secs(4);
/// The header, among those that came back, that names the relay of an attempt.
const RELAY_HEADER: &str = "Relay";

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

impl Config {
    /// Whether mail is sent.
    pub const fn sends(&self) -> bool {
        !self.servers.is_empty() && self.sender.is_some()
    }
}

/// Why no mail can be sent as configured.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The authorities cannot be used.
    #[error("--smtp-ca-file: {0}")]
    Tls(#[source] TlsError),
    /// A key cannot be used.
    #[error(transparent)]
    Dkim(#[from] DkimError),
    /// The folder for messages cannot be made.
    #[error("--smtp-url file://{}: the folder cannot be made: {source}", path.display())]
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
    metrics: Metrics,
    clock: Arc<dyn Clock>,
}

/// The turn of one message: a place among a relay's connections, until the attempt is over.
#[derive(Debug)]
pub struct Turn(Option<Held>);

impl std::fmt::Debug for Mailer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mailer").finish_non_exhaustive()
    }
}

impl Mailer {
    /// Builds the mailer. Reads keys and certificates from files, and connects to nothing. Its metrics,
    /// all of which begin with `mail_`, are registered.
    ///
    /// # Errors
    /// When a file is no good.
    pub fn new(
        config: &Config,
        clock: Arc<dyn Clock>,
        registry: &mut Registry,
    ) -> Result<Self, ConfigError> {
        let metrics = Metrics::new(registry);
        let domain = match (&config.sender, config.dkim_domain.as_str()) {
            (Some(sender), "") => sender.domain().to_owned(),
            (_, domain) => domain.to_owned(),
        };
        let shared = Shared {
            sender: config.sender.clone(),
            look: config.look.clone(),
            signer: Signer::new(&config.dkim_keys, domain)?,
            relays: Relays::new(config, &clock, &metrics)?,
            domains: Pace::new(config.max_domain_rate),
            metrics,
            clock,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    fn now(&self) -> Timestamp {
        self.shared.clock.now()
    }

    /// Waits for the turn of `task`'s message: by its recipient's domain, and at a relay.
    ///
    /// # Errors
    /// After how long to come again, when it takes too long.
    pub async fn turn(&self, task: &Task) -> Result<Turn, Duration> {
        let shared = &self.shared;
        if shared.relays.is_empty() {
            // The attempt says what is missing.
            return Ok(Turn(None));
        }
        let started = self.now();
        let is_new = started.since(task.create_time) < MAX_WAIT;
        let patience = if is_new { NEWCOMERS_WAIT } else { MAX_WAIT };
        let held = self.held(&task.recipient, started, patience).await;
        match &held {
            Ok(_) => shared.metrics.waited(self.now().since(started)),
            Err(_) => shared.metrics.sent_away(),
        }
        held.map(|held| Turn(Some(held)))
    }

    async fn held(
        &self,
        recipient: &str,
        started: Timestamp,
        patience: Duration,
    ) -> Result<Held, Duration> {
        let shared = &self.shared;
        let domain = recipient.rsplit_once('@').map_or("", |(_, domain)| domain);
        let domain = domain.to_ascii_lowercase();
        let wait = shared.domains.turn(&domain, started, patience)?;
        tokio::time::sleep(wait).await;
        let held = shared.relays.turn(patience.saturating_sub(wait)).await;
        if held.is_err() {
            shared.domains.give_back(&domain, started.plus(wait));
        }
        held
    }

    /// Makes one attempt to deliver `task` as `settings`, those of its subscription, say, in its turn.
    /// Without a turn it waits for one as a part of the attempt: that is for attempts on request, and for
    /// those whose turn somebody else has.
    pub async fn attempt(
        &self,
        task: &Task,
        settings: &EmailChannel,
        turn: Option<Turn>,
    ) -> Report {
        let start_time = self.now();
        let mut report = Report::new(Outcome::Delivered, start_time);
        let verdict = match self.message(task, settings) {
            Ok(message) => {
                report.request_headers = message.recorded();
                self.send(&message, turn).await
            }
            Err(verdict) => verdict,
        };
        report.outcome = verdict.outcome;
        report.smtp_reply = verdict.reply;
        if !verdict.relay.is_empty() {
            report.response_headers = [(RELAY_HEADER, verdict.relay)].into_iter().collect();
        }
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

    async fn send(&self, message: &Message, turn: Option<Turn>) -> Verdict {
        let relays = &self.shared.relays;
        if let Some(Turn(held)) = turn {
            return relays.send(message, held, MAX_TIMEOUT).await;
        }
        match self.held(message.to().as_ref(), self.now(), MAX_WAIT).await {
            Ok(held) => relays.send(message, Some(held), MAX_TIMEOUT).await,
            Err(wait) => Verdict::paced(wait),
        }
    }
}

/// A failure that is told to the tenant.
#[expect(clippy::unnecessary_wraps, reason = "it stands where a success has none")]
fn failure(kind: ErrorKind, message: impl Into<String>) -> Option<Failure> {
    Some(Failure { kind, message: message.into() })
}
