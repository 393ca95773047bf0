//! One loud tenant does not keep another one waiting.

use std::time::Duration;

use tidings::api::proto::{self, DeliveryState};

use crate::support::app::options;
use crate::support::{App, Database, Receiver, Reply};

on_both! {
    /// Every endpoint of one tenant hangs, and it has far more deliveries than there are places. The
    /// other's only delivery arrives while not one of them has ended.
    async fn a_tenant_whose_endpoints_all_hang_does_not_starve_another(database: Database) {
        const SUBSCRIPTIONS: usize = 40;
        let mut config = options(&database).config();
        config.dispatch.max_in_flight = 16;
        config.dispatch.queue_size = 32;
        let app = App::start_configured(database, config).await;
        // Longer than the test, shorter than an attempt may take.
        let hanging = Receiver::scripted(|_, _| Reply::status(200).after(Duration::from_hours(1))).await;
        let loud = app.operator.create_tenant("Loud").await;
        let timeout = Some(prost_types::Duration { seconds: 30, nanos: 0 });
        for number in 0..SUBSCRIPTIONS {
            let webhook = proto::WebhookChannel { url: hanging.url(), timeout, ..Default::default() };
            let event_type = if number == 0 { "*" } else { "user.created" };
            app.operator.subscribe_with(&loud.id, &[event_type], webhook, None).await;
        }
        // One subscription with a backlog of its own, and all of them with more than they may have
        // under way.
        let backlog = (0..500).map(|_| crate::support::app::emit_request(&loud.id, "backlog", "{}"));
        let batch = proto::EmitBatchRequest { requests: backlog.collect(), ..Default::default() };
        app.operator.events().emit_batch(batch).await.expect("accepted");
        for _ in 0..20 {
            app.operator.emit(&loud.id, "user.created", "{}").await;
        }
        // Three quarters of the places are the loud tenant's; it gets no more.
        hanging.wait_for(12).await;

        let quiet = app.operator.create_tenant("Quiet").await;
        let good = Receiver::answering(200).await;
        let (subscription, _) = app.operator.subscribe(&quiet.id, &["*"], &good.url()).await;
        for _ in 0..3 {
            let emitted = app.operator.emit(&quiet.id, "user.created", "{}").await;
            app.operator.wait_for_state(&quiet.id, &emitted.event_id, DeliveryState::Succeeded).await;
        }
        assert_eq!(app.operator.deliveries_to(&subscription).await.len(), 3);
        assert_eq!(hanging.requests().len(), 12, "none of the loud tenant's attempts has ended");
        assert_eq!(app.metric("tidings_attempts_in_flight").await, 12);
        drop(hanging);
        app.stop().await;
    }
}
