//! A tenant with a subscription by mail whose deliveries are held: no message leaves.

use rand::rngs::StdRng;
use tidings::api::proto;
use tidings::domain::channel::Channel;
use tidings::domain::id::{SubscriptionId, TenantId};
use tidings::domain::pattern::Pattern;
use tidings::domain::subscription::{State, Subscription, SubscriptionSpec};
use tidings::domain::unsubscribe::{self, Link};
use tidings::store::Store;

use super::Database;
use super::app::{App, Client};

/// The tenant, its subscription, and a way to the same database.
pub(crate) struct Mailing {
    pub(crate) store: Store,
    pub(crate) tenant: TenantId,
    pub(crate) subscription: SubscriptionId,
}

impl Mailing {
    /// On a running service's database.
    pub(crate) async fn of(app: &App, recipients: &[&str]) -> Self {
        Self::on(&app.database, &app.operator, recipients).await
    }

    pub(crate) async fn on(database: &Database, operator: &Client, recipients: &[&str]) -> Self {
        let tenant = operator.create_tenant("Acme & Söhne").await;
        let tenant = TenantId::parse(&tenant.id).expect("an id");
        let store = database.open().await;
        let now = store.now().await.expect("now");
        let email = serde_json::json!({"recipients": recipients, "template": "", "reply_to": ""});
        let id = SubscriptionId::new(now, &mut rand::make_rng::<StdRng>());
        let subscription = Subscription {
            id,
            tenant_id: tenant,
            spec: SubscriptionSpec {
                display_name: "Invoices <monthly>".into(),
                event_types: vec![Pattern::parse("billing.*").expect("a pattern")],
                channel: Channel::Email(serde_json::from_value(email).expect("settings")),
                retry_policy: None,
                labels: std::collections::BTreeMap::default(),
            },
            state: State::Paused,
            disable_reason: None,
            secrets: Vec::new(),
            unreadable: false,
            revision: 1,
            create_time: now,
            update_time: now,
        };
        store.create_subscription(&subscription).await.expect("stored");
        Self { store, tenant, subscription: id }
    }

    /// A delivery to each recipient, in the recipients' order.
    pub(crate) async fn deliveries(&self, operator: &Client) -> Vec<proto::Delivery> {
        let emitted = operator.emit(self.tenant.as_str(), "billing.paid", "{}").await;
        let mut deliveries = operator.deliveries_of(self.tenant.as_str(), &emitted.event_id).await;
        deliveries.sort_by(|one, other| one.recipient.cmp(&other.recipient));
        deliveries
    }

    /// The path of the link for a recipient of the subscription, or of the primary contact.
    pub(crate) fn path(&self, address: &str, subscription_id: Option<SubscriptionId>) -> String {
        let link = Link { tenant_id: self.tenant, subscription_id, address: address.into() };
        unsubscribe::url("", &self.store.unsubscribe_token(&link).expect("a token"))
    }

    /// Whom the tenant does not write to, as `address|subscription|reason`.
    pub(crate) async fn suppressed(&self, operator: &Client) -> Vec<String> {
        let request = proto::ListSuppressionsRequest {
            tenant_id: self.tenant.to_string(),
            ..Default::default()
        };
        let listed = operator.suppressions().list_suppressions(request).await.expect("listed");
        let shown = |it: &proto::Suppression| {
            let of = if it.subscription_id.is_empty() { "all" } else { "one" };
            let reason = it.reason().as_str_name().trim_start_matches("SUPPRESSION_REASON_");
            format!("{}|{of}|{reason}", it.address)
        };
        listed.into_inner().suppressions.iter().map(shown).collect()
    }
}
