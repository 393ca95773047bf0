//! The feed's order: what `docs/adr/0003-feed-order.md` promises.
//!
//! The danger: a transaction takes a number, another takes the next and commits first; a reader
//! sees the second number, moves on, and never sees the first. The heads' row locks rule it out.

use std::time::Duration;

use sea_orm::{ConnectionTrait, Database as SeaDatabase, TransactionTrait};
use tidings::domain::delivery::State;
use tidings::domain::subscription::Subscription;
use tidings::store::Store;

use crate::support::Database;
use crate::support::make::{Maker, accept, feed_row, succeeded};

/// Everything that a reader sees who polls while `until` is not reached.
async fn read_to(store: &Store, tenant_id: tidings::domain::id::TenantId, until: i64) -> Vec<i64> {
    let mut seen = Vec::new();
    while seen.last().copied().unwrap_or(0) < until {
        let after = seen.last().copied().unwrap_or(0);
        for row in store.read_feed(tenant_id, after, 10).await.expect("read") {
            seen.push(row.position);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    seen
}

/// Two interleaved transactions on PostgreSQL: the one that took the lower position commits last.
/// It must be impossible for the other to become visible before it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_is_visible_only_after_all_lower_ones() {
    let database = Database::postgres().await;
    let (store, maker) = (database.open().await, Maker::new(21));
    let now = store.now().await.expect("now");
    let tenant = maker.tenant(&store, now).await;
    let subscription = maker.subscription(&store, tenant.id, now).await;
    let node = maker.node(now);

    // The first transaction is held open where ours are only for a moment: its row is written, its
    // commit still to come.
    let admin = SeaDatabase::connect(&database.config.database_url).await.expect("connected");
    let first = admin.begin().await.expect("begun");
    for sql in feed_row(tenant.id.as_str(), "[]") {
        first.execute_unprepared(&sql).await.expect("done");
    }

    // The second transaction wants the next position while the first is still open.
    let second = {
        let store = store.clone();
        let maker = Maker::new(22);
        let subscription = subscription.clone();
        tokio::spawn(
            async move { maker.deliveries(&store, &subscription, 1, node, false, now).await },
        )
    };
    database.wait_for_lock().await;
    assert!(!second.is_finished(), "the second transaction waits for the first");
    assert!(
        store.read_feed(tenant.id, 0, 10).await.expect("read").is_empty(),
        "nothing is visible yet"
    );

    first.commit().await.expect("committed");
    second.await.expect("committed");
    assert_eq!(read_to(&store, tenant.id, 2).await, [1, 2]);
}

on_both! {
    /// Many writers, one reader that polls: it sees every position, in order.
    async fn a_polling_reader_misses_nothing(database: Database) {
        const WRITERS: usize = 8;
        const ROUNDS: usize = 25;
        let (store, maker) = (database.open().await, Maker::new(23));
        let now = store.now().await.expect("now");
        let tenant = maker.tenant(&store, now).await;
        let subscription = maker.subscription(&store, tenant.id, now).await;
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (store, subscription) = (store.clone(), subscription.clone());
                tokio::spawn(async move {
                    let maker = Maker::new(100 + writer as u64);
                    for _ in 0..ROUNDS {
                        maker.deliveries(&store, &subscription, 2, maker.node(now), false, now).await;
                    }
                })
            })
            .collect();
        let last = i64::try_from(WRITERS * ROUNDS).expect("small");
        let seen = read_to(&store, tenant.id, last).await;
        assert_eq!(seen, (1..=last).collect::<Vec<_>>());
        for writer in writers {
            writer.await.expect("wrote");
        }
    }
}

on_both! {
    /// A transaction with more changes than fit in one row takes one position per row.
    async fn a_large_transaction_is_cut_into_rows(database: Database) {
        let (store, maker) = (database.open().await, Maker::new(24));
        let now = store.now().await.expect("now");
        let tenant = maker.tenant(&store, now).await;
        let subscription = maker.subscription(&store, tenant.id, now).await;
        let deliveries = maker.deliveries(&store, &subscription, 300, maker.node(now), false, now).await;
        let rows = store.read_feed(tenant.id, 0, 100).await.expect("read");
        let positions: Vec<_> = rows.iter().map(|row| row.position).collect();
        assert!((3..100).contains(&rows.len()), "not cut: {} rows", rows.len());
        assert_eq!(positions, (1..).take(rows.len()).collect::<Vec<i64>>(), "a gap");
        let told: Vec<_> = rows.into_iter().flat_map(|row| row.changes).collect();
        assert_eq!(told, deliveries);
    }
}

/// Transactions that change deliveries of the same tenants, on connections of their own, in whatever order
/// they name them: they wait for each other, but never in a circle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_over_many_tenants_never_wait_in_a_circle() {
    const WRITERS: u64 = 4;
    const TENANTS: usize = 6;
    const ROUNDS: usize = 40;
    let database = Database::postgres().await;
    let (store, maker) = (database.open().await, Maker::new(25));
    let now = store.now().await.expect("now");
    let mut subscriptions = Vec::new();
    for _ in 0..TENANTS {
        let tenant = maker.tenant(&store, now).await;
        subscriptions.push(maker.subscription(&store, tenant.id, now).await);
    }
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let (store, mut subscriptions) = (database.open().await, subscriptions.clone());
        writers.push(tokio::spawn(async move {
            let maker = Maker::new(200 + writer);
            let node = maker.node(now);
            if writer % 2 == 1 {
                subscriptions.reverse();
            }
            for _ in 0..ROUNDS {
                let event = |of: &Subscription| maker.event(of.tenant_id, now);
                let events: Vec<_> = subscriptions.iter().map(event).collect();
                // One of which the feed is told later, perhaps, and one of which it is told at once.
                let deliveries: Vec<_> = std::iter::zip(&events, &subscriptions)
                    .flat_map(|(event, of)| {
                        [true, false].map(|is_leased| maker.delivery(event, of.id, is_leased))
                    })
                    .collect();
                accept(&store, &events.iter().collect::<Vec<_>>(), &deliveries, node, now).await;
                let leased = deliveries.iter().filter(|it| it.state == State::Delivering);
                let ended: Vec<_> = leased.map(|it| succeeded(it, now)).collect();
                let recorded = store.record(&ended, now).await.expect("recorded");
                assert!(recorded.fenced.is_empty());
            }
        }));
    }
    for writer in writers {
        writer.await.expect("never in a circle");
    }
    let rounds = i64::try_from(WRITERS).expect("small") * i64::try_from(ROUNDS).expect("small");
    for subscription in subscriptions {
        let head = store.feed_head(subscription.tenant_id).await.expect("read").expect("a head");
        assert_eq!(head.position, 2 * rounds);
    }
}

on_both! {
    /// Whoever follows a feed gets what this process commits on the hot path as it stands in the feed, and sees
    /// by a gap in the positions that there is something to be read.
    async fn what_is_handed_over_is_what_stands_in_the_feed(database: Database) {
        let (store, maker) = (database.open().await, Maker::new(25));
        let now = store.now().await.expect("now");
        let (mut leased, mut watched) = (Vec::new(), Vec::new());
        let mut subscriptions = Vec::new();
        for _ in 0..3 {
            let tenant = maker.tenant(&store, now).await;
            let subscription = maker.subscription(&store, tenant.id, now).await;
            watched.push((tenant.id, store.follow(tenant.id)));
            leased.extend(maker.deliveries(&store, &subscription, 40, maker.node(now), true, now).await);
            subscriptions.push(subscription);
        }
        let ended: Vec<_> = leased.iter().map(|delivery| succeeded(delivery, now)).collect();
        assert!(store.record(&ended, now).await.expect("recorded").fenced.is_empty());
        let mut reached = Vec::new();
        for (tenant_id, follower) in &watched {
            let rows = store.read_feed(*tenant_id, 0, 1_000).await.expect("read");
            assert_eq!(rows.iter().map(|row| row.changes.len()).sum::<usize>(), 80);
            assert_eq!(follower.take(0), rows);
            reached.push(rows.last().map_or(0, |row| row.position));
        }

        let ((tenant_id, follower), subscription) = (&watched[2], &subscriptions[2]);
        let (first, reached) = (reached[0], reached[2]);
        let waiting = maker.deliveries(&store, subscription, 1, maker.node(now), false, now).await;
        store.cancel(*tenant_id, waiting[0].id, now).await.expect("canceled");
        maker.deliveries(&store, subscription, 1, maker.node(now), false, now).await;
        let rows = store.read_feed(*tenant_id, reached, 10).await.expect("read");
        assert_eq!(rows.len(), 3);
        assert_eq!(follower.take(reached), rows[..1]);
        assert_eq!(follower.take(reached + 1), [], "what is canceled is not handed over");
        assert_eq!(follower.take(reached + 2), rows[2..]);

        // The others' end does not end the one that stays.
        let stays = watched.swap_remove(0);
        drop(watched);
        for subscription in &subscriptions {
            maker.deliveries(&store, subscription, 1, maker.node(now), false, now).await;
        }
        let (tenant_id, follower) = stays;
        let rows = store.read_feed(tenant_id, first, 10).await.expect("read");
        assert_eq!(follower.take(first), rows);
        assert_eq!(rows.len(), 1);
    }
}
