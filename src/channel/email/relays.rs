//! The relays in order of preference: when one is out of order the next one is asked.

use std::sync::Arc;
use std::time::Duration;

use super::file::Folder;
use super::message::Message;
use super::metrics::Metrics;
use super::relay::{Limits, Place, Relay};
use super::reply::{Stage, Verdict, judge, may_go_on};
use super::server::Target;
use super::{Config, ConfigError, MAX_WAIT};
use crate::channel::webhook::client_config;
use crate::domain::{Clock, Timestamp};

/// Where messages go.
pub(super) struct Relays {
    targets: Vec<Way>,
    clock: Arc<dyn Clock>,
}

enum Way {
    Relay(Box<Relay>),
    Folder(Folder),
}

/// The turn of a message: its relay, and a place there.
#[derive(Debug)]
pub(super) struct Held {
    index: usize,
    /// `None` for a folder.
    place: Option<Place>,
}

impl Relays {
    /// Connects to nothing; makes the folders.
    pub(super) fn new(
        config: &Config,
        clock: &Arc<dyn Clock>,
        metrics: &Metrics,
    ) -> Result<Self, ConfigError> {
        let tls = Arc::new(client_config(config.ca_file.as_deref()).map_err(ConfigError::Tls)?);
        let mut targets = Vec::with_capacity(config.servers.len());
        for (index, server) in config.servers.iter().enumerate() {
            targets.push(match &server.target {
                Target::Folder(path) => {
                    Way::Folder(Folder::new(path.clone(), metrics.of(Folder::NAME))?)
                }
                Target::Relay(address) => Way::Relay(Box::new(Relay::new(
                    (index, address),
                    Arc::clone(&tls),
                    config,
                    metrics.of(&address.name()),
                    Arc::clone(clock),
                ))),
            });
        }
        Ok(Self { targets, clock: Arc::clone(clock) })
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.targets.is_empty()
    }

    /// The one to ask when `asked` were: the first that is in order, or else the first.
    fn next(&self, asked: &[usize]) -> Option<(usize, &Way)> {
        let mut broken = None;
        for (index, way) in self.targets.iter().enumerate() {
            if asked.contains(&index) {
                continue;
            }
            match way {
                Way::Relay(relay) if !relay.takes_messages() => {
                    broken = broken.or(Some((index, way)));
                }
                Way::Relay(_) | Way::Folder(_) => return Some((index, way)),
            }
        }
        broken
    }

    /// Waits for the turn of a message.
    ///
    /// # Errors
    /// After how long to come again, when it takes longer than `patience` everywhere.
    pub(super) async fn turn(&self, patience: Duration) -> Result<Held, Duration> {
        let started = self.clock.now();
        let mut asked = Vec::new();
        let mut again: Option<Duration> = None;
        while let Some((index, way)) = self.next(&asked) {
            asked.push(index);
            let Way::Relay(relay) = way else { return Ok(Held { index, place: None }) };
            match relay.turn(left_of(patience, started, self.clock.now())).await {
                Ok(place) => return Ok(Held { index, place: Some(place) }),
                // The next one may have room.
                Err(wait) => again = Some(again.map_or(wait, |again| again.min(wait))),
            }
        }
        Err(again.unwrap_or(patience))
    }

    /// Sends a message within `limit`: in its turn, or else through the first relay that has room.
    pub(super) async fn send(
        &self,
        message: &Message,
        mut turn: Option<Held>,
        limit: Duration,
    ) -> Verdict {
        let started = self.clock.now();
        let left = || left_of(limit, started, self.clock.now());
        let mut verdict: Option<Verdict> = None;
        let mut asked = Vec::new();
        loop {
            let (index, place) = match turn.take() {
                Some(Held { index, place }) => (index, place),
                None => match self.next(&asked) {
                    Some((index, _)) => (index, None),
                    None => break,
                },
            };
            asked.push(index);
            let relay = match self.targets.get(index) {
                Some(Way::Relay(relay)) => relay,
                Some(Way::Folder(folder)) => return folder.write(message).await,
                None => break,
            };
            if left().is_zero() {
                break;
            }
            let place = match place {
                Some(place) => place,
                None => match relay.turn(MAX_WAIT.min(left())).await {
                    Ok(place) => place,
                    Err(wait) => {
                        verdict = verdict.or_else(|| Some(Verdict::paced(wait)));
                        continue;
                    }
                },
            };
            // One that hangs leaves time for the next one.
            let is_last = asked.len() == self.targets.len();
            let before_content = if is_last { left() } else { left() / 2 };
            let limits = Limits { before_content, whole: left() };
            let (stage, problem) = match relay.send(message, place, limits).await {
                Ok(reply) => return Verdict::delivered(reply).by(relay.shown()),
                Err(ended) => ended,
            };
            let ended = judge(stage, &problem).by(relay.shown());
            if !may_go_on(stage, &problem) {
                return ended;
            }
            tell(relay.name(), stage, &ended);
            verdict = Some(ended);
        }
        verdict.unwrap_or_else(|| Verdict::ours("No mail can be sent: the service has no relay."))
    }
}

fn left_of(limit: Duration, started: Timestamp, now: Timestamp) -> Duration {
    limit.saturating_sub(now.since(started))
}

/// Says that a relay is out of order: operators can mend it, tenants cannot. What it replied is not
/// said, since replies may repeat addresses: the attempt has it.
fn tell(relay: &str, stage: Stage, verdict: &Verdict) {
    let why = verdict.failure.as_ref().map_or("", |failure| failure.kind.as_str());
    let code = verdict.reply.split(' ').next().unwrap_or_default();
    tracing::warn!(relay, ?stage, code, error.r#type = why, "a mail relay does not take messages");
}
