//! Holds payloads against the JSON Schemas of their types, on the task of whoever emits: a costly
//! payload must not hold up the one task that commits for all.
//!
//! It judges by the settings that are in memory, which may be behind. The committer, which knows
//! the settings as of its transaction, compares: only where the schema itself has changed since
//! does it judge anew. So an event is always judged by a schema at least as new as what was
//! acknowledged before it. Nobody is refused by a schema that is no longer in force.

use std::sync::Arc;

use serde_json::Value;
use tokio::sync::Semaphore;

use crate::domain::event::{self, NewEvent};
use crate::domain::{Violations, schema};
use crate::store::{Catalog, CatalogCache, Error as StoreError, Store, TypeInfo};

use super::Error;

/// Payloads from this size on are judged on a thread of their own: a parse of this takes less than
/// a millisecond, which other tasks can wait.
const LARGE_BYTES: usize = 32 * 1024;
/// Most large payloads that are judged at once.
const MAX_LARGE: usize = 4;

/// By which schema an event was found good: that of this event type, or by none.
#[derive(Clone, Debug, Default)]
pub(super) struct Verdict(Option<Arc<TypeInfo>>);

impl Verdict {
    /// Whether the event would still be judged by the same schema.
    pub(super) fn stands(&self, catalog: &Catalog, event_type: &str) -> bool {
        match (&self.0, with_schema(catalog, event_type)) {
            (None, None) => true,
            (Some(then), Some(now)) => {
                // Any change of a tenant's settings makes new ones of all its types.
                Arc::ptr_eq(then, now)
                    || then.event_type.spec.json_schema == now.event_type.spec.json_schema
            }
            _ => false,
        }
    }
}

pub(super) struct Judge {
    store: Store,
    catalog: Arc<CatalogCache>,
    large: Arc<Semaphore>,
}

impl Judge {
    pub(super) fn new(store: Store, catalog: Arc<CatalogCache>) -> Self {
        Self { store, catalog, large: Arc::new(Semaphore::new(MAX_LARGE)) }
    }

    /// Judges an event. That there is no such tenant is left to the committer to say.
    pub(super) async fn judge(&self, event: &NewEvent) -> Result<Verdict, Error> {
        if let Some(catalog) = self.catalog.cached(event.tenant_id) {
            let verdict = self.check(event, &catalog).await;
            if !matches!(verdict, Err(Error::Invalid(_))) {
                return verdict;
            }
        }
        // Only the schema that is in force now may refuse.
        let current = Box::pin(self.catalog.current(&self.store, &[event.tenant_id])).await;
        match current.map_err(|error| unavailable(&error))?.get(&event.tenant_id) {
            Some(catalog) => self.check(event, catalog).await,
            None => Ok(Verdict::default()),
        }
    }

    async fn check(&self, event: &NewEvent, catalog: &Catalog) -> Result<Verdict, Error> {
        let Some(info) = with_schema(catalog, &event.event_type) else {
            return Ok(Verdict::default());
        };
        let checked = if event.data.len() < LARGE_BYTES {
            check(info, &event.data, event.data_field)
        } else {
            // The semaphore is never closed.
            let place = Arc::clone(&self.large).acquire_owned().await;
            let place = place.map_err(|_| Error::ShuttingDown)?;
            let (info, data, field) = (Arc::clone(info), event.data.clone(), event.data_field);
            // The place is kept until the thread is done, even if nobody waits for it any more.
            let checked = tokio::task::spawn_blocking(move || {
                let checked = check(&info, &data, field);
                drop(place);
                checked
            });
            // It fails only by a panic, which has been reported.
            checked.await.map_err(|_| Error::Internal)?
        };
        checked.map_err(Error::Invalid)?;
        Ok(Verdict(Some(Arc::clone(info))))
    }
}

/// Judges an event by the settings of its commit, because the schema has changed since it was
/// judged.
pub(super) fn judge_again(event: &NewEvent, catalog: &Catalog) -> Result<(), Violations> {
    let judged = |info: &Arc<TypeInfo>| check(info, &event.data, event.data_field);
    with_schema(catalog, &event.event_type).map_or(Ok(()), judged)
}

fn with_schema<'c>(catalog: &'c Catalog, event_type: &str) -> Option<&'c Arc<TypeInfo>> {
    // The service's own events are what they are: nobody's schema may keep them from being told.
    let known = catalog.event_type(event_type).filter(|_| !event::is_reserved(event_type));
    known.filter(|info| info.schema.is_some())
}

/// `field` is where the request has the payload.
fn check(info: &TypeInfo, data: &[u8], field: &str) -> Result<(), Violations> {
    let Some(compiled) = &info.schema else { return Ok(()) };
    let mut violations = Violations::new();
    match serde_json::from_slice::<Value>(data) {
        Ok(payload) => {
            for error in compiled.iter_errors(&payload).take(schema::MAX_VIOLATIONS) {
                let path = error.instance_path().to_string();
                let at = format!("{field}{}", path.replace('/', "."));
                violations.add(at, error.masked().to_string());
            }
        }
        Err(error) => violations.add(field, error.to_string()),
    }
    violations.or_ok(())
}

fn unavailable(error: &StoreError) -> Error {
    if error.is_unavailable() {
        tracing::warn!(%error, "the settings of a tenant cannot be read");
        return Error::Unavailable;
    }
    tracing::error!(%error, "the settings of a tenant cannot be read");
    Error::Internal
}
