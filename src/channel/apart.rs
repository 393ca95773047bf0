//! Attempts in a process of their own, for deliveries whose attempts have ended the service's.
//!
//! The service starts its own program again, hands it the task over a pipe, and reads the report from
//! another: whatever the attempt does to its process, the service outlives it and knows whose fault it
//! was. A process costs some milliseconds and megabytes, so no other attempt is made like this.
//!
//! Guarantees: what is told to have brought its process down had begun, and the process ended by
//! itself; no attempt outlasts [`MAX_TIMEOUT`] by much; nothing confidential is in arguments or
//! variables. A process whose service is gone ends with its attempt.

mod process;

pub use process::make;

use std::io;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;

use super::{email, webhook};
use crate::domain::Timestamp;
use crate::domain::attempt::{Report, Task};
use crate::domain::channel::MAX_TIMEOUT;

/// The hidden command by which the program makes one attempt.
pub const COMMAND: &str = "attempt-apart";
/// What the process says when all is ready and the attempt begins.
const BEGUN: &str = "begun";
/// Processes at once: each has about the memory of an idle service.
const MAX_PROCESSES: usize = 16;
/// How long a process may take to begin, and beyond the attempt's own limit to end.
const MARGIN: Duration = Duration::from_secs(10);
/// Most bytes of a report: headers and body are bounded far below.
const MAX_REPORT_BYTES: u64 = 4 * 1_024 * 1_024;

/// What came of an attempt in a process of its own.
#[derive(Debug)]
pub enum Apart {
    /// It ended like any other; without a report it panicked.
    Reported(Option<Box<Report>>),
    /// It brought its process down, or never ended: how, for the log.
    Died(String),
    /// The process did not come to the attempt. Says nothing about the delivery.
    NotBegun(io::Error),
}

/// What the process has to know.
#[derive(Serialize, Deserialize)]
struct Order {
    now: Timestamp,
    allow_cidrs: Vec<String>,
    deny_cidrs: Vec<String>,
    allow_http: bool,
    ca_file: Option<PathBuf>,
    email: email::Config,
    task: Task,
}

/// Starts processes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Processes {
    program: PathBuf,
    config: Arc<webhook::Config>,
    email: Arc<email::Config>,
    places: Arc<Semaphore>,
}

impl Processes {
    /// Has `program`, which understands [`COMMAND`], make attempts as the configurations say.
    pub fn new(program: PathBuf, config: webhook::Config, email: email::Config) -> Self {
        let places = Arc::new(Semaphore::new(MAX_PROCESSES));
        Self { program, config: Arc::new(config), email: Arc::new(email), places }
    }

    /// Makes one attempt, in its turn.
    pub(super) async fn attempt(&self, task: &Task, now: Timestamp) -> Apart {
        // The semaphore is never closed.
        let _place = self.places.acquire().await;
        let mut child = match self.start() {
            Ok(child) => child,
            Err(error) => return Apart::NotBegun(error),
        };
        match tokio::time::timeout(MARGIN, self.begin(&mut child, task, now)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Apart::NotBegun(error),
            Err(_) => return Apart::NotBegun(io::ErrorKind::TimedOut.into()),
        }
        match tokio::time::timeout(MAX_TIMEOUT + MARGIN, end(&mut child)).await {
            Ok(Ok((bytes, status))) => match serde_json::from_slice(&bytes) {
                Ok(report) if status.success() => Apart::Reported(report),
                _ => Apart::Died(status.to_string()),
            },
            Ok(Err(error)) => Apart::NotBegun(error),
            Err(_) => Apart::Died("it did not end".to_owned()),
        }
    }

    fn start(&self) -> io::Result<Child> {
        Command::new(&self.program)
            .arg(COMMAND)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // A key at the terminal is for the service alone.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
    }

    /// Hands the task over, and waits until the attempt begins.
    async fn begin(&self, child: &mut Child, task: &Task, now: Timestamp) -> io::Result<()> {
        let ranges = |ranges: &[webhook::Cidr]| ranges.iter().map(ToString::to_string).collect();
        let order = Order {
            now,
            allow_cidrs: ranges(&self.config.allow_cidrs),
            deny_cidrs: ranges(&self.config.deny_cidrs),
            allow_http: self.config.allow_http,
            ca_file: self.config.ca_file.clone(),
            email: (*self.email).clone(),
            task: task.clone(),
        };
        let order = zeroize::Zeroizing::new(serde_json::to_vec(&order)?);
        let mut input = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
        input.write_all(&order).await?;
        drop(input);
        let mut line = [0; BEGUN.len() + 1];
        let output = child.stdout.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        output.read_exact(&mut line).await?;
        let has_begun = line.strip_suffix(b"\n") == Some(BEGUN.as_bytes());
        if has_begun { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
    }
}

/// Reads the report, and waits for the end.
async fn end(child: &mut Child) -> io::Result<(Vec<u8>, ExitStatus)> {
    let mut report = Vec::new();
    if let Some(output) = child.stdout.as_mut() {
        output.take(MAX_REPORT_BYTES).read_to_end(&mut report).await?;
    }
    Ok((report, child.wait().await?))
}
