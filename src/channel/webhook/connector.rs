//! Opens connections, past the guard.
//!
//! Guarantees: an address is judged before a connection to it is opened, whether it came from a
//! name or stands in the URL itself (where hyper-util would not ask a resolver); one refused
//! answer refuses the name; the peer of the opened connection is judged again; connecting, TLS
//! included, ends within [`MAX_CONNECT`] even when hyper-util goes on with it in the background.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use prometheus_client::metrics::gauge::Gauge;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tower::Service;

use super::failure;
use super::guard::Guard;
use super::phases::{Phase, Probe};
use super::resolver::Resolver;
use crate::channel::Counted;
use crate::domain::channel::MAX_TIMEOUT;
use crate::domain::endpoint::Rules;

/// The longest time for a connection. No attempt waits longer.
const MAX_CONNECT: Duration = MAX_TIMEOUT;
/// The longest time for one address when there is another one to try.
const MAX_CONNECT_PER_ADDRESS: Duration = Duration::from_secs(3);
/// Most addresses of a name that are tried.
const MAX_ADDRESSES: usize = 8;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The name did not resolve.
    #[error("the name did not resolve")]
    Dns,
    /// The guard refused an address.
    #[error("the address was refused")]
    Refused(Origin),
    /// Nobody answered.
    #[error("no connection was made")]
    Connect(#[source] io::Error),
    /// It took too long.
    #[error("connecting took too long")]
    Timeout,
    /// There is no TLS session.
    #[error("no TLS session was made")]
    Tls(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Where a refused address came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// It stands in the URL and will never change.
    Literal,
    /// A name led to it, and may lead elsewhere later.
    Name,
}

type ConnectFuture<T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send>>;

/// Connects with TLS, or without where the configuration allows it.
#[derive(Clone)]
pub(super) struct Connector {
    https: HttpsConnector<Tcp>,
}

impl Connector {
    pub(super) fn new(tls: rustls::ClientConfig, tcp: Tcp, rules: Rules) -> Self {
        let builder = HttpsConnectorBuilder::new().with_tls_config(tls);
        let schemes = if rules.allow_http { builder.https_or_http() } else { builder.https_only() };
        Self { https: schemes.enable_all_versions().wrap_connector(tcp) }
    }
}

impl Service<Uri> for Connector {
    type Response = MaybeHttpsStream<Stream>;
    type Error = Error;
    type Future = ConnectFuture<Self::Response>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let probe = Probe::current();
        let connecting = timeout(MAX_CONNECT, self.https.call(uri));
        Box::pin(async move {
            match connecting.await {
                Ok(Ok(stream)) => {
                    begin(probe.as_ref(), Phase::FirstByte);
                    Ok(stream)
                }
                // What is not ours comes from TLS.
                Ok(Err(error)) => Err(error.downcast().map_or_else(Error::Tls, |ours| *ours)),
                Err(_) => Err(Error::Timeout),
            }
        })
    }
}

fn begin(probe: Option<&Probe>, phase: Phase) {
    if let Some(probe) = probe {
        probe.begin(phase);
    }
}

/// Connects to an address that the guard allows.
#[derive(Clone)]
pub(super) struct Tcp {
    shared: Arc<Shared>,
}

struct Shared {
    guard: Guard,
    resolver: Resolver,
    open: Gauge,
}

impl Tcp {
    pub(super) fn new(guard: Guard, resolver: Resolver, open: Gauge) -> Self {
        Self { shared: Arc::new(Shared { guard, resolver, open }) }
    }
}

impl Service<Uri> for Tcp {
    type Response = Stream;
    type Error = Error;
    type Future = ConnectFuture<Stream>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (shared, probe) = (Arc::clone(&self.shared), Probe::current());
        Box::pin(async move { shared.connect(&uri, probe).await })
    }
}

impl Shared {
    async fn connect(&self, uri: &Uri, probe: Option<Probe>) -> Result<Stream, Error> {
        let host = uri.host().unwrap_or_default();
        let (addresses, origin) = self.judged(host, probe.as_ref()).await?;
        begin(probe.as_ref(), Phase::Connect);
        let is_plain = uri.scheme_str() == Some("http");
        let port = uri.port_u16().unwrap_or(if is_plain { 80 } else { 443 });
        let last = addresses.len().min(MAX_ADDRESSES) - 1;
        let mut error = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for (index, address) in addresses.into_iter().take(MAX_ADDRESSES).enumerate() {
            let connecting = TcpStream::connect(SocketAddr::new(address, port));
            let limit = if index == last { MAX_CONNECT } else { MAX_CONNECT_PER_ADDRESS };
            match timeout(limit, connecting).await {
                Ok(Ok(stream)) => {
                    if !is_plain {
                        begin(probe.as_ref(), Phase::Tls);
                    }
                    return self.opened(stream, address, origin, probe);
                }
                Ok(Err(failed)) => error = failed,
                Err(_) => error = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(Error::Connect(error))
    }

    /// The addresses of `host`, none of which is refused. Never empty.
    async fn judged(
        &self,
        host: &str,
        probe: Option<&Probe>,
    ) -> Result<(Vec<IpAddr>, Origin), Error> {
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        let (addresses, origin) = if let Ok(literal) = bare.parse() {
            (vec![literal], Origin::Literal)
        } else {
            begin(probe, Phase::Dns);
            let failed =
                |error| if failure::is_ours(&error) { Error::Connect(error) } else { Error::Dns };
            (self.resolver.addresses(host).await.map_err(failed)?, Origin::Name)
        };
        if addresses.is_empty() {
            return Err(Error::Dns);
        }
        if !addresses.iter().all(|address| self.guard.allows(*address)) {
            return Err(Error::Refused(origin));
        }
        Ok((addresses, origin))
    }

    /// Checks that the connection leads where it should.
    fn opened(
        &self,
        stream: TcpStream,
        address: IpAddr,
        origin: Origin,
        opener: Option<Probe>,
    ) -> Result<Stream, Error> {
        let peer = stream.peer_addr().map_err(Error::Connect)?.ip();
        if peer != address || !self.guard.allows(peer) {
            return Err(Error::Refused(origin));
        }
        stream.set_nodelay(true).map_err(Error::Connect)?;
        Ok(Stream { io: TokioIo::new(stream), _open: Counted::new(&self.open), opener })
    }
}

/// An open connection, counted while it lives.
pub(super) struct Stream {
    io: TokioIo<TcpStream>,
    _open: Counted,
    /// The probe of the attempt that opened it.
    opener: Option<Probe>,
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        match &self.opener {
            Some(opener) => Connected::new().extra(opener.clone()),
            None => Connected::new(),
        }
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel connects to what it is told; that something between it and us could not, is what
    /// this check is for. So it is told of another address here.
    #[tokio::test]
    async fn the_peer_is_judged_again() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let opened = async |allow: &[&str], expected: &str| {
            let allow = allow.iter().map(|text| text.parse().expect("range")).collect();
            let guard = Guard::new(allow, Vec::new());
            let shared = Shared { guard, resolver: Resolver::system(), open: Gauge::default() };
            let stream = TcpStream::connect(address).await.expect("connected");
            shared.opened(stream, expected.parse().expect("address"), Origin::Name, None).map(drop)
        };
        assert!(opened(&["127.0.0.0/8"], "127.0.0.1").await.is_ok());
        for (allow, expected) in [(&["127.0.0.0/8"][..], "127.0.0.2"), (&[], "127.0.0.1")] {
            let refused = opened(allow, expected).await;
            assert!(matches!(refused, Err(Error::Refused(Origin::Name))), "{refused:?}");
        }
    }
}
