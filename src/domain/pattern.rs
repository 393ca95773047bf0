//! Event type names, and the patterns by which subscriptions choose among them.
//!
//! A name is one or more words joined by dots: `billing.paid`, `run_failed`. A pattern is a name,
//! or `billing.*` (every type below `billing`, at any depth), or `*` (every type).

use serde::{Deserialize, Serialize};

/// Most bytes in an event type's name.
pub const MAX_NAME_BYTES: usize = 128;

/// Says what is wrong with an event type's name, if anything is.
///
/// # Errors
/// A sentence for the client.
pub fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("must not be empty; for example billing.paid".into());
    }
    if name.len() > MAX_NAME_BYTES {
        return Err(format!("must have at most {MAX_NAME_BYTES} bytes, has {}", name.len()));
    }
    let word = |word: &str| {
        !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
    };
    if name.split('.').all(word) {
        Ok(())
    } else {
        Err("must be words of letters, digits, _ and - joined by dots, for example billing.paid"
            .into())
    }
}

/// Chooses event types: `a.b`, `a.*` or `*`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Pattern(String);

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// A sentence for the client.
    pub fn parse(text: &str) -> Result<Self, String> {
        let name = text.strip_suffix(".*").unwrap_or(text);
        if text != "*" {
            check_name(name).map_err(|error| {
                format!("pattern {text:?} {error}; a pattern is a name, a name followed by .* or *")
            })?;
        }
        Ok(Self(text.to_owned()))
    }

    /// Every event type.
    pub fn all() -> Self {
        Self("*".to_owned())
    }

    /// Whether events of type `name` are chosen.
    pub fn matches(&self, name: &str) -> bool {
        match self.0.as_bytes().split_last() {
            Some((b'*', prefix)) => {
                name.len() > prefix.len() && name.as_bytes().starts_with(prefix)
            }
            _ => self.0 == name,
        }
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_choose_as_documented() {
        let cases = [
            ("billing.paid", "billing.paid", true),
            ("billing.paid", "billing.paid.late", false),
            ("billing.*", "billing.paid", true),
            ("billing.*", "billing.paid.late", true),
            ("billing.*", "billing", false),
            ("billing.*", "billings.paid", false),
            ("*", "run_failed", true),
            ("*", "billing.paid", true),
        ];
        for (pattern, name, expected) in cases {
            let pattern = Pattern::parse(pattern).expect(pattern);
            assert_eq!(pattern.matches(name), expected, "{} {name}", pattern.as_str());
        }
    }

    #[test]
    fn bad_patterns_are_refused() {
        for text in ["", ".", "a.", ".a", "a..b", "a.*.b", "**", "*.a", "a*", "a b", "ä", "a.*.*"]
        {
            assert!(Pattern::parse(text).is_err(), "{text:?}");
        }
        assert!(check_name(&"a".repeat(MAX_NAME_BYTES)).is_ok());
        assert!(check_name(&"a".repeat(MAX_NAME_BYTES + 1)).is_err());
    }
}
