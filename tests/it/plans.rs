//! The hot queries read what they need by an index, however large the tables grow: each one's plan
//! is asked for on both databases, with rows in the tables.

use sea_orm::{ConnectOptions, ConnectionTrait, Database as SeaDatabase, DbBackend, Statement};

use crate::support::Database;
use crate::support::make::Maker;

/// The statements as the store writes them, with values in place of the parameters.
const STATEMENTS: &[(&str, &str)] = &[
    (
        "the tenant's next subscription with something scheduled",
        "SELECT d.tenant_id FROM deliveries d
         WHERE d.next_attempt_time IS NOT NULL AND d.tenant_id = 'ten_0' AND d.subscription_id > 'sub_0'
         ORDER BY d.tenant_id, d.subscription_id LIMIT 1",
    ),
    (
        "the next tenant's first one",
        "SELECT d.tenant_id FROM deliveries d
         WHERE d.next_attempt_time IS NOT NULL AND d.tenant_id > 'ten_0'
         ORDER BY d.tenant_id, d.subscription_id LIMIT 1",
    ),
    (
        "the next subscription with the time of its first delivery (PostgreSQL)",
        "SELECT d.tenant_id, d.subscription_id, d.next_attempt_time FROM deliveries d
         WHERE d.next_attempt_time IS NOT NULL AND (d.tenant_id, d.subscription_id) > ('ten_0', 'sub_0')
         ORDER BY d.tenant_id, d.subscription_id, d.next_attempt_time LIMIT 1",
    ),
    (
        "when a subscription's first delivery is due",
        "SELECT min(d.next_attempt_time) FROM deliveries d
         WHERE d.next_attempt_time IS NOT NULL AND d.tenant_id = 'ten_0' AND d.subscription_id = 'sub_0'",
    ),
    (
        "what is due of a subscription",
        "SELECT tenant_id, id FROM deliveries
         WHERE tenant_id = 'ten_0' AND subscription_id = 'sub_0' AND next_attempt_time <= 5
         ORDER BY next_attempt_time LIMIT 64",
    ),
    (
        "the next node with leases",
        "SELECT min(l.node) FROM leases l WHERE l.node > 'nod_0'",
    ),
    ("what a node has leased", "SELECT number, deliveries FROM leases WHERE node = 'nod_0' ORDER BY number LIMIT 100"),
    (
        "what is held of a subscription",
        "SELECT tenant_id, id FROM deliveries
         WHERE tenant_id = 'ten_0' AND subscription_id = 'sub_0' AND hold_time IS NOT NULL LIMIT 500",
    ),
    (
        "what has expired",
        "SELECT tenant_id, id FROM deliveries
         WHERE expire_time IS NOT NULL AND expire_time <= 5
           AND (next_attempt_time IS NOT NULL OR hold_time IS NOT NULL) LIMIT 500",
    ),
    ("a delivery by its key", "SELECT * FROM deliveries WHERE tenant_id = 'ten_0' AND id = 'dlv_0'"),
    (
        "the deliveries of an event",
        "SELECT * FROM deliveries WHERE tenant_id = 'ten_0' AND id >= 'dlv_0' AND id < 'dlv_1' AND event_id = 'evt_0'",
    ),
    (
        "a subscription's deliveries",
        "SELECT * FROM deliveries WHERE tenant_id = 'ten_0' AND subscription_id = 'sub_0' ORDER BY id DESC LIMIT 50",
    ),
    (
        "an event's deliveries in a snapshot",
        "SELECT * FROM deliveries d WHERE d.tenant_id = 'ten_0' AND d.id > 'dlv_00'
         AND (d.untold = 0 OR d.revision > 1) AND d.event_id = 'evt_0'
         AND d.id >= 'dlv_0' AND d.id < 'dlv_1' ORDER BY d.id LIMIT 200",
    ),
    (
        "births that are told of by themselves",
        // In place of the rows that are given, some that are looked up: rows are scanned.
        "SELECT d.tenant_id, d.id FROM deliveries d
         WHERE (d.tenant_id, d.id) IN (SELECT id, display_name FROM tenants WHERE id IN ('ten_0', 'ten_1'))
           AND d.untold = 1 AND d.revision = 1",
    ),
    (
        "the newest deliveries of a subscription that were attempted",
        "SELECT tenant_id, id FROM deliveries
         WHERE tenant_id = 'ten_0' AND subscription_id = 'sub_0' AND id >= 'dlv_0' AND create_time >= 5
           AND attempt_count > 0 ORDER BY id DESC LIMIT 10000",
    ),
    (
        "the feed behind a position",
        "SELECT position, changes FROM feed WHERE tenant_id = 'ten_0' AND position > 5 ORDER BY position LIMIT 64",
    ),
    (
        "endpoints whose health changed",
        "SELECT * FROM endpoint_health WHERE (update_time, tenant_id, subscription_id) > (5, 'ten_0', 'sub_0')
         ORDER BY update_time, tenant_id, subscription_id LIMIT 1000",
    ),
    (
        "the health of a tenant's endpoints",
        "SELECT * FROM endpoint_health WHERE tenant_id = 'ten_0' AND subscription_id IN ('sub_0', 'sub_1')",
    ),
    ("a mail that came back", "SELECT tenant_id FROM deliveries WHERE id = 'dlv_0' AND channel = 2"),
    (
        "what of an address is suppressed",
        "SELECT s.reason FROM suppressions s WHERE s.tenant_id = 'ten_0' AND s.address = 'a@b.com'
         AND (s.subscription_id = '' OR s.subscription_id = 'sub_0')",
    ),
    (
        "a page of suppressions",
        "SELECT s.address FROM suppressions s
         WHERE s.tenant_id = 'ten_0' AND (s.address, s.subscription_id) > ('a@b.com', '')
         ORDER BY s.address, s.subscription_id LIMIT 500",
    ),
    ("announcements", "SELECT * FROM announcements ORDER BY tenant_id, id LIMIT 500"),
    (
        "where a page of old deliveries ends",
        "SELECT id FROM deliveries
         WHERE tenant_id = 'ten_0' AND id >= 'dlv_0' AND id < 'dlv_1' ORDER BY id LIMIT 1000",
    ),
    (
        "old events without an unfinished delivery",
        "DELETE FROM events WHERE tenant_id = 'ten_0' AND id >= 'evt_0' AND id < 'evt_1'
         AND id NOT IN (SELECT event_id FROM deliveries
             WHERE tenant_id = 'ten_0' AND id >= 'dlv_0' AND id < 'dlv_1' AND state IN (1, 2, 8))",
    ),
    (
        "the deliveries of events that went",
        "DELETE FROM deliveries WHERE tenant_id = 'ten_0' AND id >= 'dlv_0' AND id < 'dlv_1'
         AND event_id NOT IN (SELECT id FROM events WHERE tenant_id = 'ten_0' AND id >= 'evt_0' AND id < 'evt_1')",
    ),
    (
        "the attempts of deliveries that went",
        "DELETE FROM attempts WHERE tenant_id = 'ten_0' AND delivery_id >= 'dlv_0' AND delivery_id < 'dlv_1'
         AND delivery_id NOT IN (SELECT id FROM deliveries WHERE tenant_id = 'ten_0' AND id >= 'dlv_0' AND id < 'dlv_1')",
    ),
    (
        "the oldest idempotency keys",
        "SELECT tenant_id, idempotency_key FROM idempotency_keys
         WHERE create_time < 5 ORDER BY create_time LIMIT 2000",
    ),
    (
        "idempotency keys that are removed",
        // In place of the rows that are given, some that are looked up: rows are scanned.
        "DELETE FROM idempotency_keys WHERE create_time + 0 < 5
         AND (tenant_id, idempotency_key) IN (SELECT id, display_name FROM tenants WHERE id IN ('ten_0', 'ten_1'))",
    ),
    ("a key by its hash", "SELECT * FROM api_keys WHERE hash = 'abc'"),
    ("a tenant's version", "SELECT tenant_id, version FROM tenant_config WHERE tenant_id IN ('', 'ten_0')"),
];

on_both! {
    async fn every_hot_query_uses_an_index(database: Database) {
        let (store, maker) = (database.open().await, Maker::new(31));
        let now = store.now().await.expect("now");
        let tenant = maker.tenant(&store, now).await;
        let subscription = maker.subscription(&store, tenant.id, now).await;
        maker.deliveries(&store, &subscription, 500, maker.node(now), false, now).await;
        maker.deliveries(&store, &subscription, 500, maker.node(now), true, now).await;

        // One connection: the setting below belongs to it.
        let mut options = ConnectOptions::new(&database.config.database_url);
        options.max_connections(1);
        let connection = SeaDatabase::connect(options).await.expect("connected");
        let backend = connection.get_database_backend();
        if backend == DbBackend::Postgres {
            connection.execute_unprepared("ANALYZE").await.expect("analyzed");
        }
        for (name, statement) in STATEMENTS {
            let statement = statement.replace("hash = 'abc'", if backend == DbBackend::Postgres { "hash = 'abc'::bytea" } else { "hash = x'00'" });
            let plan = if backend == DbBackend::Postgres {
                // Tables of a test are small: a scan would be cheap. The question is whether the
                // index can serve at all.
                connection.execute_unprepared("SET enable_seqscan = off").await.expect("set");
                explain(&connection, &format!("EXPLAIN {statement}"), 0).await
            } else {
                explain(&connection, &format!("EXPLAIN QUERY PLAN {statement}"), 3).await
            };
            let is_scan = plan.contains("Seq Scan") || plan.lines().any(|line| line.contains("SCAN") && !line.contains("INDEX"));
            assert!(!is_scan, "{name} reads a whole table:\n{plan}");
            // The claim must come sorted from its index: sorting a million due deliveries is no claim.
            let is_sorted = plan.contains("Sort") || plan.contains("TEMP B-TREE");
            assert!(!is_sorted, "{name} sorts:\n{plan}");
        }
    }
}

async fn explain(connection: &impl ConnectionTrait, sql: &str, column: usize) -> String {
    let rows = connection
        .query_all_raw(Statement::from_string(connection.get_database_backend(), sql))
        .await
        .expect("explained");
    let lines: Vec<String> =
        rows.iter().map(|row| row.try_get_by_index(column).expect("text")).collect();
    lines.join("\n")
}
