//! The measurement that ships with the product: how much one machine that runs everything carries.
//!
//! Starts what it needs (the service as a process of its own, fresh databases, a load generator and
//! receivers in this process), runs the works of `works.rs` on SQLite and on PostgreSQL, and writes
//! a table for people, JSON for programs, and plots. Beside the works stand the floors of the
//! machine, measured in the same run. `docs/performance.md` says what the figures mean.
//!
//! Guarantees: figures come only from databases that sync each commit to a disk; an event that was
//! acknowledged and never arrived, or that arrived twice, fails the run (exit code 1).
//! Does not judge speed: targets are printed beside the figures, met or not.

#![expect(clippy::disallowed_methods, reason = "a measurement reads the real clock")]

mod backlog;
mod database;
mod emit;
mod figures;
mod floors;
mod host;
mod line;
mod markdown;
mod options;
mod plot;
mod receiver;
mod report;
mod service;
mod stage;
mod targets;
mod watch;
mod works;

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::Parser;
use mimalloc::MiMalloc;

use options::{Kind, Options};
use report::{Report, Series};
use works::Case;

/// The service's own: what the load costs is taken from what is measured.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// What went wrong, for a person to read.
pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;
/// The result of everything that can fail here.
pub(crate) type Result<T> = std::result::Result<T, Error>;

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("throughput: events were lost or duplicated, see above");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("throughput: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs everything; gives whether each acknowledged event arrived exactly once.
fn run(options: &Options) -> Result<bool> {
    if options.kinds().contains(&Kind::Postgres) && options.postgres_url.is_none() {
        return Err(with_postgres());
    }
    host::allow_many_files();
    // Without one, the spans of HTTP/2 are made for a log that nobody reads.
    tracing::subscriber::set_global_default(tracing::subscriber::NoSubscriber::new())?;
    // One thread: what the load and the receivers do is less than a core's work, and a second thread
    // would take a part of what is measured for waking the first.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(measure(options))
}

/// Becomes the same command under a PostgreSQL of its own; returns only when that fails.
fn with_postgres() -> Error {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/with-postgres");
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return error.into(),
    };
    let error = Command::new(&script).arg(program).args(std::env::args_os().skip(1)).exec();
    format!("{} cannot be run: {error}", script.display()).into()
}

async fn measure(options: &Options) -> Result<bool> {
    let folder = scratch()?;
    let mut report = Report::begin(options, &folder).await?;
    for kind in options.kinds() {
        database::check_durable(kind, options, &folder).await?;
    }
    progress("measuring the floors of this machine");
    report.floors = floors::measure(options, &folder).await?;
    let cases: Vec<Case> = options.cases();
    for run in 1..=options.runs() {
        for kind in options.kinds() {
            for &case in &cases {
                progress(&format!(
                    "run {run} of {}: {} on {}",
                    options.runs(),
                    case.name(),
                    kind.name()
                ));
                let outcome = works::run(case, kind, options, &folder).await?;
                progress(&format!("    {}", outcome.figures.in_short()));
                report.add(Series { case, kind }, outcome);
            }
        }
    }
    fs::remove_dir_all(&folder)?;
    let output = options.output();
    fs::create_dir_all(&output)?;
    report.print();
    report.write(&output)?;
    plot::draw(&report, &output)?;
    progress(&format!("written to {}", output.display()));
    Ok(report.is_exact())
}

/// A new folder on the disk that the project is on: SQLite's databases, and the files of the floor.
fn scratch() -> Result<PathBuf> {
    let folder =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("throughput-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// Tells a person how far it is, on standard error.
pub(crate) fn progress(text: &str) {
    eprintln!("{text}");
}
