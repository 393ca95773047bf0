//! Suppressions: addresses that get nothing more, and what is reported of messages.
//!
//! Guarantees: what came from outside is written together with the event that tells the tenant of
//! it; telling the same again changes nothing and tells nobody. Addresses are folded here, so every
//! spelling meets.

use sea_orm::ConnectionTrait;
use sha2::{Digest, Sha256};

use crate::domain::Timestamp;
use crate::domain::feedback::{Feedback, Ignored};
use crate::domain::id::{DeliveryId, SubscriptionId, TenantId};
use crate::domain::mail_address::key_of;
use crate::domain::suppression::{Mailed, Reason, SUPPRESSED_EVENT, Suppressed, Suppression};

use super::bulk::{Rows, Type, bigint, int, text};
use super::rows::{id, json, optional_id};
use super::{Announcement, Error, Page, Store};

const COLUMNS: &str =
    "s.tenant_id, s.address, s.subscription_id, s.reason, s.detail, s.delivery_id, s.create_time";

/// What became of a wish to suppress an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Suppressing {
    /// It is suppressed from now on, or for a graver reason than before.
    Done(Suppression),
    /// It was before, as this says.
    Known(Suppression),
    /// There is no such tenant.
    NoTenant,
}

/// What became of a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FeedbackResult {
    /// Its address is suppressed from now on.
    Suppressed(Suppression),
    /// Its address was suppressed before.
    Known(Suppression),
    /// It has no consequence.
    Ignored(Ignored),
}

impl Store {
    /// Suppresses an address, and writes down the event that tells of it when the reason came from
    /// outside. A reason that its owner cannot take back replaces one that the owner can.
    ///
    /// # Errors
    /// When the database does not take it.
    pub async fn suppress(&self, wanted: &Suppression) -> Result<Suppressing, Error> {
        let address = key_of(&wanted.address);
        let wanted = Suppression { address, ..wanted.clone() };
        let transaction = self.dialect.begin(&self.write).await?;
        let sql = "INSERT INTO suppressions AS s
                (tenant_id, address, subscription_id, reason, detail, delivery_id, create_time)
            SELECT t.id, $2, $3, $4, $5, $6, $7 FROM tenants t
            WHERE t.id = $1 AND t.delete_time IS NULL
            ON CONFLICT (tenant_id, address, subscription_id) DO UPDATE
            SET reason = excluded.reason, detail = excluded.detail,
                delivery_id = excluded.delivery_id, create_time = excluded.create_time
            WHERE s.reason = $8 AND excluded.reason <> $8";
        let values = vec![
            text(wanted.tenant_id.as_str()),
            text(&wanted.address),
            text(subscription_text(wanted.subscription_id.as_ref())),
            int(i32::from(wanted.reason.code())),
            text(&wanted.detail),
            text(wanted.delivery_id.as_ref().map_or("", DeliveryId::as_str)),
            bigint(wanted.create_time.as_micros()),
            int(i32::from(Reason::Unsubscribed.code())),
        ];
        let statement = self.dialect.statement(sql, values);
        if transaction.execute_raw(statement).await?.rows_affected() == 0 {
            transaction.rollback().await?;
            let key = (&*wanted.address, wanted.subscription_id);
            let known = self.suppression(wanted.tenant_id, key.0, key.1).await?;
            return Ok(known.map_or(Suppressing::NoTenant, Suppressing::Known));
        }
        if wanted.reason.is_told() {
            let announcement = announcement(&wanted)?;
            if !self.is_announced(&transaction, &announcement).await? {
                self.announce(&transaction, &announcement).await?;
            }
        }
        transaction.commit().await?;
        Ok(Suppressing::Done(wanted))
    }

    /// The suppression of exactly this address and subscription.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn suppression(
        &self,
        tenant_id: TenantId,
        address: &str,
        subscription_id: Option<SubscriptionId>,
    ) -> Result<Option<Suppression>, Error> {
        let sql = format!(
            "SELECT {COLUMNS} FROM suppressions s
            WHERE s.tenant_id = $1 AND s.address = $2 AND s.subscription_id = $3"
        );
        let values = vec![
            text(tenant_id.as_str()),
            text(key_of(address)),
            text(subscription_text(subscription_id.as_ref())),
        ];
        let row = self.read.query_one_raw(self.dialect.statement(sql, values)).await?;
        row.as_ref().map(|row| read(row, 0)).transpose()
    }

    /// For each address of a subscription's, or of a primary contact's (`None`), the suppression
    /// that applies to it: of all of the tenant's mail, or else of that subscription's.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn suppressed(
        &self,
        recipients: &[(TenantId, &str, Option<SubscriptionId>)],
    ) -> Result<Vec<Option<Suppression>>, Error> {
        let columns = [
            ("n", Type::Int),
            ("tenant_id", Type::Text),
            ("address", Type::Text),
            ("subscription_id", Type::Text),
        ];
        let mut rows = Rows::new(self.dialect, columns, recipients.len());
        for (index, (tenant_id, address, subscription_id)) in recipients.iter().enumerate() {
            rows.push([
                int(i32::try_from(index).unwrap_or(i32::MAX)),
                text(tenant_id.as_str()),
                text(key_of(address)),
                text(subscription_text(subscription_id.as_ref())),
            ]);
        }
        let sql = format!(
            " SELECT r.n, {COLUMNS} FROM r
            JOIN suppressions s ON s.tenant_id = r.tenant_id AND s.address = r.address
                AND (s.subscription_id = '' OR s.subscription_id = r.subscription_id)"
        );
        let mut found: Vec<Option<Suppression>> = vec![None; recipients.len()];
        for row in rows.query(&self.read, &sql, &[]).await? {
            let index = usize::try_from(row.try_get_by_index::<i32>(0)?).unwrap_or(usize::MAX);
            let suppression = read(&row, 1)?;
            let Some(place) = found.get_mut(index) else { continue };
            if place.is_none() || suppression.subscription_id.is_none() {
                *place = Some(suppression);
            }
        }
        Ok(found)
    }

    /// The tenant's suppressions in order of address and subscription, from behind `after`; of one
    /// address alone when `address` is not empty.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn list_suppressions(
        &self,
        tenant_id: TenantId,
        address: &str,
        after: Option<(String, String)>,
        size: u64,
    ) -> Result<Page<Suppression>, Error> {
        let (after_address, after_subscription) = after.unwrap_or_default();
        let sql = format!(
            "SELECT {COLUMNS} FROM suppressions s
            WHERE s.tenant_id = $1 AND (s.address, s.subscription_id) > ($2, $3){}
            ORDER BY s.address, s.subscription_id LIMIT $4",
            if address.is_empty() { "" } else { " AND s.address = $5" }
        );
        let mut values = vec![
            text(tenant_id.as_str()),
            text(after_address),
            text(after_subscription),
            bigint(i64::try_from(size + 1).unwrap_or(i64::MAX)),
        ];
        if !address.is_empty() {
            values.push(text(key_of(address)));
        }
        let rows = self.read.query_all_raw(self.dialect.statement(sql, values)).await?;
        let items: Result<Vec<_>, _> = rows.iter().map(|row| read(row, 0)).collect();
        Ok(Page::of(items?, size))
    }

    /// Lets an address have mail again; only what has `reason`, when one is given. Tells whether
    /// there was such a suppression.
    ///
    /// # Errors
    /// When the database does not take it.
    pub async fn unsuppress(
        &self,
        tenant_id: TenantId,
        address: &str,
        subscription_id: Option<SubscriptionId>,
        reason: Option<Reason>,
    ) -> Result<bool, Error> {
        let sql = "DELETE FROM suppressions
            WHERE tenant_id = $1 AND address = $2 AND subscription_id = $3 AND ($4 = 0 OR reason = $4)";
        let values = vec![
            text(tenant_id.as_str()),
            text(key_of(address)),
            text(subscription_text(subscription_id.as_ref())),
            int(reason.map_or(0, |reason| i32::from(reason.code()))),
        ];
        let done = self.write.execute_raw(self.dialect.statement(sql, values)).await?;
        Ok(done.rows_affected() > 0)
    }

    /// The delivery by mail with this id, whosever it is.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn mailed(&self, delivery_id: DeliveryId) -> Result<Option<Mailed>, Error> {
        // The index `deliveries_mailed` is for mails alone.
        let sql = "SELECT tenant_id, subscription_id, recipient FROM deliveries
            WHERE id = $1 AND channel = 2";
        let values = vec![text(delivery_id.as_str())];
        let row = self.read.query_one_raw(self.dialect.statement(sql, values)).await?;
        let Some(row) = row else { return Ok(None) };
        let tenant_id = id(&row.try_get_by_index::<String>(0)?)?;
        let subscription_id: SubscriptionId = id(&row.try_get_by_index::<String>(1)?)?;
        let is_own = subscription_id != SubscriptionId::of_primary_contact(tenant_id);
        Ok(Some(Mailed {
            delivery_id,
            tenant_id,
            subscription_id: is_own.then_some(subscription_id),
            recipient: row.try_get_by_index(2)?,
        }))
    }

    /// Does what a report asks for. `tenant_id` is who reports; `None` is the operator, who may
    /// report on every tenant's deliveries.
    ///
    /// # Errors
    /// When the database does not answer, or does not take it.
    pub async fn take_feedback(
        &self,
        feedback: &Feedback,
        tenant_id: Option<TenantId>,
        now: Timestamp,
    ) -> Result<FeedbackResult, Error> {
        let mailed = match feedback.delivery_id {
            Some(delivery_id) => self.mailed(delivery_id).await?,
            None => None,
        };
        let target = match feedback.target(mailed, tenant_id) {
            Ok(target) => target,
            Err(ignored) => return Ok(FeedbackResult::Ignored(ignored)),
        };
        let mailed = target.mailed.as_ref();
        // Who unsubscribes does so from what it got; an address that does not work gets nothing.
        let subscription_id = match target.reason {
            Reason::Unsubscribed => mailed.and_then(|mailed| mailed.subscription_id),
            _ => None,
        };
        let wanted = Suppression {
            tenant_id: target.tenant_id,
            address: target.address.clone(),
            subscription_id,
            reason: target.reason,
            detail: feedback.detail.clone(),
            delivery_id: mailed.map(|mailed| mailed.delivery_id),
            create_time: now,
        };
        Ok(match self.suppress(&wanted).await? {
            Suppressing::Done(suppression) => FeedbackResult::Suppressed(suppression),
            Suppressing::Known(suppression) => FeedbackResult::Known(suppression),
            Suppressing::NoTenant => FeedbackResult::Ignored(Ignored::UnknownDelivery),
        })
    }
}

/// The subscription as it is stored: '' for all of the tenant's mail.
fn subscription_text(id: Option<&SubscriptionId>) -> &str {
    id.map_or("", SubscriptionId::as_str)
}

/// A suppression from the columns of a row that begin at `first`.
fn read(row: &sea_orm::QueryResult, first: usize) -> Result<Suppression, Error> {
    let text = |index: usize| row.try_get_by_index::<String>(first + index);
    let reason: i16 = row.try_get_by_index(first + 3)?;
    Ok(Suppression {
        tenant_id: id(&text(0)?)?,
        address: text(1)?,
        subscription_id: optional_id(&text(2)?)?,
        reason: Reason::from_code(reason)
            .ok_or_else(|| Error::Corrupt(format!("{reason} is no reason of a suppression")))?,
        detail: text(4)?,
        delivery_id: optional_id(&text(5)?)?,
        create_time: Timestamp::from_micros(row.try_get_by_index(first + 6)?),
    })
}

/// The event that tells the tenant. Its id is bound to the change and shows no address. What an owner
/// can say, take back and say again is told once in an hour: a link is no lever to flood a tenant.
fn announcement(of: &Suppression) -> Result<Announcement, Error> {
    let subscription_id = subscription_text(of.subscription_id.as_ref());
    let digest = Sha256::new()
        .chain_update(of.address.as_bytes())
        .chain_update([0])
        .chain_update(subscription_id)
        .finalize();
    let name = hex::encode(&digest[..16]);
    let instant = match of.reason {
        Reason::Unsubscribed => of.create_time.as_secs() / 3_600,
        _ => of.create_time.as_micros(),
    };
    Ok(Announcement {
        tenant_id: of.tenant_id,
        id: format!("suppressed:{name}:{}:{instant}", of.reason.code()),
        event_type: SUPPRESSED_EVENT.into(),
        subject: subscription_id.to_owned(),
        data: json(&Suppressed::new(of))?.into(),
        create_time: of.create_time,
    })
}
