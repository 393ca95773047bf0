//! Finds the addresses of a name.
//!
//! Guarantees: names are absolute, so the search domains of the machine play no part; look-ups
//! under way are bounded, also those whose attempts have given up waiting, because the system's
//! resolver cannot be interrupted. Caches nothing: that is left to the system.

use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::Arc;

use tokio::sync::Semaphore;

/// Look-ups under way at once. Each holds one of tokio's 512 blocking threads, and others need
/// those too.
const MAX_LOOKUPS: usize = 256;

/// A way to find addresses.
#[derive(Clone)]
pub(super) enum Resolver {
    /// The system's.
    System(Arc<Semaphore>),
    /// Answers that a test prepared.
    #[cfg(test)]
    Fixed(Arc<std::collections::BTreeMap<String, Vec<IpAddr>>>),
}

impl Resolver {
    pub(super) fn system() -> Self {
        Self::System(Arc::new(Semaphore::new(MAX_LOOKUPS)))
    }

    /// Every address of `name`, in the order of preference. May be empty.
    pub(super) async fn addresses(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        match self {
            Self::System(permits) => system(Arc::clone(permits), name).await,
            #[cfg(test)]
            Self::Fixed(answers) => {
                answers.get(name).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
            }
        }
    }
}

async fn system(permits: Arc<Semaphore>, name: &str) -> io::Result<Vec<IpAddr>> {
    let absolute = format!("{}.", name.strip_suffix('.').unwrap_or(name));
    let permit = permits.acquire_owned().await.map_err(io::Error::other)?;
    let lookup = move || {
        let answers = (absolute.as_str(), 0).to_socket_addrs();
        drop(permit);
        answers.map(|answers| answers.map(|answer| answer.ip()).collect())
    };
    tokio::task::spawn_blocking(lookup).await.map_err(io::Error::other)?
}
