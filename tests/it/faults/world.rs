//! A tenant with two endpoints under load, and the history of it in the end. One endpoint takes a
//! moment, so that faults find attempts under way; the other fails the first request of some
//! deliveries, so that there are retries, and with them claims. Two watch.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use sea_orm::{ConnectionTrait, Database as SeaDatabase, QueryResult, Statement};
use tidings::api::proto::{PayloadFormat, WebhookChannel};
use tidings::domain::delivery::State;

use super::history::{Arrived, Attempted, History, Stored};
use super::load::{Load, PAID, SENT, Targets};
use super::report::Report;
use super::watchers::Watchers;
use crate::support::app::quick_retries;
use crate::support::receiver::Captured;
use crate::support::{Client, Database, Receiver, Reply};

/// How long everything may take to be delivered once nothing breaks any more: a lease that nobody
/// knows of is given back after 45 s, and the machine may be busy.
const PATIENCE: Duration = Duration::from_mins(3);
/// How long nothing may change in the end.
const QUIET: Duration = Duration::from_millis(500);

pub(super) struct World {
    pub(super) load: Load,
    watchers: Watchers,
    tenant_id: String,
    endpoints: [(Receiver, String); 2],
}

/// One in five deliveries, by its event: failed at first.
fn fails_at_first(captured: &Captured) -> bool {
    captured.body.iter().map(|byte| usize::from(*byte)).sum::<usize>().is_multiple_of(5)
}

impl World {
    /// Begins: `client` makes the tenant, and the load goes to `targets`.
    pub(super) async fn begin(client: &Client, key: &str, targets: &Targets, seed: u64) -> Self {
        let slow = Receiver::scripted(|_, number| {
            Reply::status(200).after(Duration::from_millis(number as u64 % 30))
        })
        .await;
        let came = Mutex::new(HashSet::new());
        let failing = Receiver::scripted(move |captured, _| {
            let is_first = came
                .lock()
                .expect("not poisoned")
                .insert(captured.header("tidings-delivery-id").to_owned());
            Reply::status(if is_first && fails_at_first(captured) { 500 } else { 200 })
        })
        .await;
        let tenant = client.create_tenant("Acme").await;
        let mut ids = Vec::new();
        for (receiver, types) in [(&slow, &[PAID, SENT][..]), (&failing, &[PAID])] {
            let webhook = WebhookChannel {
                url: receiver.url(),
                payload_format: PayloadFormat::DataOnly as i32,
                ..WebhookChannel::default()
            };
            let policy = Some(quick_retries(50));
            let (made, _) = client.subscribe_with(&tenant.id, types, webhook, policy).await;
            ids.push(made.id);
        }
        let watchers = Watchers::begin(client, key, targets, &tenant.id, seed).await;
        let load = Load::start(targets, key, &tenant.id, seed);
        let failing_id = ids.pop().expect("two");
        let endpoints = [(slow, ids.pop().expect("two")), (failing, failing_id)];
        Self { load, watchers, tenant_id: tenant.id, endpoints }
    }

    /// Ends the load, waits until everything is delivered, and judges.
    ///
    /// # Panics
    /// When something is lost, unexpected, misrecorded, untold, or repeated without a reason.
    /// Returns how many answers were not definite.
    pub(super) async fn end(
        self,
        database: &Database,
        interrupted: usize,
        report: Report,
    ) -> usize {
        self.end_with(database, || interrupted, report).await
    }

    /// Like [`World::end`], where it shows in the end alone how many leases were interrupted.
    pub(super) async fn end_with(
        mut self,
        database: &Database,
        interrupted: impl FnOnce() -> usize,
        report: Report,
    ) -> usize {
        let emitted = self.load.stop().await;
        let connection =
            SeaDatabase::connect(&database.config.database_url).await.expect("connected");
        let start = Instant::now();
        loop {
            let open = count_open(&connection, &self.tenant_id).await;
            if open == 0 || start.elapsed() > PATIENCE {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let interrupted = interrupted();
        let stored = self.read_last(&connection).await;
        let watched = self.watchers.end().await;
        let history = History {
            endpoints: vec![vec![PAID, SENT], vec![PAID]],
            attempted: emitted.attempted.clone(),
            arrived: arrived(&self.endpoints),
            events: read_events(&connection, &self.tenant_id).await,
            stored,
            told: watched.told,
            interrupted,
        };
        connection.close().await.expect("closed");
        let verdict = history.judge();
        report.end(&verdict, emitted.failed, watched.resumed, interrupted);
        assert!(verdict.is_good(), "{verdict}");
        assert!(verdict.acknowledged > 100, "there was hardly any load: {verdict}");
        assert!(refused(&emitted.attempted) > 0, "nothing was refused for good");
        emitted.failed
    }

    /// What the database has, once the watchers have heard of it and nothing is added any more: whatever a
    /// replica that was cut off has to say of a delivery that others have ended comes after the end.
    async fn read_last(&self, connection: &impl ConnectionTrait) -> Vec<Stored> {
        let start = Instant::now();
        let mut stored = self.read_deliveries(connection).await;
        loop {
            self.watchers.hear_of(&stored).await;
            tokio::time::sleep(QUIET).await;
            let before = std::mem::replace(&mut stored, self.read_deliveries(connection).await);
            if stored == before || start.elapsed() > PATIENCE {
                return stored;
            }
        }
    }

    async fn read_deliveries(&self, connection: &impl ConnectionTrait) -> Vec<Stored> {
        let endpoints: HashMap<&str, usize> = self
            .endpoints
            .iter()
            .enumerate()
            .map(|(endpoint, (_, id))| (id.as_str(), endpoint))
            .collect();
        let sql = format!(
            "SELECT d.id, d.event_id, d.subscription_id, CAST(d.state AS BIGINT),
                CAST(d.revision AS BIGINT), CAST(d.attempt_count AS BIGINT), count(a.number),
                count(a.http_status)
            FROM deliveries d
            LEFT JOIN attempts a ON a.tenant_id = d.tenant_id AND a.delivery_id = d.id
            WHERE d.tenant_id = '{}'
            GROUP BY d.id, d.event_id, d.subscription_id, d.state, d.revision, d.attempt_count
            ORDER BY d.id",
            self.tenant_id
        );
        let rows = query(connection, &sql).await;
        let number = |row: &QueryResult, at: usize| {
            usize::try_from(row.try_get_by_index::<i64>(at).expect("a number")).expect("positive")
        };
        let text =
            |row: &QueryResult, at: usize| -> String { row.try_get_by_index(at).expect("a text") };
        rows.iter()
            .map(|row| {
                let code = i16::try_from(number(row, 3)).expect("a state");
                let state = State::ALL.into_iter().find(|state| state.code() == code);
                Stored {
                    delivery_id: text(row, 0),
                    event_id: text(row, 1),
                    endpoint: endpoints[text(row, 2).as_str()],
                    state: state.expect("a state").as_str().into(),
                    revision: number(row, 4),
                    attempt_count: number(row, 5),
                    recorded: number(row, 6),
                    answered: number(row, 7),
                }
            })
            .collect()
    }
}

fn arrived(endpoints: &[(Receiver, String); 2]) -> Vec<Arrived> {
    let mut all = Vec::new();
    for (endpoint, (receiver, _)) in endpoints.iter().enumerate() {
        let mut failed = HashSet::new();
        for request in receiver.requests() {
            let delivery_id = request.header("tidings-delivery-id").to_owned();
            let is_failed =
                endpoint == 1 && fails_at_first(&request) && failed.insert(delivery_id.clone());
            all.push(Arrived {
                endpoint,
                event_id: request.header("webhook-id").to_owned(),
                delivery_id,
                data: String::from_utf8_lossy(&request.body).into_owned(),
                is_success: !is_failed,
            });
        }
    }
    all
}

fn refused(attempted: &[Attempted]) -> usize {
    use super::history::Answer;
    attempted.iter().filter(|attempted| attempted.answer == Answer::Refused).count()
}

pub(super) async fn query(connection: &impl ConnectionTrait, sql: &str) -> Vec<QueryResult> {
    let statement = Statement::from_string(connection.get_database_backend(), sql);
    connection.query_all_raw(statement).await.expect("answered")
}

pub(super) async fn count(connection: &impl ConnectionTrait, sql: &str) -> usize {
    let rows = query(connection, sql).await;
    let count: i64 = rows[0].try_get_by_index(0).expect("a number");
    usize::try_from(count).expect("positive")
}

/// Deliveries of the tenant that have not ended.
async fn count_open(connection: &impl ConnectionTrait, tenant_id: &str) -> usize {
    let sql = format!(
        "SELECT count(*) FROM deliveries WHERE tenant_id = '{tenant_id}' AND state IN ({}, {}, {})",
        State::Scheduled.code(),
        State::Delivering.code(),
        State::Held.code()
    );
    count(connection, &sql).await
}

async fn read_events(connection: &impl ConnectionTrait, tenant_id: &str) -> HashSet<String> {
    let sql = format!("SELECT id FROM events WHERE tenant_id = '{tenant_id}'");
    let rows = query(connection, &sql).await;
    rows.iter().map(|row| row.try_get_by_index(0).expect("an id")).collect()
}

/// Deliveries that `nodes` have leased: if they are dead, the ones that may be sent once more.
pub(super) async fn count_leased(database: &Database, nodes: &[String]) -> usize {
    if nodes.is_empty() {
        // It ended before it had a name.
        return 0;
    }
    let connection = SeaDatabase::connect(&database.config.database_url).await.expect("connected");
    let names: Vec<_> = nodes.iter().map(|node| format!("'{node}'")).collect();
    let sql = format!(
        "SELECT count(*) FROM deliveries WHERE state = {} AND leased_by IN ({})",
        State::Delivering.code(),
        names.join(", ")
    );
    let leased = count(&connection, &sql).await;
    connection.close().await.expect("closed");
    leased
}
