//! What was measured: a table for people, JSON for programs.

use std::collections::BTreeMap;
use std::fs;
use std::io::IsTerminal;
use std::path::Path;

use serde_json::{Value, json};
use tidings::cli::output::style::{self, Style};
use tidings::cli::output::{Cell, Table};

use crate::figures::{Figures, Outcome, least, median, most, name};
use crate::options::{Kind, Options, Scale};
use crate::targets::{self, Judged};
use crate::works::Case;
use crate::{Result, database, floors, host, markdown, service};

/// A case on a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Series {
    pub(crate) case: Case,
    pub(crate) kind: Kind,
}

/// The floors, with the words that stand in tables.
pub(crate) const FLOORS: [(&str, &str); 7] = [
    (floors::FSYNC, "8 KiB written and on disk (fdatasync), one at a time"),
    (floors::GRPC, "gRPC health checks, 64 callers"),
    (floors::POST, "HTTP POSTs of 1 KiB, 64 callers"),
    (floors::SQLITE_ROWS, "SQLite: rows in transactions of 512"),
    (floors::SQLITE_COMMITS, "SQLite: commits of one row"),
    (floors::POSTGRES_ROWS, "PostgreSQL: rows in transactions of 512"),
    (floors::POSTGRES_COMMITS, "PostgreSQL: commits of one row"),
];

/// Everything that was measured.
pub(crate) struct Report {
    machine: host::Facts,
    versions: BTreeMap<String, String>,
    command: Vec<String>,
    time: String,
    /// `max_in_flight` of the good endpoints; `None` for the product's default.
    in_flight: Option<i32>,
    pub(crate) scale: Scale,
    pub(crate) floors: Figures,
    outcomes: BTreeMap<Series, Vec<Outcome>>,
}

impl Report {
    /// An empty report of this machine.
    pub(crate) async fn begin(options: &Options, folder: &Path) -> Result<Self> {
        let mut versions = BTreeMap::new();
        versions.insert("tidings".into(), service::version(&options.binary).await?);
        let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
        versions.insert("build_of_the_benchmark".into(), profile.into());
        for kind in options.kinds() {
            database::check_durable(kind, options, folder).await?;
            versions.extend(database::facts(kind, options).await?);
        }
        Ok(Self {
            machine: host::facts(),
            versions,
            command: std::env::args().skip(1).filter(|argument| argument != "--bench").collect(),
            time: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            in_flight: options.in_flight,
            scale: options.scale(),
            floors: Figures::default(),
            outcomes: BTreeMap::new(),
        })
    }

    pub(crate) fn add(&mut self, series: Series, outcome: Outcome) {
        self.outcomes.entry(series).or_default().push(outcome);
    }

    /// The series in the order of the table.
    pub(crate) fn series(&self) -> impl Iterator<Item = Series> {
        self.outcomes.keys().copied()
    }

    fn runs(&self, series: Series) -> Vec<Figures> {
        let outcomes = self.outcomes.get(&series).into_iter().flatten();
        outcomes.map(|outcome| outcome.figures.clone()).collect()
    }

    /// Figure by figure, the median of a series' runs.
    pub(crate) fn median(&self, series: Series) -> Option<Figures> {
        self.outcomes.contains_key(&series).then(|| Figures::over(&self.runs(series), median))
    }

    /// The least and the most of a figure.
    pub(crate) fn range(&self, series: Series, name: &str) -> Option<(f64, f64)> {
        let runs = self.runs(series);
        Some((Figures::over(&runs, least).get(name)?, Figures::over(&runs, most).get(name)?))
    }

    /// The run whose rate is the median one: what plots show.
    pub(crate) fn typical(&self, series: Series) -> Option<&Outcome> {
        let mut outcomes: Vec<_> = self.outcomes.get(&series)?.iter().collect();
        let rate = |outcome: &Outcome| outcome.figures.get(name::DELIVERED).unwrap_or_default();
        outcomes.sort_by(|a, b| rate(a).total_cmp(&rate(b)));
        outcomes.get(outcomes.len().saturating_sub(1) / 2).copied()
    }

    /// Whether every acknowledged event arrived exactly once, in every run.
    pub(crate) fn is_exact(&self) -> bool {
        self.series().all(|series| targets::is_exact(&self.runs(series)))
    }

    /// What the machine is, in one line.
    pub(crate) fn machine_line(&self) -> String {
        let machine = &self.machine;
        let memory = machine.memory_mib.map_or_else(String::new, |mib| format!(", {mib} MiB"));
        format!(
            "{} cores of {}{memory}, {} {}",
            machine.cores,
            machine.cpu.as_deref().unwrap_or("an unknown CPU"),
            machine.system,
            machine.kernel.as_deref().unwrap_or_default()
        )
    }

    pub(crate) fn versions_line(&self) -> String {
        let version = |key: &str| self.versions.get(key).map(String::as_str);
        let mut parts = vec![version("tidings").unwrap_or("tidings").to_owned()];
        parts.extend(version("sqlite_version").map(|version| format!("SQLite {version}")));
        parts.extend(version("postgres_server_version").map(|v| format!("PostgreSQL {v}")));
        parts.join(", ")
    }

    pub(crate) fn command_line(&self) -> String {
        format!("make bench BENCH_ARGS='{}'", self.command.join(" "))
    }

    pub(crate) fn time(&self) -> &str {
        &self.time
    }

    /// Writes the tables to standard output.
    pub(crate) fn print(&self) {
        let color = style::wanted(std::io::stdout().is_terminal());
        println!("{}; {}", self.machine_line(), self.versions_line());
        println!();
        for line in self.works_table().lines(color) {
            println!("{line}");
        }
        println!();
        let mut table = Table::new(&["FLOOR", "PER SECOND"]);
        for (name, words) in FLOORS {
            if let Some(value) = self.floors.get(name) {
                table.row([words.into(), right(&whole(value), 10).into()]);
            }
        }
        for line in table.lines(color) {
            println!("{line}");
        }
        println!();
        for line in targets_table(&targets::judge(self)).lines(color) {
            println!("{line}");
        }
        if cfg!(debug_assertions) {
            println!("\nThis was built for debugging: the figures are no measure of the product.");
        }
    }

    fn works_table(&self) -> Table {
        let mut table = Table::new(&[
            "WORK",
            "DATABASE",
            "DELIVERED/s",
            "FROM..TO",
            "ACCEPTED/s",
            "ACCEPT ms 50%",
            "99%",
            "END TO END ms 50%",
            "99%",
            "CPU ms/event",
            "OF DATABASE",
            "MEMORY MiB",
            "LOST",
            "TWICE",
        ]);
        for series in self.series() {
            let Some(figures) = self.median(series) else { continue };
            let shown = |name, digits: usize, width| {
                let value = figures.get(name).map_or_else(
                    || "-".to_owned(),
                    |value| if digits == 0 { whole(value) } else { format!("{value:.digits$}") },
                );
                Cell::from(right(&value, width))
            };
            let worst = |name| {
                let count = self.range(series, name).map_or(0.0, |(_, most)| most);
                let style = if count > 0.0 { Style::Error } else { Style::Plain };
                Cell::new(right(&whole(count), 4), style)
            };
            let range = self.range(series, name::DELIVERED).map_or_else(String::new, |range| {
                format!("{}..{}", whole(range.0), whole(range.1))
            });
            table.row([
                series.case.name().into(),
                series.kind.name().into(),
                shown(name::DELIVERED, 0, 11),
                range.into(),
                shown(name::ACCEPTED, 0, 10),
                shown(name::ACCEPTANCE_P50, 2, 13),
                shown(name::ACCEPTANCE_P99, 2, 6),
                shown(name::END_TO_END_P50, 2, 17),
                shown(name::END_TO_END_P99, 2, 6),
                shown(name::SERVICE_CPU, 3, 12),
                shown(name::DATABASE_CPU, 3, 11),
                shown(name::PEAK_MEMORY, 1, 10),
                worst(name::LOST),
                worst(name::DUPLICATES),
            ]);
        }
        table
    }

    /// Writes `throughput.json`, and `README.md` for people.
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(&self.json())?;
        text.push('\n');
        fs::write(folder.join("throughput.json"), text)?;
        fs::write(folder.join("README.md"), markdown::page(self))?;
        Ok(())
    }

    fn json(&self) -> Value {
        let works: Vec<_> = self
            .series()
            .map(|series| {
                let runs = self.runs(series);
                json!({
                    "work": series.case.name(),
                    "what": series.case.what(&self.scale),
                    "database": series.kind.name(),
                    "median": Figures::over(&runs, median),
                    "min": Figures::over(&runs, least),
                    "max": Figures::over(&runs, most),
                    "runs": runs,
                })
            })
            .collect();
        json!({
            "time": self.time,
            "command": self.command_line(),
            "machine": self.machine,
            "versions": self.versions,
            "scale": self.scale,
            "max_in_flight": self.in_flight,
            "floors": self.floors,
            "works": works,
            "targets": targets::judge(self),
            "is_exact": self.is_exact(),
        })
    }
}

fn targets_table(judged: &[Judged]) -> Table {
    let mut table = Table::new(&["TARGET", "DATABASE", "FIGURE", "WANTED", "MEASURED", ""]);
    for target in judged {
        let (word, style) =
            if target.is_met { ("met", Style::Good) } else { ("missed", Style::Pending) };
        table.row([
            target.work.into(),
            target.database.into(),
            target.figure.into(),
            target.wanted.clone().into(),
            right(&amount(target.measured), 9).into(),
            Cell::new(word, style),
        ]);
    }
    table
}

/// A figure with as many digits as it is worth.
pub(crate) fn amount(value: f64) -> String {
    if value >= 1_000.0 { whole(value) } else { format!("{value:.2}") }
}

/// `12,345`.
pub(crate) fn whole(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Text at the right edge of `width` columns: numbers below each other.
fn right(text: &str, width: usize) -> String {
    format!("{text:>width$}")
}
