//! Subscriptions. Every change tells the caches, in the same transaction.

use sea_orm::ActiveValue::{NotSet, Set};
use sea_orm::sea_query::Expr;
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect};

use crate::domain::Timestamp;
use crate::domain::id::{SubscriptionId, TenantId};
use crate::domain::subscription::{State, Subscription};

use super::entity::subscription::{ActiveModel, Column, Entity};
use super::rows::{disable_code, json, state_code};
use super::{Error, Page, Store, Update};

impl Store {
    /// Stores a new subscription.
    ///
    /// # Errors
    /// When the database does not take it.
    pub async fn create_subscription(&self, subscription: &Subscription) -> Result<(), Error> {
        let columns = self.columns_of(subscription).await?;
        let transaction = self.dialect.begin(&self.write).await?;
        let row = ActiveModel {
            tenant_id: Set(subscription.tenant_id.to_string()),
            id: Set(subscription.id.to_string()),
            create_time: Set(subscription.create_time.as_micros()),
            settled: Set(1),
            delete_time: Set(None),
            // What versions before the sealed columns stored here.
            secrets: Set("[]".into()),
            ..columns
        };
        Entity::insert(row).exec_without_returning(&transaction).await?;
        self.bump_version(&transaction, subscription.tenant_id.as_str()).await?;
        self.commit_settings(transaction).await?;
        Ok(())
    }

    /// The subscription, when the tenant has it.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn subscription(
        &self,
        tenant_id: TenantId,
        id: SubscriptionId,
    ) -> Result<Option<Subscription>, Error> {
        let row = Entity::find_by_id((tenant_id.to_string(), id.to_string()))
            .filter(Column::DeleteTime.is_null())
            .one(&self.read)
            .await?;
        Ok(self.open_subscriptions(row.into_iter().collect()).await?.pop())
    }

    /// All subscriptions of a tenant.
    pub(super) async fn subscriptions_of(
        &self,
        tenant_id: TenantId,
    ) -> Result<Vec<Subscription>, Error> {
        let rows = Entity::find()
            .filter(Column::TenantId.eq(tenant_id.as_str()))
            .filter(Column::DeleteTime.is_null())
            .order_by_asc(Column::Id)
            .all(&self.read)
            .await?;
        self.open_subscriptions(rows).await
    }

    /// The tenant's subscriptions in order of their ids, from behind `after`, in any of `states`
    /// (all when empty).
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn list_subscriptions(
        &self,
        tenant_id: TenantId,
        states: &[State],
        after: Option<SubscriptionId>,
        size: u64,
    ) -> Result<Page<Subscription>, Error> {
        let mut query = Entity::find()
            .filter(Column::TenantId.eq(tenant_id.as_str()))
            .filter(Column::DeleteTime.is_null());
        if !states.is_empty() {
            query =
                query.filter(Column::State.is_in(states.iter().map(|state| state_code(*state))));
        }
        if let Some(after) = after {
            query = query.filter(Column::Id.gt(after.as_str()));
        }
        let rows = query.order_by_asc(Column::Id).limit(size + 1).all(&self.read).await?;
        Ok(Page::of(self.open_subscriptions(rows).await?, size))
    }

    /// Stores `subscription`, which was made from the revision before its own. Deliveries follow a
    /// change of its state when the janitor has settled it.
    ///
    /// # Errors
    /// When the database does not take it.
    pub async fn update_subscription(&self, subscription: &Subscription) -> Result<Update, Error> {
        let columns = self.columns_of(subscription).await?;
        let transaction = self.dialect.begin(&self.write).await?;
        let row = ActiveModel { settled: Set(0), ..columns };
        let result = Entity::update_many()
            .set(row)
            .filter(Column::TenantId.eq(subscription.tenant_id.as_str()))
            .filter(Column::Id.eq(subscription.id.as_str()))
            .filter(Column::Revision.eq(subscription.revision - 1))
            .filter(Column::DeleteTime.is_null())
            .exec(&transaction)
            .await?;
        if result.rows_affected == 0 {
            return Ok(Update::Stale);
        }
        self.bump_version(&transaction, subscription.tenant_id.as_str()).await?;
        self.commit_settings(transaction).await?;
        Ok(Update::Done)
    }

    /// Deletes the subscription for everybody at once; the janitor cancels what was still to be
    /// delivered. `revision` is what the client saw last, when it said so.
    ///
    /// # Errors
    /// When the database does not take it.
    pub async fn delete_subscription(
        &self,
        tenant_id: TenantId,
        id: SubscriptionId,
        revision: Option<i64>,
        now: Timestamp,
    ) -> Result<Update, Error> {
        let transaction = self.dialect.begin(&self.write).await?;
        let mut query = Entity::update_many()
            .col_expr(Column::DeleteTime, Expr::value(now.as_micros()))
            .col_expr(Column::Settled, Expr::value(0_i16))
            // The secrets are of no more use; they need not outlive the subscription.
            .col_expr(Column::Sealed, Expr::value(Vec::<u8>::new()))
            .filter(Column::TenantId.eq(tenant_id.as_str()))
            .filter(Column::Id.eq(id.as_str()))
            .filter(Column::DeleteTime.is_null());
        if let Some(revision) = revision {
            query = query.filter(Column::Revision.eq(revision));
        }
        if query.exec(&transaction).await?.rows_affected == 0 {
            return Ok(Update::Stale);
        }
        self.bump_version(&transaction, tenant_id.as_str()).await?;
        self.commit_settings(transaction).await?;
        Ok(Update::Done)
    }

    /// The columns that an administrator changes. What is sealed in an unreadable subscription stays
    /// as it is: it may yet be restored.
    async fn columns_of(&self, subscription: &Subscription) -> Result<ActiveModel, Error> {
        let spec = &subscription.spec;
        let (tenant_id, id) = (subscription.tenant_id.as_str(), subscription.id.as_str());
        let (channel, sealed) = if subscription.unreadable {
            (json(&spec.channel)?, NotSet)
        } else {
            let secrets = &subscription.secrets;
            let (channel, sealed) =
                self.vault.seal_subscription(tenant_id, id, &spec.channel, secrets).await?;
            (channel, Set(Some(sealed)))
        };
        Ok(ActiveModel {
            display_name: Set(spec.display_name.clone()),
            event_types: Set(json(&spec.event_types)?),
            channel: Set(channel),
            retry_policy: Set(spec.retry_policy.as_ref().map(json).transpose()?),
            labels: Set(json(&spec.labels)?),
            sealed,
            state: Set(state_code(subscription.state)),
            disable_reason: Set(subscription.disable_reason.map(disable_code)),
            revision: Set(subscription.revision),
            update_time: Set(subscription.update_time.as_micros()),
            ..ActiveModel::default()
        })
    }
}
