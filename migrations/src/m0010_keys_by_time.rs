//! Idempotency keys by their time alone, whoever's they are. An index that the tenant leads is entered
//! at another place for each tenant of a transaction; this one always at its end, which costs next to
//! nothing, and on SQLite it is one page to write instead of one for each tenant.

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
DROP INDEX idempotency_keys_by_time
;
CREATE INDEX idempotency_keys_by_time ON idempotency_keys (create_time)
";
