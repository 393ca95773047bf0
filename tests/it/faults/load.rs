//! Callers that emit while things break. Each event has a payload of its own and an idempotency key,
//! under which it is asked for again, of any replica, until somebody gives a definite answer.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tidings::api::proto::EmitRequest;
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

use super::history::{Answer, Attempted};
use crate::support::Client;
use crate::support::app::emit_request;

/// Callers at once.
const CALLERS: u64 = 8;
/// The pause of a caller between two events: the machine has other tests, too.
const PAUSE: Duration = Duration::from_millis(10);
/// How long one answer is waited for.
const DEADLINE: Duration = Duration::from_secs(5);
/// How long after the end of the run a caller goes on to ask for what it has not been told.
const PATIENCE: Duration = Duration::from_mins(1);
/// Every how many events one is refused for good, and one is asked for again after its answer.
const EVERY_BAD: u64 = 23;
const EVERY_AGAIN: u64 = 16;

/// The types of events; all of them go to the first endpoint, the first type to the second one, too.
pub(super) const PAID: &str = "order.paid";
pub(super) const SENT: &str = "order.sent";

/// The replicas that may be asked, which come and go.
#[derive(Clone, Default)]
pub(super) struct Targets(Arc<Mutex<Vec<String>>>);

impl Targets {
    pub(super) fn add(&self, endpoint: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(endpoint.to_owned());
    }

    pub(super) fn remove(&self, endpoint: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|other| other != endpoint);
    }

    fn pick(&self, random: &mut StdRng) -> Option<String> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (!all.is_empty()).then(|| all[random.random_range(0..all.len())].clone())
    }

    /// A way to one of them, if there is any; `known` are the ways that the caller has taken before.
    pub(super) fn channel(
        &self,
        known: &mut HashMap<String, Channel>,
        random: &mut StdRng,
    ) -> Option<Channel> {
        let target = self.pick(random)?;
        let channel = known.entry(target).or_insert_with_key(|target| {
            let endpoint = Endpoint::from_shared(target.clone()).expect("a URL");
            endpoint.connect_timeout(DEADLINE).connect_lazy()
        });
        Some(channel.clone())
    }
}

/// What the callers share.
struct Shared {
    targets: Targets,
    key: String,
    tenant_id: String,
    /// Whether an event is asked for again when nobody knows what became of it.
    asks_again: bool,
    is_over: AtomicBool,
    next: AtomicUsize,
    /// Answers that were not definite.
    failed: AtomicUsize,
    acknowledged: AtomicUsize,
    attempted: Mutex<Vec<Attempted>>,
    /// Answers that no fault excuses.
    strange: Mutex<BTreeMap<String, usize>>,
}

pub(super) struct Load {
    shared: Arc<Shared>,
    callers: JoinSet<()>,
}

/// What came of a load.
pub(super) struct Emitted {
    pub(super) attempted: Vec<Attempted>,
    pub(super) failed: usize,
}

impl Load {
    pub(super) fn start(targets: &Targets, key: &str, tenant_id: &str, seed: u64) -> Self {
        let shared = Arc::new(Shared {
            targets: targets.clone(),
            key: key.into(),
            tenant_id: tenant_id.into(),
            asks_again: true,
            is_over: AtomicBool::new(false),
            next: AtomicUsize::new(0),
            failed: AtomicUsize::new(0),
            acknowledged: AtomicUsize::new(0),
            attempted: Mutex::default(),
            strange: Mutex::default(),
        });
        let mut callers = JoinSet::new();
        for caller in 0..CALLERS {
            let random = StdRng::seed_from_u64(seed ^ (caller << 32));
            callers.spawn(call(Arc::clone(&shared), random));
        }
        Self { shared, callers }
    }

    /// Waits until `count` more events are acknowledged: the service works.
    pub(super) async fn wait_for_more(&self, count: usize) {
        let goal = self.shared.acknowledged.load(Ordering::Relaxed) + count;
        let start = Instant::now();
        while self.shared.acknowledged.load(Ordering::Relaxed) < goal {
            assert!(start.elapsed() < Duration::from_mins(1), "nothing is acknowledged any more");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until a caller has noticed a fault.
    pub(super) async fn wait_for_failure(&self) {
        let start = Instant::now();
        while self.shared.failed.load(Ordering::Relaxed) == 0 {
            assert!(start.elapsed() < Duration::from_mins(1), "no caller noticed any fault");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Ends the load, once every event has its answer.
    ///
    /// # Panics
    /// When there were answers that no fault excuses.
    pub(super) async fn stop(&mut self) -> Emitted {
        self.shared.is_over.store(true, Ordering::Relaxed);
        while let Some(ended) = self.callers.join_next().await {
            ended.expect("a caller does not panic");
        }
        let strange = self.shared.strange.lock().unwrap_or_else(PoisonError::into_inner).clone();
        assert!(strange.is_empty(), "answers that no fault excuses: {strange:#?}");
        let mut attempted = self.shared.attempted.lock().unwrap_or_else(PoisonError::into_inner);
        Emitted {
            attempted: std::mem::take(&mut attempted),
            failed: self.shared.failed.load(Ordering::Relaxed),
        }
    }
}

async fn call(shared: Arc<Shared>, mut random: StdRng) {
    let mut channels = HashMap::new();
    while !shared.is_over.load(Ordering::Relaxed) {
        let number = shared.next.fetch_add(1, Ordering::Relaxed) as u64;
        let is_bad = number % EVERY_BAD == EVERY_BAD - 1;
        let event_type = if number.is_multiple_of(2) { PAID } else { SENT };
        // Half a document is refused for good.
        let data = format!("{{\"number\":{number}{}", if is_bad { "" } else { "}" });
        let mut request = emit_request(&shared.tenant_id, event_type, &data);
        request.idempotency_key = format!("key-{number}");
        let answer = ask(&shared, &mut channels, &request, &mut random).await;
        if let Answer::Acknowledged(id) = &answer {
            shared.acknowledged.fetch_add(1, Ordering::Relaxed);
            if number.is_multiple_of(EVERY_AGAIN) {
                ask_once_more(&shared, &mut channels, &request, id, &mut random).await;
            }
        }
        if is_bad == matches!(answer, Answer::Acknowledged(_)) && answer != Answer::Unknown {
            strange(&shared, format!("{answer:?} for {data}"));
        }
        let attempted = Attempted { data, event_type: event_type.into(), answer };
        shared.attempted.lock().unwrap_or_else(PoisonError::into_inner).push(attempted);
        tokio::time::sleep(PAUSE).await;
    }
}

/// Asks until there is a definite answer.
async fn ask(
    shared: &Shared,
    channels: &mut HashMap<String, Channel>,
    request: &EmitRequest,
    random: &mut StdRng,
) -> Answer {
    let mut over_since = None;
    loop {
        let answered = ask_one(shared, channels, request, random).await;
        match answered {
            Some(Ok((event_id, _))) => return Answer::Acknowledged(event_id),
            Some(Err(status)) if status.code() == Code::InvalidArgument => return Answer::Refused,
            Some(Err(status)) => note(shared, &status),
            None => {}
        }
        if !shared.asks_again {
            return Answer::Unknown;
        }
        if shared.is_over.load(Ordering::Relaxed)
            && over_since.get_or_insert_with(Instant::now).elapsed() > PATIENCE
        {
            return Answer::Unknown;
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(20..80))).await;
    }
}

/// The same request again after it was acknowledged: the same event, and no other.
async fn ask_once_more(
    shared: &Shared,
    channels: &mut HashMap<String, Channel>,
    request: &EmitRequest,
    id: &str,
    random: &mut StdRng,
) {
    match ask_one(shared, channels, request, random).await {
        Some(Ok((again, duplicate))) if again != id || !duplicate => {
            strange(shared, format!("{id} was acknowledged again as {again}, {duplicate}"));
        }
        Some(Err(status)) => note(shared, &status),
        _ => {}
    }
}

/// Asks one replica, if there is one: the event's id, and whether it was there before.
async fn ask_one(
    shared: &Shared,
    channels: &mut HashMap<String, Channel>,
    request: &EmitRequest,
    random: &mut StdRng,
) -> Option<Result<(String, bool), Status>> {
    let channel = shared.targets.channel(channels, random)?;
    let mut request = Request::new(request.clone());
    request.set_timeout(DEADLINE);
    let emitted = Client::on(channel, &shared.key).events().emit(request).await;
    Some(emitted.map(|answer| {
        let answer = answer.into_inner();
        (answer.event_id, answer.duplicate)
    }))
}

/// Notes an answer that leaves open what became of the request.
fn note(shared: &Shared, status: &Status) {
    shared.failed.fetch_add(1, Ordering::Relaxed);
    if let Some(what) = without_excuse(status) {
        strange(shared, what);
    }
}

/// What the service has said, unless a fault excuses it.
pub(super) fn without_excuse(status: &Status) -> Option<String> {
    // What the service itself says has a reason; without one the connection broke.
    let reason = status.get_error_details().error_info().map(|info| info.reason.clone())?;
    let known = ["DATABASE_UNAVAILABLE", "SHUTTING_DOWN", "OVERLOADED", "DEADLINE_EXCEEDED"];
    (!known.contains(&reason.as_str())).then(|| format!("{reason}: {}", status.message()))
}

fn strange(shared: &Shared, what: String) {
    let mut strange = shared.strange.lock().unwrap_or_else(PoisonError::into_inner);
    *strange.entry(what).or_default() += 1;
}
