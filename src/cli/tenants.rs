//! `tidings tenants`: the customers, organisations and accounts that own everything else.

use std::process::ExitCode;

use prost_types::FieldMask;

use super::Error;
use super::client::{Client, Connection, Paging, incomplete};
use super::emit::parse_label;
use super::output::{self, Output, Style, Table, ago, labels, table};
use super::subscriptions::retry::{self, RetryOptions};
use crate::api::proto::{
    CreateTenantRequest, DeleteTenantRequest, GetTenantRequest, ListTenantsRequest,
    ListTenantsResponse, Tenant, UpdateTenantRequest,
};

const EXAMPLES: &str = "\
Examples (with an operator key):
  tidings tenants create --display-name 'Acme GmbH' --environment production --account-id 42
  tidings tenants create --display-name Beta --json | jq -r .tenant.id
  tidings tenants list
  tidings tenants update ten_01k… --webhook-url https://hooks.company.com/tidings
  tidings tenants update ten_01k… --clear retry_policy
  tidings tenants delete ten_01k… --force

Next: tidings keys create --tenant ten_01k… --scope events:emit";

/// Create and manage tenants.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: output::Options,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List all tenants, the oldest first
    List {
        #[command(flatten)]
        paging: Paging,
    },
    /// Show one tenant
    #[command(visible_alias = "show")]
    Get {
        /// The tenant; needed only with an operator key
        #[arg(value_name = "TENANT_ID", default_value = "", hide_default_value = true)]
        id: String,
    },
    /// Create a tenant
    Create {
        #[command(flatten)]
        fields: Fields,
    },
    /// Change what is given, and leave the rest; the defaults below are those of `create`
    Update {
        /// The tenant
        #[arg(value_name = "TENANT_ID")]
        id: String,
        #[command(flatten)]
        fields: Fields,
        /// Empty this field, such as `retry_policy`; may be given several times
        #[arg(long, value_name = "FIELD")]
        clear: Vec<String>,
        /// Only if nobody has changed it since it had this etag
        #[arg(long, value_name = "ETAG", default_value = "", hide_default_value = true)]
        etag: String,
    },
    /// Delete a tenant with its keys, subscriptions, events and deliveries
    Delete {
        /// The tenant
        #[arg(value_name = "TENANT_ID")]
        id: String,
        /// Even though it has subscriptions
        #[arg(long)]
        force: bool,
        /// Only if nobody has changed it since it had this etag
        #[arg(long, value_name = "ETAG", default_value = "", hide_default_value = true)]
        etag: String,
    },
}

#[derive(Debug, clap::Args)]
struct Fields {
    /// Its name, for people and for payloads
    #[arg(long, visible_alias = "name", value_name = "TEXT")]
    display_name: Option<String>,
    /// The environment that its events are of, such as `production`
    #[arg(long, value_name = "TEXT")]
    environment: Option<String>,
    /// Its number in your own system
    #[arg(long, value_name = "NUMBER")]
    account_id: Option<i64>,
    /// Who is told of everything by mail
    #[arg(long, value_name = "ADDRESS")]
    primary_contact: Option<String>,
    /// Event types that this person is not told of, such as `billing.*`; may be given several times,
    /// and replaces all that there were
    #[arg(long = "primary-contact-exclusion", value_name = "PATTERN")]
    primary_contact_exclusions: Vec<String>,
    /// The language of its mails, such as `de-AT`
    #[arg(long, value_name = "TAG")]
    locale: Option<String>,
    /// The time zone of its mails, such as `Europe/Vienna`
    #[arg(long, value_name = "ZONE")]
    time_zone: Option<String>,
    /// The URL for subscriptions that have none of their own
    #[arg(long, value_name = "URL")]
    webhook_url: Option<String>,
    /// A label of your own; may be given several times, and replaces all that there were
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    labels: Vec<(String, String)>,
    #[command(flatten)]
    retry: RetryOptions,
}

impl Fields {
    /// The tenant, and the paths of the fields that are given.
    fn tenant(self) -> (Tenant, Vec<&'static str>) {
        let retry_policy = self.retry.policy();
        let given = [
            ("display_name", self.display_name.is_some()),
            ("environment", self.environment.is_some()),
            ("account_id", self.account_id.is_some()),
            ("primary_contact", self.primary_contact.is_some()),
            ("primary_contact_exclusions", !self.primary_contact_exclusions.is_empty()),
            ("locale", self.locale.is_some()),
            ("time_zone", self.time_zone.is_some()),
            ("webhook_url", self.webhook_url.is_some()),
            ("labels", !self.labels.is_empty()),
            ("retry_policy", retry_policy.is_some()),
        ];
        let tenant = Tenant {
            display_name: self.display_name.unwrap_or_default(),
            environment: self.environment.unwrap_or_default(),
            account_id: self.account_id,
            primary_contact: self.primary_contact.unwrap_or_default(),
            primary_contact_exclusions: self.primary_contact_exclusions,
            locale: self.locale.unwrap_or_default(),
            time_zone: self.time_zone.unwrap_or_default(),
            webhook_url: self.webhook_url.unwrap_or_default(),
            labels: self.labels.into_iter().collect(),
            retry_policy,
            ..Tenant::default()
        };
        (tenant, given.into_iter().filter(|(_, given)| *given).map(|(path, _)| path).collect())
    }
}

/// The mask of an update: what is given and what is to be cleared.
///
/// # Errors
/// When that is nothing: an empty mask would mean something else.
pub fn mask(given: Vec<&'static str>, clear: Vec<String>) -> Result<Option<FieldMask>, Error> {
    if given.is_empty() && clear.is_empty() {
        return Err(Error::usage("nothing to change").hint("--help shows what can be changed"));
    }
    let paths = given.into_iter().map(str::to_owned).chain(clear).collect();
    Ok(Some(FieldMask { paths }))
}

/// Runs the command.
///
/// # Errors
/// When the service cannot be reached or refuses.
pub async fn run(args: Args) -> Result<ExitCode, Error> {
    let client = args.connection.connect().await?;
    output::ended(answer(&client, Output::new(args.output), args.command).await)
}

async fn answer(client: &Client, output: Output, command: Command) -> Result<(), Error> {
    let mut tenants = client.tenants();
    match command {
        Command::List { paging } => list(client, output, &paging).await,
        Command::Get { id } => {
            let request = GetTenantRequest { tenant_id: id };
            let response = tenants.get_tenant(request).await?.into_inner();
            output.message(&response, |output, response| show(output, response.tenant.as_ref()))
        }
        Command::Create { fields } => {
            let request = CreateTenantRequest { tenant: Some(fields.tenant().0) };
            let response = tenants.create_tenant(request).await?.into_inner();
            output.message(&response, |output, response| show(output, response.tenant.as_ref()))
        }
        Command::Update { id, fields, clear, etag } => {
            let (tenant, given) = fields.tenant();
            let update_mask = mask(given, clear)?;
            let tenant = Some(Tenant { id, etag, ..tenant });
            let request = UpdateTenantRequest { tenant, update_mask };
            let response = tenants.update_tenant(request).await?.into_inner();
            output.message(&response, |output, response| show(output, response.tenant.as_ref()))
        }
        Command::Delete { id, force, etag } => {
            let request = DeleteTenantRequest { tenant_id: id.clone(), etag, force };
            let response = tenants.delete_tenant(request).await?.into_inner();
            output.message(&response, |output, _| output.line(&format!("{id} is deleted")))
        }
    }
}

async fn list(client: &Client, output: Output, paging: &Paging) -> Result<(), Error> {
    let (tenants, next_page_token) = paging
        .collect(async |page_size, page_token| {
            let request = ListTenantsRequest { page_size, page_token };
            let page = client.tenants().list_tenants(request).await?.into_inner();
            Ok((page.tenants, page.next_page_token))
        })
        .await?;
    output.message(&ListTenantsResponse { tenants, next_page_token }, |output, page| {
        let mut table = Table::new(&["ID", "NAME", "ENVIRONMENT", "ACCOUNT", "CREATED"]);
        for tenant in &page.tenants {
            table.row([
                tenant.id.as_str().into(),
                tenant.display_name.as_str().into(),
                tenant.environment.as_str().into(),
                tenant.account_id.map(|id| id.to_string()).unwrap_or_default().into(),
                ago(tenant.create_time.as_ref()).into(),
            ]);
        }
        output.table(&table, "no tenants; `tidings tenants create` makes one")?;
        output.more(&page.next_page_token);
        Ok(())
    })
}

fn show(output: Output, tenant: Option<&Tenant>) -> Result<(), Error> {
    let tenant = tenant.ok_or_else(|| incomplete("tenant"))?;
    output.fields(&[
        ("tenant", output.paint(Style::Strong, &tenant.id)),
        ("name", table::printable(&tenant.display_name)),
        ("environment", table::printable(&tenant.environment)),
        ("account", tenant.account_id.map(|id| id.to_string()).unwrap_or_default()),
        ("primary contact", table::printable(&tenant.primary_contact)),
        ("not told of", table::printable(&tenant.primary_contact_exclusions.join(", "))),
        ("locale", table::printable(&tenant.locale)),
        ("time zone", table::printable(&tenant.time_zone)),
        ("webhook URL", table::printable(&tenant.webhook_url)),
        ("labels", labels(&tenant.labels)),
        ("retries", retry::describe(tenant.retry_policy.as_ref())),
        ("created", output.time(tenant.create_time.as_ref())),
        ("changed", output.time(tenant.update_time.as_ref())),
        ("etag", output.paint(Style::Dim, &tenant.etag)),
    ])
}
