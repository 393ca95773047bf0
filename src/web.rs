//! HTTP: what operators and their tools ask for (`/healthz`, `/readyz`, `/metrics`), the page by which
//! recipients of mail unsubscribe (`/unsubscribe/…`), and where bounces are reported (`/bounces`).
//!
//! HTTP/1.1 and HTTP/2 without TLS, within limits: connections, headers, bodies, time. What operators
//! ask for does not need the database: readiness is decided elsewhere and only told.
//!
//! Recipients and providers come from outside: what stands in front of this port lets them through to
//! their paths alone.

mod body;
mod bounces;
pub mod mail;
mod pages;
mod routes;
mod server;
mod unsubscribe;

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use tokio::sync::watch;

pub use mail::Mail;
pub use server::serve;

/// Limits of the HTTP port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Most connections at once: some scrapers, probes and people.
    pub max_connections: usize,
    /// How long a client may take to send its first request, and the headers of any.
    pub header_timeout: Duration,
    /// How long a connection lives before the client has to open a new one.
    pub connection_age: Duration,
    /// How long a connection may take to finish when it is asked to.
    pub finish_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_connections: 512,
            header_timeout: Duration::from_secs(10),
            connection_age: Duration::from_mins(5),
            finish_timeout: Duration::from_secs(5),
        }
    }
}

/// Whether the service is ready for requests, and if not, why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It is.
    Ready,
    /// It is being started.
    Starting,
    /// The database does not answer.
    DatabaseUnavailable,
    /// It is being stopped.
    Stopping,
}

/// What the pages tell.
#[derive(Clone, Debug)]
pub struct Facts {
    /// All metrics.
    pub metrics: Arc<Registry>,
    /// Whether the service is ready.
    pub readiness: watch::Receiver<Readiness>,
    /// What requests about mail are answered with; `None` where there is no database.
    pub mail: Option<Mail>,
}
