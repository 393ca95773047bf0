//! The catalog of event types: each tenant's own, and the platform's, which every tenant sees.

use sea_orm::ActiveValue::Set;
use sea_orm::{
    ColumnTrait, Condition, EntityTrait, QueryFilter, QueryOrder, QuerySelect, TryInsertResult,
};

use crate::domain::Timestamp;
use crate::domain::event_type::{EventType, EventTypeSpec};
use crate::domain::id::TenantId;

use super::entity::event_type::{ActiveModel, Column, Entity};
use super::rows::{PLATFORM, json};
use super::{Error, Page, Store, Update};

fn owner(tenant_id: Option<TenantId>) -> String {
    tenant_id.map_or_else(|| PLATFORM.to_owned(), |id| id.to_string())
}

impl Store {
    /// Stores a new event type. [`Update::Stale`] when the name is taken.
    ///
    /// # Errors
    /// When the database does not take it.
    pub async fn create_event_type(&self, event_type: &EventType) -> Result<Update, Error> {
        let transaction = self.dialect.begin(&self.write).await?;
        let row = ActiveModel {
            tenant_id: Set(owner(event_type.tenant_id)),
            name: Set(event_type.spec.name.clone()),
            create_time: Set(event_type.create_time.as_micros()),
            ..columns(&event_type.spec, event_type.revision, event_type.update_time)?
        };
        let inserted = Entity::insert(row)
            .on_conflict_do_nothing_on([Column::TenantId, Column::Name])
            .exec_without_returning(&transaction)
            .await?;
        if !matches!(inserted, TryInsertResult::Inserted(1)) {
            return Ok(Update::Stale);
        }
        self.bump_version(&transaction, &owner(event_type.tenant_id)).await?;
        self.commit_settings(transaction).await?;
        Ok(Update::Done)
    }

    /// The event type of exactly this owner.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn event_type(
        &self,
        tenant_id: Option<TenantId>,
        name: &str,
    ) -> Result<Option<EventType>, Error> {
        let row = Entity::find_by_id((owner(tenant_id), name.to_owned())).one(&self.read).await?;
        row.map(EventType::try_from).transpose()
    }

    /// All event types of exactly this owner.
    pub(super) async fn event_types_of(
        &self,
        tenant_id: Option<TenantId>,
    ) -> Result<Vec<EventType>, Error> {
        let rows =
            Entity::find().filter(Column::TenantId.eq(owner(tenant_id))).all(&self.read).await?;
        rows.into_iter().map(EventType::try_from).collect()
    }

    /// The tenant's event types and the platform's, in order of name, the platform's first, from
    /// behind `after` (a name and whether it was the platform's). `None` lists the platform's alone.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn list_event_types(
        &self,
        tenant_id: Option<TenantId>,
        after: Option<(String, bool)>,
        size: u64,
    ) -> Result<Page<EventType>, Error> {
        let mut query =
            Entity::find().filter(Column::TenantId.is_in([PLATFORM.to_owned(), owner(tenant_id)]));
        if let Some((name, of_platform)) = after {
            let mut behind = Condition::any().add(Column::Name.gt(&name));
            if of_platform {
                behind = behind.add(
                    Condition::all().add(Column::Name.eq(&name)).add(Column::TenantId.ne(PLATFORM)),
                );
            }
            query = query.filter(behind);
        }
        let rows = query
            .order_by_asc(Column::Name)
            .order_by_asc(Column::TenantId)
            .limit(size + 1)
            .all(&self.read)
            .await?;
        let types = rows.into_iter().map(EventType::try_from).collect::<Result<_, _>>()?;
        Ok(Page::of(types, size))
    }

    /// Stores `event_type`, which was made from the revision before its own.
    ///
    /// # Errors
    /// When the database does not take it.
    pub async fn update_event_type(&self, event_type: &EventType) -> Result<Update, Error> {
        let transaction = self.dialect.begin(&self.write).await?;
        let result = Entity::update_many()
            .set(columns(&event_type.spec, event_type.revision, event_type.update_time)?)
            .filter(Column::TenantId.eq(owner(event_type.tenant_id)))
            .filter(Column::Name.eq(&event_type.spec.name))
            .filter(Column::Revision.eq(event_type.revision - 1))
            .exec(&transaction)
            .await?;
        if result.rows_affected == 0 {
            return Ok(Update::Stale);
        }
        self.bump_version(&transaction, &owner(event_type.tenant_id)).await?;
        self.commit_settings(transaction).await?;
        Ok(Update::Done)
    }

    /// Deletes an event type. `revision` is what the client saw last, when it said so.
    ///
    /// # Errors
    /// When the database does not take it.
    pub async fn delete_event_type(
        &self,
        tenant_id: Option<TenantId>,
        name: &str,
        revision: Option<i64>,
    ) -> Result<Update, Error> {
        let transaction = self.dialect.begin(&self.write).await?;
        let mut query = Entity::delete_many()
            .filter(Column::TenantId.eq(owner(tenant_id)))
            .filter(Column::Name.eq(name));
        if let Some(revision) = revision {
            query = query.filter(Column::Revision.eq(revision));
        }
        if query.exec(&transaction).await?.rows_affected == 0 {
            return Ok(Update::Stale);
        }
        self.bump_version(&transaction, &owner(tenant_id)).await?;
        self.commit_settings(transaction).await?;
        Ok(Update::Done)
    }
}

fn columns(
    spec: &EventTypeSpec,
    revision: i64,
    update_time: Timestamp,
) -> Result<ActiveModel, Error> {
    Ok(ActiveModel {
        spec: Set(json(spec)?),
        revision: Set(revision),
        update_time: Set(update_time.as_micros()),
        ..ActiveModel::default()
    })
}
