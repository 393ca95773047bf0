//! A real HTTP receiver that keeps what arrives, byte for byte.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// A request as it came over the wire.
#[derive(Clone, Debug)]
pub(crate) struct Captured {
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
}

impl Reply {
    pub(crate) fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: "", delay: Duration::ZERO }
    }

    pub(crate) fn after(self, delay: Duration) -> Self {
        Self { delay, ..self }
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
        let all = Arc::clone(&captured);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let _ = stream.set_nodelay(true);
                let (script, all, sender) =
                    (Arc::clone(&script), Arc::clone(&all), Arc::clone(&sender));
                let service = service_fn(move |request| {
                    answer(request, Arc::clone(&script), Arc::clone(&all), Arc::clone(&sender))
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
        let waited =
            tokio::time::timeout(Duration::from_secs(30), arrived.wait_for(|n| *n >= count)).await;
        let requests = self.requests();
        assert!(waited.is_ok(), "{count} requests were expected, {} came", requests.len());
        requests
    }
}

async fn answer(
    request: Request<Incoming>,
    script: Arc<Script>,
    all: Arc<Mutex<Vec<Captured>>>,
    count: Arc<watch::Sender<usize>>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let (parts, body) = request.into_parts();
    let captured = Captured {
        headers: parts
            .headers
            .iter()
            .map(|(name, value)| {
                (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
            })
            .collect(),
        body: body.collect().await?.to_bytes(),
    };
    let reply = {
        let mut all = all.lock().expect("not poisoned");
        let reply = script(&captured, all.len());
        all.push(captured);
        count.send_replace(all.len());
        reply
    };
    tokio::time::sleep(reply.delay).await;
    let mut response = Response::new(Full::new(Bytes::from_static(reply.body.as_bytes())));
    *response.status_mut() = StatusCode::from_u16(reply.status).expect("a status");
    for (name, value) in reply.headers {
        response.headers_mut().insert(name, value.parse().expect("a header value"));
    }
    Ok(response)
}
