//! What is known of each tenant's settings, cached, and kept exact by versions.
//!
//! Every change of a tenant's subscriptions, event types or settings raises the tenant's version in
//! the same transaction. Who is about to match reads the versions (one cheap query for a whole
//! batch) and reloads what is out of date: a subscription that was created before an Emit is always
//! seen, on every replica. The cache is only an optimisation; dropping it loses nothing.
//!
//! Attempts need less than that: settings of a second ago ([`CatalogCache::recent`]). So it is known of
//! each tenant when the database last said that what is cached is true.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use sea_orm::ConnectionTrait;
use tokio::time::Instant;

use crate::domain::channel::Channel;
use crate::domain::event_type::EventType;
use crate::domain::id::{SubscriptionId, TenantId};
use crate::domain::mail_address::key_of;
use crate::domain::retry::RetryPolicy;
use crate::domain::schema;
use crate::domain::subscription::Subscription;
use crate::domain::tenant::Tenant;

use super::rows::PLATFORM;
use super::{Error, SettingsSeen, Store, bulk};

/// Most tenants that are kept. Reaching it empties the cache: simple, and rare.
const MAX_TENANTS: usize = 20_000;
/// How long settings are believed of which some could not be read: a row that is restored in the
/// database, and a key that is put into the file, change no version.
const UNREADABLE_AGE: Duration = Duration::from_secs(1);
/// Most tenants whose settings are looked at along with those that somebody needs.
const MAX_ALONG: usize = 1_000;

/// An event type with its schema, ready to check payloads.
#[derive(Debug)]
pub struct TypeInfo {
    /// The event type.
    pub event_type: EventType,
    /// Its compiled JSON Schema, when it has one.
    pub schema: Option<jsonschema::Validator>,
}

/// Event types by name.
type Types = HashMap<String, Arc<TypeInfo>>;

/// The platform's own event types, at a version.
#[derive(Debug)]
pub struct PlatformCatalog {
    version: i64,
    types: Types,
}

/// A tenant, its subscriptions and its event types, at a version.
#[derive(Debug)]
pub struct TenantCatalog {
    version: i64,
    /// The tenant.
    pub tenant: Arc<Tenant>,
    /// Its subscriptions in order of their ids, that of its primary contact among them.
    subscriptions: Vec<Arc<Subscription>>,
    types: Types,
    /// When it was loaded, if not all of it could be read.
    unreadable_since: Option<Instant>,
}

impl TenantCatalog {
    /// Whether it is at `version` or later, and worth believing.
    fn is_current(&self, version: i64) -> bool {
        self.version >= version
            && self.unreadable_since.is_none_or(|since| now() < since + UNREADABLE_AGE)
    }
}

/// A tenant's view: its own settings over the platform's.
#[derive(Clone, Debug)]
pub struct Catalog {
    /// The tenant's own.
    pub own: Arc<TenantCatalog>,
    platform: Arc<PlatformCatalog>,
}

impl Catalog {
    /// The versions of the tenant's own settings, and of the platform's.
    pub(super) fn versions(&self) -> (i64, i64) {
        (self.own.version, self.platform.version)
    }

    /// The event type called `name`: the tenant's own, or else the platform's.
    pub fn event_type(&self, name: &str) -> Option<&Arc<TypeInfo>> {
        self.own.types.get(name).or_else(|| self.platform.types.get(name))
    }

    /// The subscription, when the tenant has it.
    pub fn subscription(&self, id: SubscriptionId) -> Option<&Arc<Subscription>> {
        let subscriptions = &self.own.subscriptions;
        subscriptions
            .binary_search_by_key(&id, |subscription| subscription.id)
            .ok()
            .map(|at| &subscriptions[at])
    }

    /// The subscriptions that an event of `event_type` is delivered to. The tenant's primary contact
    /// is among them unless another one mails the same address: nobody gets an event twice.
    pub fn subscribers(&self, event_type: &str) -> Vec<Arc<Subscription>> {
        let wants = |subscription: &&Arc<Subscription>| subscription.wants(event_type);
        let mut wanted: Vec<_> =
            self.own.subscriptions.iter().filter(wants).map(Arc::clone).collect();
        let contact = self.own.tenant.spec.primary_contact_for(event_type).map(key_of);
        let mails = |subscription: &Arc<Subscription>, key: &str| match &subscription.spec.channel {
            Channel::Email(email) => email.recipients.iter().any(|it| key_of(it) == key),
            Channel::Webhook(_) => false,
        };
        let is_told = contact.is_some_and(|key| {
            !wanted.iter().any(|it| !it.is_of_primary_contact() && mails(it, &key))
        });
        wanted.retain(|subscription| is_told || !subscription.is_of_primary_contact());
        wanted
    }

    /// The retry policy for deliveries of `event_type` to `subscription`: the subscription's own,
    /// or else the event type's, the tenant's, or the built-in one.
    pub fn retry_policy(&self, subscription: &Subscription, event_type: &str) -> RetryPolicy {
        let of_type = || {
            self.event_type(event_type).and_then(|info| info.event_type.spec.retry_policy.as_ref())
        };
        subscription
            .spec
            .retry_policy
            .as_ref()
            .or_else(of_type)
            .or(self.own.tenant.spec.retry_policy.as_ref())
            .cloned()
            .unwrap_or_else(RetryPolicy::built_in)
    }
}

/// The cache. Cheap to share.
#[derive(Debug, Default)]
pub struct CatalogCache {
    tenants: RwLock<HashMap<TenantId, Known>>,
    platform: RwLock<Option<Arc<PlatformCatalog>>>,
    /// Held by who looks at the settings of others along with its own.
    along: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Known {
    catalog: Arc<TenantCatalog>,
    /// The last look that found it to be true.
    look: Option<Look>,
}

/// A look at the settings in the database: what it finds is as it was when it began, or newer.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    begin: Instant,
    seen: SettingsSeen,
}

/// Versions of tenants as the database has them; a tenant that is missing does not exist.
#[derive(Debug)]
struct Versions {
    platform: i64,
    tenants: HashMap<TenantId, i64>,
}

impl CatalogCache {
    /// How old settings may be when an attempt is made by them: another replica may have changed them.
    /// Changes of this process are seen at once.
    pub const MAX_AGE: Duration = Duration::from_secs(1);

    /// The catalogs of these tenants as they are in the database now. Unknown tenants are left out.
    ///
    /// # Errors
    /// When the database does not answer, or one of them cannot be read.
    pub async fn current(
        &self,
        store: &Store,
        tenants: &[TenantId],
    ) -> Result<HashMap<TenantId, Catalog>, Error> {
        self.look_at(store, tenants, true).await
    }

    /// The same, without those that cannot be read: they hold up nobody else.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn readable(
        &self,
        store: &Store,
        tenants: &[TenantId],
    ) -> Result<HashMap<TenantId, Catalog>, Error> {
        self.look_at(store, tenants, false).await
    }

    async fn look_at(
        &self,
        store: &Store,
        tenants: &[TenantId],
        all_or_none: bool,
    ) -> Result<HashMap<TenantId, Catalog>, Error> {
        let look = store.look();
        let versions = store.versions(tenants).await?;
        let platform = self.platform_at(store, versions.platform).await?;
        let mut catalogs = HashMap::with_capacity(versions.tenants.len());
        for (tenant_id, version) in versions.tenants {
            match self.tenant_at(store, tenant_id, version).await {
                Ok(Some(own)) => {
                    catalogs.insert(tenant_id, Catalog { own, platform: Arc::clone(&platform) });
                }
                Ok(None) => {}
                Err(error) if all_or_none || error.is_unavailable() => return Err(error),
                Err(error) => {
                    tracing::error!(tenant.id = %tenant_id, %error, "the settings of a tenant cannot be read; its deliveries wait");
                }
            }
        }
        self.confirm(&catalogs, look);
        Ok(catalogs)
    }

    /// The tenant's catalog as it is in the database now; `None` when there is no such tenant. The
    /// database is asked for `along`, too: those whose settings will be needed soon.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn renewed(
        &self,
        store: &Store,
        tenant_id: TenantId,
        along: impl FnOnce() -> Vec<TenantId>,
    ) -> Result<Option<Catalog>, Error> {
        let mut asked = vec![tenant_id];
        // One at a time: whoever comes meanwhile asks for its own.
        let looking = self.along.try_lock();
        if looking.is_ok() {
            let is_old = |id: &TenantId| {
                *id != tenant_id && self.cached(*id).is_some() && self.recent(store, *id).is_none()
            };
            asked.extend(along().into_iter().filter(is_old).take(MAX_ALONG));
        }
        Ok(self.readable(store, &asked).await?.remove(&tenant_id))
    }

    /// The tenant's catalog, if it is known to be not older than [`CatalogCache::MAX_AGE`]. The database
    /// is not asked.
    pub fn recent(&self, store: &Store, tenant_id: TenantId) -> Option<Catalog> {
        let now = store.look();
        self.find(tenant_id, |known| {
            let is_recent = |look: Look| {
                look.seen == now.seen && now.begin.duration_since(look.begin) <= Self::MAX_AGE
            };
            known.look.is_some_and(is_recent) && known.catalog.is_current(known.catalog.version)
        })
    }

    /// Takes note that a look at the settings has found these to be true.
    pub fn confirm(&self, catalogs: &HashMap<TenantId, Catalog>, look: Look) {
        let mut tenants = self.tenants.write().unwrap_or_else(PoisonError::into_inner);
        for (id, Catalog { own, .. }) in catalogs {
            let known = tenants.get_mut(id).filter(|known| known.catalog.version >= own.version);
            if let Some(known) = known {
                known.look = Some(look);
            }
        }
    }

    /// The catalogs of these tenants as they were read last; only those are asked for that are not
    /// there. Whoever stores what follows from them has the database compare their versions.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn believed(
        &self,
        store: &Store,
        tenants: &[TenantId],
    ) -> Result<HashMap<TenantId, Catalog>, Error> {
        let known: HashMap<_, _> = tenants
            .iter()
            .filter_map(|id| Some((*id, self.cached(*id)?)))
            .filter(|(_, catalog)| catalog.own.is_current(catalog.own.version))
            .collect();
        let mut platforms = known.values().map(|catalog| &catalog.platform);
        let is_one =
            platforms.next().is_none_or(|first| platforms.all(|next| Arc::ptr_eq(first, next)));
        if is_one && known.len() == tenants.len() {
            return Ok(known);
        }
        // All of them, so that all have the same of the platform's.
        self.current(store, tenants).await
    }

    /// The tenant's catalog as it was read last, without asking the database.
    pub fn cached(&self, tenant_id: TenantId) -> Option<Catalog> {
        self.find(tenant_id, |_| true)
    }

    fn find(&self, tenant_id: TenantId, is_wanted: impl Fn(&Known) -> bool) -> Option<Catalog> {
        let platform = self.platform.read().unwrap_or_else(PoisonError::into_inner).clone()?;
        let tenants = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
        let known = tenants.get(&tenant_id).filter(|known| is_wanted(known))?;
        Some(Catalog { own: Arc::clone(&known.catalog), platform })
    }

    async fn platform_at(
        &self,
        store: &Store,
        version: i64,
    ) -> Result<Arc<PlatformCatalog>, Error> {
        let cached = self.platform.read().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(cached) = cached.filter(|cached| cached.version >= version) {
            return Ok(cached);
        }
        let types = compile(store.event_types_of(None).await?);
        let loaded = Arc::new(PlatformCatalog { version, types });
        let mut platform = self.platform.write().unwrap_or_else(PoisonError::into_inner);
        // Somebody may have loaded newer ones meanwhile.
        let newest = platform.take().filter(|known| known.version > version).unwrap_or(loaded);
        Ok(Arc::clone(platform.insert(newest)))
    }

    async fn tenant_at(
        &self,
        store: &Store,
        tenant_id: TenantId,
        version: i64,
    ) -> Result<Option<Arc<TenantCatalog>>, Error> {
        {
            let tenants = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
            let cached = tenants.get(&tenant_id).map(|known| &known.catalog);
            if let Some(cached) = cached.filter(|cached| cached.is_current(version)) {
                return Ok(Some(Arc::clone(cached)));
            }
        }
        // The version was read before the rows: rows that are newer only mean one reload too many.
        let Some(tenant) = store.tenant(tenant_id).await? else { return Ok(None) };
        let mut subscriptions: Vec<_> =
            store.subscriptions_of(tenant_id).await?.into_iter().map(Arc::new).collect();
        subscriptions.extend(Subscription::of_primary_contact(&tenant).map(Arc::new));
        subscriptions.sort_unstable_by_key(|subscription| subscription.id);
        let types = compile(store.event_types_of(Some(tenant_id)).await?);
        let unreadable = tenant.unreadable || subscriptions.iter().any(|s| s.unreadable);
        let loaded = Arc::new(TenantCatalog {
            version,
            tenant: Arc::new(tenant),
            subscriptions,
            types,
            unreadable_since: unreadable.then(now),
        });
        let mut tenants = self.tenants.write().unwrap_or_else(PoisonError::into_inner);
        if tenants.len() >= MAX_TENANTS {
            tenants.clear();
        }
        // Somebody may have loaded newer ones meanwhile.
        if let Some(newer) = tenants.get(&tenant_id).filter(|known| known.catalog.version > version)
        {
            return Ok(Some(Arc::clone(&newer.catalog)));
        }
        tenants.insert(tenant_id, Known { catalog: Arc::clone(&loaded), look: None });
        Ok(Some(loaded))
    }
}

impl Store {
    /// A look at the settings that begins now.
    pub fn look(&self) -> Look {
        Look { begin: now(), seen: self.settings_seen() }
    }

    /// The versions of these tenants' settings, and of the platform's.
    async fn versions(&self, tenants: &[TenantId]) -> Result<Versions, Error> {
        let ids: Vec<_> = std::iter::once(PLATFORM)
            .chain(tenants.iter().map(TenantId::as_str))
            .map(bulk::text)
            .collect();
        let sql = "SELECT tenant_id, version FROM tenant_config WHERE tenant_id ";
        let statement = bulk::any(self.dialect, sql, ids);
        let mut versions = Versions { platform: 0, tenants: HashMap::with_capacity(tenants.len()) };
        for row in self.read.query_all_raw(statement).await? {
            let (id, version): (String, i64) = (row.try_get_by_index(0)?, row.try_get_by_index(1)?);
            match id.parse() {
                Ok(id) => drop(versions.tenants.insert(id, version)),
                Err(_) => versions.platform = version,
            }
        }
        Ok(versions)
    }
}

#[expect(clippy::disallowed_methods, reason = "the age of a cached value; no time that is stored")]
fn now() -> Instant {
    Instant::now()
}

fn compile(types: Vec<EventType>) -> Types {
    let info = |event_type: EventType| {
        let schema = Some(&event_type.spec.json_schema)
            .filter(|schema| !schema.is_empty())
            .and_then(|schema| schema::compile(schema).ok());
        (event_type.spec.name.clone(), Arc::new(TypeInfo { event_type, schema }))
    };
    types.into_iter().map(info).collect()
}
