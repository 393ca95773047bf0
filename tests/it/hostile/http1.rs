//! Scripts over HTTP/1.1 and bare TCP.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tidings::api::proto::ErrorKind;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::endpoint::{BREATH, Script, hang, read_request, repeat, reset};

const SECOND: Duration = Duration::from_secs(1);
const SUCCESS: &[ErrorKind] = &[ErrorKind::Unspecified];
const TIMEOUT: &[ErrorKind] = &[ErrorKind::Timeout];
const PROTOCOL: &[ErrorKind] = &[ErrorKind::Protocol];
const STATUS: &[ErrorKind] = &[ErrorKind::HttpStatus];
const TOO_LARGE: &[ErrorKind] = &[ErrorKind::ResponseTooLarge];
/// A reset can meet the connection before or after it is used.
const BROKEN: &[ErrorKind] = &[ErrorKind::Connect, ErrorKind::Protocol];

const NO_ANSWER: &str = "did not answer within 3 s";
const NOT_HTTP: &str = "not valid HTTP";
const BROKE: &str = "broke before";
const HEADERS: &str = "more than 100 headers, or 64 KiB";

const OK: &str = "HTTP/1.1 200 OK\r\n";
const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

/// A hundred MiB of zeros, thrice compressed by gzip.
const BOMB: &str = "H4sIAAAAAAACA5Pv5mAAASbmt3e0/VgCBdouznP3YD/o3OPk0JTIKTHpYIIBxwYBsQNSL1oWGEgIlTUmMVqo\
    5B04y8TBZMiVsaxa8ru9e2zsuzCt+99iY0vbFp+ffjDhZ8a7//P2vbrKBTRYI+ZzofGraYxX/aytrSyZgSJe5Tv3mb2bzmQvHt1+jBEoc\
    HS37Y37L/RZ9q1ffwwiMFvn2eU68Q+37PLnzWIHCoi8jzUAuXIRBxuQdBA7COKcUJIAUYksIEMVuhNAnBRBHiDZoNMEMkbADaxpE+WaPm\
    2YYX438cCXtXP/XpsM9NUCh+eHj9/d+/jp9fSn8m09SzhN+xgZAHJnSctLAQAA";

/// Answers a request with `answer`, and keeps the connection for whatever comes.
fn answers(
    label: &'static str,
    expected: &'static [ErrorKind],
    message: &'static str,
    answer: impl Into<Vec<u8>>,
) -> Script {
    let answer = answer.into();
    Script::new(label, expected, message, move |mut stream| {
        let answer = answer.clone();
        async move {
            loop {
                read_request(&mut stream).await;
                if stream.write_all(&answer).await.is_err() {
                    return;
                }
            }
        }
    })
}

/// Answers a request with `start`, and then `piece` for ever, `pause` apart.
fn never_ends(
    label: &'static str,
    expected: &'static [ErrorKind],
    message: &'static str,
    (start, piece, pause): (&'static str, impl Into<Vec<u8>>, Duration),
) -> Script {
    let piece = piece.into();
    Script::new(label, expected, message, move |mut stream| {
        let piece = piece.clone();
        async move {
            read_request(&mut stream).await;
            stream.write_all(start.as_bytes()).await.ok();
            repeat(&mut stream, &piece, pause).await;
        }
    })
}

/// Answers a request with `start`, and resets the connection.
fn resets(
    label: &'static str,
    expected: &'static [ErrorKind],
    message: &'static str,
    start: &'static str,
) -> Script {
    Script::new(label, expected, message, move |mut stream| async move {
        read_request(&mut stream).await;
        stream.write_all(start.as_bytes()).await.ok();
        reset(stream);
    })
}

pub(super) fn scripts() -> Vec<Script> {
    [silence(), slowness(), floods(), garbage_heads(), garbage_bodies(), breaks()].concat()
}

fn silence() -> Vec<Script> {
    vec![
        Script::new("accepts and says nothing", TIMEOUT, NO_ANSWER, hang),
        Script::new("accepts and reads nothing", TIMEOUT, NO_ANSWER, |stream| async move {
            std::future::pending::<()>().await;
            drop(stream);
        }),
        Script::new("answers with half a head and hangs", TIMEOUT, NO_ANSWER, |mut stream| async {
            read_request(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\nX: y\r\n").await.ok();
            hang(stream).await;
        }),
    ]
}

fn slowness() -> Vec<Script> {
    let one = |start| (start, b"x".to_vec(), SECOND);
    vec![
        never_ends("status line, a byte a second", TIMEOUT, NO_ANSWER, one("HTTP/1.1 200 ")),
        never_ends("headers, a byte a second", TIMEOUT, NO_ANSWER, one("HTTP/1.1 200 OK\r\nX: ")),
        never_ends(
            "body of a 200, a byte a second",
            SUCCESS,
            "",
            one("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"),
        ),
        never_ends(
            "body of a 500, a byte a second",
            STATUS,
            "status 500",
            one("HTTP/1.1 500 No\r\nContent-Length: 100\r\n\r\n"),
        ),
        never_ends("chunk size, a byte a second", SUCCESS, "", (CHUNKED, b"0".to_vec(), SECOND)),
    ]
}

fn floods() -> Vec<Script> {
    let fast = |start, piece: String| (start, piece.into_bytes(), Duration::ZERO);
    let chunk = format!("400\r\n{}\r\n", "x".repeat(1_024));
    let interim = "HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n".repeat(100);
    let kib = "x".repeat(1_024);
    vec![
        never_ends("endless body in chunks", SUCCESS, "", fast(CHUNKED, chunk)),
        never_ends(
            "endless body in chunks of a byte",
            SUCCESS,
            "",
            fast(CHUNKED, "1\r\nx\r\n".repeat(2_000)),
        ),
        never_ends(
            "endless body with a length",
            SUCCESS,
            "",
            fast("HTTP/1.1 200 OK\r\nContent-Length: 9223372036854775807\r\n\r\n", kib.clone()),
        ),
        never_ends(
            "endless body without a length, of a 500",
            STATUS,
            "status 500",
            fast("HTTP/1.1 500 No\r\n\r\n", kib.clone()),
        ),
        never_ends(
            "endless chunk extension",
            SUCCESS,
            "",
            fast("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;a=", kib.clone()),
        ),
        never_ends(
            "endless trailers",
            SUCCESS,
            "",
            fast(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
                "A: b\r\n".repeat(99),
            ),
        ),
        never_ends("endless status line", TOO_LARGE, HEADERS, fast("HTTP/1.1 200 ", kib.clone())),
        never_ends("endless header", TOO_LARGE, HEADERS, fast("HTTP/1.1 200 OK\r\nX: ", kib)),
        never_ends("endless headers", TOO_LARGE, HEADERS, fast(OK, "A: b\r\n".repeat(99))),
        never_ends("flood of 1xx", TIMEOUT, NO_ANSWER, ("", interim.into_bytes(), BREATH)),
    ]
}

fn garbage_heads() -> Vec<Script> {
    let head = |text: &str| format!("HTTP/1.1 200 OK\r\n{text}\r\n\r\n");
    vec![
        answers("another protocol", PROTOCOL, NOT_HTTP, "SSH-2.0-OpenSSH_9.9\r\n"),
        answers("zeros", PROTOCOL, NOT_HTTP, [0; 64]),
        answers("HTTP/0.9", PROTOCOL, NOT_HTTP, "<html>hello</html>\r\n\r\n"),
        answers("an unknown version", PROTOCOL, NOT_HTTP, "HTTP/3.0 200 OK\r\n\r\n"),
        answers("a status of six digits", PROTOCOL, NOT_HTTP, "HTTP/1.1 999999 What\r\n\r\n"),
        answers("two lengths", PROTOCOL, NOT_HTTP, head("Content-Length: 1\r\nContent-Length: 2")),
        answers("a negative length", PROTOCOL, NOT_HTTP, head("Content-Length: -1")),
        answers(
            "a length of 21 digits",
            PROTOCOL,
            NOT_HTTP,
            head("Content-Length: 999999999999999999999"),
        ),
        answers(
            "a length of 2^64 - 1",
            TOO_LARGE,
            "a length that no body can have",
            head("Content-Length: 18446744073709551615"),
        ),
        answers("NUL in a header", PROTOCOL, NOT_HTTP, head("X: a\0b")),
        answers("a header without a colon", PROTOCOL, NOT_HTTP, head("bad header")),
        answers("a space before the colon", PROTOCOL, NOT_HTTP, head("X : y")),
        answers("a folded header", PROTOCOL, NOT_HTTP, head("X: y\r\n z")),
        answers("a bare CR in a header", PROTOCOL, NOT_HTTP, head("X: y\rz")),
        answers(
            "length and chunks",
            SUCCESS,
            "",
            head("Content-Length: 100\r\nTransfer-Encoding: chunked") + "0\r\n\r\n",
        ),
        // A lone LF ends a line (RFC 9112, section 2.2): unambiguous, so the connection is kept.
        answers("lone LF", SUCCESS, "", "HTTP/1.1 200 OK\nContent-Length: 0\n\n").sound(),
        answers(
            "a switch of protocols",
            STATUS,
            "status 101",
            head("Upgrade: x").replace("200 OK", "101 S"),
        ),
        never_ends(
            "chunked, but not as the last coding",
            SUCCESS,
            "",
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\n",
                b"0\r\n\r\n".repeat(100),
                Duration::ZERO,
            ),
        ),
    ]
}

fn garbage_bodies() -> Vec<Script> {
    let bomb: &'static [u8] =
        STANDARD.decode(BOMB.replace([' ', '\n'], "")).expect("Base64").leak();
    let bomb_head = format!(
        "HTTP/1.1 200 OK\r\nContent-Encoding: gzip, gzip, gzip\r\nContent-Length: {}\r\n\r\n",
        bomb.len()
    );
    let chunked = |text: &str| format!("{CHUNKED}{text}");
    let length = |text: &str| format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{text}");
    vec![
        answers("a chunk size of letters", SUCCESS, "", chunked("zz\r\n")),
        answers("a negative chunk size", SUCCESS, "", chunked("-1\r\n")),
        answers("a chunk size of 2^68", SUCCESS, "", chunked("fffffffffffffffff\r\n")),
        answers("a chunk larger than its size", SUCCESS, "", chunked("1\r\nxyz\r\n0\r\n\r\n")),
        answers("more than the length", SUCCESS, "", length("ok, and more")),
        answers(
            "a second answer",
            SUCCESS,
            "",
            length("okHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        ),
        answers(
            "a body where none may be",
            SUCCESS,
            "",
            "HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        ),
        answers("a compressed bomb", SUCCESS, "", [bomb_head.as_bytes(), bomb].concat())
            .body(bomb)
            .sound(),
    ]
}

fn breaks() -> Vec<Script> {
    let partial = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nx";
    vec![
        Script::new("resets after accepting", BROKEN, "", |stream: TcpStream| async {
            reset(stream);
        }),
        Script::new("hangs up after accepting", BROKEN, "", |stream| async { drop(stream) }),
        Script::new("hangs up after the request", PROTOCOL, BROKE, |mut stream| async move {
            read_request(&mut stream).await;
        }),
        Script::new("hangs up in the head", PROTOCOL, BROKE, |mut stream| async move {
            read_request(&mut stream).await;
            stream.write_all(OK.as_bytes()).await.ok();
        }),
        Script::new("hangs up in the body of a 200", SUCCESS, "", move |mut stream| async move {
            read_request(&mut stream).await;
            stream.write_all(partial.as_bytes()).await.ok();
        }),
        resets("resets after the request", PROTOCOL, BROKE, ""),
        resets("resets in the head", PROTOCOL, BROKE, OK),
        resets(
            "resets in the body of a 500",
            STATUS,
            "status 500",
            "HTTP/1.1 500 No\r\nContent-Length: 9\r\n\r\nx",
        ),
    ]
}
