//! Watchers of the tenant's deliveries while things break: one stays with a replica for as long as that
//! tells it anything, one moves on to another all the time. Both resume where they stopped.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tidings::api::proto::{Delivery, WatchDeliveriesRequest, WatchDeliveriesResponse};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::{Status, Streaming};

use super::history::{Stored, Told};
use super::load::{Targets, without_excuse};
use crate::support::Client;
use crate::watch;

/// How long a stream may take to be opened.
const OPENING: Duration = Duration::from_secs(5);
/// How long the one that stays bears silence: checkpoints come every 15 s.
const SILENCE: Duration = Duration::from_secs(20);
/// How long they may take in the end to hear of everything.
const PATIENCE: Duration = Duration::from_mins(1);

type Responses = Streaming<WatchDeliveriesResponse>;

/// How a watcher leaves its replica.
#[derive(Clone, Copy)]
enum Way {
    Stays,
    Moves,
}

struct Watcher {
    way: Way,
    targets: Targets,
    key: String,
    request: WatchDeliveriesRequest,
    told: Mutex<Vec<Told>>,
    resumed: AtomicUsize,
    /// Ends of streams that no fault excuses.
    strange: Mutex<HashSet<String>>,
}

pub(super) struct Watchers {
    watchers: Vec<Arc<Watcher>>,
    tasks: JoinSet<()>,
}

/// What the watchers have been told.
pub(super) struct Watched {
    pub(super) told: Vec<Vec<Told>>,
    /// How often one of them went on where it had stopped.
    pub(super) resumed: usize,
}

impl Watchers {
    /// Begins at what `client` says is now; from then on `targets` are asked.
    pub(super) async fn begin(
        client: &Client,
        key: &str,
        targets: &Targets,
        tenant_id: &str,
        seed: u64,
    ) -> Self {
        let (mut watchers, mut tasks) = (Vec::new(), JoinSet::new());
        for (number, way) in [(0, Way::Stays), (1, Way::Moves)] {
            let tenant_id = tenant_id.to_owned();
            let mut request = WatchDeliveriesRequest { tenant_id, ..Default::default() };
            let mut first = watch::watch(client, request.clone()).await;
            request.resume_token = watch::next(&mut first).await.resume_token;
            let watcher = Arc::new(Watcher {
                way,
                targets: targets.clone(),
                key: key.into(),
                request,
                told: Mutex::default(),
                resumed: AtomicUsize::new(0),
                strange: Mutex::default(),
            });
            let random = StdRng::seed_from_u64(seed ^ (number << 16));
            tasks.spawn(run(Arc::clone(&watcher), random));
            watchers.push(watcher);
        }
        Self { watchers, tasks }
    }

    /// Waits until they have been told of the last change of each of `stored`. (What they were not told in
    /// time is for the checker to say.)
    pub(super) async fn hear_of(&self, stored: &[Stored]) {
        let start = Instant::now();
        let all = |watcher: &Arc<Watcher>| watcher.has_heard_of(stored);
        while !self.watchers.iter().all(all) && start.elapsed() < PATIENCE {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Ends them.
    ///
    /// # Panics
    /// When a stream ended as no fault excuses, or none had to be resumed.
    pub(super) async fn end(mut self) -> Watched {
        self.tasks.shutdown().await;
        for watcher in &self.watchers {
            let strange = locked(&watcher.strange).clone();
            assert!(strange.is_empty(), "ends of streams that no fault excuses: {strange:#?}");
            let resumed = watcher.resumed.load(Ordering::Relaxed);
            assert!(resumed > 0 || matches!(watcher.way, Way::Stays), "no stream was resumed");
        }
        Watched {
            told: self.watchers.iter().map(|one| std::mem::take(&mut *locked(&one.told))).collect(),
            resumed: self.watchers.iter().map(|one| one.resumed.load(Ordering::Relaxed)).sum(),
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Watches until it is aborted.
async fn run(watcher: Arc<Watcher>, mut random: StdRng) {
    let (mut request, mut channels) = (watcher.request.clone(), HashMap::new());
    for stream in 0.. {
        if let Some(channel) = watcher.targets.channel(&mut channels, &mut random) {
            let mut deliveries = Client::on(channel, &watcher.key).deliveries();
            match timeout(OPENING, deliveries.watch_deliveries(request.clone())).await {
                Ok(Ok(opened)) => {
                    if stream > 0 {
                        watcher.resumed.fetch_add(1, Ordering::Relaxed);
                    }
                    let read = watcher.read(opened.into_inner(), stream, &mut request.resume_token);
                    let stay = match watcher.way {
                        Way::Stays => Duration::MAX,
                        Way::Moves => Duration::from_millis(random.random_range(50..1_500)),
                    };
                    drop(timeout(stay, read).await);
                }
                Ok(Err(status)) => watcher.note(&status),
                Err(_) => {}
            }
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(10..60))).await;
    }
}

impl Watcher {
    /// Reads until the stream ends, or is silent for too long.
    async fn read(&self, mut from: Responses, stream: usize, token: &mut String) {
        while let Ok(next) = timeout(SILENCE, from.message()).await {
            match next {
                Ok(Some(response)) => {
                    locked(&self.told).extend(response.delivery.map(|one| told(stream, one)));
                    *token = response.resume_token;
                }
                Ok(None) => break,
                Err(status) => return self.note(&status),
            }
        }
    }

    fn note(&self, status: &Status) {
        locked(&self.strange).extend(without_excuse(status));
    }

    fn has_heard_of(&self, stored: &[Stored]) -> bool {
        let told = locked(&self.told);
        let told: HashSet<_> =
            told.iter().map(|told| (told.delivery_id.as_str(), told.revision)).collect();
        stored.iter().all(|stored| told.contains(&(stored.delivery_id.as_str(), stored.revision)))
    }
}

fn told(stream: usize, delivery: Delivery) -> Told {
    let state = delivery.state().as_str_name();
    Told {
        stream,
        state: state.strip_prefix("DELIVERY_STATE_").unwrap_or(state).into(),
        delivery_id: delivery.id,
        revision: usize::try_from(delivery.revision).unwrap_or_default(),
    }
}
