//! Options that are URLs, and may hold a password that must not be shown.

use std::fmt;
use std::path::Path;

use toml::Value;
use url::{Host, Url};

use crate::store;

use super::setting::Setting;

/// The URL of the database. Shown without its password.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseUrl(String);

impl DatabaseUrl {
    /// The SQLite database in the file at `path`.
    pub fn of_file(path: &Path) -> Self {
        Self(format!("sqlite://{}", path.display()))
    }

    /// The URL with its password.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&without_password(&self.0))
    }
}

impl std::str::FromStr for DatabaseUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::read(text)
    }
}

impl Setting for DatabaseUrl {
    fn read(text: &str) -> Result<Self, String> {
        let right = "sqlite://path or postgres://user:password@host:port/database";
        let config = store::Config { database_url: text.into(), ..store::Config::default() };
        let database = config.database().map_err(|_| right.to_owned())?;
        if database.embedded_file().is_some() {
            let (_, parameters) = text.split_once('?').unwrap_or_default();
            if text.contains(":memory:") || parameters.contains("mode=memory") {
                return Err(format!("{right}: what is only in memory would not be durable"));
            }
            // What others write to have the file made, which is what is done anyway.
            if !matches!(parameters, "" | "mode=rwc") {
                return Err(format!("{right}: a file has no parameters, such as {parameters:?}"));
            }
        }
        Ok(Self(text.into()))
    }

    fn show(&self) -> Option<Value> {
        Some(Value::String(without_password(&self.0)))
    }
}

/// Where traces are sent. Shown without its password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtlpEndpoint(Url);

impl OtlpEndpoint {
    /// The endpoint's URL.
    pub fn url(&self) -> &Url {
        &self.0
    }
}

impl Setting for OtlpEndpoint {
    fn read(text: &str) -> Result<Self, String> {
        Url::parse(text)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            .map(Self)
            .ok_or_else(|| "a URL such as http://127.0.0.1:4317".into())
    }

    fn show(&self) -> Option<Value> {
        Some(Value::String(without_password(self.0.as_str())))
    }
}

/// Where people outside reach the HTTP pages: with TLS, or on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicUrl(String);

impl PublicUrl {
    /// The URL without a slash at its end.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Setting for PublicUrl {
    fn read(text: &str) -> Result<Self, String> {
        let is_local = |url: &Url| match url.host() {
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            Some(Host::Domain(name)) => name == "localhost",
            None => false,
        };
        Url::parse(text)
            .ok()
            .filter(|url| url.scheme() == "https" || (url.scheme() == "http" && is_local(url)))
            .filter(|url| url.username().is_empty() && url.password().is_none())
            .filter(|url| url.query().is_none() && url.fragment().is_none())
            .map(|url| Self(url.as_str().trim_end_matches('/').to_owned()))
            .ok_or_else(|| {
                "an https URL without a query, such as https://tidings.company.com, or http on this \
                 machine"
                    .into()
            })
    }

    fn show(&self) -> Option<Value> {
        Some(Value::String(self.0.clone()))
    }
}

/// `url` with its password, also one that is a query parameter, replaced by `***`.
fn without_password(url: &str) -> String {
    let Ok(mut parsed) = Url::parse(url) else {
        return url.to_owned();
    };
    let in_query = parsed.query_pairs().any(|(name, _)| is_secret(&name));
    if parsed.password().is_none() && !in_query {
        // Unchanged to the letter: parsing would complete `sqlite://tidings.db` to a canonical form.
        return url.to_owned();
    }
    if parsed.password().is_some() && parsed.set_password(Some("***")).is_err() {
        return "***".into();
    }
    if in_query {
        let pairs: Vec<_> = parsed.query_pairs().into_owned().collect();
        let mut query = parsed.query_pairs_mut();
        query.clear();
        for (name, value) in &pairs {
            query.append_pair(name, if is_secret(name) { "***" } else { value });
        }
        drop(query);
    }
    parsed.into()
}

fn is_secret(parameter: &str) -> bool {
    let parameter = parameter.to_ascii_lowercase();
    ["password", "key", "token", "secret"].iter().any(|word| parameter.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_shown() {
        for (url, shown) in [
            ("postgres://me:hunter2@db:5432/t?a=b", "postgres://me:***@db:5432/t?a=b"),
            ("postgres://db/t?user=me&password=hunter2", "postgres://db/t?user=me&password=***"),
            ("sqlite://tidings.db", "sqlite://tidings.db"),
        ] {
            let read = DatabaseUrl::read(url).expect(url);
            let value = read.show().and_then(|value| value.as_str().map(str::to_owned));
            assert_eq!(value.as_deref(), Some(shown), "{url}");
            assert!(!format!("{read:?}").contains("hunter2"));
        }
    }

    #[test]
    fn a_public_url_is_safe_to_follow() {
        for (text, expected) in [
            ("https://tidings.company.com", "https://tidings.company.com"),
            ("https://Company.com/tidings/", "https://company.com/tidings"),
            ("http://127.0.0.1:8080/", "http://127.0.0.1:8080"),
            ("http://[::1]:8080", "http://[::1]:8080"),
            ("http://localhost:8080", "http://localhost:8080"),
        ] {
            assert_eq!(PublicUrl::read(text).map(|url| url.0).as_deref(), Ok(expected));
        }
        for text in [
            "",
            "tidings.company.com",
            "http://tidings.company.com",
            "http://localhost.company.com",
            "https://me:secret@company.com",
            "https://company.com/?a=b",
            "https://company.com/#x",
            "javascript:alert(1)",
            "ftp://company.com",
        ] {
            assert!(PublicUrl::read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_database_that_would_lose_something_is_refused() {
        for url in [
            "sqlite::memory:",
            "sqlite://:memory:",
            "sqlite://a.db?mode=memory",
            "sqlite://a.db?mode=ro",
            "sqlite://a.db?vfs=unix-none",
            "mysql://a/b",
            "tidings.db",
            "",
        ] {
            assert!(DatabaseUrl::read(url).is_err(), "{url}");
        }
        for url in ["sqlite://a.db", "sqlite://a.db?mode=rwc", "postgres://a/b?sslmode=require"] {
            assert!(DatabaseUrl::read(url).is_ok(), "{url}");
        }
    }
}
