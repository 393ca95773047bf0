//! An arrival, printed.

use std::collections::BTreeMap;

use super::super::Error;
use super::super::output::{Output, Style, table, time};
use super::receiver::Arrival;
use super::verify::Verdict;
use super::{Args, Shown};
use crate::domain::payload;

/// Bodies beyond this many bytes are printed in part.
const BODY_LIMIT: usize = 64 * 1024;

/// As one line of JSON. The body is text as it came; `verified` is null when nothing was checked.
pub(super) fn json(output: Output, shown: &Shown) -> Result<(), Error> {
    let Shown { arrival, verdict, answer } = shown;
    let (verified, signatures, problem) = match verdict {
        Verdict::Unchecked => (None, &[][..], None),
        Verdict::Verified(schemes) => (Some(true), schemes.as_slice(), None),
        Verdict::Refused(problem) => (Some(false), &[][..], Some(problem)),
    };
    output.json_line(&serde_json::json!({
        "time": arrival.time.to_string(),
        "method": arrival.method.as_str(),
        "path": arrival.path,
        "headers": headers(arrival).collect::<BTreeMap<_, _>>(),
        "body": String::from_utf8_lossy(&arrival.body),
        "verified": verified,
        "signatures": signatures,
        "problem": problem,
        "status": answer.status.as_u16(),
    }))
}

/// As a line, and what belongs to it below.
pub(super) fn people(output: Output, shown: &Shown, args: &Args) -> Result<(), Error> {
    let Shown { arrival, verdict, answer } = shown;
    let status = answer.status.as_u16();
    let style = if status < 300 { Style::Good } else { Style::Error };
    let event_type = table::printable(arrival.header("tidings-event-type"));
    let attempt = match arrival.attempt() {
        0 => String::new(),
        number => format!("attempt {number}"),
    };
    output.line(&format!(
        "{}  {} {}  {}  {}  {}  {}",
        output.paint(Style::Dim, &time::clock(arrival.time)),
        arrival.method,
        table::printable(&arrival.path),
        output.paint(Style::Strong, &table::fit(&event_type, 20)),
        table::fit(&attempt, 10),
        verdict_text(output, verdict),
        output.paint(style, &format!("→ {status}")),
    ))?;
    if args.quiet {
        return Ok(());
    }
    let wanted = ["webhook-id", "tidings-delivery-id", "traceparent"];
    for (name, value) in headers(arrival) {
        if args.headers || wanted.contains(&name.as_str()) {
            let line = format!("  {name}: {}", table::printable(&value));
            output.line(&output.paint(Style::Dim, &line))?;
        }
    }
    if arrival.body.is_empty() {
        return Ok(());
    }
    for line in readable(&arrival.body).lines() {
        output.line(&format!("  {line}"))?;
    }
    output.line("")
}

fn verdict_text(output: Output, verdict: &Verdict) -> String {
    match verdict {
        Verdict::Unchecked => output.paint(Style::Dim, "not verified"),
        Verdict::Verified(schemes) => {
            output.paint(Style::Good, &format!("✓ {}", schemes.join(" + ")))
        }
        Verdict::Refused(problem) => {
            output.paint(Style::Error, &format!("✗ {}", table::printable(problem)))
        }
    }
}

/// Names and values, sorted by name; one that is there several times is joined by commas.
fn headers(arrival: &Arrival) -> impl Iterator<Item = (String, String)> {
    let mut all = BTreeMap::<String, String>::new();
    for (name, value) in &arrival.headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        all.entry(name.to_string())
            .and_modify(|known| {
                known.push_str(", ");
                known.push_str(&value);
            })
            .or_insert_with(|| value.into_owned());
    }
    all.into_iter()
}

/// The body for people: JSON on several lines, anything else as it is.
fn readable(body: &[u8]) -> String {
    let shown = &body[..body.len().min(BODY_LIMIT)];
    let text = String::from_utf8_lossy(shown);
    let mut text = match payload::check(&text, BODY_LIMIT) {
        Ok(()) => indented(&text),
        Err(_) => text.into_owned(),
    };
    if shown.len() < body.len() {
        text = format!("{text}\n… and {} bytes more", body.len() - shown.len());
    }
    table::printable_lines(&text)
}

/// Valid JSON with line breaks, its numbers, strings and order of keys untouched.
fn indented(json: &str) -> String {
    let mut text = String::with_capacity(json.len() * 2);
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    let mut characters = json.chars().peekable();
    while let Some(c) = characters.next() {
        if in_string {
            text.push(c);
            in_string = escaped || c != '"';
            escaped = !escaped && c == '\\';
            continue;
        }
        match c {
            '{' | '[' => {
                text.push(c);
                while characters.next_if(|c| c.is_whitespace()).is_some() {}
                if let Some(close) = characters.next_if(|c| matches!(c, '}' | ']')) {
                    text.push(close);
                } else {
                    depth += 1;
                    line_break(&mut text, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                line_break(&mut text, depth);
                text.push(c);
            }
            ',' => {
                text.push(c);
                line_break(&mut text, depth);
            }
            ':' => text.push_str(": "),
            _ if c.is_whitespace() => {}
            _ => {
                in_string = c == '"';
                text.push(c);
            }
        }
    }
    text
}

fn line_break(text: &mut String, depth: usize) {
    text.push('\n');
    text.push_str(&"  ".repeat(depth));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_laid_out_and_not_changed() {
        let body = br#"{"b":[1, 2.0,{} , [ ]],"a":"x\"{,}","n":12345678901234567890,"a":null}"#;
        let expected = "{\n  \"b\": [\n    1,\n    2.0,\n    {},\n    []\n  ],\n  \
                        \"a\": \"x\\\"{,}\",\n  \"n\": 12345678901234567890,\n  \"a\": null\n}";
        assert_eq!(readable(body), expected);
    }

    #[test]
    fn anything_else_stays_as_it_is() {
        assert_eq!(readable(b"a=1&b=2"), "a=1&b=2");
        assert_eq!(readable(b"\x1b[2J"), "\u{fffd}[2J");
    }
}
