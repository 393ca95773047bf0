//! What an event costs the database: how many statements and commits, when many callers emit at
//! once. Counted on the wire, so it holds whatever a layer in between adds; nothing is timed.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tidings::api::proto;
use tidings::config::Options;
use tokio::task::JoinSet;

use crate::support::app::{App, options};
use crate::support::proxy::{Asked, Proxy, Weather};
use crate::support::{Client, Database, Receiver, app};
use crate::watch::{read_until_succeeded, watch};

const EVENTS: usize = 2_000;
const CALLERS: usize = 64;

/// How far away the database is. A group is what has come while the last one was being committed, so
/// on a database that is quick enough every event could be a group of its own, and rightly so.
const DISTANCE: Duration = Duration::from_millis(2);

/// Executed statements per event, transaction control included.
const MAX_STATEMENTS: f64 = 1.2;
/// Committed transactions per event: what the disk is waited for.
const MAX_COMMITS: f64 = 0.15;
/// Different texts of statements. A text that depends on the number of rows would be prepared anew
/// for each group, and push the others out of the cache.
const MAX_TEXTS: usize = 40;

/// How long the failures of an endpoint wait for others to be written with.
const COMPANY: Duration = Duration::from_millis(50);
/// Endpoints that fail, so few times that none of them is spared.
const ILL: usize = 30;
/// Every how many events one goes to them, too.
const EVERY_ILL: usize = 10;

async fn emit_all(client: &Client, tenant_id: &str, count: usize) {
    emit_types(client, tenant_id, count, |_| "billing.paid".to_owned()).await;
}

async fn emit_types(
    client: &Client,
    tenant_id: &str,
    count: usize,
    event_type: impl Fn(usize) -> String + Copy + Send + 'static,
) {
    let next = Arc::new(AtomicUsize::new(0));
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let (client, next, tenant_id) = (client.clone(), Arc::clone(&next), tenant_id.to_owned());
        callers.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return;
                }
                let mut request = app::emit_request(&tenant_id, &event_type(number), "{}");
                request.idempotency_key = format!("{count}-{number}");
                client.events().emit(request).await.expect("accepted");
            }
        });
    }
    callers.join_all().await;
}

#[expect(clippy::cast_precision_loss, reason = "counts of a test are small")]
fn per_event(count: usize) -> f64 {
    count as f64 / EVENTS as f64
}

fn show(asked: &Asked) {
    let mut statements: Vec<_> = asked.statements.iter().collect();
    statements.sort_by_key(|(_, times)| std::cmp::Reverse(**times));
    for (text, times) in statements {
        println!("{:8.4} per event  {text}", per_event(*times));
    }
    println!(
        "{:8.4} statements, {:.4} commits and {:.4} round trips per event; {} texts prepared",
        per_event(asked.total()),
        per_event(asked.commits),
        per_event(asked.round_trips),
        asked.texts.len()
    );
}

/// The service, and a tenant with a good endpoint.
async fn start(database: Database, poll_interval: Duration) -> (App, Receiver, proto::Tenant) {
    let options = Options { poll_interval, ..options(&database) };
    let app = App::start_with(database, &options).await;
    let receiver = Receiver::answering(200).await;
    let tenant = app.operator.create_tenant("Acme").await;
    // Enough at once that no delivery finds its lane full: such ones are claimed, however slow this
    // machine is just now, and are no part of the hot path.
    let webhook =
        proto::WebhookChannel { url: receiver.url(), max_in_flight: 100, ..Default::default() };
    app.operator.subscribe_with(&tenant.id, &["*"], webhook, None).await;
    (app, receiver, tenant)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_events_share_few_statements_and_commits() {
    let mut database = Database::postgres().await;
    let counting = Proxy::before(&mut database).await;
    counting.set(Weather::Slow(DISTANCE));
    // What is done by the clock is no part of the hot path: rarely, so that a slow machine counts
    // little of it.
    let (app, receiver, tenant) = start(database, Duration::from_secs(5)).await;
    // The first events make connections and prepare statements; what follows is the hot path.
    emit_all(&app.operator, &tenant.id, CALLERS).await;
    receiver.wait_for(CALLERS).await;
    counting.take();

    emit_all(&app.operator, &tenant.id, EVENTS).await;
    receiver.wait_for(CALLERS + EVENTS).await;
    // Stopping waits until all results are recorded, so they are counted too.
    let database = app.stop().await;
    let asked = counting.take();
    show(&asked);

    let (updated, in_place) = updates_of_deliveries(&database).await;
    println!("{updated} updates of deliveries, {in_place} of them in place");
    assert!(updated >= EVENTS as u64, "{updated} updates: PostgreSQL has not counted yet");
    // Not all: a page can be full.
    assert!(in_place * 10 >= updated * 9, "only {in_place} of {updated} updates touched no index");

    let store = database.open().await;
    assert_eq!(store.count_scheduled(1).await.expect("counted"), 0, "everything was delivered");
    let commits = asked.commits;
    assert!(commits > 0, "the proxy has seen nothing");
    let statements = per_event(asked.total());
    assert!(statements <= MAX_STATEMENTS, "{statements:.3} statements per event");
    let commits = per_event(commits);
    assert!(commits <= MAX_COMMITS, "{commits:.3} commits per event");
    let texts = &asked.texts;
    assert!(texts.len() <= MAX_TEXTS, "{} different statements, such as {texts:#?}", texts.len());
}

/// What this process commits is handed over to whoever watches: the feed is hardly ever read. (It is when a
/// look at the positions sees a commit before its answer has come.)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_watched_is_not_read_again() {
    let mut database = Database::postgres().await;
    let counting = Proxy::before(&mut database).await;
    let (app, _receiver, tenant) = start(database, Duration::from_secs(5)).await;
    let request =
        proto::WatchDeliveriesRequest { tenant_id: tenant.id.clone(), ..Default::default() };
    let mut stream = watch(&app.operator, request).await;
    let (mut revisions, mut succeeded) = (HashMap::new(), 0);
    emit_all(&app.operator, &tenant.id, CALLERS).await;
    read_until_succeeded(&mut stream, &mut revisions, &mut succeeded, CALLERS).await;
    counting.take();

    let told = read_until_succeeded(&mut stream, &mut revisions, &mut succeeded, CALLERS + EVENTS);
    tokio::join!(emit_all(&app.operator, &tenant.id, EVENTS), told);
    let asked = counting.take();
    show(&asked);
    let count = |part: &str| {
        let statements = asked.statements.iter().filter(|(text, _)| text.contains(part));
        statements.map(|(_, times)| *times).sum::<usize>()
    };
    let (looks, reads) = (count("FROM feed_heads WHERE"), count("FROM feed WHERE"));
    assert!(looks > 0, "the proxy has seen no look at the positions");
    assert!(
        reads * 2 <= looks,
        "{looks} looks at the positions, and the feed was read {reads} times"
    );
    app.stop().await;
}

/// What an attempt says of its endpoint is written in several statements, and others need one. They must
/// not go the long way together: which transaction wrote an attempt is seen in its row.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_are_written_apart_and_together() {
    const FAILURES: usize = EVENTS / EVERY_ILL;
    let database = Database::postgres().await;
    let (app, receiver, tenant) = start(database, Duration::from_millis(500)).await;
    let ill = Receiver::answering(500).await;
    for number in 0..ILL {
        app.operator.subscribe(&tenant.id, &[&format!("ill.n{number}")], &ill.url()).await;
    }
    let begin = Instant::now();
    let event_type = |number: usize| match number % EVERY_ILL {
        0 => format!("ill.n{}", number / EVERY_ILL % ILL),
        _ => "billing.paid".to_owned(),
    };
    emit_types(&app.operator, &tenant.id, EVENTS, event_type).await;
    receiver.wait_for(EVENTS).await;
    ill.wait_for(FAILURES).await;
    let database = app.stop().await;
    let most = i64::try_from(begin.elapsed().as_millis() / COMPANY.as_millis()).expect("a count");

    let sql =
        "SELECT count(*) FILTER (WHERE failures > 0), count(*) FILTER (WHERE failures < attempts),
            count(*) FILTER (WHERE failures > 0 AND failures < attempts)
        FROM (SELECT count(*) AS attempts, count(*) FILTER (WHERE http_status = 500) AS failures
            FROM attempts GROUP BY xmin::text) AS transactions";
    let row = database.row(sql).await;
    let count = |at| row.try_get_by_index::<i64>(at).expect("a count");
    let (failures, others, mixed) = (count(0), count(1), count(2));
    println!(
        "{others} transactions of others, {failures} of failures, at most {most}; {mixed} of both"
    );
    assert!(failures > 0 && others > 0, "nothing was recorded");
    assert_eq!(mixed, 0, "others were written with failures");
    // Nobody waits at the end.
    assert!(failures <= most + 2, "failures were written one by one");
}

/// How often a delivery was updated, and how often without a new entry in each of its indexes (a
/// heap-only tuple). The server's processes tell when they end.
async fn updates_of_deliveries(database: &Database) -> (u64, u64) {
    let sql =
        "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'deliveries'";
    let row = database.row(sql).await;
    let count =
        |at| u64::try_from(row.try_get_by_index::<i64>(at).expect("a count")).expect("positive");
    (count(0), count(1))
}
