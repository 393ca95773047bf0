//! `tidings demo`: the main job in one command, and a smoke test of the whole.
//!
//! Starts the real service in this process, on free ports and with its data in a temporary folder;
//! three receivers; a tenant with four subscriptions and a contact who gets mail. Emits events through gRPC, shows each delivery
//! as `WatchDeliveries` tells it, then measures a burst. Everything goes over real sockets, and what
//! is said at the end was checked: the exit code is 1 when anything did not come as it should.

mod board;
mod burst;
mod ledger;
mod receivers;
mod report;
mod scene;
mod service;
mod words;

use std::io::Write;
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use tonic::Request;

use super::Error;
use super::client::{Client, Connection};
use super::output::{Options, Output, Style, table, time};
use crate::api::proto::{EmitRequest, emit_request};
use crate::domain::id::{SubscriptionId, TenantId};
use crate::domain::trace::TraceContext;
use crate::shutdown::Signals;
use board::Board;
use burst::Accepted;
use ledger::{Changes, Ledger, has_ended};
use receivers::Receivers;
use report::{Mail, Report, burst_succeeded, worth_a_look};
use scene::{PARTS, SCENES};
use service::{Folder, Service};
use words::{introduce, suggest, verdict};

/// Between two pictures.
const BEAT: Duration = Duration::from_millis(100);
/// Between two events: slow enough to be seen.
const PACE: Duration = Duration::from_millis(250);
/// How long the bar is that shows how far the burst has come.
const BAR: usize = 30;
/// Longest that the ten events may take.
const STORY_LIMIT: Duration = Duration::from_secs(20);
/// Longest that the burst may take.
const BURST_LIMIT: Duration = Duration::from_secs(20);
/// Exit code after Ctrl-C, as shells report it.
const INTERRUPTED: u8 = 130;

const EXAMPLES: &str = "\
Examples:
  tidings demo                 everything, in a few seconds; leaves only its mail behind
  tidings demo --keep          leaves it running, with commands to try
  tidings demo --burst 20000   measures for longer

The exit code is 0 only if every event was delivered as it should: the demo is a smoke test too.";

/// Show the main job in one command.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Leave it running at the end, until Ctrl-C, and keep its data
    #[arg(long)]
    keep: bool,
    /// How many events the burst has at the end; 0 for none
    #[arg(long, value_name = "COUNT", default_value_t = 2_000)]
    burst: usize,
}

/// Plays the demo.
///
/// # Errors
/// When something did not come as it should.
pub async fn run(args: Args) -> Result<ExitCode, Error> {
    let output = Output::new(Options::default());
    let mut signals = Signals::install()?;
    let mut folder = Folder::make()
        .map_err(|error| Error::failure(format!("cannot make a temporary folder: {error}")))?;
    if args.keep {
        folder.keep();
    }
    let service = Service::start(folder.path()).await?;
    let receivers = Receivers::start().await?;
    let stage = Stage { folder, service, receivers };
    let mut played = tokio::select! {
        played = play(&args, output, &stage) => played.map(|()| ExitCode::SUCCESS),
        _ = signals.next() => Ok(ExitCode::from(INTERRUPTED)),
    };
    if args.keep && played.as_ref().is_ok_and(|code| *code == ExitCode::SUCCESS) {
        signals.next().await;
    }
    stage.service.stop().await;
    if matches!(&played, Err(error) if error.is_output_closed()) {
        played = Ok(ExitCode::SUCCESS);
    }
    played
}

/// What runs until the end.
struct Stage {
    folder: Folder,
    service: Service,
    receivers: Receivers,
}

async fn play(args: &Args, output: Output, stage: &Stage) -> Result<(), Error> {
    let Stage { service, receivers, .. } = stage;
    let start = time::now();
    let cast = scene::cast(&service.operator).await?;
    let client = Connection::to(&service.endpoint, &cast.api_key).connect().await?;
    let subscriptions = scene::subscribe(&client, &receivers.urls).await?;
    receivers.trust(&subscriptions);
    introduce(output, stage, &cast)?;

    let mut changes = Changes::watch(&client).await?;
    let contact = contact_id(&cast.tenant.id)?;
    let mut board = Board::new(output, &subscriptions, contact.clone());
    let mut ledger = Ledger::default();
    // A trace of our own, as an application would have one; it need not be secret.
    let seed = start.as_micros().unsigned_abs() ^ u64::from(std::process::id());
    let trace = TraceContext::root(&mut StdRng::seed_from_u64(seed));
    let story = tell(&client, trace, &mut changes, &mut board, &mut ledger);
    let in_time = tokio::time::timeout(STORY_LIMIT, story).await;
    board.finish(&ledger)?;
    if let Ok(told) = in_time {
        told?;
    }

    let forged_status = receivers.forge(time::now()).await?;
    let mail = Mail { folder: &stage.folder, subscription_id: contact };
    let report = Report {
        board: &board,
        ledger: &ledger,
        receivers,
        burst: None,
        trace,
        forged_status,
        mail: &mail,
    };
    let burst = if args.burst > 0 && report.problems().is_empty() {
        Some(measure(output, &client, args.burst, &mut changes, &mut ledger, receivers).await?)
    } else {
        None
    };
    let report = Report {
        board: &board,
        ledger: &ledger,
        receivers,
        burst,
        trace,
        forged_status,
        mail: &mail,
    };
    report.print(output, time::now().since(start))?;
    verdict(output, &report.problems())?;
    suggest(args, output, stage, &cast, &worth_a_look(&board, &ledger))
}

/// The id under which the tenant's contact gets its mail.
fn contact_id(tenant_id: &str) -> Result<String, Error> {
    let tenant_id =
        TenantId::parse(tenant_id).map_err(|error| Error::failure(error.to_string()))?;
    Ok(SubscriptionId::of_primary_contact(tenant_id).to_string())
}

/// Emits the ten events, one after another, and shows what becomes of them until all have ended.
async fn tell(
    client: &Client,
    trace: TraceContext,
    changes: &mut Changes,
    board: &mut Board,
    ledger: &mut Ledger,
) -> Result<(), Error> {
    let expected: usize = SCENES.iter().map(|scene| wanted_by(scene.event_type)).sum();
    let (mut beat, mut pace) = (tokio::time::interval(BEAT), tokio::time::interval(PACE));
    loop {
        tokio::select! {
            change = changes.next() => {
                let delivery = change?;
                if ledger.apply(&delivery) {
                    board.tell(&delivery)?;
                }
            }
            _ = pace.tick() => emit_next(client, trace, board).await?,
            _ = beat.tick() => board.draw(ledger)?,
        }
        let ended = ledger.all().filter(|delivery| has_ended(delivery)).count();
        if board.events().len() == SCENES.len() && ended >= expected {
            return Ok(());
        }
    }
}

async fn emit_next(client: &Client, trace: TraceContext, board: &mut Board) -> Result<(), Error> {
    let number = board.events().len();
    let Some(scene) = SCENES.get(number) else {
        return Ok(());
    };
    let mut request = Request::new(EmitRequest {
        r#type: scene.event_type.into(),
        subject: scene.subject.into(),
        payload: Some(emit_request::Payload::DataJson(scene.data.into())),
        idempotency_key: format!("demo-{number}"),
        ..EmitRequest::default()
    });
    if number == 0
        && let Ok(value) = trace.to_string().parse()
    {
        request.metadata_mut().insert("traceparent", value);
    }
    let response = client.events().emit(request).await?.into_inner();
    let (made, expected) = (response.delivery_count, wanted_by(scene.event_type));
    if usize::try_from(made).ok() != Some(expected) {
        let event_type = scene.event_type;
        return Err(Error::failure(format!(
            "{event_type} made {made} deliveries in place of {expected}"
        )));
    }
    board.add(response.event_id);
    Ok(())
}

fn wanted_by(event_type: &str) -> usize {
    // And the tenant's contact, by mail.
    PARTS.iter().filter(|part| part.wants(event_type)).count() + 1
}

/// How far the burst has come: `━━━━━━────  1,285 of 2,000 delivered`.
fn bar(output: Output, delivered: usize, count: usize) -> String {
    let full = (BAR * delivered / count.max(1)).min(BAR);
    let number = |count: usize| burst::grouped(u64::try_from(count).unwrap_or(u64::MAX));
    let line = format!(
        "  burst  {}{}  {} of {} delivered",
        output.paint(Style::Good, &"━".repeat(full)),
        output.paint(Style::Dim, &"─".repeat(BAR - full)),
        number(delivered),
        number(count),
    );
    table::clip(&line, output.width())
}

/// Emits the burst and waits until the service has recorded each delivery as succeeded, or time is
/// up: then the report says what is missing.
async fn measure(
    output: Output,
    client: &Client,
    count: usize,
    changes: &mut Changes,
    ledger: &mut Ledger,
    receivers: &Receivers,
) -> Result<Accepted, Error> {
    let is_live = output.is_redrawable(1);
    let progress = |text: &str| {
        if is_live {
            let mut stdout = std::io::stdout().lock();
            // Progress is decoration: whether anybody sees it does not matter.
            let _ = write!(stdout, "\r\x1b[2K{text}").and_then(|()| stdout.flush());
        }
    };
    let mut emission = pin!(burst::emit(client, count));
    let mut limit = pin!(tokio::time::sleep(BURST_LIMIT));
    let mut beat = tokio::time::interval(BEAT);
    let mut accepted: Option<Accepted> = None;
    loop {
        tokio::select! {
            emitted = &mut emission, if accepted.is_none() => accepted = Some(emitted?),
            change = changes.next() => {
                ledger.apply(&change?);
            }
            _ = beat.tick() => {
                let delivered = receivers.seen().burst_count;
                progress(&bar(output, delivered, count));
                let is_done = |accepted: &Accepted| burst_succeeded(ledger) >= accepted.count();
                if let Some(accepted) = accepted.take_if(|accepted| is_done(accepted)) {
                    progress("");
                    return Ok(accepted);
                }
            }
            () = &mut limit => {
                progress("");
                return accepted.ok_or_else(|| {
                    Error::failure(format!("the burst took longer than {}", time::coarse(BURST_LIMIT)))
                });
            }
        }
    }
}
