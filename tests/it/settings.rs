//! What a replica knows of tenants' settings: its own changes at once, others' soon, without a query for
//! each attempt.

use tidings::store::CatalogCache;

use crate::support::Database;
use crate::support::make::Maker;

on_both! {
    async fn settings_are_looked_at_for_those_who_will_need_them_soon(database: Database) {
        let (store, replica) = (database.open().await, database.open().await);
        let (cache, maker) = (CatalogCache::default(), Maker::new(41));
        let now = store.now().await.expect("now");
        let one = maker.tenant(&store, now).await.id;
        let waiting = maker.tenant(&store, now).await.id;
        let unheard_of = maker.tenant(&store, now).await.id;
        assert!(cache.recent(&store, one).is_none(), "nobody has asked yet");
        cache.current(&store, &[one, waiting]).await.expect("read");

        let subscription = maker.subscription(&replica, waiting, now).await;
        let cached = || cache.cached(waiting).expect("read before");
        assert!(cached().subscription(subscription.id).is_none(), "another replica's change");
        maker.tenant(&store, now).await;
        for id in [one, waiting] {
            assert!(cache.recent(&store, id).is_none(), "whatever this process changes counts at once");
        }
        let along = || vec![one, waiting, unheard_of];
        assert!(cache.renewed(&store, one, along).await.expect("read").is_some());
        assert!(cached().subscription(subscription.id).is_some(), "it was asked for, too");
        assert!(cache.cached(unheard_of).is_none(), "who was never asked for is not read for this");

        let spoilt = format!("UPDATE subscriptions SET channel = '{{}}' WHERE id = '{}'", subscription.id);
        database.execute(&spoilt).await;
        database.execute("UPDATE tenant_config SET version = version + 1").await;
        maker.tenant(&store, now).await;
        cache.current(&store, &[waiting]).await.expect_err("nobody can read it");
        assert!(cache.renewed(&store, one, along).await.expect("its own are sound").is_some());

        store.delete_tenant(one, None, now).await.expect("deleted");
        let found = cache.renewed(&store, one, Vec::new).await.expect("read");
        assert!(found.is_none(), "it is gone, whatever is cached");
    }
}
