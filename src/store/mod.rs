//! All SQL: what Tidings remembers, in SQLite or in PostgreSQL.
//!
//! One concrete type, [`Store`], with one file per group of queries; the differences between the
//! two databases stand in `dialect`. No sea-orm type leaves this module. Expected races are values
//! (an enum variant, a count), not errors.

mod accept;
mod announcements;
mod bulk;
mod catalog;
mod claim;
mod clock;
mod connect;
mod deliveries;
mod dialect;
mod ends;
mod entity;
mod error;
mod event_types;
mod events;
mod feed;
mod health;
mod keys;
mod leases;
mod line;
mod nodes;
mod page;
mod pooler;
mod purge;
mod record;
mod rows;
#[cfg(test)]
mod sample;
mod settle;
mod stats;
mod subscriptions;
mod suppressions;
mod tenants;
mod vault;
mod wake;

pub use accept::{AcceptResult, Acceptance, IdempotencyKey, KeyUse};
pub use announcements::Announcement;
pub use catalog::{Catalog, CatalogCache, Look, PlatformCatalog, TenantCatalog, TypeInfo};
pub use claim::{Candidate, Claim, Claimed, Room, SubscriptionRef, admitted};
pub use clock::DatabaseClock;
pub use connect::{Config, Database};
pub use deliveries::{CancelResult, DeliveryFilter, ManualClaim};
pub use error::{Error, Update};
pub use events::EventFilter;
pub use feed::{FeedHead, FeedRow, Follower, SnapshotPage};
pub use health::{EndpointHealth, HealthChange, Observed};
pub use leases::Release;
pub use page::Page;
pub use purge::{Purged, Retention};
pub use record::{Ended, LateResult, Recorded};
pub use stats::SubscriptionStats;
pub use suppressions::{FeedbackResult, Suppressing};
pub use vault::{
    KeyId, KeySource, KeyText, KeyUsage, MASTER_KEY_PREFIX, MasterKey, NoRandomness, Prepared,
    Rewrapped, SealedRow, Table, VaultStatus, add_master_key,
};
pub use wake::Listener;
use wake::SettingsSeen;

use sea_orm::DatabaseConnection;

use dialect::Dialect;
use ends::Ends;
use feed::{Births, Follows};
use leases::Leases;
use line::Lines;
use pooler::Sessions;
use vault::Vault;
use wake::Wakes;

/// The database: one writing side and one reading side.
///
/// On SQLite the writing side is a single connection, since SQLite has a single writer, and the
/// reading side a pool. On PostgreSQL both are the same pool. The hot path has connections of its own.
#[derive(Clone, Debug)]
pub struct Store {
    write: DatabaseConnection,
    read: DatabaseConnection,
    lines: Lines,
    dialect: Dialect,
    wakes: Wakes,
    follows: Follows,
    births: Births,
    sessions: Sessions,
    ends: Ends,
    leases: Leases,
    vault: Vault,
}
