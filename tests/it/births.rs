//! What `docs/adr/0019-births.md` promises: what ends soon is told of with its end, nothing is told of too late,
//! and nothing is left out, whoever makes the next change.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tidings::api::proto::{DeliveryState, WatchDeliveriesRequest};
use tidings::domain::Timestamp;
use tidings::domain::delivery::{Delivery, State};
use tidings::domain::id::{NodeId, TenantId};
use tidings::domain::subscription::Subscription;
use tidings::store::{AcceptResult, Acceptance, CancelResult, Catalog, CatalogCache, Store};
use tokio::sync::Semaphore;

use crate::support::make::{Maker, succeeded};
use crate::support::{App, Database, Receiver, Reply};
use crate::watch::{next, watch};

/// A subscription whose results have come soon so far.
struct Prompt {
    store: Store,
    maker: Maker,
    now: Timestamp,
    subscription: Subscription,
    node: NodeId,
    /// Where its tenant's feed ends.
    before: i64,
}

impl Prompt {
    async fn on(database: &Database, seed: u64) -> Self {
        let (store, maker) = (database.open().await, Maker::new(seed));
        let now = store.now().await.expect("now");
        let tenant = maker.tenant(&store, now).await;
        let subscription = maker.subscription(&store, tenant.id, now).await;
        let node = maker.node(now);
        let first = maker.deliveries(&store, &subscription, 1, node, true, now).await;
        assert_eq!(told(&store, tenant.id, 0).await, first, "nothing is known of the subscription");
        store.record(&[succeeded(&first[0], now)], now).await.expect("recorded");
        let before = store.feed_head(tenant.id).await.expect("read").expect("a head").position;
        Self { store, maker, now, subscription, node, before }
    }
}

async fn told(store: &Store, tenant_id: TenantId, after: i64) -> Vec<Delivery> {
    let rows = store.read_feed(tenant_id, after, 100).await.expect("read");
    rows.into_iter().flat_map(|row| row.changes).collect()
}

async fn shown(store: &Store, tenant_id: TenantId) -> Vec<Delivery> {
    let page = store.snapshot_page(tenant_id, None, None, &[], None, 100).await.expect("a page");
    page.deliveries
}

on_both! {
    async fn a_birth_is_told_with_its_end_in_one_row(database: Database) {
        let Prompt { store, maker, now, subscription, node, before } = Prompt::on(&database, 61).await;
        let tenant_id = subscription.tenant_id;
        let born = maker.deliveries(&store, &subscription, 2, node, true, now).await;
        assert_eq!(told(&store, tenant_id, before).await, [], "told at once");
        assert_eq!(shown(&store, tenant_id).await.len(), 1, "a snapshot shows what the feed has told, and no more");
        let mut ended: Vec<_> = born.iter().map(|delivery| succeeded(delivery, now)).collect();
        store.record(&ended, now).await.expect("recorded");
        let rows = store.read_feed(tenant_id, before, 100).await.expect("read");
        assert_eq!(rows.len(), 1);
        let expected = [&born[0], &ended[0].after, &born[1], &ended[1].after].map(Clone::clone);
        assert_eq!(rows[0].changes, expected);
        assert_eq!(shown(&store, tenant_id).await.len(), 3);

        // What comes late for once is told of with its end all the same; from then on at once.
        let late = maker.deliveries(&store, &subscription, 1, node, true, now).await;
        let after = now.plus(Duration::from_secs(1));
        ended = late.iter().map(|delivery| succeeded(delivery, after)).collect();
        store.record(&ended, after).await.expect("recorded");
        assert_eq!(told(&store, tenant_id, before + 1).await, [&late[0], &ended[0].after].map(Clone::clone));
        let at_once = maker.deliveries(&store, &subscription, 1, node, true, now).await;
        assert_eq!(told(&store, tenant_id, before + 2).await, at_once);
    }
}

on_both! {
    async fn whoever_makes_the_second_change_tells_of_the_first(database: Database) {
        let Prompt { store, maker, now, subscription, node, before } = Prompt::on(&database, 62).await;
        let tenant_id = subscription.tenant_id;
        let born = maker.deliveries(&store, &subscription, 2, node, true, now).await;
        // Another process, which has not accepted them.
        let other = database.open().await;
        let canceled = match other.cancel(tenant_id, born[0].id, now).await.expect("canceled") {
            CancelResult::Canceled(canceled) => *canceled,
            other => panic!("{other:?}"),
        };
        assert_eq!((canceled.state, canceled.revision), (State::Canceled, 2));
        assert_eq!(told(&store, tenant_id, before).await, [born[0].clone(), canceled.clone()]);
        assert_eq!(other.release(node, now, 100).await.expect("released").count, 1);
        let released = store.delivery(tenant_id, born[1].id).await.expect("read").expect("there");
        assert_eq!((released.state, released.revision), (State::Scheduled, 2));
        assert_eq!(told(&store, tenant_id, before + 1).await, [born[1].clone(), released]);

        // The process that has accepted them comes too late, and tells of nothing twice.
        let ended: Vec<_> = born.iter().map(|delivery| succeeded(delivery, now)).collect();
        let recorded = store.record(&ended, now).await.expect("recorded");
        assert_eq!(recorded.fenced.len(), 2);
        for _ in 0..3 {
            store.tell_births(now).await.expect("told");
        }
        assert_eq!(told(&store, tenant_id, before + 2).await, []);
    }
}

on_both! {
    async fn what_takes_longer_is_told_by_itself_and_once(database: Database) {
        let Prompt { store, maker, now, subscription, node, before } = Prompt::on(&database, 63).await;
        let tenant_id = subscription.tenant_id;
        let born = maker.deliveries(&store, &subscription, 3, node, true, now).await;
        store.tell_births(now).await.expect("nothing is overdue");
        assert_eq!(told(&store, tenant_id, before).await, []);
        store.cancel(tenant_id, born[2].id, now).await.expect("canceled");
        store.tell_births(now).await.expect("told");
        let mut now_told = told(&store, tenant_id, before + 1).await;
        now_told.sort_by_key(|delivery| born.iter().position(|of| of.id == delivery.id));
        assert_eq!(now_told, born[..2]);
        assert_eq!(shown(&store, tenant_id).await.len(), 4);
        store.tell_births(now).await.expect("nothing is left");
        let ended: Vec<_> = born[..2].iter().map(|delivery| succeeded(delivery, now)).collect();
        store.record(&ended, now).await.expect("recorded");
        let ends: Vec<_> = ended.into_iter().map(|ended| ended.after).collect();
        let mut now_told = told(&store, tenant_id, before + 2).await;
        now_told.sort_by_key(|delivery| born.iter().position(|of| of.id == delivery.id));
        assert_eq!(now_told, ends);
    }
}

on_both! {
    async fn without_anything_to_tell_settings_are_those_of_now_too(database: Database) {
        let Prompt { store, maker, now, subscription, node, before } = Prompt::on(&database, 64).await;
        let tenant_id = subscription.tenant_id;
        let settings = CatalogCache::default().current(&store, &[tenant_id]).await.expect("read");
        let event = maker.event(tenant_id, now);
        let deliveries = [maker.delivery(&event, subscription.id, true)];
        let submit = async |settings: &HashMap<TenantId, Catalog>| {
            let (keys, events, deliveries) = (Vec::new(), vec![&event], deliveries.as_slice());
            let new = Acceptance { settings, keys, events, deliveries, node, now };
            store.accept(&new, || ()).await.expect("answered")
        };
        maker.subscription(&store, tenant_id, now).await;
        assert_eq!(submit(&settings).await, AcceptResult::SettingsChanged);
        assert!(store.event(tenant_id, event.id).await.expect("read").is_none());
        let settings = CatalogCache::default().current(&store, &[tenant_id]).await.expect("read");
        assert_eq!(submit(&settings).await, AcceptResult::Stored);
        assert_eq!(told(&store, tenant_id, before).await, [], "told at once");
        assert!(store.event(tenant_id, event.id).await.expect("read").is_some());
    }
}

on_both! {
    /// An endpoint that was prompt does not answer any more: watchers see that it is being asked.
    async fn an_attempt_that_hangs_for_once_is_seen(database: Database) {
        let app = App::start(database).await;
        let gate = Arc::new(Semaphore::new(0));
        let receiver = Receiver::scripted({
            let gate = Arc::clone(&gate);
            move |_, number| match number {
                0 => Reply::status(200),
                _ => Reply::status(200).behind(Arc::clone(&gate)),
            }
        })
        .await;
        let tenant = app.operator.create_tenant("Acme").await;
        app.operator.subscribe(&tenant.id, &["*"], &receiver.url()).await;
        let request = WatchDeliveriesRequest { tenant_id: tenant.id.clone(), ..Default::default() };
        let mut stream = watch(&app.operator, request).await;
        let mut states = Vec::new();
        for count in [2, 3, 4] {
            if count < 4 {
                app.operator.emit(&tenant.id, "user.created", "{}").await;
            } else {
                gate.add_permits(1);
            }
            let told = async {
                while states.len() < count {
                    if let Some(delivery) = next(&mut stream).await.delivery {
                        states.push((delivery.revision, delivery.state()));
                    }
                }
            };
            tokio::time::timeout(Duration::from_secs(30), told).await.expect("every change is told");
        }
        let (begins, ends) = ((1, DeliveryState::Delivering), (2, DeliveryState::Succeeded));
        assert_eq!(states, [begins, ends, begins, ends]);
        app.stop().await;
    }
}
