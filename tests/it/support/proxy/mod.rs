//! A proxy before PostgreSQL: it delays, throttles, withholds and cuts, loses the answer to a COMMIT,
//! and counts what is asked.
//!
//! Each thing that it does to a connection is counted, so that a test whose fault never fired can
//! fail.

mod protocol;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Database;
pub(crate) use protocol::Asked;
use protocol::{Answers, End, Questions};

/// How the way to the database is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weather {
    Clear,
    /// Every connection is cut, and new ones are as soon as they are made.
    Cut,
    /// Connections stay, and nothing comes through. What was under way comes later.
    BlackHole,
    /// Whatever the client says takes so much longer.
    Slow(Duration),
    /// In each direction and connection, so many bytes a second.
    Narrow(u32),
}

impl Weather {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Clear => "clear",
            Self::Cut => "cuts",
            Self::BlackHole => "black holes",
            Self::Slow(_) => "delays",
            Self::Narrow(_) => "throttles",
        }
    }
}

/// What can get lost at the end of a transaction, and the connection with it. Who asked for it knows
/// in neither case what became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// The COMMIT itself: nothing is stored.
    Commit,
    /// The answer to it: everything is stored. So it happens when a pooler or a load balancer is
    /// restarted.
    Answer,
}

/// What the connections share.
struct Shared {
    target: String,
    weather: watch::Sender<Weather>,
    /// Part of a statement: the next transaction that ran it loses its COMMIT, or the answer.
    wanted: Mutex<Option<(Loss, String)>>,
    /// How many were lost.
    lost: watch::Sender<usize>,
    asked: Arc<Mutex<Asked>>,
    /// How often each weather did something to a connection.
    met: Mutex<BTreeMap<&'static str, usize>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The proxy; it ends when it is dropped.
pub(crate) struct Proxy {
    pub(crate) addr: SocketAddr,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// Puts itself between the server of `database` and whoever connects to it from now on.
    pub(crate) async fn before(database: &mut Database) -> Self {
        let (proxy, url) = Self::on_the_way_to(&database.config.database_url).await;
        database.config.database_url = url;
        proxy
    }

    /// A proxy before the server of a URL, and the URL by way of it.
    pub(crate) async fn on_the_way_to(url: &str) -> (Self, String) {
        let mut url: url::Url = url.parse().expect("a URL");
        let target = format!("{}:{}", url.host_str().expect("a host"), url.port().unwrap_or(5432));
        let proxy = Self::to(target).await;
        url.set_port(Some(proxy.addr.port())).expect("a port");
        url.set_host(Some("127.0.0.1")).expect("a host");
        // It reads along.
        url.set_query(Some("sslmode=disable"));
        (proxy, url.into())
    }

    async fn to(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            target,
            weather: watch::Sender::new(Weather::Clear),
            wanted: Mutex::default(),
            lost: watch::Sender::new(0),
            asked: Arc::default(),
            met: Mutex::default(),
        });
        let mut tasks = JoinSet::new();
        let own = Arc::clone(&shared);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let Ok((client, _)) = listener.accept().await else { continue };
                connections.spawn(Arc::clone(&own).relay(client));
                while connections.try_join_next().is_some() {}
            }
        });
        Self { addr, shared, _tasks: tasks }
    }

    /// Changes the weather.
    pub(crate) fn set(&self, weather: Weather) {
        self.shared.weather.send_replace(weather);
    }

    /// Cuts every connection, and refuses new ones.
    pub(crate) fn cut(&self) {
        self.set(Weather::Cut);
    }

    pub(crate) fn restore(&self) {
        self.set(Weather::Clear);
    }

    /// How often this kind of weather has done something to a connection.
    pub(crate) fn met(&self, weather: Weather) -> usize {
        lock(&self.shared.met).get(weather.name()).copied().unwrap_or(0)
    }

    /// Has the next transaction that runs a statement with `part` in it lose this, and its connection.
    pub(crate) fn lose(&self, loss: Loss, part: &str) {
        *lock(&self.shared.wanted) = Some((loss, part.to_owned()));
    }

    /// How many COMMITs and answers have been lost.
    pub(crate) fn lost(&self) -> usize {
        *self.shared.lost.borrow()
    }

    /// Waits until `count` have been lost: a test whose fault never fires must fail.
    pub(crate) async fn wait_for_lost(&self, count: usize) {
        let mut lost = self.shared.lost.subscribe();
        let waited = tokio::time::timeout(Duration::from_secs(30), lost.wait_for(|n| *n >= count));
        // What it returns keeps the number locked.
        let has_come = waited.await.is_ok();
        let so_far = self.lost();
        assert!(has_come, "{count} were to be lost on {}, {so_far} were", self.addr);
    }

    /// What has been asked since the last time that this was called.
    pub(crate) fn take(&self) -> Asked {
        std::mem::take(&mut lock(&self.shared.asked))
    }
}

impl Shared {
    fn meet(&self, weather: Weather) {
        *lock(&self.met).entry(weather.name()).or_default() += 1;
    }

    async fn relay(self: Arc<Self>, client: TcpStream) {
        let mut weather = self.weather.subscribe();
        if *weather.borrow() == Weather::Cut {
            return self.meet(Weather::Cut);
        }
        let Ok(server) = TcpStream::connect(&self.target).await else { return };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        let questions = Arc::new(Mutex::new(Questions::new(Arc::clone(&self.asked))));
        // Whichever ends first ends the other, except that a client may say that it says no more.
        tokio::select! {
            () = async {
                if self.ask(from_client, to_server, &questions).await.is_ok() {
                    std::future::pending::<()>().await;
                }
            } => {}
            _ = self.answer(from_server, to_client, &questions) => {}
            _ = weather.wait_for(|weather| *weather == Weather::Cut) => self.meet(Weather::Cut),
        }
    }

    async fn ask(
        &self,
        mut client: OwnedReadHalf,
        mut server: OwnedWriteHalf,
        questions: &Mutex<Questions>,
    ) -> std::io::Result<()> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let length = client.read(&mut buffer).await.unwrap_or(0);
            if length == 0 {
                // The server says goodbye by ending the other direction.
                return server.shutdown().await;
            }
            let commits = lock(questions).read(&buffer[..length]);
            if commits && self.loses(Loss::Commit, questions) {
                return Err(std::io::ErrorKind::ConnectionAborted.into());
            }
            let now = *self.weather.borrow();
            if let Weather::Slow(delay) = now {
                self.meet(now);
                tokio::time::sleep(delay).await;
            }
            self.pass(length).await;
            server.write_all(&buffer[..length]).await?;
        }
    }

    async fn answer(
        &self,
        mut server: OwnedReadHalf,
        mut client: OwnedWriteHalf,
        questions: &Mutex<Questions>,
    ) -> std::io::Result<()> {
        let mut answers = Answers::default();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let length = server.read(&mut buffer).await?;
            if length == 0 {
                return Ok(());
            }
            if let Some(end) = answers.read(&buffer[..length]) {
                if end == End::Confirmed && self.loses(Loss::Answer, questions) {
                    return Ok(());
                }
                lock(questions).end();
            }
            self.pass(length).await;
            client.write_all(&buffer[..length]).await?;
        }
    }

    /// Waits until so many bytes may come through.
    async fn pass(&self, length: usize) {
        let mut weather = self.weather.subscribe();
        let now = *weather.borrow_and_update();
        match now {
            Weather::BlackHole => {
                self.meet(now);
                let _ = weather.wait_for(|weather| *weather != Weather::BlackHole).await;
            }
            Weather::Narrow(bytes_per_second) => {
                self.meet(now);
                let length = u32::try_from(length).unwrap_or(u32::MAX);
                let seconds = f64::from(length) / f64::from(bytes_per_second);
                tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
            }
            Weather::Clear | Weather::Cut | Weather::Slow(_) => {}
        }
    }

    /// Whether the transaction that ends here is to lose this.
    fn loses(&self, loss: Loss, questions: &Mutex<Questions>) -> bool {
        let mut wanted = lock(&self.wanted);
        let is_wanted = wanted
            .as_ref()
            .is_some_and(|(wanted, part)| *wanted == loss && lock(questions).has_run(part));
        if is_wanted {
            wanted.take();
            self.lost.send_modify(|lost| *lost += 1);
        }
        is_wanted
    }
}
