//! How the feed's rows say what changed: a JSON array of deliveries, each an array of its fields in
//! the order of [`Delivery`]. Without the fields' names it is half as long, and it is written twice
//! for each event. Before a change `null` stands for the delivery's [birth](super::births), which follows from it.
//! Reading takes both forms: earlier versions wrote objects.

use std::time::Duration;

use serde::Serialize;

use crate::domain::Timestamp;
use crate::domain::attempt::{Failure, Trigger};
use crate::domain::delivery::{Delivery, FailureReason, LastAttempt, State};
use crate::domain::event_type::ChannelKind;
use crate::domain::id::{DeliveryId, EventId, SubscriptionId, TenantId};

use super::{Tiding, born};

/// A [`Delivery`], field by field.
#[derive(Serialize)]
struct Change<'d>(
    DeliveryId,
    TenantId,
    EventId,
    &'d str,
    SubscriptionId,
    ChannelKind,
    &'d str,
    State,
    Option<FailureReason>,
    u32,
    u32,
    u32,
    Option<Timestamp>,
    Option<Timestamp>,
    Option<Timestamp>,
    Option<Last<'d>>,
    &'d str,
    i64,
    Timestamp,
    Timestamp,
);

/// A [`LastAttempt`], field by field.
#[derive(Serialize)]
struct Last<'d>(u32, Trigger, Timestamp, Duration, Option<u16>, &'d Option<Failure>, &'d str);

impl<'d> Change<'d> {
    fn of(delivery: &'d Delivery) -> Self {
        Self(
            delivery.id,
            delivery.tenant_id,
            delivery.event_id,
            &delivery.event_type,
            delivery.subscription_id,
            delivery.channel,
            &delivery.recipient,
            delivery.state,
            delivery.failure_reason,
            delivery.attempt_count,
            delivery.automatic_count,
            delivery.interrupted_count,
            delivery.next_attempt_time,
            delivery.expire_time,
            delivery.recover_time,
            delivery.last_attempt.as_ref().map(Last::of),
            &delivery.trace_id,
            delivery.revision,
            delivery.create_time,
            delivery.update_time,
        )
    }
}

impl<'d> Last<'d> {
    fn of(last: &'d LastAttempt) -> Self {
        Self(
            last.number,
            last.trigger,
            last.start_time,
            last.duration,
            last.http_status,
            &last.failure,
            &last.span_id,
        )
    }
}

/// The tidings in rows of at most `max_bytes`, a single change's row excepted, and how many are in each.
pub(super) fn rows(
    tidings: &[Tiding<'_>],
    max_bytes: usize,
) -> Result<Vec<(Vec<u8>, usize)>, serde_json::Error> {
    let mut rows = Vec::new();
    let (mut row, mut count): (Vec<u8>, _) = (Vec::new(), 0);
    for Tiding { delivery, after_birth } in tidings {
        let before = row.len();
        row.push(if row.is_empty() { b'[' } else { b',' });
        if *after_birth {
            row.extend_from_slice(b"null,");
        }
        serde_json::to_writer(&mut row, &Change::of(delivery))?;
        if before > 0 && row.len() + 1 > max_bytes {
            let mut next = Vec::with_capacity(max_bytes);
            next.push(b'[');
            next.extend_from_slice(&row[before + 1..]);
            row.truncate(before);
            row.push(b']');
            rows.push((std::mem::replace(&mut row, next), count));
            count = 0;
        }
        count += 1;
    }
    if !row.is_empty() {
        row.push(b']');
        rows.push((row, count));
    }
    Ok(rows)
}

/// The changes of a row.
pub(super) fn read(row: &[u8]) -> Result<Vec<Delivery>, serde_json::Error> {
    let written: Vec<Option<Delivery>> = serde_json::from_slice(row)?;
    let mut changes = Vec::with_capacity(written.len());
    let mut is_after_birth = false;
    for change in written {
        let Some(delivery) = change else {
            is_after_birth = true;
            continue;
        };
        if std::mem::take(&mut is_after_birth) {
            changes.push(born(&delivery));
        }
        changes.push(delivery);
    }
    if is_after_birth {
        return Err(serde::de::Error::custom("a birth without what followed"));
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::store::sample::delivery;

    #[test]
    fn every_field_comes_back() {
        let delivery = delivery(1);
        let rows = rows(&[Tiding::from(&delivery)], 1).expect("rows");
        assert_eq!(rows.len(), 1, "a change larger than a row has a row of its own");
        let all = read(&rows[0].0).expect("read");
        assert_eq!(all, [delivery]);
    }

    #[test]
    fn what_earlier_versions_wrote_is_read() {
        let delivery = delivery(1);
        let written = serde_json::to_vec(&[&delivery]).expect("written");
        let all = read(&written).expect("read");
        assert_eq!(all, [delivery]);
        assert!(read(b"[null]").is_err());
    }

    #[test]
    fn a_birth_is_a_mark_before_what_followed_and_in_the_same_row() {
        let deliveries: Vec<_> = (1..=20).map(delivery).collect();
        let with_birth = |number: usize| !number.is_multiple_of(3);
        let tidings: Vec<_> = (0..20)
            .map(|n| Tiding { delivery: &deliveries[n], after_birth: with_birth(n) })
            .collect();
        let rows = rows(&tidings, 1_900).expect("rows");
        assert!(rows.len() > 2 && rows.iter().all(|(row, _)| row.len() <= 1_900), "{}", rows.len());
        let mut all = Vec::new();
        for (row, count) in &rows {
            let changes = read(row).expect("read");
            let births = changes.iter().filter(|change| change.revision == 1).count();
            assert_eq!(changes.len() - births, *count);
            all.extend(changes);
        }
        let told: Vec<_> = tidings.iter().flat_map(|tiding| tiding.unfold()).collect();
        assert_eq!(told.len(), 33);
        assert_eq!(all, told);
        let bytes: usize = rows.iter().map(|(row, _)| row.len()).sum();
        let without: Vec<_> = deliveries.iter().map(Tiding::from).collect();
        let without = super::rows(&without, usize::MAX).expect("rows")[0].0.len();
        assert!(bytes < without + 13 * 5 + 2 * rows.len(), "{bytes} and {without} bytes");
    }

    #[test]
    fn rows_keep_the_order_and_their_size() {
        let deliveries: Vec<_> = (1..=20).map(delivery).collect();
        let tidings: Vec<_> = deliveries.iter().map(Tiding::from).collect();
        let rows = rows(&tidings, 1_900).expect("rows");
        assert!(rows.len() > 2 && rows.iter().all(|(row, _)| row.len() <= 1_900), "{}", rows.len());
        let mut read = Vec::new();
        for (row, count) in &rows {
            let changes: Vec<Delivery> = serde_json::from_slice(row).expect("read");
            assert_eq!(changes.len(), *count);
            read.extend(changes);
        }
        assert_eq!(read, deliveries);
    }

    #[test]
    fn nothing_has_no_row() {
        assert!(rows(&[], 100).expect("rows").is_empty());
    }
}
