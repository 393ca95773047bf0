//! Labels: small key-value pairs of the client's own on events, subscriptions and tenants.

use std::collections::BTreeMap;

use super::Violations;

/// Labels in order of their keys.
pub type Labels = BTreeMap<String, String>;

/// Most labels on one resource.
pub const MAX_LABELS: usize = 32;
/// Most bytes in a label's key, and in its value.
pub const MAX_LABEL_BYTES: usize = 256;

/// Notes in `violations` what is wrong with `labels`, under the name `field`.
pub fn check(labels: &Labels, field: &str, violations: &mut Violations) {
    if labels.len() > MAX_LABELS {
        violations
            .add(field, format!("must have at most {MAX_LABELS} labels, has {}", labels.len()));
    }
    for (key, value) in labels {
        if key.is_empty() {
            violations.add(field, "must not have an empty key");
        }
        for (what, text) in [("key", key), ("value", value)] {
            if text.len() > MAX_LABEL_BYTES {
                violations.add(
                    format!("{field}[{:?}]", key.chars().take(40).collect::<String>()),
                    format!(
                        "the {what} must have at most {MAX_LABEL_BYTES} bytes, has {}",
                        text.len()
                    ),
                );
            }
            if text.contains('\0') {
                violations.add(field, format!("a {what} must not contain NUL"));
            }
        }
    }
}
