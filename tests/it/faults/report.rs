//! What the runs of this process have come to, as a table.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::history::Verdict;

static ROWS: Mutex<Vec<String>> = Mutex::new(Vec::new());

const HEAD: &str =
    "| run | seed | faults fired | attempted | acknowledged | delivered | duplicates (at most) | lost | s |
|---|---|---|---|---|---|---|---|---|";

/// A run under way.
pub(super) struct Report {
    name: String,
    seed: u64,
    start: Instant,
    fired: BTreeMap<String, usize>,
}

impl Report {
    pub(super) fn begin(name: impl Into<String>, seed: u64) -> Self {
        let name = name.into();
        println!("{name}: seed {seed}; repeat it with TIDINGS_TEST_FAULT_SEED={seed}");
        Self { name, seed, start: Instant::now(), fired: BTreeMap::new() }
    }

    /// A fault fired.
    pub(super) fn fired(&mut self, fault: &str) {
        *self.fired.entry(fault.to_owned()).or_default() += 1;
    }

    /// How often a fault fired.
    pub(super) fn count(&self, fault: &str) -> usize {
        self.fired.get(fault).copied().unwrap_or(0)
    }

    /// Adds the run to the table, and prints the table so far.
    pub(super) fn end(&self, verdict: &Verdict, failed: usize, resumed: usize, interrupted: usize) {
        let mut fired = String::new();
        for (fault, times) in &self.fired {
            write!(fired, "{times} {fault}, ").expect("written");
        }
        let row = format!(
            "| {} | {} | {fired}{failed} answers, {resumed} streams | {} | {} | {} | {} ({interrupted}) | {} | {} |",
            self.name,
            self.seed,
            verdict.attempted,
            verdict.acknowledged,
            verdict.delivered,
            verdict.duplicates,
            verdict.lost.len(),
            self.start.elapsed().as_secs()
        );
        let mut rows = ROWS.lock().unwrap_or_else(PoisonError::into_inner);
        rows.push(row);
        println!("\n{HEAD}\n{}\n", rows.join("\n"));
    }
}
