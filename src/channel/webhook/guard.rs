//! The address guard: which IP addresses a delivery may connect to.
//!
//! Guarantees: only globally reachable unicast addresses are allowed, unless an operator opened a
//! range; cloud metadata addresses open only when they are named one by one; an IPv6 address that
//! carries an IPv4 address (mapped, compatible, NAT64, 6to4) is allowed only if both are.
//!
//! The judgement is `domain::address`, so that a URL with a refused address is refused when it is
//! stored, too. What it must say of each range stands here, where connections are made.

pub(super) use crate::domain::address::Guard;
pub use crate::domain::address::{Cidr, InvalidCidr};

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::domain::address::METADATA;

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
        let named = [
            "169.254.169.254",
            "168.63.129.16/32",
            "100.100.100.200",
            "192.0.0.192",
            "169.254.170.2",
            "169.254.170.23",
            "169.254.169.253",
            "fd00:ec2::254/128",
            "fd00:ec2::23",
            "fd00:ec2::253",
            "fd20:ce::254",
            "fd00:c1::a9fe:a9fe",
        ];
        let none = guard(&[], &[]);
        let wide = guard(&["0.0.0.0/0", "::/0", "169.254.169.254/31"], &[]);
        let exact = guard(&named, &[]);
        for text in named {
            let address = ip(text.split('/').next().expect("an address"));
            assert!(METADATA.contains(&address), "{address}");
            assert!(!none.allows(address) && !wide.allows(address), "{address}");
            assert!(exact.allows(address), "{address}");
        }
        assert_eq!(named.len(), METADATA.len());
        assert!(wide.allows(ip("169.254.169.252")) && wide.allows(ip("::1")));
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
