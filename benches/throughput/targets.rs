//! What the product sets out to reach, on a quiet machine of two cores that runs everything.
//!
//! Printed beside the figures; a target that is missed is news, not an error.

use serde::Serialize;

use crate::figures::{Figures, name};
use crate::options::Kind;
use crate::report::{Report, Series};
use crate::works::Case;

/// How a figure is compared.
#[derive(Clone, Copy)]
enum Limit {
    Least(f64),
    Most(f64),
    /// In proportion to the same figure of another case.
    LeastOf(f64, Case),
    MostOf(f64, Case),
}

use Limit::{Least, LeastOf, Most, MostOf};

const TARGETS: &[(Case, Kind, &str, Limit)] = &[
    (Case::W1, Kind::Postgres, name::DELIVERED, Least(10_000.0)),
    (Case::W1, Kind::Postgres, name::ACCEPTANCE_P50, Most(7.0)),
    (Case::W1, Kind::Postgres, name::ACCEPTANCE_P99, Most(25.0)),
    (Case::W1, Kind::Postgres, name::PEAK_MEMORY, Most(64.0)),
    (Case::W1, Kind::Sqlite, name::DELIVERED, Least(10_000.0)),
    (Case::W1Batch, Kind::Postgres, name::ACCEPTED, Least(30_000.0)),
    (Case::W1Batch, Kind::Postgres, name::DELIVERED, Least(11_000.0)),
    (Case::W2, Kind::Postgres, name::DELIVERED, Least(20_000.0)),
    (Case::W3, Kind::Postgres, name::DELIVERED, Least(10_000.0)),
    (Case::W3, Kind::Postgres, name::ACCEPTANCE_P50, Most(7.0)),
    (Case::W3, Kind::Postgres, name::ACCEPTANCE_P99, Most(25.0)),
    (Case::W4, Kind::Postgres, name::END_TO_END_P50, Most(1.1)),
    (Case::W4, Kind::Postgres, name::END_TO_END_P99, Most(4.0)),
    (Case::W5BesideOne, Kind::Postgres, name::END_TO_END_P99, MostOf(2.0, Case::W5Alone)),
    (Case::W5BesideMany, Kind::Postgres, name::END_TO_END_P99, MostOf(2.0, Case::W5Alone)),
    (Case::W6, Kind::Postgres, name::DELIVERED, LeastOf(0.8, Case::W1)),
    (Case::W6, Kind::Postgres, name::PEAK_MEMORY, Most(256.0)),
    (Case::Mail, Kind::Postgres, name::DELIVERED, Least(1_000.0)),
    (Case::Mail, Kind::Sqlite, name::DELIVERED, Least(1_000.0)),
    (Case::WatchersOfTypes, Kind::Postgres, name::DELIVERED, LeastOf(0.85, Case::W1)),
];

/// A target beside what was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Judged {
    pub(crate) work: &'static str,
    pub(crate) database: &'static str,
    pub(crate) figure: &'static str,
    /// What was wanted, in words.
    pub(crate) wanted: String,
    /// The median, or its proportion to the other work's.
    pub(crate) measured: f64,
    pub(crate) is_met: bool,
}

/// All targets of what was measured.
pub(crate) fn judge(report: &Report) -> Vec<Judged> {
    let median = |case, kind, name| report.median(Series { case, kind })?.get(name);
    let judged = TARGETS.iter().filter_map(|&(case, kind, figure, limit)| {
        let value = median(case, kind, figure)?;
        let ratio = |other| {
            let other = median(other, kind, figure)?;
            (other > 0.0).then_some(value / other)
        };
        let (measured, wanted, is_met) = match limit {
            Least(least) => (value, format!("at least {least}"), value >= least),
            Most(most) => (value, format!("at most {most}"), value <= most),
            LeastOf(least, other) => {
                let ratio = ratio(other)?;
                (ratio, format!("at least {least} of {}", other.name()), ratio >= least)
            }
            MostOf(most, other) => {
                let ratio = ratio(other)?;
                (ratio, format!("at most {most} of {}", other.name()), ratio <= most)
            }
        };
        Some(Judged { work: case.name(), database: kind.name(), figure, wanted, measured, is_met })
    });
    judged.collect()
}

/// The works in which each event arrived exactly once, and those in which not.
pub(crate) fn is_exact(runs: &[Figures]) -> bool {
    runs.iter().all(Figures::is_exact)
}
