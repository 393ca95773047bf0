//! Reads an answer, within limits.
//!
//! Guarantees: at most [`MAX_BODY_BYTES`] are read and [`KEPT_BODY_BYTES`] kept, whatever the
//! endpoint sends; reading ends with the attempt's deadline; nothing is decompressed. A fault in
//! the body changes nothing about the result, which the status alone decides: an endpoint that said
//! 2xx has the event. A body that was not read to its end takes its connection with it.

use std::pin::Pin;
use std::time::Duration;

use http::header::{
    CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, TRANSFER_ENCODING,
};
use http::{Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use jiff::fmt::rfc2822::DateTimeParser;
use tokio::time::Sleep;

use crate::domain::Timestamp;
use crate::domain::header_list::HeaderList;

/// Most bytes of a body that are read.
pub(super) const MAX_BODY_BYTES: usize = 64 * 1_024;
/// Most bytes of a body that are kept for the record.
pub(super) const KEPT_BODY_BYTES: usize = 4 * 1_024;
/// Most bytes in the head of an answer.
pub(super) const MAX_HEADER_BYTES: usize = 64 * 1_024;
/// Most headers in an answer. It is hyper's own limit for HTTP/1.1, which is faster when unset.
pub(super) const MAX_HEADERS: usize = 100;
/// Most bytes of headers that are kept for the record.
pub(super) const KEPT_HEADER_BYTES: usize = 8 * 1_024;

/// What a piece of a body counts at least, so that a flood of empty pieces ends too.
const MIN_PIECE_BYTES: usize = 16;

/// What was read of a body.
pub(super) struct Body {
    /// Its first bytes.
    pub(super) kept: Vec<u8>,
    /// Whether it was read to its end.
    pub(super) is_whole: bool,
}

/// Reads a body. Waits for its end, a limit, a fault or the deadline.
pub(super) async fn read(mut body: Incoming, mut deadline: Pin<&mut Sleep>) -> Body {
    let mut kept = Vec::new();
    let mut read = 0;
    let is_whole = loop {
        if body.is_end_stream() {
            break true;
        }
        if read >= MAX_BODY_BYTES {
            break false;
        }
        let frame = tokio::select! {
            biased;
            () = &mut deadline => break false,
            frame = body.frame() => frame,
        };
        // Trailers are the last that comes; nobody reads them.
        let piece = match frame {
            None => break true,
            Some(Err(_)) => break false,
            Some(Ok(frame)) => frame.into_data(),
        };
        let Ok(piece) = piece else { break true };
        read += piece.len().max(MIN_PIECE_BYTES);
        let room = KEPT_BODY_BYTES - kept.len();
        kept.extend_from_slice(&piece[..piece.len().min(room)]);
    };
    Body { kept, is_whole }
}

/// Whether the head leaves open where the body ends: with two lengths that contradict each other
/// (RFC 9112, section 6.3), what follows on the connection may be anything.
pub(super) fn is_ambiguous(map: &HeaderMap) -> bool {
    map.contains_key(TRANSFER_ENCODING) && map.contains_key(CONTENT_LENGTH)
}

/// Whether the headers are few and small enough. HTTP/1.1 is cut near these limits while it is
/// read, HTTP/2 has no limit of headers of its own: here both are held to them exactly.
pub(super) fn within_limits(map: &HeaderMap) -> bool {
    /// Colon, space and line end.
    const PUNCTUATION_BYTES: usize = 4;
    let size = |(name, value): (&HeaderName, &HeaderValue)| {
        name.as_str().len() + value.len() + PUNCTUATION_BYTES
    };
    map.len() <= MAX_HEADERS && map.iter().map(size).sum::<usize>() <= MAX_HEADER_BYTES
}

/// The headers as they are recorded: in order, up to [`KEPT_HEADER_BYTES`].
pub(super) fn recorded(map: &HeaderMap) -> HeaderList {
    let mut bytes = 0;
    let mut list = HeaderList::with_capacity(map.len());
    for (name, value) in map {
        bytes += name.as_str().len() + value.len();
        if bytes > KEPT_HEADER_BYTES {
            break;
        }
        list.push(name.as_str(), &String::from_utf8_lossy(value.as_bytes()));
    }
    list
}

/// How long the endpoint asks us to wait: seconds or a date (RFC 9110, section 10.2.3), where it
/// is honoured (429 and 503). `None` also for anything malformed.
pub(super) fn retry_after<B>(response: &Response<B>, now: Timestamp) -> Option<Duration> {
    let honoured = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE];
    if !honoured.contains(&response.status()) {
        return None;
    }
    let text = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim();
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().ok().map(Duration::from_secs);
    }
    // An HTTP date is a date of RFC 2822 whose zone is GMT.
    let date =
        text.ends_with(" GMT").then(|| DateTimeParser::new().parse_timestamp(text).ok())??;
    Some(Timestamp::from_micros(date.as_microsecond()).since(now))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_micros(784_111_777_000_000);

    fn asked(status: u16, value: &str) -> Option<Duration> {
        let builder = Response::builder().status(status).header("retry-after", value);
        retry_after(&builder.body(()).expect("response"), NOW)
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        assert_eq!(asked(429, "120"), Some(Duration::from_mins(2)));
        assert_eq!(asked(503, " 0 "), Some(Duration::ZERO));
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        assert_eq!(asked(503, date), Some(Duration::ZERO));
        assert_eq!(asked(429, "Sun, 06 Nov 1994 08:50:37 GMT"), Some(Duration::from_mins(1)));
        assert_eq!(asked(429, "Thu, 01 Jan 1970 00:00:00 GMT"), Some(Duration::ZERO), "is past");
    }

    #[test]
    fn retry_after_is_ignored_when_malformed_or_out_of_place() {
        for value in [
            "",
            "-1",
            "1.5",
            "soon",
            "1e3",
            "+5",
            "99999999999999999999",
            "1, 2",
            "Sun, 06 Nov 1994 08:49:37",
            "Sun, 06 Nov 1994 08:49:37 +0000",
            "Mon, 06 Nov 1994 08:49:37 GMT",
            "1994-11-06T08:49:37Z",
        ] {
            assert_eq!(asked(429, value), None, "{value}");
        }
        for status in [200, 301, 400, 500, 502, 504] {
            assert_eq!(asked(status, "120"), None, "{status}");
        }
    }

    #[test]
    fn recorded_headers_are_bounded() {
        let mut map = HeaderMap::new();
        map.insert("x-a", "1".parse().expect("value"));
        map.insert("x-big", "y".repeat(KEPT_HEADER_BYTES).parse().expect("value"));
        assert_eq!(recorded(&map), [("x-a", "1")].into_iter().collect());
    }
}
