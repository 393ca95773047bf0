//! Accepting on PostgreSQL: one statement, which is a transaction of its own.
//!
//! The arrays are bound as they are, without a value object for each cell: this is the statement that
//! every event goes through.

use sea_orm::sqlx;

use crate::domain::Timestamp;
use crate::domain::delivery::{Delivery, State};

use super::super::Error;
use super::super::error::refused;
use super::super::feed::{Follows, PgQuery, Told, feed_tail};
use super::super::leases::Lease;
use super::super::line::postgres::Line;
use super::super::rows::channel_code;
use super::{AcceptResult, Acceptance, labels};

/// The constraint that a taken key violates.
const KEYS_CONSTRAINT: &str = "idempotency_keys_pkey";

/// `$1` to `$6` are the feed's, see `feed_tail`. The arrays become rows in the SELECT list: there
/// PostgreSQL takes one element of each at a time, while of a function in FROM it stores all rows first.
macro_rules! accept {
    ($returning:literal) => {
        concat!("WITH gate AS (
            -- Open when the settings are still those that the events were matched against.
            SELECT count(*) = cardinality($7::text[]) AS is_open
            FROM (SELECT unnest($7::text[]) AS tenant_id, unnest($8::bigint[]) AS version) AS seen
            JOIN tenant_config c ON c.tenant_id = seen.tenant_id AND c.version = seen.version),
        new_keys AS (
            -- A key that was taken before ends the whole statement: nothing may be stored then.
            INSERT INTO idempotency_keys
                (tenant_id, idempotency_key, fingerprint, event_id, delivery_count, create_time)
            SELECT unnest($9::text[]), unnest($10::text[]), unnest($11::bytea[]), unnest($12::text[]),
                unnest($13::int[]), $6::bigint
            WHERE (SELECT is_open FROM gate)", $returning, "),
        new_events AS (
            INSERT INTO events (tenant_id, id, type, subject, data, labels, occur_time, create_time,
                deliver_time, expire_time, trace)
            SELECT unnest($14::text[]), unnest($15::text[]), unnest($16::text[]), unnest($17::text[]),
                unnest($18::bytea[]), unnest($19::text[]), unnest($20::bigint[]), $6::bigint,
                unnest($21::bigint[]), unnest($22::bigint[]), unnest($23::text[])
            WHERE (SELECT is_open FROM gate)", $returning, "),
        new_deliveries AS (
            INSERT INTO deliveries (tenant_id, id, event_id, event_type, subscription_id, channel,
                recipient, state, attempt_count, automatic_count, next_attempt_time, expire_time,
                leased_by, hold_time, trace_id, untold, revision, create_time, update_time)
            SELECT unnest($25::text[]), unnest($26::text[]), unnest($27::text[]), unnest($28::text[]),
                unnest($29::text[]), unnest($30::smallint[]), unnest($31::text[]), unnest($32::smallint[]),
                0, 0, unnest($33::bigint[]), unnest($34::bigint[]), unnest($35::text[]),
                unnest($36::bigint[]), unnest($37::text[]), unnest($38::smallint[]), 1, $6::bigint, $6::bigint
            WHERE (SELECT is_open FROM gate)", $returning, "),
        new_leases AS (
            INSERT INTO leases (node, number, create_time, deliveries)
            SELECT $24::text, unnest($39::bigint[]), $6::bigint, unnest($40::text[])
            WHERE (SELECT is_open FROM gate)", $returning, ")")
    };
}

/// The feed comes last, so that its heads are locked for as short a time as can be.
const ACCEPT_AND_TELL: &str = concat!(
    accept!(" RETURNING 1"),
    ", ready AS (
        SELECT is_open AND (SELECT count(*) FROM new_keys) + (SELECT count(*) FROM new_events)
            + (SELECT count(*) FROM new_deliveries) + (SELECT count(*) FROM new_leases) > 0
            AS is_ready FROM gate)",
    feed_tail!(),
);

/// With nothing to tell, or only later.
const ACCEPT: &str = concat!(accept!(""), " SELECT is_open, NULL::bigint[] FROM gate");

pub(super) async fn accept(
    line: &Line,
    new: &Acceptance<'_>,
    untold: &[bool],
    leases: &[Lease],
    follows: &Follows,
) -> Result<AcceptResult, Error> {
    let told = Told::of(new.told(untold))?;
    let (tenants, versions) = new.versions();
    let sql = if told.is_empty() { ACCEPT } else { ACCEPT_AND_TELL };
    let query = told.query(sql, new.now).bind(tenants).bind(versions);
    let query = bind_keys(query, new);
    let query = bind_events(query, new)?.bind(new.node.as_str());
    let query = bind_deliveries(query, new).bind(column(untold, |is_untold| i16::from(*is_untold)));
    let query = query.bind(column(leases, |lease| lease.number));
    let query = query.bind(column(leases, |lease| lease.deliveries.as_str()));
    match line.fetch(query).await {
        Ok((true, heads)) => {
            told.committed(follows, &heads.unwrap_or_default());
            Ok(AcceptResult::Stored)
        }
        Ok((false, _)) => Ok(AcceptResult::SettingsChanged),
        Err(sqlx::Error::Database(error)) if error.constraint() == Some(KEYS_CONSTRAINT) => {
            Ok(AcceptResult::KeysTaken)
        }
        Err(error) => Err(refused(error)),
    }
}

fn bind_keys<'q>(query: PgQuery<'q>, new: &'q Acceptance<'q>) -> PgQuery<'q> {
    let keys = new.ordered_keys();
    let count = |count: u32| i32::try_from(count).unwrap_or(i32::MAX);
    query
        .bind(column(&keys, |key| key.tenant_id.as_str()))
        .bind(column(&keys, |key| key.key.as_str()))
        .bind(column(&keys, |key| key.fingerprint.as_slice()))
        .bind(column(&keys, |key| key.event_id.as_str()))
        .bind(column(&keys, |key| count(key.delivery_count)))
}

fn bind_events<'q>(query: PgQuery<'q>, new: &'q Acceptance<'q>) -> Result<PgQuery<'q>, Error> {
    let events = &new.events;
    let labels: Vec<_> = events.iter().map(|event| labels(event)).collect::<Result<_, _>>()?;
    Ok(query
        .bind(column(events, |event| event.tenant_id.as_str()))
        .bind(column(events, |event| event.id.as_str()))
        .bind(column(events, |event| event.event_type.as_str()))
        .bind(column(events, |event| event.subject.as_str()))
        .bind(column(events, |event| event.data.as_ref()))
        .bind(labels)
        .bind(column(events, |event| event.occur_time.as_micros()))
        .bind(column(events, |event| event.deliver_time.map(Timestamp::as_micros)))
        .bind(column(events, |event| event.expire_time.map(Timestamp::as_micros)))
        .bind(column(events, |event| event.trace.to_string())))
}

fn bind_deliveries<'q>(query: PgQuery<'q>, new: &'q Acceptance<'q>) -> PgQuery<'q> {
    let deliveries = new.deliveries;
    let channel = |delivery: &Delivery| i16::try_from(channel_code(delivery.channel)).unwrap_or(0);
    let is = |delivery: &Delivery, state: State| delivery.state == state;
    query
        .bind(column(deliveries, |delivery| delivery.tenant_id.as_str()))
        .bind(column(deliveries, |delivery| delivery.id.as_str()))
        .bind(column(deliveries, |delivery| delivery.event_id.as_str()))
        .bind(column(deliveries, |delivery| delivery.event_type.as_str()))
        .bind(column(deliveries, |delivery| delivery.subscription_id.as_str()))
        .bind(column(deliveries, channel))
        .bind(column(deliveries, |delivery| delivery.recipient.as_str()))
        .bind(column(deliveries, |delivery| delivery.state.code()))
        .bind(column(deliveries, |delivery| delivery.next_attempt_time.map(Timestamp::as_micros)))
        .bind(column(deliveries, |delivery| delivery.expire_time.map(Timestamp::as_micros)))
        .bind(column(deliveries, |delivery| {
            is(delivery, State::Delivering).then_some(new.node.as_str())
        }))
        .bind(column(deliveries, |delivery| {
            is(delivery, State::Held).then_some(new.now.as_micros())
        }))
        .bind(column(deliveries, |delivery| delivery.trace_id.as_str()))
}

/// One value of each row.
pub(in super::super) fn column<'r, R, V>(rows: &'r [R], value: impl Fn(&'r R) -> V) -> Vec<V> {
    rows.iter().map(value).collect()
}
