//! Logs on standard error: readable lines for people, or one JSON object per line for programs.

use std::env;
use std::io::{self, IsTerminal};

use tracing::{Level, Metadata};
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt};

use super::Error;

/// Libraries that say more than an operator needs. A directive of the filter wins over these.
const QUIET: [&str; 11] = [
    "h2=warn",
    "hyper=warn",
    "hyper_util=warn",
    "opentelemetry=warn",
    "opentelemetry_otlp=off",
    "opentelemetry_sdk=off",
    "rustls=warn",
    "sea_orm=warn",
    "sea_orm_migration=warn",
    "sqlx=warn",
    "tonic=warn",
];

/// Where our own lines come from; every other target is a library's.
const OURS: &str = "tidings";

/// Whether a line may be written at all, whatever the filter says. Below `info` libraries write what
/// they handle: frames with header values, statements with their arguments. Nobody there knows what
/// of it is a secret, so none of it is written.
fn may_be_logged(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    let is_ours = target.strip_prefix(OURS).is_some_and(|r| r.is_empty() || r.starts_with("::"));
    is_ours || *metadata.level() <= Level::INFO
}

/// How logs are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Lines for people, with colour on a terminal.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// What is logged: a level or directives. Checked when it is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter(String);

impl Filter {
    /// Reads a filter; `None` when it is malformed.
    pub fn parse(text: &str) -> Option<Self> {
        let is_valid = |part: &str| {
            // A directive without a level is a target; a bare word is nearly always a level
            // misspelt, and would silence everything.
            let is_level = !part.is_empty() && part.parse::<LevelFilter>().is_ok();
            is_level || (part.contains('=') && EnvFilter::try_new(part).is_ok())
        };
        (!text.is_empty() && text.split(',').map(str::trim).all(is_valid))
            .then(|| Self(text.to_owned()))
    }

    /// The filter as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn build(&self) -> EnvFilter {
        EnvFilter::new(format!("{},{}", QUIET.join(","), self.0))
    }
}

impl Default for Filter {
    fn default() -> Self {
        Self("info".into())
    }
}

/// How and what is logged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// How.
    pub format: Format,
    /// What.
    pub filter: Filter,
}

/// Sets up the process's logs.
///
/// # Errors
/// When they are already set up.
pub fn start(config: &Config) -> Result<(), Error> {
    let lines = match config.format {
        Format::Text => {
            fmt::layer().with_writer(io::stderr).with_ansi(is_coloured()).with_target(false).boxed()
        }
        Format::Json => fmt::layer()
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .with_writer(io::stderr)
            .boxed(),
    };
    // Filters of the whole, not of the layer: those keep a state per thread, and lose the line after
    // one that a library only asked about.
    Registry::default()
        .with(config.filter.build())
        .with(filter_fn(may_be_logged))
        .with(lines)
        .try_init()
        .map_err(|_| Error::LogsAlreadySet)
}

/// Whether standard error is a terminal whose owner wants colour: <https://no-color.org>.
fn is_coloured() -> bool {
    let refused = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !refused && io::stderr().is_terminal()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_levels_and_directives() {
        for text in ["info", "warn,tidings=debug", "tidings::dispatch=trace, info", "off"] {
            assert!(Filter::parse(text).is_some(), "{text}");
        }
        for text in ["", "loud", "tidings=loud", "info,,warn", "="] {
            assert!(Filter::parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn libraries_are_quiet_until_asked() {
        let shown = Filter("debug,sqlx=info".into()).build().to_string();
        assert!(shown.contains("sqlx=info"), "{shown}");
        assert!(!shown.contains("sqlx=warn"), "{shown}");
        assert!(shown.contains("h2=warn"), "{shown}");
    }
}
