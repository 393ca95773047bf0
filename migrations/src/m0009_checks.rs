//! PostgreSQL reads the text of every check anew with each statement that writes: on `deliveries` that
//! took nearly half as long as the write of one row. What the checks say is decided by the service in
//! one place, and SQLite, which compiles them once, still holds it to them; on PostgreSQL the tests put
//! them back. See `docs/adr/0017-checks.md`.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::DbBackend;

use crate::dialect;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

/// What is checked no more on PostgreSQL: the table, the name, and what holds all the same.
pub const CHECKS: [(&str, &str, &str); 12] = [
    ("deliveries", "deliveries_state_check", "state BETWEEN 1 AND 8"),
    ("deliveries", "deliveries_failure_reason_check", "failure_reason BETWEEN 1 AND 6"),
    ("deliveries", "deliveries_attempt_count_check", "attempt_count >= 0"),
    ("deliveries", "deliveries_check", "automatic_count BETWEEN 0 AND attempt_count"),
    ("deliveries", "deliveries_revision_check", "revision >= 1"),
    ("deliveries", "deliveries_check1", "(state = 1) = (next_attempt_time IS NOT NULL)"),
    ("deliveries", "deliveries_check2", "(state = 2) = (leased_by IS NOT NULL)"),
    ("deliveries", "deliveries_check3", "state <> 4 OR failure_reason IS NOT NULL"),
    ("deliveries", "deliveries_check4", "due_time IS NULL OR state = 2"),
    ("deliveries", "deliveries_interrupted_count_check", "interrupted_count >= 0"),
    ("deliveries", "deliveries_held_since", "(state = 8) = (hold_time IS NOT NULL)"),
    ("attempts", "attempts_number_check", "number >= 1"),
];

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        if manager.get_connection().get_database_backend() != DbBackend::Postgres {
            return Ok(());
        }
        for (table, name, _) in CHECKS {
            let drop = format!("ALTER TABLE {table} DROP CONSTRAINT {name}");
            dialect::execute(manager, &drop).await?;
        }
        Ok(())
    }
}
