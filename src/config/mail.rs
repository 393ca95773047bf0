//! The types of the options for mail: how each is read and shown. Passwords are not shown.

use std::path::PathBuf;

use toml::Value;

use crate::channel::email::{Sender, Server};
use crate::domain::mail::Look;

use super::setting::{Setting, Shape};

/// Most characters of a name in the DNS.
const MAX_NAME_CHARS: usize = 253;

/// Reads a comma-separated list.
fn list<T>(text: &str, read: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(read).collect()
}

impl Setting for Vec<Server> {
    const SHAPE: Shape = Shape::Many;

    fn read(text: &str) -> Result<Self, String> {
        list(text, |part| {
            part.parse().map_err(|error: crate::channel::email::InvalidServer| error.to_string())
        })
    }

    fn show(&self) -> Option<Value> {
        Some(Value::Array(self.iter().map(|server| Value::String(server.shown())).collect()))
    }
}

impl Setting for Sender {
    fn read(text: &str) -> Result<Self, String> {
        text.parse().map_err(|error: crate::channel::email::InvalidSender| error.to_string())
    }

    fn show(&self) -> Option<Value> {
        Some(Value::String(self.to_string()))
    }
}

impl Setting for Vec<PathBuf> {
    const SHAPE: Shape = Shape::Many;

    fn read(text: &str) -> Result<Self, String> {
        list(text, |part| Ok(PathBuf::from(part)))
    }

    fn show(&self) -> Option<Value> {
        let paths = self.iter().map(|path| Value::String(path.display().to_string()));
        Some(Value::Array(paths.collect()))
    }
}

/// A name in the DNS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsName(String);

impl DnsName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Setting for DnsName {
    fn read(text: &str) -> Result<Self, String> {
        let is_label = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
        };
        if text.len() <= MAX_NAME_CHARS && text.split('.').all(is_label) {
            Ok(Self(text.to_ascii_lowercase()))
        } else {
            Err("a name in the DNS, of letters, digits, hyphens and dots".into())
        }
    }

    fn show(&self) -> Option<Value> {
        Some(Value::String(self.0.clone()))
    }
}

impl Setting for Vec<DnsName> {
    const SHAPE: Shape = Shape::Many;

    fn read(text: &str) -> Result<Self, String> {
        list(text, DnsName::read)
    }

    fn show(&self) -> Option<Value> {
        Some(Value::Array(self.iter().filter_map(Setting::show).collect()))
    }
}

/// So many a second; 0 for no limit.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Rate(pub f64);

impl Setting for Rate {
    fn read(text: &str) -> Result<Self, String> {
        let rate = text.parse().ok().filter(|rate: &f64| *rate == 0.0 || *rate >= 0.001);
        rate.map(Self).ok_or_else(|| "a number a second, such as 10 or 0.5; 0 for no limit".into())
    }

    fn show(&self) -> Option<Value> {
        Some(Value::Float(self.0))
    }
}

macro_rules! looks {
    ($($(#[$doc:meta])* $name:ident: $with:ident;)+) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name(String);

        impl Setting for $name {
            fn read(text: &str) -> Result<Self, String> {
                let checked = Look::default().$with(text).map_err(|error| error.to_string());
                checked.map(|_| Self(text.to_owned()))
            }

            fn show(&self) -> Option<Value> {
                Some(Value::String(self.0.clone())).filter(|_| !self.0.is_empty())
            }
        }
    )+};
}

looks! {
    /// The URL of a logo; empty for none.
    LogoUrl: with_logo_url;
    /// A colour, as `#rrggbb`.
    Color: with_color;
    /// A line under every mail; empty for none.
    Footer: with_footer;
}

/// The look that the options make together: each was checked when it was read.
pub(super) fn look(logo_url: &LogoUrl, color: &Color, footer: &Footer) -> Look {
    let look = Look::default();
    let look = look.clone().with_logo_url(&logo_url.0).unwrap_or(look);
    let look = look.clone().with_color(&color.0).unwrap_or(look);
    look.clone().with_footer(&footer.0).unwrap_or(look)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_of_relays_are_not_shown() {
        let text = "smtps://ada:hunter2@a.company.com, smtp://127.0.0.1:25";
        let read = Vec::<Server>::read(text).expect("servers");
        let shown = read.show().map(|value| value.to_string()).unwrap_or_default();
        assert!(shown.contains("ada:***@a.company.com") && !shown.contains("hunter2"), "{shown}");
        assert!(!format!("{read:?}").contains("hunter2"));
    }

    #[test]
    fn what_is_wrong_is_said() {
        assert!(Vec::<Server>::read("smtp://a.company.com,http://b").is_err());
        assert!(Sender::read("nobody").is_err() && Sender::read("A\nB <a@company.com>").is_err());
        assert!(DnsName::read("a b").is_err() && DnsName::read("").is_err());
        assert!(
            Rate::read("-1").is_err() && Rate::read("NaN").is_err() && Rate::read("0.5").is_ok()
        );
        assert!(Color::read("red").is_err() && LogoUrl::read("http://x/").is_err());
    }
}
