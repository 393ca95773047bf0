//! The address guard as it is shipped: the real binary with its defaults, in a network namespace in
//! which every address of the internet leads here, so that a connection to an address that must be
//! refused would be made, answered with a valid certificate, and counted.

mod cases;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tidings::api::proto;
use tidings::api::proto::{DeliveryState, ErrorKind};

use self::cases::{Case, Target};
use self::world::{PRIVATE, PROXY_PORT, PUBLIC, World};
use crate::support::app::emit_request;
use crate::support::authority::Authority;
use crate::support::dns::{Answer, Dns};
use crate::support::namespace::{NAME_SERVER, Place, SEARCH_DOMAIN, enter};
use crate::support::process::{Served, operator_key};
use crate::support::{Client, Database};

/// Deliveries while the name server changes its mind at each look-up.
const REBINDINGS: usize = 300;

/// The service, a client and a tenant.
struct Bench {
    served: Served,
    client: Client,
    tenant: String,
    authority: Authority,
}

impl Bench {
    async fn serve(database: &Database, authority: &Authority) -> Served {
        let proxy = format!("http://127.0.0.1:{PROXY_PORT}");
        let names = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];
        let names = names.iter().flat_map(|name| [(*name).to_owned(), name.to_lowercase()]);
        let names: Vec<_> = names.collect();
        let variables: Vec<_> = names.iter().map(|name| (name.as_str(), proxy.as_str())).collect();
        // An authority that the receivers' certificates come from is all that is added.
        let file = authority.path().to_str().expect("UTF-8");
        Served::start_as_shipped(database, &["--ca-file", file], &variables).await
    }

    async fn start(database: &Database, authority: Authority) -> Self {
        let key = operator_key(database).await;
        let served = Self::serve(database, &authority).await;
        let client = Client::connect(&served.endpoint, &key).await;
        let tenant = client.create_tenant("guard").await.id;
        Self { served, client, tenant, authority }
    }

    /// Subscribes `url` to its own event type. No retries: each event is one attempt.
    async fn subscribe(&self, event_type: &str, url: &str, timeout: Duration) {
        let webhook = proto::WebhookChannel {
            url: url.into(),
            timeout: Some(timeout.try_into().expect("a duration")),
            max_in_flight: 1,
            ..Default::default()
        };
        let once = proto::RetryPolicy { max_retries: Some(0), ..Default::default() };
        self.client.subscribe_with(&self.tenant, &[event_type], webhook, Some(once)).await;
    }

    /// Emits an event of this type, and waits for the only attempt to deliver it.
    async fn attempt(&self, event_type: &str) -> proto::Attempt {
        let event_id = self.client.emit(&self.tenant, event_type, "{}").await.event_id;
        self.attempt_of(&event_id).await
    }

    async fn attempt_of(&self, event_id: &str) -> proto::Attempt {
        let delivery = self.ended(event_id).await;
        let mut attempts = self.client.attempts(&self.tenant, &delivery.id).await;
        assert_eq!(attempts.len(), 1, "{delivery:?}");
        attempts.remove(0)
    }

    async fn ended(&self, event_id: &str) -> proto::Delivery {
        let open = [DeliveryState::Scheduled, DeliveryState::Delivering];
        for _ in 0..6_000 {
            let mut deliveries = self.client.deliveries_of(&self.tenant, event_id).await;
            assert_eq!(deliveries.len(), 1, "one delivery was expected");
            if !open.contains(&deliveries[0].state()) {
                return deliveries.remove(0);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{event_id} was not delivered in time");
    }
}

/// What a case came to.
struct Seen {
    label: String,
    attempt: proto::Attempt,
    /// Connections to the public receivers, and to everything else.
    connections: (usize, usize),
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_connection_is_made_to_an_address_that_is_refused() {
    let name = "guard::no_connection_is_made_to_an_address_that_is_refused";
    if matches!(enter(name).await, Place::Outside) {
        return;
    }
    let cases = cases::all();
    let mut zone: BTreeMap<_, _> = cases.iter().filter_map(Case::record).collect();
    zone.insert("rebinding.company.com".into(), Answer::InTurn(vec![PUBLIC, PRIVATE]));
    // What a look-up with the search domain would find.
    zone.insert(format!("searched.company.com.{SEARCH_DOMAIN}"), Answer::Addresses(vec![PUBLIC]));
    let dns = Dns::start(NAME_SERVER, zone).await;
    let authority = Authority::new();
    let world = World::start(&authority).await;
    let database = Database::sqlite().await;
    let mut bench = Bench::start(&database, authority).await;

    for case in &cases {
        bench.subscribe(&case.event_type(), &case.stored_url(), case.timeout).await;
    }
    bench.subscribe("rebinding", "https://rebinding.company.com/close", LONG).await;
    bench = plant_literals(bench, &database, &cases).await;

    let mut all = Vec::new();
    for case in &cases {
        let seen = observe(&bench, &world, case).await;
        case.check(&seen);
        all.push(seen);
    }
    refusals_are_all_the_same(&cases, &all, &dns);
    let rebound = rebinding(&bench, &world, &dns).await;

    assert_eq!(world.count(|_, port| port == PROXY_PORT), 0, "no proxy is used");
    let searched = dns.names().into_iter().find(|name| name.ends_with(SEARCH_DOMAIN));
    assert_eq!(searched, None, "names are absolute");
    print_table(&all, &rebound);
    bench.served.kill().await;
}

/// Longer than anything takes.
const LONG: Duration = Duration::from_secs(10);

/// Writes the URLs that the API would refuse into the database, past the API, while nothing runs.
async fn plant_literals(bench: Bench, database: &Database, cases: &[Case]) -> Bench {
    use tidings::domain::channel::Channel;
    let Bench { served, client: _, tenant, authority } = bench;
    served.kill().await;
    let store = database.open().await;
    let tenant_id = tenant.parse().expect("an id");
    let stored = store.list_subscriptions(tenant_id, &[], None, 1_000).await.expect("listed").items;
    for case in cases {
        let Target::Planted(planted) = &case.target else { continue };
        let has_url = |channel: &Channel| matches!(channel, Channel::Webhook(webhook) if webhook.url == case.stored_url());
        let found = stored.iter().find(|subscription| has_url(&subscription.spec.channel));
        let mut subscription =
            found.unwrap_or_else(|| panic!("{planted} has no subscription")).clone();
        if let Channel::Webhook(webhook) = &mut subscription.spec.channel {
            (*planted).clone_into(&mut webhook.url);
        }
        subscription.revision += 1;
        let done = store.update_subscription(&subscription).await.expect("written");
        assert_eq!(done, tidings::store::Update::Done, "{planted}");
    }
    store.close().await;
    let key = operator_key(database).await;
    let served = Bench::serve(database, &authority).await;
    let client = Client::connect(&served.endpoint, &key).await;
    Bench { served, client, tenant, authority }
}

async fn observe(bench: &Bench, world: &World, case: &Case) -> Seen {
    let counts = || (world.count(world::is_receiver), world.count(|_, _| true));
    let (public_before, all_before) = counts();
    let mut attempt = proto::Attempt::default();
    for _ in 0..case.deliveries {
        attempt = bench.attempt(&case.event_type()).await;
    }
    let (public, all) = counts();
    let public = public - public_before;
    Seen { label: case.label.clone(), attempt, connections: (public, all - all_before - public) }
}

/// Nobody learns from a refusal where a name leads: neither from its words nor from its time.
fn refusals_are_all_the_same(cases: &[Case], all: &[Seen], dns: &Dns) {
    let refused: Vec<_> = cases
        .iter()
        .zip(all)
        .filter(|(_, seen)| seen.attempt.error_kind() == ErrorKind::AddressRefused)
        .collect();
    let texts: BTreeSet<_> =
        refused.iter().map(|(_, seen)| seen.attempt.error_message.as_str()).collect();
    assert_eq!(texts.len(), 1, "one text for every reason: {texts:?}");
    let text = texts.first().expect("one");
    assert!(!text.contains(|c: char| c.is_ascii_digit()) && !text.contains("company"), "{text}");
    let names = refused.iter().filter(|(case, _)| matches!(case.target, Target::Name(_)));
    let mut count = 0;
    for (case, seen) in names {
        // The look-up is made in any case and in full, and nothing comes after it.
        assert_eq!(dns.asked(&case.host()), (1, 1), "{}", case.label);
        let timings = seen.attempt.timings.expect("timings");
        assert!(timings.dns.is_some(), "{}", case.label);
        assert_eq!((timings.connect, timings.tls, timings.first_byte), (None, None, None));
        count += 1;
    }
    assert!(count > 40, "{count} refused names");
}

/// The name leads to a public and to a private address in turn, at each look-up anew.
async fn rebinding(bench: &Bench, world: &World, dns: &Dns) -> Seen {
    let before = (world.count(world::is_receiver), world.count(|_, _| true));
    let requests = (0..REBINDINGS).map(|_| emit_request(&bench.tenant, "rebinding", "{}"));
    let batch = proto::EmitBatchRequest { requests: requests.collect(), ..Default::default() };
    let results = bench.client.events().emit_batch(batch).await.expect("accepted").into_inner();
    let (mut delivered, mut attempt) = (0, proto::Attempt::default());
    for result in results.results {
        let Some(proto::emit_result::Result::Response(response)) = result.result else {
            panic!("refused: {result:?}");
        };
        let last = bench.attempt_of(&response.event_id).await;
        match last.error_kind() {
            ErrorKind::Unspecified => delivered += 1,
            _ => attempt = last,
        }
    }
    assert_eq!(attempt.error_kind(), ErrorKind::AddressRefused, "{attempt:?}");
    let public = world.count(world::is_receiver) - before.0;
    let other = world.count(|_, _| true) - before.1 - public;
    assert_eq!(dns.asked("rebinding.company.com").0, REBINDINGS, "each is looked up anew, once");
    assert_eq!((delivered, public, other), (REBINDINGS / 2, REBINDINGS / 2, 0));
    let label = format!("rebinding between {REBINDINGS} look-ups: public, private in turn");
    Seen { label, attempt, connections: (public, other) }
}

fn print_table(all: &[Seen], rebound: &Seen) {
    println!("\n{:<72} {:<16} {:>6} {:>6}", "case", "verdict", "public", "others");
    for Seen { label, attempt, connections: (public, others) } in all.iter().chain([rebound]) {
        let verdict = match attempt.error_kind() {
            ErrorKind::Unspecified => "DELIVERED",
            kind => kind.as_str_name().trim_start_matches("ERROR_KIND_"),
        };
        println!("{label:<72} {verdict:<16} {public:>6} {others:>6}");
    }
    println!("connections to proxies of the environment: 0; {} cases", all.len() + 1);
}
