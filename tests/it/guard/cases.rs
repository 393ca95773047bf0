//! The cases of the guard, and what each must come to.

use std::net::IpAddr;
use std::time::Duration;

use tidings::api::proto::ErrorKind;

use super::{LONG, Seen};
use crate::support::dns::{Answer, NXDOMAIN, REFUSED, SERVFAIL};

const DELIVERED: ErrorKind = ErrorKind::Unspecified;

/// Where a subscription's URL leads.
pub(super) enum Target {
    /// To a name of the case's own, of which the name server says this.
    Name(Answer),
    /// To this URL, which is written into the database past the API.
    Planted(&'static str),
}

pub(super) struct Case {
    number: usize,
    pub(super) label: String,
    pub(super) target: Target,
    path: String,
    pub(super) timeout: Duration,
    /// How many events are emitted, one after the other.
    pub(super) deliveries: usize,
    expected: ErrorKind,
    /// Connections to receivers that may be called.
    connections: usize,
}

impl Case {
    fn new(label: impl Into<String>, answer: Answer, expected: ErrorKind) -> Self {
        Self {
            number: 0,
            label: label.into(),
            target: Target::Name(answer),
            path: String::new(),
            timeout: LONG,
            deliveries: 1,
            expected,
            connections: usize::from(expected == DELIVERED),
        }
    }

    fn planted(url: &'static str, expected: ErrorKind) -> Self {
        let unused = Answer::Code(NXDOMAIN);
        let case = Self::new(format!("in the database: {url}"), unused, expected);
        Self { target: Target::Planted(url), ..case }
    }

    pub(super) fn event_type(&self) -> String {
        format!("case.n{}", self.number)
    }

    pub(super) fn host(&self) -> String {
        match self.label.as_str() {
            "a name that exists in the search domain alone" => "searched.company.com".into(),
            _ => format!("n{}.company.com", self.number),
        }
    }

    /// The URL as it is given to the API.
    pub(super) fn stored_url(&self) -> String {
        format!("https://{}/{}", self.host(), self.path)
    }

    /// What the name server knows.
    pub(super) fn record(&self) -> Option<(String, Answer)> {
        match &self.target {
            Target::Name(answer) => Some((self.host(), answer.clone())),
            Target::Planted(_) => None,
        }
    }

    pub(super) fn check(&self, seen: &Seen) {
        let attempt = &seen.attempt;
        assert_eq!(attempt.error_kind(), self.expected, "{}: {attempt:?}", self.label);
        assert_eq!(seen.connections, (self.connections, 0), "{}", self.label);
    }
}

/// Addresses of the public internet.
const ALLOWED: [&str; 4] = [
    "93.184.215.14",
    "2606:4700:4700::1111",
    "93.184.215.14 2a00:1450::1",
    "93.184.215.14 93.184.215.15",
];

/// Addresses, alone or together, that refuse the name that leads to them.
const FORBIDDEN: [&str; 54] = [
    "0.0.0.0",
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.0.0.53",
    "168.63.129.16",
    "169.254.0.1",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.2.1",
    "192.31.196.1",
    "192.52.193.1",
    "192.88.99.1",
    "192.168.0.1",
    "192.175.48.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "fc00::1",
    "fd00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fec0::1",
    "ff02::1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "3fff::1",
    "2620:4f:8000::1",
    "5f00::1",
    "4000::1",
    // Addresses of version 4 within those of version 6: mapped, compatible, NAT64, 6to4.
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:93.184.215.14",
    "::127.0.0.1",
    "::93.184.215.14",
    "64:ff9b::a00:1",
    "64:ff9b::5db8:d70e",
    "64:ff9b:1::a00:1",
    "2002:a00:1::1",
    "2002:5db8:d70e::1",
    // Public and private ones together, in whichever order.
    "93.184.215.14 10.0.0.1",
    "10.0.0.1 93.184.215.14",
    "93.184.215.14 fd00::1",
    "2606:4700:4700::1111 127.0.0.1",
    // The last one lies behind those that would be tried.
    "93.184.215.14 93.184.215.15 93.184.215.16 93.184.215.17 93.184.215.18 93.184.215.19 \
     93.184.215.20 93.184.215.21 93.184.215.22 93.184.215.23 10.0.0.1",
];

/// URLs that the API would not store.
const PLANTED: [(&str, ErrorKind); 16] = [
    ("https://93.184.215.14/", DELIVERED),
    ("https://[2606:4700:4700::1111]/", DELIVERED),
    ("https://10.0.0.1/", ErrorKind::AddressRefused),
    ("https://127.0.0.1/", ErrorKind::AddressRefused),
    ("https://169.254.169.254/latest/meta-data/", ErrorKind::AddressRefused),
    ("https://[::1]/", ErrorKind::AddressRefused),
    ("https://[fd00:ec2::254]/", ErrorKind::AddressRefused),
    ("https://[::ffff:a00:1]/", ErrorKind::AddressRefused),
    ("https://[64:ff9b::a00:1]/", ErrorKind::AddressRefused),
    ("https://2130706433/", ErrorKind::UrlRefused),
    ("https://127.1/", ErrorKind::UrlRefused),
    ("https://0x7f.0.0.1/", ErrorKind::UrlRefused),
    ("https://localhost/", ErrorKind::UrlRefused),
    ("https://n1.company.com:22/", ErrorKind::UrlRefused),
    ("https://user@n1.company.com/", ErrorKind::UrlRefused),
    ("http://93.184.215.14/", ErrorKind::UrlRefused),
];

fn addresses(text: &str) -> Answer {
    let addresses = text.split_whitespace().map(|text| text.parse::<IpAddr>().expect("an address"));
    Answer::Addresses(addresses.collect())
}

pub(super) fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for (list, expected) in [(&ALLOWED[..], DELIVERED), (&FORBIDDEN, ErrorKind::AddressRefused)] {
        for text in list {
            let label = text.split_whitespace().collect::<Vec<_>>();
            let label = match label.len() {
                0..=2 => label.join(" + "),
                more => format!("{} + … + {} ({more})", label[0], label[more - 1]),
            };
            cases.push(Case::new(format!("a name for {label}"), addresses(text), expected));
        }
    }
    for (label, answer) in [
        ("SERVFAIL", Answer::Code(SERVFAIL)),
        ("NXDOMAIN", Answer::Code(NXDOMAIN)),
        ("REFUSED", Answer::Code(REFUSED)),
        ("no address", Answer::Addresses(Vec::new())),
        ("no answer", Answer::Silence),
    ] {
        cases.push(Case::new(format!("the name server says: {label}"), answer, ErrorKind::Dns));
    }
    cases.push(Case {
        timeout: Duration::from_millis(500),
        ..Case::new(
            "the name server is slower than the timeout",
            Answer::Silence,
            ErrorKind::Timeout,
        )
    });
    let searched = "a name that exists in the search domain alone";
    cases.push(Case::new(searched, Answer::Code(NXDOMAIN), ErrorKind::Dns));
    for status in [301, 302, 303, 307, 308] {
        for target in ["https://10.0.0.1/", "http://169.254.169.254/", "https://93.184.215.15/"] {
            let label = format!("redirect {status} to {target}");
            let case = Case::new(label, addresses("93.184.215.14"), ErrorKind::HttpStatus);
            cases.push(Case {
                path: format!("redirect/{status}/{target}"),
                connections: 1,
                ..case
            });
        }
    }
    let alternative = Case::new("Alt-Svc to 10.0.0.1", addresses("93.184.215.14"), DELIVERED);
    cases.push(Case { path: "alt-svc".into(), deliveries: 3, connections: 3, ..alternative });
    cases.extend(PLANTED.map(|(url, expected)| Case::planted(url, expected)));
    for (index, case) in cases.iter_mut().enumerate() {
        case.number = index + 1;
    }
    cases
}
