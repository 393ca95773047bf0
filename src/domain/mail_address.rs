//! Email addresses: read as people paste them, checked, and brought into one form.
//!
//! Guarantees: an address that was parsed is ASCII, has no control character, no space, no quote and
//! no comment, so it can stand in a header and in a command of SMTP as it is; parsing what was parsed
//! gives the same. Two addresses with the same [`MailAddress::key`] are the same mailbox to us.
//!
//! Narrower than RFC 5321, on purpose: quoted local parts, address literals (`[192.0.2.1]`), names
//! without a dot and local parts outside ASCII (which need SMTPUTF8 on every hop) are refused. An
//! internationalized domain is written in its ASCII form (RFC 5891).
//!
//! The local part stays as it was written, since only its own server may say that case means nothing
//! there. The key folds it all the same: nobody wants one message twice, and who has unsubscribed
//! has done so in every spelling.

use std::collections::HashSet;
use std::fmt;

use super::{Violations, mail};

/// Most bytes in an address (RFC 5321, section 4.5.3.1.3, without the angle brackets).
pub const MAX_ADDRESS_BYTES: usize = 254;
/// Most bytes before the `@` (RFC 5321, section 4.5.3.1.1).
pub const MAX_LOCAL_BYTES: usize = 64;
/// Most addresses of one subscription, once duplicates are merged.
pub const MAX_RECIPIENTS: usize = 100;
/// Most bytes in one item of a list: a hundred of the longest addresses, each with a name.
const MAX_ITEM_BYTES: usize = 64 * 1024;
/// Most characters of a wrong address that are repeated.
const MAX_QUOTED_CHARS: usize = 100;
/// What a local part may consist of beside letters, digits and dots (RFC 5322, section 3.2.3).
const LOCAL_MARKS: &[u8] = b"!#$%&'*+-/=?^_`{|}~";
/// Last labels of names that lead to this machine, or nowhere (RFC 6761).
const NOWHERE: [&str; 3] = ["localhost", "localdomain", "invalid"];

/// A checked address in its canonical form.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MailAddress(String);

/// What is wrong with an address. The text completes "must be an email address such as …: it …".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// There is nothing.
    #[error("is empty")]
    Empty,
    /// A control character or one that turns the direction of text.
    #[error("contains a control character")]
    Control,
    /// No `@` between two parts.
    #[error("has no @ between a name and a domain")]
    NoAt,
    /// More than one address where one is wanted.
    #[error("names more than one address")]
    Several,
    /// More than 254 bytes in all, or 64 before the `@`.
    #[error("is too long: at most 254 bytes, 64 of them before the @")]
    TooLong,
    /// The part before the `@` is not letters, digits and marks joined by dots.
    #[error(
        "has a part before the @ that is not of ASCII letters, digits, dots and !#$%&'*+-/=?^_`{{|}}~"
    )]
    Local,
    /// The part before the `@` is quoted.
    #[error("is quoted before the @, which is not supported")]
    Quoted,
    /// The domain is an IP address.
    #[error("has an IP address in place of a domain")]
    Literal,
    /// The domain is no name on the internet.
    #[error("has a domain that is no name with a dot, such as company.com")]
    Domain,
    /// The text around `<…>` is wrong.
    #[error("is not written as Name <address>")]
    Brackets,
}

impl MailAddress {
    /// Reads one address, alone or as `Name <address>`, of which the address is kept.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        if text.chars().any(is_hostile) {
            return Err(Invalid::Control);
        }
        let text = text.trim();
        if text.is_empty() {
            return Err(Invalid::Empty);
        }
        let text = bare(text)?;
        if text.starts_with('"') {
            return Err(Invalid::Quoted);
        }
        let (local, domain) = text.rsplit_once('@').ok_or(Invalid::NoAt)?;
        if local.is_empty() || domain.is_empty() {
            return Err(Invalid::NoAt);
        }
        if local.contains('@') {
            return Err(Invalid::Several);
        }
        check_local(local)?;
        let domain = canonical_domain(domain)?;
        if local.len() + 1 + domain.len() > MAX_ADDRESS_BYTES {
            return Err(Invalid::TooLong);
        }
        Ok(Self(format!("{local}@{domain}")))
    }

    /// The address.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What all spellings of the address have in common: what suppressions are kept by, and what
    /// duplicates are found by.
    pub fn key(&self) -> String {
        key_of(&self.0)
    }

    /// What stands behind the `@`.
    pub fn domain(&self) -> &str {
        self.0.rsplit_once('@').map_or("", |(_, domain)| domain)
    }
}

impl fmt::Display for MailAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The key of an address that was parsed before: see [`MailAddress::key`].
pub fn key_of(address: &str) -> String {
    address.to_ascii_lowercase()
}

/// The address in `text`; `None`, with a violation of `field`, when it is not one.
pub fn check_one(text: &str, field: &str, violations: &mut Violations) -> Option<MailAddress> {
    match MailAddress::parse(text) {
        Ok(address) => Some(address),
        Err(invalid) => {
            violations.add(field, sentence(text, invalid));
            None
        }
    }
}

/// The addresses of a list whose items may themselves be lists, separated by commas or semicolons.
/// Duplicates are merged: the first spelling stays. Violations name the item, `field[2]`.
pub fn check_list(items: &[String], field: &str, violations: &mut Violations) -> Vec<MailAddress> {
    let mut seen = HashSet::new();
    let mut addresses = Vec::new();
    let mut is_empty = true;
    for (index, item) in items.iter().enumerate() {
        let path = || format!("{field}[{index}]");
        if item.len() > MAX_ITEM_BYTES {
            violations.add(path(), format!("must have at most {MAX_ITEM_BYTES} bytes"));
            is_empty = false;
            continue;
        }
        let parts = split(item);
        let is_list = parts.len() > 1;
        for (position, part) in parts.into_iter().enumerate() {
            is_empty = false;
            match MailAddress::parse(part) {
                Ok(address) => {
                    if seen.insert(address.key()) {
                        addresses.push(address);
                    }
                }
                Err(invalid) if is_list => {
                    let number = position + 1;
                    let said = sentence(part, invalid);
                    violations.add(path(), format!("{said} (number {number} of the item's list)"));
                }
                Err(invalid) => violations.add(path(), sentence(part, invalid)),
            }
        }
    }
    if is_empty {
        violations.add(field, "must name at least one email address, such as ops@company.com");
    }
    if addresses.len() > MAX_RECIPIENTS {
        violations.add(
            field,
            format!("must name at most {MAX_RECIPIENTS} addresses, names {}", addresses.len()),
        );
    }
    addresses
}

/// What is wrong with `text`, which is repeated as far as it can be read: who pastes a list finds it.
fn sentence(text: &str, invalid: Invalid) -> String {
    match mail::line(text.trim(), MAX_QUOTED_CHARS).as_str() {
        "" => format!("must be an email address such as ops@company.com: it {invalid}"),
        text => format!("must be an email address such as ops@company.com: \"{text}\" {invalid}"),
    }
}

/// Control characters, line separators, and marks that change the direction in which text is shown.
fn is_hostile(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// The parts of a list: commas and semicolons separate, but not within quotes and angle brackets.
/// Nothing between two separators is no part; an item that is nothing at all is one, to be refused.
fn split(item: &str) -> Vec<&str> {
    let (mut parts, mut start) = (Vec::new(), 0);
    let (mut in_quotes, mut in_brackets, mut is_escaped) = (false, false, false);
    for (at, c) in item.char_indices() {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' if in_quotes => is_escaped = true,
            '"' => in_quotes = !in_quotes,
            '<' if !in_quotes => in_brackets = true,
            '>' if !in_quotes => in_brackets = false,
            ',' | ';' if !in_quotes && !in_brackets => {
                parts.push(&item[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&item[start..]);
    if parts.len() > 1 {
        parts.retain(|part| !part.trim().is_empty());
    }
    parts
}

/// What stands between angle brackets, when there are any.
fn bare(text: &str) -> Result<&str, Invalid> {
    let Some(inner) = text.strip_suffix('>') else {
        return if text.contains(['<', '>']) { Err(Invalid::Brackets) } else { Ok(text) };
    };
    let (name, address) = inner.rsplit_once('<').ok_or(Invalid::Brackets)?;
    let name = name.trim();
    let is_quoted = name.len() >= 2 && name.starts_with('"') && name.ends_with('"');
    if address.contains('>') || (!is_quoted && name.contains(['<', '>', '"', '@'])) {
        return Err(Invalid::Brackets);
    }
    Ok(address.trim())
}

fn check_local(local: &str) -> Result<(), Invalid> {
    if local.contains('"') {
        return Err(Invalid::Quoted);
    }
    let is_atom = |atom: &str| {
        !atom.is_empty()
            && atom.bytes().all(|b| b.is_ascii_alphanumeric() || LOCAL_MARKS.contains(&b))
    };
    if !local.split('.').all(is_atom) {
        return Err(Invalid::Local);
    }
    if local.len() > MAX_LOCAL_BYTES { Err(Invalid::TooLong) } else { Ok(()) }
}

fn canonical_domain(domain: &str) -> Result<String, Invalid> {
    if domain.starts_with('[') {
        return Err(Invalid::Literal);
    }
    if domain.len() > 4 * MAX_ADDRESS_BYTES {
        return Err(Invalid::TooLong);
    }
    let ascii = idna::domain_to_ascii_strict(domain).map_err(|_| Invalid::Domain)?;
    let labels: Vec<_> = ascii.split('.').collect();
    let is_label = |label: &&str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    let Some(last) = labels.last().filter(|_| labels.len() > 1 && labels.iter().all(is_label))
    else {
        return Err(Invalid::Domain);
    };
    if last.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Invalid::Literal);
    }
    if NOWHERE.contains(last) { Err(Invalid::Domain) } else { Ok(ascii) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> Result<String, Invalid> {
        MailAddress::parse(text).map(|address| address.as_str().to_owned())
    }

    #[test]
    fn addresses_are_read_as_people_write_them() {
        for (text, address) in [
            ("ops@company.com", "ops@company.com"),
            (" Ops.Team+night@Company.COM ", "Ops.Team+night@company.com"),
            ("Jane Doe <jane@company.com>", "jane@company.com"),
            ("\"Doe, Jane <CEO>\" <jane@company.com>", "jane@company.com"),
            ("<jane@company.com>", "jane@company.com"),
            ("Jörg < joerg@bücher.de >", "joerg@xn--bcher-kva.de"),
            ("x@BÜCHER.de", "x@xn--bcher-kva.de"),
            ("x@例え。テスト.jp", "x@xn--r8jz45g.xn--zckzah.jp"),
            ("o'neil@sub.example.museum", "o'neil@sub.example.museum"),
            ("x@xn--bcher-kva.de", "x@xn--bcher-kva.de"),
        ] {
            assert_eq!(parsed(text).as_deref(), Ok(address), "{text}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused_and_said_why() {
        let long_local = format!("{}@company.com", "a".repeat(65));
        let long = format!("{}@{}.com", "a".repeat(64), "b.".repeat(120) + "b");
        let label = format!("a@{}.com", "b".repeat(64));
        for (text, invalid) in [
            ("", Invalid::Empty),
            ("  ", Invalid::Empty),
            ("ops", Invalid::NoAt),
            ("@company.com", Invalid::NoAt),
            ("ops@", Invalid::NoAt),
            ("a@b@company.com", Invalid::Several),
            ("ops@localhost", Invalid::Domain),
            ("ops@mail.localhost", Invalid::Domain),
            ("ops@server.localdomain", Invalid::Domain),
            ("ops@company.invalid", Invalid::Domain),
            ("ops@[127.0.0.1]", Invalid::Literal),
            ("ops@[IPv6:::1]", Invalid::Literal),
            ("ops@127.0.0.1", Invalid::Literal),
            ("ops@company", Invalid::Domain),
            ("ops@company.", Invalid::Domain),
            ("ops@company.com.", Invalid::Domain),
            ("ops@.company.com", Invalid::Domain),
            ("ops@comp..any.com", Invalid::Domain),
            ("ops@-company.com", Invalid::Domain),
            ("ops@company-.com", Invalid::Domain),
            ("ops@comp_any.com", Invalid::Domain),
            ("ops@comp any.com", Invalid::Domain),
            ("ops@company.com/x", Invalid::Domain),
            ("ops team@company.com", Invalid::Local),
            (".ops@company.com", Invalid::Local),
            ("ops.@company.com", Invalid::Local),
            ("o..ps@company.com", Invalid::Local),
            ("öps@company.com", Invalid::Local),
            ("ops(comment)@company.com", Invalid::Local),
            ("\"ops team\"@company.com", Invalid::Quoted),
            ("Jane <jane@company.com", Invalid::Brackets),
            ("jane@company.com>", Invalid::Brackets),
            ("Jane <jane@company.com> x", Invalid::Brackets),
            ("a@b.com <jane@company.com>", Invalid::Brackets),
            ("<<jane@company.com>>", Invalid::Brackets),
            ("ops@company.com\r\nBcc: all@company.com", Invalid::Control),
            ("ops\0@company.com", Invalid::Control),
            ("ops@company.com\n", Invalid::Control),
            ("ops\u{202e}@company.com", Invalid::Control),
            ("Jane\u{2066} <jane@company.com>", Invalid::Control),
            (&long_local, Invalid::TooLong),
            (&label, Invalid::Domain),
        ] {
            assert_eq!(parsed(text), Err(invalid), "{text:?}");
        }
        assert!(parsed(&long).is_err());
        let longest = format!("{}@{}.com", "a".repeat(64), vec!["b".repeat(61); 3].join("."));
        assert_eq!(longest.len(), MAX_ADDRESS_BYTES);
        assert_eq!(parsed(&longest), Ok(longest.clone()));
        assert!(parsed(&longest.replace(".com", ".comm")).is_err());
    }

    fn list(items: &[&str]) -> (Vec<String>, Vec<(String, String)>) {
        let items: Vec<_> = items.iter().map(|item| (*item).to_owned()).collect();
        let mut violations = Violations::new();
        let addresses = check_list(&items, "subscription.email.recipients", &mut violations);
        (
            addresses.iter().map(|address| address.as_str().to_owned()).collect(),
            violations.iter().map(|v| (v.field.clone(), v.description.clone())).collect(),
        )
    }

    #[test]
    fn lists_are_flattened_and_duplicates_merged() {
        let (addresses, violations) = list(&[
            "Jane.Doe@company.com, \"Doe, Joe\" <joe@company.com>; ann@company.com,",
            "jane.doe@COMPANY.com",
            "x@bücher.de,x@xn--bcher-kva.de",
        ]);
        let expected =
            ["Jane.Doe@company.com", "joe@company.com", "ann@company.com", "x@xn--bcher-kva.de"];
        assert_eq!(addresses, expected);
        assert!(violations.is_empty(), "{violations:?}");
    }

    #[test]
    fn all_wrong_items_are_named_at_once() {
        let (_, violations) = list(&["a@company.com", "nobody", "b@company.com, x@localhost", ""]);
        let fields: Vec<_> = violations.iter().map(|(field, _)| field.as_str()).collect();
        let expected = [1, 2, 3].map(|index| format!("subscription.email.recipients[{index}]"));
        assert_eq!(fields, expected);
        assert!(violations[0].1.contains("\"nobody\" has no @"), "{violations:?}");
        let says = &violations[1].1;
        assert!(says.contains("\"x@localhost\"") && says.contains("number 2"), "{says}");
        // What is wrong is repeated, and cannot do harm where it is shown.
        let (_, violations) = list(&[&format!("a\r\nb\u{202e}{}", "c".repeat(5_000))]);
        let says = &violations[0].1;
        assert!(says.contains("\"a") && says.chars().count() < 300, "{says}");
        assert!(!says.chars().any(is_hostile), "{says:?}");
        for items in [&[][..], &[","], &[", ;"]] {
            let (_, violations) = list(items);
            assert_eq!(violations.len(), 1, "{items:?}");
            assert_eq!(violations[0].0, "subscription.email.recipients");
        }
    }

    #[test]
    fn a_list_has_an_end() {
        let many = |count: usize| -> Vec<String> {
            (0..count).map(|n| format!("a{n}@company.com")).collect()
        };
        let mut violations = Violations::new();
        assert_eq!(check_list(&many(100), "r", &mut violations).len(), 100);
        // The same ones once more are no more.
        let twice = [many(100), many(100)].concat();
        assert_eq!(check_list(&twice, "r", &mut violations).len(), 100);
        assert!(violations.is_empty());
        check_list(&[many(101).join(",")], "r", &mut violations);
        check_list(&["a".repeat(MAX_ITEM_BYTES + 1)], "r", &mut violations);
        assert_eq!(violations.iter().count(), 2);
    }

    proptest! {
        /// Whatever comes in, what comes out can stand in a header and in SMTP, and stays as it is.
        #[test]
        fn what_is_parsed_is_clean_and_parses_to_itself(text in any_text()) {
            if let Ok(address) = MailAddress::parse(&text) {
                let shown = address.as_str();
                prop_assert!(shown.is_ascii() && shown.len() <= MAX_ADDRESS_BYTES);
                prop_assert!(shown.bytes().all(|b| b.is_ascii_graphic() && !b"<>,;\"()[]\\:".contains(&b)));
                prop_assert_eq!(shown.matches('@').count(), 1);
                prop_assert!(address.domain().contains('.'));
                prop_assert_eq!(MailAddress::parse(shown), Ok(address.clone()));
                let key = MailAddress::parse(&address.key());
                prop_assert_eq!(key.map(|key| key.key()), Ok(address.key()));
            }
        }

        #[test]
        fn a_list_is_the_same_as_its_parts(names in prop::collection::vec("[a-z]{1,8}", 1..20)) {
            let items: Vec<_> = names.iter().map(|name| format!("{name}@company.com")).collect();
            let mut violations = Violations::new();
            let apart = check_list(&items, "r", &mut violations);
            let together = check_list(&[items.join(", ")], "r", &mut violations);
            prop_assert!(violations.is_empty());
            prop_assert_eq!(apart, together);
        }
    }

    /// Texts that are nearly addresses, and texts of all kinds.
    fn any_text() -> impl Strategy<Value = String> {
        prop_oneof![
            any::<String>(),
            "[a-zA-Z0-9.!+<>\"@, \\-\u{7f}äß。]{0,40}@[a-zA-Z0-9.\\-äßÜ。例\\[\\]>]{1,40}",
            "[a-zA-Z0-9+.]{1,70}@([a-zA-Z0-9\\-ü]{1,20}\\.){1,3}[a-zA-Z]{1,6}",
        ]
    }
}
