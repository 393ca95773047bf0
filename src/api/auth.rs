//! Who calls: from `authorization: Bearer <key>` to a key's tenant and scopes.
//!
//! Keys are kept in memory for [`TTL`] after they were read, so that a call costs one hash and one
//! look-up, and a revocation still holds everywhere within seconds. One call in the second half of
//! that time renews the entry while the others go on with it. On the replica that revokes a key it
//! holds at once: [`Auth::forget`]. The cache is only an optimisation; it never lets a key live
//! longer than its `expire_time`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use tokio::sync::{Semaphore, mpsc};

use crate::domain::id::{KeyId, TenantId};
use crate::domain::key::{self, ApiKey, Scope};
use crate::domain::{Clock, Timestamp};
use crate::store::Store;

use super::Reason;
use super::access::Access;
use super::layer;
use super::rate::{Allowance, Rate};
use super::status::Failure;

/// How long a key that was read counts as read: the longest time that a key which was revoked on
/// another replica still works for new calls.
const TTL: Duration = Duration::from_secs(2);
/// How often an open stream looks whether its key still works. With [`TTL`] it ends within 5 s.
pub(super) const RECHECK: Duration = Duration::from_secs(2);
/// Most keys that are kept, unknown ones included. Reaching it empties the cache: simple, and rare.
const MAX_KEYS: usize = 20_000;
/// Most look-ups in the database at the same time: strangers who guess keys cannot take its pool.
const MAX_LOOKUPS: usize = 8;
/// `last_use_time` is kept to about this.
const TOUCH_INTERVAL: Duration = Duration::from_mins(1);
/// Most uses that wait to be noted; more are noted when the key is next used.
const MAX_TOUCHES: usize = 1_024;
/// The longest text that is looked at as a key; ours have 47 bytes.
const MAX_KEY_BYTES: usize = 128;

type Hash = [u8; 32];

/// A key that let somebody in.
#[derive(Debug)]
pub(super) struct Principal {
    key: ApiKey,
    touched_us: AtomicI64,
    /// Outlives the entry: what a key has used up is not forgotten when it is read anew.
    allowance: Arc<Allowance>,
}

impl Principal {
    /// The tenant that the key belongs to; `None` for an operator's.
    pub(super) fn tenant_id(&self) -> Option<TenantId> {
        self.key.tenant_id
    }

    /// Whether the key has `scope`.
    pub(super) fn permits(&self, scope: Scope) -> bool {
        self.key.permits(scope)
    }
}

/// Who makes a call.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    /// The key that let the caller in.
    pub principal: Arc<Principal>,
    /// When the client stops to wait.
    pub deadline: Option<tokio::time::Instant>,
    hash: Hash,
}

impl Caller {
    /// The caller of a stream, whose items do not end with the stream's deadline.
    pub(super) fn without_deadline(self) -> Self {
        Self { deadline: None, ..self }
    }
}

struct Entry {
    /// `None` for a text that is no key.
    principal: Option<Arc<Principal>>,
    read_time: Timestamp,
    renewing: AtomicBool,
}

enum Known {
    /// Read a short time ago.
    Fresh(Option<Arc<Principal>>),
    /// Still good, but this call is to read it anew.
    Renew(Option<Arc<Principal>>),
    Unknown,
}

/// A use that is to be noted.
#[derive(Debug)]
struct Touch {
    tenant_id: Option<TenantId>,
    key_id: KeyId,
    time: Timestamp,
}

/// Lets callers in.
pub(super) struct Auth {
    store: Store,
    clock: Arc<dyn Clock>,
    keys: RwLock<HashMap<Hash, Entry>>,
    /// Counts [`Auth::forget`]: what was read before it is not kept after it.
    generation: AtomicU64,
    lookups: Semaphore,
    rate: Rate,
    touches: mpsc::Sender<Touch>,
}

/// Uses of keys on their way to the database.
#[derive(Debug)]
pub(super) struct Touches {
    store: Store,
    receiver: mpsc::Receiver<Touch>,
}

impl Touches {
    /// Notes uses, one after another, for as long as there is an [`Auth`]. A use that cannot be
    /// noted is forgotten: the time is for people.
    pub(super) async fn run(mut self) {
        while let Some(touch) = self.receiver.recv().await {
            let noted = self.store.touch_key(touch.tenant_id, touch.key_id, touch.time).await;
            if let Err(error) = noted {
                tracing::debug!(error = %error, key.id = %touch.key_id, "a key's last use was not noted");
            }
        }
    }
}

impl Auth {
    /// Reads keys from `store`, each of which may call at `rate`. The other part is to be run along
    /// with the server.
    pub(super) fn new(store: Store, clock: Arc<dyn Clock>, rate: Rate) -> (Self, Touches) {
        let (touches, receiver) = mpsc::channel(MAX_TOUCHES);
        let auth = Self {
            store: store.clone(),
            clock,
            keys: RwLock::default(),
            generation: AtomicU64::new(0),
            lookups: Semaphore::new(MAX_LOOKUPS),
            rate,
            touches,
        };
        (auth, Touches { store, receiver })
    }

    /// Lets the caller in who sent `headers`, if its key permits what is asked.
    ///
    /// # Errors
    /// When there is no key, it is not valid, or it lacks the scope.
    pub(super) async fn admit(
        &self,
        headers: &HeaderMap,
        access: Access,
        deadline: Option<tokio::time::Instant>,
    ) -> Result<Caller, Failure> {
        let hash = key::hash(bearer(headers)?);
        let principal = self.principal(hash).await?;
        if let Access::Scope(scope) = access
            && !principal.permits(scope)
        {
            let message = format!("The API key does not have the scope {scope}.");
            return Err(Failure::new(Reason::ScopeMissing, message));
        }
        self.touch(&principal);
        Ok(Caller { principal, deadline, hash })
    }

    /// Counts a call against its key's rate.
    ///
    /// # Errors
    /// When the key has called too often; says when to try again.
    pub(super) fn count(&self, caller: &Caller) -> Result<(), Failure> {
        let allowance = &caller.principal.allowance;
        self.rate
            .admit(allowance, layer::now())
            .map_err(|wait| Failure::of(Reason::RateLimited).retry_after(wait))
    }

    /// Counts `events` that a call has brought beside the one that was counted with the call.
    pub(super) fn count_more(&self, caller: &Caller, events: usize) {
        self.rate.charge(&caller.principal.allowance, events, layer::now());
    }

    /// Whether the key of an open stream still works.
    ///
    /// # Errors
    /// When it does not. A database that does not answer proves nothing, and ends no stream.
    pub(super) async fn recheck(&self, caller: &Caller) -> Result<(), Failure> {
        match self.principal(caller.hash).await {
            Err(failure) if failure.reason == Reason::ApiKeyInvalid => Err(failure),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Forgets what was read of the keys that `gone` chooses: they were revoked, here and now.
    pub(super) fn forget(&self, gone: impl Fn(KeyId, Option<TenantId>) -> bool) {
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        self.generation.fetch_add(1, Ordering::SeqCst);
        keys.retain(|_, entry| {
            entry.principal.as_ref().is_none_or(|known| !gone(known.key.id, known.key.tenant_id))
        });
    }

    async fn principal(&self, hash: Hash) -> Result<Arc<Principal>, Failure> {
        let found = match self.known(&hash) {
            Known::Fresh(found) => found,
            // As long as the entry is good, a database that does not answer changes nothing.
            Known::Renew(found) => match self.lookups.try_acquire() {
                Ok(_permit) => Box::pin(self.read(hash)).await.unwrap_or(found),
                Err(_) => found,
            },
            Known::Unknown => {
                let permit = self.lookups.acquire().await;
                let _permit = permit.map_err(|error| Failure::internal(&error))?;
                // Another call may have read it meanwhile.
                match self.known(&hash) {
                    Known::Fresh(found) | Known::Renew(found) => found,
                    Known::Unknown => Box::pin(self.read(hash)).await?,
                }
            }
        };
        let now = self.clock.now();
        found
            .filter(|principal| principal.key.is_valid(now))
            .ok_or_else(|| Failure::of(Reason::ApiKeyInvalid))
    }

    fn known(&self, hash: &Hash) -> Known {
        let now = self.clock.now();
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = keys.get(hash) else {
            return Known::Unknown;
        };
        // A clock that was set back makes the entry's age unknown.
        if now < entry.read_time || now.since(entry.read_time) >= TTL {
            return Known::Unknown;
        }
        let found = entry.principal.clone();
        if now.since(entry.read_time) >= TTL / 2 && !entry.renewing.swap(true, Ordering::Relaxed) {
            return Known::Renew(found);
        }
        Known::Fresh(found)
    }

    /// Reads the key from the database, and keeps it.
    async fn read(&self, hash: Hash) -> Result<Option<Arc<Principal>>, Failure> {
        let generation = self.generation.load(Ordering::SeqCst);
        // The age counts from before the reading: what is revoked meanwhile is seen in time.
        let read_time = self.clock.now();
        let key = self.store.key_by_hash(hash).await?;
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        let before = keys.get(&hash).and_then(|entry| entry.principal.as_ref());
        let noted = before.map_or(0, |known| known.touched_us.load(Ordering::Relaxed));
        let allowance = before.map(|known| Arc::clone(&known.allowance)).unwrap_or_default();
        let principal = key.map(|key| {
            let last_use = key.last_use_time.map_or(0, Timestamp::as_micros);
            let touched_us = AtomicI64::new(noted.max(last_use));
            Arc::new(Principal { key, touched_us, allowance })
        });
        if self.generation.load(Ordering::SeqCst) == generation {
            make_room(&mut keys);
            let renewing = AtomicBool::new(false);
            keys.insert(hash, Entry { principal: principal.clone(), read_time, renewing });
        }
        Ok(principal)
    }

    /// Has the use noted, unless one was noted within the last minute.
    fn touch(&self, principal: &Principal) {
        let now = self.clock.now();
        let last = principal.touched_us.load(Ordering::Relaxed);
        if now.since(Timestamp::from_micros(last)) < TOUCH_INTERVAL {
            return;
        }
        let ours = principal.touched_us.compare_exchange(
            last,
            now.as_micros(),
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
        if ours.is_ok() {
            let (tenant_id, key_id) = (principal.key.tenant_id, principal.key.id);
            // A full queue means that the database is slow; the time is not worth waiting for.
            let _ = self.touches.try_send(Touch { tenant_id, key_id, time: now });
        }
    }
}

/// Makes room for one more entry. Texts that are no keys go first: who guesses cannot have the
/// allowances of others forgotten.
fn make_room(keys: &mut HashMap<Hash, Entry>) {
    if keys.len() < MAX_KEYS {
        return;
    }
    keys.retain(|_, entry| entry.principal.is_some());
    if keys.len() >= MAX_KEYS {
        keys.clear();
    }
}

/// The key in `headers`.
fn bearer(headers: &HeaderMap) -> Result<&str, Failure> {
    let missing = || Failure::of(Reason::ApiKeyMissing);
    let value = headers.get(AUTHORIZATION).ok_or_else(missing)?;
    let invalid = || Failure::of(Reason::ApiKeyInvalid);
    let (scheme, key) =
        value.to_str().map_err(|_| invalid())?.split_once(' ').ok_or_else(missing)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(missing());
    }
    let key = key.trim();
    if key.starts_with(key::PREFIX) && key.len() <= MAX_KEY_BYTES {
        Ok(key)
    } else {
        Err(invalid())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(value: Option<&str>) -> Result<String, Reason> {
        let mut headers = HeaderMap::new();
        if let Some(value) = value {
            headers.insert(AUTHORIZATION, value.parse().expect("a header"));
        }
        bearer(&headers).map(str::to_owned).map_err(|failure| failure.reason)
    }

    #[test]
    fn the_key_is_the_bearer_token() {
        assert_eq!(reason(Some("Bearer tdk_abc")), Ok("tdk_abc".into()));
        assert_eq!(reason(Some("bearer  tdk_abc ")), Ok("tdk_abc".into()));
    }

    #[test]
    fn a_missing_key_and_a_wrong_one_are_told_apart() {
        for value in [None, Some(""), Some("tdk_abc"), Some("Basic dGRrXw==")] {
            assert_eq!(reason(value), Err(Reason::ApiKeyMissing), "{value:?}");
        }
        let long = format!("Bearer tdk_{}", "a".repeat(1_000));
        for value in ["Bearer ", "Bearer x", "Bearer TDK_abc", long.as_str()] {
            assert_eq!(reason(Some(value)), Err(Reason::ApiKeyInvalid), "{value:?}");
        }
    }
}
