//! The command line, and how large the works are.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Parser, ValueEnum};

use crate::works::Case;

const EXAMPLES: &str = "\
Examples:
  make bench
      Everything: three runs of all works on both databases. Takes about half an hour; leave the
      machine alone meanwhile.

  make bench BENCH_ARGS='--quick'
      A look whether everything works. The figures mean nothing.

  make bench BENCH_ARGS='--work W1,W4 --database postgres --runs 5 --output /tmp/figures'
      A part of it, somewhere else.

  cargo bench --bench throughput -- --binary target/release/tidings --work W1
      A service that was built before, for example under a profiler's eyes.

The works (1 KiB of JSON each event; 64 callers that emit one event at a time, unless it says otherwise):
  W1        one tenant, one endpoint, 20,000 events
  W1-batch  the same with EmitBatch of 100
  W2        2,000 events to 10 endpoints each
  W3        100 tenants with one endpoint each, 20,000 events
  W4        one tenant, one endpoint, 200 events/s for 30 s
  W5        a good endpoint at 40 events/s: alone, beside one that never answers, beside 1,000
  W6        1,000,000 due deliveries to 1,000 endpoints that never answer, then W1
  watchers  W1 with 100 WatchDeliveries streams: of one type of event in a hundred, then of everything
  mail      one tenant, one recipient, 5,000 events, a mail server on the loopback that takes everything

W6 and watchers are compared with W1, so W1 is run with them.

Exit codes: 0 measured, 1 failed, or an event was lost or came twice, 2 wrongly used. Whether a target \
was met does not change it.";

/// Measures Tidings on this machine: rates, latencies, cost and memory.
#[derive(Debug, Parser)]
#[command(name = "throughput", after_help = EXAMPLES)]
pub(crate) struct Options {
    /// Works to run, comma-separated; all when none is named
    #[arg(long, value_delimiter = ',', ignore_case = true, value_name = "WORKS")]
    work: Vec<Work>,
    /// Databases to run them on, comma-separated; both when none is named
    #[arg(long, value_delimiter = ',', ignore_case = true, value_name = "DATABASES")]
    database: Vec<Kind>,
    /// How often each work is run; the table shows the median
    #[arg(long, default_value_t = 3, value_name = "COUNT", value_parser = positive)]
    runs: usize,
    /// Events of W1; the other works, backlogs and durations shrink or grow with it
    #[arg(long, default_value_t = FULL_EVENTS, value_name = "COUNT", value_parser = positive)]
    events: usize,
    /// One small run: as `--events 1000 --runs 1`, written beside the build unless --output is given
    #[arg(long, conflicts_with_all = ["events", "runs"])]
    quick: bool,
    /// Where throughput.json, README.md and the plots go; docs/benchmarks by default
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// `max_in_flight` of the good endpoints; the product's default when not given
    #[arg(long, value_name = "COUNT")]
    pub(crate) in_flight: Option<i32>,
    /// The service to measure; the one that cargo built beside this program by default
    #[arg(long, env = "TIDINGS_BENCH_BINARY", value_name = "PATH", default_value = env!("CARGO_BIN_EXE_tidings"))]
    pub(crate) binary: PathBuf,
    /// A PostgreSQL superuser's URL. Without one this program starts a server of its own
    #[arg(long, env = "TIDINGS_TEST_POSTGRES_URL", value_name = "URL", hide_env_values = true)]
    pub(crate) postgres_url: Option<String>,
    /// Cargo says this to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

/// Events of W1 as the works define it.
const FULL_EVENTS: usize = 20_000;
const QUICK_EVENTS: usize = 1_000;

fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("must be a whole number from 1 on".into()),
        Ok(number) => Ok(number),
    }
}

/// What can be asked for by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Work {
    W1,
    W1Batch,
    W2,
    W3,
    W4,
    W5,
    W6,
    Watchers,
    Mail,
}

impl Work {
    const fn cases(self) -> &'static [Case] {
        match self {
            Self::W1 => &[Case::W1],
            Self::W1Batch => &[Case::W1Batch],
            Self::W2 => &[Case::W2],
            Self::W3 => &[Case::W3],
            Self::W4 => &[Case::W4],
            Self::W5 => &[Case::W5Alone, Case::W5BesideOne, Case::W5BesideMany],
            Self::W6 => &[Case::W1, Case::W6],
            Self::Mail => &[Case::Mail],
            Self::Watchers => &[Case::W1, Case::WatchersOfTypes, Case::WatchersOfAll],
        }
    }
}

/// A database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Kind {
    Sqlite,
    Postgres,
}

impl Kind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "SQLite",
            Self::Postgres => "PostgreSQL",
        }
    }
}

impl Options {
    /// The databases, each once.
    pub(crate) fn kinds(&self) -> Vec<Kind> {
        [Kind::Sqlite, Kind::Postgres]
            .into_iter()
            .filter(|kind| self.database.is_empty() || self.database.contains(kind))
            .collect()
    }

    /// What is to be run, each once, in the order of the works.
    pub(crate) fn cases(&self) -> Vec<Case> {
        let works = if self.work.is_empty() { Work::value_variants() } else { &self.work };
        let asked: Vec<Case> = works.iter().flat_map(|work| work.cases()).copied().collect();
        Case::ALL.into_iter().filter(|case| asked.contains(case)).collect()
    }

    pub(crate) fn scale(&self) -> Scale {
        Scale::of(if self.quick { QUICK_EVENTS } else { self.events })
    }

    pub(crate) fn runs(&self) -> usize {
        if self.quick { 1 } else { self.runs }
    }

    /// Where to write. A quick look must not replace real figures unless it was told to.
    pub(crate) fn output(&self) -> PathBuf {
        match &self.output {
            Some(output) => output.clone(),
            None if self.quick => Path::new(env!("CARGO_TARGET_TMPDIR")).join("throughput-quick"),
            None => Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/benchmarks"),
        }
    }
}

/// The sizes of the works.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub(crate) struct Scale {
    /// W1, W3, W6, watchers.
    pub(crate) events: usize,
    /// W2.
    pub(crate) fan_out_events: usize,
    /// Mail.
    pub(crate) mails: usize,
    /// How long W4 lasts.
    #[serde(serialize_with = "seconds")]
    pub(crate) paced: Duration,
    /// How long each part of W5 lasts.
    #[serde(serialize_with = "seconds")]
    pub(crate) beside: Duration,
    /// Endpoints that never answer, in W5 and W6.
    pub(crate) silent: usize,
    /// Due deliveries in W6.
    pub(crate) backlog: usize,
    /// How long the service works on that before W1 begins.
    #[serde(serialize_with = "seconds")]
    pub(crate) soak: Duration,
    /// Streams.
    pub(crate) watchers: usize,
    /// How long each floor is measured.
    #[serde(serialize_with = "seconds")]
    pub(crate) floor: Duration,
}

fn seconds<S: serde::Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(duration.as_secs_f64())
}

impl Scale {
    /// The works as they are defined, when W1 has [`FULL_EVENTS`]; else in proportion.
    fn of(events: usize) -> Self {
        let part = |full: usize, least: usize| (full * events / FULL_EVENTS).max(least);
        let millis = |full: usize, least: usize| {
            Duration::from_millis(u64::try_from(part(full, least)).unwrap_or(u64::MAX))
        };
        Self {
            events,
            fan_out_events: part(2_000, 20),
            mails: part(5_000, 50),
            paced: millis(30_000, 2_000),
            beside: millis(20_000, 2_000),
            silent: part(1_000, 20).min(1_000),
            backlog: part(1_000_000, 2_000),
            soak: millis(10_000, 1_000).min(Duration::from_secs(10)),
            watchers: part(100, 10).min(100),
            floor: millis(3_000, 200).min(Duration::from_secs(3)),
        }
    }
}
