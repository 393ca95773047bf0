//! Where an attempt's time goes, and which connection it was given.
//!
//! Guarantees: the phases are those of this attempt alone. hyper-util gives a connector nothing but
//! a URI, drops it when the deadline comes, and may serve a request over another connection than
//! the one that it began to open; so each attempt has a [`Probe`] that goes with its task, its
//! connector writes into it as it gets on, and each connection remembers the probe that opened it.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{Extensions, Request, Response};
use hyper_util::client::legacy::connect::{CaptureConnection, capture_connection};

use crate::domain::attempt::Timings;
use crate::domain::{Clock, Timestamp};

tokio::task_local! {
    /// The probe of the attempt that the task makes.
    static CURRENT: Probe;
}

/// What an attempt does, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It looks the name up.
    Dns,
    /// It connects to an address.
    Connect,
    /// It makes a TLS session.
    Tls,
    /// It sends the request and waits for the answer.
    FirstByte,
}

/// Takes down when each phase began. Clones are the same probe.
#[derive(Clone)]
pub(super) struct Probe {
    shared: Arc<Shared>,
}

struct Shared {
    clock: Arc<dyn Clock>,
    begun: Mutex<Vec<(Phase, Timestamp)>>,
}

impl Probe {
    fn new(clock: Arc<dyn Clock>) -> Self {
        Self { shared: Arc::new(Shared { clock, begun: Mutex::new(Vec::new()) }) }
    }

    /// The probe of the attempt that this task makes, for connectors: to be taken when they are
    /// called, because hyper-util may finish them elsewhere.
    pub(super) fn current() -> Option<Self> {
        CURRENT.try_with(Clone::clone).ok()
    }

    /// A phase begins, and the one before it ends.
    pub(super) fn begin(&self, phase: Phase) {
        let now = self.shared.clock.now();
        self.shared.begun.lock().unwrap_or_else(PoisonError::into_inner).push((phase, now));
    }

    fn timings(&self, end: Timestamp) -> Timings {
        let begun = self.shared.begun.lock().unwrap_or_else(PoisonError::into_inner);
        let ends = begun.iter().skip(1).map(|(_, time)| *time).chain([end]);
        let mut timings = Timings::default();
        for ((phase, began), ended) in begun.iter().zip(ends) {
            *slot(&mut timings, *phase) = Some(ended.since(*began));
        }
        timings
    }

    fn phase(&self) -> Option<Phase> {
        let begun = self.shared.begun.lock().unwrap_or_else(PoisonError::into_inner);
        begun.last().map(|(phase, _)| *phase)
    }
}

fn slot(timings: &mut Timings, phase: Phase) -> &mut Option<Duration> {
    match phase {
        Phase::Dns => &mut timings.dns,
        Phase::Connect => &mut timings.connect,
        Phase::Tls => &mut timings.tls,
        Phase::FirstByte => &mut timings.first_byte,
    }
}

/// Watches one request.
pub(super) struct Watch {
    probe: Probe,
    connection: CaptureConnection,
    began: Timestamp,
}

impl Watch {
    /// Watches `request`, which is about to be sent.
    pub(super) fn on<B>(request: &mut Request<B>, clock: &Arc<dyn Clock>) -> Self {
        let began = clock.now();
        let connection = capture_connection(request);
        Self { probe: Probe::new(Arc::clone(clock)), connection, began }
    }

    /// Runs `sending`, whose connectors then find the probe.
    pub(super) async fn over<F: Future>(&self, sending: F) -> F::Output {
        CURRENT.scope(self.probe.clone(), sending).await
    }

    /// Where the time went until `end`, when the head of the answer had come or nothing would come.
    /// The answer has the probe of its connection's opener with it.
    pub(super) fn timings<B>(&self, end: Timestamp, answer: Option<&Response<B>>) -> Timings {
        let is_reused = match answer {
            Some(answer) => self.is_anothers(answer.extensions()),
            None => self.is_reused(),
        };
        if is_reused {
            let first_byte = Some(end.since(self.began));
            return Timings { first_byte, connection_reused: true, ..Timings::default() };
        }
        self.probe.timings(end)
    }

    /// What the attempt does now.
    pub(super) fn phase(&self) -> Phase {
        if self.is_reused() {
            return Phase::FirstByte;
        }
        self.probe.phase().unwrap_or(Phase::FirstByte)
    }

    /// Takes the connection that the request was given out of use: what came over it, or did not
    /// come, was not in order. Other requests that are under way on it (HTTP/2) may end.
    pub(super) fn retire(&self) {
        if let Some(connected) = self.connection.connection_metadata().as_ref() {
            connected.poison();
        }
    }

    /// Whether the request was given a connection that another attempt had opened.
    fn is_reused(&self) -> bool {
        let metadata = self.connection.connection_metadata();
        let Some(connected) = metadata.as_ref() else { return false };
        let mut extensions = Extensions::new();
        connected.get_extras(&mut extensions);
        self.is_anothers(&extensions)
    }

    /// Whether what a connection remembers is the probe of another attempt.
    fn is_anothers(&self, extensions: &Extensions) -> bool {
        let opener = extensions.get::<Probe>();
        opener.is_some_and(|opener| !Arc::ptr_eq(&opener.shared, &self.probe.shared))
    }
}
