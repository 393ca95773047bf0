//! An endpoint that follows a script on each connection, and counts them.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tidings::api::proto::ErrorKind;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

type Play = dyn Fn(TcpStream) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync;

/// What an endpoint does, and what must come of it.
#[derive(Clone)]
pub(super) struct Script {
    pub(super) label: &'static str,
    scheme: &'static str,
    play: Arc<Play>,
    /// The kinds of error that are right; unspecified is a success.
    pub(super) expected: &'static [ErrorKind],
    /// What the sentence must say.
    pub(super) message: &'static str,
    /// Whether nothing is wrong with the connection.
    pub(super) is_sound: bool,
    /// Whether it costs a processor.
    pub(super) is_flood: bool,
    /// What must be kept of the body.
    pub(super) body: Option<&'static [u8]>,
}

impl Script {
    /// An endpoint without TLS. Each attempt needs a connection of its own.
    pub(super) fn new<F>(
        label: &'static str,
        expected: &'static [ErrorKind],
        message: &'static str,
        play: impl Fn(TcpStream) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let play = Arc::new(move |stream| -> Pin<Box<dyn Future<Output = ()> + Send>> {
            Box::pin(play(stream))
        });
        let (is_sound, is_flood) = (false, label.contains("flood") || label.contains("endless"));
        Self { label, scheme: "http", play, expected, message, is_sound, is_flood, body: None }
    }

    /// Whether it sends a body of which only the beginning is read. A head that is cut shows in the
    /// kind of error.
    pub(super) fn is_cut(&self) -> bool {
        self.label.starts_with("endless body")
    }

    pub(super) fn https(self) -> Self {
        Self { scheme: "https", ..self }
    }

    pub(super) fn body(self, body: &'static [u8]) -> Self {
        Self { body: Some(body), ..self }
    }

    pub(super) fn sound(self) -> Self {
        Self { is_sound: true, ..self }
    }
}

/// A listener on the loopback; it ends when it is dropped.
pub(super) struct Endpoint {
    address: SocketAddr,
    scheme: &'static str,
    connections: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Endpoint {
    pub(super) async fn start(script: &Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let connections = Arc::<AtomicUsize>::default();
        let (counter, play) = (Arc::clone(&connections), Arc::clone(&script.play));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut conversations = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.expect("accepted");
                counter.fetch_add(1, Ordering::SeqCst);
                conversations.spawn(play(stream));
            }
        });
        Self { address, scheme: script.scheme, connections, _tasks: tasks }
    }

    pub(super) fn url(&self) -> String {
        format!("{}://{}/hook", self.scheme, self.address)
    }

    pub(super) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// Reads one request with its body. Without one, there is nothing to be hostile to.
pub(super) async fn read_request(stream: &mut (impl AsyncRead + Unpin)) {
    let mut request = Vec::new();
    loop {
        if let Some(end) = request.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&request[..end]).to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let length: usize = length.expect("a length").parse().expect("a number");
            if request.len() >= end + 4 + length {
                return;
            }
        }
        if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
            return;
        }
    }
}

/// Between the pieces of a flood that lasts until the deadline: it stays a flood, and leaves something
/// of a small machine to the tests beside it.
pub(super) const BREATH: Duration = Duration::from_millis(2);

/// Takes what comes until the other side hangs up.
pub(super) async fn hang(mut stream: impl AsyncRead + Unpin) {
    let mut buffer = [0; 4_096];
    while stream.read(&mut buffer).await.is_ok_and(|length| length > 0) {}
}

/// Sends `piece` again and again, `pause` apart, until the other side hangs up.
pub(super) async fn repeat(stream: &mut (impl AsyncWrite + Unpin), piece: &[u8], pause: Duration) {
    while stream.write_all(piece).await.is_ok() && stream.flush().await.is_ok() {
        if pause.is_zero() {
            // Others run on this thread too.
            tokio::task::yield_now().await;
        } else {
            tokio::time::sleep(pause).await;
        }
    }
}

/// Ends a connection with a reset.
pub(super) fn reset(stream: TcpStream) {
    stream.set_zero_linger().expect("set");
    drop(stream);
}
