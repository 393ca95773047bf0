//! One relay: its pooled sessions, its pace, its places, and whether it is out of order.
//!
//! Guarantees: no more sessions than configured; a session that saw a problem is not used again,
//! save after a refusal and a reset; nothing of a message is sent twice in an attempt, except that
//! a pooled session which turns out to be dead before the content is replaced by a new one.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::ClientConfig;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::Config;
use super::health::{Health, Sign};
use super::message::Message;
use super::metrics::OfRelay;
use super::pace::Pace;
use super::reply::{Problem, Stage, judge};
use super::server::Address;
use super::session::Session;
use crate::channel::Counted;
use crate::domain::{Clock, Timestamp};

/// How long a session is kept without work: servers hang up after minutes, NATs sooner.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// After this long without work a session is asked whether it lives.
const TRUSTED_FOR: Duration = Duration::from_secs(3);
/// Messages of one session: common servers end it after a hundred.
const MAX_MESSAGES: u32 = 90;
/// How long until a session is ready for messages.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a goodbye or a reset may take.
const SHORT: Duration = Duration::from_secs(2);
/// After how long somebody comes again who found no free connection in time.
const BUSY_AGAIN: Duration = Duration::from_secs(5);

/// A relay.
pub(super) struct Relay {
    address: Address,
    tls: Arc<ClientConfig>,
    /// What we call ourselves.
    hello: String,
    /// Its name for operators, and the one for tenants.
    name: String,
    shown: String,
    idle: Mutex<Vec<(Session, Timestamp)>>,
    places: Arc<Semaphore>,
    pace: Pace,
    health: Health,
    metrics: OfRelay,
    clock: Arc<dyn Clock>,
}

/// A place among a relay's connections; given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
    _counted: Counted,
}

/// How long a message may take: until its content, and altogether.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) before_content: Duration,
    pub(super) whole: Duration,
}

/// A session that did not come to the content, and may be used again.
type Ended = (Problem, Option<Session>);

impl Relay {
    /// The relay at `index` of those configured.
    pub(super) fn new(
        (index, address): (usize, &Address),
        tls: Arc<ClientConfig>,
        config: &Config,
        metrics: OfRelay,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let hello = config.sender.as_ref().map_or("localhost", |sender| sender.domain());
        Self {
            address: address.clone(),
            tls,
            hello: hello.to_owned(),
            name: address.name(),
            shown: address.shown(index),
            idle: Mutex::default(),
            places: Arc::new(Semaphore::new(config.max_connections)),
            pace: Pace::new(config.max_rate),
            health: Health::default(),
            metrics,
            clock,
        }
    }

    /// Its name in logs.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Its name as tenants see it.
    pub(super) fn shown(&self) -> &str {
        &self.shown
    }

    /// Whether a message may go to it before those that are in order were asked.
    pub(super) fn takes_messages(&self) -> bool {
        self.health.takes_messages(self.clock.now())
    }

    /// Waits for the turn of a message: that of the rate, and a place.
    ///
    /// # Errors
    /// After how long to come again, when it takes longer than `patience`.
    pub(super) async fn turn(&self, patience: Duration) -> Result<Place, Duration> {
        let now = self.clock.now();
        let wait = self.pace.turn("", now, patience)?;
        tokio::time::sleep(wait).await;
        let acquired =
            timeout(patience.saturating_sub(wait), Arc::clone(&self.places).acquire_owned()).await;
        // The semaphore is never closed.
        let Ok(Ok(permit)) = acquired else {
            self.pace.give_back("", now.plus(wait));
            return Err(BUSY_AGAIN);
        };
        Ok(Place { _permit: permit, _counted: self.metrics.taken() })
    }

    /// Hands a message over, in a place of its own; the server's reply, or where it ended and why.
    pub(super) async fn send(
        &self,
        message: &Message,
        _place: Place,
        limits: Limits,
    ) -> Result<String, (Stage, Problem)> {
        let started = self.clock.now();
        let mut stage = Stage::Connect;
        let prepared = timeout(limits.before_content, self.prepared(message, &mut stage)).await;
        let sent = match prepared {
            Ok(Ok(mut session)) => {
                stage = Stage::Content;
                let left = limits.whole.saturating_sub(self.clock.now().since(started));
                match timeout(left, session.content(message)).await {
                    Ok(ended) => self.end(session, ended).await,
                    // The session ends with its connection.
                    Err(_) => Err(Problem::Timeout),
                }
            }
            Ok(Err((problem, Some(session)))) => self.end(session, Err(problem)).await,
            Ok(Err((problem, None))) => Err(problem),
            Err(_) => Err(Problem::Timeout),
        };
        self.tell(stage, sent.as_ref().err(), self.clock.now().since(started));
        sent.map_err(|problem| (stage, problem))
    }

    /// Notes what an attempt says about the relay.
    fn tell(&self, stage: Stage, problem: Option<&Problem>, duration: Duration) {
        let failure = problem.and_then(|problem| judge(stage, problem).failure);
        self.metrics.observe(failure.map(|failure| failure.kind), duration);
        let sign = Sign::of(stage, problem);
        self.health.note(sign, self.clock.now());
        match sign {
            Sign::Works => self.metrics.show_order(true),
            Sign::OutOfOrder => self.metrics.show_order(false),
            Sign::None => {}
        }
    }

    /// A session that waits for the message's content.
    async fn prepared(&self, message: &Message, stage: &mut Stage) -> Result<Session, Ended> {
        if let Some(mut session) = self.pooled().await {
            match session.prepare(message, stage).await {
                Ok(()) => return Ok(session),
                // It had ended while nobody used it; nothing of the message was taken.
                Err(Problem::Connection) => {}
                Err(Problem::Refused(reply)) if reply.code == 421 => {}
                Err(problem) => return Err((problem, Some(session))),
            }
        }
        let opening = Session::open(&self.address, &self.tls, &self.hello, stage);
        let opened = timeout(OPEN_TIMEOUT, opening).await.unwrap_or(Err(Problem::Timeout));
        let mut session = opened.map_err(|problem| (problem, None))?;
        session.count(self.metrics.opened());
        match session.prepare(message, stage).await {
            Ok(()) => Ok(session),
            Err(problem) => Err((problem, Some(session))),
        }
    }

    /// A session that waits for work, and lives as far as one can tell.
    async fn pooled(&self) -> Option<Session> {
        loop {
            let (mut session, since) = {
                let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
                let now = self.clock.now();
                idle.retain(|(_, since)| now.since(*since) < IDLE_TIMEOUT);
                // The one that was used last: the others may grow old together.
                idle.pop()?
            };
            let is_fresh = self.clock.now().since(since) < TRUSTED_FOR;
            if is_fresh || timeout(SHORT, session.is_alive()).await.unwrap_or(false) {
                return Some(session);
            }
        }
    }

    /// Keeps a session for the next message, when it can have one.
    async fn end(
        &self,
        mut session: Session,
        ended: Result<String, Problem>,
    ) -> Result<String, Problem> {
        let is_usable = match &ended {
            Ok(_) => true,
            Err(Problem::Refused(reply)) if reply.code != 421 => {
                timeout(SHORT, session.reset()).await.unwrap_or(false)
            }
            Err(_) => false,
        };
        if is_usable && session.sent < MAX_MESSAGES {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.push((session, self.clock.now()));
        } else if is_usable {
            let _ = timeout(SHORT, session.quit()).await;
        }
        ended
    }
}
