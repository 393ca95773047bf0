//! The store's promises: fences, fair claims, takeover, settling, expiry, retention.

use std::collections::HashMap;
use std::time::Duration;

use sea_orm::{ConnectionTrait, Database as SeaDatabase, TransactionTrait};
use tidings::domain::Timestamp;
use tidings::domain::attempt::Attempt;
use tidings::domain::delivery::{FailureReason, State};
use tidings::domain::event::Event;
use tidings::domain::subscription::State as SubscriptionState;
use tidings::domain::trace::TraceContext;
use tidings::store::{
    AcceptResult, Acceptance, DeliveryFilter, IdempotencyKey, LateResult, ManualClaim, Retention,
    Update,
};

use crate::support::Database;
use crate::support::make::{Maker, accept, room, state, succeeded};

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
        let claimed = store.claim(&[room(&subscription, 10)], successor, now, |_| true).await.expect("claimed").remove(0);
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
    async fn an_attempt_is_added_after_the_end_once(database: Database) {
        let (store, maker) = (database.open().await, Maker::new(24));
        let now = store.now().await.expect("now");
        let tenant = maker.tenant(&store, now).await;
        let subscription = maker.subscription(&store, tenant.id, now).await;
        let leased = maker.deliveries(&store, &subscription, 1, maker.node(now), true, now).await.remove(0);
        let attempt = |span_id| {
            let attempt = succeeded(&leased, now).attempt.expect("made");
            Attempt { trace: TraceContext { span_id, ..attempt.trace }, ..attempt }
        };
        // It is canceled while it is under way, and has another attempt before the result comes.
        store.cancel(tenant.id, leased.id, now).await.expect("canceled");
        let added = store.record_after_end(tenant.id, attempt(1), now).await.expect("answered");
        assert!(matches!(added, LateResult::Added(_)), "{added:?}");
        let late = attempt(2);
        assert_eq!(late.number, 1, "it does not know of the other one");
        let added = store.record_after_end(tenant.id, late.clone(), now).await.expect("answered");
        assert!(matches!(&added, LateResult::Added(delivery) if delivery.attempt_count == 2), "{added:?}");
        // What a recorder does that did not hear the commit's confirmation.
        let again = store.record_after_end(tenant.id, late, now).await.expect("answered");
        assert_eq!(again, LateResult::Known, "although it has another number in the record");
        let attempts = store.list_attempts(tenant.id, leased.id, 0, 10).await.expect("read").items;
        assert_eq!(attempts.iter().map(|attempt| attempt.number).collect::<Vec<_>>(), [1, 2]);
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
    async fn a_fenced_result_keeps_none_of_the_others_back(database: Database) {
        let (store, maker) = (database.open().await, Maker::new(41));
        let now = store.now().await.expect("now");
        let (first, second) = (maker.tenant(&store, now).await, maker.tenant(&store, now).await);
        let mut leased = Vec::new();
        for tenant in [&first, &second] {
            let subscription = maker.subscription(&store, tenant.id, now).await;
            leased.extend(maker.deliveries(&store, &subscription, 20, maker.node(now), true, now).await);
        }
        // All of one tenant's and every third of the other's change before their results come.
        let is_changed = |place: usize| place >= 20 || place.is_multiple_of(3);
        let mut positions = Vec::new();
        for (place, delivery) in leased.iter().enumerate() {
            if is_changed(place) {
                store.cancel(delivery.tenant_id, delivery.id, now).await.expect("canceled");
            }
        }
        for tenant in [&first, &second] {
            positions.push(store.feed_head(tenant.id).await.expect("read").expect("a feed").position);
        }
        let ended: Vec<_> = leased.iter().map(|delivery| succeeded(delivery, now)).collect();
        let fenced = store.record(&ended, now).await.expect("recorded").fenced;
        for (place, delivery) in leased.iter().enumerate() {
            let (is_fenced, expected) = if is_changed(place) { (true, State::Canceled) } else { (false, State::Succeeded) };
            assert_eq!(fenced.contains(&delivery.id), is_fenced);
            assert_eq!(state(&store, delivery).await, expected);
            let attempts = store.list_attempts(delivery.tenant_id, delivery.id, 0, 10).await.expect("read").items;
            assert_eq!(attempts.len(), usize::from(!is_fenced), "an attempt comes with its result");
        }
        // The feed tells what was written, and of nothing else.
        let told = store.read_feed(first.id, positions[0], 100).await.expect("read");
        let mut told: Vec<_> = told.into_iter().flat_map(|row| row.changes).map(|change| change.id).collect();
        told.sort_unstable();
        let mut done: Vec<_> = leased[..20].iter().enumerate().filter(|(place, _)| !is_changed(*place)).map(|(_, d)| d.id).collect();
        done.sort_unstable();
        assert_eq!(told, done);
        assert_eq!(store.feed_head(second.id).await.expect("read").expect("a feed").position, positions[1]);
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
        let claimed = store.claim(&rooms, node, now, |_| true).await.expect("claimed");
        let of = |id| claimed.iter().filter(|claimed| claimed.delivery.subscription_id == id).count();
        assert_eq!((of(loud.id), of(quiet.id)), (5, 2));
        assert!(claimed.iter().all(|claimed| claimed.delivery.state == State::Delivering));
        assert!(claimed.iter().all(|claimed| claimed.event.id == claimed.delivery.event_id));
        let early = now.minus(Duration::from_secs(1));
        assert!(store.claim(&rooms, node, early, |_| true).await.expect("claimed").is_empty(), "nothing is due yet");
    }
}

on_both! {
    async fn a_claim_takes_in_fair_turns_what_is_admitted(database: Database) {
        let (store, maker) = (database.open().await, Maker::new(16));
        let now = store.now().await.expect("now");
        let node = maker.node(now);
        let tenant = maker.tenant(&store, now).await;
        let (one, other) = (maker.subscription(&store, tenant.id, now).await, maker.subscription(&store, tenant.id, now).await);
        maker.deliveries(&store, &one, 5, node, false, now).await;
        // The second one of these is large, and is the oldest but one.
        let large = maker.event(tenant.id, now);
        let large = tidings::domain::event::Event { data: vec![b' '; 50_000].into(), ..large };
        for (seconds, event) in [(2, maker.event(tenant.id, now)), (1, large.clone()), (0, maker.event(tenant.id, now))] {
            let mut delivery = maker.delivery(&event, other.id, false);
            delivery.next_attempt_time = Some(now.minus(Duration::from_secs(seconds)));
            maker.store_one(&store, &event, &delivery).await;
        }

        let (mut asked, mut sizes, mut free) = (Vec::new(), Vec::new(), 20_000);
        let rooms = [room(&one, 3), room(&other, 5)];
        let claimed = store.claim(&rooms, node, now, |candidate| {
            asked.push(candidate.subscription.id);
            sizes.push(candidate.event_bytes);
            let fits = candidate.event_bytes <= free;
            free -= if fits { candidate.event_bytes } else { 0 };
            fits
        }).await.expect("claimed");
        let (first, second) = if one.id < other.id { (one.id, other.id) } else { (other.id, one.id) };
        assert_eq!(asked, [first, second, first, second, one.id], "in turns; behind the large one nothing is asked");
        // The labels are stored with their braces.
        let small = large.weight() - 50_000 + 4;
        assert_eq!(sizes.iter().filter(|size| **size == small).count(), 4);
        assert!(sizes.contains(&(large.weight() + 2)), "{sizes:?}");
        let of = |id| claimed.iter().filter(|claimed| claimed.delivery.subscription_id == id).count();
        assert_eq!((of(one.id), of(other.id)), (3, 1));
        assert!(claimed.iter().all(|claimed| claimed.event.id != large.id));
        let scheduled = store.scheduled(None, 10).await.expect("listed");
        assert_eq!(scheduled.len(), 2, "what was not admitted is still due");
        // Nothing is admitted, nothing is changed.
        assert!(store.claim(&rooms, node, now, |_| false).await.expect("claimed").is_empty());
        assert_eq!(store.claim(&rooms, node, now, |_| true).await.expect("claimed").len(), 4);
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
        maker.store_one(&store, &event, &held).await;

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
        maker.store_one(&store, &event, &delivery).await;

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
        store.purge(retention, now, Duration::ZERO).await.expect("purged");
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
    /// A tenant is deleted with more deliveries than are removed at once, all of them under way. Results
    /// that come in between are recorded, and nothing is left of it in the end, its feed's head included.
    async fn a_deleted_tenant_leaves_nothing_behind(database: Database) {
        const DELIVERIES: usize = 2_200;
        let (store, maker) = (database.open().await, Maker::new(8));
        let now = store.now().await.expect("now");
        let tenant = maker.tenant(&store, now).await;
        let subscription = maker.subscription(&store, tenant.id, now).await;
        let leased = maker.deliveries(&store, &subscription, DELIVERIES, maker.node(now), true, now).await;
        store.delete_tenant(tenant.id, None, now).await.expect("deleted");

        let hour = Duration::from_hours(1);
        let retention = Retention { events: hour, feed: hour, idempotency_keys: hour };
        let purging = {
            let store = store.clone();
            tokio::spawn(async move { store.purge(retention, now, Duration::from_secs(2)).await })
        };
        let count = |table| format!("SELECT count(*) FROM {table} WHERE tenant_id = '{}'", tenant.id);
        while database.count(&count("deliveries")).await == i64::try_from(DELIVERIES).expect("small") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let ended: Vec<_> = leased.iter().map(|delivery| succeeded(delivery, now)).collect();
        let recorded = store.record(&ended, now).await.expect("recorded");
        assert_eq!(recorded.fenced.len(), 2_000, "those that are gone");
        purging.await.expect("ended").expect("purged");
        for table in ["deliveries", "attempts", "events", "feed", "feed_heads", "subscriptions"] {
            assert_eq!(database.count(&count(table)).await, 0, "{table}");
        }
        assert!(!store.has_tenant(tenant.id).await.expect("read"));
    }
}

on_both! {
    /// More than one window of old events, and among the oldest one that is kept.
    async fn an_old_held_delivery_keeps_its_own_event_and_no_other(database: Database) {
        const EVENTS: usize = 1_300;
        let (store, maker) = (database.open().await, Maker::new(13));
        let now = store.now().await.expect("now");
        let old = now.minus(Duration::from_hours(1));
        let tenant = maker.tenant(&store, old).await;
        let subscription = maker.subscription(&store, tenant.id, old).await;
        let node = maker.node(old);
        // An event with two deliveries: one has succeeded, the other is held.
        let event = maker.event(tenant.id, old);
        let good = maker.delivery(&event, subscription.id, true);
        let mut held = maker.delivery(&event, subscription.id, false);
        (held.state, held.next_attempt_time) = (State::Held, None);
        accept(&store, &[&event], &[good.clone(), held.clone()], node, old).await;
        store.record(&[succeeded(&good, old)], old).await.expect("recorded");
        let mut last = None;
        for second in [0, 1, 2] {
            let then = old.plus(Duration::from_secs(second));
            let ended = maker.deliveries(&store, &subscription, EVENTS, node, true, then).await;
            let changes: Vec<_> = ended.iter().map(|delivery| succeeded(delivery, then)).collect();
            store.record(&changes, then).await.expect("recorded");
            last = ended.last().cloned();
        }
        let (last, fresh) = (last.expect("made"), maker.deliveries(&store, &subscription, 1, node, false, now).await);

        let retention = Retention {
            events: Duration::from_mins(1),
            feed: Duration::from_hours(2),
            idempotency_keys: Duration::from_hours(2),
        };
        let purged = store.purge(retention, now, Duration::ZERO).await.expect("purged");
        assert_eq!(purged.rows, 3 * 3 * EVENTS as u64, "an event, a delivery and an attempt each");
        let all = DeliveryFilter::default();
        let left = store.list_deliveries(tenant.id, &all, None, 10).await.expect("listed").items;
        let mut ids: Vec<_> = left.iter().map(|delivery| delivery.id).collect();
        ids.sort_unstable();
        let mut expected = [good.id, held.id, fresh[0].id];
        expected.sort_unstable();
        assert_eq!(ids, expected, "what has ended stays with what is held");
        assert_eq!(store.list_attempts(tenant.id, good.id, 0, 10).await.expect("read").items.len(), 1);
        assert!(store.list_attempts(tenant.id, last.id, 0, 10).await.expect("read").items.is_empty());
        assert!(store.event(tenant.id, event.id).await.expect("read").is_some());
        assert!(store.event(tenant.id, last.event_id).await.expect("read").is_none());

        // It goes when it has ended.
        store.cancel(tenant.id, held.id, now).await.expect("canceled");
        assert_eq!(store.purge(retention, now, Duration::ZERO).await.expect("purged").rows, 4);
        assert!(store.event(tenant.id, event.id).await.expect("read").is_none());
    }
}

on_both! {
    async fn a_key_that_was_taken_lets_nothing_of_its_group_be_stored(database: Database) {
        let (store, maker) = (database.open().await, Maker::new(42));
        let now = store.now().await.expect("now");
        let tenant = maker.tenant(&store, now).await;
        let key = |name: &str, event: &Event| IdempotencyKey {
            tenant_id: tenant.id,
            key: name.into(),
            fingerprint: [7; 32],
            event_id: event.id,
            delivery_count: 0,
        };
        let settings = HashMap::new();
        let submit = async |keys: &[&IdempotencyKey], events: &[&Event]| {
            let (settings, keys, events) = (&settings, keys.to_vec(), events.to_vec());
            let (deliveries, node) = ([].as_slice(), maker.node(now));
            store.accept(&Acceptance { settings, keys, events, deliveries, node, now }, || ()).await.expect("answered")
        };
        let [first, second, third] = [(); 3].map(|()| maker.event(tenant.id, now));
        assert_eq!(submit(&[&key("b", &first)], &[&first]).await, AcceptResult::Stored);
        // Keys are taken in their order: the new one before it is known that the other was taken.
        let (new, taken) = (key("a", &second), key("b", &third));
        assert_eq!(submit(&[&taken, &new], &[&second, &third]).await, AcceptResult::KeysTaken);
        let uses = store.key_uses([&new, &taken].into_iter()).await.expect("read");
        let owners: Vec<_> = uses.iter().map(|((_, name), first)| (name.as_str(), first.event_id)).collect();
        assert_eq!(owners, [("b", first.id)], "the new key is still to be had");
        for event in [&second, &third] {
            assert!(store.event(tenant.id, event.id).await.expect("read").is_none());
        }
        assert_eq!(submit(&[&new], &[&second]).await, AcceptResult::Stored);
    }
}

on_both! {
    /// More than one step removes; the same key may be taken again, a fresh one is remembered.
    async fn old_idempotency_keys_are_forgotten(database: Database) {
        const KEYS: usize = 4_100;
        let (store, maker) = (database.open().await, Maker::new(14));
        let now = store.now().await.expect("now");
        let old = now.minus(Duration::from_hours(1));
        let tenant = maker.tenant(&store, old).await;
        let event = |then| maker.event(tenant.id, then);
        let key = |name: String, event: &Event| IdempotencyKey {
            tenant_id: tenant.id,
            key: name,
            fingerprint: [7; 32],
            event_id: event.id,
            delivery_count: 0,
        };
        let settings = HashMap::new();
        let take = async |keys: &[IdempotencyKey], event: &Event, now| {
            let (settings, keys) = (&settings, keys.iter().collect());
            let (events, deliveries, node) = (vec![event], [].as_slice(), maker.node(now));
            store.accept(&Acceptance { settings, keys, events, deliveries, node, now }, || ()).await.expect("answered")
        };
        let first = event(old);
        let keys: Vec<_> = (0..KEYS).map(|n| key(format!("old-{n}"), &first)).collect();
        assert_eq!(take(&keys, &first, old).await, AcceptResult::Stored);
        let second = event(now);
        let fresh = key("fresh".into(), &second);
        assert_eq!(take(std::slice::from_ref(&fresh), &second, now).await, AcceptResult::Stored);

        let retention = Retention {
            events: Duration::from_hours(2),
            feed: Duration::from_hours(2),
            idempotency_keys: Duration::from_mins(1),
        };
        let purged = store.purge(retention, now, Duration::ZERO).await.expect("purged");
        assert_eq!(purged.rows, KEYS as u64);
        let third = event(now);
        let again = [key("old-7".into(), &third), key("fresh".into(), &third)];
        assert_eq!(take(&again, &third, now).await, AcceptResult::KeysTaken);
        assert!(store.event(tenant.id, third.id).await.expect("read").is_none(), "all or nothing");
        let uses = store.key_uses(again.iter()).await.expect("read");
        assert_eq!(uses.len(), 1);
        assert_eq!(uses[&(tenant.id, "fresh".into())].event_id, second.id);
        assert_eq!(take(&again[..1], &third, now).await, AcceptResult::Stored);
    }
}

/// Between the look for old keys and their removal, another node may remove one, and a request take it again: that one
/// stays. A change of the key's time stands for both: it has the removal wait for the row, and look at it again.
#[tokio::test]
async fn a_key_that_was_taken_again_is_not_forgotten() {
    let database = Database::postgres().await;
    let (store, maker) = (database.open().await, Maker::new(15));
    let now = store.now().await.expect("now");
    let old = now.minus(Duration::from_hours(1));
    let tenant = maker.tenant(&store, old).await;
    let event = maker.event(tenant.id, old);
    let keys = ["again", "gone"].map(|name| IdempotencyKey {
        tenant_id: tenant.id,
        key: name.into(),
        fingerprint: [7; 32],
        event_id: event.id,
        delivery_count: 0,
    });
    let settings = &HashMap::new();
    let (keys, events, deliveries) = (keys.iter().collect(), vec![&event], [].as_slice());
    let acceptance =
        Acceptance { settings, keys, events, deliveries, node: maker.node(old), now: old };
    assert_eq!(store.accept(&acceptance, || ()).await.expect("answered"), AcceptResult::Stored);

    let other = SeaDatabase::connect(&database.config.database_url).await.expect("connected");
    let taking = other.begin().await.expect("begun");
    let sql = format!(
        "UPDATE idempotency_keys SET create_time = {} WHERE idempotency_key = 'again'",
        now.as_micros()
    );
    taking.execute_unprepared(&sql).await.expect("taken again");
    let long = Duration::from_hours(2);
    let retention =
        Retention { events: long, feed: long, idempotency_keys: Duration::from_mins(1) };
    let purging = {
        let store = store.clone();
        tokio::spawn(async move { store.purge(retention, now, Duration::ZERO).await })
    };
    database.wait_for_lock().await;
    taking.commit().await.expect("committed");
    assert_eq!(purging.await.expect("ended").expect("purged").rows, 1, "the other key");
    let kept = "SELECT count(*) FROM idempotency_keys WHERE idempotency_key = 'again'";
    assert_eq!(database.count(kept).await, 1);
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
    async fn a_snapshot_of_an_event_reads_its_deliveries_alone(database: Database) {
        let (store, maker) = (database.open().await, Maker::new(17));
        let now = store.now().await.expect("now");
        let tenant = maker.tenant(&store, now).await;
        let subscription = maker.subscription(&store, tenant.id, now).await;
        let node = maker.node(now);
        let earlier = now.minus(Duration::from_secs(1));
        maker.deliveries(&store, &subscription, 20, node, false, earlier).await;
        // In the same millisecond, too.
        maker.deliveries(&store, &subscription, 20, node, false, now).await;
        let event = maker.event(tenant.id, now);
        let mut deliveries: Vec<_> = (0..3).map(|_| maker.delivery(&event, subscription.id, false)).collect();
        accept(&store, &[&event], &deliveries, node, now).await;
        maker.deliveries(&store, &subscription, 20, node, false, now.plus(Duration::from_secs(1))).await;
        deliveries.sort_unstable_by_key(|delivery| delivery.id);

        let page = async |subscription_id, states: &[State], after, limit| {
            let page = store.snapshot_page(tenant.id, subscription_id, Some(event.id), states, after, limit);
            page.await.expect("read").deliveries
        };
        assert_eq!(page(None, &[], None, 2).await, deliveries[..2]);
        assert_eq!(page(None, &[], Some(deliveries[1].id), 2).await, deliveries[2..]);
        let all = page(Some(subscription.id), &[State::Scheduled], None, 10).await;
        assert_eq!(all, deliveries);
        assert!(page(None, &[State::Failed], None, 10).await.is_empty());
    }
}

on_both! {
    /// Statistics look at a bounded number of attempts, those of the newest deliveries, and what has
    /// not been attempted yet does not hide them.
    async fn statistics_look_at_the_newest_attempts(database: Database) {
        let (store, maker) = (database.open().await, Maker::new(18));
        let now = store.now().await.expect("now");
        let tenant = maker.tenant(&store, now).await;
        let subscription = maker.subscription(&store, tenant.id, now).await;
        let connection = sea_orm::Database::connect(&database.config.database_url).await.expect("connected");
        // 100 old deliveries whose slow attempts were the latest, 10,000 newer ones with quick
        // attempts, and 50 that wait.
        let numbers = "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 10150)";
        let (tenant_id, subscription_id) = (tenant.id, subscription.id);
        let micros = now.as_micros();
        for sql in [
            format!("INSERT INTO deliveries (tenant_id, id, event_id, event_type, subscription_id, channel,
                recipient, state, attempt_count, automatic_count, next_attempt_time, trace_id, revision,
                create_time, update_time)
                {numbers} SELECT '{tenant_id}', 'dlv_z' || CAST(10000000 + n AS TEXT), 'evt_z', 'billing.paid',
                '{subscription_id}', 1, '', CASE WHEN n <= 10100 THEN 3 ELSE 1 END,
                CASE WHEN n <= 10100 THEN 1 ELSE 0 END, 0, CASE WHEN n > 10100 THEN 1 END, '', 1, {micros}, {micros}
                FROM r"),
            format!("INSERT INTO attempts (tenant_id, delivery_id, number, trigger_code, start_time, duration_us,
                request_headers, response_headers, response_body, outcome, trace)
                {numbers} SELECT '{tenant_id}', 'dlv_z' || CAST(10000000 + n AS TEXT), 1, 1,
                {micros} + CASE WHEN n <= 100 THEN 1000000 ELSE n END,
                CASE WHEN n <= 100 THEN 9000000 ELSE 1000 END, '[]', '[]', '', 1, '' FROM r WHERE n <= 10100"),
        ] {
            connection.execute_unprepared(&sql).await.expect("inserted");
        }
        let stats = store.subscription_stats(tenant.id, subscription.id, now).await.expect("counted");
        assert_eq!(stats.deliveries, [(State::Scheduled, 50), (State::Succeeded, 10_100)]);
        assert_eq!(stats.attempts, 10_000);
        assert_eq!(stats.percentile(100), Some(Duration::from_millis(1)), "the old ones are not looked at");
        assert_eq!(stats.last_success_time, Some(Timestamp::from_micros(micros + 10_100)));
    }
}

on_both! {
    async fn a_node_whose_lease_ran_out_must_take_a_new_name(database: Database) {
        let (store, maker) = (database.open().await, Maker::new(9));
        let node = maker.node(Timestamp::from_micros(0));
        let ttl = Duration::from_millis(50);
        store.register_node(node, Duration::from_mins(1)).await.expect("registered");
        assert_eq!(store.renew_node(node, ttl).await.expect("renewed"), Update::Done);
        while store.count_nodes().await.expect("counted") > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(store.renew_node(node, ttl).await.expect("answered"), Update::Stale);
    }
}

on_both! {
    async fn a_lease_is_taken_over_when_it_has_run_out_and_not_before(database: Database) {
        const COUNT: u32 = 3;
        let (store, maker) = (database.open().await, Maker::new(14));
        let now = store.now().await.expect("now");
        let tenant = maker.tenant(&store, now).await;
        let subscription = maker.subscription(&store, tenant.id, now).await;
        let node = maker.node(now);
        let ttl = Duration::from_secs(2);
        let asked = store.now().await.expect("now");
        store.register_node(node, ttl).await.expect("registered");
        maker.deliveries(&store, &subscription, COUNT as usize, node, true, now).await;
        // The database's own time decides, and no time that whoever takes over believes in.
        let ahead = now.plus(Duration::from_hours(1));
        let mut taken = 0;
        while taken == 0 {
            taken = store.take_over(ahead, COUNT).await.expect("looked").count;
        }
        let later = store.now().await.expect("now");
        assert!(later >= asked.plus(ttl), "taken over {:?} after it was leased", later.since(asked));
        assert_eq!(taken, COUNT as usize);
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
        maker.store_one(&store, &event, &held).await;
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
    async fn a_lease_that_is_given_back_does_not_bring_a_delivery_forward(database: Database) {
        let (store, maker) = (database.open().await, Maker::new(15));
        let now = store.now().await.expect("now");
        let (due, later) = (now.plus(Duration::from_hours(1)), now.plus(Duration::from_mins(5)));
        let tenant = maker.tenant(&store, now).await;
        let subscription = maker.subscription(&store, tenant.id, now).await;
        let node = maker.node(now);
        let mut waiting = Vec::new();
        for _ in 0..4 {
            let mut event = maker.event(tenant.id, now);
            event.deliver_time = Some(due);
            let mut delivery = maker.delivery(&event, subscription.id, false);
            delivery.next_attempt_time = Some(due);
            maker.store_one(&store, &event, &delivery).await;
            let claim = store.claim_manual(tenant.id, delivery.id, node, now).await.expect("leased");
            assert!(matches!(claim, ManualClaim::Leased(_, at) if at == due), "{claim:?}");
            waiting.push(delivery);
        }
        let automatic = maker.deliveries(&store, &subscription, 1, node, true, now).await.remove(0);
        let read = async |delivery: &tidings::domain::delivery::Delivery| {
            let read = store.delivery(tenant.id, delivery.id).await.expect("read").expect("there");
            (read.state, read.next_attempt_time)
        };

        // By the node that does not know of it, by the node that signs off, by a node that took it
        // over: the node was never registered, so it counts as silent.
        let others = |id| id != waiting[0].id;
        let released = store.release_unknown(node, later, others, later).await.expect("released");
        assert_eq!(released.count, 1);
        assert_eq!(read(&waiting[0]).await, (State::Scheduled, Some(due)));
        store.cancel(tenant.id, waiting[1].id, later).await.expect("canceled");
        assert_eq!(read(&waiting[1]).await, (State::Canceled, None));
        assert_eq!(store.take_over(later, 10).await.expect("taken over").count, 3);
        for delivery in &waiting[2..] {
            assert_eq!(read(delivery).await, (State::Scheduled, Some(due)));
        }
        assert_eq!(read(&automatic).await, (State::Scheduled, Some(later)), "due at once");

        // The schedule is remembered for that lease alone: a later one is given back as due.
        let claimed = store.claim(&[room(&subscription, 10)], node, due, |_| true).await.expect("claimed");
        assert_eq!(claimed.len(), 4);
        let then = due.plus(Duration::from_secs(1));
        store.release(node, then, 10).await.expect("released");
        assert_eq!(read(&waiting[2]).await, (State::Scheduled, Some(then)));
        let claim = store.claim_manual(tenant.id, waiting[3].id, node, now).await.expect("leased");
        let ManualClaim::Leased(leased, _) = claim else { panic!("{claim:?}") };
        let good = store.record(&[succeeded(&leased, then)], then).await.expect("recorded");
        assert!(good.fenced.is_empty());
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
        maker.store_one(&store, &event, &held).await;
        assert_eq!(store.settle(tenant.id, subscription.id, now, 100).await.expect("settled"), 1);
        let released = store.delivery(tenant.id, held.id).await.expect("read").expect("there");
        assert_eq!(released.next_attempt_time, Some(later));
    }
}
