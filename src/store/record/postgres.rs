//! Recording on PostgreSQL, when nothing is to be said of endpoints: one statement, which is a
//! transaction of its own. See `docs/adr/0011-one-statement.md`.

use sea_orm::sqlx;

use crate::domain::Timestamp;
use crate::domain::attempt::Attempt;
use crate::domain::delivery::FailureReason;

use super::super::Error;
use super::super::accept::column;
use super::super::error::refused;
use super::super::feed::{Follows, PgQuery, Told, feed_tail};
use super::super::line::postgres::Line;
use super::super::rows::{json, micros, outcome_code, trigger_code};
use super::{Ended, headers, told};

/// Somebody else has changed one of the deliveries first: a cast that fails (invalid text
/// representation), which takes the whole statement back.
const FENCED: &str = "22P02";

/// `$1` to `$6` are the feed's, see `feed_tail`.
const RECORD: &str = concat!(
    "WITH ended AS (
        UPDATE deliveries SET state = r.state, failure_reason = r.failure_reason,
            attempt_count = r.attempt_count, automatic_count = r.automatic_count,
            -- Whoever has a result was not interrupted.
            interrupted_count = CASE WHEN r.attempt_count > deliveries.attempt_count
                THEN 0 ELSE deliveries.interrupted_count END,
            next_attempt_time = r.next_attempt_time, leased_by = NULL, due_time = NULL,
            hold_time = CASE WHEN r.state = 8 THEN r.update_time END,
            last_attempt = r.last_attempt, revision = r.revision, update_time = r.update_time
        FROM (SELECT unnest($7::text[]) AS tenant_id, unnest($8::text[]) AS id,
                unnest($9::bigint[]) AS revision, unnest($10::smallint[]) AS state,
                unnest($11::smallint[]) AS failure_reason, unnest($12::int[]) AS attempt_count,
                unnest($13::int[]) AS automatic_count,
                unnest($14::bigint[]) AS next_attempt_time, unnest($15::text[]) AS last_attempt,
                unnest($16::bigint[]) AS update_time, unnest($17::text[]) AS subscription_id) AS r
        WHERE deliveries.tenant_id = r.tenant_id AND deliveries.id = r.id
          -- It follows from the id. Named, so that each index that the planner may take (of a new table
          -- it knows nothing) leads to one row.
          AND deliveries.subscription_id = r.subscription_id
          -- The fence: only the change that follows the one we know.
          AND deliveries.revision = r.revision - 1
        RETURNING 1),
    new_attempts AS (
        INSERT INTO attempts (tenant_id, delivery_id, number, trigger_code, start_time, duration_us,
            http_status, request_headers, response_headers, response_body, failure, outcome, trace,
            timings, smtp_reply)
        SELECT unnest($18::text[]), unnest($19::text[]), unnest($20::int[]), unnest($21::smallint[]),
            unnest($22::bigint[]), unnest($23::bigint[]), unnest($24::int[]), unnest($25::text[]),
            unnest($26::text[]), unnest($27::bytea[]), unnest($28::text[]), unnest($29::smallint[]),
            unnest($30::text[]), unnest($31::text[]), unnest($32::text[])
        RETURNING 1),
    ready AS (
        -- All or nothing. Who finds some of them fenced writes them one by one with the others.
        SELECT CASE WHEN (SELECT count(*) FROM ended) = cardinality($8::text[])
            THEN (SELECT count(*) FROM new_attempts) >= 0
            -- (The count keeps the planner from casting before the statement runs.)
            ELSE ('others have changed deliveries: not ' || (SELECT count(*) FROM ended))::boolean
            END AS is_ready)",
    feed_tail!(),
);

/// Writes how leases ended; `false`, and nothing is written, when somebody else has changed one of the
/// deliveries.
pub(super) async fn record(
    line: &Line,
    ended: &[Ended],
    births: &[bool],
    now: Timestamp,
    follows: &Follows,
) -> Result<bool, Error> {
    let told = Told::of(told(ended, births, |_| true))?;
    let query = bind_attempts(bind_deliveries(told.query(RECORD, now), ended)?, ended)?;
    fail_point!(RecordBeforeCommit);
    match line.fetch(query).await {
        Ok((_, heads)) => {
            told.committed(follows, &heads.unwrap_or_default());
            Ok(true)
        }
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some(FENCED) => Ok(false),
        Err(error) => Err(refused(error)),
    }
}

fn bind_deliveries<'q>(query: PgQuery<'q>, ended: &'q [Ended]) -> Result<PgQuery<'q>, Error> {
    let mut last = Vec::with_capacity(ended.len());
    for Ended { after, .. } in ended {
        last.push(after.last_attempt.as_ref().map(json).transpose()?);
    }
    Ok(query
        .bind(column(ended, |ended| ended.after.tenant_id.as_str()))
        .bind(column(ended, |ended| ended.after.id.as_str()))
        .bind(column(ended, |ended| ended.after.revision))
        .bind(column(ended, |ended| ended.after.state.code()))
        .bind(column(ended, |ended| ended.after.failure_reason.map(FailureReason::code)))
        .bind(column(ended, |ended| number(ended.after.attempt_count)))
        .bind(column(ended, |ended| number(ended.after.automatic_count)))
        .bind(column(ended, |ended| ended.after.next_attempt_time.map(Timestamp::as_micros)))
        .bind(last)
        .bind(column(ended, |ended| ended.after.update_time.as_micros()))
        .bind(column(ended, |ended| ended.after.subscription_id.as_str())))
}

fn bind_attempts<'q>(query: PgQuery<'q>, ended: &'q [Ended]) -> Result<PgQuery<'q>, Error> {
    let made: Vec<(&Ended, &Attempt)> =
        ended.iter().filter_map(|ended| Some((ended, ended.attempt.as_ref()?))).collect();
    let (mut sent, mut received) = (Vec::new(), Vec::new());
    let (mut failures, mut timings) = (Vec::new(), Vec::new());
    for (_, Attempt { report, .. }) in &made {
        sent.push(headers(&report.request_headers)?);
        received.push(headers(&report.response_headers)?);
        failures.push(report.failure.as_ref().map(json).transpose()?);
        timings.push(report.timings.as_ref().map(json).transpose()?);
    }
    Ok(query
        .bind(column(&made, |(ended, _)| ended.after.tenant_id.to_string()))
        .bind(column(&made, |(_, attempt)| attempt.delivery_id.to_string()))
        .bind(column(&made, |(_, attempt)| number(attempt.number)))
        .bind(column(&made, |(_, attempt)| trigger_code(attempt.trigger)))
        .bind(column(&made, |(_, attempt)| attempt.report.start_time.as_micros()))
        .bind(column(&made, |(_, attempt)| micros(attempt.report.duration)))
        .bind(column(&made, |(_, attempt)| attempt.report.http_status.map(i32::from)))
        .bind(sent)
        .bind(received)
        .bind(column(&made, |(_, attempt)| attempt.report.response_body.clone()))
        .bind(failures)
        .bind(column(&made, |(_, attempt)| outcome_code(&attempt.report.outcome)))
        .bind(column(&made, |(_, attempt)| attempt.trace.to_string()))
        .bind(timings)
        .bind(column(&made, |(_, attempt)| attempt.report.smtp_reply.as_str())))
}

fn number(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}
