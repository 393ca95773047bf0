//! What commands write to standard output: tables and colour for people, JSON for programs.
//!
//! With `--json` a command writes one JSON document, and a stream one document per line; nothing
//! else. Warnings and progress go to standard error. A reader that goes away (`| head`) ends a
//! command quietly.

pub mod json;
pub mod names;
pub mod style;
pub mod table;
pub mod time;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use serde::Serialize;

pub use json::{Json, Message};
pub use style::Style;
pub use table::{Cell, Table};

use super::error::Error;

/// How wide lines may be where no terminal says it.
pub const WIDTH: usize = 80;

/// The options of every command that writes something.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct Options {
    /// Write JSON for programs: one document, or one per line where there may be many
    #[arg(long, global = true, help_heading = "Output")]
    pub json: bool,
}

/// Standard output.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    json: bool,
    color: bool,
}

impl Output {
    /// Standard output as `options` want it.
    pub fn new(options: Options) -> Self {
        Self { json: options.json, color: style::wanted(std::io::stdout().is_terminal()) }
    }

    /// Whether a program reads.
    pub const fn is_json(self) -> bool {
        self.json
    }

    /// Whether colour is wanted.
    pub const fn is_colored(self) -> bool {
        self.color
    }

    /// How many columns there are: the terminal's, and [`WIDTH`] where there is none.
    pub fn width(self) -> usize {
        terminal().map_or(WIDTH, |(columns, _)| columns)
    }

    /// Whether lines can be drawn over, on a terminal that has `lines` of them.
    pub fn is_redrawable(self, lines: usize) -> bool {
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        !self.json && !is_dumb && terminal().is_some_and(|(_, rows)| rows > lines)
    }

    /// `text` in a style, when colour is wanted.
    pub fn paint(self, style: Style, text: &str) -> String {
        style::paint(self.color, style, text)
    }

    /// Writes one line for people.
    ///
    /// # Errors
    /// When nobody reads.
    pub fn line(self, text: &str) -> Result<(), Error> {
        Ok(writeln!(std::io::stdout().lock(), "{text}")?)
    }

    /// Writes one JSON document over several lines.
    ///
    /// # Errors
    /// When nobody reads.
    pub fn document(self, value: &impl Serialize) -> Result<(), Error> {
        let text = serde_json::to_string_pretty(value).map_err(std::io::Error::from)?;
        self.line(&text)
    }

    /// Writes one JSON document on one line.
    ///
    /// # Errors
    /// When nobody reads.
    pub fn json_line(self, value: &impl Serialize) -> Result<(), Error> {
        let text = serde_json::to_string(value).map_err(std::io::Error::from)?;
        self.line(&text)
    }

    /// Writes a message: as JSON for programs, otherwise by `people`.
    ///
    /// # Errors
    /// When nobody reads.
    pub fn message<T: Message>(
        self,
        message: &T,
        people: impl FnOnce(Self, &T) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if self.json { self.document(&Json(message)) } else { people(self, message) }
    }

    /// Writes a table; `empty` when it has no rows.
    ///
    /// # Errors
    /// When nobody reads.
    pub fn table(self, table: &Table, empty: &str) -> Result<(), Error> {
        if table.is_empty() {
            return self.line(&self.paint(Style::Dim, empty));
        }
        table.lines(self.color).iter().try_for_each(|line| self.line(line))
    }

    /// Writes names and values, one per line; those without a value are left out.
    ///
    /// # Errors
    /// When nobody reads.
    pub fn fields(self, fields: &[(&str, String)]) -> Result<(), Error> {
        let fields = || fields.iter().filter(|(_, value)| !value.is_empty());
        let widest = fields().map(|(name, _)| table::width(name)).max().unwrap_or(0);
        for (name, value) in fields() {
            let name = self.paint(Style::Dim, &table::fit(name, widest));
            let mut lines = value.lines();
            self.line(&format!("{name}  {}", lines.next().unwrap_or_default()))?;
            for line in lines {
                self.line(&format!("{}  {line}", " ".repeat(widest)))?;
            }
        }
        Ok(())
    }

    /// A time for people: how far it is, and when that was. Empty when it is not set.
    pub fn time(self, time: Option<&prost_types::Timestamp>) -> String {
        time.map_or_else(String::new, |time| {
            let time = time::from_proto(time);
            let date = self.paint(Style::Dim, &format!("({time})"));
            format!("{} {date}", time::relative(time, time::now()))
        })
    }

    /// Tells people that a list goes on, and how to see it.
    pub fn more(self, next_page_token: &str) {
        if !next_page_token.is_empty() {
            self.note(&format!("there are more: raise --limit, or --page-token {next_page_token}"));
        }
    }

    /// Tells people, on standard error, something that is not the command's result.
    pub fn note(self, text: &str) {
        let stderr = std::io::stderr();
        let color = style::wanted(stderr.is_terminal());
        // Nobody is left to tell when standard error is closed.
        let _ = writeln!(stderr.lock(), "{}", style::paint(color, Style::Dim, text));
    }
}

/// The columns and rows of the terminal that standard output is, if it is one.
fn terminal() -> Option<(usize, usize)> {
    let stdout = std::io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    let (columns, rows) = terminal_size::terminal_size_of(stdout)?;
    // A terminal that does not know its size says 0.
    Some((usize::from(columns.0), usize::from(rows.0))).filter(|(columns, _)| *columns > 0)
}

/// What a command's result means for the process: a reader that has gone away is no failure.
///
/// # Errors
/// Every other error, as it is.
pub fn ended(result: Result<(), Error>) -> Result<ExitCode, Error> {
    match result {
        Err(error) if error.is_output_closed() => Ok(ExitCode::SUCCESS),
        other => other.map(|()| ExitCode::SUCCESS),
    }
}

/// `3 min ago` for a column; empty when it is not set.
pub fn ago(time: Option<&prost_types::Timestamp>) -> String {
    time.map_or_else(String::new, |time| time::relative(time::from_proto(time), time::now()))
}

/// `a=1 b=2`, sorted by key.
pub fn labels<'a>(labels: impl IntoIterator<Item = (&'a String, &'a String)>) -> String {
    let mut pairs: Vec<_> =
        labels.into_iter().map(|(key, value)| format!("{key}={value}")).collect();
    pairs.sort();
    table::printable(&pairs.join(" "))
}

/// How this program was called, so that the commands that we show can be copied.
pub fn program() -> String {
    let called = std::env::args().next().unwrap_or_default();
    if called.contains('/') { quoted(&called) } else { "tidings".to_owned() }
}

/// `text` as one word of a POSIX shell's command line.
pub fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_a_shell_where_they_must_be() {
        for (text, word) in [
            ("ten_1", "ten_1"),
            ("a.*", "'a.*'"),
            ("", "''"),
            ("it's", r"'it'\''s'"),
            ("$x", "'$x'"),
        ] {
            assert_eq!(quoted(text), word);
        }
    }
}
