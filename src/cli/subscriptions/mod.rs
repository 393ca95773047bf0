//! `tidings subscriptions`: who is told of what, and where.

mod fields;
mod preview;
pub mod retry;
mod show;

use std::process::ExitCode;
use std::time::Duration;

use fields::Fields;
pub(crate) use fields::read_template;

use super::Error;
use super::attempt;
use super::client::{Client, Connection, Paging, TenantOption, incomplete};
use super::output::{self, Output, Style, names, time};
use super::tenants::mask;
use crate::api::proto::{
    CreateSubscriptionRequest, DeleteSubscriptionRequest, GetSubscriptionRequest,
    GetSubscriptionStatsRequest, ListSubscriptionsRequest, ListSubscriptionsResponse,
    PauseSubscriptionRequest, ResumeSubscriptionRequest, RotateSecretRequest, Subscription,
    SubscriptionState, TestSubscriptionRequest, UpdateSubscriptionRequest,
};

const EXAMPLES: &str = "\
Examples:
  tidings subscriptions create --url https://hooks.company.com/tidings --event-type 'billing.*'
  tidings subscriptions create --url https://old.company.com/hook -t run_failed \\
      --format flat --signature hmac-sha256-hex --max-retries 0
  tidings subscriptions test sub_01k…           sends a signed ping and shows what came back
  tidings subscriptions list --state disabled
  tidings subscriptions update sub_01k… --timeout 5s --retry-schedule 10s,1m,10m
  tidings subscriptions rotate-secret sub_01k… --overlap 48h      also `rotate`
  tidings subscriptions pause sub_01k…          keeps deliveries; `resume` sends them
  tidings subscriptions stats sub_01k… --window 7d
  tidings subscriptions create --email ops@company.com -t 'billing.*'
  tidings subscriptions preview --template paid.j2 --data '{\"amount\":1}' --html > paid.html

The signing secret is printed when it is made, and never again. `tidings listen --secret …` is a \
receiver that verifies it.";

const CREATE_EXAMPLES: &str = "\
Examples:
  tidings subscriptions create --url https://hooks.company.com/tidings -t 'user.*' -t run_failed
  tidings subscriptions create --url http://127.0.0.1:9000/ -t '*' --retry-schedule 1s,5s,30s
  tidings subscriptions create -t '*'           to the tenant's own webhook URL
  tidings subscriptions create --url https://old.company.com/hook?token=… -t run_failed \\
      --format flat --signature none --max-retries 0 --header 'X-Team: ops'

  tidings subscriptions create --url https://hooks.company.com/tidings -t '*' \
      --signature standard-webhooks,standard-webhooks-ed25519,github,stripe
  tidings subscriptions create --url https://bus.company.com/events -t '*' --format cloudevents-binary

Receivers check the signature with a library of https://www.standardwebhooks.com, or compare \
X-Signature with the hex HMAC-SHA256 of the body. With standard-webhooks-ed25519 they need only the \
public key, which `tidings subscriptions show` prints. `docs/webhooks.md` is written for them.";

const ROTATE_EXAMPLES: &str = "\
Examples:
  tidings subscriptions rotate-secret sub_01k…               both secrets are valid for 24 hours
  tidings subscriptions rotate-secret sub_01k… --overlap 72h
  tidings subscriptions rotate-secret sub_01k… --overlap 0s  the old one has leaked: it ends now
  tidings subscriptions rotate-secret sub_01k… --secret whsec_… --overlap 0s
                                 all receivers know this new secret: end the overlap early

While both are valid, standard-webhooks, standard-webhooks-ed25519 and stripe carry a signature by \
each. hmac-sha256-hex and github can carry one alone: by the old secret, until the overlap ends. \
Receivers of those must accept both before then.";

/// Create and manage subscriptions.
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

/// Which subscription.
#[derive(Debug, clap::Args)]
struct Id {
    /// The subscription
    #[arg(value_name = "SUBSCRIPTION_ID")]
    id: String,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List subscriptions, the oldest first
    List {
        /// Only those in this state; may be given several times
        #[arg(long = "state", value_delimiter = ',',
            value_parser = names::parser::<SubscriptionState>(names::SUBSCRIPTION_STATES))]
        states: Vec<SubscriptionState>,
        #[command(flatten)]
        paging: Paging,
    },
    /// Show one subscription
    #[command(visible_alias = "show")]
    Get(Id),
    /// Create a subscription and print its signing secret
    #[command(after_help = CREATE_EXAMPLES)]
    Create {
        #[command(flatten)]
        fields: Box<Fields>,
        /// A signing secret of your own; otherwise one is made
        #[arg(long, value_name = "SECRET", default_value = "", hide_default_value = true,
            conflicts_with_all = fields::OF_MAIL)]
        secret: String,
    },
    /// Change what is given, and leave the rest; the defaults below are those of `create`
    Update {
        #[command(flatten)]
        id: Id,
        #[command(flatten)]
        fields: Box<Fields>,
        /// Empty this field, such as `retry_policy` or `webhook.headers`
        #[arg(long, value_name = "FIELD")]
        clear: Vec<String>,
        /// Only if nobody has changed it since it had this etag
        #[arg(long, value_name = "ETAG", default_value = "", hide_default_value = true)]
        etag: String,
    },
    /// Delete a subscription; deliveries that have not ended are canceled
    Delete {
        #[command(flatten)]
        id: Id,
        /// Only if nobody has changed it since it had this etag
        #[arg(long, value_name = "ETAG", default_value = "", hide_default_value = true)]
        etag: String,
    },
    /// Stop delivering; what waits and what comes is kept
    Pause(Id),
    /// Deliver again, beginning with what was kept
    Resume(Id),
    /// Replace the signing secret and its Ed25519 key, and print what is new
    #[command(visible_alias = "rotate", after_help = ROTATE_EXAMPLES)]
    RotateSecret {
        #[command(flatten)]
        id: Id,
        /// A signing secret of your own; otherwise one is made
        #[arg(long, value_name = "SECRET", default_value = "", hide_default_value = true)]
        secret: String,
        /// For how long the old one stays valid beside it: 0s to 7d [default: 24h]
        #[arg(long, value_name = "DURATION", value_parser = time::parse_duration)]
        overlap: Option<Duration>,
    },
    /// Send a signed `tidings.ping` now and show what came back
    Test {
        #[command(flatten)]
        id: Id,
        /// Also show the headers that were sent and received
        #[arg(long)]
        headers: bool,
    },
    /// Show the mail that an event would make, without sending it
    Preview(preview::Preview),
    /// Show how a subscription fared
    Stats {
        #[command(flatten)]
        id: Id,
        /// How far to look back [default: 24h]
        #[arg(long, value_name = "DURATION", value_parser = time::parse_duration)]
        window: Option<Duration>,
    },
}

/// Runs the command.
///
/// # Errors
/// When the service cannot be reached or refuses, or a test fails.
pub async fn run(args: Args) -> Result<ExitCode, Error> {
    let client = args.connection.connect().await?;
    let output = Output::new(args.output);
    let session = Session { client, output, tenant_id: args.tenant.id() };
    output::ended(match args.command {
        Command::List { states, paging } => session.list(states, &paging).await,
        Command::Get(Id { id }) => session.get(id).await,
        Command::Create { fields, secret } => session.create(*fields, secret).await,
        Command::Update { id: Id { id }, fields, clear, etag } => {
            session.update(id, *fields, clear, etag).await
        }
        Command::Delete { id: Id { id }, etag } => session.delete(id, etag).await,
        Command::Pause(Id { id }) => session.pause(id).await,
        Command::Resume(Id { id }) => session.resume(id).await,
        Command::RotateSecret { id: Id { id }, secret, overlap } => {
            session.rotate_secret(id, secret, overlap).await
        }
        Command::Test { id: Id { id }, headers } => session.test(id, headers).await,
        Command::Preview(preview) => session.preview(preview).await,
        Command::Stats { id: Id { id }, window } => session.stats(id, window).await,
    })
}

/// Whom to ask, for whom, and where the answer goes.
struct Session {
    client: Client,
    output: Output,
    tenant_id: String,
}

impl Session {
    async fn list(self, states: Vec<SubscriptionState>, paging: &Paging) -> Result<(), Error> {
        let states = states.into_iter().map(i32::from).collect();
        let tenant_id = self.tenant_id;
        let request =
            ListSubscriptionsRequest { tenant_id, states, ..ListSubscriptionsRequest::default() };
        let (subscriptions, next_page_token) = paging
            .collect(async |page_size, page_token| {
                let request = ListSubscriptionsRequest { page_size, page_token, ..request.clone() };
                let mut client = self.client.subscriptions();
                let page = client.list_subscriptions(request).await?.into_inner();
                Ok((page.subscriptions, page.next_page_token))
            })
            .await?;
        let page = ListSubscriptionsResponse { subscriptions, next_page_token };
        self.output.message(&page, |output, page| {
            let table = show::table(&page.subscriptions);
            output.table(&table, "no subscriptions; `tidings subscriptions create` makes one")?;
            output.more(&page.next_page_token);
            Ok(())
        })
    }

    async fn get(self, subscription_id: String) -> Result<(), Error> {
        let request = GetSubscriptionRequest { tenant_id: self.tenant_id, subscription_id };
        let response = self.client.subscriptions().get_subscription(request).await?.into_inner();
        self.output.message(&response, |output, r| shown(output, r.subscription.as_ref()))
    }

    async fn create(self, fields: Fields, signing_secret: String) -> Result<(), Error> {
        let (subscription, _) = fields.subscription();
        let subscription = Some(Subscription { tenant_id: self.tenant_id, ..subscription });
        let request = CreateSubscriptionRequest { subscription, signing_secret };
        let response = self.client.subscriptions().create_subscription(request).await?.into_inner();
        self.output.message(&response, |output, r| {
            shown(output, r.subscription.as_ref())?;
            show_secret(output, &r.signing_secret)?;
            show_public_key(output, &r.signing_public_key)?;
            for warning in &r.warnings {
                output.note(&format!("warning: {warning}"));
            }
            Ok(())
        })
    }

    async fn update(
        self,
        id: String,
        fields: Fields,
        clear: Vec<String>,
        etag: String,
    ) -> Result<(), Error> {
        let (subscription, given) = fields.subscription();
        let update_mask = mask(given, clear)?;
        let tenant_id = self.tenant_id;
        let subscription = Some(Subscription { id, tenant_id, etag, ..subscription });
        let request = UpdateSubscriptionRequest { subscription, update_mask };
        let response = self.client.subscriptions().update_subscription(request).await?.into_inner();
        self.output.message(&response, |output, r| shown(output, r.subscription.as_ref()))
    }

    async fn delete(self, id: String, etag: String) -> Result<(), Error> {
        let tenant_id = self.tenant_id;
        let request = DeleteSubscriptionRequest { tenant_id, subscription_id: id.clone(), etag };
        let response = self.client.subscriptions().delete_subscription(request).await?.into_inner();
        self.output.message(&response, |output, _| output.line(&format!("{id} is deleted")))
    }

    async fn pause(self, subscription_id: String) -> Result<(), Error> {
        let request = PauseSubscriptionRequest { tenant_id: self.tenant_id, subscription_id };
        let response = self.client.subscriptions().pause_subscription(request).await?.into_inner();
        self.output.message(&response, |output, r| shown(output, r.subscription.as_ref()))
    }

    async fn resume(self, subscription_id: String) -> Result<(), Error> {
        let request = ResumeSubscriptionRequest { tenant_id: self.tenant_id, subscription_id };
        let response = self.client.subscriptions().resume_subscription(request).await?.into_inner();
        self.output.message(&response, |output, r| shown(output, r.subscription.as_ref()))
    }

    async fn rotate_secret(
        self,
        subscription_id: String,
        signing_secret: String,
        overlap: Option<Duration>,
    ) -> Result<(), Error> {
        let overlap = overlap.map(time::duration_to_proto);
        let tenant_id = self.tenant_id;
        let request = RotateSecretRequest { tenant_id, subscription_id, signing_secret, overlap };
        let response = self.client.subscriptions().rotate_secret(request).await?.into_inner();
        self.output.message(&response, |output, r| {
            show_secret(output, &r.signing_secret)?;
            show_public_key(output, &r.signing_public_key)?;
            match output.time(r.previous_expire_time.as_ref()) {
                end if end.is_empty() => output.line("The replaced secret is no longer valid."),
                end => output.line(&format!("The replaced secret stops to be valid {end}.")),
            }
        })
    }

    async fn test(self, subscription_id: String, headers: bool) -> Result<(), Error> {
        let request = TestSubscriptionRequest { tenant_id: self.tenant_id, subscription_id };
        let response = self.client.subscriptions().test_subscription(request).await?.into_inner();
        let attempt = response.attempt.clone().ok_or_else(|| incomplete("attempt"))?;
        self.output.message(&response, |output, _| attempt::show(output, &attempt, headers))?;
        attempt::succeeded(&attempt)
    }

    async fn stats(self, subscription_id: String, window: Option<Duration>) -> Result<(), Error> {
        let window = window.map(time::duration_to_proto);
        let tenant_id = self.tenant_id;
        let request = GetSubscriptionStatsRequest { tenant_id, subscription_id, window };
        let mut client = self.client.subscriptions();
        let response = client.get_subscription_stats(request).await?.into_inner();
        self.output.message(&response, |output, r| {
            show::stats(output, r.stats.as_ref().ok_or_else(|| incomplete("statistics"))?)
        })
    }
}

fn shown(output: Output, subscription: Option<&Subscription>) -> Result<(), Error> {
    show::subscription(output, subscription.ok_or_else(|| incomplete("subscription"))?)
}

fn show_secret(output: Output, secret: &str) -> Result<(), Error> {
    if secret.is_empty() {
        return Ok(());
    }
    output.line("")?;
    output.line(&format!("Signing secret: {}", output.paint(Style::Accent, secret)))?;
    output.note("Keep it: it is not shown again.");
    Ok(())
}

fn show_public_key(output: Output, key: &str) -> Result<(), Error> {
    if key.is_empty() {
        return Ok(());
    }
    output.line(&format!("Public key:     {}", output.paint(Style::Accent, key)))
}
