//! What a seed stands for: how many nodes and tenants, their settings, and which faults are to come.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use tidings::domain::Timestamp;
use tidings::domain::channel::{Channel, WebhookChannel};
use tidings::domain::health::Policy;
use tidings::domain::id::{SubscriptionId, TenantId};
use tidings::domain::pattern::Pattern;
use tidings::domain::retry::{Backoff, RetryPolicy};
use tidings::domain::subscription::{State, Subscription, SubscriptionSpec};

/// When every world begins.
pub(crate) const BIRTH: Timestamp = Timestamp::from_micros(1_770_283_800_000_000);

/// What is done to a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weather {
    /// Only receivers fail. Everything is held to its bounds without excuses.
    Calm,
    /// Everything fails.
    Stormy,
}

/// How the engine of every node is set up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Config {
    pub(crate) queue_size: usize,
    pub(crate) queue_bytes: usize,
    pub(crate) max_in_flight: usize,
    pub(crate) lease_ttl: Duration,
    pub(crate) forgotten_after: Duration,
    pub(crate) poll_interval: Duration,
    pub(crate) health: Policy,
}

/// A tenant and what its services do.
pub(crate) struct Tenant {
    pub(crate) id: TenantId,
    pub(crate) subscriptions: Vec<Subscription>,
    /// It floods, and its receivers hang. The quiet ones are held to the fairness bound.
    pub(crate) is_loud: bool,
}

pub(crate) struct Scenario {
    pub(crate) weather: Weather,
    pub(crate) nodes: usize,
    pub(crate) config: Config,
    pub(crate) tenants: Vec<Tenant>,
    /// How long there are faults and events.
    pub(crate) storm: Duration,
}

/// The longest time that an attempt of any subscription here may take.
pub(crate) const LONGEST_TIMEOUT: Duration = Duration::from_secs(4);

impl Scenario {
    pub(crate) fn of(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let weather = if seed.is_multiple_of(3) { Weather::Calm } else { Weather::Stormy };
        let nodes = [1, 2, 2, 3, 3, 4, 5][random.random_range(0..7)];
        let config = Config {
            queue_size: [12, 32, 64][random.random_range(0..3)],
            queue_bytes: [32, 256][random.random_range(0..2)] * 1024,
            max_in_flight: [8, 12, 24][random.random_range(0..3)],
            lease_ttl: Duration::from_secs(random.random_range(6..=15)),
            forgotten_after: LONGEST_TIMEOUT + Duration::from_secs(15),
            poll_interval: Duration::from_millis(random.random_range(300..=1_000)),
            health: Policy {
                failures_to_open: random.random_range(3..=6),
                first_cool_down: Duration::from_secs(random.random_range(2..=5)),
                longest_cool_down: Duration::from_secs(12),
                probe_lease: Duration::from_secs(20),
                longest_pause: Duration::from_secs(10),
                longest_retry_after: Duration::from_secs(20),
                disable_after: (random.random_range(0..4) == 0).then(|| Duration::from_secs(30)),
                ..Policy::default()
            },
        };
        let count = random.random_range(2..=3);
        let tenants = (0..count).map(|place| tenant(place == 0, &mut random)).collect();
        let storm = Duration::from_secs(random.random_range(15..=35));
        Self { weather, nodes, config, tenants, storm }
    }
}

fn tenant(is_loud: bool, random: &mut StdRng) -> Tenant {
    let id = TenantId::new(BIRTH, random);
    let count = if is_loud { random.random_range(2..=4) } else { random.random_range(1..=2) };
    let mut subscriptions: Vec<_> = (0..count).map(|_| subscription(id, random)).collect();
    subscriptions.sort_by_key(|subscription| subscription.id);
    Tenant { id, subscriptions, is_loud }
}

fn subscription(tenant_id: TenantId, random: &mut StdRng) -> Subscription {
    let spec = SubscriptionSpec {
        display_name: String::new(),
        event_types: vec![Pattern::parse("*").expect("a pattern")],
        channel: Channel::Webhook(WebhookChannel {
            timeout: Duration::from_secs(random.random_range(1..=LONGEST_TIMEOUT.as_secs())),
            max_in_flight: random.random_range(1..=16),
            max_requests_per_second: (random.random_range(0..8) == 0).then_some(8.0),
            ..WebhookChannel::default()
        }),
        retry_policy: Some(retry_policy(random)),
        labels: BTreeMap::new(),
    };
    Subscription {
        id: SubscriptionId::new(BIRTH, random),
        tenant_id,
        spec,
        state: State::Active,
        disable_reason: None,
        secrets: Vec::new(),
        unreadable: false,
        revision: 1,
        create_time: BIRTH,
        update_time: BIRTH,
    }
}

/// A policy whose retries are over within minutes.
pub(crate) fn retry_policy(random: &mut StdRng) -> RetryPolicy {
    let seconds = |random: &mut StdRng| Duration::from_secs(random.random_range(1..=10));
    let backoff = if random.random() {
        Backoff::Schedule((0..random.random_range(1..=4)).map(|_| seconds(random)).collect())
    } else {
        Backoff::Exponential {
            initial: Duration::from_secs(1),
            multiplier: 2.0,
            max: seconds(random).max(Duration::from_secs(2)),
        }
    };
    RetryPolicy { max_retries: random.random_range(0..=6), backoff, jitter: 0.1 }
}
