//! Secrets at rest: what is confidential moves into sealed columns.
//!
//! The step makes room; the rows are sealed by the service or by `tidings migrate` right after it,
//! because only they have the key. From then on `subscriptions.secrets` and `tenants.webhook_url`
//! are empty, and `subscriptions.channel` has neither the URL's path and query nor headers' values.

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
-- An envelope: version, key id, nonce, ciphertext. NULL until the row is sealed; empty when there is
-- nothing to seal any more.
ALTER TABLE subscriptions ADD COLUMN sealed BYTES
;
ALTER TABLE tenants ADD COLUMN sealed BYTES
;
-- One row: tells a wrong key, and whether everything is sealed.
CREATE TABLE vault (
    id          SMALLINT NOT NULL PRIMARY KEY CHECK (id = 1),
    -- A known text, sealed.
    check_value BYTES,
    -- 1 when nothing stands in the clear any more, free pages included.
    all_sealed  SMALLINT NOT NULL CHECK (all_sealed BETWEEN 0 AND 1)
)
;
INSERT INTO vault (id, check_value, all_sealed) VALUES (1, NULL, 0)
";
