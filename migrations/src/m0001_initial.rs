//! The first schema.
//!
//! Every key leads with the tenant, so that the tables can be sharded by tenant. Instants are
//! microseconds since the Unix epoch. Documents are JSON text, payloads are bytes: neither database
//! may rewrite them.

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
CREATE TABLE tenants (
    id              ID     NOT NULL PRIMARY KEY,
    display_name    TEXT   NOT NULL,
    environment     TEXT   NOT NULL,
    account_id      BIGINT,
    primary_contact TEXT   NOT NULL,
    webhook_url     TEXT   NOT NULL,
    labels          TEXT   NOT NULL,
    retry_policy    TEXT,
    revision        BIGINT NOT NULL,
    create_time     BIGINT NOT NULL,
    update_time     BIGINT NOT NULL,
    -- Set while the tenant's rows are being removed; nobody sees the tenant from then on.
    delete_time     BIGINT
)
;
-- Counts the changes of a tenant's subscriptions, event types and settings: what a cache compares
-- before it is believed. The row '' belongs to the platform's own event types.
CREATE TABLE tenant_config (
    tenant_id ID     NOT NULL PRIMARY KEY,
    version   BIGINT NOT NULL
)
;
INSERT INTO tenant_config (tenant_id, version) VALUES ('', 1)
;
CREATE TABLE api_keys (
    -- '' for an operator's key, which serves all tenants.
    tenant_id     ID     NOT NULL,
    id            ID     NOT NULL,
    -- SHA-256 of the key's text. The text itself is stored nowhere.
    hash          BYTES  NOT NULL,
    display_name  TEXT   NOT NULL,
    prefix        TEXT   NOT NULL,
    scopes        TEXT   NOT NULL,
    create_time   BIGINT NOT NULL,
    expire_time   BIGINT,
    revoke_time   BIGINT,
    last_use_time BIGINT,
    PRIMARY KEY (tenant_id, id)
)
;
CREATE INDEX api_keys_by_hash ON api_keys (hash)
;
CREATE TABLE event_types (
    -- '' for the platform's own, which every tenant sees.
    tenant_id   ID     NOT NULL,
    name        ID     NOT NULL,
    spec        TEXT   NOT NULL,
    revision    BIGINT NOT NULL,
    create_time BIGINT NOT NULL,
    update_time BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, name)
)
;
CREATE TABLE subscriptions (
    tenant_id      ID       NOT NULL,
    id             ID       NOT NULL,
    display_name   TEXT     NOT NULL,
    event_types    TEXT     NOT NULL,
    channel        TEXT     NOT NULL,
    retry_policy   TEXT,
    labels         TEXT     NOT NULL,
    secrets        TEXT     NOT NULL,
    -- 1 active, 2 paused, 3 disabled.
    state          SMALLINT NOT NULL CHECK (state BETWEEN 1 AND 3),
    -- 1 gone, 2 failing.
    disable_reason SMALLINT CHECK (disable_reason BETWEEN 1 AND 2),
    -- 0 while deliveries still have to follow a change of state (to be held, released, canceled).
    settled        SMALLINT NOT NULL CHECK (settled BETWEEN 0 AND 1),
    revision       BIGINT   NOT NULL,
    create_time    BIGINT   NOT NULL,
    update_time    BIGINT   NOT NULL,
    -- Set while its deliveries are being canceled; nobody sees the subscription from then on.
    delete_time    BIGINT,
    PRIMARY KEY (tenant_id, id),
    CHECK ((state = 3) = (disable_reason IS NOT NULL))
)
;
-- The janitor's work list, empty nearly always.
CREATE INDEX subscriptions_unsettled ON subscriptions (tenant_id, id) WHERE settled = 0
;
CREATE TABLE events (
    tenant_id    ID     NOT NULL,
    id           ID     NOT NULL,
    type         ID     NOT NULL,
    subject      TEXT   NOT NULL,
    -- The payload as it was emitted, byte for byte.
    data         BYTES  NOT NULL,
    labels       TEXT   NOT NULL,
    occur_time   BIGINT NOT NULL,
    create_time  BIGINT NOT NULL,
    deliver_time BIGINT,
    expire_time  BIGINT,
    -- A W3C traceparent: the span in which the event was emitted.
    trace        TEXT   NOT NULL,
    PRIMARY KEY (tenant_id, id)
)
;
CREATE TABLE idempotency_keys (
    tenant_id      ID      NOT NULL,
    idempotency_key ID     NOT NULL,
    -- SHA-256 over the request: the same key with another request is refused.
    fingerprint    BYTES   NOT NULL,
    event_id       ID      NOT NULL,
    delivery_count INTEGER NOT NULL,
    create_time    BIGINT  NOT NULL,
    PRIMARY KEY (tenant_id, idempotency_key)
)
;
CREATE TABLE deliveries (
    tenant_id         ID       NOT NULL,
    id                ID       NOT NULL,
    event_id          ID       NOT NULL,
    event_type        ID       NOT NULL,
    subscription_id   ID       NOT NULL,
    -- 1 webhook, 2 email.
    channel           SMALLINT NOT NULL,
    recipient         TEXT     NOT NULL,
    -- 1 scheduled, 2 delivering, 3 succeeded, 4 failed, 5 canceled, 6 expired, 7 suppressed, 8 held.
    state             SMALLINT NOT NULL CHECK (state BETWEEN 1 AND 8),
    -- 1 exhausted, 2 permanent, 3 subscription deleted.
    failure_reason    SMALLINT CHECK (failure_reason BETWEEN 1 AND 3),
    attempt_count     INTEGER  NOT NULL CHECK (attempt_count >= 0),
    automatic_count   INTEGER  NOT NULL CHECK (automatic_count BETWEEN 0 AND attempt_count),
    next_attempt_time BIGINT,
    expire_time       BIGINT,
    -- The node that attempts it.
    lease_node        ID,
    recover_time      BIGINT,
    last_attempt      TEXT,
    trace_id          TEXT     NOT NULL,
    -- Counts the changes from 1, and fences them: who has not seen the last change makes no other.
    revision          BIGINT   NOT NULL CHECK (revision >= 1),
    create_time       BIGINT   NOT NULL,
    update_time       BIGINT   NOT NULL,
    PRIMARY KEY (tenant_id, id),
    -- A scheduled delivery is due at some time; no other is.
    CHECK ((state = 1) = (next_attempt_time IS NOT NULL)),
    -- A delivery under way has a node; no other has.
    CHECK ((state = 2) = (lease_node IS NOT NULL)),
    -- A failure has a reason.
    CHECK (state <> 4 OR failure_reason IS NOT NULL)
)
;
-- What is due, subscription by subscription: the claim.
CREATE INDEX deliveries_due ON deliveries (tenant_id, subscription_id, next_attempt_time) WHERE state = 1
;
-- What is held, to be released.
CREATE INDEX deliveries_held ON deliveries (tenant_id, subscription_id) WHERE state = 8
;
-- What a node has, to be taken over when it falls silent.
CREATE INDEX deliveries_leased ON deliveries (lease_node) WHERE state = 2
;
-- What has to end by itself.
CREATE INDEX deliveries_expiring ON deliveries (expire_time) WHERE expire_time IS NOT NULL AND state IN (1, 8)
;
-- What a subscription got, newest last: lists and statistics.
CREATE INDEX deliveries_by_subscription ON deliveries (tenant_id, subscription_id, id)
;
CREATE TABLE attempts (
    tenant_id        ID       NOT NULL,
    delivery_id      ID       NOT NULL,
    number           INTEGER  NOT NULL CHECK (number >= 1),
    -- 1 automatic, 2 manual.
    trigger_code     SMALLINT NOT NULL,
    start_time       BIGINT   NOT NULL,
    duration_us      BIGINT   NOT NULL,
    http_status      INTEGER,
    request_headers  TEXT     NOT NULL,
    response_headers TEXT     NOT NULL,
    response_body    BYTES    NOT NULL,
    -- The failure as a JSON document: its kind and a sentence.
    failure          TEXT,
    outcome          SMALLINT NOT NULL,
    -- A W3C traceparent: the attempt's own span.
    trace            TEXT     NOT NULL,
    PRIMARY KEY (tenant_id, delivery_id, number)
)
;
-- Where each tenant's feed ends, and up to where it has been removed.
CREATE TABLE feed_heads (
    tenant_id ID     NOT NULL PRIMARY KEY,
    position  BIGINT NOT NULL,
    floor     BIGINT NOT NULL
)
;
-- What changed, in order of commit: one row per transaction and tenant. A position is taken by
-- updating the tenant's head, whose row stays locked until the commit: positions become visible in
-- their order, without gaps.
CREATE TABLE feed (
    tenant_id   ID     NOT NULL,
    position    BIGINT NOT NULL,
    create_time BIGINT NOT NULL,
    -- A JSON array of deliveries as they stood after the change.
    changes     BYTES  NOT NULL,
    PRIMARY KEY (tenant_id, position)
)
;
-- The running service processes, and until when each may be believed.
CREATE TABLE nodes (
    id                ID     NOT NULL PRIMARY KEY,
    start_time        BIGINT NOT NULL,
    lease_expire_time BIGINT NOT NULL
)
";
