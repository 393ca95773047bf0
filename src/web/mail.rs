//! What the pages for recipients and the endpoint for providers work with.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::domain::Clock;
use crate::domain::feedback::webhook::{Secrets, SendGridKey};
use crate::store::Store;

use super::body::UNIT;

/// Room for the bodies of one sender that are read at once, in [`UNIT`]s: 16 MiB, as much as eight of the
/// largest, or hundreds of common ones.
const ROOM_UNITS: usize = 16 * 1024 * 1024 / UNIT;

/// Who may report bounces and complaints over HTTP. Nobody by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The file with the secrets that sign reports of our own form.
    pub secret_file: Option<PathBuf>,
    /// The key that SendGrid's reports are checked with.
    pub sendgrid_key: Option<SendGridKey>,
}

/// The secrets cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("--bounce-secret-file {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file's content is wrong.
    #[error("--bounce-secret-file {}: {problem}", path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// What is wrong with it; never the content.
        problem: String,
    },
}

/// What requests about mail are answered with. Cheap to clone.
#[derive(Clone)]
pub struct Mail {
    pub(super) store: Store,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) secrets: Option<Arc<Secrets>>,
    pub(super) sendgrid_key: Option<Arc<SendGridKey>>,
    pub(super) own_room: Arc<Semaphore>,
    pub(super) sendgrid_room: Arc<Semaphore>,
}

impl Mail {
    /// Reads the secrets.
    ///
    /// # Errors
    /// When they cannot be used.
    pub fn new(config: &Config, store: Store, clock: Arc<dyn Clock>) -> Result<Self, Error> {
        let secrets = match &config.secret_file {
            None => None,
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|source| Error::Unreadable { path: path.clone(), source })?;
                let secrets = Secrets::parse(&text)
                    .map_err(|problem| Error::Wrong { path: path.clone(), problem })?;
                Some(Arc::new(secrets))
            }
        };
        let sendgrid_key = config.sendgrid_key.clone().map(Arc::new);
        let room = || Arc::new(Semaphore::new(ROOM_UNITS));
        let (own_room, sendgrid_room) = (room(), room());
        Ok(Self { store, clock, secrets, sendgrid_key, own_room, sendgrid_room })
    }
}

impl std::fmt::Debug for Mail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mail").finish_non_exhaustive()
    }
}
