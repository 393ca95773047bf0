//! `tidings watch`: deliveries as they happen, without a gap.
//!
//! A broken stream is taken up again where it broke, by itself. At least once: after that a change
//! may be shown twice. The place is kept in memory and, with `--resume-file`, on disk.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use tonic::Status;

use super::Error;
use super::client::{self, Client, Connection, TenantOption};
use super::deliveries::outcome;
use super::output::{self, Json, Output, Style, names, table, time};
use crate::api::proto::{DeliveryState, WatchDeliveriesRequest, WatchDeliveriesResponse};
use crate::domain::Timestamp;
use crate::shutdown::Signals;

/// The wait before the first attempt to take a broken stream up again; it doubles.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// The longest such wait.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// How often the place is written to `--resume-file` at most, while changes come fast.
const SAVE_INTERVAL: Duration = Duration::from_secs(1);

const EXAMPLES: &str = "\
Examples:
  tidings watch                                       all deliveries of the key's tenant
  tidings watch --event-type 'billing.*' --state failed --state expired
  tidings watch --event evt_01k… --include-current    what became of one event
  tidings watch --json | jq -r '.delivery.id'         one JSON document per line
  tidings watch --resume-file ~/.tidings-place        go on where the last call ended

A connection that breaks is taken up again by itself, and nothing is missed. Ctrl-C ends, and says \
how to resume.";

/// Follow deliveries as they happen.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    tenant: TenantOption,
    #[command(flatten)]
    output: output::Options,

    /// Only event types that match: `billing.paid`, `billing.*`; may be given several times
    #[arg(long = "event-type", short = 't', value_name = "PATTERN", value_delimiter = ',')]
    event_types: Vec<String>,
    /// Only deliveries in this state; may be given several times
    #[arg(long = "state", value_delimiter = ',',
        value_parser = names::parser::<DeliveryState>(names::DELIVERY_STATES))]
    states: Vec<DeliveryState>,
    /// Only deliveries for this subscription
    #[arg(long, value_name = "SUBSCRIPTION_ID")]
    subscription: Option<String>,
    /// Only deliveries of this event
    #[arg(long, value_name = "EVENT_ID")]
    event: Option<String>,
    /// First show every delivery that there is, then the changes
    #[arg(long, conflicts_with = "resume")]
    include_current: bool,
    /// Go on after this resume token; the filters must be as they were
    #[arg(long, value_name = "TOKEN", allow_hyphen_values = true)]
    resume: Option<String>,
    /// Keep the place in this file, and go on from it when it is there
    #[arg(long, value_name = "FILE")]
    resume_file: Option<PathBuf>,
    /// End after so many changes
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
}

/// Follows deliveries until Ctrl-C, or `--limit`.
///
/// # Errors
/// When the service refuses; a connection that breaks is no error.
pub async fn run(args: Args) -> Result<ExitCode, Error> {
    let mut place = Place::load(&args)?;
    let client = args.connection.connect().await?;
    let mut signals = Signals::install()?;
    let result = tokio::select! {
        result = follow(&args, &client, &mut place) => result,
        _ = signals.next() => {
            how_to_resume(&args, &place);
            Ok(())
        }
    };
    place.save()?;
    output::ended(result)
}

async fn follow(args: &Args, client: &Client, place: &mut Place) -> Result<(), Error> {
    let output = Output::new(args.output);
    let mut wait = FIRST_WAIT;
    let mut left = args.limit.unwrap_or(u64::MAX);
    if !output.is_json() {
        output.note(&format!("watching {} · Ctrl-C ends", client.endpoint()));
    }
    loop {
        let status = match open(args, client, place).await {
            Ok(mut stream) => loop {
                match stream.message().await {
                    Ok(Some(response)) => {
                        wait = FIRST_WAIT;
                        show(output, &response)?;
                        left -= u64::from(response.delivery.is_some());
                        place.advance(response)?;
                        if left == 0 {
                            return Ok(());
                        }
                    }
                    Ok(None) => break Status::unavailable("the service ended the stream"),
                    Err(status) => break status,
                }
            },
            Err(status) => status,
        };
        if !client::is_transient(&status) {
            return Err(status.into());
        }
        let pause = client::retry_delay(&status).unwrap_or(wait).clamp(wait, LONGEST_WAIT);
        let from = if place.token.is_empty() { "now" } else { "where it broke" };
        output.note(&format!(
            "the stream broke ({}); going on from {from} in {}",
            Error::from(status).message(),
            time::coarse(pause)
        ));
        tokio::time::sleep(pause).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

async fn open(
    args: &Args,
    client: &Client,
    place: &Place,
) -> Result<tonic::Streaming<WatchDeliveriesResponse>, Status> {
    let request = WatchDeliveriesRequest {
        tenant_id: args.tenant.id(),
        subscription_id: args.subscription.clone().unwrap_or_default(),
        event_id: args.event.clone().unwrap_or_default(),
        event_types: args.event_types.clone(),
        states: args.states.iter().map(|state| i32::from(*state)).collect(),
        include_current: args.include_current && place.token.is_empty(),
        resume_token: place.token.clone(),
    };
    Ok(client.deliveries().watch_deliveries(request).await?.into_inner())
}

fn show(output: Output, response: &WatchDeliveriesResponse) -> Result<(), Error> {
    if output.is_json() {
        return output.json_line(&Json(response));
    }
    if response.snapshot_complete {
        output.note("that is everything up to now; changes follow");
    }
    let Some(delivery) = &response.delivery else {
        return Ok(());
    };
    let changed = delivery.update_time.as_ref().map(time::from_proto);
    let line = format!(
        "{}  {}  {}  {}  {}",
        output.paint(Style::Dim, &changed.map(time::clock).unwrap_or_default()),
        output.paint(
            Style::of_state(delivery.state()),
            &table::fit(&names::short::<DeliveryState>(delivery.state), 10)
        ),
        table::fit(&table::printable(&delivery.event_type), 22),
        delivery.id,
        outcome(output, delivery),
    );
    output.line(line.trim_end())
}

/// Where in the stream we are.
#[derive(Debug)]
struct Place {
    token: String,
    file: Option<PathBuf>,
    saved: Timestamp,
    is_saved: bool,
}

impl Place {
    fn load(args: &Args) -> Result<Self, Error> {
        let kept = args.resume_file.as_deref().map(read_place).transpose()?.unwrap_or_default();
        Ok(Self {
            token: args.resume.clone().unwrap_or(kept),
            file: args.resume_file.clone(),
            saved: time::now(),
            is_saved: true,
        })
    }

    fn advance(&mut self, response: WatchDeliveriesResponse) -> Result<(), Error> {
        self.token = response.resume_token;
        self.is_saved = false;
        let is_checkpoint = response.delivery.is_none();
        if is_checkpoint || time::now().since(self.saved) >= SAVE_INTERVAL {
            self.save()?;
        }
        Ok(())
    }

    /// Writes the place so that the file always holds a whole token.
    fn save(&mut self) -> Result<(), Error> {
        let Some(file) = self.file.as_deref().filter(|_| !self.is_saved) else {
            return Ok(());
        };
        let mut draft = file.as_os_str().to_owned();
        draft.push(".new");
        std::fs::write(&draft, format!("{}\n", self.token))
            .and_then(|()| std::fs::rename(&draft, file))
            .map_err(|error| {
                Error::failure(format!("--resume-file {}: {error}", file.display()))
            })?;
        self.saved = time::now();
        self.is_saved = true;
        Ok(())
    }
}

fn read_place(file: &Path) -> Result<String, Error> {
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(Error::usage(format!("--resume-file {}: {error}", file.display()))),
    }
}

/// The token goes with the filters, so the whole command is shown.
fn how_to_resume(args: &Args, place: &Place) {
    if let Some(command) = resume_command(args, place) {
        Output::new(args.output).note(&format!("\nGo on later, without a gap:\n  {command}"));
    }
}

/// The command that goes on from this place: everything that was given, as a shell reads it. The
/// API key is a secret and stays where it was given; `None` before there is a place.
fn resume_command(args: &Args, place: &Place) -> Option<String> {
    if place.token.is_empty() {
        return None;
    }
    let mut command = format!("{} watch", output::program());
    let mut add = |option: &str, value: &str| {
        command.extend([" --", option, "=", &output::quoted(value)]);
    };
    if args.connection.endpoint != client::DEFAULT_ENDPOINT {
        add("endpoint", &args.connection.endpoint);
    }
    if let Some(file) = &args.connection.tls_ca_file {
        add("tls-ca-file", &file.display().to_string());
    }
    Some(args.tenant.id()).filter(|id| !id.is_empty()).iter().for_each(|id| add("tenant", id));
    args.event_types.iter().for_each(|pattern| add("event-type", pattern));
    args.states.iter().for_each(|state| {
        add("state", &names::plain::<DeliveryState>(i32::from(*state)));
    });
    args.subscription.iter().for_each(|id| add("subscription", id));
    args.event.iter().for_each(|id| add("event", id));
    args.limit.iter().for_each(|limit| add("limit", &limit.to_string()));
    match &args.resume_file {
        Some(file) => add("resume-file", &file.display().to_string()),
        None => add("resume", &place.token),
    }
    if args.output.json {
        command.push_str(" --json");
    }
    Some(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(words: &[&str]) -> Args {
        use clap::Parser;
        Line::try_parse_from(std::iter::once(&"watch").chain(words)).expect("valid").args
    }

    fn place(token: &str) -> Place {
        Place { token: token.into(), file: None, saved: time::now(), is_saved: true }
    }

    /// The words that a shell makes of a command line, up to the quotes that we write.
    fn words(command: &str) -> Vec<String> {
        let (mut words, mut is_quoted) = (vec![String::new()], false);
        let mut chars = command.chars();
        while let Some(c) = chars.next() {
            let word = words.last_mut().expect("one");
            match c {
                '\'' => is_quoted = !is_quoted,
                '\\' if !is_quoted => word.extend(chars.next()),
                ' ' if !is_quoted => words.push(String::new()),
                c => word.push(c),
            }
        }
        words
    }

    #[test]
    fn the_way_to_resume_is_a_command_that_means_the_same() {
        let given = [
            "--endpoint=http://127.0.0.1:9",
            "--api-key=tdk_secret",
            "--tls-ca-file=/a b/it's.pem",
            "--tenant=ten_1",
            "--event-type=billing.*",
            "--event-type=run_failed",
            "--state=failed",
            "--subscription=sub_1",
            "--event=evt_1",
            "--limit=7",
            "--json",
            "--include-current",
        ];
        let args = parse(&given);
        assert_eq!(resume_command(&args, &place("")), None, "no place, no command");
        let command = resume_command(&args, &place("t-1")).expect("a command");
        assert!(!command.contains("tdk_secret"), "{command}");
        let words = words(&command);
        assert_eq!(words[1], "watch");
        let words: Vec<_> = words[2..].iter().map(String::as_str).collect();
        let again = parse(&words);
        let mut expected = args;
        // The key stays a secret, and what there was has been shown.
        expected.connection.api_key = again.connection.api_key.clone();
        expected.include_current = false;
        expected.resume = Some("t-1".into());
        assert_eq!(format!("{again:?}"), format!("{expected:?}"));
    }

    #[test]
    fn a_place_survives_in_its_file() {
        let file = std::env::temp_dir().join(format!("tidings-place-{}", std::process::id()));
        let _ = std::fs::remove_file(&file);
        assert_eq!(read_place(&file).unwrap(), "");
        let mut place = Place {
            token: String::new(),
            file: Some(file.clone()),
            saved: time::now(),
            is_saved: true,
        };
        let checkpoint = WatchDeliveriesResponse {
            resume_token: "t1".into(),
            ..WatchDeliveriesResponse::default()
        };
        place.advance(checkpoint).unwrap();
        assert_eq!(read_place(&file).unwrap(), "t1");
        std::fs::remove_file(&file).unwrap();
    }
}
