//! A subscription: which of a tenant's events go where, and how.

use rand::Rng;
use serde::{Deserialize, Serialize};

use super::channel::{Channel, Digest, EmailChannel, SignatureScheme};
use super::id::{SubscriptionId, TenantId};
use super::labels::{self, Labels};
use super::pattern::Pattern;
use super::retry::RetryPolicy;
use super::signature::{PublicKey, SigningKey, generate_secret};
use super::tenant::Tenant;
use super::{Timestamp, Violations, tenant};

/// Most patterns on one subscription.
pub const MAX_PATTERNS: usize = 100;

/// Whether a subscription delivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum State {
    /// Deliveries are made.
    Active,
    /// Somebody paused it: new deliveries are held.
    Paused,
    /// Tidings disabled it, because its endpoint is gone or has failed for too long.
    Disabled,
}

/// Why Tidings disabled a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DisableReason {
    /// The endpoint answered 410 Gone.
    Gone,
    /// Nothing but failures for as long as `disable-after` says: five days by default.
    Failing,
}

impl DisableReason {
    /// Every reason.
    pub const ALL: [Self; 2] = [Self::Gone, Self::Failing];

    /// The reason's name, for example `GONE`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gone => "GONE",
            Self::Failing => "FAILING",
        }
    }
}

/// What a client may say about a subscription.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SubscriptionSpec {
    /// What people call it.
    pub display_name: String,
    /// Which event types it wants. Never empty.
    pub event_types: Vec<Pattern>,
    /// Where its deliveries go.
    pub channel: Channel,
    /// Its retry policy; `None` for that of the event type, the tenant, or the built-in one.
    pub retry_policy: Option<RetryPolicy>,
    /// Labels.
    pub labels: Labels,
}

/// A secret that signs, and until when.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    /// The secret's text.
    pub text: String,
    /// From when on it no longer signs; `None` for the current one.
    pub expire_time: Option<Timestamp>,
    /// The Ed25519 key that signs beside it. Drawn at random, never derived from the text: the
    /// customer knows the text, and must not be able to sign. `None` in documents from before
    /// there were such keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signing_key: Option<SigningKey>,
}

impl Secret {
    /// A current secret: `text`, or one that is made when it is empty, with a key of its own.
    pub fn new(text: String, random: &mut impl Rng) -> Self {
        let text = if text.is_empty() { generate_secret(random) } else { text };
        Self { text, expire_time: None, signing_key: Some(SigningKey::generate(random)) }
    }

    /// Whether it signs at `now`.
    pub fn is_valid_at(&self, now: Timestamp) -> bool {
        self.expire_time.is_none_or(|expiry| now < expiry)
    }
}

/// Hides the text, so that no log can show it.
impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secret").field("expire_time", &self.expire_time).finish_non_exhaustive()
    }
}

/// A subscription as it is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Subscription {
    /// Its id.
    pub id: SubscriptionId,
    /// Whose it is.
    pub tenant_id: TenantId,
    /// What its administrators said.
    pub spec: SubscriptionSpec,
    /// Whether it delivers.
    pub state: State,
    /// Why not, when Tidings disabled it.
    pub disable_reason: Option<DisableReason>,
    /// The secrets that sign, the newest first.
    pub secrets: Vec<Secret>,
    /// Whether what is confidential (secrets, the URL, header values) could not be read from where
    /// it is kept. It cannot deliver then, and is shown without it.
    pub unreadable: bool,
    /// Counts the changes, from 1: the etag.
    pub revision: i64,
    /// When it was created.
    pub create_time: Timestamp,
    /// When it was last changed.
    pub update_time: Timestamp,
}

impl Subscription {
    /// The mail of a tenant's primary contact, as a subscription that nobody has to make; `None` when
    /// the tenant has none.
    pub fn of_primary_contact(tenant: &Tenant) -> Option<Self> {
        let address = tenant.spec.primary_contact.as_str();
        if address.is_empty() {
            return None;
        }
        let email =
            EmailChannel { recipients: vec![address.to_owned()], ..EmailChannel::default() };
        Some(Self {
            id: SubscriptionId::of_primary_contact(tenant.id),
            tenant_id: tenant.id,
            spec: SubscriptionSpec {
                display_name: String::new(),
                event_types: vec![Pattern::all()],
                channel: Channel::Email(email),
                retry_policy: None,
                labels: Labels::new(),
            },
            state: State::Active,
            disable_reason: None,
            secrets: Vec::new(),
            unreadable: false,
            revision: tenant.revision,
            create_time: tenant.create_time,
            update_time: tenant.update_time,
        })
    }

    /// Whether it is the mail of its tenant's primary contact.
    pub fn is_of_primary_contact(&self) -> bool {
        self.id == SubscriptionId::of_primary_contact(self.tenant_id)
    }

    /// The window of its digests; `None` when it gets one message for each event.
    pub const fn digest(&self) -> Option<&Digest> {
        match &self.spec.channel {
            Channel::Email(email) => email.digest.as_ref(),
            Channel::Webhook(_) => None,
        }
    }

    /// Whether it wants events of the type `name`.
    pub fn wants(&self, name: &str) -> bool {
        self.spec.event_types.iter().any(|pattern| pattern.matches(name))
    }

    /// The secrets that sign at `now`, the newest first.
    pub fn secrets_at(&self, now: Timestamp) -> impl Iterator<Item = &Secret> {
        self.secrets.iter().filter(move |secret| secret.is_valid_at(now))
    }

    /// The keys that verify at `now`, the newest first. None unless the subscription lists
    /// [`SignatureScheme::StandardWebhooksEd25519`].
    pub fn public_keys_at(&self, now: Timestamp) -> Vec<PublicKey> {
        if !self.spec.lists(SignatureScheme::StandardWebhooksEd25519) {
            return Vec::new();
        }
        let keys = self.secrets_at(now).filter_map(|secret| secret.signing_key.as_ref());
        keys.filter_map(|key| key.public_key().ok()).collect()
    }

    /// Gives the current secret a key when the subscription needs one and it has none: secrets
    /// from before there were such keys have none.
    pub fn complete_keys(&mut self, random: &mut impl Rng) {
        if self.spec.lists(SignatureScheme::StandardWebhooksEd25519)
            && let Some(secret) = self.secrets.first_mut()
        {
            secret.signing_key.get_or_insert_with(|| SigningKey::generate(random));
        }
    }
}

impl SubscriptionSpec {
    /// Whether it is a webhook that is signed by `scheme`.
    pub fn lists(&self, scheme: SignatureScheme) -> bool {
        matches!(&self.channel, Channel::Webhook(webhook) if webhook.signatures.contains(&scheme))
    }

    /// Checks every field but the channel, which has a check of its own.
    pub fn check(&self, violations: &mut Violations) {
        tenant::check_name(&self.display_name, "subscription.display_name", violations);
        if self.event_types.is_empty() {
            violations
                .add("subscription.event_types", "must not be empty; * chooses every event type");
        }
        if self.event_types.len() > MAX_PATTERNS {
            violations.add(
                "subscription.event_types",
                format!("must have at most {MAX_PATTERNS} entries, has {}", self.event_types.len()),
            );
        }
        labels::check(&self.labels, "subscription.labels", violations);
        if let Some(policy) = &self.retry_policy {
            policy.check("subscription.retry_policy", violations);
        }
    }
}
