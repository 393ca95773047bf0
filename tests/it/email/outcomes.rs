//! What becomes of a delivery, whatever the mail server says or does.

use tidings::api::proto::{DeliveryState, ErrorKind, FailureReason};

use super::{by_mail, by_way_of, channel, create, only, settled, start, subscribed};
use crate::support::Database;
use crate::support::smtp::{Act, CONTENT, GREETING, SmtpServer};

use Act::{Drop, Flood, Hang, Say};

const DATA: &str = r#"{"amount":"12.30","message":"Grüße\r\n.\r\nan alle"}"#;

on_both! {
    async fn what_may_pass_is_tried_again_with_the_same_bytes(database: Database) {
        let mut database = database;
        for (act, kind, reply, given_before) in [
            (Say("RCPT", "421 4.3.2 shutting down"), ErrorKind::Smtp, "421 4.3.2 shutting down", 0),
            (Say("RCPT", "450 4.2.1 greylisted"), ErrorKind::Smtp, "450 4.2.1 greylisted", 0),
            (Say(CONTENT, "451 4.3.0 later"), ErrorKind::Smtp, "451 4.3.0 later", 1),
            (Say(GREETING, "421 4.3.2 busy"), ErrorKind::Smtp, "421 4.3.2 busy", 0),
            (Drop(GREETING), ErrorKind::Protocol, "", 0),
            (Drop("DATA"), ErrorKind::Protocol, "", 0),
            (Flood("RCPT"), ErrorKind::Protocol, "", 0),
            (Drop(CONTENT), ErrorKind::Protocol, "", 1),
        ] {
            let server = SmtpServer::acting(&[act]).await;
            let app = start(database, by_way_of(&[server.url()])).await;
            let (tenant, _) = subscribed(&app, channel(&["ada@company.com"])).await;
            let event = app.operator.emit(&tenant.id, "billing.paid", DATA).await;
            let (delivery, attempts) = only(&app, &tenant.id, &event.event_id).await;
            assert_eq!(delivery.state(), DeliveryState::Succeeded, "{act:?}");
            assert_eq!(attempts.len(), 2, "{act:?}: {attempts:?}");
            let (first, last) = (&attempts[0], &attempts[1]);
            assert_eq!((first.error_kind(), first.smtp_reply.as_str()), (kind, reply), "{act:?}");
            assert_eq!((last.error_kind(), last.smtp_reply.as_str()), (ErrorKind::Unspecified, "250 2.0.0 Ok: queued as 7"), "{act:?}");
            let given = server.given();
            assert_eq!(given.len(), given_before + 1, "{act:?}");
            // Byte for byte, although time has gone by.
            assert!(given.iter().all(|message| *message == given[0]), "{act:?}: {given:?}");
            assert!(given[0].content.contains(&format!("Message-ID: <{}@tidings.company.com>", delivery.id)));
            database = app.stop().await;
        }
    }
}

on_both! {
    async fn what_will_never_work_ends_at_once(database: Database) {
        let server = SmtpServer::acting(&[
            Say("RCPT TO:<nobody@", "550 5.1.1 no such user"),
            Say("RCPT TO:<full@", "552 5.2.2 mailbox full"),
            Say("RCPT TO:<policy@", "554 5.7.1 not from you"),
        ]).await;
        let app = start(database, by_way_of(&[server.url()])).await;
        let addresses = ["nobody@company.com", "full@company.com", "policy@company.com", "ada@company.com"];
        let (tenant, subscription) = subscribed(&app, channel(&addresses)).await;
        let event = app.operator.emit(&tenant.id, "billing.paid", DATA).await;
        assert_eq!(event.delivery_count, 4);

        // One delivery each, in the recipients' alphabet, and each with its own state.
        let deliveries = settled(&app, &tenant.id, &event.event_id).await;
        let states: Vec<_> = deliveries.iter().map(|it| (it.recipient.as_str(), it.state(), it.failure_reason())).collect();
        let failed = |address| (address, DeliveryState::Failed, FailureReason::Permanent);
        let done = ("ada@company.com", DeliveryState::Succeeded, FailureReason::Unspecified);
        assert_eq!(states, [done, failed("full@company.com"), failed("nobody@company.com"), failed("policy@company.com")]);
        for (delivery, reply) in deliveries.iter().zip(["250 2.0.0 Ok: queued as 7", "552 5.2.2 mailbox full", "550 5.1.1 no such user", "554 5.7.1 not from you"]) {
            assert_eq!((delivery.attempt_count, delivery.subscription_id.as_str()), (1, subscription.id.as_str()));
            let attempts = app.operator.attempts(&tenant.id, &delivery.id).await;
            assert_eq!(attempts.len(), 1);
            assert_eq!(attempts[0].smtp_reply, reply);
            let kind = if delivery.state() == DeliveryState::Failed { ErrorKind::Smtp } else { ErrorKind::Unspecified };
            assert_eq!(attempts[0].error_kind(), kind);
        }
        let mails = |event_type: &str| {
            let line = format!("Tidings-Event-Type: {event_type}\r\n");
            let given = server.given().into_iter().filter(|it| it.content.contains(&line));
            given.map(|it| it.recipient).collect::<Vec<_>>()
        };
        assert_eq!(mails("billing.paid"), ["ada@company.com"]);

        // The address that does not exist gets nothing more; the others may work another day.
        let event = app.operator.emit(&tenant.id, "billing.paid", DATA).await;
        let deliveries = settled(&app, &tenant.id, &event.event_id).await;
        for delivery in &deliveries {
            let is_gone = delivery.recipient == "nobody@company.com";
            let state = if is_gone { DeliveryState::Suppressed } else { DeliveryState::Succeeded };
            assert_eq!((delivery.state(), delivery.attempt_count), (state, i32::from(!is_gone)), "{delivery:?}");
        }
        assert_eq!(mails("billing.paid").len(), 4);
        assert_eq!(server.commands("RCPT TO:<nobody@").len(), 1);
        app.stop().await;
    }
}

on_both! {
    async fn a_message_that_is_refused_is_not_sent_again(database: Database) {
        let acts = [Say(CONTENT, "552 5.3.4 too large"), Say(CONTENT, "554 5.7.1 looks like spam"), Say("DATA", "554 5.5.1 no valid recipients")];
        let server = SmtpServer::acting(&acts).await;
        let app = start(database, by_way_of(&[server.url()])).await;
        let (tenant, _) = subscribed(&app, channel(&["ada@company.com"])).await;
        for reply in ["554 5.5.1 no valid recipients", "552 5.3.4 too large", "554 5.7.1 looks like spam"] {
            let event = app.operator.emit(&tenant.id, "billing.paid", DATA).await;
            let (delivery, attempts) = only(&app, &tenant.id, &event.event_id).await;
            assert_eq!((delivery.state(), delivery.failure_reason()), (DeliveryState::Failed, FailureReason::Permanent));
            assert_eq!((attempts.len(), attempts[0].smtp_reply.as_str()), (1, reply));
        }
        // The address is not to blame: the next message goes there.
        let event = app.operator.emit(&tenant.id, "billing.paid", DATA).await;
        let (delivery, _) = only(&app, &tenant.id, &event.event_id).await;
        assert_eq!(delivery.state(), DeliveryState::Succeeded);
        app.stop().await;
    }
}

on_both! {
    async fn a_refused_sender_blames_no_recipient(database: Database) {
        let acts = [Say("MAIL", "550 5.7.1 you may not send"), Say("MAIL", "550 5.1.1 no such sender")];
        let server = SmtpServer::acting(&acts).await;
        let app = start(database, by_way_of(&[server.url()])).await;
        let (tenant, _) = subscribed(&app, channel(&["ada@company.com"])).await;
        let event = app.operator.emit(&tenant.id, "billing.paid", DATA).await;
        let (delivery, attempts) = only(&app, &tenant.id, &event.event_id).await;
        // An operator mends it, and the mail arrives.
        assert_eq!(delivery.state(), DeliveryState::Succeeded);
        let told: Vec<_> = attempts.iter().map(|it| (it.error_kind(), it.smtp_reply.as_str())).collect();
        assert_eq!(told, [
            (ErrorKind::Configuration, "550 5.7.1 you may not send"),
            (ErrorKind::Configuration, "550 5.1.1 no such sender"),
            (ErrorKind::Unspecified, "250 2.0.0 Ok: queued as 7"),
        ]);
        assert!(attempts[0].error_message.contains("operator"), "{}", attempts[0].error_message);
        assert_eq!(server.commands("RCPT").len(), 1);
        app.stop().await;
    }
}

on_both! {
    async fn a_server_that_says_nothing_more_is_given_up(database: Database) {
        let server = SmtpServer::acting(&[Hang("EHLO"), Hang(CONTENT)]).await;
        let app = start(database, by_way_of(&[server.url()])).await;
        let (tenant, _) = subscribed(&app, channel(&["ada@company.com"])).await;
        let event = app.operator.emit(&tenant.id, "billing.paid", DATA).await;
        let (delivery, attempts) = only(&app, &tenant.id, &event.event_id).await;
        assert_eq!(delivery.state(), DeliveryState::Succeeded);
        let kinds: Vec<_> = attempts.iter().map(tidings::api::proto::Attempt::error_kind).collect();
        assert_eq!(kinds, [ErrorKind::Timeout, ErrorKind::Timeout, ErrorKind::Unspecified]);
        // It had the whole message before it fell silent, and gets the same one.
        let given = server.given();
        assert_eq!(given.len(), 2);
        assert_eq!(given[0], given[1]);
        app.stop().await;
    }
}

on_both! {
    async fn the_next_relay_takes_over_but_never_what_may_have_been_taken(database: Database) {
        let mut database = database;
        for (act, attempts_made, by_first, by_second) in [
            (Drop(GREETING), 1, 0, 1),
            (Say("EHLO", "554 5.3.2 go away"), 1, 0, 1),
            (Say("MAIL", "550 5.7.1 no"), 1, 0, 1),
            (Say("RCPT", "421 4.3.2 closing"), 1, 0, 1),
            // The recipient's business, whichever relay is asked.
            (Say("RCPT", "450 4.2.1 later"), 2, 1, 0),
            // The first one may have taken it: only it can know.
            (Drop(CONTENT), 2, 2, 0),
            (Say(CONTENT, "421 4.3.2 closing"), 2, 2, 0),
        ] {
            let (first, second) = (SmtpServer::acting(&[act]).await, SmtpServer::acting(&[]).await);
            let app = start(database, by_way_of(&[first.url(), second.url()])).await;
            let (tenant, _) = subscribed(&app, channel(&["ada@company.com"])).await;
            let event = app.operator.emit(&tenant.id, "billing.paid", DATA).await;
            let (delivery, attempts) = only(&app, &tenant.id, &event.event_id).await;
            assert_eq!(delivery.state(), DeliveryState::Succeeded, "{act:?}");
            assert_eq!(attempts.len(), attempts_made, "{act:?}");
            let given = (first.given().len(), second.given().len());
            assert_eq!(given, (by_first, by_second), "{act:?}");
            assert_eq!(first.left(), 0, "{act:?}");
            database = app.stop().await;
        }
    }
}

on_both! {
    async fn mails_go_to_files_where_no_relay_is(database: Database) {
        let folder = tempfile::tempdir().expect("a folder");
        let url = format!("file://{}/mail", folder.path().display());
        let app = start(database, by_way_of(&[&url])).await;
        let (tenant, _) = subscribed(&app, channel(&["ada@company.com", "bob@company.com"])).await;
        let event = app.operator.emit(&tenant.id, "billing.paid", DATA).await;
        let deliveries = settled(&app, &tenant.id, &event.event_id).await;
        assert_eq!(deliveries.len(), 2);
        for delivery in &deliveries {
            assert_eq!(delivery.state(), DeliveryState::Succeeded);
            let path = folder.path().join("mail").join(format!("{}.eml", delivery.id));
            let message = std::fs::read_to_string(path).expect("a file");
            assert!(message.contains(&format!("To: {}\r\n", delivery.recipient)), "{message}");
        }
        let files = std::fs::read_dir(folder.path().join("mail")).expect("a folder");
        assert_eq!(files.count(), 2, "and nothing else");
        app.stop().await;
    }
}

on_both! {
    async fn without_a_relay_mail_waits_and_the_attempt_says_what_to_set(database: Database) {
        let app = start(database, tidings::channel::email::Config::default()).await;
        let tenant = app.operator.create_tenant("Acme").await;
        // Whoever subscribes hears of it before there is anything to deliver.
        let created = create(&app.operator, by_mail(&tenant.id, channel(&["ada@company.com"]))).await.expect("created");
        let [warning] = created.warnings.as_slice() else { panic!("one warning: {created:?}") };
        assert!(warning.contains("smtp-url and mail-from"), "{warning}");
        let event = app.operator.emit(&tenant.id, "billing.paid", DATA).await;
        let (delivery, attempts) = only(&app, &tenant.id, &event.event_id).await;
        // Its policy has five retries: nobody has set anything meanwhile.
        assert_eq!((delivery.state(), delivery.failure_reason()), (DeliveryState::Failed, FailureReason::Exhausted));
        assert_eq!(attempts.len(), 6);
        for attempt in attempts {
            assert_eq!(attempt.error_kind(), ErrorKind::Configuration);
            assert!(attempt.error_message.contains("smtp-url and mail-from"), "{}", attempt.error_message);
        }
        app.stop().await;
    }
}
