//! Which URLs an endpoint may have.
//!
//! Guarantees: what [`Rules::canonical`] returns is the `url` crate's own canonical text, has a
//! host that is a public-looking name or a plainly written IP address, and comes back unchanged
//! when it is judged again. The rules hold when a URL is stored, and again at each delivery. What
//! [`Admission::canonical`] returns has, besides, no address that no delivery would connect to.
//!
//! Does not guarantee that a name leads to an address to connect to: that is judged when it is
//! known, by the address guard of the webhook channel.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use url::{Host, Url};

use super::address::Guard;

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
    /// An IP address that no delivery would connect to. The same words for every such address:
    /// they must not tell what is open inside the operator's network.
    #[error(
        "must not have an IP address that webhooks may not be sent to: private, reserved and \
         otherwise closed addresses are refused; use the endpoint's public name or address"
    )]
    Address,
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

/// Judges the URLs that are about to be stored.
///
/// Stricter than [`Rules`]: an address in the URL is held against the ranges that deliveries are
/// held against, so that who stores it learns at once what every attempt would end with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admission {
    rules: Rules,
    guard: Guard,
    kept: Option<String>,
}

impl Admission {
    /// Admits what `rules` make canonical, unless it has an address that `guard` refuses.
    pub fn new(rules: Rules, guard: Guard) -> Self {
        Self { rules, guard, kept: None }
    }

    /// The same for a change of what has the URL `stored`: that one may stay as it is. The
    /// configuration may have changed since, and other fields must not be refused because of it.
    #[must_use]
    pub fn keeping(&self, stored: &str) -> Self {
        Self { kept: Some(stored.to_owned()), ..self.clone() }
    }

    /// Whether `url` is the stored one that may stay; empty means none.
    pub fn keeps(&self, url: &str) -> bool {
        self.kept.as_deref() == Some(url)
    }

    /// The canonical form of `text`, to be stored.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn canonical(&self, text: &str) -> Result<String, Error> {
        if self.keeps(text) {
            return Ok(text.to_owned());
        }
        let canonical = self.rules.canonical(text)?;
        let address = Url::parse(&canonical).ok().and_then(|url| match url.host()? {
            Host::Ipv4(address) => Some(IpAddr::V4(address)),
            Host::Ipv6(address) => Some(IpAddr::V6(address)),
            Host::Domain(_) => None,
        });
        if address.is_some_and(|address| !self.guard.allows(address)) {
            return Err(Error::Address);
        }
        Ok(canonical)
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
        let shrinks = format!("https://a.co/{}", "x/../".repeat(MAX_URL_BYTES / 5));
        assert_eq!(HTTPS.canonical(&shrinks), Err(Error::TooLong));
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
    fn an_address_that_no_delivery_would_reach_is_not_stored() {
        let ranges = |texts: &[&str]| texts.iter().map(|t| t.parse().expect("range")).collect();
        let closed = Admission::new(HTTPS, Guard::default());
        let opened =
            Admission::new(HTTP, Guard::new(ranges(&["10.0.0.0/8"]), ranges(&["1.1.1.1"])));
        let refused = ["https://10.0.0.1/", "https://169.254.169.254/a", "https://[::1]:8443/"];
        for text in refused {
            assert_eq!(closed.canonical(text), Err(Error::Address), "{text}");
        }
        for text in ["https://1.1.1.1/", "https://[2606:4700:4700::1111]/", "https://a.co/"] {
            assert_eq!(closed.canonical(text).as_deref(), Ok(text));
        }
        // The operator's ranges count, and the rules of form still hold.
        assert_eq!(opened.canonical("http://10.0.0.1").as_deref(), Ok("http://10.0.0.1/"));
        assert_eq!(opened.canonical("https://1.1.1.1/"), Err(Error::Address));
        assert_eq!(opened.canonical("https://2130706433/"), Err(Error::AddressForm));
        assert!(!Error::Address.to_string().contains(|c: char| c.is_ascii_digit()));
    }

    #[test]
    fn a_stored_url_may_stay_but_not_return() {
        let closed = Admission::new(HTTPS, Guard::default());
        let kept = closed.keeping("https://10.0.0.1/");
        assert_eq!(kept.canonical("https://10.0.0.1/").as_deref(), Ok("https://10.0.0.1/"));
        assert_eq!(kept.canonical("https://10.0.0.2/"), Err(Error::Address));
    }

    #[test]
    fn a_redacted_url_has_no_query() {
        assert_eq!(redacted("https://a.co/b?token=1"), "https://a.co/b");
        assert_eq!(redacted("https://a.co/b"), "https://a.co/b");
    }

    /// Whatever `text` is: it is refused, or its canonical form is a fixed point that the HTTP
    /// client reads exactly as the rules did.
    fn holds(rules: Rules, text: &str) -> Result<(), TestCaseError> {
        let Ok(canonical) = rules.canonical(text) else { return Ok(()) };
        prop_assert_eq!(rules.canonical(&canonical), Ok(canonical.clone()));
        prop_assert!(canonical.len() <= MAX_URL_BYTES);
        prop_assert!(canonical.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\'));
        let url = Url::parse(&canonical).expect("canonical");
        prop_assert_eq!(url.as_str(), &canonical);
        prop_assert!(url.username().is_empty() && url.password().is_none());
        prop_assert_eq!(url.fragment(), None);
        prop_assert!(matches!(url.port(), None | Some(443 | 1_024..)));
        if let Some(Host::Domain(name)) = url.host() {
            prop_assert!(name.len() <= MAX_NAME_BYTES && name.contains('.'));
            prop_assert!(!name.ends_with('.') && name.parse::<std::net::IpAddr>().is_err());
        }
        let uri: http::Uri = canonical.parse().expect("what is stored can be sent");
        prop_assert_eq!(uri.scheme_str(), Some(url.scheme()));
        prop_assert_eq!(uri.host(), url.host_str());
        prop_assert_eq!(uri.port_u16(), url.port());
        prop_assert_eq!((uri.path(), uri.query()), (url.path(), url.query()));
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        #[test]
        fn any_text_is_refused_or_made_canonical(text: String, bytes: Vec<u8>) {
            for rules in [HTTPS, HTTP] {
                holds(rules, &text)?;
                holds(rules, &String::from_utf8_lossy(&bytes))?;
                holds(rules, &format!("https://{text}"))?;
                holds(rules, &format!("https://a.co/{text}"))?;
                holds(rules, &format!("https://a.co?{text}"))?;
            }
        }

        #[test]
        fn what_looks_like_a_url_is_refused_or_made_canonical(
            text in r"https?:/{0,3}[a-zA-Z0-9._:@%\[\]é。-]{0,30}([/?#]?[!-~é]{0,40}){0,2}",
        ) {
            holds(HTTP, &text)?;
            holds(HTTPS, &text)?;
        }

        #[test]
        fn a_good_url_is_accepted(
            // No label begins with the prefix of Punycode.
            name in r"([a-wyzA-WYZ0-9_]([a-zA-Z0-9_-]{0,10}[a-zA-Z0-9_])?\.){1,5}co",
            port in prop_oneof![Just(443), 1_024_u16..],
            path in r"(/[a-zA-Z0-9._~%!$&'()*+,;=:@-]{0,20}){0,3}",
            query in r"(\?[a-zA-Z0-9._~!$&'()*+,;=:@/?-]{0,20})?",
        ) {
            let text = format!("https://{name}:{port}{path}{query}");
            prop_assert!(HTTPS.canonical(&text).is_ok(), "{text}");
            holds(HTTPS, &text)?;
        }

        #[test]
        fn every_special_use_name_is_refused(
            labels in r"([a-wyzA-WYZ0-9_]([a-zA-Z0-9_-]{0,10}[a-zA-Z0-9_])?\.){0,3}",
            top in prop::sample::select(&SPECIAL_USE[..]),
            upper: bool,
            dot in "\\.?",
        ) {
            let top = if upper { top.to_uppercase() } else { top.to_owned() };
            let text = format!("https://{labels}{top}{dot}/");
            prop_assert_eq!(HTTPS.canonical(&text), Err(Error::SpecialUse), "{}", text);
        }

        #[test]
        fn an_address_is_accepted_in_its_plain_form_alone(bits: u32) {
            let [a, b, c, d] = bits.to_be_bytes();
            let plain = format!("https://{}/", Ipv4Addr::from_bits(bits));
            prop_assert_eq!(HTTPS.canonical(&plain), Ok(plain.clone()));
            for host in [
                format!("{bits}"),
                format!("{bits:#x}"),
                format!("0{bits:o}"),
                format!("{a}.{}", bits & 0x00ff_ffff),
                format!("{a}.{b}.{}", bits & 0xffff),
                format!("{a:#x}.{b}.{c}.{d}"),
                format!("{a}.{b}.{c}.{d:#04X}"),
                format!("0{a:o}.{b}.{c}.{d}"),
                format!("{a}.{b}.{c}.{d}."),
                format!("[::ffff:{a}.{b}.{c}.{d}]"),
            ] {
                let text = format!("https://{host}/");
                prop_assert_eq!(HTTPS.canonical(&text), Err(Error::AddressForm), "{}", text);
            }
        }

        #[test]
        fn an_ipv6_address_is_accepted_in_its_plain_form_alone(bits: u128) {
            let address = Ipv6Addr::from_bits(bits);
            let plain = format!("https://{}/", Host::<&str>::Ipv6(address));
            prop_assert_eq!(HTTPS.canonical(&plain), Ok(plain.clone()));
            let long = address.segments().map(|segment| format!("{segment:04X}")).join(":");
            prop_assert_eq!(HTTPS.canonical(&format!("https://[{long}]/")), Err(Error::AddressForm));
        }

        #[test]
        fn what_must_not_stand_in_a_url_is_refused_wherever_it_stands(
            byte in prop_oneof![0_u8..=0x20, Just(0x7f), Just(b'\\')],
            at in 0_usize..=27,
        ) {
            let mut text = "https://hooks.company.com/a".to_owned();
            text.insert(at, char::from(byte));
            prop_assert_eq!(HTTPS.canonical(&text), Err(Error::ForbiddenCharacter));
        }

        #[test]
        fn users_fragments_and_privileged_ports_are_refused(
            user in "[!-\"$-.0-;=A-Z^-~]{0,10}",
            fragment in "[ -~]{0,10}",
            port in (0_u16..1_024).prop_filter("the port of https", |port| *port != 443),
        ) {
            let user = HTTPS.canonical(&format!("https://{user}@company.com/"));
            prop_assert_eq!(user, Err(Error::UserInfo));
            let fragment = fragment.replace([' ', '\\'], "");
            let fragment = HTTPS.canonical(&format!("https://company.com/#{fragment}"));
            prop_assert_eq!(fragment, Err(Error::Fragment));
            let port = HTTPS.canonical(&format!("https://company.com:{port}/"));
            prop_assert_eq!(port, Err(Error::Port));
        }
    }
}
