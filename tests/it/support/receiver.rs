//! A real HTTP receiver that keeps what arrives, byte for byte.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

/// How long requests are waited for. No test judges speed: thousands of them may have to come on a
/// machine that is busy with something else.
const PATIENCE: Duration = Duration::from_mins(2);

/// A request as it came over the wire.
#[derive(Clone, Debug)]
pub(crate) struct Captured {
    /// When it had been read.
    pub(crate) time: Instant,
    /// Requests under way at that moment, this one included.
    pub(crate) under_way: usize,
    /// The path and the query.
    pub(crate) target: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Bytes,
}

impl Captured {
    pub(crate) fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map_or_else(|| panic!("no header {name} in {:?}", self.headers), |(_, value)| value)
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).expect("a JSON body")
    }
}

/// How to answer a request.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: &'static str,
    pub(crate) delay: Duration,
    gate: Option<Arc<Semaphore>>,
}

impl Reply {
    pub(crate) fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: "", delay: Duration::ZERO, gate: None }
    }

    pub(crate) fn after(self, delay: Duration) -> Self {
        Self { delay, ..self }
    }

    /// Waits with the answer for a permit, and uses it up.
    pub(crate) fn behind(self, gate: Arc<Semaphore>) -> Self {
        Self { gate: Some(gate), ..self }
    }

    pub(crate) fn body(self, body: &'static str) -> Self {
        Self { body, ..self }
    }

    pub(crate) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

type Script = dyn Fn(&Captured, usize) -> Reply + Send + Sync;

/// A receiver on a port of its own; it ends when it is dropped.
pub(crate) struct Receiver {
    addr: SocketAddr,
    captured: Arc<Mutex<Vec<Captured>>>,
    count: watch::Receiver<usize>,
    _tasks: JoinSet<()>,
}

impl Receiver {
    /// Answers every request with `status`.
    pub(crate) async fn answering(status: u16) -> Self {
        Self::scripted(move |_, _| Reply::status(status)).await
    }

    /// Answers the first `count` requests at once, so that it has earned that many more at once, and the
    /// others by a script that gets the request and its number among them, from 0.
    pub(crate) async fn after_answers(
        count: usize,
        script: impl Fn(&Captured, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::scripted(move |request, number| match number.checked_sub(count) {
            Some(number) => script(request, number),
            None => Reply::status(204),
        })
        .await
    }

    /// Answers by a script that gets the request and its number, from 0.
    pub(crate) async fn scripted(
        script: impl Fn(&Captured, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("an address");
        let captured = Arc::new(Mutex::new(Vec::new()));
        let (sender, count) = watch::channel(0);
        let (script, sender): (Arc<Script>, _) = (Arc::new(script), Arc::new(sender));
        let mut tasks = JoinSet::new();
        let (all, under_way) = (Arc::clone(&captured), Arc::new(AtomicUsize::new(0)));
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let _ = stream.set_nodelay(true);
                let (script, all, sender, under_way) = (
                    Arc::clone(&script),
                    Arc::clone(&all),
                    Arc::clone(&sender),
                    Arc::clone(&under_way),
                );
                let service = service_fn(move |request| {
                    answer(
                        request,
                        Arc::clone(&script),
                        Arc::clone(&all),
                        Arc::clone(&sender),
                        Arc::clone(&under_way),
                    )
                });
                connections.spawn(async move {
                    let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection(TokioIo::new(stream), service).await;
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Self { addr, captured, count, _tasks: tasks }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/hook", self.addr)
    }

    pub(crate) fn requests(&self) -> Vec<Captured> {
        self.captured.lock().expect("not poisoned").clone()
    }

    /// Waits until `count` requests have arrived, and returns all that have.
    pub(crate) async fn wait_for(&self, count: usize) -> Vec<Captured> {
        let mut arrived = self.count.clone();
        let waited = tokio::time::timeout(PATIENCE, arrived.wait_for(|n| *n >= count));
        // What it returns keeps the count locked, whoever answers holds the requests and wants to count:
        // it must be gone before the requests are asked for.
        let has_come = waited.await.is_ok();
        let requests = self.requests();
        assert!(has_come, "{count} requests were expected, {} came", requests.len());
        requests
    }
}

/// A request under way; it ends with its answer, or when its client goes away.
struct Presence {
    all: Arc<AtomicUsize>,
    count: usize,
}

impl Presence {
    fn enter(all: Arc<AtomicUsize>) -> Self {
        let count = all.fetch_add(1, Ordering::SeqCst) + 1;
        Self { all, count }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.all.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn answer(
    request: Request<Incoming>,
    script: Arc<Script>,
    all: Arc<Mutex<Vec<Captured>>>,
    count: Arc<watch::Sender<usize>>,
    under_way: Arc<AtomicUsize>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let mut captured = Captured {
        time: Instant::now(),
        under_way: 0,
        target: parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
        headers: parts
            .headers
            .iter()
            .map(|(name, value)| {
                (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
            })
            .collect(),
        body,
    };
    let presence = Presence::enter(under_way);
    captured.under_way = presence.count;
    let reply = {
        let mut all = all.lock().expect("not poisoned");
        let reply = script(&captured, all.len());
        all.push(captured);
        count.send_replace(all.len());
        reply
    };
    if let Some(gate) = reply.gate {
        gate.acquire().await.expect("never closed").forget();
    }
    tokio::time::sleep(reply.delay).await;
    drop(presence);
    let mut response = Response::new(Full::new(Bytes::from_static(reply.body.as_bytes())));
    *response.status_mut() = StatusCode::from_u16(reply.status).expect("a status");
    for (name, value) in reply.headers {
        response.headers_mut().insert(name, value.parse().expect("a header value"));
    }
    Ok(response)
}
