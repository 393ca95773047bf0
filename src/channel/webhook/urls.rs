//! URLs that were judged, ready for the next attempt.
//!
//! The rules hold again at each delivery, whatever is stored. They do not change while the process
//! lives, and look at nothing but the text: so a text that was judged is not judged again.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use bytes::Bytes;
use http::Uri;

use crate::domain::endpoint::Rules;

/// Most URLs that are kept, of at most 2 KiB each. Reaching it empties them: simple, and rare.
const MAX_URLS: usize = 4_096;

/// The rules, and what they let pass.
pub(super) struct Urls {
    rules: Rules,
    passed: RwLock<HashMap<String, Uri>>,
}

impl Urls {
    pub(super) fn new(rules: Rules) -> Self {
        Self { rules, passed: RwLock::default() }
    }

    pub(super) const fn rules(&self) -> Rules {
        self.rules
    }

    /// The URL as the client takes it; `None` when it breaks the rules, or is not written as they
    /// have it.
    pub(super) fn uri(&self, url: &str) -> Option<Uri> {
        let passed = self.passed.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(uri) = passed.get(url) {
            return Some(uri.clone());
        }
        drop(passed);
        let canonical = self.rules.canonical(url).ok().filter(|canonical| canonical == url)?;
        let uri = Uri::from_maybe_shared(Bytes::from(canonical)).ok()?;
        let mut passed = self.passed.write().unwrap_or_else(PoisonError::into_inner);
        if passed.len() >= MAX_URLS {
            passed.clear();
        }
        passed.insert(url.to_owned(), uri.clone());
        Some(uri)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(urls: &Urls) -> usize {
        urls.passed.read().expect("not poisoned").len()
    }

    #[test]
    fn what_passes_is_kept_and_nothing_else() {
        let urls = Urls::new(Rules { allow_http: false });
        for _ in 0..2 {
            let uri = urls.uri("https://a.company.com/x?y=1").expect("passes");
            assert_eq!(uri, "https://a.company.com/x?y=1");
            for refused in ["http://a.company.com/", "https://a.company.com", "https://localhost/"]
            {
                assert_eq!(urls.uri(refused), None, "{refused}");
            }
        }
        assert_eq!(kept(&urls), 1);
    }

    #[test]
    fn a_bounded_number_is_kept() {
        let urls = Urls::new(Rules { allow_http: false });
        for number in 0..=MAX_URLS {
            assert!(urls.uri(&format!("https://a.company.com/{number}")).is_some());
        }
        assert_eq!(kept(&urls), 1);
    }
}
