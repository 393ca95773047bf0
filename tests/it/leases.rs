//! What a node has leased is listed in rows of many: nothing that is leased is ever missing there, and
//! rows go when nothing in them is leased any more.

use std::time::Duration;

use tidings::domain::delivery::State;
use tidings::store::Store;

use crate::support::Database;
use crate::support::make::{Maker, room, state, succeeded};

/// How many rows of leases there are.
async fn rows(database: &Database) -> i64 {
    database.row("SELECT count(*) FROM leases").await.try_get_by_index(0).expect("a count")
}

async fn take_over(store: &Store) -> usize {
    let now = store.now().await.expect("now");
    store.take_over(now, 100).await.expect("taken over").count
}

on_both! {
    async fn a_row_goes_when_the_last_of_its_deliveries_is_recorded(database: Database) {
        const COUNT: usize = 120;
        let (store, maker) = (database.open().await, Maker::new(51));
        let now = store.now().await.expect("now");
        let tenant = maker.tenant(&store, now).await;
        let subscription = maker.subscription(&store, tenant.id, now).await;
        let node = maker.node(now);
        store.register_node(node, Duration::from_mins(1)).await.expect("registered");
        let claimed = {
            maker.deliveries(&store, &subscription, COUNT, node, false, now).await;
            store.claim(&[room(&subscription, 1_000)], node, now, |_| true).await.expect("claimed")
        };
        assert_eq!(claimed.len(), COUNT);
        assert_eq!(rows(&database).await, 3, "120 deliveries, 50 in a row");

        let ended: Vec<_> =
            claimed.iter().map(|claimed| succeeded(&claimed.delivery, now)).collect();
        store.record(&ended[1..], now).await.expect("recorded");
        store.remove_ended_leases().await.expect("removed");
        assert_eq!(rows(&database).await, 1, "one delivery is under way");
        assert_eq!(take_over(&store).await, 0, "its node lives");
        store.remove_node(node).await.expect("removed");
        assert_eq!(take_over(&store).await, 1);
        assert_eq!(rows(&database).await, 0);
        let first = &claimed[0].delivery;
        assert_eq!(state(&store, first).await, State::Scheduled);
    }
}

on_both! {
    async fn rows_of_what_has_ended_do_not_hide_what_has_not(database: Database) {
        let (store, maker) = (database.open().await, Maker::new(52));
        let now = store.now().await.expect("now");
        let tenant = maker.tenant(&store, now).await;
        let subscription = maker.subscription(&store, tenant.id, now).await;
        // Never registered: it counts as silent. Each delivery is accepted alone, and has a row.
        let node = maker.node(now);
        let mut leased = Vec::new();
        for _ in 0..30 {
            leased.extend(maker.deliveries(&store, &subscription, 1, node, true, now).await);
        }
        let ended: Vec<_> = leased[..29].iter().map(|leased| succeeded(leased, now)).collect();
        store.record(&ended, now).await.expect("recorded");
        // Their rows are still there, since nobody has removed them, and come first.
        let now = store.now().await.expect("now");
        assert_eq!(store.take_over(now, 3).await.expect("taken over").count, 1);
        assert_eq!(rows(&database).await, 0);
    }
}

on_both! {
    async fn what_nobody_remembers_is_found_in_the_table(database: Database) {
        let (store, maker) = (database.open().await, Maker::new(53));
        let now = store.now().await.expect("now");
        let tenant = maker.tenant(&store, now).await;
        let subscription = maker.subscription(&store, tenant.id, now).await;
        let node = maker.node(now);
        let leased = maker.deliveries(&store, &subscription, 2, node, true, now).await;
        // Another process, as after a commit that was not confirmed: it remembers no row.
        let other = database.open().await;
        other.record(&[succeeded(&leased[0], now)], now).await.expect("recorded");
        other.remove_ended_leases().await.expect("removed");
        assert!(rows(&database).await > 0);
        let later = now.plus(Duration::from_mins(2));
        let released = other.release_unknown(node, later, |_| false, later).await.expect("looked");
        assert_eq!(released.count, 1, "the one that has no result");
        assert_eq!(rows(&database).await, 0);
        assert_eq!(state(&store, &leased[1]).await, State::Scheduled);
    }
}

on_both! {
    async fn what_another_node_has_by_now_is_left_to_it(database: Database) {
        let (store, maker) = (database.open().await, Maker::new(54));
        let now = store.now().await.expect("now");
        let tenant = maker.tenant(&store, now).await;
        let subscription = maker.subscription(&store, tenant.id, now).await;
        let (silent, other) = (maker.node(now), maker.node(now));
        store.register_node(other, Duration::from_mins(1)).await.expect("registered");
        let leased = maker.deliveries(&store, &subscription, 1, silent, true, now).await.remove(0);
        // It is to be tried again, another node has it, and the first one's row is still there.
        let mut again = succeeded(&leased, now);
        (again.after.state, again.after.next_attempt_time) = (State::Scheduled, Some(now));
        store.record(&[again], now).await.expect("recorded");
        let claimed = store.claim(&[room(&subscription, 1)], other, now, |_| true).await;
        assert_eq!(claimed.expect("claimed").len(), 1);
        assert_eq!(rows(&database).await, 2);
        assert_eq!(take_over(&store).await, 0);
        assert_eq!(state(&store, &leased).await, State::Delivering);
        assert_eq!(rows(&database).await, 1, "the other node's");
    }
}
