//! `tidings keys`: what clients are let in by.
//!
//! Keys are made by the service, on behalf of an operator. The first operator key has nobody to ask:
//! `--operator` makes it in the database itself (`operator_key`).

use std::process::ExitCode;

use super::client::{Client, Connection, Paging, TenantOption, incomplete};
use super::output::{self, Cell, Output, Style, Table, ago, table, time};
use super::{Error, operator_key};
use crate::api::proto::{
    ApiKey, CreateApiKeyRequest, ListApiKeysRequest, ListApiKeysResponse, RevokeApiKeyRequest,
};
use crate::config::DatabaseFlags;
use crate::domain::Timestamp;
use crate::domain::key::Scope;

const EXAMPLES: &str = "\
Examples:
  export TIDINGS_API_KEY=$(tidings keys create --operator)
  tidings keys create --tenant ten_01k… --display-name 'order service' --scope events:emit
  tidings keys create --tenant ten_01k… --all-scopes --expires 90d
  tidings keys list --tenant ten_01k…
  tidings keys revoke key_01k… --tenant ten_01k…

`--operator` works on the database itself and needs neither a service nor a key: it makes the first \
one. The key alone is printed on standard output, once; only its hash is kept.

Scopes: events:emit events:read subscriptions:read subscriptions:write deliveries:read \
deliveries:write catalog:write, and admin, which is all of them for all tenants.";

const CREATE_EXAMPLES: &str = "\
Examples:
  export TIDINGS_API_KEY=$(tidings keys create --operator)
  tidings keys create --operator --database-url postgres://tidings@db/tidings
  tidings keys create --tenant ten_01k… --scope events:emit --display-name 'order service'
  tidings keys create --tenant ten_01k… --all-scopes --expires 90d";

/// Create and revoke API keys.
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
    /// Create a key and print it: the only time that it is shown
    #[command(after_help = CREATE_EXAMPLES)]
    Create(CreateArgs),
    /// List a tenant's keys, or without --tenant the operator keys
    List {
        #[command(flatten)]
        paging: Paging,
    },
    /// Make a key useless, for good
    Revoke {
        /// The key's id; not the key itself
        #[arg(value_name = "KEY_ID")]
        id: String,
    },
}

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("may").required(true).args(["operator", "scopes", "all_scopes"])))]
struct CreateArgs {
    /// Make an operator key in the database itself; the service need not run
    #[arg(long, conflicts_with = "expires")]
    operator: bool,
    /// Where the key is used, for people
    #[arg(
        long,
        visible_alias = "name",
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true
    )]
    display_name: String,
    /// What the key may do; may be given several times
    #[arg(long = "scope", value_name = "SCOPE", value_delimiter = ',', value_parser = scopes())]
    scopes: Vec<String>,
    /// Everything that a tenant's key can do
    #[arg(long)]
    all_scopes: bool,
    /// When it stops to work: RFC 3339, or a distance (`90d`); otherwise never
    #[arg(long, value_name = "TIME", value_parser = time::parse_future)]
    expires: Option<Timestamp>,
    #[command(flatten)]
    database: DatabaseFlags,
}

fn scopes() -> clap::builder::PossibleValuesParser {
    clap::builder::PossibleValuesParser::new(Scope::ALL.map(Scope::as_str))
}

/// Every scope that a tenant's key can have.
pub fn tenant_scopes() -> Vec<String> {
    let scopes = Scope::ALL.into_iter().filter(|scope| *scope != Scope::Admin);
    scopes.map(|scope| scope.as_str().to_owned()).collect()
}

/// Runs the command.
///
/// # Errors
/// When the service, or for `--operator` the database, cannot be reached or refuses.
pub async fn run(args: Args) -> Result<ExitCode, Error> {
    let output = Output::new(args.output);
    let tenant_id = args.tenant.id();
    let result = match args.command {
        Command::Create(create) if create.operator => {
            let created =
                operator_key::create(&create.database, &create.display_name, args.output).await;
            created.map(|_| ())
        }
        Command::Create(create_args) => {
            create(&args.connection.connect().await?, output, tenant_id, create_args).await
        }
        Command::List { paging } => {
            list(&args.connection.connect().await?, output, tenant_id, &paging).await
        }
        Command::Revoke { id } => {
            revoke(&args.connection.connect().await?, output, tenant_id, id).await
        }
    };
    output::ended(result)
}

async fn create(
    client: &Client,
    output: Output,
    tenant_id: String,
    args: CreateArgs,
) -> Result<(), Error> {
    let api_key = ApiKey {
        tenant_id,
        display_name: args.display_name,
        scopes: if args.all_scopes { tenant_scopes() } else { args.scopes },
        expire_time: args.expires.map(time::to_proto),
        ..ApiKey::default()
    };
    let request = CreateApiKeyRequest { api_key: Some(api_key) };
    let response = client.tenants().create_api_key(request).await?.into_inner();
    output.message(&response, |output, response| {
        let key = response.api_key.as_ref().ok_or_else(|| incomplete("key"))?;
        output.line(&response.secret)?;
        let scopes = key.scopes.join(" ");
        output.note(&format!("{} may: {scopes}. It is shown only this once.", key.id));
        Ok(())
    })
}

async fn list(
    client: &Client,
    output: Output,
    tenant_id: String,
    paging: &Paging,
) -> Result<(), Error> {
    let (api_keys, next_page_token) = paging
        .collect(async |page_size, page_token| {
            let request =
                ListApiKeysRequest { tenant_id: tenant_id.clone(), page_size, page_token };
            let page = client.tenants().list_api_keys(request).await?.into_inner();
            Ok((page.api_keys, page.next_page_token))
        })
        .await?;
    output.message(&ListApiKeysResponse { api_keys, next_page_token }, |output, page| {
        let mut table = Table::new(&["ID", "BEGINS", "NAME", "STATE", "LAST USED", "SCOPES"]);
        for key in &page.api_keys {
            table.row([
                key.id.as_str().into(),
                format!("{}…", key.prefix).into(),
                key.display_name.as_str().into(),
                state(key),
                ago(key.last_use_time.as_ref()).into(),
                Cell::new(key.scopes.join(" "), Style::Dim),
            ]);
        }
        output.table(&table, "no keys; `tidings keys create` makes one")?;
        output.more(&page.next_page_token);
        Ok(())
    })
}

async fn revoke(
    client: &Client,
    output: Output,
    tenant_id: String,
    api_key_id: String,
) -> Result<(), Error> {
    let request = RevokeApiKeyRequest { tenant_id, api_key_id };
    let response = client.tenants().revoke_api_key(request).await?.into_inner();
    output.message(&response, |output, response| {
        let key = response.api_key.as_ref().ok_or_else(|| incomplete("key"))?;
        let name = table::printable(&key.display_name);
        output.line(&format!("{} {name} is revoked", key.id))
    })
}

fn state(key: &ApiKey) -> Cell {
    let expiry = key.expire_time.as_ref().map(time::from_proto);
    match (&key.revoke_time, expiry) {
        (Some(_), _) => Cell::new("revoked", Style::Error),
        (None, Some(expiry)) if expiry <= time::now() => Cell::new("expired", Style::Error),
        (None, Some(expiry)) => {
            let left = time::relative(expiry, time::now());
            Cell::new(format!("expires {left}"), Style::Pending)
        }
        (None, None) => Cell::new("valid", Style::Good),
    }
}
