//! A connection to a relay, up to where SMTP in earnest begins.
//!
//! lettre speaks SMTP; the connection is opened here, because four things must hold that it leaves
//! open: small writes go out at once (its last two would otherwise wait for a delayed ACK), nothing
//! that came in the clear is believed after STARTTLS, one TLS configuration counts everywhere, and a
//! reply is bounded (lettre looks at a line's length when it has all of it).

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use lettre::transport::smtp::client::AsyncTokioStream;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::reply::{Problem, Reply, Stage};
use super::server::{Address, Security};

/// Most bytes of a reply before TLS: a greeting, a list of extensions.
const MAX_CLEAR_REPLY_BYTES: usize = 16 * 1024;
/// Most bytes that are read until something is sent again: replies to one command, the longest of which
/// lists extensions.
const MAX_REPLY_BYTES: usize = 64 * 1024;
/// What lettre reads in place of the greeting, which was read before TLS.
const GREETED: &[u8] = b"220 ready\r\n";

/// A connection on which the server's greeting comes next.
#[derive(Debug)]
pub(super) struct Stream {
    /// What is to be read before anything else.
    first: &'static [u8],
    socket: Socket,
    /// Bytes that were read since something was sent.
    read: usize,
}

#[derive(Debug)]
enum Socket {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Connects as `address` says. `stage` tells how far it came.
pub(super) async fn connect(
    address: &Address,
    tls: &Arc<ClientConfig>,
    hello: &str,
    stage: &mut Stage,
) -> Result<Stream, Problem> {
    *stage = Stage::Connect;
    let mut tcp = tcp(address).await?;
    *stage = Stage::Hello;
    let (first, socket) = match address.security {
        Security::None => (&[][..], Socket::Plain(tcp)),
        Security::Tls => (&[][..], secured(tcp, address, tls).await?),
        Security::StartTls => {
            start_tls(&mut tcp, hello).await?;
            (GREETED, secured(tcp, address, tls).await?)
        }
    };
    Ok(Stream { first, socket, read: 0 })
}

async fn tcp(address: &Address) -> Result<TcpStream, Problem> {
    let found = tokio::net::lookup_host((address.host.as_str(), address.port)).await;
    let found: Vec<_> = found.map_err(|_| Problem::Dns)?.collect();
    if found.is_empty() {
        return Err(Problem::Dns);
    }
    let tcp = TcpStream::connect(&*found).await.map_err(|_| Problem::Connection)?;
    tcp.set_nodelay(true).map_err(|_| Problem::Connection)?;
    Ok(tcp)
}

async fn secured(
    tcp: TcpStream,
    address: &Address,
    tls: &Arc<ClientConfig>,
) -> Result<Socket, Problem> {
    let name = ServerName::try_from(address.host.clone()).map_err(|_| Problem::Tls)?;
    let stream = TlsConnector::from(Arc::clone(tls)).connect(name, tcp).await;
    Ok(Socket::Tls(Box::new(stream.map_err(|_| Problem::Tls)?)))
}

/// Asks for TLS. Whoever does not offer it gets nothing.
async fn start_tls(tcp: &mut TcpStream, hello: &str) -> Result<(), Problem> {
    clear_reply(tcp).await?;
    let extensions = say(tcp, &format!("EHLO {hello}\r\n")).await?;
    let is_offered = extensions
        .lines()
        .filter_map(|line| line.get(4..))
        .any(|word| word.trim().eq_ignore_ascii_case("STARTTLS"));
    if !is_offered {
        return Err(Problem::Tls);
    }
    say(tcp, "STARTTLS\r\n").await.map(drop)
}

async fn say(tcp: &mut TcpStream, command: &str) -> Result<String, Problem> {
    tcp.write_all(command.as_bytes()).await.map_err(|_| Problem::Connection)?;
    clear_reply(tcp).await
}

/// Reads one reply. More than one is nothing that a server would send: somebody wants to be
/// believed after TLS.
async fn clear_reply(tcp: &mut TcpStream) -> Result<String, Problem> {
    let mut read = Vec::new();
    loop {
        if tcp.read_buf(&mut read).await.map_err(|_| Problem::Connection)? == 0 {
            return Err(Problem::Connection);
        }
        if read.len() > MAX_CLEAR_REPLY_BYTES {
            return Err(Problem::Protocol);
        }
        let text = std::str::from_utf8(&read).map_err(|_| Problem::Protocol)?;
        let Some(end) = end_of_reply(text)? else { continue };
        if end != text.len() {
            return Err(Problem::Protocol);
        }
        let code = text.get(..3).and_then(|code| code.parse().ok()).ok_or(Problem::Protocol)?;
        return match code {
            200..=299 => Ok(text.to_owned()),
            400..=599 => Err(Problem::Refused(Reply::new(code, text.get(4..).unwrap_or_default()))),
            _ => Err(Problem::Protocol),
        };
    }
}

/// Where the first reply ends, when all of it is there.
fn end_of_reply(text: &str) -> Result<Option<usize>, Problem> {
    let mut end = 0;
    for line in text.split_inclusive('\n') {
        if !line.ends_with('\n') {
            return Ok(None);
        }
        end += line.len();
        match line.as_bytes() {
            [b'2'..=b'5', b'0'..=b'9', b'0'..=b'9', b'-', ..] => {}
            [b'2'..=b'5', b'0'..=b'9', b'0'..=b'9', b' ' | b'\r' | b'\n', ..] => {
                return Ok(Some(end));
            }
            _ => return Err(Problem::Protocol),
        }
    }
    Ok(None)
}

impl AsyncTokioStream for Stream {
    fn peer_addr(&self) -> io::Result<SocketAddr> {
        match &self.socket {
            Socket::Plain(tcp) => tcp.peer_addr(),
            Socket::Tls(tls) => tls.get_ref().0.peer_addr(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.first.is_empty() {
            let (now, later) = self.first.split_at(self.first.len().min(buffer.remaining()));
            buffer.put_slice(now);
            self.first = later;
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let polled = match &mut self.socket {
            Socket::Plain(tcp) => Pin::new(tcp).poll_read(context, buffer),
            Socket::Tls(tls) => Pin::new(tls).poll_read(context, buffer),
        };
        self.read += buffer.filled().len() - before;
        if self.read > MAX_REPLY_BYTES {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        polled
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.read = 0;
        match &mut self.socket {
            Socket::Plain(tcp) => Pin::new(tcp).poll_write(context, bytes),
            Socket::Tls(tls) => Pin::new(tls).poll_write(context, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Socket::Plain(tcp) => Pin::new(tcp).poll_flush(context),
            Socket::Tls(tls) => Pin::new(tls).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Socket::Plain(tcp) => Pin::new(tcp).poll_shutdown(context),
            Socket::Tls(tls) => Pin::new(tls).poll_shutdown(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_ends_with_its_last_line() {
        for (text, end) in [
            ("220 ready\r\n", Ok(Some(11))),
            ("250-a\r\n250 b\r\n", Ok(Some(14))),
            ("250-a\r\n250 b\r\n250 injected\r\n", Ok(Some(14))),
            ("250-a\r\n", Ok(None)),
            ("250 a", Ok(None)),
            ("", Ok(None)),
            ("250\r\n", Ok(Some(5))),
            ("hello\r\n", Err(Problem::Protocol)),
            ("999 x\r\n", Err(Problem::Protocol)),
        ] {
            assert_eq!(end_of_reply(text), end, "{text:?}");
        }
    }
}
