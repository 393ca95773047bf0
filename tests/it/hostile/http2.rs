//! Scripts over HTTP/2, which needs TLS here.

use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tidings::api::proto::ErrorKind;
use tokio::io::AsyncWriteExt as _;
use tokio_rustls::TlsAcceptor;

use super::endpoint::{BREATH, Script, hang, repeat};
use super::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PUSH_PROMISE, RST_STREAM,
    SETTINGS, STATUS_200, WINDOW_UPDATE, frame, literal, read_head, settings,
};
use crate::support::authority::{Authority, params};

const SUCCESS: &[ErrorKind] = &[ErrorKind::Unspecified];
/// The library breaks the connection off after a hundred empty frames: before or after the head of the
/// answer has come to whoever waits for it.
const SUCCESS_OR_PROTOCOL: &[ErrorKind] = &[ErrorKind::Unspecified, ErrorKind::Protocol];
const TIMEOUT: &[ErrorKind] = &[ErrorKind::Timeout];
const PROTOCOL: &[ErrorKind] = &[ErrorKind::Protocol];
const TOO_LARGE: &[ErrorKind] = &[ErrorKind::ResponseTooLarge, ErrorKind::Protocol];

const NO_ANSWER: &str = "did not answer within 3 s";
const BROKE: &str = "broke before";

const MAX_CONCURRENT_STREAMS: u16 = 3;
const INITIAL_WINDOW_SIZE: u16 = 4;

/// What an endpoint sends.
struct Lines {
    /// At once, before it has read anything.
    first: Vec<u8>,
    /// When the head of the request has come.
    then: Vec<u8>,
    /// Again and again after it. Empty to fall silent.
    again: Vec<u8>,
}

impl Lines {
    fn new(then: impl Into<Vec<u8>>) -> Self {
        Self { first: settings(None), then: then.into(), again: Vec::new() }
    }

    fn first(self, first: Vec<u8>) -> Self {
        Self { first, ..self }
    }

    fn again(self, again: Vec<u8>) -> Self {
        Self { again, ..self }
    }
}

/// Makes a script of what an endpoint sends.
struct Scribe {
    config: Arc<ServerConfig>,
}

impl Scribe {
    fn script(
        &self,
        label: &'static str,
        expected: &'static [ErrorKind],
        message: &'static str,
        lines: Lines,
    ) -> Script {
        let pause = if label.contains("flood") { BREATH } else { Duration::ZERO };
        let (acceptor, lines) = (TlsAcceptor::from(Arc::clone(&self.config)), Arc::new(lines));
        Script::new(label, expected, message, move |stream| {
            let (acceptor, lines) = (acceptor.clone(), Arc::clone(&lines));
            async move {
                let mut stream = acceptor.accept(stream).await.expect("TLS");
                stream.write_all(&lines.first).await.ok();
                stream.flush().await.ok();
                read_head(&mut stream).await;
                stream.write_all(&lines.then).await.ok();
                stream.flush().await.ok();
                if lines.again.is_empty() {
                    hang(stream).await;
                } else {
                    repeat(&mut stream, &lines.again, pause).await;
                }
            }
        })
        .https()
    }
}

pub(super) fn scripts(authority: &Authority) -> Vec<Script> {
    let scribe = Scribe { config: authority.server(&params(&["127.0.0.1"]), &["h2"]) };
    [silence(&scribe), ends(&scribe), floods(&scribe), bodies(&scribe), garbage(&scribe)].concat()
}

fn silence(scribe: &Scribe) -> Vec<Script> {
    let nothing = || Lines::new("");
    vec![
        scribe.script("h2: says nothing", TIMEOUT, NO_ANSWER, nothing().first(Vec::new())),
        scribe.script("h2: never answers", TIMEOUT, NO_ANSWER, nothing()),
        scribe.script(
            "h2: a window of 0 for the body",
            TIMEOUT,
            NO_ANSWER,
            nothing().first(settings(Some((INITIAL_WINDOW_SIZE, 0)))),
        ),
        scribe.script(
            "h2: no streams allowed",
            TIMEOUT,
            NO_ANSWER,
            nothing().first(settings(Some((MAX_CONCURRENT_STREAMS, 0)))),
        ),
    ]
}

fn ends(scribe: &Scribe) -> Vec<Script> {
    let goaway =
        |last: u32| frame(GOAWAY, 0, 0, &[last.to_be_bytes(), 0_u32.to_be_bytes()].concat());
    let rst = |reason: u32| frame(RST_STREAM, 0, 1, &reason.to_be_bytes());
    let at_once = [settings(None), goaway(0)].concat();
    vec![
        scribe.script("h2: GOAWAY at once", PROTOCOL, BROKE, Lines::new("").first(at_once)),
        scribe.script("h2: GOAWAY for the request", PROTOCOL, BROKE, Lines::new(goaway(0))),
        scribe.script("h2: GOAWAY, and no answer", TIMEOUT, NO_ANSWER, Lines::new(goaway(1))),
        scribe.script("h2: RST_STREAM, internal error", PROTOCOL, BROKE, Lines::new(rst(2))),
        scribe.script("h2: RST_STREAM, refused", PROTOCOL, BROKE, Lines::new(rst(7))),
        scribe.script("h2: RST_STREAM, no error", PROTOCOL, BROKE, Lines::new(rst(0))),
    ]
}

fn floods(scribe: &Scribe) -> Vec<Script> {
    let head = [STATUS_200, &literal("x", "y")].concat();
    let interim = frame(HEADERS, END_HEADERS, 1, &literal(":status", "103"));
    let padding = literal("x", &"y".repeat(100)).repeat(100);
    vec![
        scribe.script(
            "h2: endless CONTINUATION",
            TOO_LARGE,
            "",
            Lines::new(frame(HEADERS, 0, 1, &head)).again(frame(CONTINUATION, 0, 1, &padding)),
        ),
        scribe.script(
            "h2: endless empty CONTINUATION",
            TOO_LARGE,
            "",
            Lines::new(frame(HEADERS, 0, 1, &head))
                .again(frame(CONTINUATION, 0, 1, b"").repeat(99)),
        ),
        scribe.script(
            "h2: flood of SETTINGS",
            TIMEOUT,
            NO_ANSWER,
            Lines::new("").again(frame(SETTINGS, 0, 0, b"").repeat(100)),
        ),
        scribe.script(
            "h2: flood of PING",
            TIMEOUT,
            NO_ANSWER,
            Lines::new("").again(frame(PING, 0, 0, b"12345678").repeat(100)),
        ),
        scribe.script(
            "h2: flood of 1xx",
            TIMEOUT,
            NO_ANSWER,
            Lines::new("").again(interim.repeat(100)),
        ),
        scribe.script(
            "h2: flood of unknown frames",
            TIMEOUT,
            NO_ANSWER,
            Lines::new("").again(frame(0xfa, 0, 0, &[0; 1_024])),
        ),
    ]
}

fn bodies(scribe: &Scribe) -> Vec<Script> {
    let ok = frame(HEADERS, END_HEADERS, 1, STATUS_200);
    let data = |payload: &[u8]| frame(DATA, 0, 1, payload);
    vec![
        scribe.script("h2: a 200 that never ends", SUCCESS, "", Lines::new(ok.clone())),
        scribe.script(
            "h2: endless body, past the window",
            SUCCESS,
            "",
            Lines::new(ok.clone()).again(data(&[b'x'; 8_192])),
        ),
        scribe.script(
            "h2: endless body of empty frames",
            SUCCESS_OR_PROTOCOL,
            "",
            Lines::new(ok.clone()).again(data(b"").repeat(100)),
        ),
        scribe.script(
            "h2: RST_STREAM in the body of a 200",
            SUCCESS,
            "",
            Lines::new([ok, data(b"x"), frame(RST_STREAM, 0, 1, &2_u32.to_be_bytes())].concat()),
        ),
    ]
}

fn garbage(scribe: &Scribe) -> Vec<Script> {
    let answer =
        |stream, block: &[u8]| Lines::new(frame(HEADERS, END_HEADERS | END_STREAM, stream, block));
    // One entry of the dynamic table, and references of a byte each to all of it.
    let mut entry = vec![0x40, 1, b'x', 0x7f, 0x80 | 0x21, 0x1e];
    entry.extend(vec![b'y'; 0x7f + 0x21 + 0x1e * 0x80]);
    let bomb = [STATUS_200, &entry, &vec![0x80 | 0x3e; 12_000]].concat();
    vec![
        scribe.script("h2: garbage", PROTOCOL, BROKE, Lines::new([0xff; 64])),
        scribe.script(
            "h2: HTTP/1.1 instead",
            PROTOCOL,
            BROKE,
            Lines::new("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").first(Vec::new()),
        ),
        scribe.script("h2: an answer to nothing", PROTOCOL, BROKE, answer(3, STATUS_200)),
        scribe.script("h2: bad HPACK", PROTOCOL, BROKE, answer(1, &[0xff, 0xff, 0xff, 0xff, 0xff])),
        scribe.script("h2: no status", PROTOCOL, BROKE, answer(1, &literal("x", "y"))),
        scribe.script("h2: HPACK bomb", TOO_LARGE, "", answer(1, &bomb)),
        scribe.script(
            "h2: PUSH_PROMISE",
            PROTOCOL,
            BROKE,
            Lines::new(frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2, 0x82])),
        ),
        scribe.script(
            "h2: a window over 2^31",
            PROTOCOL,
            BROKE,
            Lines::new(frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffff_u32.to_be_bytes())),
        ),
        scribe.script(
            "h2: a frame over the limit",
            PROTOCOL,
            BROKE,
            Lines::new(frame(DATA, 0, 1, &[0; 20_000])),
        ),
    ]
}
