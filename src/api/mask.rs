//! Field masks (AIP-134): which fields an update changes.
//!
//! A resource lists its fields; a path names a field, or a message with all of its fields. An empty
//! mask means the fields that are populated, `*` means all of them. A path that is unknown or that
//! cannot be changed is a violation that names it: nothing is ignored silently.

use std::collections::BTreeSet;

use crate::domain::Violations;

/// Most paths in one mask; no resource has as many fields.
const MAX_PATHS: usize = 100;

/// The fields of a resource, as paths.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields {
    /// Fields that can be changed. Those of a nested message stand as `webhook.url`.
    pub mutable: &'static [&'static str],
    /// Fields that exist but cannot be changed this way.
    pub fixed: &'static [&'static str],
}

/// The fields that one update changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Selection {
    paths: BTreeSet<&'static str>,
    /// Whether the mask was `*`, which names no field.
    is_everything: bool,
}

impl Selection {
    /// Whether the update changes this field.
    pub(super) fn has(&self, path: &str) -> bool {
        self.paths.contains(path)
    }

    /// Whether the update changes any field below `message`.
    pub(super) fn has_below(&self, message: &str) -> bool {
        self.paths.iter().any(|path| is_below(path, message))
    }

    /// Whether the client itself chose a field below `message`. `*` means whatever the resource has,
    /// and says nothing of a message that it lacks.
    pub(super) fn names_below(&self, message: &str) -> bool {
        !self.is_everything && self.has_below(message)
    }

    /// Takes over from `found` what is about fields of `resource` that are changed: the rest was
    /// found in what merely stands for the resource, because nothing says which one it is.
    pub(super) fn take_over(
        &self,
        resource: &str,
        found: &Violations,
        violations: &mut Violations,
    ) {
        for violation in found.iter() {
            let field = violation.field.strip_prefix(resource);
            if field.and_then(|field| field.strip_prefix('.')).is_some_and(|f| self.covers(f)) {
                violations.add(&*violation.field, &*violation.description);
            }
        }
    }

    /// Whether `field`, which may lie within one, is changed.
    fn covers(&self, field: &str) -> bool {
        self.paths.iter().any(|path| {
            field.strip_prefix(path).is_some_and(|rest| {
                rest.is_empty() || rest.starts_with('.') || rest.starts_with('[')
            })
        })
    }
}

fn is_below(path: &str, message: &str) -> bool {
    path.strip_prefix(message).is_some_and(|rest| rest.starts_with('.'))
}

impl Fields {
    /// The fields that `mask` chooses. `populated` tells which fields of the request are set; it
    /// counts when the mask is empty. What is wrong goes into `violations`, under `update_mask`.
    pub(super) fn select(
        &self,
        mask: &[String],
        populated: impl Fn(&str) -> bool,
        violations: &mut Violations,
    ) -> Selection {
        let mut chosen = BTreeSet::new();
        let is_everything = mask.iter().any(|path| path == "*");
        if mask.len() > MAX_PATHS {
            violations.add("update_mask", format!("must have at most {MAX_PATHS} paths"));
            return Selection { paths: chosen, is_everything };
        }
        if mask.is_empty() {
            chosen.extend(self.mutable.iter().copied().filter(|path| populated(path)));
        }
        for path in mask {
            if path == "*" {
                if mask.len() > 1 {
                    violations.add("update_mask", "* must stand alone");
                }
                chosen.extend(self.mutable);
                continue;
            }
            let named = self.mutable.iter().filter(|known| *known == path || is_below(known, path));
            let mut found = false;
            for known in named {
                found = true;
                chosen.insert(*known);
            }
            if !found {
                violations.add("update_mask", self.refusal(path));
            }
        }
        Selection { paths: chosen, is_everything }
    }

    fn refusal(&self, path: &str) -> String {
        let path_shown: String = path.chars().take(80).collect();
        if let Some(whole) = self.mutable.iter().find(|known| is_below(path, known)) {
            // A map's keys and a list's items are no fields, and a policy holds together.
            format!("the field {whole:?} is changed only as a whole, not by {path_shown:?}")
        } else if self.fixed.iter().any(|known| *known == path || is_below(path, known)) {
            format!("the field {path_shown:?} cannot be changed by an update")
        } else {
            format!("there is no field {path_shown:?}; paths are written as {:?}", self.mutable[0])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIELDS: Fields = Fields {
        mutable: &["display_name", "webhook.url", "webhook.headers", "retry_policy", "labels"],
        fixed: &["id", "create_time"],
    };

    fn select(mask: &[&str]) -> (Vec<&'static str>, Violations) {
        let mut violations = Violations::new();
        let mask: Vec<_> = mask.iter().map(|path| (*path).to_owned()).collect();
        let populated = |path: &str| ["labels", "webhook.url"].contains(&path);
        let selection = FIELDS.select(&mask, populated, &mut violations);
        (selection.paths.into_iter().collect(), violations)
    }

    #[test]
    fn an_empty_mask_means_what_is_populated() {
        assert_eq!(select(&[]), (vec!["labels", "webhook.url"], Violations::new()));
    }

    #[test]
    fn a_path_names_a_field_or_a_whole_message() {
        assert_eq!(select(&["webhook.url"]).0, ["webhook.url"]);
        assert_eq!(select(&["webhook"]).0, ["webhook.headers", "webhook.url"]);
        assert_eq!(select(&["labels", "labels", "retry_policy"]).0, ["labels", "retry_policy"]);
    }

    #[test]
    fn a_star_means_everything() {
        let (chosen, violations) = select(&["*"]);
        assert_eq!(chosen.len(), FIELDS.mutable.len());
        assert!(violations.is_empty());
        assert!(!select(&["*", "labels"]).1.is_empty());
        let select =
            |mask: &str| FIELDS.select(&[mask.to_owned()], |_| false, &mut Violations::new());
        assert!(select("*").has_below("webhook") && !select("*").names_below("webhook"));
        assert!(select("webhook").names_below("webhook"));
        assert!(select("webhook.url").covers("webhook.url"));
        assert!(select("retry_policy").covers("retry_policy.jitter"));
        assert!(select("labels").covers("labels[\"a\"]") && !select("labels").covers("labels_b"));
    }

    #[test]
    fn a_part_of_a_field_that_is_changed_as_a_whole_is_told_as_such() {
        for (path, whole) in [("labels.a", "labels"), ("retry_policy.jitter", "retry_policy")] {
            let (_, violations) = select(&[path]);
            let text = violations.to_string();
            assert!(text.contains(&format!("{whole:?}")) && text.contains("as a whole"), "{text}");
        }
    }

    #[test]
    fn unknown_and_fixed_paths_are_named() {
        for path in ["", "x", "displayName", "webhook.", "webhook.x", "webh", "labels.a", " labels"]
        {
            let (chosen, violations) = select(&[path, "labels"]);
            assert_eq!(chosen, ["labels"], "{path}");
            let violation = violations.iter().next().expect(path);
            assert_eq!(violation.field, "update_mask");
            assert!(violation.description.contains(&format!("{path:?}")), "{path}");
        }
        for path in ["id", "create_time", "create_time.seconds"] {
            let (_, violations) = select(&[path]);
            assert!(violations.to_string().contains("cannot be changed"), "{path}");
        }
        let (_, violations) = select(&["a", "b", "id"]);
        assert_eq!(violations.iter().count(), 3);
    }

    #[test]
    fn the_number_of_paths_is_limited() {
        let mask = vec!["labels"; MAX_PATHS + 1];
        assert!(!select(&mask).1.is_empty());
    }
}
