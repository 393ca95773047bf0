//! Accepting events: one transaction stores their idempotency keys, the events with all their
//! deliveries, and tells the feed. When it is committed they may be acknowledged.
//!
//! The caller has matched the events against settings that it knows already, and reserved what it
//! needs, so nothing has to be read first. The transaction itself finds out whether that still holds,
//! and stores nothing when it does not: because the settings have changed since, or because an
//! earlier request had one of the keys. On PostgreSQL all of it is one statement, and one round trip
//! (`docs/adr/0011-one-statement.md`); SQLite, which is in this process, takes one for each row
//! (`docs/adr/0014-sqlite-line.md`).

mod postgres;
mod sqlite;

use std::borrow::Cow;
use std::collections::HashMap;

pub(super) use postgres::column;

use crate::domain::Timestamp;
use crate::domain::delivery::{Delivery, State};
use crate::domain::event::Event;
use crate::domain::id::{EventId, NodeId, TenantId};

use super::bulk::{Rows, Type, text};
use super::line::Lines;
use super::rows::{PLATFORM, json};
use super::{Catalog, Error, Store};

/// An idempotency key on its way into the database.
#[derive(Clone, Debug)]
pub struct IdempotencyKey {
    /// Whose key it is.
    pub tenant_id: TenantId,
    /// The client's key.
    pub key: String,
    /// Which request it stands for.
    pub fingerprint: [u8; 32],
    /// The event that the request makes, when the key is new.
    pub event_id: EventId,
    /// How many deliveries it makes.
    pub delivery_count: u32,
}

/// Which request a key already stood for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyUse {
    /// The fingerprint of the first request.
    pub fingerprint: Vec<u8>,
    /// The event that it made.
    pub event_id: EventId,
    /// How many deliveries it made.
    pub delivery_count: u32,
}

/// What is to be stored together, or not at all.
#[derive(Debug)]
pub struct Acceptance<'a> {
    /// The settings that the events were matched against.
    pub settings: &'a HashMap<TenantId, Catalog>,
    /// The keys that the events take. None may occur twice.
    pub keys: Vec<&'a IdempotencyKey>,
    /// The events.
    pub events: Vec<&'a Event>,
    /// All their deliveries. Those that are DELIVERING are leased to `node`.
    pub deliveries: &'a [Delivery],
    /// Who accepts them.
    pub node: NodeId,
    /// When.
    pub now: Timestamp,
}

/// What became of an [`Acceptance`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcceptResult {
    /// Everything is committed.
    Stored,
    /// Nothing is stored: the settings have changed.
    SettingsChanged,
    /// Nothing is stored: some of the keys stand for earlier requests.
    KeysTaken,
}

impl Acceptance<'_> {
    /// Each delivery, and whether the feed is told of it later.
    fn births<'s>(&'s self, untold: &'s [bool]) -> impl Iterator<Item = (&'s Delivery, bool)> {
        self.deliveries.iter().zip(untold.iter().copied())
    }

    /// What the feed is told of at once.
    fn told<'s>(&'s self, untold: &'s [bool]) -> impl Iterator<Item = &'s Delivery> {
        self.births(untold).filter(|(_, is_untold)| !is_untold).map(|(delivery, _)| delivery)
    }

    /// The versions of the settings, the platform's own among them.
    fn versions(&self) -> (Vec<&str>, Vec<i64>) {
        let platform =
            self.settings.values().next().map(|catalog| (PLATFORM, catalog.versions().1));
        let own = self.settings.iter().map(|(id, catalog)| (id.as_str(), catalog.versions().0));
        platform.into_iter().chain(own).unzip()
    }

    /// The keys in an order that all transactions have in common: two that take the same keys wait,
    /// but never in a circle.
    fn ordered_keys(&self) -> Vec<&IdempotencyKey> {
        let mut ordered = self.keys.clone();
        ordered.sort_unstable_by_key(|key| (key.tenant_id, &key.key));
        ordered
    }
}

impl Store {
    /// Stores everything, or nothing. On SQLite `written` is called when only the disk is waited for, and
    /// another acceptance may as well begin; PostgreSQL does not tell.
    ///
    /// # Errors
    /// When the database does not confirm. The transaction may have been committed all the same:
    /// the client has to ask again, with an idempotency key.
    pub async fn accept(
        &self,
        new: &Acceptance<'_>,
        written: impl FnOnce() + Send,
    ) -> Result<AcceptResult, Error> {
        if new.events.is_empty() {
            return Ok(AcceptResult::Stored);
        }
        let born = new.deliveries.iter().filter(|delivery| delivery.state == State::Delivering);
        let leases = self.leases.open(new.node, born.clone())?;
        let untold = self.births.untold(new.deliveries);
        let became = match &self.lines {
            Lines::Postgres(lines) => {
                fail_point!(AcceptBeforeCommit);
                postgres::accept(lines.accepting(), new, &untold, &leases, &self.follows).await
            }
            Lines::Sqlite(line) => {
                sqlite::accept(line, new, &untold, &leases, written, &self.follows).await
            }
        };
        if matches!(became, Ok(AcceptResult::Stored)) {
            fail_point!(AcceptAfterCommit);
            let births = new.births(&untold).filter(|(_, is_untold)| *is_untold);
            self.births.add(births.map(|(delivery, _)| delivery));
            if new.told(&untold).next().is_some() {
                self.wakes.wake();
            }
        } else {
            let numbers = leases.iter().map(|lease| lease.number);
            self.leases.forget(numbers, born.map(|delivery| delivery.id));
        }
        became
    }

    /// For each of the keys that was taken before, by whom.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn key_uses<'k>(
        &self,
        keys: impl ExactSizeIterator<Item = &'k IdempotencyKey>,
    ) -> Result<HashMap<(TenantId, String), KeyUse>, Error> {
        let columns = [("tenant_id", Type::Text), ("idempotency_key", Type::Text)];
        let mut rows = Rows::new(self.dialect, columns, keys.len());
        for key in keys {
            rows.push([text(key.tenant_id.as_str()), text(&key.key)]);
        }
        let sql =
            " SELECT k.tenant_id, k.idempotency_key, k.fingerprint, k.event_id, k.delivery_count
            FROM r JOIN idempotency_keys k
              ON k.tenant_id = r.tenant_id AND k.idempotency_key = r.idempotency_key";
        let mut uses = HashMap::new();
        for row in rows.query(&self.read, sql, &[]).await? {
            let tenant_id = super::rows::id(&row.try_get_by_index::<String>(0)?)?;
            let count: i32 = row.try_get_by_index(4)?;
            let key_use = KeyUse {
                fingerprint: row.try_get_by_index(2)?,
                event_id: super::rows::id(&row.try_get_by_index::<String>(3)?)?,
                delivery_count: u32::try_from(count).unwrap_or(0),
            };
            uses.insert((tenant_id, row.try_get_by_index(1)?), key_use);
        }
        // Whoever repeats a request is told what the first one has become, perhaps before it is told itself.
        self.lines.settled().await?;
        Ok(uses)
    }
}

/// The document of an event's labels.
fn labels(event: &Event) -> Result<Cow<'static, str>, Error> {
    let is_empty = event.labels.is_empty();
    Ok(if is_empty { Cow::Borrowed("{}") } else { Cow::Owned(json(&event.labels)?) })
}
