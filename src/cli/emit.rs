//! `tidings emit`: gives the service an event.

use std::io::{IsTerminal, Read};
use std::process::ExitCode;

use tonic::Request;

use super::Error;
use super::client::{Client, Connection, TenantOption};
use super::output::{self, Json, Output, Style, time};
use crate::api::proto::{EmitRequest, EmitResponse, emit_request};
use crate::domain::Timestamp;

const EXAMPLES: &str = "\
Examples:
  tidings emit billing.paid --data '{\"invoice\":1042,\"amount\":\"19.90\"}'
  tidings emit user.created --data @user.json --subject user/7 --label region=eu
  jq -c .order order.json | tidings emit order.placed --data -
  tidings emit trial.ending --deliver-at 2d --expire-at 3d --idempotency-key trial-7-ending
  tidings emit load.test --count 1000

The data is JSON and is sent on byte for byte. Repeat a call with the same --idempotency-key as \
often as you like: the event is accepted once.

Follow it with: tidings watch --event-type billing.paid";

/// Emit an event.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    tenant: TenantOption,
    #[command(flatten)]
    output: output::Options,

    /// The event's type: words joined by dots, such as `billing.paid`
    #[arg(value_name = "TYPE")]
    event_type: String,
    /// The payload: JSON, `@file` for a file, `-` for standard input
    #[arg(long, short, value_name = "JSON", default_value = "{}")]
    data: String,
    /// What it happened to, such as `invoice/1042`
    #[arg(long, short, value_name = "TEXT", default_value = "", hide_default_value = true)]
    subject: String,
    /// A label of your own; may be given several times
    #[arg(long = "label", short, value_name = "KEY=VALUE", value_parser = parse_label)]
    labels: Vec<(String, String)>,
    /// Makes it safe to repeat the call: a repetition changes nothing
    #[arg(long, short = 'k', value_name = "KEY", default_value = "", hide_default_value = true)]
    idempotency_key: String,
    /// When it happened: RFC 3339, or how long ago (`5m`); otherwise now
    #[arg(long, value_name = "TIME", value_parser = time::parse_past)]
    occurred_at: Option<Timestamp>,
    /// Deliver it only then: RFC 3339, or a distance (`10m`)
    #[arg(long, value_name = "TIME", value_parser = time::parse_future)]
    deliver_at: Option<Timestamp>,
    /// Give up what is not delivered by then: RFC 3339, or a distance (`1h`)
    #[arg(long, value_name = "TIME", value_parser = time::parse_future)]
    expire_at: Option<Timestamp>,
    /// The W3C trace context that the event belongs to
    #[arg(long, env = "TRACEPARENT", value_name = "TRACEPARENT", hide_env_values = true)]
    traceparent: Option<String>,
    /// Emit it so many times; with an idempotency key, `-1`, `-2` … are added to it
    #[arg(long, value_name = "COUNT", default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
}

/// Emits the event, or events.
///
/// # Errors
/// When the service cannot be reached or refuses.
pub async fn run(args: Args) -> Result<ExitCode, Error> {
    let data = read_data(&args.data)?;
    let client = args.connection.connect().await?;
    output::ended(emit(&args, data, &client).await)
}

async fn emit(args: &Args, data: String, client: &Client) -> Result<(), Error> {
    let output = Output::new(args.output);
    for number in 1..=args.count {
        let response = client.events().emit(request(args, &data, number)?).await?.into_inner();
        if output.is_json() {
            output.json_line(&Json(&response))?;
        } else {
            output.line(&sentence(output, &response))?;
        }
    }
    Ok(())
}

fn request(args: &Args, data: &str, number: u32) -> Result<Request<EmitRequest>, Error> {
    let idempotency_key = match args.idempotency_key.as_str() {
        key if key.is_empty() || args.count == 1 => key.to_owned(),
        key => format!("{key}-{number}"),
    };
    let mut request = Request::new(EmitRequest {
        tenant_id: args.tenant.id(),
        r#type: args.event_type.clone(),
        subject: args.subject.clone(),
        labels: args.labels.iter().cloned().collect(),
        occur_time: args.occurred_at.map(time::to_proto),
        deliver_time: args.deliver_at.map(time::to_proto),
        expire_time: args.expire_at.map(time::to_proto),
        idempotency_key,
        payload: Some(emit_request::Payload::DataJson(data.to_owned())),
    });
    if let Some(traceparent) = args.traceparent.as_ref().filter(|text| !text.is_empty()) {
        let value = traceparent.parse().map_err(|_| Error::usage("--traceparent is malformed"))?;
        request.metadata_mut().insert("traceparent", value);
    }
    Ok(request)
}

fn sentence(output: Output, response: &EmitResponse) -> String {
    let deliveries = match response.delivery_count {
        0 => output.paint(Style::Pending, "nobody has subscribed to it"),
        1 => "1 delivery".to_owned(),
        count => format!("{count} deliveries"),
    };
    let verdict = if response.duplicate {
        output.paint(Style::Pending, "accepted before")
    } else {
        output.paint(Style::Good, "accepted")
    };
    format!("{}  {verdict}, {deliveries}", response.event_id)
}

/// The payload as the person gave it: as it stands, from a file, or from standard input.
fn read_data(data: &str) -> Result<String, Error> {
    if data == "-" {
        let mut stdin = std::io::stdin();
        if stdin.is_terminal() {
            eprintln!("Reading JSON from the terminal; end it with Ctrl-D.");
        }
        let mut text = String::new();
        stdin
            .read_to_string(&mut text)
            .map_err(|error| Error::usage(format!("standard input: {error}")))?;
        return Ok(trimmed(text));
    }
    let Some(file) = data.strip_prefix('@') else {
        return Ok(data.to_owned());
    };
    let text = std::fs::read_to_string(file)
        .map_err(|error| Error::usage(format!("--data {data}: {error}")))?;
    Ok(trimmed(text))
}

/// The line break at the end is the file's or the pipe's, not the payload's.
fn trimmed(mut text: String) -> String {
    text.truncate(text.trim_end_matches(['\r', '\n']).len());
    text
}

/// Reads `key=value`.
///
/// # Errors
/// A sentence for the person who wrote it.
pub fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is no label; write key=value")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_taken_byte_for_byte() {
        let file = std::env::temp_dir().join(format!("tidings-emit-{}.json", std::process::id()));
        std::fs::write(&file, "{ \"a\": 12345678901234567890 }\n").unwrap();
        let read = read_data(&format!("@{}", file.display())).unwrap();
        std::fs::remove_file(&file).unwrap();
        assert_eq!(read, "{ \"a\": 12345678901234567890 }");
        assert_eq!(read_data("{ }").unwrap(), "{ }");
        assert!(read_data("@/nowhere/at/all").is_err());
    }

    #[test]
    fn labels_are_pairs() {
        assert_eq!(parse_label("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(parse_label("a="), Ok(("a".into(), String::new())));
        assert!(parse_label("a").is_err());
        assert!(parse_label("=b").is_err());
    }
}
