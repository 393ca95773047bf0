//! Headers that a customer adds to requests: which are allowed.
//!
//! Guarantees: headers that pass can be sent as they are over HTTP/1.1 and HTTP/2, cannot change
//! how the message is framed or routed, and cannot pass for a signature or for a header of Tidings.

use std::collections::BTreeMap;

/// Most custom headers on one subscription.
pub const MAX_HEADERS: usize = 32;
/// Most bytes in a header's value.
pub const MAX_VALUE_BYTES: usize = 4_096;
/// Most bytes in a header's name: far more than any that is in use.
pub const MAX_NAME_BYTES: usize = 128;

/// Names that HTTP, the signatures or Tidings itself need.
const RESERVED: [&str; 19] = [
    "accept-encoding",
    "connection",
    "content-length",
    "content-type",
    "cookie",
    "date",
    "expect",
    "host",
    "keep-alive",
    "stripe-signature",
    "te",
    "traceparent",
    "tracestate",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "x-hub-signature-256",
    "x-signature",
];
/// What reserved names start with.
const RESERVED_PREFIXES: [&str; 4] = ["ce-", "proxy-", "tidings-", "webhook-"];
/// Reserved names that a signature may have: those that the schemes use by default.
const SIGNATURE_NAMES: [&str; 3] = ["stripe-signature", "x-hub-signature-256", "x-signature"];

/// Whether no custom header may have this name, in whatever case.
pub fn is_reserved(name: &str) -> bool {
    RESERVED.iter().any(|reserved| reserved.eq_ignore_ascii_case(name))
        || RESERVED_PREFIXES.iter().any(|prefix| {
            name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
        })
}

/// What is wrong with each of `headers`: the (shortened) name and a sentence, which never repeats
/// the value. How many there are is the caller's to check. Allocates nothing when all is well.
pub fn check(headers: &BTreeMap<String, String>) -> Vec<(String, String)> {
    let mut errors = Vec::new();
    for (index, (name, value)) in headers.iter().enumerate() {
        let mut note = |error: String| errors.push((name.chars().take(40).collect(), error));
        if let Err(error) = check_name(name) {
            note(error);
        } else if is_reserved(name) {
            note("is reserved for HTTP, the signatures or Tidings itself".to_owned());
        } else if headers.keys().take(index).any(|other| other.eq_ignore_ascii_case(name)) {
            note("is given twice: case makes no difference in a header's name".to_owned());
        }
        if let Err(error) = check_value(value) {
            note(error);
        }
    }
    errors
}

/// Whether a scheme whose header can be named may put its signature into the header `name`. Whether
/// another scheme uses the same name is the caller's to check.
///
/// # Errors
/// A sentence for the client.
pub fn check_signature_header(name: &str) -> Result<(), String> {
    check_name(name)?;
    if is_reserved(name) && !SIGNATURE_NAMES.iter().any(|free| free.eq_ignore_ascii_case(name)) {
        return Err(
            "must not be a name that HTTP, Standard Webhooks, CloudEvents or Tidings itself \
                    needs"
                .to_owned(),
        );
    }
    Ok(())
}

/// A token of RFC 9110, section 5.6.2.
fn check_name(name: &str) -> Result<(), String> {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(format!("the name must have from 1 to {MAX_NAME_BYTES} bytes"));
    }
    if !name.bytes().all(token) {
        return Err("the name must be a token: letters, digits and !#$%&'*+-.^_`|~".to_owned());
    }
    Ok(())
}

fn check_value(value: &str) -> Result<(), String> {
    if value.len() > MAX_VALUE_BYTES {
        return Err(format!(
            "the value must have at most {MAX_VALUE_BYTES} bytes, has {}",
            value.len()
        ));
    }
    if value.bytes().any(|byte| (byte < 0x20 && byte != b'\t') || byte == 0x7f) {
        return Err("the value must not contain CR, LF, NUL or other control characters".to_owned());
    }
    // HTTP/2 treats such a message as malformed (RFC 9113, section 8.2.1).
    if value.starts_with([' ', '\t']) || value.ends_with([' ', '\t']) {
        return Err("the value must not begin or end with a space".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str, value: &str) -> Vec<(String, String)> {
        check(&BTreeMap::from([(name.to_owned(), value.to_owned())]))
    }

    #[test]
    fn plain_headers_pass() {
        for (name, value) in [
            ("Authorization", "Bearer abc"),
            ("X-Api-Key", ""),
            ("x", "Grüße\tund mehr"),
            ("X-Signature-2", "v"),
            ("!#$%&'*+-.^_`|~09azAZ", "v"),
        ] {
            assert_eq!(one(name, value), [], "{name}");
        }
    }

    #[test]
    fn every_reserved_name_is_refused_in_any_case() {
        let design = "host content-length transfer-encoding connection te trailer upgrade expect \
            proxy-authorization proxy-x webhook-id webhook-signature tidings-attempt x-signature \
            x-hub-signature-256 stripe-signature date user-agent content-type cookie traceparent \
            tracestate accept-encoding keep-alive ce-id ce-anything";
        for name in design.split_whitespace() {
            for name in [name.to_owned(), name.to_ascii_uppercase()] {
                assert!(is_reserved(&name), "{name}");
                assert_eq!(one(&name, "v").len(), 1, "{name}");
            }
        }
        assert!(!is_reserved("x-host") && !is_reserved("proxy") && !is_reserved("é-webhook-"));
    }

    #[test]
    fn names_are_tokens_and_values_cannot_end_a_line() {
        for name in ["", "a b", "a:b", "ä", "a\r\nb", "a\0"] {
            assert_eq!(one(name, "v").len(), 1, "{name:?}");
        }
        for value in ["a\rb", "a\nb", "a\0b", "a\x1bb", "a\x7fb", " a", "a\t"] {
            assert_eq!(one("a", value).len(), 1, "{value:?}");
        }
        assert_eq!(one("a b", "a\nb").len(), 2, "both are told");
    }

    #[test]
    fn limits_hold_on_both_sides() {
        assert!(one("a", &"x".repeat(MAX_VALUE_BYTES)).is_empty());
        assert!(!one("a", &"x".repeat(MAX_VALUE_BYTES + 1)).is_empty());
        assert!(one(&"a".repeat(MAX_NAME_BYTES), "").is_empty());
        assert!(!one(&"a".repeat(MAX_NAME_BYTES + 1), "").is_empty());
    }

    #[test]
    fn names_that_differ_only_in_case_are_duplicates() {
        let headers = ["X-A", "x-a", "x-b"].map(|name| (name.to_owned(), String::new()));
        let errors = check(&BTreeMap::from(headers));
        assert_eq!(errors.len(), 1);
        assert_eq!(errors[0].0, "x-a");
    }

    #[test]
    fn a_signature_header_is_a_free_name() {
        for name in
            ["X-Signature", "stripe-signature", "X-Hub-Signature-256", "X-Company", "Authorization"]
        {
            assert!(check_signature_header(name).is_ok(), "{name}");
        }
        for name in
            ["", "a b", "Content-Type", "webhook-signature", "Tidings-Attempt", "Host", "ce-type"]
        {
            assert!(check_signature_header(name).is_err(), "{name}");
        }
    }
}
