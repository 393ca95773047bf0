//! Several `tidings serve` on one database, and callers that turn to another one when theirs is gone.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidings::api::proto::EmitRequest;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::Code;

use super::app::{emit_request, value};
use super::process::{Served, operator_key};
use super::{Client, Database, Receiver};

/// How long a caller waits for one answer before it turns to another replica.
const ANSWER: Duration = Duration::from_secs(10);
/// How long a test waits for everything to arrive, on a busy machine.
const PATIENCE: Duration = Duration::from_mins(2);

/// The replicas that are running.
pub(crate) struct Fleet {
    pub(crate) database: Database,
    key: String,
    replicas: Vec<Served>,
    clients: watch::Sender<Vec<Client>>,
}

impl Fleet {
    /// A fleet without replicas.
    pub(crate) async fn on(database: Database) -> Self {
        let key = operator_key(&database).await;
        Self { database, key, replicas: Vec::new(), clients: watch::Sender::default() }
    }

    /// A fleet of `count` replicas.
    pub(crate) async fn start(database: Database, count: usize) -> Self {
        let mut fleet = Self::on(database).await;
        for _ in 0..count {
            fleet.add(&[], &[]).await;
        }
        fleet.wait_until_known().await;
        fleet
    }

    /// Starts one more, with arguments and variables of its own.
    pub(crate) async fn add(&mut self, more: &[&str], variables: &[(&str, &str)]) {
        let served = Served::start_in(&self.database, more, variables).await;
        let client = Client::connect(&served.endpoint, &self.key).await;
        self.replicas.push(served);
        self.clients.send_modify(|clients| clients.push(client));
    }

    /// Takes the replica with this number out of the callers' reach; it still runs.
    pub(crate) fn remove(&mut self, number: usize) -> Served {
        self.clients.send_modify(|clients| drop(clients.remove(number)));
        self.replicas.remove(number)
    }

    pub(crate) fn replica(&self, number: usize) -> &Served {
        &self.replicas[number]
    }

    pub(crate) fn client(&self, number: usize) -> Client {
        self.clients.borrow()[number].clone()
    }

    /// A whole number on the page of metrics of a replica.
    pub(crate) async fn metric(&self, number: usize, series: &str) -> i64 {
        let value = value(&self.replicas[number].page("/metrics").await, series);
        format!("{value}").parse().expect("a whole number")
    }

    /// Waits until each replica counts all of them.
    pub(crate) async fn wait_until_known(&self) {
        let count = i64::try_from(self.replicas.len()).expect("few");
        for number in 0..self.replicas.len() {
            self.wait_for_metric(number, "tidings_replicas", |found| found == count).await;
        }
    }

    /// Waits until a metric is as `is_right` says.
    pub(crate) async fn wait_for_metric(
        &self,
        number: usize,
        series: &str,
        is_right: impl Fn(i64) -> bool,
    ) {
        let mut found = 0;
        for _ in 0..1_500 {
            found = self.metric(number, series).await;
            if is_right(found) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{series} of replica {number} stays {found}");
    }

    /// Callers that emit, each `count` events or until they are stopped.
    pub(crate) fn emit(&self, tenant_id: &str, callers: usize, count: Option<usize>) -> Callers {
        let shared = Arc::new(Shared::default());
        let mut tasks = JoinSet::new();
        for number in 0..callers {
            let caller = Caller {
                number,
                tenant_id: tenant_id.to_owned(),
                clients: self.clients.subscribe(),
                shared: Arc::clone(&shared),
            };
            tasks.spawn(caller.run(count));
        }
        Callers { shared, tasks }
    }

    /// Ends all replicas at once.
    pub(crate) async fn kill(self) -> Database {
        for replica in self.replicas {
            replica.kill().await;
        }
        self.database
    }
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    acknowledged: Mutex<HashSet<String>>,
    /// How often which error came.
    errors: Mutex<HashMap<Code, usize>>,
}

/// Callers at work.
pub(crate) struct Callers {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

/// What the callers were told.
pub(crate) struct Told {
    /// The events that were acknowledged.
    pub(crate) acknowledged: HashSet<String>,
    /// How often which error came; its event was emitted again until it was acknowledged.
    pub(crate) errors: HashMap<Code, usize>,
}

impl Callers {
    /// Waits until `more` events have been acknowledged from now on.
    pub(crate) async fn wait_for_more(&self, more: usize) {
        let count = || self.shared.acknowledged.lock().expect("not poisoned").len();
        let target = count() + more;
        for _ in 0..6_000 {
            if count() >= target {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{target} events were never acknowledged, but {}", count());
    }

    /// Lets each finish the event that it is at.
    pub(crate) async fn stop(self) -> Told {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.end().await
    }

    /// Waits until each has emitted what it was to.
    pub(crate) async fn end(mut self) -> Told {
        let all = async {
            while self.tasks.join_next().await.transpose().expect("no panic").is_some() {}
        };
        tokio::time::timeout(PATIENCE, all).await.expect("every event is acknowledged in time");
        let shared = &self.shared;
        Told {
            acknowledged: std::mem::take(&mut shared.acknowledged.lock().expect("not poisoned")),
            errors: std::mem::take(&mut shared.errors.lock().expect("not poisoned")),
        }
    }
}

struct Caller {
    number: usize,
    tenant_id: String,
    clients: watch::Receiver<Vec<Client>>,
    shared: Arc<Shared>,
}

impl Caller {
    async fn run(self, count: Option<usize>) {
        let mut done = 0;
        while count.is_none_or(|count| done < count) && !self.shared.stop.load(Ordering::Relaxed) {
            let request = EmitRequest {
                idempotency_key: format!("{}-{done}", self.number),
                ..emit_request(&self.tenant_id, "user.created", "{}")
            };
            let event_id = self.emit(request).await;
            self.shared.acknowledged.lock().expect("not poisoned").insert(event_id);
            done += 1;
        }
    }

    /// Emits until somebody acknowledges.
    async fn emit(&self, request: EmitRequest) -> String {
        for attempt in 0.. {
            let clients = self.clients.borrow().clone();
            let client = &clients[(self.number + attempt) % clients.len()];
            let mut events = client.events();
            let answer = tokio::time::timeout(ANSWER, events.emit(request.clone())).await;
            let code = match answer {
                Ok(Ok(answer)) => return answer.into_inner().event_id,
                // Told by the client's own transport, as when its connection ends before the request
                // was sent: no server has said anything, whatever code the library makes of it.
                Ok(Err(status)) if std::error::Error::source(&status).is_some() => {
                    Code::Unavailable
                }
                Ok(Err(status)) => status.code(),
                Err(_) => Code::DeadlineExceeded,
            };
            *self.shared.errors.lock().expect("not poisoned").entry(code).or_default() += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        unreachable!("the attempts have no end")
    }
}

/// How often each event arrived.
pub(crate) fn arrivals(receiver: &Receiver) -> HashMap<String, usize> {
    let mut arrivals = HashMap::new();
    for request in receiver.requests() {
        *arrivals.entry(request.header("webhook-id").to_owned()).or_insert(0) += 1;
    }
    arrivals
}

/// Waits until every acknowledged event has arrived, and nothing else has; returns how many requests
/// were more than one of the same event.
pub(crate) async fn all_arrive(receiver: &Receiver, acknowledged: &HashSet<String>) -> usize {
    let start = std::time::Instant::now();
    loop {
        let arrived = arrivals(receiver);
        let lost = acknowledged.iter().filter(|id| !arrived.contains_key(*id)).count();
        if lost == 0 {
            let unexpected = arrived.keys().filter(|id| !acknowledged.contains(*id)).count();
            assert_eq!(unexpected, 0, "events that nobody was told of");
            return arrived.values().map(|times| times - 1).sum();
        }
        let total = acknowledged.len();
        assert!(start.elapsed() < PATIENCE, "{lost} of {total} acknowledged events were lost");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
