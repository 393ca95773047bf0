//! Accepting on SQLite: one transaction, with one prepared statement for each kind of row. See
//! `docs/adr/0014-sqlite-line.md`.

use rusqlite::{Connection, params};

use crate::domain::Timestamp;
use crate::domain::delivery::State;
use crate::domain::event::Event;

use super::super::Error;
use super::super::feed::{Follows, Told};
use super::super::leases::Lease;
use super::super::line::sqlite::{End, Line};
use super::super::rows::channel_code;
use super::{AcceptResult, Acceptance, labels};

const SETTINGS_STAND: &str = "SELECT 1 FROM tenant_config WHERE tenant_id = ?1 AND version = ?2";

const TAKE_KEY: &str = "INSERT INTO idempotency_keys
        (tenant_id, idempotency_key, fingerprint, event_id, delivery_count, create_time)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (tenant_id, idempotency_key) DO NOTHING";

const INSERT_EVENT: &str =
    "INSERT INTO events (tenant_id, id, type, subject, data, labels, occur_time,
        create_time, deliver_time, expire_time, trace)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)";

const INSERT_DELIVERY: &str = "INSERT INTO deliveries (tenant_id, id, event_id, event_type,
        subscription_id, channel, recipient, state, attempt_count, automatic_count, next_attempt_time,
        expire_time, leased_by, hold_time, trace_id, untold, revision, create_time, update_time)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, 0, 0, ?9, ?10, ?11, ?12, ?13, ?14, 1, ?15, ?15)";

const INSERT_LEASE: &str =
    "INSERT INTO leases (node, number, create_time, deliveries) VALUES (?1, ?2, ?3, ?4)";

pub(super) async fn accept(
    line: &Line,
    new: &Acceptance<'_>,
    untold: &[bool],
    leases: &[Lease],
    written: impl FnOnce() + Send,
    follows: &Follows,
) -> Result<AcceptResult, Error> {
    let told = Told::of(new.told(untold))?;
    let mut heads = Vec::new();
    let accepting = |transaction: &Connection| {
        if !settings_stand(transaction, new)? {
            return Ok(End::Rollback(AcceptResult::SettingsChanged));
        }
        if !take_keys(transaction, new)? {
            return Ok(End::Rollback(AcceptResult::KeysTaken));
        }
        insert_events(transaction, &new.events)?;
        insert_deliveries(transaction, new, untold)?;
        insert_leases(transaction, leases, new)?;
        heads = told.write(transaction, new.now)?;
        fail_point_blocking!(AcceptBeforeCommit);
        Ok(End::Commit(AcceptResult::Stored))
    };
    let became = line.run_telling(accepting, written).await?;
    told.committed(follows, &heads);
    Ok(became)
}

fn settings_stand(transaction: &Connection, new: &Acceptance<'_>) -> Result<bool, Error> {
    let mut statement = transaction.prepare_cached(SETTINGS_STAND)?;
    let (tenants, versions) = new.versions();
    for (tenant_id, version) in tenants.into_iter().zip(versions) {
        if !statement.exists(params![tenant_id, version])? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Takes the keys; `false` when one of them was taken before.
fn take_keys(transaction: &Connection, new: &Acceptance<'_>) -> Result<bool, Error> {
    let mut statement = transaction.prepare_cached(TAKE_KEY)?;
    for key in new.ordered_keys() {
        let taken = statement.execute(params![
            key.tenant_id.as_str(),
            key.key,
            key.fingerprint.as_slice(),
            key.event_id.as_str(),
            key.delivery_count,
            new.now.as_micros(),
        ])?;
        if taken == 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

fn insert_events(transaction: &Connection, events: &[&Event]) -> Result<(), Error> {
    let mut statement = transaction.prepare_cached(INSERT_EVENT)?;
    for event in events {
        statement.execute(params![
            event.tenant_id.as_str(),
            event.id.as_str(),
            event.event_type,
            event.subject,
            event.data.as_ref(),
            labels(event)?,
            event.occur_time.as_micros(),
            event.create_time.as_micros(),
            event.deliver_time.map(Timestamp::as_micros),
            event.expire_time.map(Timestamp::as_micros),
            event.trace.to_string(),
        ])?;
    }
    Ok(())
}

fn insert_deliveries(
    transaction: &Connection,
    new: &Acceptance<'_>,
    untold: &[bool],
) -> Result<(), Error> {
    let mut statement = transaction.prepare_cached(INSERT_DELIVERY)?;
    for (delivery, is_untold) in new.births(untold) {
        let is_leased = delivery.state == State::Delivering;
        statement.execute(params![
            delivery.tenant_id.as_str(),
            delivery.id.as_str(),
            delivery.event_id.as_str(),
            delivery.event_type,
            delivery.subscription_id.as_str(),
            channel_code(delivery.channel),
            delivery.recipient,
            delivery.state.code(),
            delivery.next_attempt_time.map(Timestamp::as_micros),
            delivery.expire_time.map(Timestamp::as_micros),
            is_leased.then(|| new.node.as_str()),
            (delivery.state == State::Held).then(|| delivery.create_time.as_micros()),
            delivery.trace_id,
            is_untold,
            delivery.create_time.as_micros(),
        ])?;
    }
    Ok(())
}

fn insert_leases(
    transaction: &Connection,
    leases: &[Lease],
    new: &Acceptance<'_>,
) -> Result<(), Error> {
    let mut statement = transaction.prepare_cached(INSERT_LEASE)?;
    for lease in leases {
        statement.execute(params![
            new.node.as_str(),
            lease.number,
            new.now.as_micros(),
            lease.deliveries,
        ])?;
    }
    Ok(())
}
