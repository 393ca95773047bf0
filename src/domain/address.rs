//! Which IP addresses an endpoint may have.
//!
//! Guarantees: only globally reachable unicast addresses are allowed, unless an operator opened a
//! range; cloud metadata addresses open only when they are named one by one; an IPv6 address that
//! carries an IPv4 address (mapped, compatible, NAT64, 6to4) is allowed only if both are.
//!
//! One judgement for two moments: when a URL with an address in it is stored, and when a delivery is
//! about to connect (the guard of the webhook channel, whose tests hold each range).
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
/// Where clouds hand out credentials, or answer for what does. None of them is public: the list says
/// what an operator opens only by naming it.
pub const METADATA: [IpAddr; 12] = [
    // AWS and most others.
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    // Azure's WireServer.
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    // Alibaba.
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    // Oracle, from within its classic network.
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    // AWS: credentials of tasks (ECS) and of pods (EKS), and its resolver.
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 23)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 253)),
    // AWS over IPv6: instances, pods, the resolver.
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x253)),
    // Google over IPv6.
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
    // Oracle over IPv6.
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe)),
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guard {
    allow: Vec<Cidr>,
    deny: Vec<Cidr>,
}

impl Guard {
    /// Opens what is in `allow` beside the public internet; what is in `deny` stays closed.
    pub fn new(allow: Vec<Cidr>, deny: Vec<Cidr>) -> Self {
        Self { allow, deny }
    }

    /// Whether an endpoint may have `address`.
    pub fn allows(&self, address: IpAddr) -> bool {
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
