//! Whatever text a customer gives as a URL: it is refused, or its canonical form is a fixed point
//! that the HTTP client reads exactly as the rules did.

#![no_main]

use http::Uri;
use libfuzzer_sys::fuzz_target;
use tidings::domain::endpoint::{MAX_NAME_BYTES, MAX_URL_BYTES, Rules, redacted};
use url::{Host, Url};

fuzz_target!(|text: &str| {
    for allow_http in [false, true] {
        check(Rules { allow_http }, text);
    }
});

fn check(rules: Rules, text: &str) {
    let canonical = match rules.canonical(text) {
        Ok(canonical) => canonical,
        Err(error) => {
            assert!(error.to_string().starts_with("must "));
            return;
        }
    };
    assert_eq!(rules.canonical(&canonical).as_deref(), Ok(canonical.as_str()));
    assert!(canonical.len() <= MAX_URL_BYTES && canonical.bytes().all(|byte| byte.is_ascii_graphic()));
    assert!(!canonical.contains(['\\', '#']) && !redacted(&canonical).contains('?'));

    let url = Url::parse(&canonical).expect("canonical");
    assert_eq!(url.as_str(), canonical);
    assert!(url.scheme() == "https" || (rules.allow_http && url.scheme() == "http"));
    assert!(url.username().is_empty() && url.password().is_none());
    assert!(matches!(url.port(), None | Some(443 | 1_024..)));
    if let Some(Host::Domain(name)) = url.host() {
        assert!(name.len() <= MAX_NAME_BYTES && name.contains('.') && !name.ends_with('.'));
        assert!(name.parse::<std::net::IpAddr>().is_err());
    }

    let uri: Uri = canonical.parse().expect("what is stored can be sent");
    assert_eq!(uri.scheme_str(), Some(url.scheme()));
    assert_eq!(uri.host(), url.host_str());
    assert_eq!(uri.port_u16(), url.port());
    assert_eq!((uri.path(), uri.query()), (url.path(), url.query()));
}
