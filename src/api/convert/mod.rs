//! Between the contract and the domain: the only place, besides the thin services, that sees both.
//!
//! Into the domain everything is checked that the domain's types cannot say (ranges of times,
//! unknown enumeration values), and every violation is noted; the domain's own rules follow when
//! the value is whole. Out of the domain nothing can fail.

pub(crate) mod catalog;
pub(crate) mod channel;
pub(crate) mod delivery;
pub(crate) mod event;
pub(crate) mod retry;
pub(crate) mod subscription;
pub(crate) mod suppression;
pub(crate) mod tenant;

use std::time::Duration;

use crate::domain::pattern::Pattern;
use crate::domain::{Timestamp, Violations};

/// Items on a page when the client does not say.
const DEFAULT_PAGE_SIZE: u64 = 50;
/// Most items on a page; more is coerced to it (AIP-158).
const MAX_PAGE_SIZE: u64 = 1_000;
/// Most patterns in a filter.
const MAX_FILTER_PATTERNS: usize = 100;
/// Most enumeration values in a filter: more than there are values.
const MAX_FILTER_VALUES: usize = 32;

/// The first second that a protobuf timestamp can say: 0001-01-01T00:00:00Z.
const FIRST_SECOND: i64 = -62_135_596_800;
/// The last second that a protobuf timestamp can say: 9999-12-31T23:59:59Z.
const LAST_SECOND: i64 = 253_402_300_799;
/// The longest duration that protobuf can say, in seconds: about 10,000 years.
const LAST_DURATION_SECOND: i64 = 315_576_000_000;
const NANOS_PER_SECOND: i32 = 1_000_000_000;

/// An instant of the contract, to the microsecond.
pub(crate) fn timestamp(
    value: Option<&prost_types::Timestamp>,
    field: &str,
    violations: &mut Violations,
) -> Option<Timestamp> {
    let value = value?;
    let valid = (FIRST_SECOND..=LAST_SECOND).contains(&value.seconds)
        && (0..NANOS_PER_SECOND).contains(&value.nanos);
    if !valid {
        violations.add(
            field,
            "must be from 0001-01-01T00:00:00Z to 9999-12-31T23:59:59.999999999Z, with nanos from \
             0 to 999999999",
        );
        return None;
    }
    Some(Timestamp::from_micros(value.seconds * 1_000_000 + i64::from(value.nanos / 1_000)))
}

/// A duration of the contract, which must not be negative.
pub(crate) fn duration(
    value: Option<&prost_types::Duration>,
    field: &str,
    violations: &mut Violations,
) -> Option<Duration> {
    let value = value?;
    let seconds =
        u64::try_from(value.seconds).ok().filter(|_| value.seconds <= LAST_DURATION_SECOND);
    let nanos = u32::try_from(value.nanos).ok().filter(|_| value.nanos < NANOS_PER_SECOND);
    if let (Some(seconds), Some(nanos)) = (seconds, nanos) {
        return Some(Duration::new(seconds, nanos));
    }
    violations
        .add(field, "must be a duration that is not negative, with nanos from 0 to 999999999");
    None
}

/// An instant as the contract writes it.
pub(crate) fn timestamp_to_proto(value: Timestamp) -> prost_types::Timestamp {
    let micros = value.as_micros().rem_euclid(1_000_000);
    prost_types::Timestamp {
        seconds: value.as_secs(),
        nanos: i32::try_from(micros * 1_000).unwrap_or(0),
    }
}

/// A duration as the contract writes it.
pub(crate) fn duration_to_proto(value: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(value.as_secs()).unwrap_or(LAST_DURATION_SECOND),
        nanos: i32::try_from(value.subsec_nanos()).unwrap_or(0),
    }
}

/// A count as the contract writes it.
pub(crate) fn count_to_proto(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// The etag of a resource: differs for every change, also after it was deleted and made again.
pub(crate) fn etag(revision: i64, create_time: Timestamp) -> String {
    format!("{revision}-{:x}", create_time.as_micros())
}

/// The number of items that a page may have.
pub(crate) fn page_size(value: i32, violations: &mut Violations) -> u64 {
    match u64::try_from(value) {
        Ok(0) => DEFAULT_PAGE_SIZE,
        Ok(size) => size.min(MAX_PAGE_SIZE),
        Err(_) => {
            violations.add("page_size", "must not be negative; 0 means 50");
            DEFAULT_PAGE_SIZE
        }
    }
}

/// The patterns of a filter.
pub(crate) fn patterns(texts: &[String], field: &str, violations: &mut Violations) -> Vec<Pattern> {
    if texts.len() > MAX_FILTER_PATTERNS {
        violations.add(field, format!("must have at most {MAX_FILTER_PATTERNS} patterns"));
        return Vec::new();
    }
    let mut patterns = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        match Pattern::parse(text) {
            Ok(pattern) => patterns.push(pattern),
            Err(error) => violations.add(format!("{field}[{index}]"), error),
        }
    }
    patterns
}

/// The values of an enumeration in a filter; `read` tells what a number means.
pub(crate) fn enum_list<T>(
    numbers: &[i32],
    field: &str,
    violations: &mut Violations,
    read: impl Fn(i32) -> Option<T>,
) -> Vec<T> {
    if numbers.len() > MAX_FILTER_VALUES {
        violations.add(field, format!("must have at most {MAX_FILTER_VALUES} values"));
        return Vec::new();
    }
    let mut values = Vec::with_capacity(numbers.len());
    for (index, number) in numbers.iter().enumerate() {
        match read(*number) {
            Some(value) => values.push(value),
            None => violations.add(format!("{field}[{index}]"), "must be one of the named values"),
        }
    }
    values
}

/// Takes over what the domain found, except about fields of which something is known already, and
/// about those below them: what follows from a wrong or missing message is no fault of its own.
pub(crate) fn merge(violations: &mut Violations, found: &Violations) {
    let known = violations.clone();
    for violation in found.iter() {
        let is_known = |known: &str| {
            violation.field.strip_prefix(known).is_some_and(|below| {
                below.is_empty() || below.starts_with('.') || below.starts_with('[')
            })
        };
        if !known.iter().any(|known| is_known(&known.field)) {
            violations.add(&*violation.field, &*violation.description);
        }
    }
}

/// A required text, such as an id that names what a call is about.
pub(crate) fn require(text: &str, field: &str, violations: &mut Violations) {
    if text.is_empty() {
        violations.add(field, "must not be empty");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instant(seconds: i64, nanos: i32) -> (Option<Timestamp>, Violations) {
        let mut violations = Violations::new();
        let value = prost_types::Timestamp { seconds, nanos };
        (timestamp(Some(&value), "t", &mut violations), violations)
    }

    #[test]
    fn timestamps_are_checked_and_read_back() {
        for (seconds, nanos) in
            [(0, 0), (FIRST_SECOND, 0), (LAST_SECOND, 999_999_000), (-1, 250_000_000)]
        {
            let (value, violations) = instant(seconds, nanos);
            assert!(violations.is_empty(), "{violations}");
            let back = timestamp_to_proto(value.expect("valid"));
            assert_eq!((back.seconds, back.nanos), (seconds, nanos));
        }
        for (seconds, nanos) in [
            (FIRST_SECOND - 1, 0),
            (LAST_SECOND + 1, 0),
            (i64::MAX, 0),
            (i64::MIN, 0),
            (0, -1),
            (0, NANOS_PER_SECOND),
        ] {
            let (value, violations) = instant(seconds, nanos);
            assert_eq!((value, violations.iter().count()), (None, 1), "{seconds} {nanos}");
        }
    }

    #[test]
    fn durations_are_checked_and_read_back() {
        let read = |seconds, nanos| {
            let mut violations = Violations::new();
            let value = prost_types::Duration { seconds, nanos };
            (duration(Some(&value), "d", &mut violations), violations.is_empty())
        };
        assert_eq!(read(1, 500_000_000), (Some(Duration::from_millis(1_500)), true));
        assert_eq!(read(0, 0), (Some(Duration::ZERO), true));
        for (seconds, nanos) in
            [(-1, 0), (0, -1), (0, NANOS_PER_SECOND), (LAST_DURATION_SECOND + 1, 0), (i64::MAX, 0)]
        {
            assert_eq!(read(seconds, nanos), (None, false), "{seconds} {nanos}");
        }
        let back = duration_to_proto(Duration::from_millis(1_500));
        assert_eq!((back.seconds, back.nanos), (1, 500_000_000));
    }

    #[test]
    fn page_sizes_are_coerced_but_never_negative() {
        let mut violations = Violations::new();
        let sizes = [0, 1, 1_000, 1_001, i32::MAX].map(|size| page_size(size, &mut violations));
        assert_eq!(sizes, [50, 1, 1_000, 1_000, 1_000]);
        assert!(violations.is_empty());
        page_size(-1, &mut violations);
        assert!(!violations.is_empty());
    }

    #[test]
    fn what_follows_from_a_wrong_field_is_not_told_again() {
        let mut violations = Violations::of("a.b", "must be set");
        let mut found = Violations::new();
        for field in ["a.b", "a.b.c", "a.b[1]", "a.bc", "a", "x"] {
            found.add(field, "is wrong");
        }
        merge(&mut violations, &found);
        let fields: Vec<_> = violations.iter().map(|v| v.field.as_str()).collect();
        assert_eq!(fields, ["a.b", "a.bc", "a", "x"]);
    }

    #[test]
    fn filters_name_the_wrong_item() {
        let mut violations = Violations::new();
        let texts = ["a.*", "a b", "*"].map(str::to_owned);
        assert_eq!(patterns(&texts, "event_types", &mut violations).len(), 2);
        let states = enum_list(&[1, 0, 99], "states", &mut violations, |n| (n == 1).then_some(()));
        assert_eq!(states.len(), 1);
        let fields: Vec<_> = violations.iter().map(|v| v.field.as_str()).collect();
        assert_eq!(fields, ["event_types[1]", "states[1]", "states[2]"]);
    }
}
