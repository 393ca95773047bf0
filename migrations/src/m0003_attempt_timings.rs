//! Where an attempt's time went.

use sea_orm_migration::prelude::*;

use crate::dialect;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        dialect::execute(manager, STATEMENTS).await
    }
}

const STATEMENTS: &str = r"
-- The phases as a JSON document, in microseconds. NULL of attempts from before this step.
ALTER TABLE attempts ADD COLUMN timings TEXT
";
