//! Which URLs an endpoint may have.
//!
//! Guarantees: what [`Rules::canonical`] returns is the `url` crate's own canonical text, has a
//! host that is a public-looking name or a plainly written IP address, and comes back unchanged
//! when it is judged again. The rules hold when a URL is stored, and again at each delivery.
//!
//! Does not guarantee that the host is one to connect to: an address is judged when it is known,
//! by the address guard of the webhook channel.

use std::net::{Ipv4Addr, Ipv6Addr};

use url::{Host, Url};

/// Most bytes in a URL: what common servers and proxies still accept.
pub const MAX_URL_BYTES: usize = 2_048;
/// Most bytes in a host name (RFC 1035, section 2.3.4, as text).
pub const MAX_NAME_BYTES: usize = 253;
/// Most bytes in one label of a host name (RFC 1035, section 2.3.4).
pub const MAX_LABEL_BYTES: usize = 63;

/// Top-level names that lead to no public endpoint: RFC 6761, RFC 6762, RFC 7686, RFC 8375,
/// RFC 9476, and those that private networks use.
const SPECIAL_USE: [&str; 13] = [
    "localhost",
    "local",
    "internal",
    "invalid",
    "test",
    "example",
    "onion",
    "alt",
    "arpa",
    "lan",
    "home",
    "corp",
    "localdomain",
];

/// What is wrong with a URL. The messages never repeat any of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Longer than [`MAX_URL_BYTES`].
    #[error("must have at most {MAX_URL_BYTES} bytes, in its canonical form too")]
    TooLong,
    /// A control character, a space or a backslash.
    #[error("must not contain spaces, control characters or backslashes: percent-encode them")]
    ForbiddenCharacter,
    /// Not `https://`.
    #[error("must begin with https://")]
    HttpsRequired,
    /// Neither `https://` nor `http://`.
    #[error("must begin with https:// or http://")]
    SchemeRequired,
    /// User or password in the URL.
    #[error("must not contain a user name or a password: use a custom header or a signature")]
    UserInfo,
    /// A fragment.
    #[error("must not contain a fragment (#…), which is never sent")]
    Fragment,
    /// A port that no endpoint should have.
    #[error("must have the port 443 or one from 1024 on (for http also 80)")]
    Port,
    /// An IP address in an unusual notation.
    #[error(
        "must write an IP address in its plain form, for example 198.51.100.7 or [2001:db8::7]"
    )]
    AddressForm,
    /// Not a host name.
    #[error(
        "must have a full host name: at least two labels of letters, digits and hyphens, \
         at most {MAX_NAME_BYTES} bytes, for example hooks.company.com"
    )]
    Name,
    /// A name such as `localhost`.
    #[error(
        "must have a public host name: localhost, .local, .internal, .test and the like are not"
    )]
    SpecialUse,
    /// Not a URL.
    #[error("must be a URL, for example https://hooks.company.com/tidings")]
    Malformed,
}

/// The rules for URLs, as far as they can be configured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Whether `http` is allowed beside `https`: for development.
    pub allow_http: bool,
}

impl Rules {
    /// The canonical form of `text`: what is stored, and what is given to the HTTP client.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn canonical(self, text: &str) -> Result<String, Error> {
        if text.len() > MAX_URL_BYTES {
            return Err(Error::TooLong);
        }
        if text.bytes().any(|byte| byte <= 0x20 || byte == 0x7f || byte == b'\\') {
            return Err(Error::ForbiddenCharacter);
        }
        let written = self.written_host(text)?;
        let mut url = Url::parse(text).map_err(|error| match error {
            url::ParseError::InvalidIpv4Address | url::ParseError::InvalidIpv6Address => {
                Error::AddressForm
            }
            url::ParseError::InvalidPort => Error::Port,
            url::ParseError::IdnaError | url::ParseError::InvalidDomainCharacter => Error::Name,
            _ => Error::Malformed,
        })?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Error::UserInfo);
        }
        match url.port() {
            None | Some(443 | 1_024..) => {}
            Some(_) => return Err(Error::Port),
        }
        let bare = match url.host().ok_or(Error::Malformed)? {
            Host::Ipv4(address) => check_v4(address, written).map(|()| None)?,
            Host::Ipv6(address) => check_v6(address, written).map(|()| None)?,
            Host::Domain(name) => check_name(name)?,
        };
        if let Some(bare) = bare {
            url.set_host(Some(&bare)).map_err(|_| Error::Name)?;
        }
        if url.as_str().len() > MAX_URL_BYTES {
            return Err(Error::TooLong);
        }
        Ok(url.into())
    }

    /// The host as it is written, after a look at the scheme and what must not stand beside it.
    fn written_host(self, text: &str) -> Result<&str, Error> {
        let rest = match (strip(text, "https://"), strip(text, "http://")) {
            (Some(rest), _) => rest,
            (None, Some(rest)) if self.allow_http => rest,
            _ if self.allow_http => return Err(Error::SchemeRequired),
            _ => return Err(Error::HttpsRequired),
        };
        if rest.contains('#') {
            return Err(Error::Fragment);
        }
        let authority = rest.split(['/', '?']).next().unwrap_or_default();
        if authority.contains('@') {
            return Err(Error::UserInfo);
        }
        let host = match authority.find(']') {
            Some(end) => authority.get(..=end).unwrap_or_default(),
            None => authority.split(':').next().unwrap_or_default(),
        };
        // An empty host must not be left to the parser, which would skip slashes to find another.
        if host.is_empty() || host.contains('%') {
            return Err(Error::Name);
        }
        Ok(host)
    }
}

/// The URL without its query, which may be a secret: for logs, lists and errors.
pub fn redacted(url: &str) -> String {
    url.split(['?', '#']).next().unwrap_or_default().to_owned()
}

/// `text` after `prefix`, whatever the case.
fn strip<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let (start, rest) = text.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

/// `2130706433`, `0x7f.1`, `127.1` and the like mean an address to some resolvers only.
fn check_v4(address: Ipv4Addr, written: &str) -> Result<(), Error> {
    if address.to_string() == written { Ok(()) } else { Err(Error::AddressForm) }
}

fn check_v6(address: Ipv6Addr, written: &str) -> Result<(), Error> {
    let bare = written.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    // The `url` crate writes mapped addresses in hexadecimal digits, `Display` does not.
    let canonical = Host::<&str>::Ipv6(address).to_string();
    if bare.is_some() && canonical == written { Ok(()) } else { Err(Error::AddressForm) }
}

/// Checks a name, and returns it without its trailing dot when it has one.
fn check_name(name: &str) -> Result<Option<String>, Error> {
    let bare = name.strip_suffix('.').unwrap_or(name);
    if bare.len() > MAX_NAME_BYTES || !bare.split('.').all(is_label) {
        return Err(Error::Name);
    }
    let top = bare.rsplit('.').next().unwrap_or_default();
    if SPECIAL_USE.contains(&top) {
        return Err(Error::SpecialUse);
    }
    if !bare.contains('.') {
        return Err(Error::Name);
    }
    Ok((bare.len() != name.len()).then(|| bare.to_owned()))
}

fn is_label(label: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=MAX_LABEL_BYTES).contains(&label.len())
        && label.bytes().all(known)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HTTPS: Rules = Rules { allow_http: false };
    const HTTP: Rules = Rules { allow_http: true };

    #[test]
    fn good_urls_become_canonical() {
        for (text, canonical) in [
            ("https://hooks.company.com", "https://hooks.company.com/"),
            ("HTTPS://Hooks.Company.COM/a?b=C", "https://hooks.company.com/a?b=C"),
            ("https://hooks.company.com.:443/", "https://hooks.company.com/"),
            ("https://hooks.company.com.:8443/a/../b", "https://hooks.company.com:8443/b"),
            ("https://a_b.company.com:1024/", "https://a_b.company.com:1024/"),
            ("https://bücher.de/", "https://xn--bcher-kva.de/"),
            ("https://198.51.100.7:65535/", "https://198.51.100.7:65535/"),
            ("https://[2001:db8::7]/", "https://[2001:db8::7]/"),
            ("https://example.com/", "https://example.com/"),
            ("https://hooks.company.com/?at=@:/", "https://hooks.company.com/?at=@:/"),
        ] {
            assert_eq!(HTTPS.canonical(text).as_deref(), Ok(canonical), "{text}");
            assert_eq!(HTTPS.canonical(canonical).as_deref(), Ok(canonical), "{text}");
        }
        assert_eq!(HTTP.canonical("http://a.co:80/").as_deref(), Ok("http://a.co/"));
        assert_eq!(
            HTTP.canonical("http://127.0.0.1:8080").as_deref(),
            Ok("http://127.0.0.1:8080/")
        );
    }

    #[test]
    fn bad_urls_are_refused_with_the_rule_that_they_break() {
        for (text, error) in [
            ("http://company.com/", Error::HttpsRequired),
            ("", Error::HttpsRequired),
            ("https:/company.com/", Error::HttpsRequired),
            ("https:company.com", Error::HttpsRequired),
            ("//company.com/", Error::HttpsRequired),
            ("ftp://company.com/", Error::HttpsRequired),
            ("https:///company.com/", Error::Name),
            ("https://", Error::Name),
            ("https:// company.com/", Error::ForbiddenCharacter),
            ("https://company.com/\t", Error::ForbiddenCharacter),
            ("https://company.com/\u{7f}", Error::ForbiddenCharacter),
            ("https:\\\\company.com/", Error::ForbiddenCharacter),
            ("https://company.com\\@evil.com/", Error::ForbiddenCharacter),
            ("https://user@company.com/", Error::UserInfo),
            ("https://user:password@company.com/", Error::UserInfo),
            ("https://@company.com/", Error::UserInfo),
            ("https://company.com/#top", Error::Fragment),
            ("https://company.com#@evil.com", Error::Fragment),
            ("https://company.com:0/", Error::Port),
            ("https://company.com:22/", Error::Port),
            ("https://company.com:80/", Error::Port),
            ("https://company.com:1023/", Error::Port),
            ("https://company.com:65536/", Error::Port),
            ("https://2130706433/", Error::AddressForm),
            ("https://127.1/", Error::AddressForm),
            ("https://0x7f.0.0.1/", Error::AddressForm),
            ("https://0177.0.0.1/", Error::AddressForm),
            ("https://127.0.0.1./", Error::AddressForm),
            ("https://１２７.0.0.1/", Error::AddressForm),
            ("https://127。0。0。1/", Error::AddressForm),
            ("https://300.1.1.1/", Error::AddressForm),
            ("https://[2001:0db8::7]/", Error::AddressForm),
            ("https://[::ffff:127.0.0.1]/", Error::AddressForm),
            ("https://[::1%25eth0]/", Error::Name),
            ("https://%6cocalhost.company.com/", Error::Name),
            ("https://company/", Error::Name),
            ("https://-a.company.com/", Error::Name),
            ("https://a-.company.com/", Error::Name),
            ("https://a..company.com/", Error::Name),
            ("https://company.com../", Error::Name),
            ("https://a!b.company.com/", Error::Name),
            ("https://localhost/", Error::SpecialUse),
            ("https://localhost.:8443/", Error::SpecialUse),
            ("https://printer.LOCAL/", Error::SpecialUse),
            ("https://metadata.google.internal/", Error::SpecialUse),
            ("https://a.home.arpa/", Error::SpecialUse),
        ] {
            assert_eq!(HTTPS.canonical(text), Err(error), "{text}");
        }
        assert_eq!(HTTP.canonical("ftp://company.com/"), Err(Error::SchemeRequired));
        assert_eq!(HTTP.canonical("http://company.com:81/"), Err(Error::Port));
        for top in SPECIAL_USE {
            assert_eq!(HTTPS.canonical(&format!("https://a.{top}/")), Err(Error::SpecialUse));
        }
    }

    #[test]
    fn the_limits_of_length_hold_on_both_sides() {
        let url = |path: usize| format!("https://a.co/{}", "x".repeat(path));
        assert!(HTTPS.canonical(&url(MAX_URL_BYTES - 13)).is_ok());
        assert_eq!(HTTPS.canonical(&url(MAX_URL_BYTES - 12)), Err(Error::TooLong));
        let grows = format!("https://a.co/{}", "é".repeat(1_000));
        assert_eq!(HTTPS.canonical(&grows), Err(Error::TooLong));
        let name = |labels: usize, last: usize| {
            format!("https://{}{}.co/", "a.".repeat(labels), "b".repeat(last))
        };
        assert!(HTTPS.canonical(&name(0, 63)).is_ok());
        assert_eq!(HTTPS.canonical(&name(0, 64)), Err(Error::Name));
        assert!(HTTPS.canonical(&name(100, 50)).is_ok());
        assert_eq!(HTTPS.canonical(&name(100, 51)), Err(Error::Name));
    }

    #[test]
    fn messages_never_repeat_the_url() {
        for text in ["https://company.com:22/?secret=1", "https://u:secret@a.co/", "secret"] {
            let message = HTTPS.canonical(text).expect_err("refused").to_string();
            assert!(message.starts_with("must ") && !message.contains("secret"), "{message}");
        }
    }

    #[test]
    fn a_redacted_url_has_no_query() {
        assert_eq!(redacted("https://a.co/b?token=1"), "https://a.co/b");
        assert_eq!(redacted("https://a.co/b"), "https://a.co/b");
    }

    proptest! {
        #[test]
        fn canonical_text_is_canonical(text in r"https?://[a-zA-Z0-9._:\[\]-]{1,30}(/[ -~é]{0,40})?") {
            if let Ok(canonical) = HTTP.canonical(&text) {
                prop_assert_eq!(HTTP.canonical(&canonical), Ok(canonical.clone()));
                let uri: http::Uri = canonical.parse().expect("hyper must take it");
                let parsed = Url::parse(&canonical).expect("canonical");
                prop_assert_eq!(uri.host(), parsed.host_str());
                prop_assert_eq!(uri.port_u16(), parsed.port());
            }
        }
    }
}
