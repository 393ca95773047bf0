//! How a tenant reads: its language and its time zone.
//!
//! A locale is checked for its shape alone (BCP 47, RFC 5646, section 2.1): which ones are spoken is
//! decided where text is made, and one that is not falls back to `en` there. A time zone must be one
//! that is known: a wrong one would show wrong times.

use jiff::tz::TimeZone;

use super::Violations;

/// The locale of a tenant that has none.
pub const DEFAULT_LOCALE: &str = "en";
/// The time zone of a tenant that has none.
pub const DEFAULT_TIME_ZONE: &str = "UTC";
/// Most bytes in a locale (RFC 5646, section 4.4.1, asks for room for 35).
pub const MAX_LOCALE_BYTES: usize = 35;
/// Most bytes in a time zone's name; the longest that there is has 32.
const MAX_TIME_ZONE_BYTES: usize = 64;

/// The locale in its usual letters: `de-AT`, `zh-Hant-TW`. `None` when it has not the shape of one.
pub fn canonical_locale(text: &str) -> Option<String> {
    if text.len() > MAX_LOCALE_BYTES {
        return None;
    }
    let mut parts = Vec::new();
    let mut in_extension = false;
    for (index, part) in text.split('-').enumerate() {
        let is_alphabetic = part.bytes().all(|b| b.is_ascii_alphabetic());
        if part.is_empty() || part.len() > 8 || !part.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return None;
        }
        let lower = part.to_ascii_lowercase();
        parts.push(match (index, part.len()) {
            (0, 2..) if is_alphabetic => lower,
            (0, _) => return None,
            (_, 1) => {
                in_extension = true;
                lower
            }
            (_, 2) if is_alphabetic && !in_extension => part.to_ascii_uppercase(),
            (_, 4) if is_alphabetic && !in_extension => {
                let (first, rest) = lower.split_at(1);
                first.to_ascii_uppercase() + rest
            }
            _ => lower,
        });
    }
    // An extension is more than its letter.
    parts.last().filter(|last| last.len() > 1)?;
    Some(parts.join("-"))
}

/// The time zone as the database of time zones spells it; `None` when it has no such one.
pub fn canonical_time_zone(text: &str) -> Option<String> {
    if text.is_empty() || text.len() > MAX_TIME_ZONE_BYTES || !text.is_ascii() {
        return None;
    }
    let zone = TimeZone::get(text).ok()?;
    zone.iana_name().map(str::to_owned)
}

/// Makes a locale canonical, or notes that it is none. An empty one stays.
pub fn check_locale(text: &mut String, field: &str, violations: &mut Violations) {
    if text.is_empty() {
        return;
    }
    match canonical_locale(text) {
        Some(locale) => *text = locale,
        None => {
            violations.add(field, "must be a language tag (BCP 47), such as en, de-AT or pt-BR");
        }
    }
}

/// Makes a time zone canonical, or notes that there is no such one. An empty one stays.
pub fn check_time_zone(text: &mut String, field: &str, violations: &mut Violations) {
    if text.is_empty() {
        return;
    }
    match canonical_time_zone(text) {
        Some(zone) => *text = zone,
        None => violations.add(
            field,
            "must be a time zone of the IANA database, such as Europe/Vienna or America/New_York",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locales_have_a_shape() {
        for (text, expected) in [
            ("en", "en"),
            ("DE-at", "de-AT"),
            ("zh-hant-tw", "zh-Hant-TW"),
            ("es-419", "es-419"),
            ("sl-rozaj-biske", "sl-rozaj-biske"),
            ("de-DE-u-co-phonebk", "de-DE-u-co-phonebk"),
            ("gsw", "gsw"),
        ] {
            assert_eq!(canonical_locale(text).as_deref(), Some(expected));
        }
        let long = "en-".to_owned() + &"abcdefgh-".repeat(5);
        for text in [
            "",
            "e",
            "en_US",
            "en-",
            "-en",
            "en--US",
            "12",
            "en-abcdefghi",
            "en US",
            "ä",
            "x-y",
            "en-u",
            &long,
        ] {
            assert_eq!(canonical_locale(text), None, "{text}");
        }
    }

    #[test]
    fn time_zones_are_known_ones() {
        for (text, expected) in [
            ("Europe/Vienna", "Europe/Vienna"),
            ("america/new_york", "America/New_York"),
            ("UTC", "UTC"),
        ] {
            assert_eq!(canonical_time_zone(text).as_deref(), Some(expected));
        }
        let long = "A".repeat(65);
        for text in [
            "",
            "Vienna",
            "Europe/Nowhere",
            "../etc/passwd",
            "+02:00",
            "Local",
            "ä",
            "Europe/Vienna\0",
            &long,
        ] {
            assert_eq!(canonical_time_zone(text), None, "{text}");
        }
    }
}
