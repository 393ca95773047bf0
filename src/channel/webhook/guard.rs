//! The address guard: which IP addresses a delivery may connect to.
//!
//! Guarantees: only globally reachable unicast addresses are allowed, unless an operator opened a
//! range; cloud metadata addresses open only when they are named one by one; an IPv6 address that
//! carries an IPv4 address (mapped, compatible, NAT64, 6to4) is allowed only if both are.
//!
//! Sources: the IANA special-purpose address registries (RFC 6890 and its successors), and the
//! metadata addresses of the large clouds.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// IPv4 ranges that are refused.
const REFUSED_V4: [Cidr; 19] = [
    v4(0, 0, 0, 0, 8),
    v4(10, 0, 0, 0, 8),
    v4(100, 64, 0, 0, 10),
    v4(127, 0, 0, 0, 8),
    v4(168, 63, 129, 16, 32),
    v4(169, 254, 0, 0, 16),
    v4(172, 16, 0, 0, 12),
    v4(192, 0, 0, 0, 24),
    v4(192, 0, 2, 0, 24),
    v4(192, 31, 196, 0, 24),
    v4(192, 52, 193, 0, 24),
    v4(192, 88, 99, 0, 24),
    v4(192, 168, 0, 0, 16),
    v4(192, 175, 48, 0, 24),
    v4(198, 18, 0, 0, 15),
    v4(198, 51, 100, 0, 24),
    v4(203, 0, 113, 0, 24),
    v4(224, 0, 0, 0, 4),
    v4(240, 0, 0, 0, 4),
];
/// The only IPv6 range that is allowed: global unicast.
const GLOBAL_V6: Cidr = v6([0x2000, 0, 0, 0], 3);
/// What is refused within it: protocol assignments, documentation, 6to4, and AS112.
const REFUSED_V6: [Cidr; 5] = [
    v6([0x2001, 0, 0, 0], 23),
    v6([0x2001, 0xdb8, 0, 0], 32),
    v6([0x2002, 0, 0, 0], 16),
    v6([0x3fff, 0, 0, 0], 20),
    v6([0x2620, 0x4f, 0x8000, 0], 48),
];
/// Where clouds hand out credentials: AWS and most others, Azure, Alibaba, AWS over IPv6.
const METADATA: [IpAddr; 4] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];
/// NAT64's well-known prefix (RFC 6052).
const NAT64: Cidr = v6([0x64, 0xff9b, 0, 0], 96);
/// IPv4-compatible (RFC 4291, section 2.5.5.1, deprecated).
const COMPATIBLE: Cidr = v6([0, 0, 0, 0], 96);
/// 6to4 (RFC 3056).
const SIX_TO_FOUR: Cidr = v6([0x2002, 0, 0, 0], 16);

/// A range of addresses, for example `127.0.0.0/8`; a bare address is a range of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cidr {
    network: IpAddr,
    prefix: u8,
}

/// The text is not a range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be a range of IP addresses with no bits after the prefix, for example 127.0.0.0/8 or \
     fd00::/8, or one address"
)]
pub struct InvalidCidr;

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Cidr {
    Cidr { network: IpAddr::V4(Ipv4Addr::new(a, b, c, d)), prefix }
}

const fn v6(s: [u16; 4], prefix: u8) -> Cidr {
    let network = Ipv6Addr::new(s[0], s[1], s[2], s[3], 0, 0, 0, 0);
    Cidr { network: IpAddr::V6(network), prefix }
}

impl Cidr {
    /// Whether `address` is in the range. Families never mix.
    pub fn contains(&self, address: IpAddr) -> bool {
        let (network, width) = bits(self.network);
        let (address, other) = bits(address);
        let rest = u32::from(width - self.prefix);
        width == other && (network ^ address).checked_shr(rest).unwrap_or(0) == 0
    }

    /// Whether the range is one address.
    fn is_single(&self) -> bool {
        self.prefix == bits(self.network).1
    }
}

/// The address as a number, and how many bits it has.
fn bits(address: IpAddr) -> (u128, u8) {
    match address {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()), 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    }
}

impl FromStr for Cidr {
    type Err = InvalidCidr;

    fn from_str(text: &str) -> Result<Self, InvalidCidr> {
        let (address, prefix) = text.split_once('/').map_or((text, None), |(a, p)| (a, Some(p)));
        let network: IpAddr = address.parse().map_err(|_| InvalidCidr)?;
        let (value, width) = bits(network);
        let prefix = match prefix {
            None => width,
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                digits.parse().ok().filter(|prefix| *prefix <= width).ok_or(InvalidCidr)?
            }
            Some(_) => return Err(InvalidCidr),
        };
        if value.trailing_zeros() < u32::from(width - prefix) {
            return Err(InvalidCidr);
        }
        Ok(Self { network, prefix })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

/// Judges addresses.
#[derive(Clone, Debug, Default)]
pub(super) struct Guard {
    allow: Vec<Cidr>,
    deny: Vec<Cidr>,
}

impl Guard {
    pub(super) fn new(allow: Vec<Cidr>, deny: Vec<Cidr>) -> Self {
        Self { allow, deny }
    }

    /// Whether a delivery may connect to `address`.
    pub(super) fn allows(&self, address: IpAddr) -> bool {
        let inner = match address {
            IpAddr::V6(v6) => embedded(v6),
            IpAddr::V4(_) => None,
        };
        self.allows_alone(address)
            && inner.is_none_or(|address| self.allows_alone(IpAddr::V4(address)))
    }

    fn allows_alone(&self, address: IpAddr) -> bool {
        let metadata = METADATA.contains(&address);
        let opened = |range: &Cidr| range.contains(address) && (!metadata || range.is_single());
        !self.deny.iter().any(|range| range.contains(address))
            && (is_public(address) || self.allow.iter().any(opened))
    }
}

/// Whether the address is one of the public internet.
fn is_public(address: IpAddr) -> bool {
    let within = |ranges: &[Cidr]| ranges.iter().any(|range| range.contains(address));
    match address {
        IpAddr::V4(_) => !within(&REFUSED_V4),
        IpAddr::V6(_) => GLOBAL_V6.contains(address) && !within(&REFUSED_V6),
    }
}

/// The IPv4 address to which an IPv6 address leads in the end.
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [_, high, low, _, _, _, last_high, last_low] = address.segments();
    let join = |high: u16, low: u16| Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    let ip = IpAddr::V6(address);
    if SIX_TO_FOUR.contains(ip) {
        return Some(join(high, low));
    }
    let translated = NAT64.contains(ip)
        || address.to_ipv4_mapped().is_some()
        // Loopback and unspecified lie in the compatible range, but carry no address.
        || (COMPATIBLE.contains(ip) && !address.is_loopback() && !address.is_unspecified());
    translated.then(|| join(last_high, last_low))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("address")
    }

    fn guard(allow: &[&str], deny: &[&str]) -> Guard {
        let ranges = |texts: &[&str]| texts.iter().map(|t| t.parse().expect("range")).collect();
        Guard::new(ranges(allow), ranges(deny))
    }

    /// Of each range in `design/outbound.md`: the address before it, its first, its last, the
    /// address after it. An empty neighbour lies in another refused range or does not exist.
    const RANGES: [[&str; 4]; 25] = [
        ["", "0.0.0.0", "0.255.255.255", "1.0.0.0"],
        ["9.255.255.255", "10.0.0.0", "10.255.255.255", "11.0.0.0"],
        ["100.63.255.255", "100.64.0.0", "100.127.255.255", "100.128.0.0"],
        ["126.255.255.255", "127.0.0.0", "127.255.255.255", "128.0.0.0"],
        ["168.63.129.15", "168.63.129.16", "168.63.129.16", "168.63.129.17"],
        ["169.253.255.255", "169.254.0.0", "169.254.255.255", "169.255.0.0"],
        ["172.15.255.255", "172.16.0.0", "172.31.255.255", "172.32.0.0"],
        ["191.255.255.255", "192.0.0.0", "192.0.0.255", "192.0.1.0"],
        ["192.0.1.255", "192.0.2.0", "192.0.2.255", "192.0.3.0"],
        ["192.31.195.255", "192.31.196.0", "192.31.196.255", "192.31.197.0"],
        ["192.52.192.255", "192.52.193.0", "192.52.193.255", "192.52.194.0"],
        ["192.88.98.255", "192.88.99.0", "192.88.99.255", "192.88.100.0"],
        ["192.167.255.255", "192.168.0.0", "192.168.255.255", "192.169.0.0"],
        ["192.175.47.255", "192.175.48.0", "192.175.48.255", "192.175.49.0"],
        ["198.17.255.255", "198.18.0.0", "198.19.255.255", "198.20.0.0"],
        ["198.51.99.255", "198.51.100.0", "198.51.100.255", "198.51.101.0"],
        ["203.0.112.255", "203.0.113.0", "203.0.113.255", "203.0.114.0"],
        ["223.255.255.255", "224.0.0.0", "239.255.255.255", ""],
        ["", "240.0.0.0", "255.255.255.255", ""],
        ["", "::", "1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2000::"],
        [
            "2000:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            "2001::",
            "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff",
            "2001:200::",
        ],
        [
            "2001:db7:ffff:ffff:ffff:ffff:ffff:ffff",
            "2001:db8::",
            "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff",
            "2001:db9::",
        ],
        [
            "2001:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            "2002::",
            "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            "2003::",
        ],
        [
            "2620:4f:7fff:ffff:ffff:ffff:ffff:ffff",
            "2620:4f:8000::",
            "2620:4f:8000:ffff:ffff:ffff:ffff:ffff",
            "2620:4f:8001::",
        ],
        [
            "3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            "3fff::",
            "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff",
            "3fff:1000::",
        ],
    ];

    #[test]
    fn every_refused_range_is_refused_from_edge_to_edge() {
        let guard = Guard::default();
        for [before, first, last, after] in RANGES {
            for refused in [first, last] {
                assert!(!guard.allows(ip(refused)), "{refused}");
            }
            for allowed in [before, after].into_iter().filter(|text| !text.is_empty()) {
                assert!(guard.allows(ip(allowed)), "{allowed}");
            }
        }
        assert!(guard.allows(ip("3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")));
    }

    #[test]
    fn every_disguise_of_a_private_address_is_refused() {
        for text in [
            "::1",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::7f00:1",
            "2002:7f00:1::",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "4000::",
            "100::1",
            "5f00::1",
            "255.255.255.255",
            "169.254.169.254",
            "100.100.100.200",
        ] {
            assert!(!Guard::default().allows(ip(text)), "{text}");
        }
        for text in ["1.1.1.1", "8.8.8.8", "2606:4700:4700::1111", "2a00:1450::1"] {
            assert!(Guard::default().allows(ip(text)), "{text}");
        }
    }

    #[test]
    fn an_operator_opens_and_closes_ranges() {
        let guard = guard(&["127.0.0.0/8", "fd00::/8"], &["127.0.0.2", "1.1.1.0/24"]);
        assert!(guard.allows(ip("127.0.0.1")) && guard.allows(ip("fd12::1")));
        assert!(!guard.allows(ip("127.0.0.2")), "deny wins");
        assert!(!guard.allows(ip("1.1.1.1")) && guard.allows(ip("1.1.2.1")));
        assert!(!guard.allows(ip("10.0.0.1")) && !guard.allows(ip("::ffff:127.0.0.1")));
    }

    #[test]
    fn metadata_addresses_open_only_when_named_exactly() {
        let wide = guard(&["0.0.0.0/0", "::/0", "169.254.169.254/31"], &[]);
        let exact = guard(
            &["169.254.169.254", "168.63.129.16/32", "100.100.100.200", "fd00:ec2::254/128"],
            &[],
        );
        for address in METADATA {
            assert!(!wide.allows(address), "{address}");
            assert!(exact.allows(address), "{address}");
        }
        assert!(wide.allows(ip("169.254.169.253")) && wide.allows(ip("::1")));
        for disguise in ["::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1"] {
            assert!(!wide.allows(ip(disguise)), "{disguise}");
        }
    }

    #[test]
    fn nat64_can_be_opened_without_opening_what_lies_behind() {
        let guard = guard(&["64:ff9b::/96"], &[]);
        assert!(guard.allows(ip("64:ff9b::101:101")));
        assert!(!guard.allows(ip("64:ff9b::a00:1")));
    }

    #[test]
    fn ranges_are_read_and_written() {
        for text in ["127.0.0.0/8", "0.0.0.0/0", "::/0", "fd00::/8", "10.1.2.3/32", "::1/128"] {
            assert_eq!(text.parse::<Cidr>().map(|range| range.to_string()), Ok(text.to_owned()));
        }
        assert_eq!("10.1.2.3".parse::<Cidr>().expect("range").to_string(), "10.1.2.3/32");
        for text in [
            "",
            "/8",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.1/8",
            "::/129",
            "10.0.0.0/+8",
            "10.0.0.0/-1",
            "localhost",
            "10.0.0/8",
            "::1/127",
            "1.1.1.1/8/8",
        ] {
            assert_eq!(text.parse::<Cidr>(), Err(InvalidCidr), "{text}");
        }
    }
}
