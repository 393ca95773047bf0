//! Endpoints of the tests: real listeners that do exactly what a test says, and count.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Longer than anything takes.
pub(super) const LONG: Duration = Duration::from_secs(10);

/// A listener on loopback that runs a script on each connection.
pub(super) struct Endpoint {
    pub(super) address: SocketAddr,
    connections: Arc<AtomicUsize>,
    ended: mpsc::UnboundedReceiver<Vec<u8>>,
    task: JoinHandle<()>,
}

impl Endpoint {
    /// Runs `script` on each connection. What a script returns is for [`Endpoint::ended`].
    pub(super) async fn start<F>(script: impl Fn(TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = Vec<u8>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let connections = Arc::new(AtomicUsize::new(0));
        let (sender, ended) = mpsc::unbounded_channel();
        let counter = Arc::clone(&connections);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::SeqCst);
                let (script, sender) = (script(stream), sender.clone());
                tokio::spawn(async move { sender.send(script.await) });
            }
        });
        Self { address, connections, ended, task }
    }

    /// Answers every request on every connection with `answer`, and keeps the connection.
    pub(super) async fn answering(answer: impl Into<Vec<u8>>) -> Self {
        let answer = answer.into();
        Self::start(move |mut stream| {
            let answer = answer.clone();
            async move {
                let mut last = Vec::new();
                while let Some(request) = read_request(&mut stream).await {
                    last = request;
                    if stream.write_all(&answer).await.is_err() {
                        break;
                    }
                }
                last
            }
        })
        .await
    }

    /// Answers one request on each connection with `answer`, and hangs up.
    pub(super) async fn answering_once(answer: impl Into<Vec<u8>>) -> Self {
        let answer = answer.into();
        Self::start(move |mut stream| {
            let answer = answer.clone();
            async move {
                let request = read_request(&mut stream).await.unwrap_or_default();
                stream.write_all(&answer).await.ok();
                request
            }
        })
        .await
    }

    /// Reads a request, writes `start`, and then `again` for ever, `pause` apart.
    pub(super) async fn flooding(start: &'static str, again: Vec<u8>, pause: Duration) -> Self {
        Self::start(move |mut stream| {
            let again = again.clone();
            async move {
                let request = read_request(&mut stream).await.unwrap_or_default();
                stream.write_all(start.as_bytes()).await.ok();
                while stream.write_all(&again).await.is_ok() {
                    tokio::time::sleep(pause).await;
                }
                request
            }
        })
        .await
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }

    pub(super) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// What the script of a connection returned, once that connection has ended.
    pub(super) async fn ended(&mut self) -> Vec<u8> {
        timeout(LONG, self.ended.recv()).await.expect("the connection must end").expect("a script")
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One request with its body, or `None` at the end of the connection.
pub(super) async fn read_request(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut request = Vec::new();
    loop {
        if let Some(end) = request.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&request[..end]).to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let length: usize = length.expect("a length").parse().expect("a number");
            if request.len() >= end + 4 + length {
                return Some(request);
            }
        }
        if stream.read_buf(&mut request).await.ok()? == 0 {
            return None;
        }
    }
}
