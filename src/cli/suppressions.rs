//! `tidings suppressions`: addresses that get no more mail, and reports that put them there.

use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;

use super::Error;
use super::client::{Client, Connection, Paging, TenantOption, incomplete};
use super::output::{self, Cell, Output, Style, Table, ago, names, table};
use crate::api::proto::{
    CreateSuppressionRequest, DeleteSuppressionRequest, FeedbackOutcome, ListSuppressionsRequest,
    ListSuppressionsResponse, ReportFeedbackRequest, Suppression, SuppressionReason,
    report_feedback_request,
};
use crate::domain::feedback::mail;

const EXAMPLES: &str = "\
Examples:
  tidings suppressions list
  tidings suppressions list --address ops@company.com
  tidings suppressions add ops@company.com --detail 'asked on the phone'
  tidings suppressions remove ops@company.com
  tidings suppressions report < returned-message.eml

A mail server can hand over what comes back by itself. With Postfix, in /etc/aliases:
  bounces: \"|TIDINGS_API_KEY=$(cat /etc/tidings/bounces.key) tidings suppressions report || exit 75\"
With 75 a mail that cannot be handed over stays in the queue.";

/// Look after addresses that get no more mail; report bounces and complaints.
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
    /// List them in order of their addresses
    List {
        /// Only those of this address
        #[arg(long, value_name = "ADDRESS", default_value = "", hide_default_value = true)]
        address: String,
        #[command(flatten)]
        paging: Paging,
    },
    /// Suppress an address: it gets no more mail
    Add {
        /// The address
        #[arg(value_name = "ADDRESS")]
        address: String,
        /// Only mail of this subscription; all of the tenant's by default
        #[arg(
            long = "subscription",
            value_name = "ID",
            default_value = "",
            hide_default_value = true
        )]
        subscription_id: String,
        /// A note: why
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        detail: String,
    },
    /// Let an address have mail again
    Remove {
        /// The address
        #[arg(value_name = "ADDRESS")]
        address: String,
        /// The suppression of this subscription; that of all of the tenant's mail by default
        #[arg(
            long = "subscription",
            value_name = "ID",
            default_value = "",
            hide_default_value = true
        )]
        subscription_id: String,
    },
    /// Hand over a mail that came back, or an abuse report, as it is; from standard input by default
    Report {
        /// The file with the mail
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
    },
}

/// Runs the command.
///
/// # Errors
/// When the service cannot be reached or refuses.
pub async fn run(args: Args) -> Result<ExitCode, Error> {
    let client = args.connection.connect().await?;
    let output = Output::new(args.output);
    output::ended(answer(&client, output, args.tenant.id(), args.command).await)
}

async fn answer(
    client: &Client,
    output: Output,
    tenant_id: String,
    command: Command,
) -> Result<(), Error> {
    let mut suppressions = client.suppressions();
    match command {
        Command::List { address, paging } => {
            let request = ListSuppressionsRequest {
                tenant_id,
                address,
                ..ListSuppressionsRequest::default()
            };
            list(client, output, request, &paging).await
        }
        Command::Add { address, subscription_id, detail } => {
            let wanted = Suppression {
                tenant_id,
                address,
                subscription_id,
                detail,
                ..Suppression::default()
            };
            let request = CreateSuppressionRequest { suppression: Some(wanted) };
            let response = suppressions.create_suppression(request).await?.into_inner();
            output.message(&response, |output, answer| show(output, answer.suppression.as_ref()))
        }
        Command::Remove { address, subscription_id } => {
            let told = format!("{} may have mail again", table::printable(&address));
            let request = DeleteSuppressionRequest { tenant_id, address, subscription_id };
            let response = suppressions.delete_suppression(request).await?.into_inner();
            output.message(&response, |output, _| output.line(&told))
        }
        Command::Report { file } => {
            let report = Some(report_feedback_request::Report::Message(read(file)?.into()));
            let request = ReportFeedbackRequest { tenant_id, report };
            let response = suppressions.report_feedback(request).await?.into_inner();
            output.message(&response, |output, answer| {
                output.line(&names::plain::<FeedbackOutcome>(answer.outcome).replace('-', " "))?;
                answer.suppression.as_ref().map_or(Ok(()), |found| show(output, Some(found)))
            })
        }
    }
}

/// The mail, of which no more is read than the service takes.
fn read(file: Option<PathBuf>) -> Result<Vec<u8>, Error> {
    let name = file.as_ref().map_or("standard input".into(), |path| path.display().to_string());
    let wrong = |error: &dyn std::fmt::Display| Error::usage(format!("{name}: {error}"));
    let source: Box<dyn Read> = match file {
        Some(path) => Box::new(std::fs::File::open(path).map_err(|error| wrong(&error))?),
        None => Box::new(std::io::stdin().lock()),
    };
    let mut bytes = Vec::new();
    let most = mail::MAX_BYTES as u64;
    source.take(most + 1).read_to_end(&mut bytes).map_err(|error| wrong(&error))?;
    if bytes.len() as u64 > most {
        return Err(wrong(&format!("a mail of more than {most} bytes is no report")));
    }
    Ok(bytes)
}

async fn list(
    client: &Client,
    output: Output,
    request: ListSuppressionsRequest,
    paging: &Paging,
) -> Result<(), Error> {
    let (suppressions, next_page_token) = paging
        .collect(async |page_size, page_token| {
            let request = ListSuppressionsRequest { page_size, page_token, ..request.clone() };
            let page = client.suppressions().list_suppressions(request).await?.into_inner();
            Ok((page.suppressions, page.next_page_token))
        })
        .await?;
    output.message(&ListSuppressionsResponse { suppressions, next_page_token }, |output, page| {
        let mut table = Table::new(&["ADDRESS", "OF", "REASON", "SINCE", "DETAIL"]);
        for suppression in &page.suppressions {
            table.row([
                suppression.address.as_str().into(),
                of(suppression).into(),
                names::short::<SuppressionReason>(suppression.reason).into(),
                ago(suppression.create_time.as_ref()).into(),
                Cell::new(suppression.detail.as_str(), Style::Dim),
            ]);
        }
        output.table(&table, "no address is suppressed")?;
        output.more(&page.next_page_token);
        Ok(())
    })
}

/// Which mail does not reach the address.
fn of(suppression: &Suppression) -> &str {
    match suppression.subscription_id.as_str() {
        "" => "all mail",
        subscription => subscription,
    }
}

fn show(output: Output, suppression: Option<&Suppression>) -> Result<(), Error> {
    let suppression = suppression.ok_or_else(|| incomplete("suppression"))?;
    output.fields(&[
        ("address", output.paint(Style::Strong, &table::printable(&suppression.address))),
        ("tenant", suppression.tenant_id.clone()),
        ("of", of(suppression).to_owned()),
        ("reason", names::short::<SuppressionReason>(suppression.reason)),
        ("detail", table::printable(&suppression.detail)),
        ("delivery", suppression.delivery_id.clone()),
        ("since", output.time(suppression.create_time.as_ref())),
    ])
}
