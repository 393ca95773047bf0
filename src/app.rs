//! Wires the components together, runs them, and stops them in the right order.
//!
//! Configuration → build → run → drain with a deadline. A component never sees another one that it
//! was not given here. Every task is held by its component or by [`Running`]; one that ends by
//! itself is a fault, which [`Running::wait_failed`] reports.

mod attempts;
mod engine;
mod files;
mod health;
mod lock;
pub mod random;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{self, Instant};

use crate::api;
use crate::channel::{email, webhook};
use crate::dispatch::Dispatch;
use crate::feed::Feed;
use crate::intake::Intake;
use crate::shutdown::Stages;
use crate::store::{self, Store};
use crate::telemetry::{self, traces};
use crate::web::{self, Mail, Readiness};

pub use crate::config::Config;
pub use lock::DatabaseLock;

use engine::Engine;
use health::Health;

/// The service cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database cannot be used.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Another process serves the database file.
    #[error("{} is in use by another tidings{}", database.display(), process(*.holder))]
    Locked {
        /// The database file.
        database: PathBuf,
        /// The process that has it, as far as the lock file says.
        holder: Option<u32>,
    },
    /// The lock cannot be taken for another reason.
    #[error("{} cannot be locked: {source}", path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// An address cannot be listened on.
    #[error("{option} {addr} cannot be listened on: {source}")]
    Listen {
        /// The option's flag.
        option: &'static str,
        /// The address.
        addr: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The gRPC server cannot be made from its options.
    #[error(transparent)]
    Grpc(#[from] api::Error),
    /// The client for webhooks cannot be made from its options.
    #[error("webhooks cannot be sent: {0}")]
    Webhook(#[from] webhook::ConfigError),
    /// Who may report bounces cannot be told from the options.
    #[error(transparent)]
    Bounces(#[from] web::mail::Error),
    /// Mail cannot be sent as configured.
    #[error("mail cannot be sent as configured: {0}")]
    Email(#[from] email::ConfigError),
    /// The exporter of traces cannot be made from its options.
    #[error(transparent)]
    Traces(#[from] telemetry::Error),
    /// The operating system gives no randomness.
    #[error("the operating system gives no randomness: {0}")]
    Random(String),
}

fn process(holder: Option<u32>) -> String {
    holder.map_or_else(String::new, |id| format!(", process {id}"))
}

/// The running service. Dropping it ends everything at once; [`Running::stop`] does so gracefully.
pub struct Running {
    grpc_addr: SocketAddr,
    http_addr: SocketAddr,
    grace: Duration,
    health: Health,
    /// Stops the gRPC server.
    grpc: Stages,
    /// Stops everything that serves until the end: HTTP and what follows the database.
    rest: Stages,
    /// Tasks that run until they are stopped, by name.
    tasks: JoinSet<&'static str>,
    intake: Intake,
    dispatch: Dispatch,
    feed: Feed,
    store: Store,
    exporter: Option<traces::Exporter>,
    lock: Option<DatabaseLock>,
}

/// What the gRPC server is called when it fails.
const GRPC: &str = "the gRPC server";
const HTTP: &str = "the HTTP server";
const READINESS: &str = "the readiness check";

/// Starts the service; it takes requests when this returns.
///
/// # Errors
/// When it cannot start. Nothing is left running then.
pub async fn start(config: Config) -> Result<Running, Error> {
    let lock = DatabaseLock::wait(&config.store, |locked| {
        tracing::warn!("waiting for the database file: {locked}");
    });
    let lock = lock.await?;
    let store = engine::open(&config.store).await?;
    let (grpc_listener, grpc_addr) = listen("--grpc-addr", config.grpc_addr).await?;
    let (http_listener, http_addr) = listen("--http-addr", config.http_addr).await?;
    engine::announce_exceptions(&config);
    files::raise_limit(config.dispatch.max_in_flight.saturating_add(config.api.max_connections));

    let mut registry = Registry::default();
    engine::register_build_info(&mut registry);
    store.register_metrics(registry.sub_registry_with_prefix("tidings"));
    let (spans, exporter) = engine::spans(config.traces.as_ref(), &mut registry)?;
    let mut engine = Engine::start(&config, &store, &spans, &mut registry).await?;
    let (grpc, rest) = (Stages::new(), Stages::new());
    let api = engine.api(&config, &store, &spans, grpc.soft_token())?;
    let mail = Mail::new(&config.web_mail, store.clone(), Arc::clone(&engine.clock) as _)?;
    let health = Health::new(api.health());
    let Engine { dispatch, intake, feed, .. } = engine;

    let mut running = Running {
        grpc_addr,
        http_addr,
        grace: config.shutdown_grace,
        health,
        grpc,
        rest,
        tasks: JoinSet::new(),
        intake,
        dispatch,
        feed,
        store,
        exporter,
        lock,
    };
    let stages = running.grpc.clone();
    running.spawn(GRPC, async move {
        tokio::select! {
            served = api.serve(grpc_listener) => {
                if let Err(error) = served {
                    tracing::error!(error = %Chain(&error), "the gRPC server failed");
                }
            }
            () = stages.hard() => {}
        }
    });
    let facts = web::Facts {
        metrics: Arc::new(registry),
        readiness: running.health.subscribe(),
        mail: Some(mail),
    };
    running.spawn(HTTP, web::serve(http_listener, config.web, facts, running.rest.clone()));
    running.health.tell(Readiness::Ready).await;
    let follow = running.health.clone().follow(running.store.clone());
    running.spawn(READINESS, running.rest.clone().until_soft(follow));
    engine::hint_first_key(&running.store).await?;
    let version = env!("CARGO_PKG_VERSION");
    tracing::info!(version, node.id = %running.dispatch.queue().node(), grpc.addr = %grpc_addr, http.addr = %http_addr, "tidings is ready");
    Ok(running)
}

impl Running {
    fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(async move {
            task.await;
            name
        });
    }

    /// Where gRPC is served.
    pub fn grpc_addr(&self) -> SocketAddr {
        self.grpc_addr
    }

    /// Where HTTP is served.
    pub fn http_addr(&self) -> SocketAddr {
        self.http_addr
    }

    /// Waits until a part of the service has ended by itself, which is a fault; tells which.
    pub async fn wait_failed(&mut self) -> &'static str {
        tokio::select! {
            Some(ended) = self.tasks.join_next() => ended.unwrap_or("a server that panicked"),
            part = self.dispatch.failed() => part,
            () = self.intake.failed() => "the committer",
            part = self.feed.failed() => part,
        }
    }

    /// Stops gracefully, within the grace period.
    ///
    /// Soft: nothing new is accepted or claimed, and everybody is told so. What is in flight ends
    /// and is recorded; watchers end with an error that says where to go on. Hard, when four fifths
    /// of the grace period are over: what is left is dropped, its leases given back.
    pub async fn stop(mut self) {
        let (soft, hard) = self.deadlines();
        self.health.tell(Readiness::Stopping).await;
        self.intake.close();
        self.dispatch.stop_claiming();
        self.feed.close();
        self.grpc.begin_soft();

        // What was accepted is committed and answered; calls end. Attempts go on meanwhile.
        let answered = time::timeout_at(soft, async {
            self.intake.drained().await;
            while let Some(ended) = self.tasks.join_next().await {
                if ended.is_ok_and(|name| name == GRPC) {
                    break;
                }
            }
        });
        if answered.await.is_err() {
            tracing::warn!("some calls did not end in time and are cut off");
        }
        self.grpc.begin_hard();
        let drained = self.dispatch.drain(soft).await;
        if drained.released > 0 {
            tracing::info!(deliveries = drained.released, "leases given back for later");
        }
        let _ = time::timeout_at(hard, self.feed.drained()).await;

        // HTTP goes last: until here it has said "stopping".
        self.rest.begin_soft();
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        let _ = time::timeout_at(hard, ended).await;
        self.rest.begin_hard();
        self.tasks.shutdown().await;
        if let Some(exporter) = self.exporter {
            exporter.finish(hard).await;
        }
        if time::timeout_at(hard, self.store.close()).await.is_err() {
            tracing::warn!("the database's connections did not close in time");
        }
        drop(self.lock);
        tracing::info!("tidings has stopped");
    }

    /// When the soft stage and when the hard stage must be over.
    fn deadlines(&self) -> (Instant, Instant) {
        #[expect(
            clippy::disallowed_methods,
            reason = "a deadline for waiting, no time that is stored"
        )]
        let now = Instant::now();
        (now + self.grace * 8 / 10, now + self.grace * 95 / 100)
    }
}

async fn listen(
    option: &'static str,
    addr: SocketAddr,
) -> Result<(TcpListener, SocketAddr), Error> {
    let failed = |source| Error::Listen { option, addr, source };
    let listener = TcpListener::bind(addr).await.map_err(failed)?;
    let actual = listener.local_addr().map_err(failed)?;
    Ok((listener, actual))
}

/// An error and its causes on one line.
struct Chain<'a>(&'a dyn std::error::Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use crate::config::{DatabaseUrl, Options};

    use super::*;

    fn config(folder: &std::path::Path) -> Config {
        let free = SocketAddr::from(([127, 0, 0, 1], 0));
        let database_url = DatabaseUrl::of_file(&folder.join("tidings.db"));
        let options =
            Options { grpc_addr: free, http_addr: free, database_url, ..Options::default() };
        options.config()
    }

    async fn get(addr: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn it_starts_is_ready_stops_and_starts_again() {
        let folder = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            let running = start(config(folder.path())).await.unwrap();
            assert_ne!(running.grpc_addr().port(), 0);
            let ready = get(running.http_addr(), "/readyz").await;
            assert!(ready.starts_with("HTTP/1.1 200 OK"), "{ready}");
            let metrics = get(running.http_addr(), "/metrics").await;
            assert!(metrics.contains("tidings_build_info{version="), "{metrics}");
            let grpc = TcpStream::connect(running.grpc_addr()).await;
            assert!(grpc.is_ok());
            time::timeout(Duration::from_secs(5), running.stop()).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_part_that_ends_by_itself_is_a_fault() {
        let folder = tempfile::tempdir().unwrap();
        let mut running = start(config(folder.path())).await.unwrap();
        let early = time::timeout(Duration::from_millis(300), running.wait_failed()).await;
        assert!(early.is_err(), "{early:?} ended by itself");
        running.feed.break_down();
        let failed = time::timeout(Duration::from_secs(5), running.wait_failed()).await.unwrap();
        assert_eq!(failed, "the feed's broken part");
        running.stop().await;
    }

    #[tokio::test]
    async fn a_file_is_served_once_and_an_address_too() {
        let folder = tempfile::tempdir().unwrap();
        let running = start(config(folder.path())).await.unwrap();
        // The next one waits for the file, and has it when the first one is gone.
        let mut next = std::pin::pin!(start(config(folder.path())));
        assert!(next.as_mut().now_or_never().is_none(), "the file is taken");
        running.stop().await;
        let running = next.await.unwrap();
        let other = tempfile::tempdir().unwrap();
        let taken = Config { grpc_addr: running.grpc_addr(), ..config(other.path()) };
        let error = start(taken).await.err().unwrap();
        assert!(error.to_string().starts_with("--grpc-addr 127.0.0.1:"), "{error}");
        running.stop().await;
    }
}
