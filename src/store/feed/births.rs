//! Acceptances that the feed is told of later.
//!
//! A delivery that is accepted and attempted at once is told of twice: that it is under way, and soon after that
//! it has ended. One row of the feed tells both for half the price of two, and accepting waits for no feed's
//! head. Where results have come soon so far, whoever makes a delivery's second change tells of the first one
//! before it; what takes longer for once is told of by itself. See `docs/adr/0019-births.md`.

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::domain::Timestamp;
use crate::domain::delivery::{Delivery, State};
use crate::domain::id::{DeliveryId, SubscriptionId, TenantId};

use super::super::bulk::{Rows, Type, text};
use super::super::record::Ended;
use super::super::{Error, Store};

/// From acceptance to result: as long as that is soon.
const SOON: Duration = Duration::from_millis(50);
/// Most subscriptions that are known to be prompt. With more, it is learnt anew.
const MAX_PROMPT: usize = 65_536;
/// Most deliveries that one transaction tells of.
const MAX_BIRTHS: usize = 512;

/// Whether the feed has been told of a delivery, in SQL.
pub(super) const TOLD: &str = "(d.untold = 0 OR d.revision > 1)";

/// What this process has accepted and not yet told of. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct Births(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    untold: Mutex<Untold>,
    added: Notify,
    told: Notify,
}

#[derive(Debug, Default)]
struct Untold {
    /// Counts the looks at what is overdue.
    look: u64,
    /// Whose each is, and the look before which it came.
    deliveries: HashMap<DeliveryId, (TenantId, u64)>,
    /// Those that are told of by themselves just now, or were perhaps: the commit was not confirmed.
    telling: HashSet<DeliveryId>,
    /// Whose last result came soon.
    prompt: HashSet<SubscriptionId>,
}

impl Untold {
    /// See [`Births::take`]; `None` while one of them is told of by itself.
    fn take(&mut self, ended: &[Ended]) -> Option<Vec<bool>> {
        let is_told = |ended: &Ended| self.telling.contains(&ended.after.id);
        if !self.telling.is_empty() && ended.iter().any(is_told) {
            return None;
        }
        // With a later revision somebody else has made the second change, and told of both.
        let take = |Ended { after, .. }: &Ended| {
            self.deliveries.remove(&after.id).is_some() && after.revision == 2
        };
        Some(ended.iter().map(take).collect())
    }
}

impl Births {
    fn lock(&self) -> MutexGuard<'_, Untold> {
        self.0.untold.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which of these, just accepted, are to be told of later.
    pub(in super::super) fn untold(&self, deliveries: &[Delivery]) -> Vec<bool> {
        let untold = self.lock();
        let is_prompt = |delivery: &Delivery| {
            delivery.state == State::Delivering && untold.prompt.contains(&delivery.subscription_id)
        };
        deliveries.iter().map(is_prompt).collect()
    }

    /// These are to be told of; that is committed.
    pub(in super::super) fn add<'d>(&self, deliveries: impl Iterator<Item = &'d Delivery>) {
        let mut untold = self.lock();
        let look = untold.look;
        let was_empty = untold.deliveries.is_empty();
        untold.deliveries.extend(deliveries.map(|it| (it.id, (it.tenant_id, look))));
        let is_empty = untold.deliveries.is_empty();
        drop(untold);
        if was_empty && !is_empty {
            self.0.added.notify_one();
        }
    }

    /// Takes out those of which has to be told before these changes: for each change whether that is so. Waits for those
    /// that are told of by themselves just now, so that nothing is told of twice.
    pub(in super::super) async fn take(&self, ended: &[Ended]) -> Vec<bool> {
        loop {
            let mut told = pin!(self.0.told.notified());
            told.as_mut().enable();
            if let Some(births) = self.lock().take(ended) {
                return births;
            }
            told.await;
        }
    }

    /// How soon results come, by those that are recorded.
    pub(in super::super) fn learn(&self, ended: &[Ended]) {
        let mut untold = self.lock();
        // What has been accepted and attempted at once has its second revision now.
        let attempted = ended.iter().filter(|it| it.after.revision == 2 && it.attempt.is_some());
        for Ended { after, .. } in attempted {
            if after.update_time.since(after.create_time) > SOON {
                untold.prompt.remove(&after.subscription_id);
                continue;
            }
            if untold.prompt.len() >= MAX_PROMPT {
                untold.prompt.clear();
            }
            untold.prompt.insert(after.subscription_id);
        }
    }

    /// Those of the look before the last one, or earlier, to be told of now.
    fn overdue(&self) -> Vec<(TenantId, DeliveryId)> {
        let mut untold = self.lock();
        let look = untold.look;
        untold.look += 1;
        let is_overdue = |(id, (tenant_id, since)): (&DeliveryId, &(TenantId, u64))| {
            (*since < look).then_some((*tenant_id, *id))
        };
        let mut overdue: Vec<_> = untold.deliveries.iter().filter_map(is_overdue).collect();
        overdue.sort_unstable();
        untold.telling = overdue.iter().map(|(_, id)| *id).collect();
        overdue
    }

    /// These have been told of.
    fn told(&self, deliveries: &[(TenantId, DeliveryId)]) {
        let mut untold = self.lock();
        for (_, id) in deliveries {
            untold.deliveries.remove(id);
            untold.telling.remove(id);
        }
        drop(untold);
        self.0.told.notify_waiters();
    }

    /// This one cannot be told of by itself: it has to be with its end.
    fn refused(&self, id: DeliveryId) {
        let mut untold = self.lock();
        if let Some((_, look)) = untold.deliveries.get_mut(&id) {
            *look = u64::MAX;
        }
        untold.telling.remove(&id);
        drop(untold);
        self.0.told.notify_waiters();
    }
}

/// A delivery as it was accepted, under way at once.
pub(super) fn born(delivery: &Delivery) -> Delivery {
    Delivery {
        id: delivery.id,
        tenant_id: delivery.tenant_id,
        event_id: delivery.event_id,
        event_type: delivery.event_type.clone(),
        subscription_id: delivery.subscription_id,
        channel: delivery.channel,
        recipient: delivery.recipient.clone(),
        state: State::Delivering,
        failure_reason: None,
        attempt_count: 0,
        automatic_count: 0,
        interrupted_count: 0,
        next_attempt_time: None,
        expire_time: delivery.expire_time,
        recover_time: None,
        last_attempt: None,
        trace_id: delivery.trace_id.clone(),
        revision: 1,
        create_time: delivery.create_time,
        update_time: delivery.create_time,
    }
}

impl Store {
    /// Waits until something has been accepted that the feed has to be told of.
    pub async fn births(&self) {
        while self.births.lock().deliveries.is_empty() {
            self.births.0.added.notified().await;
        }
    }

    /// Tells the feed of what was accepted before the last time that this was called, and has not been told of
    /// with what followed.
    ///
    /// # Errors
    /// When the database does not answer. It is told of the next time, then, if it was not.
    pub async fn tell_births(&self, now: Timestamp) -> Result<(), Error> {
        for overdue in self.births.overdue().chunks(MAX_BIRTHS) {
            match self.tell_of(overdue, now).await {
                Ok(()) => self.births.told(overdue),
                Err(error) if error.is_unavailable() => return Err(error),
                // One that is refused must keep nobody's results waiting.
                Err(error) => {
                    tracing::error!(%error, "watchers cannot be told of deliveries under way; telling one by one");
                    for one in overdue {
                        Box::pin(self.tell_of_one(one, now)).await?;
                    }
                }
            }
        }
        Ok(())
    }

    async fn tell_of_one(&self, one: &(TenantId, DeliveryId), now: Timestamp) -> Result<(), Error> {
        match self.tell_of(std::slice::from_ref(one), now).await {
            Ok(()) => self.births.told(std::slice::from_ref(one)),
            Err(error) if error.is_unavailable() => return Err(error),
            Err(error) => {
                tracing::error!(%error, delivery.id = %one.1, "watchers are told of the delivery when it has ended");
                self.births.refused(one.1);
            }
        }
        Ok(())
    }

    /// Tells of those that are as they were accepted.
    async fn tell_of(
        &self,
        deliveries: &[(TenantId, DeliveryId)],
        now: Timestamp,
    ) -> Result<(), Error> {
        let columns = [("tenant_id", Type::Text), ("id", Type::Text)];
        let mut rows = Rows::new(self.dialect, columns, deliveries.len());
        for (tenant_id, id) in deliveries {
            rows.push([text(tenant_id.as_str()), text(id.as_str())]);
        }
        // Locked in the order in which results are recorded, so that nobody waits in a circle.
        let sql = format!(
            ", locked AS (
                SELECT d.tenant_id, d.id FROM deliveries d
                WHERE (d.tenant_id, d.id) IN (SELECT tenant_id, id FROM r)
                  AND d.untold = 1 AND d.revision = 1
                ORDER BY d.tenant_id, d.id {lock})
            UPDATE deliveries SET untold = 0
            WHERE (tenant_id, id) IN (SELECT tenant_id, id FROM locked)
            RETURNING *",
            lock = self.dialect.for_update(),
        );
        let transaction = self.dialect.begin(&self.write).await?;
        let told = rows.query(&transaction, &sql, &[]).await?;
        self.finish_change(transaction, &told, now).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    use crate::domain::attempt::{Attempt, Outcome, Report, Trigger};
    use crate::domain::trace::TraceContext;
    use crate::store::feed::Tiding;
    use crate::store::sample::delivery;

    fn ended(delivery: &Delivery) -> Ended {
        let after = Delivery { revision: 2, state: State::Succeeded, ..delivery.clone() };
        Ended { after, attempt: None }
    }

    fn take(births: &Births, ended: &[Ended]) -> Vec<bool> {
        births.take(ended).now_or_never().expect("nobody is telling")
    }

    #[test]
    fn each_is_told_of_once_with_its_end_or_by_itself() {
        let births = Births::default();
        let all: Vec<_> = (1..=3).map(delivery).collect();
        births.add(all.iter());
        assert_eq!(births.overdue(), [], "they have just come");
        assert_eq!(take(&births, &[ended(&all[1])]), [true]);
        assert_eq!(take(&births, &[ended(&all[1])]), [false]);
        let key = |of: &Delivery| (of.tenant_id, of.id);
        let overdue = [key(&all[0]), key(&all[2])];
        assert_eq!(births.overdue(), overdue);
        assert_eq!(births.overdue(), overdue, "that was not confirmed");
        births.told(&overdue);
        assert_eq!(take(&births, &[ended(&all[2])]), [false]);
        assert!(births.lock().deliveries.is_empty() && births.lock().telling.is_empty());
    }

    #[test]
    fn whoever_has_a_result_waits_for_the_one_who_tells() {
        let births = Births::default();
        let all: Vec<_> = (1..=2).map(delivery).collect();
        births.add(all[..1].iter());
        births.overdue();
        births.add(all[1..].iter());
        assert_eq!(births.overdue(), [(all[0].tenant_id, all[0].id)]);
        assert!(take(&births, &[ended(&all[1])])[0], "that one is not concerned");
        let results = [ended(&all[0])];
        let mut waiting = std::pin::pin!(births.take(&results));
        assert_eq!(waiting.as_mut().now_or_never(), None);
        births.told(&[(all[0].tenant_id, all[0].id)]);
        assert_eq!(waiting.now_or_never(), Some(vec![false]));
    }

    #[test]
    fn what_cannot_be_told_by_itself_is_told_with_its_end() {
        let births = Births::default();
        let delivery = delivery(1);
        births.add(std::iter::once(&delivery));
        births.overdue();
        assert_eq!(births.overdue().len(), 1);
        births.refused(delivery.id);
        assert_eq!(births.overdue(), [], "once is enough");
        assert!(take(&births, &[ended(&delivery)])[0]);
    }

    #[test]
    fn an_acceptance_of_which_somebody_else_has_told_is_not_told_after_it() {
        let births = Births::default();
        let mut late = ended(&delivery(1));
        births.add(std::iter::once(&late.after));
        late.after.revision = 4;
        assert_eq!(take(&births, &[late]), [false]);
        assert!(births.lock().deliveries.is_empty());
    }

    #[test]
    fn who_is_prompt_is_learnt_from_the_last_result() {
        let births = Births::default();
        let born = born(&delivery(1));
        let result = |after: Duration| {
            let mut ended = ended(&born);
            ended.after.update_time = born.create_time.plus(after);
            let report = Report::new(Outcome::Delivered, born.create_time);
            let (number, trigger) = (1, Trigger::Automatic);
            let trace = TraceContext { trace_id: 1, span_id: 2, sampled: false };
            ended.attempt = Some(Attempt { delivery_id: born.id, number, trigger, report, trace });
            ended
        };
        let waits = |delivery: &Delivery| births.untold(std::slice::from_ref(delivery))[0];
        assert!(!waits(&born), "nothing is known");
        births.learn(&[result(SOON)]);
        assert!(waits(&born));
        let scheduled = Delivery { state: State::Scheduled, ..born.clone() };
        assert!(!waits(&scheduled), "nobody attempts it at once");
        let mut unattempted = result(2 * SOON);
        unattempted.attempt = None;
        births.learn(&[unattempted]);
        assert!(waits(&born), "that was no result");
        births.learn(&[result(2 * SOON)]);
        assert!(!waits(&born));
    }

    #[test]
    fn an_acceptance_stands_before_what_followed() {
        let change = ended(&delivery(1)).after;
        let told: Vec<_> = Tiding { delivery: &change, after_birth: true }.unfold().collect();
        assert_eq!(told, [born(&change), change.clone()]);
        assert_eq!((told[0].revision, told[0].state), (1, State::Delivering));
        assert_eq!(Tiding::from(&change).unfold().collect::<Vec<_>>(), [change]);
    }
}
