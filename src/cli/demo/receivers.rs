//! The demo's three receivers: real HTTP servers on this machine that verify what they are sent.
//!
//! One accepts everything, one fails twice per delivery, one refuses. None of them ever trusts a
//! request that is not signed right.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hyper::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::super::listen::receiver::{self, Answer, Arrival};
use super::super::listen::verify::{Verdict, Verifier};
use super::scene::{BURST_TYPE, PARTS, Part};
use crate::domain::Timestamp;

/// Most bytes of an answer that are read to find its status.
const STATUS_LINE: usize = 256;

/// How a receiver behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// It accepts.
    Good,
    /// It fails twice per delivery, and then accepts.
    Flaky,
    /// It always refuses.
    Refusing,
}

impl Role {
    const ALL: [Self; 3] = [Self::Good, Self::Flaky, Self::Refusing];

    /// What it does, for people.
    pub(super) const fn describe(self) -> &'static str {
        match self {
            Self::Good => "accepts all",
            Self::Flaky => "fails twice",
            Self::Refusing => "refuses all",
        }
    }

    fn answer(self, attempt: u32) -> Answer {
        match self {
            Self::Flaky if attempt <= 2 => {
                Answer { status: StatusCode::INTERNAL_SERVER_ERROR, body: "try again\n" }
            }
            Self::Good | Self::Flaky => Answer { status: StatusCode::OK, body: "thank you\n" },
            Self::Refusing => Answer { status: StatusCode::FORBIDDEN, body: "not here\n" },
        }
    }
}

/// What the receivers have seen.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The signing secret by path.
    secrets: HashMap<String, Verifier>,
    /// Requests whose signatures were all right.
    pub(super) verified: u64,
    /// How many requests were refused, by reason.
    pub(super) refused: BTreeMap<String, u64>,
    /// Accepted deliveries by path: the ids, which also shows duplicates.
    accepted: HashMap<String, HashSet<String>>,
    /// The trace context that arrived first with each delivery.
    traceparents: HashMap<String, String>,
    /// When the last delivery of the burst was accepted.
    pub(super) burst_end: Option<Timestamp>,
    /// How many deliveries of the burst were accepted.
    pub(super) burst_count: usize,
}

impl Seen {
    fn receive(&mut self, role: Role, arrival: &Arrival) -> Answer {
        let refuse = Answer { status: StatusCode::UNAUTHORIZED, body: "signature refused\n" };
        let Some(verifier) = self.secrets.get(&arrival.path) else {
            return refuse;
        };
        match verifier.verify(&arrival.headers, &arrival.body, arrival.time) {
            Verdict::Verified(_) => self.verified += 1,
            Verdict::Refused(problem) => {
                *self.refused.entry(problem).or_default() += 1;
                return refuse;
            }
            Verdict::Unchecked => return refuse,
        }
        let delivery_id = arrival.header("tidings-delivery-id").to_owned();
        let traceparent = arrival.header("traceparent").to_owned();
        self.traceparents.entry(delivery_id.clone()).or_insert(traceparent);
        let answer = role.answer(arrival.attempt());
        if answer.status.is_success() {
            let is_new = self.accepted.entry(arrival.path.clone()).or_default().insert(delivery_id);
            if is_new && arrival.header("tidings-event-type") == BURST_TYPE {
                self.burst_count += 1;
                self.burst_end = Some(arrival.time);
            }
        }
        answer
    }

    /// How many requests were refused.
    pub(super) fn refusals(&self) -> u64 {
        self.refused.values().sum()
    }

    /// Whether this part has accepted this delivery.
    pub(super) fn has_accepted(&self, part: &Part, delivery_id: &str) -> bool {
        self.accepted.get(&path(part)).is_some_and(|ids| ids.contains(delivery_id))
    }

    /// The `traceparent` that came with the first attempt of a delivery.
    pub(super) fn traceparent(&self, delivery_id: &str) -> &str {
        self.traceparents.get(delivery_id).map_or("", String::as_str)
    }
}

/// Where each part receives.
#[derive(Clone, Debug)]
pub(super) struct Urls([SocketAddr; 3]);

impl Urls {
    /// The part's URL.
    pub(super) fn of(&self, part: &Part) -> String {
        format!("http://{}{}", self.address(part.role), path(part))
    }

    fn address(&self, role: Role) -> SocketAddr {
        self.0[role as usize]
    }
}

fn path(part: &Part) -> String {
    format!("/{}", part.name)
}

/// The three receivers; dropping them ends them.
pub(super) struct Receivers {
    /// Where they listen.
    pub(super) urls: Urls,
    seen: Arc<Mutex<Seen>>,
    _servers: JoinSet<()>,
}

impl Receivers {
    /// Starts them on free ports.
    ///
    /// # Errors
    /// When there is no free port.
    pub(super) async fn start() -> io::Result<Self> {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let mut servers = JoinSet::new();
        let mut addresses = [SocketAddr::from((Ipv4Addr::LOCALHOST, 0)); 3];
        for (role, address) in Role::ALL.into_iter().zip(&mut addresses) {
            let listener = TcpListener::bind(*address).await?;
            *address = listener.local_addr()?;
            let seen = Arc::clone(&seen);
            servers.spawn(receiver::serve(listener, move |arrival| {
                let answer = lock(&seen).receive(role, &arrival);
                std::future::ready(answer)
            }));
        }
        Ok(Self { urls: Urls(addresses), seen, _servers: servers })
    }

    /// Tells each part its signing secret.
    pub(super) fn trust(&self, subscriptions: &[(String, String); 4]) {
        let parts = PARTS.iter().zip(subscriptions);
        lock(&self.seen).secrets =
            parts.map(|(part, (_, secret))| (path(part), Verifier::of(secret))).collect();
    }

    /// What they have seen up to now.
    pub(super) fn seen(&self) -> MutexGuard<'_, Seen> {
        lock(&self.seen)
    }

    /// Sends the first part a request with a forged signature, as an attacker would; gives the
    /// status of the answer.
    ///
    /// # Errors
    /// When the receiver cannot be reached.
    pub(super) async fn forge(&self, now: Timestamp) -> io::Result<u16> {
        let body = r#"{"id":"evt_forged","type":"billing.paid","data":{"amount":"1000000"}}"#;
        let (part, seconds) = (&PARTS[0], now.as_secs());
        let request = format!(
            "POST {} HTTP/1.1\r\nhost: demo\r\nconnection: close\r\ncontent-length: {}\r\n\
             webhook-id: evt_forged\r\nwebhook-timestamp: {seconds}\r\n\
             webhook-signature: v1,{}=\r\n\r\n{body}",
            path(part),
            body.len(),
            "A".repeat(43),
        );
        let mut stream = TcpStream::connect(self.urls.address(part.role)).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = [0; STATUS_LINE];
        let length = stream.read(&mut answer).await?;
        let text = String::from_utf8_lossy(&answer[..length]);
        let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok(status.unwrap_or_default())
    }
}

/// A receiver that panicked has not left anything half done: each change is one step.
fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_role_plays_its_part() {
        let statuses = |role: Role| [1, 2, 3].map(|attempt| role.answer(attempt).status.as_u16());
        assert_eq!(statuses(Role::Good), [200, 200, 200]);
        assert_eq!(statuses(Role::Flaky), [500, 500, 200]);
        assert_eq!(statuses(Role::Refusing), [403, 403, 403]);
    }

    #[tokio::test]
    async fn a_forged_request_is_refused() {
        let receivers = Receivers::start().await.unwrap();
        let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned();
        receivers.trust(&std::array::from_fn(|_| (String::new(), secret.clone())));
        let now = super::super::super::output::time::now();
        assert_eq!(receivers.forge(now).await.unwrap(), 401);
        assert_eq!(receivers.seen().refusals(), 1);
        assert_eq!(receivers.seen().verified, 0);
    }
}
