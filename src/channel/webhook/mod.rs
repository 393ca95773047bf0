//! Webhooks: signed HTTP requests through one guarded client.
//!
//! The way of an attempt: `request` builds and signs it, `client` sends it under one deadline,
//! `connector` resolves the name, asks the `guard` about every address and connects to one,
//! `response` reads what comes back within limits, `phases` says where the time went, and `failure`
//! what went wrong.
//!
//! Guarantees: nothing is sent to an address that the guard refuses, whether it came from a name
//! or stood in the URL; no redirect is followed and no proxy is used; a request is written to the
//! network at most once per attempt; a connection on which something odd was seen is not used again.

mod client;
mod connector;
mod failure;
mod guard;
mod metrics;
mod phases;
mod request;
mod resolver;
mod response;
#[cfg(test)]
mod tests;
mod tls;
mod urls;

use std::path::PathBuf;
use std::time::Duration;

pub use client::Client;
pub use guard::{Cidr, InvalidCidr};
pub use metrics::Metrics;
pub use tls::Error as ConfigError;
pub(super) use tls::client_config;

use crate::domain::endpoint;

/// Idle connections that are kept per host and port: enough for a dozen busy subscriptions there. More are
/// opened when more attempts are under way; those would be closed after a request each.
pub const DEFAULT_POOL_IDLE_PER_HOST: usize = 256;
/// How long an idle connection is kept: less than the 5 s after which Node.js's servers, the
/// quickest of the common ones, hang up, because a request that meets the hang-up fails.
pub const DEFAULT_POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// How webhooks are delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Addresses to connect to although they are refused by default. Metadata addresses open only
    /// when they are named exactly. For development `127.0.0.0/8`.
    pub allow_cidrs: Vec<Cidr>,
    /// Addresses to refuse although they are allowed otherwise. Wins over `allow_cidrs`.
    pub deny_cidrs: Vec<Cidr>,
    /// Whether URLs may begin with `http://`: for development.
    pub allow_http: bool,
    /// Idle connections that are kept per host and port.
    pub pool_idle_per_host: usize,
    /// How long an idle connection is kept.
    pub pool_idle_timeout: Duration,
    /// A PEM file with certificates of authorities to trust beside Mozilla's and the system's.
    pub ca_file: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            allow_cidrs: Vec::new(),
            deny_cidrs: Vec::new(),
            allow_http: false,
            pool_idle_per_host: DEFAULT_POOL_IDLE_PER_HOST,
            pool_idle_timeout: DEFAULT_POOL_IDLE_TIMEOUT,
            ca_file: None,
        }
    }
}

impl Config {
    /// The rules for URLs that follow from the configuration: the same when stored and when sent.
    pub fn url_rules(&self) -> endpoint::Rules {
        endpoint::Rules { allow_http: self.allow_http }
    }

    /// What URLs must keep to be stored: the rules, and for an address in them the ranges, too.
    pub fn url_admission(&self) -> endpoint::Admission {
        endpoint::Admission::new(self.url_rules(), self.guard())
    }

    fn guard(&self) -> guard::Guard {
        guard::Guard::new(self.allow_cidrs.clone(), self.deny_cidrs.clone())
    }
}
