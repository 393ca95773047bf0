//! Reading deliveries and attempts; canceling; leasing one delivery for a manual attempt.

use sea_orm::{
    ColumnTrait, ConnectionTrait, EntityTrait, FromQueryResult, QueryFilter, QueryOrder,
    QuerySelect,
};

use crate::domain::Timestamp;
use crate::domain::attempt::Attempt;
use crate::domain::delivery::{Delivery, State};
use crate::domain::id::{DeliveryId, EventId, NodeId, SubscriptionId, TenantId};
use crate::domain::pattern::Pattern;

use super::bulk::{bigint, text};
use super::entity::{attempt, delivery};
use super::events::any_pattern;
use super::{Error, Page, Store};

/// Which deliveries to list; empty fields choose all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeliveryFilter {
    /// Of this subscription.
    pub subscription_id: Option<SubscriptionId>,
    /// Of this event.
    pub event_id: Option<EventId>,
    /// Of any of these types of event.
    pub event_types: Vec<Pattern>,
    /// In any of these states.
    pub states: Vec<State>,
    /// Ended for any of these reasons, by their numbers: the contract has some that nothing has yet.
    pub failure_reasons: Vec<i16>,
    /// Created at this instant or later.
    pub create_time_from: Option<Timestamp>,
    /// Created before this instant.
    pub create_time_until: Option<Timestamp>,
}

/// What became of a wish to cancel.
#[derive(Clone, Debug, PartialEq)]
pub enum CancelResult {
    /// The tenant has no such delivery.
    NotFound,
    /// It had ended before.
    Ended(Box<Delivery>),
    /// It is canceled now.
    Canceled(Box<Delivery>),
}

/// What a manual attempt finds.
#[derive(Clone, Debug, PartialEq)]
pub enum ManualClaim {
    /// The tenant has no such delivery.
    NotFound,
    /// It is under way, or held.
    Busy(State),
    /// It has ended: an attempt is added to its record.
    Ended(Box<Delivery>),
    /// It waited for a retry, and is now leased; this is when the retry is due.
    Leased(Box<Delivery>, Timestamp),
}

impl Store {
    /// The delivery, when the tenant has it.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn delivery(
        &self,
        tenant_id: TenantId,
        id: DeliveryId,
    ) -> Result<Option<Delivery>, Error> {
        let row = delivery::Entity::find_by_id((tenant_id.to_string(), id.to_string()))
            .one(&self.read)
            .await?;
        row.map(Delivery::try_from).transpose()
    }

    /// The tenant's deliveries, the newest first, from before `before`.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn list_deliveries(
        &self,
        tenant_id: TenantId,
        filter: &DeliveryFilter,
        before: Option<DeliveryId>,
        size: u64,
    ) -> Result<Page<Delivery>, Error> {
        use delivery::Column;
        let mut query = delivery::Entity::find().filter(Column::TenantId.eq(tenant_id.as_str()));
        if let Some(subscription_id) = filter.subscription_id {
            query = query.filter(Column::SubscriptionId.eq(subscription_id.as_str()));
        }
        if let Some(event_id) = filter.event_id {
            let (first, end) = DeliveryId::range_of(event_id);
            query = query
                .filter(Column::EventId.eq(event_id.as_str()))
                .filter(Column::Id.gte(first.as_str()))
                .filter(Column::Id.lt(end.as_str()));
        }
        if !filter.event_types.is_empty() {
            query = query.filter(any_pattern(Column::EventType, &filter.event_types));
        }
        if !filter.states.is_empty() {
            query =
                query.filter(Column::State.is_in(filter.states.iter().map(|state| state.code())));
        }
        if !filter.failure_reasons.is_empty() {
            let reasons = filter.failure_reasons.iter().copied();
            query = query.filter(Column::FailureReason.is_in(reasons));
        }
        if let Some(from) = filter.create_time_from {
            query = query
                .filter(Column::Id.gte(DeliveryId::first_at(from).as_str()))
                .filter(Column::CreateTime.gte(from.as_micros()));
        }
        if let Some(until) = filter.create_time_until {
            query = query.filter(Column::CreateTime.lt(until.as_micros()));
        }
        if let Some(before) = before {
            query = query.filter(Column::Id.lt(before.as_str()));
        }
        let rows = query.order_by_desc(Column::Id).limit(size + 1).all(&self.read).await?;
        let deliveries = rows.into_iter().map(Delivery::try_from).collect::<Result<_, _>>()?;
        Ok(Page::of(deliveries, size))
    }

    /// A delivery's attempts in order of their numbers, from behind `after`.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn list_attempts(
        &self,
        tenant_id: TenantId,
        delivery_id: DeliveryId,
        after: u32,
        size: u64,
    ) -> Result<Page<Attempt>, Error> {
        use attempt::Column;
        let rows = attempt::Entity::find()
            .filter(Column::TenantId.eq(tenant_id.as_str()))
            .filter(Column::DeliveryId.eq(delivery_id.as_str()))
            .filter(Column::Number.gt(i32::try_from(after).unwrap_or(i32::MAX)))
            .order_by_asc(Column::Number)
            .limit(size + 1)
            .all(&self.read)
            .await?;
        let attempts = rows.into_iter().map(Attempt::try_from).collect::<Result<_, _>>()?;
        Ok(Page::of(attempts, size))
    }

    /// Cancels a delivery that has not ended. An attempt that is under way is still recorded.
    ///
    /// # Errors
    /// When the database does not take it.
    pub async fn cancel(
        &self,
        tenant_id: TenantId,
        id: DeliveryId,
        now: Timestamp,
    ) -> Result<CancelResult, Error> {
        let sql = "UPDATE deliveries SET state = 5, next_attempt_time = NULL, leased_by = NULL, due_time = NULL,
                hold_time = NULL, revision = revision + 1, update_time = $3
            WHERE tenant_id = $1 AND id = $2 AND state IN (1, 2, 8) RETURNING *";
        let values = vec![text(tenant_id.as_str()), text(id.as_str()), bigint(now.as_micros())];
        if let Some(canceled) = self.change(sql, values, now).await?.pop() {
            return Ok(CancelResult::Canceled(Box::new(canceled)));
        }
        let ended = self.delivery(tenant_id, id).await?;
        Ok(ended.map_or(CancelResult::NotFound, |delivery| CancelResult::Ended(Box::new(delivery))))
    }

    /// Prepares a manual attempt: a delivery that waits for a retry is leased to `node`, so that no
    /// automatic attempt runs beside it; one that has ended is left alone. The lease remembers when
    /// the retry is due, so that a node that dies in the middle does not bring it forward.
    ///
    /// # Errors
    /// When the database does not take it.
    pub async fn claim_manual(
        &self,
        tenant_id: TenantId,
        id: DeliveryId,
        node: NodeId,
        now: Timestamp,
    ) -> Result<ManualClaim, Error> {
        let transaction = self.dialect.begin(&self.write).await?;
        let sql = format!(
            "SELECT * FROM deliveries WHERE tenant_id = $1 AND id = $2 {}",
            self.dialect.for_update()
        );
        let values = vec![text(tenant_id.as_str()), text(id.as_str())];
        let row = transaction.query_one_raw(self.dialect.statement(sql, values)).await?;
        let delivery = row.map(|row| delivery::Model::from_query_result(&row, "")).transpose()?;
        let delivery = delivery.map(Delivery::try_from).transpose()?;
        let waiting = match delivery {
            None => Err(ManualClaim::NotFound),
            Some(delivery) => match (delivery.state, delivery.next_attempt_time) {
                (State::Scheduled, Some(due)) => Ok((delivery, due)),
                (state, _) if state.is_terminal() => Err(ManualClaim::Ended(Box::new(delivery))),
                (state, _) => Err(ManualClaim::Busy(state)),
            },
        };
        let (mut delivery, due) = match waiting {
            Ok(waiting) => waiting,
            Err(claim) => {
                // Dropping it would keep the row locked until the connection is used again.
                transaction.rollback().await?;
                return Ok(claim);
            }
        };
        delivery.state = State::Delivering;
        delivery.next_attempt_time = None;
        delivery.revision += 1;
        delivery.update_time = now;
        let sql = "UPDATE deliveries SET state = 2, leased_by = $3, due_time = next_attempt_time,
                next_attempt_time = NULL, revision = revision + 1, update_time = $4
            WHERE tenant_id = $1 AND id = $2";
        let values = vec![
            text(tenant_id.as_str()),
            text(id.as_str()),
            text(node.as_str()),
            bigint(now.as_micros()),
        ];
        transaction.execute_raw(self.dialect.statement(sql, values)).await?;
        fail_point!(ManualBeforeCommit);
        self.commit_leased(transaction, std::slice::from_ref(&delivery), node, now).await?;
        fail_point!(ManualAfterCommit);
        self.wakes.wake();
        Ok(ManualClaim::Leased(Box::new(delivery), due))
    }
}
