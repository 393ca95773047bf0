//! API keys. Only hashes are stored.

use sea_orm::ActiveValue::Set;
use sea_orm::sea_query::Expr;
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect};

use crate::domain::Timestamp;
use crate::domain::id::{KeyId, TenantId};
use crate::domain::key::{ApiKey, Scope};

use super::entity::api_key::{ActiveModel, Column, Entity};
use super::rows::PLATFORM;
use super::{Error, Page, Store};

fn owner(tenant_id: Option<TenantId>) -> String {
    tenant_id.map_or_else(|| PLATFORM.to_owned(), |id| id.to_string())
}

impl Store {
    /// Stores a new key under the hash of its text.
    ///
    /// # Errors
    /// When the database does not take it.
    pub async fn create_key(&self, key: &ApiKey, hash: [u8; 32]) -> Result<(), Error> {
        let scopes: Vec<_> = key.scopes.iter().map(|scope| Scope::as_str(*scope)).collect();
        let row = ActiveModel {
            tenant_id: Set(owner(key.tenant_id)),
            id: Set(key.id.to_string()),
            hash: Set(hash.to_vec()),
            display_name: Set(key.display_name.clone()),
            prefix: Set(key.prefix.clone()),
            scopes: Set(scopes.join(" ")),
            create_time: Set(key.create_time.as_micros()),
            expire_time: Set(key.expire_time.map(Timestamp::as_micros)),
            revoke_time: Set(None),
            last_use_time: Set(None),
        };
        Entity::insert(row).exec_without_returning(&self.write).await?;
        Ok(())
    }

    /// The key whose text has this hash.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn key_by_hash(&self, hash: [u8; 32]) -> Result<Option<ApiKey>, Error> {
        let row = Entity::find().filter(Column::Hash.eq(hash.to_vec())).one(&self.read).await?;
        row.map(ApiKey::try_from).transpose()
    }

    /// The keys of a tenant, or those of operators, in order of their ids from behind `after`.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn list_keys(
        &self,
        tenant_id: Option<TenantId>,
        after: Option<KeyId>,
        size: u64,
    ) -> Result<Page<ApiKey>, Error> {
        let mut query = Entity::find().filter(Column::TenantId.eq(owner(tenant_id)));
        if let Some(after) = after {
            query = query.filter(Column::Id.gt(after.as_str()));
        }
        let rows = query.order_by_asc(Column::Id).limit(size + 1).all(&self.read).await?;
        let keys = rows.into_iter().map(ApiKey::try_from).collect::<Result<_, _>>()?;
        Ok(Page::of(keys, size))
    }

    /// Revokes a key and returns it; revoking twice keeps the first time.
    ///
    /// # Errors
    /// When the database does not take it.
    pub async fn revoke_key(
        &self,
        tenant_id: Option<TenantId>,
        id: KeyId,
        now: Timestamp,
    ) -> Result<Option<ApiKey>, Error> {
        let key = (owner(tenant_id), id.to_string());
        Entity::update_many()
            .col_expr(Column::RevokeTime, Expr::value(now.as_micros()))
            .filter(Column::TenantId.eq(&key.0))
            .filter(Column::Id.eq(&key.1))
            .filter(Column::RevokeTime.is_null())
            .exec(&self.write)
            .await?;
        Entity::find_by_id(key).one(&self.write).await?.map(ApiKey::try_from).transpose()
    }

    /// Notes that a key was used.
    ///
    /// # Errors
    /// When the database does not take it.
    pub async fn touch_key(
        &self,
        tenant_id: Option<TenantId>,
        id: KeyId,
        now: Timestamp,
    ) -> Result<(), Error> {
        Entity::update_many()
            .col_expr(Column::LastUseTime, Expr::value(now.as_micros()))
            .filter(Column::TenantId.eq(owner(tenant_id)))
            .filter(Column::Id.eq(id.as_str()))
            .exec(&self.write)
            .await?;
        Ok(())
    }
}
