//! The other end: an endpoint that answers at once and notes what came when, and endpoints that
//! accept and never answer.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tidings::domain::id::EventId;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::Result;

/// More than any body here has.
const MAX_BODY_BYTES: usize = 64 * 1_024;
/// How often a waiter looks.
const LOOK: Duration = Duration::from_millis(5);

/// A delivery that has arrived in full.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    pub(crate) event: EventId,
    /// Which endpoint: the number in the path.
    pub(crate) endpoint: usize,
    pub(crate) time: Instant,
}

#[derive(Default)]
struct Seen {
    arrivals: Mutex<Vec<Arrival>>,
    count: AtomicUsize,
    /// Requests without the signature that their subscription asks for.
    unsigned: AtomicUsize,
}

impl Seen {
    fn lock(&self) -> MutexGuard<'_, Vec<Arrival>> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers everything with 200, or 250, at once; ends when it is dropped.
pub(crate) struct Receiver {
    pub(crate) address: SocketAddr,
    seen: Arc<Seen>,
    _server: JoinSet<()>,
}

impl Receiver {
    /// For HTTP, or for mail.
    pub(crate) async fn start(is_mail: bool) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let seen = Arc::new(Seen::default());
        let mut server = JoinSet::new();
        if is_mail {
            server.spawn(accept(listener, Arc::clone(&seen), serve_mail));
        } else {
            server.spawn(accept(listener, Arc::clone(&seen), serve));
        }
        Ok(Self { address, seen, _server: server })
    }

    /// The URL of the endpoint with this number.
    pub(crate) fn url(&self, endpoint: usize) -> String {
        format!("http://{}/{endpoint}", self.address)
    }

    /// Forgets what has arrived, and makes room for `capacity`.
    pub(crate) fn reset(&self, capacity: usize) {
        let mut arrivals = self.seen.lock();
        arrivals.clear();
        arrivals.reserve(capacity);
        self.seen.count.store(0, Ordering::Relaxed);
    }

    /// Waits until so many have arrived, or until nothing has come for as long as `patience`.
    pub(crate) async fn wait(&self, wanted: usize, patience: Duration) {
        let (mut count, mut last) = (0, Instant::now());
        while count < wanted && last.elapsed() < patience {
            tokio::time::sleep(LOOK).await;
            let now = self.seen.count.load(Ordering::Relaxed);
            if now > count {
                (count, last) = (now, Instant::now());
            }
        }
    }

    /// What has arrived since the last reset.
    pub(crate) fn arrivals(&self) -> Vec<Arrival> {
        self.seen.lock().clone()
    }

    /// How many requests came without a signature, ever.
    pub(crate) fn unsigned(&self) -> usize {
        self.seen.unsigned.load(Ordering::Relaxed)
    }
}

/// Accepts connections, and serves each in a task of its own.
async fn accept<T, F>(listener: TcpListener, shared: Arc<T>, serve: fn(TcpStream, Arc<T>) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        connections.spawn(serve(stream, Arc::clone(&shared)));
        while connections.try_join_next().is_some() {}
    }
}

/// Takes requests of HTTP/1.1 with a known length, which is what the service sends. A server for
/// everything would cost the machine more than the service does: it is not what is measured.
async fn serve(mut stream: TcpStream, seen: Arc<Seen>) {
    // Only speeds up the answer.
    let _ = stream.set_nodelay(true);
    let mut buffer = Vec::with_capacity(4_096);
    loop {
        let Some(head) = head_length(&buffer) else {
            match stream.read_buf(&mut buffer).await {
                Ok(length) if length > 0 => continue,
                // A connection that breaks shows itself at the sender.
                _ => return,
            }
        };
        let body = header(&buffer[..head], "content-length").and_then(|it| it.parse().ok());
        // Chunks would go unnoticed.
        let Some(body) = body else { return };
        let end = head + usize::min(body, MAX_BODY_BYTES);
        while buffer.len() < end {
            if !stream.read_buf(&mut buffer).await.is_ok_and(|length| length > 0) {
                return;
            }
        }
        seen.take(&buffer[..head], Instant::now());
        buffer.drain(..end);
        if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.is_err() {
            return;
        }
    }
}

/// How many bytes a request's head has; `None` as long as it is not there in full.
fn head_length(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|end| end == b"\r\n\r\n").map(|place| place + 4)
}

/// The value of the header with this name, which is in lower case, as the service writes it.
fn header<'h>(head: &'h [u8], name: &str) -> Option<&'h str> {
    let mut lines = head.split(|byte| *byte == b'\n');
    let value = lines.find_map(|line| line.strip_prefix(name.as_bytes())?.strip_prefix(b": "))?;
    std::str::from_utf8(value).ok().map(str::trim_end)
}

impl Seen {
    fn take(&self, head: &[u8], time: Instant) {
        if let Some(event) = header(head, "webhook-id").and_then(|id| EventId::parse(id).ok()) {
            let signature = header(head, "webhook-signature");
            if !signature.is_some_and(|signature| signature.starts_with("v1,")) {
                self.unsigned.fetch_add(1, Ordering::Relaxed);
            }
            let path = head.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
            let endpoint = std::str::from_utf8(path).ok().and_then(|path| path[1..].parse().ok());
            let endpoint = endpoint.unwrap_or(usize::MAX);
            self.lock().push(Arrival { event, endpoint, time });
        }
        self.count.fetch_add(1, Ordering::Relaxed);
    }
}

/// A mail server that takes everything. The subject names the event.
async fn serve_mail(stream: TcpStream, seen: Arc<Seen>) {
    // Only speeds up the answer.
    let _ = stream.set_nodelay(true);
    // A connection that breaks shows itself at the sender.
    let _ = converse(BufReader::new(stream), &seen).await;
}

async fn converse(mut stream: BufReader<TcpStream>, seen: &Seen) -> std::io::Result<()> {
    stream.write_all(b"220 sink\r\n").await?;
    let mut line = Vec::new();
    loop {
        line.clear();
        if stream.read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        let reply: &[u8] = match &line[..line.len().min(4)] {
            b"EHLO" => b"250-sink\r\n250-PIPELINING\r\n250 8BITMIME\r\n",
            b"DATA" => {
                stream.write_all(b"354 go on\r\n").await?;
                take_message(&mut stream, seen).await?;
                b"250 taken\r\n"
            }
            b"QUIT" => return stream.write_all(b"221 bye\r\n").await,
            _ => b"250 ok\r\n",
        };
        stream.write_all(reply).await?;
    }
}

async fn take_message(stream: &mut BufReader<TcpStream>, seen: &Seen) -> std::io::Result<()> {
    let (mut line, mut event) = (Vec::new(), None);
    loop {
        line.clear();
        if stream.read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        if line == b".\r\n" {
            break;
        }
        if let Some(subject) = line.strip_prefix(b"Subject: ") {
            let subject = String::from_utf8_lossy(subject);
            event = EventId::parse(subject.trim()).ok();
        }
    }
    if let Some(event) = event {
        seen.lock().push(Arrival { event, endpoint: 0, time: Instant::now() });
    }
    seen.count.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

#[derive(Default)]
struct Held {
    /// Connections that wait for an answer.
    open: AtomicUsize,
    /// Endpoints that have been called.
    called: AtomicUsize,
}

/// Endpoints that accept connections, read, and never answer. Each has a port of its own, so that
/// nothing can take them for one.
pub(crate) struct Silent {
    addresses: Vec<SocketAddr>,
    held: Arc<Held>,
    _servers: JoinSet<()>,
}

impl Silent {
    pub(crate) async fn start(count: usize) -> Result<Self> {
        let (mut addresses, mut servers) = (Vec::new(), JoinSet::new());
        let held = Arc::new(Held::default());
        for _ in 0..count {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            addresses.push(listener.local_addr()?);
            let held = Arc::clone(&held);
            servers.spawn(async move {
                if let Ok((first, _)) = listener.accept().await {
                    held.called.fetch_add(1, Ordering::Relaxed);
                    let all = accept(listener, Arc::clone(&held), swallow);
                    tokio::join!(swallow(first, held), all);
                }
            });
        }
        Ok(Self { addresses, held, _servers: servers })
    }

    /// The URLs, one for each.
    pub(crate) fn urls(&self) -> Vec<String> {
        self.addresses.iter().map(|address| format!("http://{address}/")).collect()
    }

    /// How many connections wait for an answer.
    pub(crate) fn open(&self) -> usize {
        self.held.open.load(Ordering::Relaxed)
    }

    /// How many of the endpoints have been called.
    pub(crate) fn called(&self) -> usize {
        self.held.called.load(Ordering::Relaxed)
    }
}

async fn swallow(mut stream: TcpStream, held: Arc<Held>) {
    held.open.fetch_add(1, Ordering::Relaxed);
    let mut buffer = [0; 2_048];
    // Until the sender gives up.
    while stream.read(&mut buffer).await.is_ok_and(|length| length > 0) {}
    held.open.fetch_sub(1, Ordering::Relaxed);
}
