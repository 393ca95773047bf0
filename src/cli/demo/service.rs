//! The demo's own service: the real one, in this process, with its data in a temporary folder.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::super::client::{Client, Connection};
use super::super::{Error, operator_key};
use crate::app::{self, Running};
use crate::config::{AllFlags, Environment};
use crate::store::Store;

/// How many names are tried for the folder: others may run a demo too.
const NAMES: u32 = 1_000;

/// Where the messages are in the folder: they can be opened when all is over.
const MAIL: &str = "mail";

/// A folder that is removed when it goes out of scope, but for the mail, unless it is kept.
pub(super) struct Folder {
    path: PathBuf,
    is_kept: bool,
}

impl Folder {
    /// Makes a folder of its own among the temporary files.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(super) fn make() -> io::Result<Self> {
        let process = std::process::id();
        let mut last = io::Error::from(io::ErrorKind::AlreadyExists);
        for number in 0..NAMES {
            let path = std::env::temp_dir().join(format!("tidings-demo-{process}-{number}"));
            match fs::create_dir(&path) {
                Ok(()) => {
                    return Ok(Self { path, is_kept: false });
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    /// Leaves it where it is.
    pub(super) fn keep(&mut self) {
        self.is_kept = true;
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the message of a delivery is.
    pub(super) fn message(&self, delivery_id: &str) -> PathBuf {
        self.path.join(MAIL).join(format!("{delivery_id}.eml"))
    }

    fn clear(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if entry.file_name() != MAIL {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.is_kept {
            // What cannot be removed is left to whoever cleans the temporary files.
            let _ = self.clear();
            // Only when no mail is in it.
            let _ = fs::remove_dir(&self.path);
        }
    }
}

/// The running service and its operator.
pub(super) struct Service {
    running: Running,
    /// Where it speaks gRPC.
    pub(super) endpoint: String,
    /// Where it speaks HTTP.
    pub(super) http: String,
    /// Who may do everything.
    pub(super) operator: Client,
}

impl Service {
    /// Starts it on free ports, with its database in `folder`.
    ///
    /// # Errors
    /// When it cannot start.
    pub(super) async fn start(folder: &Path) -> Result<Self, Error> {
        let options = AllFlags::default().load_from(&environment(folder))?.options;
        let running = app::start(options.config()).await?;
        let endpoint = format!("http://{}", running.grpc_addr());
        let http = format!("http://{}", running.http_addr());
        let store = Store::open(&options.store()).await?;
        let created = operator_key::create_in(&store, "demo operator").await;
        store.close().await;
        let operator = Connection::to(&endpoint, created?.0).connect().await?;
        Ok(Self { running, endpoint, http, operator })
    }

    /// Stops it as a signal would.
    pub(super) async fn stop(self) {
        self.running.stop().await;
    }
}

/// The options, whatever stands in the caller's own variables and files.
fn environment(folder: &Path) -> Environment {
    let database_url = format!("sqlite://{}", folder.join("tidings.db").display());
    let smtp_url = format!("file://{}", folder.join(MAIL).display());
    let variables = [
        ("TIDINGS_DATABASE_URL", database_url.as_str()),
        ("TIDINGS_SMTP_URL", smtp_url.as_str()),
        ("TIDINGS_MAIL_FROM", "Acme <no-reply@acme.example>"),
        ("TIDINGS_GRPC_ADDR", "127.0.0.1:0"),
        ("TIDINGS_HTTP_ADDR", "127.0.0.1:0"),
        ("TIDINGS_ALLOW_CIDRS", "127.0.0.0/8"),
        ("TIDINGS_ALLOW_HTTP", "true"),
        ("TIDINGS_SHUTDOWN_GRACE", "3s"),
    ];
    let variables: BTreeMap<_, _> =
        variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    Environment { variables, folder: folder.to_owned(), ..Environment::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_goes_unless_it_is_kept() {
        let (one, mut other) = (Folder::make().unwrap(), Folder::make().unwrap());
        let paths = [one.path().to_owned(), other.path().to_owned()];
        assert!(paths[0].is_dir() && paths[0] != paths[1]);
        other.keep();
        drop((one, other));
        assert!(!paths[0].exists() && paths[1].is_dir());
        fs::remove_dir(&paths[1]).unwrap();
    }
}
