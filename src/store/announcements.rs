//! The service's own events on their way to being emitted: written in the transaction of the change
//! that they tell of, so that neither is there without the other.

use bytes::Bytes;
use sea_orm::{ConnectionTrait, DatabaseTransaction};

use crate::domain::Timestamp;
use crate::domain::id::TenantId;

use super::bulk::{bigint, bytes, text};
use super::{Error, Store};

/// An event of the service itself that is to be emitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// Whose event it is.
    pub tenant_id: TenantId,
    /// Names it among the tenant's: the idempotency key.
    pub id: String,
    /// The event's type.
    pub event_type: String,
    /// What it is about.
    pub subject: String,
    /// The payload.
    pub data: Bytes,
    /// When it happened.
    pub create_time: Timestamp,
}

impl Announcement {
    /// The idempotency key of its event. Clients' keys have no control characters: none of them can
    /// stand in the way.
    fn idempotency_key(&self) -> String {
        format!("\u{1}{}", self.id)
    }
}

impl Store {
    /// Whether an announcement with this id is waiting, or was emitted as long as keys are remembered.
    pub(super) async fn is_announced(
        &self,
        transaction: &DatabaseTransaction,
        announcement: &Announcement,
    ) -> Result<bool, Error> {
        // One statement: an announcement is removed only after its event and its key are there.
        let sql = "SELECT 1 FROM announcements WHERE tenant_id = $1 AND id = $2
            UNION ALL
            SELECT 1 FROM idempotency_keys WHERE tenant_id = $1 AND idempotency_key = $3";
        let values = vec![
            text(announcement.tenant_id.as_str()),
            text(&announcement.id),
            text(announcement.idempotency_key()),
        ];
        let found = transaction.query_one_raw(self.dialect.statement(sql, values)).await?;
        Ok(found.is_some())
    }

    /// Writes an announcement down, to be emitted.
    pub(super) async fn announce(
        &self,
        transaction: &DatabaseTransaction,
        announcement: &Announcement,
    ) -> Result<(), Error> {
        let sql = "INSERT INTO announcements (tenant_id, id, type, subject, data, create_time)
            VALUES ($1, $2, $3, $4, $5, $6)";
        let values = vec![
            text(announcement.tenant_id.as_str()),
            text(&announcement.id),
            text(&announcement.event_type),
            text(&announcement.subject),
            bytes(announcement.data.as_ref()),
            bigint(announcement.create_time.as_micros()),
        ];
        transaction.execute_raw(self.dialect.statement(sql, values)).await?;
        Ok(())
    }

    /// At most `limit` announcements that are to be emitted.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn announcements(&self, limit: u32) -> Result<Vec<Announcement>, Error> {
        let sql = "SELECT tenant_id, id, type, subject, data, create_time FROM announcements
            ORDER BY tenant_id, id LIMIT $1";
        let values = vec![bigint(i64::from(limit))];
        let rows = self.read.query_all_raw(self.dialect.statement(sql, values)).await?;
        let mut announcements = Vec::with_capacity(rows.len());
        for row in rows {
            announcements.push(Announcement {
                tenant_id: super::rows::id(&row.try_get_by_index::<String>(0)?)?,
                id: row.try_get_by_index(1)?,
                event_type: row.try_get_by_index(2)?,
                subject: row.try_get_by_index(3)?,
                data: row.try_get_by_index::<Vec<u8>>(4)?.into(),
                create_time: Timestamp::from_micros(row.try_get_by_index(5)?),
            });
        }
        Ok(announcements)
    }

    /// Forgets an announcement that was emitted, or that nobody can be told of.
    ///
    /// # Errors
    /// When the database does not take it.
    pub async fn remove_announcement(&self, announcement: &Announcement) -> Result<(), Error> {
        let sql = "DELETE FROM announcements WHERE tenant_id = $1 AND id = $2";
        let values = vec![text(announcement.tenant_id.as_str()), text(&announcement.id)];
        self.write.execute_raw(self.dialect.statement(sql, values)).await?;
        Ok(())
    }
}
