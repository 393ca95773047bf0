//! The internet of the namespace: one set of listeners on every address there is, which count the
//! connections by the address that they were made to, and answer with a valid certificate.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::support::authority::{Authority, params};

/// A receiver that may be called.
pub(super) const PUBLIC: IpAddr = IpAddr::V4(Ipv4Addr::new(93, 184, 215, 14));
/// Where nobody may be led.
pub(super) const PRIVATE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
/// Others that may be called, but not by a redirect.
pub(super) const RECEIVERS: [&str; 4] =
    ["93.184.215.14", "93.184.215.15", "2606:4700:4700::1111", "2a00:1450::1"];
/// Where a proxy of the environment would be.
pub(super) const PROXY_PORT: u16 = 3128;

type Counts = BTreeMap<(IpAddr, u16), usize>;

/// The listeners; they end when it is dropped.
pub(super) struct World {
    counts: Arc<Mutex<Counts>>,
    _tasks: JoinSet<()>,
}

/// Whether a connection went to a receiver that may be called, in the right way.
pub(super) fn is_receiver(address: IpAddr, port: u16) -> bool {
    port == 443 && RECEIVERS.contains(&address.to_string().as_str())
}

impl World {
    pub(super) async fn start(authority: &Authority) -> Self {
        // Of the private addresses those that a mistake would lead to; names are all covered.
        let names =
            [&["*.company.com", "10.0.0.1", "127.0.0.1", "169.254.169.254", "::1"][..], &RECEIVERS];
        let tls = authority.server(&params(&names.concat()), &["http/1.1"]);
        let counts = Arc::<Mutex<Counts>>::default();
        let mut tasks = JoinSet::new();
        for (port, tls) in [(443, Some(tls)), (80, None), (PROXY_PORT, None)] {
            let listener = TcpListener::bind(("::", port)).await.expect("a port");
            tasks.spawn(serve(listener, tls, Arc::clone(&counts)));
        }
        Self { counts, _tasks: tasks }
    }

    /// Connections to those addresses and ports that `wanted` wants.
    pub(super) fn count(&self, wanted: impl Fn(IpAddr, u16) -> bool) -> usize {
        let counts = self.counts.lock().expect("not poisoned");
        counts.iter().filter(|((address, port), _)| wanted(*address, *port)).map(|(_, n)| n).sum()
    }
}

async fn serve(listener: TcpListener, tls: Option<Arc<ServerConfig>>, counts: Arc<Mutex<Counts>>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.expect("accepted");
        let local = stream.local_addr().expect("an address");
        let key = (local.ip().to_canonical(), local.port());
        *counts.lock().expect("not poisoned").entry(key).or_default() += 1;
        connections.spawn(converse(stream, tls.clone()));
        while connections.try_join_next().is_some() {}
    }
}

async fn converse(stream: TcpStream, tls: Option<Arc<ServerConfig>>) {
    let server = auto::Builder::new(TokioExecutor::new());
    let service = service_fn(answer);
    match tls {
        None => drop(server.serve_connection(TokioIo::new(stream), service).await),
        Some(tls) => {
            if let Ok(stream) = TlsAcceptor::from(tls).accept(stream).await {
                drop(server.serve_connection(TokioIo::new(stream), service).await);
            }
        }
    }
}

/// Answers as the path says: `/302/https://…` redirects, `/alt-svc` offers another service, and
/// `/close` ends the connection; everything else is good.
async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let path = request.uri().path().to_owned();
    request.into_body().collect().await?;
    let mut response = Response::builder();
    if let Some((status, location)) =
        path.strip_prefix("/redirect/").and_then(|rest| rest.split_once('/'))
    {
        response = response.status(status).header("location", location);
    }
    if path == "/alt-svc" {
        response = response.header("alt-svc", r#"h2="10.0.0.1:443"; ma=3600, h3=":443"; ma=3600"#);
    }
    if ["/close", "/alt-svc"].contains(&path.as_str()) {
        response = response.header("connection", "close");
    }
    Ok(response.body(Full::default()).expect("a response"))
}
