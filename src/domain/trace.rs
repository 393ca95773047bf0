//! W3C Trace Context: one trace from Emit, through each attempt, to the receiver.
//!
//! <https://www.w3.org/TR/trace-context/>, version 00.

use std::fmt;

use rand::Rng;
use serde::{Deserialize, Serialize};

use super::Timestamp;

/// Where in which trace something happens: what a `traceparent` header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceContext {
    /// Names the trace; never zero.
    pub trace_id: u128,
    /// Names the span; never zero.
    pub span_id: u64,
    /// Whether the trace is recorded by whoever started it.
    pub sampled: bool,
}

impl TraceContext {
    /// The first span of a new trace.
    pub fn root(random: &mut impl Rng) -> Self {
        let high = u128::from(random.next_u64()) << 64;
        let trace_id = (high | u128::from(random.next_u64())).max(1);
        Self { trace_id, span_id: random.next_u64().max(1), sampled: true }
    }

    /// A new span in the same trace.
    #[must_use]
    pub fn child(self, random: &mut impl Rng) -> Self {
        Self { span_id: random.next_u64().max(1), ..self }
    }

    /// Reads a `traceparent` header. `None` for anything malformed: the specification asks to
    /// start a new trace then, not to fail the request.
    pub fn parse(traceparent: &str) -> Option<Self> {
        let mut parts = traceparent.trim().split('-');
        let (version, trace, span, flags) =
            (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let hex = |text: &str, length: usize| {
            text.len() == length
                && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        let known =
            hex(version, 2) && version != "ff" && hex(trace, 32) && hex(span, 16) && hex(flags, 2);
        if !known || (version == "00" && parts.next().is_some()) {
            return None;
        }
        let trace_id = u128::from_str_radix(trace, 16).ok().filter(|id| *id != 0)?;
        let span_id = u64::from_str_radix(span, 16).ok().filter(|id| *id != 0)?;
        let sampled = u8::from_str_radix(flags, 16).ok()? & 1 == 1;
        Some(Self { trace_id, span_id, sampled })
    }

    /// The trace id in 32 lower-case hexadecimal digits.
    pub fn trace_id_hex(&self) -> String {
        hex::encode(self.trace_id.to_be_bytes())
    }

    /// The span id in 16 lower-case hexadecimal digits.
    pub fn span_id_hex(&self) -> String {
        hex::encode(self.span_id.to_be_bytes())
    }
}

/// The `traceparent` header.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Digit by digit: each event has several of them, and `{:032x}` takes long.
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        let written = hex::encode_to_slice(self.trace_id.to_be_bytes(), &mut text[3..35])
            .and_then(|()| hex::encode_to_slice(self.span_id.to_be_bytes(), &mut text[36..52]));
        text[54] += u8::from(self.sampled);
        // The places are as long as what is written into them, and digits are text.
        f.write_str(written.ok().and_then(|()| std::str::from_utf8(&text).ok()).unwrap_or_default())
    }
}

/// A span that has ended, on its way to whoever collects traces.
#[derive(Clone, Debug, PartialEq)]
pub struct FinishedSpan {
    /// What was done, for example `deliver webhook`.
    pub name: &'static str,
    /// The span itself.
    pub context: TraceContext,
    /// The span that it is part of; `None` at the root of a trace.
    pub parent_span_id: Option<u64>,
    /// Whether it asks somebody else (an attempt) or answers somebody (an Emit).
    pub is_client: bool,
    /// When it began.
    pub start_time: Timestamp,
    /// When it ended.
    pub end_time: Timestamp,
    /// What went wrong, when something did.
    pub error: Option<String>,
    /// Names and values, by OpenTelemetry's semantic conventions where there is one.
    pub attributes: Vec<(&'static str, String)>,
}

/// Takes spans that have ended. Must not block.
pub trait SpanSink: Send + Sync {
    /// Whether anybody collects spans: when not, none need be made.
    fn is_enabled(&self) -> bool;

    /// Takes a span.
    fn record(&self, span: FinishedSpan);
}

/// Takes spans and forgets them.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoSpans;

impl SpanSink for NoSpans {
    fn is_enabled(&self) -> bool {
        false
    }

    fn record(&self, _span: FinishedSpan) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_reads_back() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let context = TraceContext::parse(text).expect("valid");
        assert!(context.sampled);
        assert_eq!(context.to_string(), text);
        assert_eq!(context.trace_id_hex(), "0af7651916cd43dd8448eb211c80319c");
    }

    #[test]
    fn a_malformed_traceparent_starts_a_new_trace() {
        for text in [
            "",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
        ] {
            assert_eq!(TraceContext::parse(text), None, "{text}");
        }
        assert!(
            TraceContext::parse("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x")
                .is_some()
        );
    }
}
