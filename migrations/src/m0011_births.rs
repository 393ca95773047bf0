//! What a delivery's acceptance tells may be told with what follows it. So that whoever changes the delivery
//! next knows, on whichever replica, the row says so.

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
-- 1 while the feed has not been told that the delivery was accepted. Says something of the first revision
-- only: whoever makes the second one has told of both.
ALTER TABLE deliveries ADD COLUMN untold SMALLINT NOT NULL DEFAULT 0
";
