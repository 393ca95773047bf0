//! The types that an option's value can have: how each is read from text and shown again.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use toml::Value;

use crate::channel::webhook::Cidr;
use crate::domain::feedback::webhook::SendGridKey;
use crate::telemetry::logs;

/// How an option is written on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// `--name value`.
    One,
    /// `--name`, or `--name=false`.
    Switch,
    /// `--name value`, any number of times; comma-separated in a variable.
    Many,
}

/// A type of values.
pub(super) trait Setting: Sized {
    /// How such an option is written.
    const SHAPE: Shape = Shape::One;

    /// Reads a value; several are separated by commas. The error completes the sentence "the value
    /// must be …".
    fn read(text: &str) -> Result<Self, String>;

    /// The value as it is shown, without secrets; `None` when it is not set.
    fn show(&self) -> Option<Value>;
}

/// Checks `value` against the ends of its range.
pub(super) fn within<T: Setting + PartialOrd>(
    value: T,
    least: &str,
    most: &str,
) -> Result<T, String> {
    let is_least = T::read(least).is_ok_and(|least| value >= least);
    let is_most = T::read(most).is_ok_and(|most| value <= most);
    if is_least && is_most { Ok(value) } else { Err(format!("between {least} and {most}")) }
}

impl<T: Setting> Setting for Option<T> {
    fn read(text: &str) -> Result<Self, String> {
        if text.is_empty() { Ok(None) } else { T::read(text).map(Some) }
    }

    fn show(&self) -> Option<Value> {
        self.as_ref().and_then(T::show)
    }
}

impl Setting for bool {
    const SHAPE: Shape = Shape::Switch;

    fn read(text: &str) -> Result<Self, String> {
        match text {
            "true" | "1" | "yes" | "on" => Ok(true),
            "false" | "0" | "no" | "off" => Ok(false),
            _ => Err("true or false".into()),
        }
    }

    fn show(&self) -> Option<Value> {
        Some(Value::Boolean(*self))
    }
}

macro_rules! whole_numbers {
    ($($number:ty),+) => {$(
        impl Setting for $number {
            fn read(text: &str) -> Result<Self, String> {
                text.replace('_', "").parse().map_err(|_| "a whole number".into())
            }

            fn show(&self) -> Option<Value> {
                i64::try_from(*self).ok().map(Value::Integer)
            }
        }
    )+};
}

whole_numbers!(u32, usize);

impl Setting for SocketAddr {
    fn read(text: &str) -> Result<Self, String> {
        // A name such as `localhost` may resolve to several addresses; which one would be served
        // is better said than guessed.
        text.parse().map_err(|_| "an IP address and a port, such as 127.0.0.1:8080".into())
    }

    fn show(&self) -> Option<Value> {
        Some(Value::String(self.to_string()))
    }
}

impl Setting for PathBuf {
    fn read(text: &str) -> Result<Self, String> {
        Ok(Self::from(text))
    }

    fn show(&self) -> Option<Value> {
        Some(Value::String(self.display().to_string()))
    }
}

/// Units of durations in milliseconds, the longest first.
const UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

impl Setting for Duration {
    fn read(text: &str) -> Result<Self, String> {
        duration(text).ok_or_else(|| "a duration, such as 500ms, 15s, 5m, 1h30m or 30d".into())
    }

    fn show(&self) -> Option<Value> {
        Some(Value::String(duration_text(*self)))
    }
}

/// Reads whole numbers with units, for example `1h30m`.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total_ms = 0_u64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, after) = rest.split_at(digits);
        let end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let (_, ms) = UNITS.iter().find(|(name, _)| *name == unit)?;
        total_ms = total_ms.checked_add(number.parse::<u64>().ok()?.checked_mul(*ms)?)?;
        rest = after;
    }
    (!text.is_empty()).then(|| Duration::from_millis(total_ms))
}

fn duration_text(duration: Duration) -> String {
    let mut rest_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut text = String::new();
    for (unit, ms) in UNITS {
        if rest_ms >= ms {
            let _ = write!(text, "{}{unit}", rest_ms / ms);
            rest_ms %= ms;
        }
    }
    if text.is_empty() { "0s".into() } else { text }
}

impl Setting for Vec<Cidr> {
    const SHAPE: Shape = Shape::Many;

    fn read(text: &str) -> Result<Self, String> {
        text.split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(|part| part.parse().map_err(|_| "networks such as 127.0.0.0/8 or fd00::/8".into()))
            .collect()
    }

    fn show(&self) -> Option<Value> {
        Some(Value::Array(self.iter().map(|cidr| Value::String(cidr.to_string())).collect()))
    }
}

impl Setting for SendGridKey {
    fn read(text: &str) -> Result<Self, String> {
        Self::parse(text)
            .ok_or_else(|| "the verification key as SendGrid shows it: MFkw… and so on".into())
    }

    fn show(&self) -> Option<Value> {
        Some(Value::String(self.text()))
    }
}

/// A share, from 0.0 (none) to 1.0 (all).
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Ratio(pub f64);

impl Setting for Ratio {
    fn read(text: &str) -> Result<Self, String> {
        text.parse()
            .ok()
            .filter(|ratio: &f64| (0.0..=1.0).contains(ratio))
            .map(Self)
            .ok_or_else(|| "a number between 0.0 and 1.0".into())
    }

    fn show(&self) -> Option<Value> {
        Some(Value::Float(self.0))
    }
}

impl Setting for logs::Format {
    fn read(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("text or json".into()),
        }
    }

    fn show(&self) -> Option<Value> {
        let name = match self {
            Self::Text => "text",
            Self::Json => "json",
        };
        Some(Value::String(name.into()))
    }
}

impl Setting for logs::Filter {
    fn read(text: &str) -> Result<Self, String> {
        let right = "a level (error, warn, info, debug, trace) or directives such as \
                     info,tidings::dispatch=debug";
        Self::parse(text).ok_or_else(|| right.into())
    }

    fn show(&self) -> Option<Value> {
        Some(Value::String(self.as_str().into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_whole_numbers_with_units() {
        for (text, ms) in [("15s", 15_000), ("500ms", 500), ("1h30m", 5_400_000), ("0s", 0)] {
            assert_eq!(Duration::read(text), Ok(Duration::from_millis(ms)), "{text}");
            assert_eq!(duration_text(Duration::from_millis(ms)), text);
        }
        assert_eq!(duration_text(Duration::from_hours(48)), "2d");
        for text in ["", "15", "s", "1.5s", "-1s", "1w", "15 s", "99999999999999999999d", "1é"] {
            assert!(Duration::read(text).is_err(), "{text}");
        }
    }
}
