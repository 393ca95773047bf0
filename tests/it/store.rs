//! The store's promises: fences, fair claims, takeover, settling, expiry, retention.

use std::time::Duration;

use tidings::domain::Timestamp;
use tidings::domain::delivery::{FailureReason, State};
use tidings::domain::subscription::State as SubscriptionState;
use tidings::store::{DeliveryFilter, LateResult, Retention, Room, Store, SubscriptionRef, Update};

use crate::support::Database;
use crate::support::make::{Maker, succeeded};

async fn state(store: &Store, delivery: &tidings::domain::delivery::Delivery) -> State {
    store.delivery(delivery.tenant_id, delivery.id).await.expect("read").expect("there").state
}

fn room(subscription: &tidings::domain::subscription::Subscription, room: u32) -> Room {
    Room {
        subscription: SubscriptionRef { tenant_id: subscription.tenant_id, id: subscription.id },
        room,
    }
}

on_both! {
    async fn a_lost_lease_cannot_overwrite_a_result(database: Database) {
        let (store, maker) = (database.open().await, Maker::new(1));
        let now = store.now().await.expect("now");
        let tenant = maker.tenant(&store, now).await;
        let subscription = maker.subscription(&store, tenant.id, now).await;
        let (stopped, successor) = (maker.node(now), maker.node(now));
        let leased = maker.deliveries(&store, &subscription, 1, stopped, true, now).await.remove(0);

        // The first node is not registered, so its lease counts as run out.
        let taken = store.take_over(now, 10).await.expect("taken over");
        assert_eq!(taken.count, 1);
        let claimed = store.claim(&[room(&subscription, 10)], successor, now).await.expect("claimed").remove(0);
        assert_eq!(claimed.delivery.revision, 3, "released, then claimed");

        let late = store.record(&[succeeded(&leased, now)], now).await.expect("recorded");
        assert!(late.fenced.contains(&leased.id), "the first node's result is fenced");
        assert_eq!(state(&store, &leased).await, State::Delivering);
        let attempts = store.list_attempts(tenant.id, leased.id, 0, 10).await.expect("read");
        assert!(attempts.items.is_empty());
        let late_attempt = succeeded(&leased, now).attempt.expect("made");
        let result = store.record_after_end(tenant.id, late_attempt, now).await.expect("answered");
        assert_eq!(result, LateResult::Lost);

        let good = store.record(&[succeeded(&claimed.delivery, now)], now).await.expect("recorded");
        assert!(good.fenced.is_empty());
        assert_eq!(state(&store, &leased).await, State::Succeeded);
    }
}

on_both! {
    async fn recording_twice_changes_nothing(database: Database) {
        let (store, maker) = (database.open().await, Maker::new(2));
        let now = store.now().await.expect("now");
        let tenant = maker.tenant(&store, now).await;
        let subscription = maker.subscription(&store, tenant.id, now).await;
        let leased = maker.deliveries(&store, &subscription, 300, maker.node(now), true, now).await;
        let ended: Vec<_> = leased.iter().map(|delivery| succeeded(delivery, now)).collect();
        assert!(store.record(&ended, now).await.expect("recorded").fenced.is_empty());
        // What a recorder does that did not hear the commit's confirmation.
        assert_eq!(store.record(&ended, now).await.expect("recorded").fenced.len(), leased.len());
        let attempt = ended[0].attempt.clone().expect("made");
        let again = store.record_after_end(tenant.id, attempt, now).await.expect("answered");
        assert_eq!(again, LateResult::Known, "the attempt is in the record already");
        for delivery in &leased[..3] {
            let attempts = store.list_attempts(tenant.id, delivery.id, 0, 10).await.expect("read").items;
            assert_eq!(attempts.len(), 1);
            let stored = store.delivery(tenant.id, delivery.id).await.expect("read").expect("there");
            assert_eq!(stored.last_attempt, ended.iter().find(|e| e.after.id == delivery.id).and_then(|e| e.after.last_attempt.clone()));
        }
    }
}

on_both! {
    async fn claims_are_fair_and_bounded(database: Database) {
        let (store, maker) = (database.open().await, Maker::new(3));
        let now = store.now().await.expect("now");
        let node = maker.node(now);
        let (loud, quiet) = (maker.tenant(&store, now).await, maker.tenant(&store, now).await);
        let loud = maker.subscription(&store, loud.id, now).await;
        let quiet = maker.subscription(&store, quiet.id, now).await;
        maker.deliveries(&store, &loud, 400, node, false, now).await;
        maker.deliveries(&store, &quiet, 2, node, false, now).await;

        let scheduled = store.scheduled(None, 100).await.expect("listed");
        assert_eq!(scheduled.len(), 2, "one entry per subscription, not per delivery");
        let behind = store.scheduled(Some(scheduled[0].0), 100).await.expect("listed");
        assert_eq!(behind, scheduled[1..]);
        assert_eq!(store.scheduled(None, 1).await.expect("listed"), scheduled[..1]);

        let rooms = [room(&loud, 5), room(&quiet, 5)];
        let claimed = store.claim(&rooms, node, now).await.expect("claimed");
        let of = |id| claimed.iter().filter(|claimed| claimed.delivery.subscription_id == id).count();
        assert_eq!((of(loud.id), of(quiet.id)), (5, 2));
        assert!(claimed.iter().all(|claimed| claimed.delivery.state == State::Delivering));
        assert!(claimed.iter().all(|claimed| claimed.event.id == claimed.delivery.event_id));
        let early = now.minus(Duration::from_secs(1));
        assert!(store.claim(&rooms, node, early).await.expect("claimed").is_empty(), "nothing is due yet");
    }
}

on_both! {
    async fn deliveries_follow_their_subscription(database: Database) {
        let (store, maker) = (database.open().await, Maker::new(4));
        let now = store.now().await.expect("now");
        let tenant = maker.tenant(&store, now).await;
        let mut subscription = maker.subscription(&store, tenant.id, now).await;
        let waiting = maker.deliveries(&store, &subscription, 7, maker.node(now), false, now).await;

        subscription.state = SubscriptionState::Paused;
        subscription.revision += 1;
        assert_eq!(store.update_subscription(&subscription).await.expect("updated"), Update::Done);
        assert_eq!(store.unsettled(10).await.expect("listed").len(), 1);
        assert_eq!(store.settle(tenant.id, subscription.id, now, 5).await.expect("settled"), 5);
        assert_eq!(store.settle(tenant.id, subscription.id, now, 5).await.expect("settled"), 2);
        assert_eq!(state(&store, &waiting[6]).await, State::Held);
        assert!(store.unsettled(10).await.expect("listed").is_empty());

        subscription.state = SubscriptionState::Active;
        subscription.revision += 1;
        assert_eq!(store.update_subscription(&subscription).await.expect("updated"), Update::Done);
        assert_eq!(store.settle(tenant.id, subscription.id, now, 100).await.expect("settled"), 7);
        assert_eq!(state(&store, &waiting[0]).await, State::Scheduled);

        assert_eq!(store.delete_subscription(tenant.id, subscription.id, None, now).await.expect("deleted"), Update::Done);
        assert_eq!(store.subscription(tenant.id, subscription.id).await.expect("read"), None);
        assert_eq!(store.settle(tenant.id, subscription.id, now, 100).await.expect("settled"), 7);
        let canceled = store.delivery(tenant.id, waiting[0].id).await.expect("read").expect("there");
        assert_eq!(canceled.state, State::Canceled);
        assert_eq!(canceled.failure_reason, Some(FailureReason::SubscriptionDeleted));
        assert!(store.unsettled(10).await.expect("listed").is_empty());
    }
}

on_both! {
    async fn a_delivery_held_by_a_late_emit_is_released(database: Database) {
        let (store, maker) = (database.open().await, Maker::new(5));
        let now = store.now().await.expect("now");
        let tenant = maker.tenant(&store, now).await;
        let subscription = maker.subscription(&store, tenant.id, now).await;
        // An Emit that read the subscription while it was paused commits after the resume.
        let event = maker.event(tenant.id, now);
        let mut held = maker.delivery(&event, subscription.id, false);
        (held.state, held.next_attempt_time) = (State::Held, None);
        let transaction = store.begin_accept().await.expect("begun");
        transaction.insert([&event].into_iter(), std::slice::from_ref(&held), maker.node(now), now).await.expect("inserted");
        transaction.commit().await.expect("committed");

        assert_eq!(store.unsettle_stragglers(None, now, 100).await.expect("looked"), None);
        assert_eq!(store.unsettled(10).await.expect("listed").len(), 1);
        assert_eq!(store.settle(tenant.id, subscription.id, now, 100).await.expect("settled"), 1);
        assert_eq!(state(&store, &held).await, State::Scheduled);
        store.unsettle_stragglers(None, now, 100).await.expect("looked");
        assert!(store.unsettled(10).await.expect("listed").is_empty());
    }
}

on_both! {
    async fn expired_deliveries_end(database: Database) {
        let (store, maker) = (database.open().await, Maker::new(6));
        let now = store.now().await.expect("now");
        let tenant = maker.tenant(&store, now).await;
        let subscription = maker.subscription(&store, tenant.id, now).await;
        let mut event = maker.event(tenant.id, now);
        event.expire_time = Some(now.plus(Duration::from_mins(1)));
        let delivery = maker.delivery(&event, subscription.id, false);
        let transaction = store.begin_accept().await.expect("begun");
        transaction.insert([&event].into_iter(), std::slice::from_ref(&delivery), maker.node(now), now).await.expect("inserted");
        transaction.commit().await.expect("committed");

        assert_eq!(store.expire(now, 10).await.expect("looked"), 0);
        assert_eq!(store.expire(now.plus(Duration::from_secs(61)), 10).await.expect("looked"), 1);
        assert_eq!(state(&store, &delivery).await, State::Expired);
    }
}

on_both! {
    async fn retention_removes_what_has_ended_and_nothing_else(database: Database) {
        let (store, maker) = (database.open().await, Maker::new(7));
        let now = store.now().await.expect("now");
        let old = now.minus(Duration::from_secs(100));
        let tenant = maker.tenant(&store, old).await;
        let subscription = maker.subscription(&store, tenant.id, old).await;
        let ended = maker.deliveries(&store, &subscription, 2, maker.node(old), true, old).await;
        let changes: Vec<_> = ended.iter().map(|delivery| succeeded(delivery, old)).collect();
        store.record(&changes, old).await.expect("recorded");
        let waiting = maker.deliveries(&store, &subscription, 1, maker.node(now), false, now.minus(Duration::from_secs(50))).await;
        let fresh = maker.deliveries(&store, &subscription, 1, maker.node(now), false, now).await;

        let retention = Retention {
            events: Duration::from_secs(20),
            feed: Duration::from_secs(20),
            idempotency_keys: Duration::from_secs(20),
        };
        while store.purge(retention, now).await.expect("purged").rows > 0 {}
        let left = store.list_deliveries(tenant.id, &DeliveryFilter::default(), None, 10).await.expect("listed").items;
        let mut ids: Vec<_> = left.iter().map(|delivery| delivery.id).collect();
        ids.sort_unstable();
        assert_eq!(ids, [waiting[0].id, fresh[0].id], "a delivery that waits stays, however old");
        assert!(store.event(tenant.id, waiting[0].event_id).await.expect("read").is_some());
        assert!(store.event(tenant.id, ended[0].event_id).await.expect("read").is_none());
        assert!(store.list_attempts(tenant.id, ended[0].id, 0, 10).await.expect("read").items.is_empty());
        let head = store.feed_head(tenant.id).await.expect("read").expect("there");
        assert_eq!((head.position, head.floor), (4, 3), "three old rows of the feed are gone");
    }
}

on_both! {
    async fn an_events_deliveries_are_found_by_their_ids(database: Database) {
        let (store, maker) = (database.open().await, Maker::new(8));
        let now = store.now().await.expect("now");
        let tenant = maker.tenant(&store, now).await;
        let subscription = maker.subscription(&store, tenant.id, now).await;
        let deliveries = maker.deliveries(&store, &subscription, 20, maker.node(now), false, now).await;
        for delivery in deliveries {
            let filter = DeliveryFilter { event_id: Some(delivery.event_id), ..DeliveryFilter::default() };
            let found = store.list_deliveries(tenant.id, &filter, None, 10).await.expect("listed").items;
            assert_eq!(found.len(), 1);
            assert_eq!(found[0].id, delivery.id);
        }
    }
}

on_both! {
    async fn a_node_whose_lease_ran_out_must_take_a_new_name(database: Database) {
        let (store, maker) = (database.open().await, Maker::new(9));
        let node = maker.node(Timestamp::from_micros(0));
        let ttl = Duration::from_millis(50);
        store.register_node(node, ttl).await.expect("registered");
        assert_eq!(store.renew_node(node, ttl).await.expect("renewed"), Update::Done);
        while store.count_nodes().await.expect("counted") > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(store.renew_node(node, ttl).await.expect("answered"), Update::Stale);
    }
}

on_both! {
    async fn a_delivery_held_for_a_subscription_that_is_gone_is_canceled(database: Database) {
        let (store, maker) = (database.open().await, Maker::new(10));
        let now = store.now().await.expect("now");
        let tenant = maker.tenant(&store, now).await;
        let subscription = maker.subscription(&store, tenant.id, now).await;
        store.delete_subscription(tenant.id, subscription.id, None, now).await.expect("deleted");
        assert_eq!(store.settle(tenant.id, subscription.id, now, 100).await.expect("settled"), 0);
        let event = maker.event(tenant.id, now);
        let mut held = maker.delivery(&event, subscription.id, false);
        (held.state, held.next_attempt_time) = (State::Held, None);
        let transaction = store.begin_accept().await.expect("begun");
        transaction
            .insert([&event].into_iter(), std::slice::from_ref(&held), maker.node(now), now)
            .await
            .expect("inserted");
        transaction.commit().await.expect("committed");
        store.unsettle_stragglers(None, now, 100).await.expect("looked");
        assert_eq!(state(&store, &held).await, State::Canceled);
    }
}

on_both! {
    async fn a_lease_that_its_own_node_does_not_know_is_given_back(database: Database) {
        let (store, maker) = (database.open().await, Maker::new(11));
        let now = store.now().await.expect("now");
        let tenant = maker.tenant(&store, now).await;
        let subscription = maker.subscription(&store, tenant.id, now).await;
        let node = maker.node(now);
        let leased = maker.deliveries(&store, &subscription, 3, node, true, now).await;
        let later = now.plus(Duration::from_mins(1));
        let known = |id| id == leased[0].id;
        let early = store.release_unknown(node, now, known, later).await.expect("looked");
        assert_eq!(early.count, 0, "a lease that is fresh may be on its way to memory");
        let released = store.release_unknown(node, later, known, later).await.expect("released");
        assert_eq!(released.count, 2);
        assert_eq!(state(&store, &leased[0]).await, State::Delivering);
        assert_eq!(state(&store, &leased[1]).await, State::Scheduled);
    }
}

on_both! {
    async fn a_pause_does_not_bring_a_delivery_forward(database: Database) {
        let (store, maker) = (database.open().await, Maker::new(12));
        let now = store.now().await.expect("now");
        let tenant = maker.tenant(&store, now).await;
        let subscription = maker.subscription(&store, tenant.id, now).await;
        let mut event = maker.event(tenant.id, now);
        let later = now.plus(Duration::from_hours(1));
        event.deliver_time = Some(later);
        let mut held = maker.delivery(&event, subscription.id, false);
        (held.state, held.next_attempt_time) = (State::Held, None);
        let transaction = store.begin_accept().await.expect("begun");
        transaction
            .insert([&event].into_iter(), std::slice::from_ref(&held), maker.node(now), now)
            .await
            .expect("inserted");
        transaction.commit().await.expect("committed");
        assert_eq!(store.settle(tenant.id, subscription.id, now, 100).await.expect("settled"), 1);
        let released = store.delivery(tenant.id, held.id).await.expect("read").expect("there");
        assert_eq!(released.next_attempt_time, Some(later));
    }
}
