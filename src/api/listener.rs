//! The listening side: a bounded number of connections.
//!
//! When all places are taken, further connections wait in the kernel's queue until one is free. Who
//! connects has to begin to speak HTTP/2, or TLS, within a short time: a connection that says nothing
//! would keep its place until it is too old.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::{Connected, TcpConnectInfo, TcpIncoming};

/// After this long without traffic TCP asks whether the peer is still there.
const TCP_KEEPALIVE: Duration = Duration::from_mins(1);
/// How long to wait after a failed accept: usually there are too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a client may take for its greeting.
pub(super) const GREETING_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of HTTP/2's client connection preface (RFC 9113, section 3.4); a TLS handshake has more.
const GREETING_BYTES: usize = 24;

/// The connections of `listener`, at most `max` at the same time. Those without a greeting end after
/// `greeting_timeout` or with `shutdown`; the others are ended by HTTP/2 itself.
pub(super) fn connections(
    listener: TcpListener,
    max: usize,
    greeting_timeout: Duration,
    shutdown: CancellationToken,
) -> impl Stream<Item = io::Result<Connection>> + Send {
    let incoming =
        TcpIncoming::from(listener).with_nodelay(Some(true)).with_keepalive(Some(TCP_KEEPALIVE));
    let places = Arc::new(Semaphore::new(max.clamp(1, Semaphore::MAX_PERMITS)));
    stream::unfold(
        (incoming, places, shutdown),
        move |(mut incoming, places, shutdown)| async move {
            // The semaphore is never closed.
            let place = Arc::clone(&places).acquire_owned().await.ok()?;
            let io = accept(&mut incoming).await?;
            let stopped = shutdown.clone().cancelled_owned();
            let late = tokio::time::sleep(greeting_timeout);
            let silence: Silence = Box::pin(async move {
                tokio::select! {
                    () = stopped => {}
                    () = late => {}
                }
            });
            let connection = Connection { io, silence: Some(silence), greeted: 0, _place: place };
            Some((Ok(connection), (incoming, places, shutdown)))
        },
    )
}

/// The next connection. Whoever cannot be accepted waits in the kernel's queue: the server would ask
/// again at once, and again, for as long as there are no files left.
async fn accept(incoming: &mut TcpIncoming) -> Option<TcpStream> {
    let mut is_failing = false;
    loop {
        match incoming.next().await? {
            Ok(io) => {
                if is_failing {
                    tracing::info!("gRPC connections are accepted again");
                }
                return Some(io);
            }
            Err(error) => {
                if !is_failing {
                    tracing::warn!(%error, "a gRPC connection cannot be accepted; trying again");
                }
                is_failing = true;
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// What ends a connection without a greeting.
type Silence = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A connection, and its place.
pub(super) struct Connection {
    io: TcpStream,
    /// Until the peer has greeted.
    silence: Option<Silence>,
    /// Bytes of the greeting so far.
    greeted: usize,
    _place: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.io.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.io).poll_read(context, buffer);
        if self.silence.is_some() {
            self.greeted += buffer.filled().len() - before;
            if self.greeted >= GREETING_BYTES {
                self.silence = None;
            }
        }
        match &mut self.silence {
            // Nothing read, and no error: the peer sees the end of the connection.
            Some(silence) if read.is_pending() => silence.as_mut().poll(context).map(Ok),
            _ => read,
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
