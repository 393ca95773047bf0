//! `tidings deliveries`: what became of events, attempt by attempt, and stepping in.

use std::process::ExitCode;
use std::time::Duration;

use super::Error;
use super::attempt;
use super::client::{Client, Connection, Paging, TenantOption, incomplete};
use super::output::{self, Cell, Json, Output, Style, Table, ago, names, table, time};
use crate::api::proto::{
    CancelDeliveryRequest, Delivery, DeliveryState, ErrorKind, FailureReason, GetDeliveryRequest,
    ListAttemptsRequest, ListDeliveriesRequest, ListDeliveriesResponse, RetryDeliveryRequest,
};
use crate::domain::Timestamp;

const EXAMPLES: &str = "\
Examples:
  tidings deliveries list --state failed --since 24h
  tidings deliveries list --event evt_01k…           everyone who was told of one event
  tidings deliveries show dlv_01k…                   every attempt: what was sent, what came back
  tidings deliveries retry dlv_01k…                  one attempt, now
  tidings deliveries cancel dlv_01k…

Retry everything that failed today:
  tidings deliveries list --state failed --since 24h --limit 1000 --json \\
    | jq -r '.deliveries[].id' | xargs -n1 tidings deliveries retry";

const LIST_EXAMPLES: &str = "\
Examples:
  tidings deliveries list --state failed,expired --since 24h
  tidings deliveries list --event-type 'billing.*' --subscription sub_01k…
  tidings deliveries list --reason quarantined       those that brought the service down
  tidings deliveries list --limit 1000 --json | jq -r '.deliveries[] | [.id, .state] | @tsv'";

/// Look at deliveries and their attempts; retry or cancel them.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    tenant: TenantOption,
    #[command(flatten)]
    output: output::Options,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List deliveries, the newest first
    #[command(after_help = LIST_EXAMPLES)]
    List(ListArgs),
    /// Show one delivery and all of its attempts
    #[command(visible_alias = "get")]
    Show {
        /// The delivery
        #[arg(value_name = "DELIVERY_ID")]
        id: String,
        /// Show the headers that were sent and received with every attempt, not only the last
        #[arg(long)]
        headers: bool,
    },
    /// Make one attempt now, whatever the schedule says, and wait for what comes of it
    Retry {
        /// The delivery
        #[arg(value_name = "DELIVERY_ID")]
        id: String,
    },
    /// End a delivery: it is not attempted again
    Cancel {
        /// The delivery
        #[arg(value_name = "DELIVERY_ID")]
        id: String,
    },
}

#[derive(Debug, clap::Args)]
struct ListArgs {
    /// Only event types that match: `billing.paid`, `billing.*`; may be given several times
    #[arg(long = "event-type", short = 't', value_name = "PATTERN", value_delimiter = ',')]
    event_types: Vec<String>,
    /// Only deliveries in this state; may be given several times
    #[arg(long = "state", value_delimiter = ',',
        value_parser = names::parser::<DeliveryState>(names::DELIVERY_STATES))]
    states: Vec<DeliveryState>,
    /// Only deliveries that ended for this reason; may be given several times
    #[arg(long = "reason", value_delimiter = ',',
        value_parser = names::parser::<FailureReason>(names::FAILURE_REASONS))]
    reasons: Vec<FailureReason>,
    /// Only deliveries for this subscription
    #[arg(long, value_name = "SUBSCRIPTION_ID", default_value = "", hide_default_value = true)]
    subscription: String,
    /// Only deliveries of this event
    #[arg(long, value_name = "EVENT_ID", default_value = "", hide_default_value = true)]
    event: String,
    /// Only those created since: RFC 3339, or how long ago (`24h`)
    #[arg(long, value_name = "TIME", value_parser = time::parse_past)]
    since: Option<Timestamp>,
    /// Only those created before: RFC 3339, or how long ago (`1h`)
    #[arg(long, value_name = "TIME", value_parser = time::parse_past)]
    until: Option<Timestamp>,
    #[command(flatten)]
    paging: Paging,
}

/// Runs the command.
///
/// # Errors
/// When the service cannot be reached or refuses, or a retry fails.
pub async fn run(args: Args) -> Result<ExitCode, Error> {
    let client = args.connection.connect().await?;
    let output = Output::new(args.output);
    let tenant_id = args.tenant.id();
    output::ended(match args.command {
        Command::List(list_args) => list(&client, output, tenant_id, list_args).await,
        Command::Show { id, headers } => show(&client, output, tenant_id, id, headers).await,
        Command::Retry { id } => retry(&client, output, tenant_id, id).await,
        Command::Cancel { id } => cancel(&client, output, tenant_id, id).await,
    })
}

async fn list(
    client: &Client,
    output: Output,
    tenant_id: String,
    args: ListArgs,
) -> Result<(), Error> {
    let request = ListDeliveriesRequest {
        tenant_id,
        subscription_id: args.subscription,
        event_id: args.event,
        event_types: args.event_types,
        states: args.states.into_iter().map(i32::from).collect(),
        failure_reasons: args.reasons.into_iter().map(i32::from).collect(),
        create_time_from: args.since.map(time::to_proto),
        create_time_until: args.until.map(time::to_proto),
        ..ListDeliveriesRequest::default()
    };
    let (deliveries, next_page_token) = args
        .paging
        .collect(async |page_size, page_token| {
            let request = ListDeliveriesRequest { page_size, page_token, ..request.clone() };
            let page = client.deliveries().list_deliveries(request).await?.into_inner();
            Ok((page.deliveries, page.next_page_token))
        })
        .await?;
    output.message(&ListDeliveriesResponse { deliveries, next_page_token }, |output, page| {
        // Mails of one event differ by nothing else.
        let has_mail = page.deliveries.iter().any(|delivery| !delivery.recipient.is_empty());
        let headings = ["ID", "EVENT TYPE", "STATE", "CREATED", "LAST ATTEMPT", "RECIPIENT"];
        let columns = if has_mail { 6 } else { 5 };
        let mut table = Table::new(&headings[..columns]);
        for delivery in &page.deliveries {
            let state = names::short::<DeliveryState>(delivery.state);
            let cells = [
                delivery.id.as_str().into(),
                delivery.event_type.as_str().into(),
                Cell::new(state, Style::of_state(delivery.state())),
                ago(delivery.create_time.as_ref()).into(),
                summary(delivery).into(),
                delivery.recipient.as_str().into(),
            ];
            table.row(cells.into_iter().take(columns));
        }
        output.table(&table, "no deliveries")?;
        output.more(&page.next_page_token);
        Ok(())
    })
}

async fn show(
    client: &Client,
    output: Output,
    tenant_id: String,
    delivery_id: String,
    headers: bool,
) -> Result<(), Error> {
    let request =
        GetDeliveryRequest { tenant_id: tenant_id.clone(), delivery_id: delivery_id.clone() };
    let response = client.deliveries().get_delivery(request).await?.into_inner();
    let delivery = response.delivery.ok_or_else(|| incomplete("delivery"))?;
    let all = Paging { limit: u32::MAX, page_token: String::new() };
    let (attempts, _) = all
        .collect(async |page_size, page_token| {
            let request = ListAttemptsRequest {
                tenant_id: tenant_id.clone(),
                delivery_id: delivery_id.clone(),
                page_size,
                page_token,
            };
            let page = client.deliveries().list_attempts(request).await?.into_inner();
            Ok((page.attempts, page.next_page_token))
        })
        .await?;
    if output.is_json() {
        let attempts: Vec<_> = attempts.iter().map(Json).collect();
        return output.document(&serde_json::json!({
            "delivery": Json(&delivery),
            "attempts": attempts,
        }));
    }
    show_delivery(output, &delivery)?;
    for (index, attempt) in attempts.iter().enumerate() {
        output.line("")?;
        attempt::show(output, attempt, headers || index + 1 == attempts.len())?;
    }
    Ok(())
}

async fn retry(
    client: &Client,
    output: Output,
    tenant_id: String,
    delivery_id: String,
) -> Result<(), Error> {
    let request = RetryDeliveryRequest { tenant_id, delivery_id };
    let response = client.deliveries().retry_delivery(request).await?.into_inner();
    let attempt = response.attempt.clone().ok_or_else(|| incomplete("attempt"))?;
    output.message(&response, |output, _| attempt::show(output, &attempt, true))?;
    attempt::succeeded(&attempt)
}

async fn cancel(
    client: &Client,
    output: Output,
    tenant_id: String,
    delivery_id: String,
) -> Result<(), Error> {
    let request = CancelDeliveryRequest { tenant_id, delivery_id };
    let response = client.deliveries().cancel_delivery(request).await?.into_inner();
    output.message(&response, |output, response| {
        let delivery = response.delivery.as_ref().ok_or_else(|| incomplete("delivery"))?;
        show_delivery(output, delivery)
    })
}

fn show_delivery(output: Output, delivery: &Delivery) -> Result<(), Error> {
    let state = names::short::<DeliveryState>(delivery.state);
    let mut state = output.paint(Style::of_state(delivery.state()), &state);
    if delivery.failure_reason() != FailureReason::Unspecified {
        let reason = names::plain::<FailureReason>(delivery.failure_reason);
        state = format!("{state} ({reason})");
    }
    output.fields(&[
        ("delivery", output.paint(Style::Strong, &delivery.id)),
        ("state", state),
        ("event", format!("{} {}", delivery.event_id, table::printable(&delivery.event_type))),
        ("subscription", delivery.subscription_id.clone()),
        ("recipient", table::printable(&delivery.recipient)),
        ("tenant", delivery.tenant_id.clone()),
        ("attempts", delivery.attempt_count.to_string()),
        ("next attempt", next_attempt(output, delivery)),
        ("recovered", output.time(delivery.recover_time.as_ref())),
        ("expires", output.time(delivery.expire_time.as_ref())),
        ("created", output.time(delivery.create_time.as_ref())),
        ("changed", output.time(delivery.update_time.as_ref())),
        ("trace", delivery.trace_id.clone()),
    ])
}

/// The last attempt in a few words, and when the next one comes.
fn summary(delivery: &Delivery) -> String {
    let last = match &delivery.last_attempt {
        None => return next(delivery),
        Some(attempt) if attempt.http_status != 0 => {
            format!("#{} {}", attempt.number, attempt.http_status)
        }
        Some(attempt) if attempt.error_kind() == ErrorKind::Unspecified => {
            format!("#{} ok", attempt.number)
        }
        Some(attempt) => {
            format!("#{} {}", attempt.number, names::plain::<ErrorKind>(attempt.error_kind))
        }
    };
    match next(delivery) {
        next if next.is_empty() => last,
        next => format!("{last}, {next}"),
    }
}

/// How long after its time a delivery is said to wait: a busy service takes a moment.
const OVERDUE: Duration = Duration::from_secs(5);

/// When the next attempt is due; and where to look when that was a while ago.
fn next_attempt(output: Output, delivery: &Delivery) -> String {
    let due = delivery.next_attempt_time.as_ref();
    let text = output.time(due);
    if due.is_none_or(|due| time::now().since(time::from_proto(due)) < OVERDUE) {
        return text;
    }
    format!(
        "{text}; it waits for its endpoint: tidings subscriptions get {}",
        delivery.subscription_id
    )
}

fn next(delivery: &Delivery) -> String {
    let next = delivery.next_attempt_time.as_ref();
    next.map_or_else(String::new, |time| {
        format!("next {}", time::relative(time::from_proto(time), time::now()))
    })
}

/// The last attempt in a few words with its colour, for a stream.
pub fn outcome(output: Output, delivery: &Delivery) -> String {
    output.paint(Style::Dim, &summary(delivery))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::proto::Attempt;

    #[test]
    fn the_last_attempt_is_told_in_a_few_words() {
        let mut attempt = Attempt {
            number: 2,
            http_status: 503,
            error_kind: ErrorKind::HttpStatus.into(),
            ..Attempt::default()
        };
        let summary_of = |attempt: &Attempt| {
            summary(&Delivery { last_attempt: Some(attempt.clone()), ..Delivery::default() })
        };
        assert_eq!(summary_of(&attempt), "#2 503");
        attempt.http_status = 0;
        attempt.error_kind = ErrorKind::Timeout.into();
        assert_eq!(summary_of(&attempt), "#2 timeout");
        assert_eq!(summary(&Delivery::default()), "");
    }
}
