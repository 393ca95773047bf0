//! Quarantine: how often in a row a delivery's lease has ended with the process that had it, and a
//! reason for those that are set apart.

use sea_orm_migration::prelude::*;

use crate::dialect;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        dialect::execute(manager, COLUMN).await?;
        // 4 and 5 are the contract's reasons of suppressed deliveries; 6 is quarantined.
        let check = ("deliveries", "deliveries_failure_reason_check");
        let reasons = ("failure_reason BETWEEN 1 AND 3", "failure_reason BETWEEN 1 AND 6");
        dialect::change_check(manager, check, reasons).await
    }

    /// Also on SQLite: of two steps that belong together none may be left out.
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}

const COLUMN: &str = r"
-- Leases in a row that ended with the process that had them, and without a result.
ALTER TABLE deliveries ADD COLUMN interrupted_count INTEGER NOT NULL DEFAULT 0 CHECK (interrupted_count >= 0)
";
