//! What removing old rows needs: the oldest idempotency keys of a tenant, without reading the others.
//! And what giving back a lease needs: when a delivery was due that is leased for a manual attempt.

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
CREATE INDEX idempotency_keys_by_time ON idempotency_keys (tenant_id, create_time)
;
-- Set by the lease of a manual attempt alone: any other lease is taken when the delivery is due.
ALTER TABLE deliveries ADD COLUMN due_time BIGINT CHECK (due_time IS NULL OR state = 2)
";
