//! Messages as files in a folder: for development.
//!
//! Guarantees: a file is there whole or not at all; a delivery that is attempted again writes the
//! same file.

use std::path::{Path, PathBuf};

use super::message::Message;
use super::reply::Verdict;
use super::{ConfigError, failure};
use crate::domain::attempt::{ErrorKind, Outcome};

/// A folder for messages.
pub(super) struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Makes the folder where there is none.
    pub(super) fn new(path: PathBuf) -> Result<Self, ConfigError> {
        match std::fs::create_dir_all(&path) {
            Ok(()) => Ok(Self { path }),
            Err(source) => Err(ConfigError::Folder { path, source }),
        }
    }

    /// Writes a message to `<delivery's id>.eml`.
    pub(super) async fn write(&self, message: &Message) -> Verdict {
        let name = format!("{}.eml", message.delivery_id());
        match put(&self.path, &name, message.bytes()).await {
            Ok(()) => Verdict::delivered(format!("250 written to {name}")),
            Err(error) => {
                tracing::warn!(%error, folder = %self.path.display(), "a message was not written");
                Verdict {
                    outcome: Outcome::Retry { retry_after: None },
                    reply: String::new(),
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
    tokio::fs::write(&unfinished, bytes).await?;
    tokio::fs::rename(&unfinished, folder.join(name)).await
}
