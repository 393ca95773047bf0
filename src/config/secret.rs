//! The option that leads to the master keys. The keys themselves are never an option's value: they
//! are not shown, and no flag takes them.

use std::path::PathBuf;

use toml::Value;

use crate::store::{KeySource, KeyText};

use super::setting::Setting;

/// The variable that holds keys.
pub(super) const VARIABLE: &str = "TIDINGS_MASTER_KEY";

/// Where the master keys are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MasterKeyFile(KeySource);

impl MasterKeyFile {
    /// In the file at `path`.
    pub fn at(path: PathBuf) -> Self {
        Self(KeySource::File(path))
    }

    /// In the process's variable, which had `text`.
    pub(super) fn in_variable(text: String) -> Self {
        Self(KeySource::Text(KeyText::new(text)))
    }

    /// Where they are, as the store wants it.
    pub fn source(&self) -> &KeySource {
        &self.0
    }

    /// Whether a file was named.
    pub(super) fn is_file(&self) -> bool {
        matches!(self.0, KeySource::File(_))
    }
}

impl Setting for MasterKeyFile {
    fn read(text: &str) -> Result<Self, String> {
        Ok(if text.is_empty() { Self::default() } else { Self::at(text.into()) })
    }

    fn show(&self) -> Option<Value> {
        match &self.0 {
            KeySource::File(path) => Some(Value::String(path.display().to_string())),
            KeySource::Unset | KeySource::Text(_) => None,
        }
    }
}
