//! Reading events.

use sea_orm::{ColumnTrait, Condition, EntityTrait, QueryFilter, QueryOrder, QuerySelect};

use crate::domain::Timestamp;
use crate::domain::event::Event;
use crate::domain::id::{EventId, TenantId};
use crate::domain::pattern::Pattern;

use super::entity::event::{Column, Entity};
use super::{Error, Page, Store};

/// Which events to list; empty fields choose all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EventFilter {
    /// Any of these types.
    pub event_types: Vec<Pattern>,
    /// Exactly this subject.
    pub subject: String,
    /// Accepted at this instant or later.
    pub create_time_from: Option<Timestamp>,
    /// Accepted before this instant.
    pub create_time_until: Option<Timestamp>,
}

impl Store {
    /// The event, when the tenant has it.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn event(&self, tenant_id: TenantId, id: EventId) -> Result<Option<Event>, Error> {
        let row =
            Entity::find_by_id((tenant_id.to_string(), id.to_string())).one(&self.read).await?;
        row.map(Event::try_from).transpose()
    }

    /// The tenant's events, the newest first, from before `before`.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn list_events(
        &self,
        tenant_id: TenantId,
        filter: &EventFilter,
        before: Option<EventId>,
        size: u64,
    ) -> Result<Page<Event>, Error> {
        let mut query = Entity::find().filter(Column::TenantId.eq(tenant_id.as_str()));
        if !filter.event_types.is_empty() {
            query = query.filter(any_pattern(Column::Type, &filter.event_types));
        }
        if !filter.subject.is_empty() {
            query = query.filter(Column::Subject.eq(&filter.subject));
        }
        // Ids carry the time of their making, so a range of times is a range of ids.
        if let Some(from) = filter.create_time_from {
            query = query
                .filter(Column::Id.gte(EventId::first_at(from).as_str()))
                .filter(Column::CreateTime.gte(from.as_micros()));
        }
        if let Some(until) = filter.create_time_until {
            query = query.filter(Column::CreateTime.lt(until.as_micros()));
        }
        if let Some(before) = before {
            query = query.filter(Column::Id.lt(before.as_str()));
        }
        let rows = query.order_by_desc(Column::Id).limit(size + 1).all(&self.read).await?;
        let events = rows.into_iter().map(Event::try_from).collect::<Result<_, _>>()?;
        Ok(Page::of(events, size))
    }
}

/// A column that matches any of the patterns, in ranges that an index can serve.
pub(super) fn any_pattern<C: ColumnTrait>(column: C, patterns: &[Pattern]) -> Condition {
    patterns.iter().fold(Condition::any(), |any, pattern| {
        match pattern.as_str().strip_suffix('*') {
            None => any.add(column.eq(pattern.as_str())),
            Some("") => any.add(column.is_not_null()),
            // 'a.' <= name < 'a/': '/' follows '.' in ASCII, so this is the range of names below a.
            Some(prefix) => {
                let end = format!("{}/", prefix.trim_end_matches('.'));
                any.add(Condition::all().add(column.gt(prefix)).add(column.lt(end)))
            }
        }
    })
}
