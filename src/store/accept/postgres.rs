//! Accepting on PostgreSQL: one statement, which is a transaction of its own.
//!
//! The arrays are bound as they are, without a value object for each cell: this is the statement that
//! every event goes through.

use sea_orm::sqlx;

use crate::domain::Timestamp;
use crate::domain::delivery::Delivery;

use super::super::Error;
use super::super::error::refused;
use super::super::feed::{PgQuery, Told, feed_tail};
use super::super::leases::Lease;
use super::super::line::postgres::Line;
use super::super::rows::channel_code;
use super::{AcceptResult, Acceptance, labels};

/// The constraint that a taken key violates.
const KEYS_CONSTRAINT: &str = "idempotency_keys_pkey";

/// `$1` to `$6` are the feed's, see `feed_tail`. The arrays become rows in the SELECT list: there
/// PostgreSQL takes one element of each at a time, while of a function in FROM it stores all rows first.
const ACCEPT: &str = concat!(
    "WITH gate AS (
        -- Open when the settings are still those that the events were matched against.
        SELECT count(*) = cardinality($7::text[]) AS is_open
        FROM (SELECT unnest($7::text[]) AS tenant_id, unnest($8::bigint[]) AS version) AS seen
        JOIN tenant_config c ON c.tenant_id = seen.tenant_id AND c.version = seen.version),
    new_keys AS (
        -- A key that was taken before ends the whole statement: nothing may be stored then.
        INSERT INTO idempotency_keys
            (tenant_id, idempotency_key, fingerprint, event_id, delivery_count, create_time)
        SELECT k.*, $6::bigint
        FROM (SELECT unnest($9::text[]) AS tenant_id, unnest($10::text[]) AS idempotency_key,
                unnest($11::bytea[]) AS fingerprint, unnest($12::text[]) AS event_id,
                unnest($13::int[]) AS delivery_count) AS k
        WHERE (SELECT is_open FROM gate) RETURNING 1),
    new_events AS (
        INSERT INTO events (tenant_id, id, type, subject, data, labels, occur_time, create_time,
            deliver_time, expire_time, trace)
        SELECT e.tenant_id, e.id, e.type, e.subject, e.data, e.labels, e.occur_time, $6::bigint,
            e.deliver_time, e.expire_time, e.trace
        FROM (SELECT unnest($14::text[]) AS tenant_id, unnest($15::text[]) AS id,
                unnest($16::text[]) AS type, unnest($17::text[]) AS subject,
                unnest($18::bytea[]) AS data, unnest($19::text[]) AS labels,
                unnest($20::bigint[]) AS occur_time, unnest($21::bigint[]) AS deliver_time,
                unnest($22::bigint[]) AS expire_time, unnest($23::text[]) AS trace) AS e
        WHERE (SELECT is_open FROM gate) RETURNING 1),
    new_deliveries AS (
        INSERT INTO deliveries (tenant_id, id, event_id, event_type, subscription_id, channel,
            recipient, state, attempt_count, automatic_count, next_attempt_time, expire_time,
            leased_by, hold_time, trace_id, revision, create_time, update_time)
        SELECT d.tenant_id, d.id, d.event_id, d.event_type, d.subscription_id, d.channel,
            d.recipient, d.state, 0, 0, d.next_attempt_time, d.expire_time,
            CASE WHEN d.state = 2 THEN $24::text END, CASE WHEN d.state = 8 THEN $6::bigint END,
            d.trace_id, 1, $6::bigint, $6::bigint
        FROM (SELECT unnest($25::text[]) AS tenant_id, unnest($26::text[]) AS id,
                unnest($27::text[]) AS event_id, unnest($28::text[]) AS event_type,
                unnest($29::text[]) AS subscription_id, unnest($30::smallint[]) AS channel,
                unnest($31::text[]) AS recipient, unnest($32::smallint[]) AS state,
                unnest($33::bigint[]) AS next_attempt_time,
                unnest($34::bigint[]) AS expire_time, unnest($35::text[]) AS trace_id) AS d
        WHERE (SELECT is_open FROM gate) RETURNING 1),
    new_leases AS (
        INSERT INTO leases (node, number, create_time, deliveries)
        SELECT $24::text, l.number, $6::bigint, l.deliveries
        FROM (SELECT unnest($36::bigint[]) AS number, unnest($37::text[]) AS deliveries) AS l
        WHERE (SELECT is_open FROM gate) RETURNING 1),
    ready AS (
        -- The feed comes last, so that its heads are locked for as short a time as can be.
        SELECT is_open AND (SELECT count(*) FROM new_keys) + (SELECT count(*) FROM new_events)
            + (SELECT count(*) FROM new_deliveries) + (SELECT count(*) FROM new_leases) > 0
            AS is_ready FROM gate)",
    feed_tail!(),
);

pub(super) async fn accept(
    line: &Line,
    new: &Acceptance<'_>,
    leases: &[Lease],
) -> Result<AcceptResult, Error> {
    let told = Told::of(new.deliveries.iter())?;
    let (tenants, versions) = new.versions();
    let query = told.bind(sqlx::query_scalar::<_, bool>(ACCEPT), new.now);
    let query = query.bind(tenants).bind(versions);
    let query = bind_keys(query, new);
    let query = bind_events(query, new)?.bind(new.node.as_str());
    let query = bind_deliveries(query, new.deliveries);
    let query = query.bind(column(leases, |lease| lease.number));
    let query = query.bind(column(leases, |lease| lease.deliveries.as_str()));
    match line.fetch(query).await {
        Ok(true) => Ok(AcceptResult::Stored),
        Ok(false) => Ok(AcceptResult::SettingsChanged),
        Err(sqlx::Error::Database(error)) if error.constraint() == Some(KEYS_CONSTRAINT) => {
            Ok(AcceptResult::KeysTaken)
        }
        Err(error) => Err(refused(error)),
    }
}

type Query<'q> = PgQuery<'q, bool>;

fn bind_keys<'q>(query: Query<'q>, new: &'q Acceptance<'q>) -> Query<'q> {
    let keys = new.ordered_keys();
    let count = |count: u32| i32::try_from(count).unwrap_or(i32::MAX);
    query
        .bind(column(&keys, |key| key.tenant_id.as_str()))
        .bind(column(&keys, |key| key.key.as_str()))
        .bind(column(&keys, |key| key.fingerprint.as_slice()))
        .bind(column(&keys, |key| key.event_id.as_str()))
        .bind(column(&keys, |key| count(key.delivery_count)))
}

fn bind_events<'q>(query: Query<'q>, new: &'q Acceptance<'q>) -> Result<Query<'q>, Error> {
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

fn bind_deliveries<'q>(query: Query<'q>, deliveries: &'q [Delivery]) -> Query<'q> {
    let channel = |delivery: &Delivery| i16::try_from(channel_code(delivery.channel)).unwrap_or(0);
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
        .bind(column(deliveries, |delivery| delivery.trace_id.as_str()))
}

/// One value of each row.
pub(in super::super) fn column<'r, R, V>(rows: &'r [R], value: impl Fn(&'r R) -> V) -> Vec<V> {
    rows.iter().map(value).collect()
}
