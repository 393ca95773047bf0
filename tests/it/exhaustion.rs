//! What happens when something runs out: files, the queue of events, the turn to write. Nothing that
//! was acknowledged is lost, nothing is dropped without a word, nobody spins, and all goes on by itself
//! when there is room again. A full disk has a file of its own.
//!
//! Each test counts how often its fault fired, and fails when it never did.

mod disk;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use procfs::process::{LimitValue, Process};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tidings::api::proto::{self, DeliveryState, ErrorKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::Code;
use tonic_types::StatusExt;

use crate::memory::Blocked;
use crate::support::app::{emit_request, explain, options, quick_retries};
use crate::support::process::{Served, operator_key, tidings};
use crate::support::{App, Client, Database, Receiver, Reply};

/// The events that arrived, each once however often it came.
fn arrived(receiver: &Receiver) -> HashSet<String> {
    receiver.requests().iter().map(|request| request.header("webhook-id").to_owned()).collect()
}

/// Waits until all of `acknowledged` have arrived.
async fn all_arrive(receiver: &Receiver, acknowledged: &HashSet<String>) {
    let mut lost = 0;
    for _ in 0..1_200 {
        lost = acknowledged.difference(&arrived(receiver)).count();
        if lost == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{lost} of {} acknowledged events were lost", acknowledged.len());
}

on_both! {
    async fn full_queues_refuse_and_drop_nothing(database: Database) {
        const ROOM: usize = 8;
        const CALLS: usize = 60;
        let receiver = Receiver::answering(200).await;
        let mut config = options(&database).config();
        config.intake.queue_size = ROOM;
        let app = App::start_configured(database, config).await;
        let tenant = app.operator.create_tenant("Acme").await;
        app.operator.subscribe(&tenant.id, &["*"], &receiver.url()).await;
        // Settings and keys are cached from here on.
        let first = app.operator.emit(&tenant.id, "user.created", "{}").await.event_id;

        let blocked = Blocked::begin(&app.database).await;
        let mut calls = JoinSet::new();
        for _ in 0..CALLS {
            let (mut events, request) =
                (app.operator.events(), emit_request(&tenant.id, "user.created", "{}"));
            calls.spawn(async move { events.emit(request).await });
        }
        // The queue holds so many, and the committer has taken at most as many out of it before.
        let (mut acknowledged, mut refused) = (HashSet::from([first]), 0);
        while refused < CALLS - 2 * ROOM {
            let call = timeout(Duration::from_secs(30), calls.join_next()).await;
            let call = call.expect("at once").expect("a call").expect("ended");
            let error = call.expect_err("nothing can be stored");
            assert_eq!(explain(&error), (Code::ResourceExhausted, "OVERLOADED".into(), vec![]));
            assert!(error.get_error_details().retry_info().is_some(), "says when to try again");
            refused += 1;
        }
        blocked.end().await;
        while let Some(call) = calls.join_next().await {
            match call.expect("ended") {
                Ok(answer) => {
                    acknowledged.insert(answer.into_inner().event_id);
                }
                Err(error) => {
                    assert_eq!(explain(&error).1, "OVERLOADED");
                    refused += 1;
                }
            }
        }
        assert_eq!(refused + acknowledged.len(), CALLS + 1, "each call was answered one way");
        assert!(refused >= CALLS - 2 * ROOM && acknowledged.len() > 1);
        all_arrive(&receiver, &acknowledged).await;
        // And what was refused is nowhere.
        let list = proto::ListEventsRequest {
            tenant_id: tenant.id.clone(),
            page_size: 1_000,
            ..Default::default()
        };
        let stored = app.operator.events().list_events(list).await.expect("listed").into_inner().events;
        let stored: HashSet<_> = stored.into_iter().map(|event| event.id).collect();
        assert_eq!(stored, acknowledged);
        assert_eq!(arrived(&receiver), acknowledged);
        let metric = app.metric("tidings_events_refused_total{reason=\"overloaded\"}").await;
        assert_eq!(metric, i64::try_from(refused).expect("small"));
        app.stop().await;
    }
}

/// Retries for half a minute.
fn patient() -> proto::RetryPolicy {
    let interval = prost_types::Duration { seconds: 0, nanos: 300_000_000 };
    let schedule = proto::retry_policy::Schedule { intervals: vec![interval] };
    proto::RetryPolicy {
        backoff: Some(proto::retry_policy::Backoff::Schedule(schedule)),
        ..quick_retries(100)
    }
}

/// A process's limit of open files, changed while it runs.
struct Files(Pid);

impl Files {
    fn of(served: &Served) -> Self {
        let pid = i32::try_from(served.child.id().expect("running")).expect("a process id");
        Self(Pid::from_raw(pid).expect("not 0"))
    }

    fn process(&self) -> Process {
        Process::new(self.0.as_raw_nonzero().get()).expect("running")
    }

    /// Leaves no file: those that are open stay. Returns the limit as it was.
    fn exhaust(&self) -> Rlimit {
        let process = self.process();
        let limit = process.limits().expect("readable").max_open_files;
        let value = |value| match value {
            LimitValue::Value(value) => Some(value),
            LimitValue::Unlimited => None,
        };
        let before = Rlimit { current: value(limit.soft_limit), maximum: value(limit.hard_limit) };
        // A new file gets the lowest number that is free.
        let open: HashSet<_> = process.fd().expect("readable").flatten().map(|fd| fd.fd).collect();
        let free = (0..i32::MAX).find(|number| !open.contains(number)).expect("a free number");
        let free = u64::try_from(free).expect("positive");
        self.restore(Rlimit { current: Some(free), ..before });
        before
    }

    fn restore(&self, limit: Rlimit) {
        prlimit(Some(self.0), Resource::Nofile, limit).expect("set");
    }

    /// Time of processors that the process has used.
    fn cpu(&self) -> Duration {
        let stat = self.process().stat().expect("readable");
        let ticks = stat.utime + stat.stime;
        Duration::from_millis(ticks * 1_000 / procfs::ticks_per_second())
    }
}

/// The page at `addr`, or nothing when no answer comes in time.
async fn alive(addr: &str, patience: Duration) -> Option<String> {
    let asked = async {
        let mut stream = TcpStream::connect(addr).await.ok()?;
        let request = b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        stream.write_all(request).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer)
    };
    timeout(patience, asked).await.ok().flatten().filter(|answer| !answer.is_empty())
}

on_both! {
    async fn without_files_it_waits_retries_and_recovers(database: Database) {
        const EVENTS: usize = 30;
        const WATCHED: Duration = Duration::from_secs(3);
        // Each attempt needs a connection of its own.
        let receiver =
            Receiver::scripted(|_, _| Reply::status(200).header("connection", "close")).await;
        let key = operator_key(&database).await;
        let mut served = Served::start(&database, &[]).await;
        let client = Client::connect(&served.endpoint, &key).await;
        let tenant = client.create_tenant("Acme").await;
        let webhook = proto::WebhookChannel { url: receiver.url(), ..Default::default() };
        let (subscription, _) =
            client.subscribe_with(&tenant.id, &["*"], webhook, Some(patient())).await;
        // Its connections to the database are open from here on.
        let first = client.emit(&tenant.id, "user.created", "{}").await.event_id;
        client.wait_for_state(&tenant.id, &first, DeliveryState::Succeeded).await;
        let mut acknowledged = HashSet::from([first]);

        let files = Files::of(&served);
        let before = files.exhaust();
        // Both servers have somebody at the door whom they cannot let in.
        let grpc = served.endpoint.trim_start_matches("http://").to_owned();
        let http = served.http.clone();
        let waiting = [grpc.clone(), http.clone()].map(|addr| {
            tokio::spawn(async move { TcpStream::connect(addr).await.expect("the kernel's queue") })
        });
        assert_eq!(alive(&http, Duration::from_secs(1)).await, None, "the fault fired");
        let used = files.cpu();
        tokio::time::sleep(WATCHED).await;
        let used = files.cpu().saturating_sub(used);
        assert!(used < WATCHED / 2, "{used:?} of processors for nothing in {WATCHED:?}");

        // Who is connected is served. Deliveries find no connection.
        let (mut accepted, mut refused) = (0, 0);
        while accepted < EVENTS {
            match client.events().emit(emit_request(&tenant.id, "user.created", "{}")).await {
                Ok(answer) => {
                    acknowledged.insert(answer.into_inner().event_id);
                    accepted += 1;
                }
                Err(error) => {
                    // A further connection to the database may be what is missing.
                    assert_eq!(error.code(), Code::Unavailable, "{error:?}");
                    refused += 1;
                    assert!(refused < 100, "{error:?}");
                }
            }
        }
        let failed = async || {
            let all = client.deliveries_to(&subscription).await;
            all.iter().filter(|it| it.last_attempt.as_ref().is_some_and(|last| {
                last.error_kind() == ErrorKind::Internal
            })).count()
        };
        let mut fired = 0;
        for _ in 0..600 {
            fired = failed().await;
            if fired > 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(fired > 0, "no attempt failed for want of a file");
        assert!(served.child.try_wait().expect("looked").is_none(), "it lives");

        files.restore(before);
        assert!(alive(&http, Duration::from_secs(30)).await.is_some(), "it accepts again");
        let other = Client::connect(&served.endpoint, &key).await;
        all_arrive(&receiver, &acknowledged).await;
        let all = other.wait_for_all(&subscription, DeliveryState::Succeeded).await;
        assert_eq!(all.len(), acknowledged.len());
        // The endpoint was not held to be ill: nothing had been asked of it.
        let health = other.subscription(&subscription).await.health.expect("told");
        assert_eq!(health.consecutive_failures, 0, "{health:?}");
        for stream in waiting {
            drop(stream.await.expect("connected"));
        }
        served.kill().await;
    }
}

/// Changes of settings by one client, until it is told to stop; returns how many.
async fn administer(
    client: Client,
    tenant_id: String,
    url: String,
    stop: Arc<AtomicBool>,
) -> usize {
    let mut changes = 0;
    while !stop.load(Ordering::Relaxed) {
        let (subscription, _) = client.subscribe(&tenant_id, &["never.*"], &url).await;
        let (tenant_id, subscription_id) = (tenant_id.clone(), subscription.id);
        let pause = proto::PauseSubscriptionRequest {
            tenant_id: tenant_id.clone(),
            subscription_id: subscription_id.clone(),
        };
        client.subscriptions().pause_subscription(pause).await.expect("paused");
        let delete =
            proto::DeleteSubscriptionRequest { tenant_id, subscription_id, ..Default::default() };
        client.subscriptions().delete_subscription(delete).await.expect("deleted");
        changes += 3;
    }
    changes
}

/// Thirty-two clients write, beside commands that write the same file: nobody is told that it is busy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_writers_of_a_sqlite_file_never_hear_that_it_is_busy() {
    const EMITTERS: usize = 24;
    const ADMINISTRATORS: usize = 8;
    const COMMANDS: usize = 5;
    let database = Database::sqlite().await;
    let receiver = Receiver::answering(200).await;
    let key = operator_key(&database).await;
    let served = Served::start(&database, &[]).await;
    let client = Client::connect(&served.endpoint, &key).await;
    let tenant = client.create_tenant("Acme").await;
    client.subscribe(&tenant.id, &["user.*"], &receiver.url()).await;
    let (stop, emitted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut emitters = JoinSet::new();
    for _ in 0..EMITTERS {
        // A connection each.
        let client = Client::connect(&served.endpoint, &key).await;
        let (tenant_id, stop, emitted) =
            (tenant.id.clone(), Arc::clone(&stop), Arc::clone(&emitted));
        emitters.spawn(async move {
            let mut acknowledged = HashSet::new();
            while !stop.load(Ordering::Relaxed) {
                acknowledged.insert(client.emit(&tenant_id, "user.created", "{}").await.event_id);
                emitted.fetch_add(1, Ordering::Relaxed);
            }
            acknowledged
        });
    }
    let mut administrators = JoinSet::new();
    for _ in 0..ADMINISTRATORS {
        let client = Client::connect(&served.endpoint, &key).await;
        let (tenant_id, url, stop) = (tenant.id.clone(), receiver.url(), Arc::clone(&stop));
        administrators.spawn(administer(client, tenant_id, url, stop));
    }
    // Processes of their own that write the same file.
    let mut overlaps = 0;
    for number in 0..COMMANDS {
        let before = emitted.load(Ordering::Relaxed);
        let command: &[&str] = if number % 2 == 0 {
            &["keys", "create", "--operator"]
        } else {
            &["master-key", "rotate"]
        };
        let of_database = database.arguments();
        let arguments: Vec<_> =
            command.iter().copied().chain(of_database.iter().map(String::as_str)).collect();
        let done =
            tidings(&arguments).current_dir(database.folder.path()).output().await.expect("ran");
        assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
        overlaps += usize::from(emitted.load(Ordering::Relaxed) > before);
    }
    stop.store(true, Ordering::Relaxed);
    // Any error would have ended its task.
    let mut acknowledged = HashSet::new();
    while let Some(events) = emitters.join_next().await {
        acknowledged.extend(events.expect("no error"));
    }
    let mut changes = 0;
    while let Some(count) = administrators.join_next().await {
        changes += count.expect("no error");
    }
    assert!(overlaps > 0 && changes > 0, "{overlaps} commands and {changes} changes met emitters");
    all_arrive(&receiver, &acknowledged).await;
    served.signal("TERM").await;
    let (code, log) = served.wait().await;
    assert_eq!(code, Some(0));
    let busy: Vec<_> = log.iter().filter(|line| line.contains("database is locked")).collect();
    assert!(busy.is_empty(), "{busy:?}");
}
