//! What is remembered of endpoints that fail, and the service's own events that are to be emitted.

use sea_orm_migration::prelude::*;

use crate::dialect;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        dialect::execute(manager, TABLES).await
    }
}

const TABLES: &str = r"
-- How the endpoints of subscriptions fare. A healthy endpoint has no row, or one that is about to go.
CREATE TABLE endpoint_health (
    tenant_id            ID      NOT NULL,
    subscription_id      ID      NOT NULL,
    consecutive_failures INTEGER NOT NULL CHECK (consecutive_failures >= 0),
    failing_since        BIGINT,
    last_error           TEXT,
    -- The breaker is open: nothing is sent before this time, then one probe.
    open_until           BIGINT,
    cool_down_us         BIGINT  NOT NULL CHECK (cool_down_us >= 0),
    -- When the probe that is under way was taken.
    probe_time           BIGINT,
    -- The endpoint asked for fewer requests: nothing is sent before this time.
    slow_until           BIGINT,
    slow_level           INTEGER NOT NULL CHECK (slow_level >= 0),
    recover_time         BIGINT,
    update_time          BIGINT  NOT NULL,
    PRIMARY KEY (tenant_id, subscription_id),
    CHECK ((consecutive_failures = 0) = (failing_since IS NULL)),
    CHECK ((consecutive_failures = 0) = (last_error IS NULL)),
    -- Only failures open a breaker, and an open one has a cool-down.
    CHECK (open_until IS NULL OR consecutive_failures > 0),
    CHECK ((open_until IS NULL) = (cool_down_us = 0)),
    CHECK (probe_time IS NULL OR open_until IS NOT NULL),
    CHECK ((slow_until IS NULL) = (slow_level = 0))
)
;
-- What changed lately: how replicas learn from each other.
CREATE INDEX endpoint_health_changes ON endpoint_health (update_time, tenant_id, subscription_id)
;
-- Events of the service itself, written with the change that they tell of, and removed when they
-- have been emitted. Empty nearly always.
CREATE TABLE announcements (
    tenant_id   ID     NOT NULL,
    -- Also the event's idempotency key: emitting it again makes no second event.
    id          ID     NOT NULL,
    type        ID     NOT NULL,
    subject     TEXT   NOT NULL,
    data        BYTES  NOT NULL,
    create_time BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, id)
)
";
