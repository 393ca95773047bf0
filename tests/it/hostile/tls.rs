//! Scripts of the TLS handshake, and certificates.

use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertificateParams, date_time_ymd};
use rustls::ServerConfig;
use tidings::api::proto::ErrorKind;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::endpoint::{Script, hang, repeat, reset};
use crate::support::authority::{Authority, params, self_signed};

const TLS: &[ErrorKind] = &[ErrorKind::Tls];
const TIMEOUT: &[ErrorKind] = &[ErrorKind::Timeout];
const HANDSHAKE: &str = "did not complete the TLS handshake within 3 s";
const FAILED: &str = "TLS handshake with the endpoint failed";

async fn read_hello(stream: &mut TcpStream) {
    let mut hello = [0; 4_096];
    drop(stream.read(&mut hello).await);
}

/// Answers the client's first message with `bytes`, and hangs.
fn greets(label: &'static str, bytes: &'static [u8]) -> Script {
    Script::new(label, TLS, FAILED, move |mut stream| async move {
        read_hello(&mut stream).await;
        stream.write_all(bytes).await.ok();
        hang(stream).await;
    })
    .https()
}

fn certified(label: &'static str, message: &'static str, config: Arc<ServerConfig>) -> Script {
    Script::new(label, TLS, message, move |stream| {
        let acceptor = TlsAcceptor::from(Arc::clone(&config));
        async move {
            if let Ok(stream) = acceptor.accept(stream).await {
                hang(stream).await;
            }
        }
    })
    .https()
}

pub(super) fn scripts(authority: &Authority) -> Vec<Script> {
    let hang_script = Script::new("TLS: never answers the handshake", TIMEOUT, HANDSHAKE, hang);
    let drip = Script::new("TLS: a byte a second", TIMEOUT, HANDSHAKE, |mut stream| async move {
        read_hello(&mut stream).await;
        // A record of a handshake, of 16 KiB, whose message is as long.
        stream.write_all(&[0x16, 3, 3, 0x40, 0, 2, 0, 0x3f, 0xfc]).await.ok();
        repeat(&mut stream, &[3], Duration::from_secs(1)).await;
    });
    let warnings = Script::new("TLS: flood of warnings", TLS, FAILED, |mut stream| async move {
        read_hello(&mut stream).await;
        repeat(&mut stream, &[0x15, 3, 3, 0, 2, 1, 90].repeat(100), Duration::ZERO).await;
    });
    let large =
        Script::new("TLS: endless handshake message", TLS, FAILED, |mut stream| async move {
            read_hello(&mut stream).await;
            // A message of 2^24 - 1 bytes, in records of 4 KiB.
            stream.write_all(&[0x16, 3, 3, 0, 4, 2, 0xff, 0xff, 0xff]).await.ok();
            let record = [&[0x16, 3, 3, 0x10, 0][..], &[0; 4_096]].concat();
            repeat(&mut stream, &record, Duration::ZERO).await;
        });
    let closes =
        Script::new("TLS: hangs up in the handshake", TLS, FAILED, |mut stream| async move {
            read_hello(&mut stream).await;
        });
    let resets =
        Script::new("TLS: resets in the handshake", TLS, FAILED, |mut stream| async move {
            read_hello(&mut stream).await;
            reset(stream);
        });
    let mut all: Vec<_> =
        [hang_script, drip, warnings, large, closes, resets].map(Script::https).into();
    all.extend([
        greets("TLS: garbage", b"\x16\x03\x03\x00\x05garba"),
        greets("TLS: plain HTTP", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        greets("TLS: another protocol", b"SSH-2.0-OpenSSH_9.9\r\n"),
    ]);
    all.extend(certificates(authority));
    all
}

fn certificates(authority: &Authority) -> Vec<Script> {
    let here = || params(&["127.0.0.1"]);
    let between = |from: (i32, u8), until: (i32, u8)| {
        let mut params = here();
        params.not_before = date_time_ymd(from.0, from.1, 1);
        params.not_after = date_time_ymd(until.0, until.1, 1);
        params
    };
    let signed = |params: &CertificateParams| authority.server(params, &[]);
    vec![
        certified("certificate: self-signed", "self-signed", self_signed(&here())),
        certified(
            "certificate: unknown authority",
            "not trusted",
            Authority::named("another").server(&here(), &[]),
        ),
        certified(
            "certificate: unknown authority with the name of a known one",
            "not trusted",
            Authority::new().server(&here(), &[]),
        ),
        certified("certificate: expired", "has expired", signed(&between((2020, 1), (2020, 2)))),
        certified(
            "certificate: not valid yet",
            "not valid yet",
            signed(&between((2999, 1), (2999, 2))),
        ),
        certified(
            "certificate: another name",
            "another host name",
            signed(&params(&["hooks.company.com"])),
        ),
        certified(
            "certificate: another address",
            "another host name",
            signed(&params(&["127.0.0.2"])),
        ),
    ]
}
