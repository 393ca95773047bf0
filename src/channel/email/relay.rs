//! One relay: its pooled sessions, its pace, and whether it is out of order.
//!
//! Guarantees: no more sessions than configured; a session that saw a problem is not used again,
//! save after a refusal and a reset; nothing of a message is sent twice in an attempt, except that
//! a pooled session which turns out to be dead before the content is replaced by a new one.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::ClientConfig;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::message::Message;
use super::pace::Pace;
use super::reply::{Problem, Stage};
use super::server::Address;
use super::session::Session;
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
/// How long a relay that was out of order comes last.
const OUT_OF_ORDER: Duration = Duration::from_secs(30);

/// A relay.
pub(super) struct Relay {
    address: Address,
    tls: Arc<ClientConfig>,
    /// What we call ourselves.
    hello: String,
    idle: Mutex<Vec<(Session, Timestamp)>>,
    places: Semaphore,
    pub(super) pace: Pace,
    broken_until: Mutex<Option<Timestamp>>,
    clock: Arc<dyn Clock>,
}

impl Relay {
    pub(super) fn new(
        address: Address,
        tls: Arc<ClientConfig>,
        hello: String,
        max_connections: usize,
        max_rate: f64,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            address,
            tls,
            hello,
            idle: Mutex::default(),
            places: Semaphore::new(max_connections),
            pace: Pace::new(max_rate),
            broken_until: Mutex::default(),
            clock,
        }
    }

    /// Whether it was out of order a moment ago.
    pub(super) fn is_broken(&self) -> bool {
        let until = *self.broken_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| self.clock.now() < until)
    }

    fn found(&self, is_working: bool) {
        let until = (!is_working).then(|| self.clock.now().plus(OUT_OF_ORDER));
        *self.broken_until.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }

    /// Hands a message over within `limit`; the server's reply, or where it ended and why.
    pub(super) async fn send(
        &self,
        message: &Message,
        limit: Duration,
    ) -> Result<String, (Stage, Problem)> {
        let mut stage = Stage::Connect;
        let sent = timeout(limit, self.hand_over(message, &mut stage)).await;
        let sent = sent.unwrap_or(Err(Problem::Timeout));
        if sent.is_ok() || stage >= Stage::Recipient {
            self.found(true);
        } else {
            self.found(false);
        }
        sent.map_err(|problem| (stage, problem))
    }

    async fn hand_over(&self, message: &Message, stage: &mut Stage) -> Result<String, Problem> {
        // The semaphore is never closed.
        let _place = self.places.acquire().await.map_err(|_| Problem::Connection)?;
        if let Some(mut session) = self.pooled().await {
            match self.try_session(&mut session, message, stage).await {
                // It had ended while nobody used it; nothing of the message was taken.
                Err(Problem::Connection) if *stage < Stage::Content => {}
                Err(Problem::Refused(reply)) if reply.code == 421 && *stage < Stage::Content => {}
                ended => return self.end(session, ended).await,
            }
        }
        let opening = Session::open(&self.address, &self.tls, &self.hello, stage);
        let session = timeout(OPEN_TIMEOUT, opening).await;
        let mut session = session.unwrap_or(Err(Problem::Timeout))?;
        let ended = self.try_session(&mut session, message, stage).await;
        self.end(session, ended).await
    }

    async fn try_session(
        &self,
        session: &mut Session,
        message: &Message,
        stage: &mut Stage,
    ) -> Result<String, Problem> {
        session.send(message, stage).await
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
