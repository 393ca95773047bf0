//! The works: what is emitted to whom, and what is measured of it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::emit::{Emission, Source, TYPES};
use crate::figures::{Outcome, count, millis, name};
use crate::options::{Kind, Options, Scale};
use crate::stage::{STALL, Setup, Stage};
use crate::watch::Watchers;
use crate::{Result, host};

/// Events per call of the batched work.
const BATCH: usize = 100;
/// Tenants of W3.
const TENANTS: usize = 100;
/// Endpoints of W2.
const FAN_OUT: usize = 10;
/// W4's rate.
const PACED_PER_SECOND: u32 = 200;
/// W5's rates, of the good endpoint and of those that never answer together.
const BESIDE_PER_SECOND: u32 = 40;
/// How long after the last expected arrival a duplicate may still show itself.
const AFTERMATH: Duration = Duration::from_millis(500);

/// A row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Case {
    W1,
    W1Batch,
    W2,
    W3,
    W4,
    W5Alone,
    W5BesideOne,
    W5BesideMany,
    W6,
    WatchersOfTypes,
    WatchersOfAll,
    Mail,
}

impl Case {
    pub(crate) const ALL: [Self; 12] = [
        Self::W1,
        Self::W1Batch,
        Self::W2,
        Self::W3,
        Self::W4,
        Self::W5Alone,
        Self::W5BesideOne,
        Self::W5BesideMany,
        Self::W6,
        Self::WatchersOfTypes,
        Self::WatchersOfAll,
        Self::Mail,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::W1 => "W1",
            Self::W1Batch => "W1 batch",
            Self::W2 => "W2",
            Self::W3 => "W3",
            Self::W4 => "W4",
            Self::W5Alone => "W5 alone",
            Self::W5BesideOne => "W5 beside one",
            Self::W5BesideMany => "W5 beside many",
            Self::W6 => "W6",
            Self::WatchersOfTypes => "watchers",
            Self::WatchersOfAll => "watchers of all",
            Self::Mail => "mail",
        }
    }

    /// What it is, in a few words.
    pub(crate) fn what(self, scale: &Scale) -> String {
        let (events, silent) = (scale.events, scale.silent);
        let (paced, beside) = (scale.paced.as_secs(), scale.beside.as_secs());
        match self {
            Self::W1 => format!("one tenant, one endpoint, {events} events"),
            Self::W1Batch => format!("W1 with EmitBatch of {BATCH}"),
            Self::W2 => format!("{} events to {FAN_OUT} endpoints each", scale.fan_out_events),
            Self::W3 => format!("{TENANTS} tenants with one endpoint each, {events} events"),
            Self::W4 => format!("one endpoint, {PACED_PER_SECOND} events/s for {paced} s"),
            Self::W5Alone => {
                format!("a good endpoint, {BESIDE_PER_SECOND} events/s for {beside} s")
            }
            Self::W5BesideOne => {
                format!("beside one that never answers, {BESIDE_PER_SECOND} events/s")
            }
            Self::W5BesideMany => {
                format!("beside {silent} that never answer, {BESIDE_PER_SECOND} events/s in all")
            }
            Self::W6 => format!(
                "{} due deliveries to {silent} endpoints that never answer, then W1",
                scale.backlog
            ),
            Self::WatchersOfTypes => format!(
                "W1 with {} watchers, each of one in {TYPES} types of events",
                scale.watchers
            ),
            Self::WatchersOfAll => format!("W1 with {} watchers of everything", scale.watchers),
            Self::Mail => format!("one tenant, one recipient of mail, {} events", scale.mails),
        }
    }

    fn setup(self, scale: &Scale) -> Setup {
        let one = Setup { tenants: 1, endpoints: 1, ..Setup::default() };
        match self {
            Self::W2 => Setup { endpoints: FAN_OUT, ..one },
            Self::Mail => Setup { is_mail: true, ..one },
            Self::W3 => Setup { tenants: TENANTS, ..one },
            Self::W5BesideOne => Setup { silent: 1, ..one },
            Self::W5BesideMany => Setup { silent: scale.silent, ..one },
            Self::W6 => Setup { silent: scale.silent, backlog: scale.backlog, ..one },
            _ => one,
        }
    }

    const fn watchers(self) -> Option<bool> {
        match self {
            Self::WatchersOfTypes => Some(false),
            Self::WatchersOfAll => Some(true),
            _ => None,
        }
    }
}

/// Runs a case once on a database of its own.
pub(crate) async fn run(
    case: Case,
    kind: Kind,
    options: &Options,
    folder: &Path,
) -> Result<Outcome> {
    let scale = options.scale();
    let setup = case.setup(&scale);
    let stage = Stage::set(setup, kind, options, folder, "run").await?;
    if setup.backlog > 0 {
        tokio::time::sleep(scale.soak).await;
    }
    let watchers = watch(case, &stage, &scale).await?;
    if setup.backlog == 0 {
        stage.database.checkpoint().await?;
    }
    stage.receiver.reset(scale.events);
    let pid = stage.service.pid();
    let own = std::process::id();
    let before = (host::cpu(pid), stage.database.cpu().await, host::cpu(own));
    let emissions = load(case, &stage, &scale).await?;
    let deliveries = emissions.len() * setup.endpoints;
    stage.receiver.wait(deliveries, STALL).await;
    let arrived = Instant::now();
    let open = stage.open().await?;
    let recorded_after = arrived.elapsed();
    let after = (host::cpu(pid), stage.database.cpu().await, host::cpu(own));
    let told = match watchers {
        None => None,
        Some(watchers) => Some(watchers.wait(heard(case, emissions.len(), &scale)).await?),
    };
    let (silent_open, peak_memory) = (stage.silent.open(), host::peak_memory(pid));
    tokio::time::sleep(AFTERMATH).await;
    let mut outcome = Outcome::of(&emissions, &stage.receiver.arrivals(), setup.endpoints);
    let is_exact = outcome.figures.is_exact();
    if is_exact && open > 0 {
        return Err(format!("{open} deliveries arrived and were never recorded").into());
    }
    // What is lost or came twice is told in the table, with everything else that was measured.
    stage.strike(is_exact.then_some(deliveries)).await?;
    let figures = &mut outcome.figures;
    // Beside others' load, what the service uses is not the good events' alone.
    if setup.silent == 0 {
        let used = |before: Option<Duration>, after: Option<Duration>| {
            Some(millis(after?.saturating_sub(before?)) / count(emissions.len()))
        };
        figures.set(name::SERVICE_CPU, used(before.0, after.0));
        figures.set(name::DATABASE_CPU, used(before.1, after.1));
        figures.set(name::LOAD_CPU, used(before.2, after.2));
    } else {
        figures.set(name::SILENT_OPEN, count(silent_open));
    }
    figures.set(name::PEAK_MEMORY, peak_memory);
    figures.set(name::RECORDED_AFTER, millis(recorded_after));
    figures.set(name::CHANGES_WATCHED, told.map(count));
    Ok(outcome)
}

async fn watch(case: Case, stage: &Stage, scale: &Scale) -> Result<Option<Watchers>> {
    let Some(is_of_all) = case.watchers() else { return Ok(None) };
    let tenant = stage.tenants.first().ok_or("no tenant")?;
    Watchers::open(&stage.service, tenant, scale.watchers, is_of_all).await.map(Some)
}

/// How many successes all watchers together have to be told of.
fn heard(case: Case, events: usize, scale: &Scale) -> usize {
    if case == Case::WatchersOfAll {
        return events * scale.watchers;
    }
    // The types are emitted in turn; the first of them have watchers.
    (0..events).filter(|number| number % TYPES < scale.watchers).count()
}

async fn load(case: Case, stage: &Stage, scale: &Scale) -> Result<Vec<Emission>> {
    let source = stage.source(TYPES, "load");
    let emitter = &stage.emitter;
    match case {
        Case::W1Batch => emitter.closed(&source, scale.events, BATCH).await,
        Case::W2 => emitter.closed(&source, scale.fan_out_events, 1).await,
        Case::Mail => emitter.closed(&source, scale.mails, 1).await,
        Case::W4 => emitter.paced(&source, PACED_PER_SECOND, scale.paced).await,
        Case::W5Alone => emitter.paced(&source, BESIDE_PER_SECOND, scale.beside).await,
        Case::W5BesideOne | Case::W5BesideMany => {
            let beside = Source {
                tenants: Arc::clone(&stage.silent_tenants),
                prefix: "silent",
                // The endpoints of a tenant, in turn.
                types: scale.silent.min(if case == Case::W5BesideOne { 1 } else { TYPES }),
                label: "beside",
            };
            let (good, silent) = tokio::join!(
                emitter.paced(&source, BESIDE_PER_SECOND, scale.beside),
                emitter.paced(&beside, BESIDE_PER_SECOND, scale.beside)
            );
            silent?;
            good
        }
        Case::W1 | Case::W3 | Case::W6 | Case::WatchersOfTypes | Case::WatchersOfAll => {
            emitter.closed(&source, scale.events, 1).await
        }
    }
}
