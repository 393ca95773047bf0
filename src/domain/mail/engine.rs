//! The template engine, with little in it: some filters and tests, no functions.
//!
//! Guarantees: what is written into HTML is escaped, unless the frame itself puts a finished part
//! into place; lists and maps are not printed; a render ends by its fuel, and its output is bounded.

use std::fmt::Write as _;
use std::io;
use std::sync::LazyLock;

use jiff::tz::{TimeZone, TimeZoneDatabase};
use minijinja::value::{Value, ValueKind};
use minijinja::{
    AutoEscape, Environment, Error, ErrorKind, Output, State, UndefinedBehavior, filters, tests,
};

use super::clean;

/// Most characters that a filter makes.
const MAX_FILTERED_CHARS: usize = 16_000;
/// Steps of the engine for one part of a mail.
pub(super) const FUEL: u64 = 20_000;
/// The same for our own templates, which are bounded by the document.
const OWN_FUEL: u64 = 500_000;
/// Deepest nesting while a template is rendered.
const RECURSION_LIMIT: usize = 50;

/// The filters that there are.
pub(super) const FILTERS: [&str; 16] = [
    "capitalize",
    "date",
    "default",
    "first",
    "float",
    "int",
    "items",
    "join",
    "last",
    "length",
    "lower",
    "round",
    "title",
    "trim",
    "truncate",
    "upper",
];
/// The tests that there are.
pub(super) const TESTS: [&str; 10] = [
    "boolean",
    "defined",
    "even",
    "mapping",
    "none",
    "number",
    "odd",
    "sequence",
    "string",
    "undefined",
];

/// The engine for templates that somebody wrote.
pub(super) static ENGINE: LazyLock<Environment<'static>> = LazyLock::new(environment);

/// The engine with our own templates.
pub(super) static OWN: LazyLock<Result<Environment<'static>, Error>> = LazyLock::new(|| {
    let mut engine = environment();
    engine.set_fuel(Some(OWN_FUEL));
    engine.set_trim_blocks(true);
    engine.set_lstrip_blocks(true);
    engine.add_template("subject.txt", include_str!("templates/subject.txt"))?;
    engine.add_template("text.txt", include_str!("templates/text.txt"))?;
    engine.add_template("body.html", include_str!("templates/body.html"))?;
    engine.add_template("frame.html", include_str!("templates/frame.html"))?;
    Ok(engine)
});

fn environment() -> Environment<'static> {
    let mut engine = Environment::empty();
    engine.set_fuel(Some(FUEL));
    engine.set_recursion_limit(RECURSION_LIMIT);
    // An `if` may ask whether a field is there; whoever prints one that is not has made a mistake.
    engine.set_undefined_behavior(UndefinedBehavior::SemiStrict);
    engine.set_auto_escape_callback(|name| match name.rsplit_once('.') {
        Some((_, "html")) => AutoEscape::Html,
        _ => AutoEscape::None,
    });
    engine.set_formatter(format);
    engine.add_filter("capitalize", filters::capitalize);
    engine.add_filter("date", date);
    engine.add_filter("default", filters::default);
    engine.add_filter("first", filters::first);
    engine.add_filter("float", filters::float);
    engine.add_filter("int", filters::int);
    engine.add_filter("items", filters::items);
    engine.add_filter("join", join);
    engine.add_filter("last", filters::last);
    engine.add_filter("length", filters::length);
    engine.add_filter("lower", filters::lower);
    engine.add_filter("round", filters::round);
    engine.add_filter("title", filters::title);
    engine.add_filter("trim", filters::trim);
    engine.add_filter("truncate", truncate);
    engine.add_filter("upper", filters::upper);
    engine.add_test("boolean", tests::is_boolean);
    engine.add_test("defined", tests::is_defined);
    engine.add_test("even", tests::is_even);
    engine.add_test("mapping", tests::is_mapping);
    engine.add_test("none", tests::is_none);
    engine.add_test("number", tests::is_number);
    engine.add_test("odd", tests::is_odd);
    engine.add_test("sequence", tests::is_sequence);
    engine.add_test("string", tests::is_string);
    engine.add_test("undefined", tests::is_undefined);
    engine
}

/// Writes a value: plain ones alone, and escaped where it is HTML.
fn format(out: &mut Output<'_>, state: &State<'_, '_>, value: &Value) -> Result<(), Error> {
    let written = match value.kind() {
        ValueKind::None => Ok(()),
        ValueKind::Bool => out.write_str(if value.is_true() { "yes" } else { "no" }),
        ValueKind::Number => write!(out, "{value}"),
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            let is_plain = value.is_safe() || state.auto_escape() != AutoEscape::Html;
            if is_plain { out.write_str(text) } else { escape(out, text) }
        }
        ValueKind::Undefined => {
            return Err(Error::new(ErrorKind::UndefinedError, "there is no such value"));
        }
        _ => {
            let message = "a list or a map cannot be printed; use a loop, or the filter join";
            return Err(Error::new(ErrorKind::InvalidOperation, message));
        }
    };
    written.map_err(|_| Error::new(ErrorKind::WriteFailure, "the output is too large"))
}

/// Escapes for text and for quoted attributes.
fn escape(out: &mut Output<'_>, text: &str) -> std::fmt::Result {
    let mut rest = text;
    while let Some(at) = rest.find(['&', '<', '>', '"', '\'']) {
        let (plain, special) = rest.split_at(at);
        out.write_str(plain)?;
        out.write_str(match special.as_bytes().first() {
            Some(b'&') => "&amp;",
            Some(b'<') => "&lt;",
            Some(b'>') => "&gt;",
            Some(b'"') => "&quot;",
            _ => "&#39;",
        })?;
        rest = special.get(1..).unwrap_or_default();
    }
    out.write_str(rest)
}

/// `items|join(", ")`: plain values side by side.
fn join(value: &Value, separator: Option<String>) -> Result<String, Error> {
    let separator = separator.unwrap_or_else(|| ", ".to_owned());
    let mut joined = String::new();
    for (index, item) in value.try_iter()?.enumerate() {
        if index > 0 {
            joined.push_str(&separator);
        }
        match item.kind() {
            ValueKind::String => joined.push_str(item.as_str().unwrap_or_default()),
            ValueKind::Number | ValueKind::Bool => {
                let _ = write!(joined, "{item}");
            }
            _ => {
                let message = "only texts, numbers and booleans can be joined";
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        }
        if joined.len() > MAX_FILTERED_CHARS {
            return Err(Error::new(ErrorKind::InvalidOperation, "too much to join"));
        }
    }
    Ok(joined)
}

/// `text|truncate(80)`: the first characters.
fn truncate(text: &str, length: Option<usize>) -> String {
    clean::text(text, length.unwrap_or(80).min(MAX_FILTERED_CHARS))
}

/// `data.due|date("%d.%m.%Y")`: an RFC 3339 time in the readers' zone, written as jiff's strftime
/// (<https://docs.rs/jiff/latest/jiff/fmt/strtime/>) says.
fn date(state: &State<'_, '_>, text: &str, format: Option<&str>) -> Result<String, Error> {
    let invalid = |message: &'static str| Error::new(ErrorKind::InvalidOperation, message);
    let time: jiff::Timestamp =
        text.parse().map_err(|_| invalid("only an RFC 3339 time is a date"))?;
    let zone = state.lookup("locale").and_then(|locale| locale.get_attr("time_zone").ok());
    let zone = zone.as_ref().and_then(Value::as_str).unwrap_or_default();
    let zone = TimeZoneDatabase::bundled().get(zone).unwrap_or(TimeZone::UTC);
    let format = format.unwrap_or("%Y-%m-%d %H:%M");
    jiff::fmt::strtime::format(format, &time.to_zoned(zone))
        .map_err(|_| invalid("the date's format is wrong"))
}

/// Takes no more than it has room for.
pub(super) struct Bounded {
    written: Vec<u8>,
    max: usize,
}

impl Bounded {
    pub(super) fn new(max: usize) -> Self {
        Self { written: Vec::new(), max }
    }

    /// What was written: UTF-8, as templates write nothing else.
    pub(super) fn into_text(self) -> String {
        String::from_utf8(self.written)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
    }
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.written.len() + bytes.len() > self.max {
            return Err(io::Error::other("the output is too large"));
        }
        self.written.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
