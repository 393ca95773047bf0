//! Secrets at rest: everything confidential is sealed under a master key before it is stored.
//!
//! | part | does |
//! |---|---|
//! | `key` | the keys, their text and their ids |
//! | `envelope` | seals and opens bytes, bound to the row that they belong to |
//! | `links` | signs and reads the tokens of unsubscribe links |
//! | `file` | reads, makes and extends the file with the keys |
//! | `document` | what of a subscription and of a tenant is sealed |
//! | `prepare` | the check at the start, and what older versions stored in the clear |
//! | `rewrap` | seals anew what is under an older key, and counts what is under which |
//!
//! Guarantees: nothing confidential is written in the clear; nothing is sealed under any but the
//! first key; a row that does not open is *unreadable*, which is a state of that row and an error of
//! nobody else's. Keys that this process does not know yet are looked for in the file again.
//!
//! Does not protect against somebody who has the key, nor against a row that is replaced by an older
//! state of itself.

mod document;
mod envelope;
mod file;
mod key;
mod links;
mod prepare;
mod rewrap;

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use ring::rand::SystemRandom;
use serde::de::DeserializeOwned;

use super::{Database, Error, Store};

pub use key::{KeyId, KeyText, MasterKey, NoRandomness, PREFIX as MASTER_KEY_PREFIX};
pub use prepare::Prepared;
pub use rewrap::{KeyUsage, Rewrapped, SealedRow, Table, VaultStatus};

use envelope::Binding;
use file::{FileError, Stamp};
use key::Keyring;

/// Unreadable rows that are remembered, so that each is logged once.
const MAX_REPORTED: usize = 10_000;

/// Where the master keys are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum KeySource {
    /// Nobody said: beside an embedded database, and nowhere for a server.
    #[default]
    Unset,
    /// In this file.
    File(PathBuf),
    /// In the options themselves (the environment).
    Text(KeyText),
}

/// Where this database's keys are.
#[derive(Clone, Debug)]
enum Place {
    Nowhere,
    /// Beside an embedded database, where the file is made at the first start.
    Beside(PathBuf),
    File(PathBuf),
    Text(KeyText),
}

impl Place {
    fn file(&self) -> Option<&Path> {
        match self {
            Self::Beside(path) | Self::File(path) => Some(path),
            Self::Nowhere | Self::Text(_) => None,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nowhere => f.write_str("nowhere"),
            Self::Beside(path) | Self::File(path) => write!(f, "{}", path.display()),
            Self::Text(_) => f.write_str("TIDINGS_MASTER_KEY"),
        }
    }
}

/// Seals and opens. Cheap to clone; clones share the keys.
#[derive(Clone)]
pub(super) struct Vault(Arc<Shared>);

struct Shared {
    place: Place,
    keys: RwLock<Keys>,
    /// Held while the file is looked at, so that whoever needs a new key waits for the one that
    /// reads it, and no older content replaces a newer one.
    refreshing: tokio::sync::Mutex<()>,
    random: SystemRandom,
    opened: Counter,
    unreadable: Counter,
    /// The rows that were reported as unreadable.
    reported: Mutex<HashSet<String>>,
}

#[derive(Default)]
struct Keys {
    ring: Option<Arc<Keyring>>,
    /// Of the file that they were read from.
    stamp: Option<Stamp>,
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vault").field("place", &self.0.place).finish_non_exhaustive()
    }
}

impl Vault {
    /// A vault without keys: [`Vault::load`] fetches them.
    pub(super) fn new(source: &KeySource, database: &Database) -> Self {
        let place = match (source, database.embedded_file()) {
            (KeySource::File(path), _) => Place::File(path.clone()),
            (KeySource::Text(text), _) => Place::Text(text.clone()),
            (KeySource::Unset, Some(database)) => Place::Beside(beside(database)),
            (KeySource::Unset, None) => Place::Nowhere,
        };
        Self(Arc::new(Shared {
            place,
            keys: RwLock::default(),
            refreshing: tokio::sync::Mutex::default(),
            random: SystemRandom::new(),
            opened: Counter::default(),
            unreadable: Counter::default(),
            reported: Mutex::default(),
        }))
    }

    /// Reads the keys from where they are.
    async fn load(&self) -> Result<(), FileError> {
        let (ring, stamp) = match &self.0.place {
            Place::Nowhere => return Ok(()),
            Place::Text(text) => {
                let wrong =
                    |problem| FileError::Content { path: "TIDINGS_MASTER_KEY".into(), problem };
                (Keyring::parse(text.expose()).map_err(wrong)?, None)
            }
            Place::Beside(path) | Place::File(path) => {
                let (ring, stamp) = off_thread(path, file::read).await?;
                (ring, Some(stamp))
            }
        };
        let mut keys = self.0.keys.write().unwrap_or_else(PoisonError::into_inner);
        (keys.ring, keys.stamp) = (Some(Arc::new(ring)), stamp);
        Ok(())
    }

    fn ring(&self) -> Result<Arc<Keyring>, Error> {
        let keys = self.0.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.ring.clone().ok_or_else(|| self.no_key())
    }

    fn no_key(&self) -> Error {
        Error::MasterKey(match &self.0.place {
            Place::Nowhere => "there is no master key: this database needs one to keep secrets \
                 sealed. Make one once, for all replicas, with: tidings master-key generate > \
                 master.key; and give each process --master-key-file master.key (or \
                 TIDINGS_MASTER_KEY_FILE)"
                .into(),
            place => format!("the master key in {place} has not been read"),
        })
    }

    /// Seals under the first key, as the file has it now: a key that was put in front is used by
    /// every process from its next sealing on. Sealings are rare, so one look at the file each is
    /// cheap; a file that cannot be read leaves the keys as they are.
    async fn seal(&self, binding: Binding<'_>, content: &[u8]) -> Result<Vec<u8>, Error> {
        self.refresh().await;
        self.seal_now(&*self.ring()?, binding, content)
    }

    fn seal_now(
        &self,
        ring: &Keyring,
        binding: Binding<'_>,
        content: &[u8],
    ) -> Result<Vec<u8>, Error> {
        envelope::seal(ring, &self.0.random, binding, content)
            .map_err(|error| Error::MasterKey(error.to_string()))
    }

    /// Reads the file again when it has changed.
    async fn refresh(&self) {
        let Some(path) = self.0.place.file() else { return };
        let _turn = self.0.refreshing.lock().await;
        let known = self.0.keys.read().unwrap_or_else(PoisonError::into_inner).stamp;
        if off_thread(path, file::stamp).await.ok() != known {
            self.reload().await;
        }
    }

    async fn reload(&self) {
        match self.load().await {
            Ok(()) => {
                if let Ok(ring) = self.ring() {
                    tracing::info!(keys = ?ring.ids(), "the master keys were read again");
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the master keys cannot be read again; going on with those that are known");
            }
        }
    }

    /// The keys, with those that these rows are sealed under if the file has them.
    async fn keys_of(&self, sealed: impl Iterator<Item = &[u8]>) -> Result<Arc<Keyring>, Error> {
        let ring = self.ring()?;
        let is_unknown = |id: KeyId| ring.find(id).is_none();
        if sealed.filter_map(envelope::key_id).any(is_unknown) {
            self.refresh().await;
            return self.ring();
        }
        Ok(ring)
    }

    /// Reads a row's sealed document. `None` when it does not open, which the operator is told of.
    fn read<T: DeserializeOwned>(
        &self,
        ring: &Keyring,
        binding: Binding<'_>,
        sealed: Option<&[u8]>,
    ) -> Option<T> {
        let opened = envelope::open(ring, binding, sealed.unwrap_or_default());
        let document = match &opened {
            // What a parser says may quote what it has read.
            Ok(content) => serde_json::from_slice(content)
                .map_err(|_| "it holds what this version of Tidings does not know".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        match document {
            Ok(document) => {
                self.0.opened.inc();
                Some(document)
            }
            Err(error) => {
                self.0.unreadable.inc();
                self.report(binding, &error);
                None
            }
        }
    }

    /// Logs, once per row, that its secrets cannot be read.
    fn report(&self, binding: Binding<'_>, error: &str) {
        let Binding { purpose, tenant_id, row_id } = binding;
        let mut reported = self.0.reported.lock().unwrap_or_else(PoisonError::into_inner);
        if reported.len() >= MAX_REPORTED {
            reported.clear();
        }
        if reported.insert(format!("{purpose} {tenant_id} {row_id} {error}")) {
            tracing::error!(
                kind = purpose,
                tenant.id = tenant_id,
                row.id = row_id,
                error,
                "secrets in the database cannot be read; deliveries that need them fail and are \
                 retried until the row, or the master key, is restored"
            );
        }
    }
}

impl Store {
    /// The file that holds the master keys, if they are in one.
    pub fn master_key_file(&self) -> Option<PathBuf> {
        self.vault.0.place.file().map(Path::to_owned)
    }

    /// Registers what is counted of sealed secrets.
    pub fn register_metrics(&self, registry: &mut Registry) {
        let vault = &self.vault.0;
        registry.register(
            "secrets_opened",
            "Sealed rows that were opened: once per change of a tenant's settings, not per delivery",
            vault.opened.clone(),
        );
        registry.register(
            "secrets_unreadable",
            "Sealed rows that could not be opened when they were read",
            vault.unreadable.clone(),
        );
    }
}

/// Puts a new master key in front of those in a file, from where on it seals, and returns its id.
/// Processes that use the file take note of it by themselves.
///
/// # Errors
/// When the file cannot be read or replaced; it is as it was then.
pub async fn add_master_key(path: &Path) -> Result<KeyId, Error> {
    let added = off_thread(path, |path| {
        let key = MasterKey::generate().map_err(|error| FileError::Io {
            path: path.to_owned(),
            source: std::io::Error::other(error),
        })?;
        file::add_in_front(path, &key)?;
        Ok(key.id())
    });
    Ok(added.await?)
}

/// `tidings.db.key` for `tidings.db`.
fn beside(database: &Path) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(".key");
    PathBuf::from(path)
}

/// Works on a file where waiting for the disk holds up nobody.
async fn off_thread<T: Send + 'static>(
    path: &Path,
    work: fn(&Path) -> Result<T, FileError>,
) -> Result<T, FileError> {
    let path = path.to_owned();
    let done = tokio::task::spawn_blocking({
        let path = path.clone();
        move || work(&path)
    });
    match done.await {
        Ok(result) => result,
        Err(error) => Err(FileError::Io { path, source: std::io::Error::other(error) }),
    }
}

impl From<FileError> for Error {
    fn from(error: FileError) -> Self {
        Self::MasterKey(format!("the master key cannot be read: {error}"))
    }
}
