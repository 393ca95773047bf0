//! An event's payload: JSON that is checked, and then kept byte for byte.
//!
//! Parsing and writing JSON again would change it (integers over 2^53, duplicate keys, spacing), so
//! the bytes that were emitted are the bytes that are stored, signed and sent.

use serde::de::IgnoredAny;

/// Most bytes in a payload unless configured otherwise.
pub const DEFAULT_MAX_BYTES: usize = 256 * 1024;
/// Deepest nesting of arrays and objects. Receivers' parsers often stop at 100.
pub const MAX_DEPTH: usize = 64;

/// Says what is wrong with `json` as a payload of at most `max_bytes`, if anything is.
///
/// # Errors
/// A sentence for the client.
pub fn check(json: &str, max_bytes: usize) -> Result<(), String> {
    if json.len() > max_bytes {
        return Err(format!("must have at most {max_bytes} bytes, has {}", json.len()));
    }
    // Few brackets are not deep, wherever they stand. Counting them is much cheaper.
    if brackets(json.as_bytes()) > MAX_DEPTH {
        let depth = depth(json.as_bytes());
        if depth > MAX_DEPTH {
            return Err(format!("must be nested at most {MAX_DEPTH} deep, is {depth} deep"));
        }
    }
    serde_json::from_str::<IgnoredAny>(json)
        .map(|_| ())
        .map_err(|error| format!("must be valid JSON: {error}"))
}

/// How many brackets open, those in strings included.
fn brackets(json: &[u8]) -> usize {
    json.iter().filter(|byte| matches!(byte, b'{' | b'[')).count()
}

/// The deepest nesting of brackets outside strings. Exact for valid JSON.
fn depth(json: &[u8]) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let (mut in_string, mut escaped) = (false, false);
    for byte in json {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'{' | b'[' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_hold_on_both_sides() {
        let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        assert!(check(&nested(MAX_DEPTH), 1_000).is_ok());
        assert!(check(&nested(MAX_DEPTH + 1), 1_000).is_err());
        assert!(check(r#""xx""#, 4).is_ok());
        assert!(check(r#""xxx""#, 4).is_err());
    }

    #[test]
    fn brackets_in_strings_do_not_count() {
        let json = format!(r#"{{"a":"{}\"{}"}}"#, "[".repeat(100), "{".repeat(100));
        assert!(check(&json, 1_000).is_ok());
    }

    #[test]
    fn only_json_is_a_payload() {
        for json in [
            "{}",
            "[]",
            "1",
            r#""x""#,
            "null",
            r#" {"a":1,"a":2} "#,
            "123456789012345678901234567890",
        ] {
            assert!(check(json, 1_000).is_ok(), "{json}");
        }
        for json in ["", "{", "{a:1}", "NaN", "{} {}", "\u{feff}{}", "'a'", "[1,]"] {
            assert!(check(json, 1_000).is_err(), "{json}");
        }
    }
}
