//! Where messages go: the operator's relays, by URL.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use url::{Host, Url};

/// The port for submission (RFC 6409), with STARTTLS.
const SUBMISSION_PORT: u16 = 587;
/// The port for submission with TLS from the first byte (RFC 8314).
const SUBMISSIONS_PORT: u16 = 465;

/// Below this domain are SendGrid's relays.
const SENDGRID: &str = "sendgrid.net";

/// A relay, or a folder that messages are written to.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Server {
    url: Url,
    pub(super) target: Target,
}

/// What a server is.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// A relay that speaks SMTP.
    Relay(Address),
    /// A folder: for development.
    Folder(PathBuf),
}

/// How a relay is reached.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Address {
    /// A name, or an address without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) security: Security,
    pub(super) credentials: Option<(String, String)>,
    /// Whether it is SendGrid's, which has arguments of a message in a header of its own.
    pub(super) is_sendgrid: bool,
}

impl Address {
    /// The relay in logs and metrics: without credentials.
    pub(super) fn name(&self) -> String {
        let is_ipv6 = self.host.contains(':');
        let host = if is_ipv6 { format!("[{}]", self.host) } else { self.host.clone() };
        format!("{host}:{}", self.port)
    }

    /// The relay, the one at `index` of those configured, as tenants see it: no address of a network
    /// leaves the service.
    pub(super) fn shown(&self, index: usize) -> String {
        let is_named = self.host.contains('.') && self.host.parse::<IpAddr>().is_err();
        if is_named { self.host.clone() } else { format!("relay {}", index + 1) }
    }
}

/// How a connection is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Security {
    /// TLS from the first byte.
    Tls,
    /// The server must offer STARTTLS.
    StartTls,
    /// Not at all: on loopback alone.
    None,
}

/// What is not a server's URL. Says what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "smtp://user:password@host:port (encrypted by STARTTLS, except on loopback), \
     smtps://user:password@host:port or file:///folder; ?starttls=required and ?provider=sendgrid may \
     follow"
)]
pub struct InvalidServer;

impl Server {
    /// The URL without its password.
    pub fn shown(&self) -> String {
        let mut url = self.url.clone();
        if url.password().is_some() && url.set_password(Some("***")).is_err() {
            return "***".to_owned();
        }
        url.into()
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown())
    }
}

impl FromStr for Server {
    type Err = InvalidServer;

    fn from_str(text: &str) -> Result<Self, InvalidServer> {
        let url = Url::parse(text).map_err(|_| InvalidServer)?;
        let target = match url.scheme() {
            "file" => Target::Folder(url.to_file_path().map_err(|()| InvalidServer)?),
            "smtp" | "smtps" => Target::Relay(address(&url).ok_or(InvalidServer)?),
            _ => return Err(InvalidServer),
        };
        Ok(Self { url, target })
    }
}

impl TryFrom<String> for Server {
    type Error = InvalidServer;

    fn try_from(text: String) -> Result<Self, InvalidServer> {
        text.parse()
    }
}

impl From<Server> for String {
    fn from(server: Server) -> Self {
        server.url.into()
    }
}

fn address(url: &Url) -> Option<Address> {
    if !matches!(url.path(), "" | "/") || url.fragment().is_some() {
        return None;
    }
    let host = match url.host()? {
        Host::Domain(name) => decoded(name).filter(|name| !name.is_empty())?,
        Host::Ipv4(address) => address.to_string(),
        Host::Ipv6(address) => address.to_string(),
    };
    let mut wants_starttls = false;
    // Who relays to SendGrid from a server of its own says so.
    let mut is_sendgrid = host == SENDGRID || host.ends_with(&format!(".{SENDGRID}"));
    for part in url.query().into_iter().flat_map(|query| query.split('&')) {
        match part {
            "starttls=required" => wants_starttls = true,
            "provider=sendgrid" => is_sendgrid = true,
            _ => return None,
        }
    }
    let security = match url.scheme() {
        "smtps" if wants_starttls => return None,
        "smtps" => Security::Tls,
        _ if wants_starttls || !is_loopback(&host) => Security::StartTls,
        _ => Security::None,
    };
    let default = if security == Security::Tls { SUBMISSIONS_PORT } else { SUBMISSION_PORT };
    let port = url.port().unwrap_or(default);
    let credentials = match (url.username(), url.password()) {
        ("", None) => None,
        ("", Some(_)) | (_, None) => return None,
        (user, Some(password)) => Some((decoded(user)?, decoded(password)?)),
    };
    (port != 0).then_some(Address { host, port, security, credentials, is_sendgrid })
}

/// Whether what is sent to the host does not leave this machine.
fn is_loopback(host: &str) -> bool {
    let address = host.parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// A part of a URL without its percent signs. Nothing in it may end a line.
fn decoded(part: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next()?, rest.next()?];
            let digits = std::str::from_utf8(&digits).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    let text = String::from_utf8(bytes).ok()?;
    (!text.chars().any(char::is_control)).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(url: &str) -> Address {
        let server: Server = url.parse().unwrap_or_else(|_| panic!("{url}"));
        match server.target {
            Target::Relay(address) => address,
            Target::Folder(_) => panic!("{url} is a folder"),
        }
    }

    #[test]
    fn encryption_is_enforced_off_loopback() {
        for (url, port, security) in [
            ("smtp://mail.company.com", 587, Security::StartTls),
            ("smtp://10.0.0.1:25", 25, Security::StartTls),
            ("smtps://mail.company.com", 465, Security::Tls),
            ("smtps://127.0.0.1:1", 1, Security::Tls),
            ("smtp://127.0.0.1:2525", 2525, Security::None),
            ("smtp://[::1]:2525", 2525, Security::None),
            ("smtp://localhost", 587, Security::None),
            ("smtp://localhost.company.com", 587, Security::StartTls),
            ("smtp://localhost?starttls=required", 587, Security::StartTls),
        ] {
            let address = read(url);
            assert_eq!((address.port, address.security), (port, security), "{url}");
        }
        assert_eq!(read("smtp://[::1]:1").host, "::1");
    }

    #[test]
    fn relays_have_names_without_credentials_and_tenants_see_no_address() {
        for (url, name, shown, is_sendgrid) in [
            ("smtp://a:b@mail.company.com", "mail.company.com:587", "mail.company.com", false),
            ("smtps://[::1]", "[::1]:465", "relay 3", false),
            ("smtp://10.0.0.7:25", "10.0.0.7:25", "relay 3", false),
            ("smtp://localhost:25?provider=sendgrid", "localhost:25", "relay 3", true),
            ("smtps://smtp.sendgrid.net", "smtp.sendgrid.net:465", "smtp.sendgrid.net", true),
            ("smtp://mysendgrid.net", "mysendgrid.net:587", "mysendgrid.net", false),
        ] {
            let address = read(url);
            assert_eq!(
                (address.name().as_str(), address.shown(2).as_str()),
                (name, shown),
                "{url}"
            );
            assert_eq!(address.is_sendgrid, is_sendgrid, "{url}");
        }
        let both = read("smtp://localhost?starttls=required&provider=sendgrid");
        assert!(both.is_sendgrid && both.security == Security::StartTls);
    }

    #[test]
    fn passwords_are_read_and_not_shown() {
        let url = "smtps://ada%40company.com:hunter%2F2@mail.company.com";
        assert_eq!(read(url).credentials, Some(("ada@company.com".into(), "hunter/2".into())));
        let server: Server = url.parse().expect("a server");
        assert_eq!(format!("{server:?}"), "smtps://ada%40company.com:***@mail.company.com");
        assert_eq!(String::from(server), url);
    }

    #[test]
    fn what_is_no_server_is_refused() {
        for url in [
            "mail.company.com:25",
            "http://mail.company.com",
            "smtp://",
            "smtp://host/path",
            "smtp://u@host",
            "smtp://u:p%0Aq@host",
            "smtp://host?tls=no",
            "smtps://h?starttls=required",
            "file://host/x",
            "smtp://host:0",
            "",
        ] {
            assert!(url.parse::<Server>().is_err(), "{url}");
        }
        assert!("file:///tmp/mail".parse::<Server>().is_ok());
    }
}
