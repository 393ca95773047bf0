//! Statistics of a subscription, counted when they are asked for.

use std::time::Duration;

use sea_orm::ConnectionTrait;

use crate::domain::Timestamp;
use crate::domain::delivery::State;
use crate::domain::id::{DeliveryId, SubscriptionId, TenantId};

use super::bulk::{bigint, text};
use super::{Error, Store};

/// Deliveries, the newest ones that have been attempted, whose attempts are looked at: a busy
/// subscription has millions.
const MAX_DELIVERIES: i64 = 10_000;
/// Attempts of those that are looked at.
const MAX_ATTEMPTS: usize = 10_000;

/// How a subscription has done since some instant.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SubscriptionStats {
    /// Deliveries by state, without the states that have none.
    pub deliveries: Vec<(State, u64)>,
    /// Attempts that were looked at: at most 10,000, of the newest deliveries.
    pub attempts: u64,
    /// Failed attempts since the latest success.
    pub consecutive_failures: u64,
    /// When an attempt succeeded last.
    pub last_success_time: Option<Timestamp>,
    /// When an attempt failed last.
    pub last_failure_time: Option<Timestamp>,
    /// The attempts' durations, the shortest first.
    pub durations: Vec<Duration>,
}

impl SubscriptionStats {
    /// Of the deliveries that have succeeded or failed, the part that succeeded, from 0 to 1.
    pub fn success_rate(&self) -> Option<f64> {
        let count = |wanted| {
            self.deliveries.iter().find(|(state, _)| *state == wanted).map_or(0, |(_, n)| *n)
        };
        let (good, bad) = (count(State::Succeeded), count(State::Failed));
        #[expect(clippy::cast_precision_loss, reason = "a rate needs no more than 52 bits")]
        (good + bad > 0).then(|| good as f64 / (good + bad) as f64)
    }

    /// The duration that `percent` of the attempts did not exceed; `None` without attempts.
    pub fn percentile(&self, percent: usize) -> Option<Duration> {
        let rank = (self.durations.len() * percent).div_ceil(100).max(1);
        self.durations.get(rank - 1).copied()
    }
}

impl Store {
    /// Counts the subscription's deliveries that were made since `from`, and their attempts.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn subscription_stats(
        &self,
        tenant_id: TenantId,
        id: SubscriptionId,
        from: Timestamp,
    ) -> Result<SubscriptionStats, Error> {
        let key = || {
            vec![
                text(tenant_id.as_str()),
                text(id.as_str()),
                text(DeliveryId::first_at(from).as_str()),
                bigint(from.as_micros()),
            ]
        };
        let sql = "SELECT state, count(*) FROM deliveries
            WHERE tenant_id = $1 AND subscription_id = $2 AND id >= $3 AND create_time >= $4 GROUP BY state";
        let mut stats = SubscriptionStats::default();
        for row in self.read.query_all_raw(self.dialect.statement(sql, key())).await? {
            let (code, count): (i16, i64) = (row.try_get_by_index(0)?, row.try_get_by_index(1)?);
            if let Some(state) = State::from_code(code) {
                stats.deliveries.push((state, u64::try_from(count).unwrap_or(0)));
            }
        }
        stats.deliveries.sort_unstable_by_key(|(state, _)| state.code());
        // Ids come from the index in their order: neither the deliveries nor the attempts of the
        // whole time are sorted.
        let sql = format!(
            "SELECT a.start_time, a.duration_us, a.outcome FROM (
                SELECT tenant_id, id FROM deliveries
                WHERE tenant_id = $1 AND subscription_id = $2 AND id >= $3 AND create_time >= $4
                  AND attempt_count > 0
                ORDER BY id DESC LIMIT {MAX_DELIVERIES}) AS d
            JOIN attempts a ON a.tenant_id = d.tenant_id AND a.delivery_id = d.id
            ORDER BY d.id DESC, a.number DESC LIMIT {MAX_ATTEMPTS}"
        );
        let mut attempts: Vec<(i64, i64, i16)> = Vec::new();
        for row in self.read.query_all_raw(self.dialect.statement(sql, key())).await? {
            attempts.push((
                row.try_get_by_index(0)?,
                row.try_get_by_index(1)?,
                row.try_get_by_index(2)?,
            ));
        }
        attempts.sort_unstable_by(|one, other| other.cmp(one));
        for (start_us, duration_us, outcome) in attempts {
            stats.count_attempt(start_us, duration_us, outcome == 1);
        }
        stats.durations.sort_unstable();
        Ok(stats)
    }
}

impl SubscriptionStats {
    /// Takes in an attempt; they come the latest first.
    fn count_attempt(&mut self, start_us: i64, duration_us: i64, succeeded: bool) {
        let start = Timestamp::from_micros(start_us);
        self.attempts += 1;
        self.durations.push(Duration::from_micros(u64::try_from(duration_us).unwrap_or(0)));
        if succeeded {
            self.last_success_time.get_or_insert(start);
        } else {
            self.last_failure_time.get_or_insert(start);
            if self.last_success_time.is_none() {
                self.consecutive_failures += 1;
            }
        }
    }
}
