//! Leases in groups, so that the usual course of a delivery touches no index.
//!
//! A delivery is born leased and becomes SUCCEEDED: PostgreSQL makes such a change in place (a
//! heap-only tuple) when no column that an index names is changed by it and the page has room. So no
//! index names the state or the node any more: what a node has stands in `leases`, one row for many
//! deliveries.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::DbBackend;

use crate::dialect;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        dialect::execute(manager, STATEMENTS).await?;
        let check = ("deliveries", "deliveries_held_since");
        let held = ("hold_time IS NULL OR state = 8", "(state = 8) = (hold_time IS NOT NULL)");
        dialect::change_check(manager, check, held).await?;
        if manager.get_connection().get_database_backend() == DbBackend::Postgres {
            dialect::execute(manager, ROOM).await?;
        }
        Ok(())
    }

    /// Also on SQLite: half of this step would lose leases.
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}

const STATEMENTS: &str = r#"
-- Which deliveries a node may have: whoever leases some says so here, in the same transaction. A row
-- goes when none of its deliveries is leased by it any more; until then it may name some that are not.
CREATE TABLE leases (
    node        ID     NOT NULL,
    -- The node counts.
    number      BIGINT NOT NULL,
    create_time BIGINT NOT NULL,
    -- A JSON array: for each tenant its id and an array of its deliveries' ids.
    deliveries  TEXT   NOT NULL,
    PRIMARY KEY (node, number)
)
;
INSERT INTO leases (node, number, create_time, deliveries)
SELECT lease_node, row_number() OVER (PARTITION BY lease_node ORDER BY tenant_id, id), update_time,
    '[["' || tenant_id || '",["' || id || '"]]]'
FROM deliveries WHERE state = 2
;
DROP INDEX deliveries_leased
;
DROP INDEX deliveries_due
;
DROP INDEX deliveries_held
;
DROP INDEX deliveries_expiring
;
-- Also so that a replica of an earlier version, which says nothing in `leases`, can lease nothing.
ALTER TABLE deliveries RENAME COLUMN lease_node TO leased_by
;
-- Since when it is held.
ALTER TABLE deliveries ADD COLUMN hold_time BIGINT CONSTRAINT deliveries_held_since CHECK (hold_time IS NULL OR state = 8)
;
UPDATE deliveries SET hold_time = update_time WHERE state = 8
;
-- What is due, subscription by subscription: the claim. Only a scheduled delivery has such a time.
CREATE INDEX deliveries_due ON deliveries (tenant_id, subscription_id, next_attempt_time)
WHERE next_attempt_time IS NOT NULL
;
-- What is held, to be released.
CREATE INDEX deliveries_held ON deliveries (tenant_id, subscription_id) WHERE hold_time IS NOT NULL
;
-- What has to end by itself.
CREATE INDEX deliveries_expiring ON deliveries (expire_time)
WHERE expire_time IS NOT NULL AND (next_attempt_time IS NOT NULL OR hold_time IS NOT NULL)
"#;

/// Room on each page for its rows as they will stand after their attempts; and for the heads of feeds,
/// which are updated all the time, for versions that nobody needs any more but that are not yet removed.
const ROOM: &str = r"
ALTER TABLE deliveries SET (fillfactor = 45)
;
ALTER TABLE feed_heads SET (fillfactor = 25)
";
