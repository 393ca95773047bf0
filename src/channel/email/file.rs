//! Messages as files in a folder: for development.
//!
//! Guarantees: a file is there whole or not at all, and for the service's user alone, as is a folder
//! that is made for it; a delivery that is attempted again writes the same file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::AsyncWriteExt;

use super::message::Message;
use super::metrics::OfRelay;
use super::reply::Verdict;
use super::{ConfigError, failure};
use crate::domain::attempt::{ErrorKind, Outcome};

/// A folder for messages.
pub(super) struct Folder {
    path: PathBuf,
    metrics: OfRelay,
}

/// Messages are for their recipients: nobody else on the machine reads them.
const FILE_MODE: u32 = 0o600;
/// The same for folders that are made for them.
const FOLDER_MODE: u32 = 0o700;

impl Folder {
    /// What a folder is called where relays have names.
    pub(super) const NAME: &str = "file";

    /// Makes the folder where there is none.
    pub(super) fn new(path: PathBuf, metrics: OfRelay) -> Result<Self, ConfigError> {
        let mut builder = std::fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, FOLDER_MODE);
        match builder.recursive(true).create(&path) {
            Ok(()) => Ok(Self { path, metrics }),
            Err(source) => Err(ConfigError::Folder { path, source }),
        }
    }

    /// Writes a message to `<delivery's id>.eml`.
    pub(super) async fn write(&self, message: &Message) -> Verdict {
        let name = format!("{}.eml", message.delivery_id());
        match put(&self.path, &name, message.bytes()).await {
            Ok(()) => {
                self.metrics.observe(None, Duration::ZERO);
                Verdict::delivered(format!("250 written to {name}")).by(Self::NAME)
            }
            Err(error) => {
                self.metrics.observe(Some(ErrorKind::Configuration), Duration::ZERO);
                tracing::warn!(%error, folder = %self.path.display(), "a message was not written");
                Verdict {
                    outcome: Outcome::Retry { retry_after: None },
                    reply: String::new(),
                    relay: Self::NAME.to_owned(),
                    failure: failure(
                        ErrorKind::Configuration,
                        "The message could not be written to the folder for mails.",
                    ),
                }
            }
        }
    }
}

async fn put(folder: &Path, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let unfinished = folder.join(format!(".{name}.part"));
    let mut options = tokio::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(FILE_MODE);
    let mut file = options.open(&unfinished).await?;
    file.write_all(bytes).await?;
    file.flush().await?;
    tokio::fs::rename(&unfinished, folder.join(name)).await
}
