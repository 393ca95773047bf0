//! What is at the other end: receivers that answer, fail, hang, ask for pauses, and come back.

use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;

use tidings::domain::Timestamp;
use tidings::domain::attempt::{ErrorKind, Failure, Outcome, Report};
use tidings::domain::header_list::HeaderList;

use super::faults::Fired;

/// How a receiver behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Up,
    Refuses,
    Hangs,
    Fails,
    /// 429 or 503 with this wish.
    Busy(u16, Option<Duration>),
    Gone,
    Final,
}

/// A request that has not ended.
pub(crate) struct UnderWay {
    pub(crate) ends: Timestamp,
    pub(crate) is_probe: bool,
    pub(crate) is_automatic: bool,
}

pub(crate) struct Receiver {
    pub(crate) mode: Mode,
    pub(crate) until: Timestamp,
    slowest: Duration,
    pub(crate) under_way: Vec<UnderWay>,
}

impl Receiver {
    pub(crate) fn new(random: &mut StdRng) -> Self {
        Self {
            mode: Mode::Up,
            until: Timestamp::from_micros(0),
            slowest: Duration::from_millis(random.random_range(5..=400)),
            under_way: Vec::new(),
        }
    }

    /// Takes a request at `now`, and decides what comes of it. `start_time` is what its node's clock
    /// says.
    pub(crate) fn take(
        &mut self,
        (now, start_time): (Timestamp, Timestamp),
        timeout: Duration,
        random: &mut StdRng,
    ) -> (Report, Option<Fired>) {
        self.under_way.retain(|request| request.ends > now);
        if self.until <= now {
            self.mode = Mode::Up;
        }
        let micros = u64::try_from(self.slowest.as_micros()).unwrap_or(0);
        let quick = Duration::from_micros(random.random_range(500..=micros)).min(timeout);
        let retry = || Outcome::Retry { retry_after: None };
        let (outcome, status, kind, duration, fired) = match self.mode {
            Mode::Up => (Outcome::Delivered, Some(200), None, quick, None),
            Mode::Refuses => {
                (retry(), None, Some(ErrorKind::Connect), quick, Some(Fired::ReceiverDown))
            }
            Mode::Hangs => {
                (retry(), None, Some(ErrorKind::Timeout), timeout, Some(Fired::ReceiverHangs))
            }
            Mode::Fails => {
                (retry(), Some(500), Some(ErrorKind::HttpStatus), quick, Some(Fired::ReceiverDown))
            }
            Mode::Busy(status, retry_after) => {
                let fired = retry_after.map(|_| Fired::RetryAfter);
                let outcome = Outcome::Retry { retry_after };
                (outcome, Some(status), Some(ErrorKind::HttpStatus), quick, fired)
            }
            Mode::Gone => {
                (Outcome::Gone, Some(410), Some(ErrorKind::HttpStatus), quick, Some(Fired::Gone))
            }
            Mode::Final => {
                let kind = Some(ErrorKind::UrlRefused);
                (Outcome::Permanent, None, kind, quick, Some(Fired::Permanent))
            }
        };
        let failure = kind.map(|kind| Failure { kind, message: String::new() });
        let report = Report {
            outcome,
            start_time,
            duration,
            timings: None,
            http_status: status,
            request_headers: HeaderList::default(),
            response_headers: HeaderList::default(),
            response_body: Vec::new(),
            smtp_reply: String::new(),
            failure,
        };
        (report, fired)
    }
}

/// A way to misbehave.
pub(crate) fn misbehaviour(random: &mut StdRng) -> Mode {
    match random.random_range(0..16) {
        0..3 => Mode::Refuses,
        3..7 => Mode::Hangs,
        7..10 => Mode::Fails,
        10..14 => {
            let wish = Duration::from_secs(random.random_range(1..=25));
            let status = if random.random() { 429 } else { 503 };
            Mode::Busy(status, (random.random_range(0..4) > 0).then_some(wish))
        }
        14 => Mode::Gone,
        _ => Mode::Final,
    }
}
