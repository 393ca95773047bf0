//! What is wrong with an input: every field at once, not the first one only.

use std::fmt;

/// One wrong field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The path of the field in the request, for example `subscription.webhook.url`.
    pub field: String,
    /// A sentence that says what is wrong and what would be right.
    pub description: String,
}

/// Collects violations; an empty collection means that the input is good.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Violations(Vec<Violation>);

impl Violations {
    /// Most violations that one answer carries; the rest would be noise.
    pub const MAX: usize = 100;

    /// An empty collection.
    pub fn new() -> Self {
        Self::default()
    }

    /// One violation alone.
    pub fn of(field: impl Into<String>, description: impl Into<String>) -> Self {
        let mut violations = Self::new();
        violations.add(field, description);
        violations
    }

    /// Notes that `field` is wrong because of `description`.
    pub fn add(&mut self, field: impl Into<String>, description: impl Into<String>) {
        if self.0.len() < Self::MAX {
            self.0.push(Violation { field: field.into(), description: description.into() });
        }
    }

    /// Takes over all violations of `other`, each field below `prefix`.
    pub fn nest(&mut self, prefix: &str, other: Self) {
        for violation in other.0 {
            self.add(format!("{prefix}.{}", violation.field), violation.description);
        }
    }

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The violations in the order in which they were found.
    pub fn iter(&self) -> impl Iterator<Item = &Violation> {
        self.0.iter()
    }

    /// `value` when nothing is wrong.
    ///
    /// # Errors
    /// The violations themselves.
    pub fn or_ok<T>(self, value: T) -> Result<T, Self> {
        if self.is_empty() { Ok(value) } else { Err(self) }
    }
}

impl fmt::Display for Violations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, violation) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{}: {}", violation.field, violation.description)?;
        }
        Ok(())
    }
}

impl std::error::Error for Violations {}
