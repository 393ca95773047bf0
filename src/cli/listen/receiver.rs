//! A small HTTP server that takes requests whole and answers as it is told. For `listen` and `demo`.
//!
//! Bounded: a request's body, the time to send it, and the connections at the same time. It is for
//! a developer's machine, and no model for a receiver in production.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::cli::output::time;
use crate::domain::Timestamp;

/// Largest body that is read, in bytes: more than the service sends by default.
const MAX_BODY: usize = 4 * 1024 * 1024;
/// How long a sender may take to send a request.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Most connections at the same time.
const MAX_CONNECTIONS: usize = 1_024;
/// The pause after a connection could not be accepted: too many open files, for example.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A request, read to its end.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// When it had arrived.
    pub time: Timestamp,
    /// Its method.
    pub method: Method,
    /// The path and the query.
    pub path: String,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Arrival {
    /// A header's value; empty when it is not there.
    pub fn header(&self, name: &str) -> &str {
        super::verify::text(&self.headers, name).unwrap_or_default()
    }

    /// Which attempt it is, as `Tidings-Attempt` says; 0 when it does not.
    pub fn attempt(&self) -> u32 {
        self.header("tidings-attempt").parse().unwrap_or(0)
    }
}

/// What to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The body: a word for people.
    pub body: &'static str,
}

/// Serves until it is dropped, which also ends all connections.
pub async fn serve<H, F>(listener: TcpListener, handler: H)
where
    H: Fn(Arrival) -> F + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let handler = Arc::new(handler);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, Arc::clone(&handler)));
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection<H, F>(stream: TcpStream, handler: Arc<H>)
where
    H: Fn(Arrival) -> F + Send + Sync,
    F: Future<Output = Answer> + Send,
{
    let service = service_fn(|request| answer(request, &*handler));
    // Whatever ends the connection is the sender's affair, and the sender reports it.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(READ_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn answer<H, F>(
    request: Request<Incoming>,
    handler: &H,
) -> Result<Response<Full<Bytes>>, Infallible>
where
    H: Fn(Arrival) -> F,
    F: Future<Output = Answer>,
{
    let (head, body) = request.into_parts();
    let body = tokio::time::timeout(READ_TIMEOUT, Limited::new(body, MAX_BODY).collect()).await;
    let Ok(Ok(body)) = body else {
        return Ok(response(Answer { status: StatusCode::BAD_REQUEST, body: "unreadable" }));
    };
    let arrival = Arrival {
        time: time::now(),
        method: head.method,
        path: head.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
        headers: head.headers,
        body: body.to_bytes(),
    };
    Ok(response(handler(arrival).await))
}

fn response(answer: Answer) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(answer.body.as_bytes())));
    *response.status_mut() = answer.status;
    response
}
