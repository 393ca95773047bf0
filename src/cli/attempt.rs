//! One attempt as a person reads it: what came of it, where the time went, what was sent and what
//! came back.
//!
//! What an endpoint sent is shown, never obeyed: control characters cannot reach the terminal, and a
//! body that is no text is shown in hexadecimal digits.

use super::Error;
use super::output::{Output, Style, names, table, time};
use crate::api::proto::{Attempt, AttemptTimings, AttemptTrigger, ErrorKind, Header};

/// Most bytes of a body that is no text to show: enough to recognise what it is.
const MAX_HEX_BYTES: usize = 128;
/// Bytes in a line of hexadecimal digits.
const HEX_LINE_BYTES: usize = 16;

/// Shows one attempt: a line that says it all, and below it where the time went and what came back;
/// with `headers` also those that were sent and received.
///
/// # Errors
/// When nobody reads.
pub fn show(output: Output, attempt: &Attempt, headers: bool) -> Result<(), Error> {
    let failed = attempt.error_kind() != ErrorKind::Unspecified;
    let (mark, style) = if failed { ("✗", Style::Error) } else { ("✓", Style::Good) };
    let trigger = match attempt.trigger() {
        AttemptTrigger::Automatic | AttemptTrigger::Unspecified => String::new(),
        _ => format!(" ({})", names::plain::<AttemptTrigger>(attempt.trigger)),
    };
    output.line(&format!(
        "{}  {}",
        output.paint(style, &format!("{mark} attempt {}{trigger}", attempt.number)),
        headline(attempt),
    ))?;
    let lines = |list: &[Header]| if headers { header_lines(list) } else { String::new() };
    output.fields(&[
        ("  error", error(attempt)),
        ("  began", output.time(attempt.start_time.as_ref())),
        ("  time", timings(attempt)),
        ("  span", attempt.span_id.clone()),
        ("  mail server", table::printable(&attempt.smtp_reply)),
        ("  sent", lines(&attempt.request_headers)),
        ("  received", lines(&attempt.response_headers)),
        ("  body", body(&attempt.response_body)),
    ])
}

/// An attempt that a person asked for and that failed is a failed command.
///
/// # Errors
/// When the attempt failed.
pub fn succeeded(attempt: &Attempt) -> Result<(), Error> {
    match attempt.error_kind() {
        ErrorKind::Unspecified => Ok(()),
        _ => Err(Error::failure(format!(
            "the attempt failed: {}: {}",
            headline(attempt),
            table::printable(&attempt.error_message)
        ))),
    }
}

/// What came of it, and how long it took: `200 in 12 ms`, `timeout after 15 s`.
fn headline(attempt: &Attempt) -> String {
    let took = attempt.duration.as_ref().map(time::duration_from_proto).unwrap_or_default();
    let took = time::coarse(took);
    match (attempt.http_status, attempt.error_kind()) {
        (status, ErrorKind::Unspecified | ErrorKind::HttpStatus) if status != 0 => {
            format!("{status} in {took}")
        }
        (_, ErrorKind::Unspecified) => format!("ok in {took}"),
        (_, _) => format!("{} after {took}", names::plain::<ErrorKind>(attempt.error_kind)),
    }
}

/// The kind of error and the sentence. Empty when there was none.
fn error(attempt: &Attempt) -> String {
    if attempt.error_kind() == ErrorKind::Unspecified {
        return String::new();
    }
    let kind = names::plain::<ErrorKind>(attempt.error_kind);
    format!("{kind}: {}", table::printable(&attempt.error_message))
}

/// Where the time went: `dns 2 ms, connect 10 ms, tls 21 ms, first byte 1.1 s, body 3 ms`.
fn timings(attempt: &Attempt) -> String {
    let Some(AttemptTimings { dns, connect, tls, first_byte, connection_reused }) =
        &attempt.timings
    else {
        return String::new();
    };
    let phases = [("dns", dns), ("connect", connect), ("tls", tls), ("first byte", first_byte)];
    let phases: Vec<_> = phases
        .into_iter()
        .filter_map(|(name, phase)| Some((name, time::duration_from_proto(phase.as_ref()?))))
        .collect();
    let mut words: Vec<_> =
        phases.iter().map(|(name, phase)| format!("{name} {}", time::coarse(*phase))).collect();
    if *connection_reused {
        words.insert(0, "connection reused".to_owned());
    }
    if let Some(total) = attempt.duration.as_ref().filter(|_| attempt.http_status != 0) {
        let before = phases.iter().map(|(_, phase)| *phase).sum();
        let rest = time::duration_from_proto(total).saturating_sub(before);
        words.push(format!("body {}", time::coarse(rest)));
    }
    words.join(", ")
}

fn header_lines(headers: &[Header]) -> String {
    let line = |header: &Header| table::printable(&format!("{}: {}", header.name, header.value));
    headers.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A body as text where it is text; otherwise how large it is, and how it begins.
fn body(bytes: &[u8]) -> String {
    if let Some(text) = text(bytes) {
        return table::printable_lines(text).trim_end().to_owned();
    }
    let shown = &bytes[..bytes.len().min(MAX_HEX_BYTES)];
    let which = if shown.len() < bytes.len() {
        format!("the first {MAX_HEX_BYTES} of {} bytes; --json has them all", bytes.len())
    } else {
        format!("{} bytes", bytes.len())
    };
    let line = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>();
    let lines = shown.chunks(HEX_LINE_BYTES).map(|chunk| line(chunk).join(" "));
    std::iter::once(format!("(not text: {which})")).chain(lines).collect::<Vec<_>>().join("\n")
}

/// The bytes as text: UTF-8, of which the last character may have been cut, without control
/// characters other than line breaks and tabs.
fn text(bytes: &[u8]) -> Option<&str> {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        // What a cut leaves of a character has no error length: more bytes would have completed it.
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&bytes[..error.valid_up_to()]).ok()?
        }
        Err(_) => return None,
    };
    let is_control = |c: char| c.is_control() && !['\n', '\r', '\t'].contains(&c);
    (!text.contains(is_control)).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn duration(nanos: i32) -> prost_types::Duration {
        prost_types::Duration { seconds: 0, nanos }
    }

    fn failed(kind: ErrorKind, message: &str) -> Attempt {
        Attempt {
            number: 2,
            error_kind: kind.into(),
            error_message: message.into(),
            duration: Some(duration(12_000_000)),
            ..Attempt::default()
        }
    }

    #[test]
    fn an_attempt_is_told_in_a_few_words() {
        let status = Attempt {
            http_status: 307,
            ..failed(ErrorKind::HttpStatus, "The endpoint answered with status 307.")
        };
        assert_eq!(headline(&status), "307 in 12 ms");
        assert_eq!(error(&status), "http-status: The endpoint answered with status 307.");
        let timeout = failed(ErrorKind::Timeout, "no answer\x1b[2J");
        assert_eq!(headline(&timeout), "timeout after 12 ms");
        assert_eq!(error(&timeout), "timeout: no answer\u{fffd}[2J");
        let message = succeeded(&timeout).expect_err("failed").to_string();
        assert!(message.contains("timeout after 12 ms: no answer"), "{message}");
        let good =
            Attempt { http_status: 204, duration: Some(duration(900_000)), ..Attempt::default() };
        assert_eq!((headline(&good).as_str(), error(&good).as_str()), ("204 in 900 µs", ""));
        assert!(succeeded(&good).is_ok());
    }

    #[test]
    fn the_time_is_told_by_phase() {
        let timings_of = |http_status, timings: Option<AttemptTimings>| {
            super::timings(&Attempt {
                http_status,
                duration: Some(duration(60_000_000)),
                timings,
                ..Attempt::default()
            })
        };
        let timings = AttemptTimings {
            dns: Some(duration(2_000_000)),
            connect: Some(duration(10_000_000)),
            tls: Some(duration(20_000_000)),
            first_byte: Some(duration(25_000_000)),
            connection_reused: false,
        };
        assert_eq!(
            timings_of(200, Some(timings)),
            "dns 2 ms, connect 10 ms, tls 20 ms, first byte 25 ms, body 3 ms"
        );
        let hung = AttemptTimings { tls: None, first_byte: None, ..timings };
        assert_eq!(timings_of(0, Some(hung)), "dns 2 ms, connect 10 ms");
        let reused = AttemptTimings {
            first_byte: Some(duration(60_000_000)),
            connection_reused: true,
            ..AttemptTimings::default()
        };
        assert_eq!(timings_of(503, Some(reused)), "connection reused, first byte 60 ms, body 0 µs");
        assert_eq!(timings_of(200, None), "");
    }

    #[test]
    fn a_body_is_text_or_hexadecimal_digits() {
        assert_eq!(body(b""), "");
        assert_eq!(body(b"{\"error\":\r\n\t\"no\"}\n"), "{\"error\":\n\t\"no\"}");
        let cut = "größer".as_bytes();
        assert_eq!(body(&cut[..3]), "gr", "the cut character is left out");
        assert_eq!(body(&[0xff, 0x00]), "(not text: 2 bytes)\nff 00");
        assert!(body(b"a\x1b[2J").starts_with("(not text: 5 bytes)\n61 1b"));
        let gzip = [0x1f_u8, 0x8b].repeat(2_048);
        let shown = body(&gzip);
        assert!(shown.starts_with("(not text: the first 128 of 4096 bytes; --json has them all)"));
        assert_eq!(shown.lines().count(), 1 + MAX_HEX_BYTES / HEX_LINE_BYTES);
    }
}
