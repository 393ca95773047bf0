//! Replicas in this process, on one PostgreSQL: for faults of what lies between them and it.

use std::time::Duration;

use tidings::app::{self, Running};

use super::load::Targets;
use crate::support::app::{metric, options};
use crate::support::{App, Database};

/// When a lease that nobody knows of is given back. (As shipped it takes 45 s.)
const FORGOTTEN_AFTER: Duration = Duration::from_secs(4);

pub(super) struct Replicas {
    pub(super) first: App,
    others: Vec<Running>,
    pub(super) targets: Targets,
}

impl Replicas {
    /// Starts a replica on each of `urls`, ways to the same database.
    pub(super) async fn start(database: Database, urls: &[String], lease: Duration) -> Self {
        let config = |url: &str| {
            let mut options = options(&database);
            options.database_url = url.parse().expect("a database");
            options.lease_ttl = lease;
            let mut config = options.config();
            config.dispatch.forgotten_after = FORGOTTEN_AFTER;
            config
        };
        let configs: Vec<_> = urls.iter().map(|url| config(url)).collect();
        let (first, rest) = configs.split_first().expect("a replica");
        let first = App::start_configured(database, first.clone()).await;
        let targets = Targets::default();
        targets.add(&first.endpoint());
        let mut others = Vec::new();
        for config in rest {
            let other = app::start(config.clone()).await.expect("started");
            targets.add(&format!("http://{}", other.grpc_addr()));
            others.push(other);
        }
        Self { first, others, targets }
    }

    /// Where a replica but the first one is served.
    pub(super) fn endpoint(&self, number: usize) -> String {
        format!("http://{}", self.others[number - 1].grpc_addr())
    }

    /// The value of a metric of a replica but the first one.
    pub(super) async fn metric(&self, number: usize, series: &str) -> i64 {
        metric(self.others[number - 1].http_addr(), series).await
    }

    /// Stops all of them, which no fault may have broken.
    pub(super) async fn stop(self) {
        for mut other in self.others {
            let failed = tokio::time::timeout(Duration::from_millis(300), other.wait_failed());
            assert!(failed.await.is_err(), "a part of a replica has ended by itself");
            other.stop().await;
        }
        self.first.stop().await;
    }
}
