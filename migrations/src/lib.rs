//! The schema of Tidings, step by step, for SQLite and PostgreSQL alike.
//!
//! Steps are frozen once they are released: a change is a new step. They are written in SQL and
//! never import the entities, which describe the schema as it is now, not as it was.

mod dialect;
mod m0001_initial;
mod m0002_purge_indexes;
mod m0003_attempt_timings;
mod m0004_endpoint_health;
mod m0005_secrets_at_rest;
mod m0006_quarantine;
mod m0007_mail;
mod m0008_leases;
mod m0009_checks;
mod m0010_keys_by_time;
mod m0011_births;

pub use m0009_checks::CHECKS;
pub use sea_orm_migration::{MigratorTrait, sea_orm};

use sea_orm_migration::MigrationTrait;
use sea_orm_migration::prelude::async_trait;

/// Runs the steps in order.
#[derive(Debug)]
pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m0001_initial::Migration),
            Box::new(m0002_purge_indexes::Migration),
            Box::new(m0003_attempt_timings::Migration),
            Box::new(m0004_endpoint_health::Migration),
            Box::new(m0005_secrets_at_rest::Migration),
            Box::new(m0006_quarantine::Migration),
            Box::new(m0007_mail::Migration),
            Box::new(m0008_leases::Migration),
            Box::new(m0009_checks::Migration),
            Box::new(m0010_keys_by_time::Migration),
            Box::new(m0011_births::Migration),
        ]
    }
}
