//! The relays in order of preference: when one is out of order the next one is asked.

use std::sync::Arc;
use std::time::Duration;

use super::file::Folder;
use super::message::Message;
use super::relay::Relay;
use super::reply::{Stage, Verdict, judge, may_go_on};
use super::server::Target;
use super::{Config, ConfigError, MAX_WAIT};
use crate::channel::webhook::client_config;
use crate::domain::{Clock, Timestamp};

/// Where messages go.
pub(super) struct Relays {
    places: Vec<Place>,
    clock: Arc<dyn Clock>,
}

enum Place {
    Relay(Box<Relay>),
    Folder(Folder),
}

impl Place {
    fn is_broken(&self) -> bool {
        match self {
            Self::Relay(relay) => relay.is_broken(),
            Self::Folder(_) => false,
        }
    }
}

impl Relays {
    /// Connects to nothing; makes the folders.
    pub(super) fn new(config: &Config, clock: &Arc<dyn Clock>) -> Result<Self, ConfigError> {
        let tls = Arc::new(client_config(config.ca_file.as_deref()).map_err(ConfigError::Tls)?);
        let hello = config.sender.as_ref().map_or("localhost", |sender| sender.domain());
        let mut places = Vec::with_capacity(config.servers.len());
        for server in &config.servers {
            places.push(match &server.target {
                Target::Folder(path) => Place::Folder(Folder::new(path.clone())?),
                Target::Relay(address) => Place::Relay(Box::new(Relay::new(
                    address.clone(),
                    Arc::clone(&tls),
                    hello.to_owned(),
                    config.max_connections,
                    config.max_rate,
                    Arc::clone(clock),
                ))),
            });
        }
        Ok(Self { places, clock: Arc::clone(clock) })
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Sends a message within `limit` through the first one that works.
    pub(super) async fn send(&self, message: &Message, limit: Duration) -> Verdict {
        let started = self.clock.now();
        // Those that were out of order a moment ago come last.
        let (working, broken): (Vec<_>, Vec<_>) =
            self.places.iter().partition(|place| !place.is_broken());
        let mut verdict = Verdict::ours("No mail can be sent: the service has no relay.");
        for place in working.into_iter().chain(broken) {
            let left = limit.saturating_sub(self.clock.now().since(started));
            if left.is_zero() {
                break;
            }
            let relay = match place {
                Place::Folder(folder) => return folder.write(message).await,
                Place::Relay(relay) => relay,
            };
            match relay.pace.turn("", self.clock.now(), MAX_WAIT.min(left)) {
                Ok(wait) => tokio::time::sleep(wait).await,
                // The next one may have room.
                Err(wait) => {
                    verdict = Verdict::paced(wait);
                    continue;
                }
            }
            match relay.send(message, left_of(limit, started, self.clock.now())).await {
                Ok(reply) => return Verdict::delivered(reply),
                Err((stage, problem)) => {
                    verdict = judge(stage, &problem);
                    if !may_go_on(stage, &problem) {
                        return verdict;
                    }
                    tell(stage, &verdict);
                }
            }
        }
        verdict
    }
}

fn left_of(limit: Duration, started: Timestamp, now: Timestamp) -> Duration {
    limit.saturating_sub(now.since(started))
}

/// Says that a relay is out of order: operators can mend it, tenants cannot.
fn tell(stage: Stage, verdict: &Verdict) {
    let why = verdict.failure.as_ref().map_or("", |failure| failure.message.as_str());
    tracing::warn!(?stage, reply = verdict.reply, why, "a mail relay does not take messages");
}
