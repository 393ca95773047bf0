//! `tidings event-types`: the catalog, which says what each kind of event means.

use std::process::ExitCode;

use super::Error;
use super::client::{Client, Connection, Paging, TenantOption, incomplete};
use super::output::{self, Cell, Output, Style, Table, names, table};
use super::subscriptions::read_template;
use super::subscriptions::retry::{self, RetryOptions};
use super::tenants::mask;
use crate::api::proto::{
    Channel, CreateEventTypeRequest, DeleteEventTypeRequest, EventType, EventTypeStatus,
    GetEventTypeRequest, ListEventTypesRequest, ListEventTypesResponse, UpdateEventTypeRequest,
};

const EXAMPLES: &str = "\
Examples:
  tidings event-types create billing.paid --category Billing --since v1.0 \\
      --description 'An invoice was paid in full.' --channel webhook
  tidings event-types create trial.ending --status beta --max-retries 1
  tidings event-types create user.created --schema @user.schema.json
  tidings event-types update billing.paid --email-template paid.j2
  tidings event-types list --category Billing
  tidings event-types update trial.ending --status ga
  tidings event-types delete trial.ending

With an operator key and no --tenant these are the platform's types, for all tenants. Events of a \
type that is not here are accepted too; one that is here, and has a schema, must match it.";

/// Describe the types of events that are emitted.
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
    /// List event types by name
    List {
        /// Only those of this category
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        category: String,
        /// Only those of this status; may be given several times
        #[arg(long = "status", value_delimiter = ',',
            value_parser = names::parser::<EventTypeStatus>(names::EVENT_TYPE_STATUSES))]
        statuses: Vec<EventTypeStatus>,
        #[command(flatten)]
        paging: Paging,
    },
    /// Show one event type
    #[command(visible_alias = "show")]
    Get {
        /// Its name
        name: String,
    },
    /// Add an event type
    Create {
        /// Its name: words joined by dots, such as `billing.paid`
        name: String,
        #[command(flatten)]
        fields: Fields,
    },
    /// Change what is given, and leave the rest; the defaults below are those of `create`
    Update {
        /// Its name
        name: String,
        #[command(flatten)]
        fields: Fields,
        /// Empty this field, such as `json_schema`; may be given several times
        #[arg(long, value_name = "FIELD")]
        clear: Vec<String>,
        /// Only if nobody has changed it since it had this etag
        #[arg(long, value_name = "ETAG", default_value = "", hide_default_value = true)]
        etag: String,
    },
    /// Remove an event type; events of it are still accepted and delivered
    Delete {
        /// Its name
        name: String,
        /// Only if nobody has changed it since it had this etag
        #[arg(long, value_name = "ETAG", default_value = "", hide_default_value = true)]
        etag: String,
    },
}

#[derive(Debug, clap::Args)]
struct Fields {
    /// What it means
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// What it is listed under, such as `Billing`
    #[arg(long, value_name = "TEXT")]
    category: Option<String>,
    /// Since when it is sent, such as `v1.2`
    #[arg(long, value_name = "TEXT")]
    since: Option<String>,
    /// How settled it is
    #[arg(long, value_parser = names::parser::<EventTypeStatus>(names::EVENT_TYPE_STATUSES))]
    status: Option<EventTypeStatus>,
    /// What the payload must look like: JSON Schema, or `@file`
    #[arg(long, value_name = "JSON")]
    schema: Option<String>,
    /// A channel that suits it, the best first; may be given several times
    #[arg(long = "channel", value_delimiter = ',',
        value_parser = names::parser::<Channel>(names::CHANNELS))]
    channels: Vec<Channel>,
    /// When to prefer which channel, and what a receiver should do
    #[arg(long, value_name = "TEXT")]
    guidance: Option<String>,
    /// A file with the template of its mails; an empty one for the built-in: see docs/email.md
    #[arg(long, value_name = "FILE", value_parser = read_template)]
    email_template: Option<String>,
    #[command(flatten)]
    retry: RetryOptions,
}

impl Fields {
    /// The event type, and the paths of the fields that are given.
    fn event_type(self) -> Result<(EventType, Vec<&'static str>), Error> {
        let retry_policy = self.retry.policy();
        let json_schema = self.schema.map(read_schema).transpose()?;
        let given = [
            ("description", self.description.is_some()),
            ("category", self.category.is_some()),
            ("since", self.since.is_some()),
            ("status", self.status.is_some()),
            ("json_schema", json_schema.is_some()),
            ("retry_policy", retry_policy.is_some()),
            ("recommended_channels", !self.channels.is_empty()),
            ("guidance", self.guidance.is_some()),
            ("email_template", self.email_template.is_some()),
        ];
        let event_type = EventType {
            description: self.description.unwrap_or_default(),
            category: self.category.unwrap_or_default(),
            since: self.since.unwrap_or_default(),
            status: self.status.unwrap_or_default().into(),
            json_schema: json_schema.unwrap_or_default(),
            retry_policy,
            recommended_channels: self.channels.into_iter().map(i32::from).collect(),
            guidance: self.guidance.unwrap_or_default(),
            email_template: self.email_template.unwrap_or_default(),
            ..EventType::default()
        };
        let given = given.into_iter().filter(|(_, given)| *given).map(|(path, _)| path).collect();
        Ok((event_type, given))
    }
}

fn read_schema(text: String) -> Result<String, Error> {
    let Some(file) = text.strip_prefix('@') else {
        return Ok(text);
    };
    std::fs::read_to_string(file).map_err(|error| Error::usage(format!("--schema {text}: {error}")))
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
    let mut catalog = client.catalog();
    match command {
        Command::List { category, statuses, paging } => {
            let statuses = statuses.into_iter().map(i32::from).collect();
            let request = ListEventTypesRequest {
                tenant_id,
                category,
                statuses,
                ..ListEventTypesRequest::default()
            };
            list(client, output, request, &paging).await
        }
        Command::Get { name } => {
            let request = GetEventTypeRequest { tenant_id, name };
            let response = catalog.get_event_type(request).await?.into_inner();
            output.message(&response, |output, answer| show(output, answer.event_type.as_ref()))
        }
        Command::Create { name, fields } => {
            let (event_type, _) = fields.event_type()?;
            let event_type = Some(EventType { tenant_id, name, ..event_type });
            let request = CreateEventTypeRequest { event_type };
            let response = catalog.create_event_type(request).await?.into_inner();
            output.message(&response, |output, answer| show(output, answer.event_type.as_ref()))
        }
        Command::Update { name, fields, clear, etag } => {
            let (event_type, given) = fields.event_type()?;
            let update_mask = mask(given, clear)?;
            let event_type = Some(EventType { tenant_id, name, etag, ..event_type });
            let request = UpdateEventTypeRequest { event_type, update_mask };
            let response = catalog.update_event_type(request).await?.into_inner();
            output.message(&response, |output, answer| show(output, answer.event_type.as_ref()))
        }
        Command::Delete { name, etag } => {
            let request = DeleteEventTypeRequest { tenant_id, name: name.clone(), etag };
            let response = catalog.delete_event_type(request).await?.into_inner();
            output.message(&response, |output, _| output.line(&format!("{name} is deleted")))
        }
    }
}

async fn list(
    client: &Client,
    output: Output,
    request: ListEventTypesRequest,
    paging: &Paging,
) -> Result<(), Error> {
    let (event_types, next_page_token) = paging
        .collect(async |page_size, page_token| {
            let request = ListEventTypesRequest { page_size, page_token, ..request.clone() };
            let page = client.catalog().list_event_types(request).await?.into_inner();
            Ok((page.event_types, page.next_page_token))
        })
        .await?;
    output.message(&ListEventTypesResponse { event_types, next_page_token }, |output, page| {
        let mut table = Table::new(&["NAME", "STATUS", "SINCE", "CATEGORY", "OF", "DESCRIPTION"]);
        for event_type in &page.event_types {
            let owner = if event_type.tenant_id.is_empty() { "platform" } else { "tenant" };
            table.row([
                event_type.name.as_str().into(),
                names::short::<EventTypeStatus>(event_type.status).into(),
                event_type.since.as_str().into(),
                event_type.category.as_str().into(),
                owner.into(),
                Cell::new(event_type.description.lines().next().unwrap_or_default(), Style::Dim),
            ]);
        }
        output.table(&table, "no event types; `tidings event-types create` adds one")?;
        output.more(&page.next_page_token);
        Ok(())
    })
}

fn show(output: Output, event_type: Option<&EventType>) -> Result<(), Error> {
    let event_type = event_type.ok_or_else(|| incomplete("event type"))?;
    let channels =
        event_type.recommended_channels.iter().map(|number| names::plain::<Channel>(*number));
    let owner = match event_type.tenant_id.as_str() {
        "" => "the platform",
        tenant => tenant,
    };
    output.fields(&[
        ("event type", output.paint(Style::Strong, &event_type.name)),
        ("of", owner.to_owned()),
        ("status", names::short::<EventTypeStatus>(event_type.status)),
        ("since", table::printable(&event_type.since)),
        ("category", table::printable(&event_type.category)),
        ("description", table::printable_lines(&event_type.description)),
        ("channels", channels.collect::<Vec<_>>().join(", ")),
        ("guidance", table::printable_lines(&event_type.guidance)),
        ("retries", retry::describe(event_type.retry_policy.as_ref())),
        ("schema", table::printable_lines(event_type.json_schema.trim())),
        ("email template", table::printable_lines(event_type.email_template.trim())),
        ("created", output.time(event_type.create_time.as_ref())),
        ("changed", output.time(event_type.update_time.as_ref())),
        ("etag", output.paint(Style::Dim, &event_type.etag)),
    ])
}
