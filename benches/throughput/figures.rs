//! The figures of a run, and how they come from what was seen.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use serde::Serialize;
use tidings::domain::id::EventId;

use crate::emit::Emission;
use crate::receiver::Arrival;

/// Names of figures, with their units.
pub(crate) mod name {
    pub(crate) const ACCEPTED: &str = "accepted_per_s";
    pub(crate) const DELIVERED: &str = "delivered_per_s";
    pub(crate) const ACCEPTANCE_P50: &str = "acceptance_p50_ms";
    pub(crate) const ACCEPTANCE_P99: &str = "acceptance_p99_ms";
    pub(crate) const ACCEPTANCE_MAX: &str = "acceptance_max_ms";
    pub(crate) const END_TO_END_P50: &str = "end_to_end_p50_ms";
    pub(crate) const END_TO_END_P99: &str = "end_to_end_p99_ms";
    pub(crate) const END_TO_END_MAX: &str = "end_to_end_max_ms";
    pub(crate) const LOST: &str = "lost";
    pub(crate) const DUPLICATES: &str = "duplicates";
    pub(crate) const REFUSED: &str = "refused_and_repeated";
    pub(crate) const SERVICE_CPU: &str = "service_cpu_ms_per_event";
    pub(crate) const DATABASE_CPU: &str = "database_cpu_ms_per_event";
    pub(crate) const LOAD_CPU: &str = "load_cpu_ms_per_event";
    pub(crate) const PEAK_MEMORY: &str = "peak_memory_mib";
    pub(crate) const RECORDED_AFTER: &str = "recorded_after_last_arrival_ms";
    pub(crate) const SILENT_OPEN: &str = "silent_connections_open";
    pub(crate) const CHANGES_WATCHED: &str = "changes_watched";
}

/// Figures by name. A figure that could not be measured is not there.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(transparent)]
pub(crate) struct Figures(BTreeMap<&'static str, f64>);

impl Figures {
    pub(crate) fn set(&mut self, name: &'static str, value: impl Into<Option<f64>>) {
        if let Some(value) = value.into() {
            // A thousandth is more than any of them is exact to.
            self.0.insert(name, (value * 1_000.0).round() / 1_000.0);
        }
    }

    pub(crate) fn get(&self, name: &str) -> Option<f64> {
        self.0.get(name).copied()
    }

    /// Whether each acknowledged event arrived exactly once at each endpoint.
    pub(crate) fn is_exact(&self) -> bool {
        [name::LOST, name::DUPLICATES].iter().all(|name| self.get(name) == Some(0.0))
    }

    /// Figure by figure, what `choose` makes of the sorted values of all runs.
    pub(crate) fn over(runs: &[Self], choose: fn(&[f64]) -> f64) -> Self {
        let mut values: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
        for (name, value) in runs.iter().flat_map(|run| &run.0) {
            values.entry(name).or_default().push(*value);
        }
        let chosen = values.into_iter().map(|(name, mut values)| {
            values.sort_by(f64::total_cmp);
            (name, choose(&values))
        });
        Self(chosen.collect())
    }

    /// One line for the progress.
    pub(crate) fn in_short(&self) -> String {
        let shown = |name, digits| {
            self.get(name).map_or_else(|| "?".into(), |value| format!("{value:.digits$}"))
        };
        format!(
            "{} delivered/s, end-to-end p50 {} ms, p99 {} ms, lost {}, duplicates {}",
            shown(name::DELIVERED, 0),
            shown(name::END_TO_END_P50, 2),
            shown(name::END_TO_END_P99, 2),
            shown(name::LOST, 0),
            shown(name::DUPLICATES, 0)
        )
    }
}

/// The middle of sorted values; of an even number, the mean of the two in the middle.
pub(crate) fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    match sorted {
        [] => 0.0,
        values if values.len().is_multiple_of(2) => {
            f64::midpoint(values[middle - 1], values[middle])
        }
        values => values[middle],
    }
}

/// The smallest of sorted values.
pub(crate) fn least(sorted: &[f64]) -> f64 {
    sorted.first().copied().unwrap_or_default()
}

/// The largest of sorted values.
pub(crate) fn most(sorted: &[f64]) -> f64 {
    sorted.last().copied().unwrap_or_default()
}

/// The value that `percent` of the sorted values do not exceed (nearest rank).
pub(crate) fn percentile(sorted: &[f64], percent: usize) -> Option<f64> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

#[expect(clippy::cast_precision_loss, reason = "counts of a run are far below 2^52")]
pub(crate) const fn count(number: usize) -> f64 {
    number as f64
}

pub(crate) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

/// What the plots are drawn from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples {
    /// Milliseconds, sorted.
    pub(crate) acceptance: Vec<f64>,
    /// Milliseconds, sorted.
    pub(crate) end_to_end: Vec<f64>,
    /// Seconds since the first Emit, sorted.
    pub(crate) arrivals: Vec<f64>,
}

/// A run's figures and samples.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) figures: Figures,
    pub(crate) samples: Samples,
}

impl Outcome {
    /// Compares what was acknowledged with what arrived. Each event was due at `endpoints` of them.
    pub(crate) fn of(emissions: &[Emission], arrivals: &[Arrival], endpoints: usize) -> Self {
        let mut figures = Figures::default();
        let Some(start) = emissions.iter().map(|emission| emission.start).min() else {
            return Self { figures, samples: Samples::default() };
        };
        let emitted: HashMap<EventId, Instant> =
            emissions.iter().map(|emission| (emission.event, emission.start)).collect();
        let mut seen: HashMap<(EventId, usize), usize> = HashMap::with_capacity(arrivals.len());
        let mut samples = Samples::default();
        for arrival in arrivals {
            let Some(emit_time) = emitted.get(&arrival.event) else { continue };
            let times = seen.entry((arrival.event, arrival.endpoint)).or_default();
            *times += 1;
            if *times == 1 {
                samples.end_to_end.push(millis(arrival.time.duration_since(*emit_time)));
                samples.arrivals.push(arrival.time.duration_since(start).as_secs_f64());
            }
        }
        samples.acceptance.extend(
            emissions.iter().map(|emission| millis(emission.end.duration_since(emission.start))),
        );
        for values in [&mut samples.acceptance, &mut samples.end_to_end, &mut samples.arrivals] {
            values.sort_by(f64::total_cmp);
        }
        let duplicates: usize = seen.values().map(|times| times - 1).sum();
        let lost = (emitted.len() * endpoints).saturating_sub(seen.len());
        let last_answer = emissions.iter().map(|emission| emission.end).max().unwrap_or(start);
        let accepting = last_answer.duration_since(start).as_secs_f64();
        figures.set(name::ACCEPTED, count(emissions.len()) / accepting);
        let delivering = samples.arrivals.last();
        figures.set(name::DELIVERED, delivering.map(|seconds| count(seen.len()) / seconds));
        figures.set(name::ACCEPTANCE_P50, percentile(&samples.acceptance, 50));
        figures.set(name::ACCEPTANCE_P99, percentile(&samples.acceptance, 99));
        figures.set(name::ACCEPTANCE_MAX, percentile(&samples.acceptance, 100));
        figures.set(name::END_TO_END_P50, percentile(&samples.end_to_end, 50));
        figures.set(name::END_TO_END_P99, percentile(&samples.end_to_end, 99));
        figures.set(name::END_TO_END_MAX, percentile(&samples.end_to_end, 100));
        figures.set(name::LOST, count(lost));
        figures.set(name::DUPLICATES, count(duplicates));
        figures.set(name::REFUSED, count(emissions.iter().map(|e| e.refusals).sum()));
        Self { figures, samples }
    }
}
