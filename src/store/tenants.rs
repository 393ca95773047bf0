//! Tenants, and the versions by which caches know that something changed.

use sea_orm::sea_query::Expr;
use sea_orm::{
    ActiveValue::{NotSet, Set},
    ColumnTrait, ConnectionTrait, DatabaseTransaction, EntityTrait, QueryFilter, QueryOrder,
    QuerySelect,
};

use crate::domain::Timestamp;
use crate::domain::id::TenantId;
use crate::domain::tenant::Tenant;

use super::entity::tenant::{ActiveModel, Column, Entity};
use super::rows::json;
use super::{Error, Page, Store, Update, bulk};

impl Store {
    /// Stores a new tenant.
    ///
    /// # Errors
    /// When the database does not take it.
    pub async fn create_tenant(&self, tenant: &Tenant) -> Result<(), Error> {
        let columns = self.columns_of_tenant(tenant).await?;
        let transaction = self.dialect.begin(&self.write).await?;
        let row = ActiveModel {
            id: Set(tenant.id.to_string()),
            create_time: Set(tenant.create_time.as_micros()),
            delete_time: Set(None),
            // What versions before the sealed column stored here.
            webhook_url: Set(String::new()),
            ..columns
        };
        Entity::insert(row).exec_without_returning(&transaction).await?;
        let id = tenant.id.to_string();
        for sql in [
            "INSERT INTO tenant_config (tenant_id, version) VALUES ($1, 1)",
            "INSERT INTO feed_heads (tenant_id, position, floor) VALUES ($1, 0, 0)",
        ] {
            transaction.execute_raw(self.dialect.statement(sql, vec![bulk::text(&id)])).await?;
        }
        self.commit_settings(transaction).await?;
        Ok(())
    }

    /// The tenant, when there is one.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn tenant(&self, id: TenantId) -> Result<Option<Tenant>, Error> {
        let row = Entity::find_by_id(id.to_string())
            .filter(Column::DeleteTime.is_null())
            .one(&self.read)
            .await?;
        Ok(self.open_tenants(row.into_iter().collect()).await?.pop())
    }

    /// Whether there is such a tenant: cheaper than [`Store::tenant`], nothing is opened for it.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn has_tenant(&self, id: TenantId) -> Result<bool, Error> {
        let sql = "SELECT 1 FROM tenants WHERE id = $1 AND delete_time IS NULL";
        let statement = self.dialect.statement(sql, vec![bulk::text(id.as_str())]);
        Ok(self.read.query_one_raw(statement).await?.is_some())
    }

    /// Tenants in order of their ids, from behind `after`.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn list_tenants(
        &self,
        after: Option<TenantId>,
        size: u64,
    ) -> Result<Page<Tenant>, Error> {
        let mut query = Entity::find().filter(Column::DeleteTime.is_null());
        if let Some(after) = after {
            query = query.filter(Column::Id.gt(after.as_str()));
        }
        let rows = query.order_by_asc(Column::Id).limit(size + 1).all(&self.read).await?;
        Ok(Page::of(self.open_tenants(rows).await?, size))
    }

    /// Stores `tenant`, which was made from the revision before its own.
    ///
    /// # Errors
    /// When the database does not take it.
    pub async fn update_tenant(&self, tenant: &Tenant) -> Result<Update, Error> {
        let columns = self.columns_of_tenant(tenant).await?;
        let transaction = self.dialect.begin(&self.write).await?;
        let result = Entity::update_many()
            .set(columns)
            .filter(Column::Id.eq(tenant.id.as_str()))
            .filter(Column::Revision.eq(tenant.revision - 1))
            .filter(Column::DeleteTime.is_null())
            .exec(&transaction)
            .await?;
        if result.rows_affected == 0 {
            return Ok(Update::Stale);
        }
        self.bump_version(&transaction, tenant.id.as_str()).await?;
        self.commit_settings(transaction).await?;
        Ok(Update::Done)
    }

    /// Deletes the tenant for everybody at once; the janitor removes what it owned.
    /// `revision` is what the client saw last, when it said so.
    ///
    /// # Errors
    /// When the database does not take it.
    pub async fn delete_tenant(
        &self,
        id: TenantId,
        revision: Option<i64>,
        now: Timestamp,
    ) -> Result<Update, Error> {
        let transaction = self.dialect.begin(&self.write).await?;
        let mut query = Entity::update_many()
            .col_expr(Column::DeleteTime, Expr::value(now.as_micros()))
            // Of no more use: it need not outlive the tenant.
            .col_expr(Column::Sealed, Expr::value(Vec::<u8>::new()))
            .filter(Column::Id.eq(id.as_str()))
            .filter(Column::DeleteTime.is_null());
        if let Some(revision) = revision {
            query = query.filter(Column::Revision.eq(revision));
        }
        if query.exec(&transaction).await?.rows_affected == 0 {
            return Ok(Update::Stale);
        }
        // Without its version the tenant is unknown to every Emit from now on.
        for sql in [
            "DELETE FROM tenant_config WHERE tenant_id = $1",
            "DELETE FROM api_keys WHERE tenant_id = $1",
        ] {
            transaction
                .execute_raw(self.dialect.statement(sql, vec![bulk::text(id.as_str())]))
                .await?;
        }
        self.commit_settings(transaction).await?;
        Ok(Update::Done)
    }

    /// Tells every cache of the tenant's settings that it is out of date.
    pub(super) async fn bump_version(
        &self,
        transaction: &DatabaseTransaction,
        tenant_id: &str,
    ) -> Result<(), Error> {
        let sql = "UPDATE tenant_config SET version = version + 1 WHERE tenant_id = $1";
        transaction.execute_raw(self.dialect.statement(sql, vec![bulk::text(tenant_id)])).await?;
        Ok(())
    }

    /// The columns that an operator changes. What is sealed in an unreadable tenant stays as it is:
    /// it may yet be restored.
    async fn columns_of_tenant(&self, tenant: &Tenant) -> Result<ActiveModel, Error> {
        let spec = &tenant.spec;
        let sealed = if tenant.unreadable {
            NotSet
        } else {
            Set(Some(self.vault.seal_tenant(tenant.id.as_str(), &spec.webhook_url).await?))
        };
        Ok(ActiveModel {
            display_name: Set(spec.display_name.clone()),
            environment: Set(spec.environment.clone()),
            account_id: Set(spec.account_id),
            primary_contact: Set(spec.primary_contact.clone()),
            primary_contact_off: Set(json(&spec.primary_contact_off)?),
            locale: Set(spec.locale.clone()),
            time_zone: Set(spec.time_zone.clone()),
            labels: Set(json(&spec.labels)?),
            retry_policy: Set(spec.retry_policy.as_ref().map(json).transpose()?),
            sealed,
            revision: Set(tenant.revision),
            update_time: Set(tenant.update_time.as_micros()),
            ..ActiveModel::default()
        })
    }
}
