//! API keys: who may do what.
//!
//! A key's text is `tdk_` and 43 characters of URL-safe Base64: 256 random bits. Only its SHA-256
//! is stored: with that much randomness a slow hash would add nothing. The start of the text is
//! kept, so that people recognise a key and secret scanners find a leaked one.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::Rng;
use sha2::{Digest, Sha256};

use super::Timestamp;
use super::id::{KeyId, TenantId};

/// What every key starts with.
pub const PREFIX: &str = "tdk_";
/// How much of a key's text is kept in the clear.
pub const SHOWN: usize = 12;

/// A permission of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Emit events.
    EventsEmit,
    /// Read events.
    EventsRead,
    /// Read subscriptions and their statistics.
    SubscriptionsRead,
    /// Create, change and delete subscriptions; rotate secrets.
    SubscriptionsWrite,
    /// Read and watch deliveries.
    DeliveriesRead,
    /// Retry and cancel deliveries.
    DeliveriesWrite,
    /// Change the tenant's event types.
    CatalogWrite,
    /// Everything, for every tenant: an operator.
    Admin,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Self; 8] = [
        Self::EventsEmit,
        Self::EventsRead,
        Self::SubscriptionsRead,
        Self::SubscriptionsWrite,
        Self::DeliveriesRead,
        Self::DeliveriesWrite,
        Self::CatalogWrite,
        Self::Admin,
    ];

    /// The scope as it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::EventsEmit => "events:emit",
            Self::EventsRead => "events:read",
            Self::SubscriptionsRead => "subscriptions:read",
            Self::SubscriptionsWrite => "subscriptions:write",
            Self::DeliveriesRead => "deliveries:read",
            Self::DeliveriesWrite => "deliveries:write",
            Self::CatalogWrite => "catalog:write",
            Self::Admin => "admin",
        }
    }

    /// Reads a scope as it is written.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == text)
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A key as it is stored: everything but the secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKey {
    /// Its id.
    pub id: KeyId,
    /// Whose it is; `None` for an operator's.
    pub tenant_id: Option<TenantId>,
    /// What people call it.
    pub display_name: String,
    /// The start of its text.
    pub prefix: String,
    /// What it permits.
    pub scopes: Vec<Scope>,
    /// When it was created.
    pub create_time: Timestamp,
    /// From when on it no longer works.
    pub expire_time: Option<Timestamp>,
    /// When it was revoked.
    pub revoke_time: Option<Timestamp>,
    /// About when it was last used (to the minute).
    pub last_use_time: Option<Timestamp>,
}

impl ApiKey {
    /// Whether the key works at `now`.
    pub fn is_valid(&self, now: Timestamp) -> bool {
        self.revoke_time.is_none() && self.expire_time.is_none_or(|expiry| now < expiry)
    }

    /// Whether the key permits `scope`.
    pub fn permits(&self, scope: Scope) -> bool {
        self.scopes.contains(&Scope::Admin) || self.scopes.contains(&scope)
    }
}

/// A new key's text.
pub fn generate(random: &mut impl Rng) -> String {
    let mut bytes = [0; 32];
    random.fill_bytes(&mut bytes);
    format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
}

/// What is stored of a key's text: its SHA-256.
pub fn hash(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

/// The recognisable start of a key's text.
pub fn shown(text: &str) -> &str {
    text.get(..SHOWN).unwrap_or(text)
}
