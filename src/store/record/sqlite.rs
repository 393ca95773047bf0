//! Recording on SQLite, when nothing is to be said of endpoints: one transaction, with one prepared
//! statement for each kind of row. See `docs/adr/0014-sqlite-line.md`.

use std::collections::HashSet;

use rusqlite::{Connection, params};

use crate::domain::Timestamp;
use crate::domain::attempt::Attempt;
use crate::domain::delivery::{Delivery, FailureReason};
use crate::domain::id::DeliveryId;

use super::super::Error;
use super::super::feed::{Follows, Told};
use super::super::line::sqlite::{End, Line};
use super::super::rows::{json, micros, outcome_code, trigger_code};
use super::{Ended, headers, told};

const UPDATE_DELIVERY: &str = "UPDATE deliveries SET state = ?4, failure_reason = ?5,
        -- Whoever has a result was not interrupted.
        interrupted_count = CASE WHEN ?6 > attempt_count THEN 0 ELSE interrupted_count END,
        attempt_count = ?6, automatic_count = ?7, next_attempt_time = ?8, leased_by = NULL,
        due_time = NULL, hold_time = CASE WHEN ?4 = 8 THEN ?10 END, last_attempt = ?9,
        revision = ?3, update_time = ?10
    -- The fence: only the change that follows the one we know.
    WHERE tenant_id = ?1 AND id = ?2 AND revision = ?3 - 1";

const INSERT_ATTEMPT: &str = "INSERT INTO attempts (tenant_id, delivery_id, number, trigger_code,
        start_time, duration_us, http_status, request_headers, response_headers, response_body, failure,
        outcome, trace, timings, smtp_reply)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)";

/// Writes how leases ended. Returns the deliveries that somebody else had changed first: nothing was
/// written for them.
pub(super) async fn record(
    line: &Line,
    ended: &[Ended],
    births: &[bool],
    now: Timestamp,
    follows: &Follows,
) -> Result<HashSet<DeliveryId>, Error> {
    let all = Told::of(told(ended, births, |_| true))?;
    let mut heads = Vec::new();
    let fenced = line
        .run(|transaction| {
            let mut fenced = HashSet::new();
            for Ended { after, .. } in ended {
                if !update_delivery(transaction, after)? {
                    fenced.insert(after.id);
                }
            }
            let done = || ended.iter().filter(|ended| !fenced.contains(&ended.after.id));
            for Ended { after, attempt } in done() {
                if let Some(attempt) = attempt {
                    insert_attempt(transaction, after, attempt)?;
                }
            }
            if fenced.is_empty() {
                heads = all.write(transaction, now)?;
            } else {
                let done = told(ended, births, |id| !fenced.contains(&id));
                Told::of(done)?.write(transaction, now)?;
            }
            fail_point_blocking!(RecordBeforeCommit);
            Ok(End::Commit(fenced))
        })
        .await?;
    all.committed(follows, &heads);
    Ok(fenced)
}

/// Whether it was changed.
fn update_delivery(transaction: &Connection, after: &Delivery) -> Result<bool, Error> {
    let last = after.last_attempt.as_ref().map(json).transpose()?;
    let changed = transaction.prepare_cached(UPDATE_DELIVERY)?.execute(params![
        after.tenant_id.as_str(),
        after.id.as_str(),
        after.revision,
        after.state.code(),
        after.failure_reason.map(FailureReason::code),
        after.attempt_count,
        after.automatic_count,
        after.next_attempt_time.map(Timestamp::as_micros),
        last,
        after.update_time.as_micros(),
    ])?;
    Ok(changed > 0)
}

fn insert_attempt(
    transaction: &Connection,
    after: &Delivery,
    attempt: &Attempt,
) -> Result<(), Error> {
    let report = &attempt.report;
    transaction.prepare_cached(INSERT_ATTEMPT)?.execute(params![
        after.tenant_id.as_str(),
        attempt.delivery_id.as_str(),
        attempt.number,
        trigger_code(attempt.trigger),
        report.start_time.as_micros(),
        micros(report.duration),
        report.http_status,
        headers(&report.request_headers)?,
        headers(&report.response_headers)?,
        report.response_body,
        report.failure.as_ref().map(json).transpose()?,
        outcome_code(&report.outcome),
        attempt.trace.to_string(),
        report.timings.as_ref().map(json).transpose()?,
        report.smtp_reply,
    ])?;
    Ok(())
}
