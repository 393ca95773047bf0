//! Mail: how a tenant reads, addresses that get nothing more, and what a mail server answered.

use sea_orm_migration::prelude::*;

use crate::dialect;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        dialect::execute(manager, STATEMENTS).await
    }

    /// Also on SQLite: a half of this step would stand in the way of the next try.
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}

const STATEMENTS: &str = r"
-- A BCP 47 tag and an IANA zone; '' for the defaults.
ALTER TABLE tenants ADD COLUMN locale TEXT NOT NULL DEFAULT ''
;
ALTER TABLE tenants ADD COLUMN time_zone TEXT NOT NULL DEFAULT ''
;
-- The event types that the primary contact does not get: a JSON array of patterns.
ALTER TABLE tenants ADD COLUMN primary_contact_off TEXT NOT NULL DEFAULT '[]'
;
-- What the mail server answered; '' for attempts of other kinds.
ALTER TABLE attempts ADD COLUMN smtp_reply TEXT NOT NULL DEFAULT ''
;
-- Addresses that get nothing more of a tenant's mail, or of one subscription's.
CREATE TABLE suppressions (
    tenant_id       ID       NOT NULL,
    -- Folded: every spelling of an address is this one.
    address         ID       NOT NULL,
    -- '' for all of the tenant's mail.
    subscription_id ID       NOT NULL,
    -- 1 by hand, 2 unsubscribed, 3 bounced, 4 complained.
    reason          SMALLINT NOT NULL CHECK (reason BETWEEN 1 AND 4),
    detail          TEXT     NOT NULL,
    -- The delivery that it came of; '' when it is not known.
    delivery_id     ID       NOT NULL,
    create_time     BIGINT   NOT NULL,
    PRIMARY KEY (tenant_id, address, subscription_id)
)
;
-- A mail that comes back names its delivery alone. Only mails pay for it.
CREATE INDEX deliveries_mailed ON deliveries (id) WHERE channel = 2
";
