//! A connection for the load: gRPC over HTTP/2, without what a channel adds for its users (a queue
//! before the connection, reconnecting, timeouts). That would cost the machine a part of what is
//! measured, and nothing of it is needed here: a connection that breaks fails the run.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::AUTHORIZATION;
use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tonic::body::Body;
use tower::Service;

use crate::Result;

/// Sends calls over one connection. Clones share it; it ends with the last of them.
#[derive(Clone)]
pub(crate) struct Line {
    requests: SendRequest<Body>,
    authorization: HeaderValue,
    _connection: Arc<JoinSet<()>>,
}

impl Line {
    /// Connects to `address`; every call carries `authorization`.
    pub(crate) async fn open(address: &str, authorization: HeaderValue) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (requests, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            // A connection that breaks shows itself in its calls.
            let _ = connection.await;
        });
        Ok(Self { requests, authorization, _connection: Arc::new(tasks) })
    }
}

impl Service<Request<Body>> for Line {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = hyper::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.requests.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        request.headers_mut().insert(AUTHORIZATION, self.authorization.clone());
        Box::pin(self.requests.send_request(request))
    }
}
