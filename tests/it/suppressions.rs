//! Addresses that get nothing more: kept by RPC and by command, found in every spelling, told to the
//! tenant when they come from outside.

use std::time::Duration;

use tidings::api::proto::{self, SuppressionReason};
use tidings::domain::Timestamp;
use tidings::domain::id::TenantId;
use tidings::domain::suppression::{Reason, Suppression};
use tidings::store::{Retention, Suppressing};
use tonic::Code;

use crate::support::app::explain;
use crate::support::mailing::Mailing;
use crate::support::process::{Served, operator_key, tidings};
use crate::support::{App, Client, Database, Receiver};

fn wanted(mailing: &Mailing, address: &str, reason: Reason, now: Timestamp) -> Suppression {
    Suppression {
        tenant_id: mailing.tenant,
        address: address.into(),
        subscription_id: None,
        reason,
        detail: String::new(),
        delivery_id: None,
        create_time: now,
    }
}

fn create(tenant: &TenantId, address: &str, subscription: &str) -> proto::CreateSuppressionRequest {
    let suppression = proto::Suppression {
        tenant_id: tenant.to_string(),
        address: address.into(),
        subscription_id: subscription.into(),
        detail: " asked\r\non the phone ".into(),
        ..Default::default()
    };
    proto::CreateSuppressionRequest { suppression: Some(suppression) }
}

on_both! {
    async fn they_are_created_listed_and_deleted(database: Database) {
        let app = App::start(database).await;
        let mailing = Mailing::of(&app, &["a@company.com"]).await;
        let (tenant, mut rpc) = (mailing.tenant, app.operator.suppressions());
        let created = rpc.create_suppression(create(&tenant, "Jane <Jane@Bücher.DE>", "")).await.expect("created");
        let created = created.into_inner().suppression.expect("it");
        assert_eq!(created.address, "jane@xn--bcher-kva.de");
        assert_eq!((created.reason(), created.detail.as_str()), (SuppressionReason::Manual, "asked on the phone"));
        let again = rpc.create_suppression(create(&tenant, "JANE@xn--bcher-kva.de", "")).await.expect("again");
        assert_eq!(again.into_inner().suppression.as_ref(), Some(&created), "the first one stays");
        let of_one = create(&tenant, "jane@bücher.de", mailing.subscription.as_str());
        rpc.create_suppression(of_one).await.expect("created");
        for name in ["b", "c", "d"] {
            rpc.create_suppression(create(&tenant, &format!("{name}@company.com"), "")).await.expect("created");
        }
        let expected = ["b@company.com|all|MANUAL", "c@company.com|all|MANUAL", "d@company.com|all|MANUAL",
            "jane@xn--bcher-kva.de|all|MANUAL", "jane@xn--bcher-kva.de|one|MANUAL"];
        assert_eq!(mailing.suppressed(&app.operator).await, expected);

        // Page by page, and by address.
        let (mut token, mut seen) = (String::new(), Vec::new());
        loop {
            let request = proto::ListSuppressionsRequest {
                tenant_id: tenant.to_string(), page_size: 2, page_token: token, ..Default::default()
            };
            let page = rpc.list_suppressions(request).await.expect("listed").into_inner();
            assert!(page.suppressions.len() <= 2);
            seen.extend(page.suppressions.into_iter().map(|it| it.address));
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        assert_eq!(seen.len(), 5);
        let of_jane = |page_token: &str| proto::ListSuppressionsRequest {
            tenant_id: tenant.to_string(), address: "JANE@bücher.de".into(), page_size: 1,
            page_token: page_token.into(),
        };
        let page = rpc.list_suppressions(of_jane("")).await.expect("listed").into_inner();
        let page = rpc.list_suppressions(of_jane(&page.next_page_token)).await.expect("listed").into_inner();
        assert_eq!(page.suppressions[0].subscription_id, mailing.subscription.to_string());
        assert!(page.next_page_token.is_empty());

        let delete = |address: &str| proto::DeleteSuppressionRequest {
            tenant_id: tenant.to_string(), address: address.into(), subscription_id: String::new(),
        };
        rpc.delete_suppression(delete("Jane@bücher.de")).await.expect("deleted");
        let gone = rpc.delete_suppression(delete("jane@bücher.de")).await.expect_err("gone");
        assert_eq!(explain(&gone), (Code::NotFound, "SUPPRESSION_NOT_FOUND".into(), vec![]));
        assert_eq!(mailing.suppressed(&app.operator).await[3], "jane@xn--bcher-kva.de|one|MANUAL");
        app.stop().await;
    }
}

on_both! {
    async fn what_is_wrong_is_said(database: Database) {
        let app = App::start(database).await;
        let mailing = Mailing::of(&app, &["a@company.com"]).await;
        let mut rpc = app.operator.suppressions();
        for (address, subscription, code, reason, fields) in [
            ("ops@localhost", "", Code::InvalidArgument, "INVALID_FIELDS", vec!["suppression.address".to_owned()]),
            ("", "", Code::InvalidArgument, "INVALID_FIELDS", vec!["suppression.address".to_owned()]),
            ("a@company.com", "sub_00000000000000000000000000", Code::NotFound, "SUBSCRIPTION_NOT_FOUND", vec![]),
            ("a@company.com", "nonsense", Code::NotFound, "SUBSCRIPTION_NOT_FOUND", vec![]),
        ] {
            let refused = rpc.create_suppression(create(&mailing.tenant, address, subscription)).await.expect_err(address);
            assert_eq!(explain(&refused), (code, reason.into(), fields), "{address}");
        }
        let report = proto::ReportFeedbackRequest { tenant_id: mailing.tenant.to_string(), report: None };
        let refused = rpc.report_feedback(report).await.expect_err("empty");
        assert_eq!(explain(&refused).2, ["feedback"]);
        app.stop().await;
    }
}

on_both! {
    async fn they_are_found_for_many_recipients_at_once_and_in_every_spelling(database: Database) {
        let app = App::start(database).await;
        let mailing = Mailing::of(&app, &["a@company.com"]).await;
        let other = Mailing::of(&app, &["a@company.com"]).await;
        let now = mailing.store.now().await.expect("now");
        let of_all = wanted(&mailing, "All@company.com", Reason::Bounced, now);
        let of_one = Suppression {
            subscription_id: Some(mailing.subscription),
            ..wanted(&mailing, "one@company.com", Reason::Unsubscribed, now)
        };
        let both = Suppression { address: "all@company.com".into(), ..of_one.clone() };
        for suppression in [&of_one, &both, &of_all] {
            mailing.store.suppress(suppression).await.expect("stored");
        }
        let (own, none) = (Some(mailing.subscription), None);
        let mut asked = vec![
            (mailing.tenant, "ALL@company.com", own),
            (mailing.tenant, "all@company.com", none),
            (mailing.tenant, "One@Company.com", own),
            (mailing.tenant, "one@company.com", none),
            (mailing.tenant, "one@company.com", Some(other.subscription)),
            (other.tenant, "all@company.com", own),
            (mailing.tenant, "free@company.com", own),
        ];
        let expected = [Some(Reason::Bounced), Some(Reason::Bounced), Some(Reason::Unsubscribed), None, None, None, None];
        // More than one of SQLite's statements.
        for _ in 0..3 {
            asked.extend(asked.clone());
        }
        let found = mailing.store.suppressed(&asked).await.expect("found");
        let reasons: Vec<_> = found.iter().map(|it| it.as_ref().map(|it| it.reason)).collect();
        assert_eq!(reasons, expected.repeat(8));
        assert!(mailing.store.suppressed(&[]).await.expect("found").is_empty());
        app.stop().await;
    }
}

on_both! {
    async fn a_graver_reason_takes_the_place_of_an_unsubscription_and_of_no_other(database: Database) {
        let app = App::start(database).await;
        let mailing = Mailing::of(&app, &["a@company.com"]).await;
        let now = mailing.store.now().await.expect("now");
        let mut last = None;
        for (reason, stays) in [
            (Reason::Unsubscribed, Reason::Unsubscribed),
            (Reason::Unsubscribed, Reason::Unsubscribed),
            (Reason::Bounced, Reason::Bounced),
            (Reason::Unsubscribed, Reason::Bounced),
            (Reason::Complained, Reason::Bounced),
            (Reason::Manual, Reason::Bounced),
        ] {
            let suppressing = mailing.store.suppress(&wanted(&mailing, "a@company.com", reason, now)).await.expect("stored");
            let is_new = last != Some(stays);
            let (Suppressing::Done(known) | Suppressing::Known(known)) = suppressing.clone() else { panic!("no tenant") };
            assert_eq!((known.reason, matches!(suppressing, Suppressing::Done(_))), (stays, is_new), "{reason:?}");
            last = Some(stays);
        }
        // The owner takes back nothing but an own word.
        let own = Some(Reason::Unsubscribed);
        assert!(!mailing.store.unsuppress(mailing.tenant, "a@company.com", None, own).await.expect("asked"));
        assert!(mailing.store.unsuppress(mailing.tenant, "A@company.com", None, None).await.expect("asked"));
        app.stop().await;
    }
}

on_both! {
    async fn the_tenant_is_told_once_of_what_comes_from_outside(database: Database) {
        let app = App::start(database).await;
        let mailing = Mailing::of(&app, &["jane@company.com", "joe@company.com"]).await;
        let receiver = Receiver::answering(200).await;
        app.operator.subscribe(mailing.tenant.as_str(), &["tidings.recipient.suppressed"], &receiver.url()).await;
        let deliveries = mailing.deliveries(&app.operator).await;
        let report = |delivery: &proto::Delivery, kind: proto::FeedbackKind| proto::ReportFeedbackRequest {
            tenant_id: String::new(),
            report: Some(proto::report_feedback_request::Report::Feedback(proto::Feedback {
                kind: kind.into(), delivery_id: delivery.id.clone(), detail: "no such user".into(), ..Default::default()
            })),
        };
        let mut rpc = app.operator.suppressions();
        // What somebody does by hand is known to the tenant.
        rpc.create_suppression(create(&mailing.tenant, "by-hand@company.com", "")).await.expect("created");
        for outcome in [proto::FeedbackOutcome::Suppressed, proto::FeedbackOutcome::AlreadySuppressed] {
            let told = rpc.report_feedback(report(&deliveries[0], proto::FeedbackKind::Bounce)).await.expect("taken").into_inner();
            assert_eq!(told.outcome(), outcome);
            assert_eq!(told.suppression.expect("it").address, "jane@company.com");
        }
        rpc.report_feedback(report(&deliveries[1], proto::FeedbackKind::Complaint)).await.expect("taken");
        let told = receiver.wait_for(2).await;
        let told: Vec<_> = told.iter().map(crate::support::receiver::Captured::json).collect();
        let of = |address: &str| {
            let found: Vec<_> = told.iter().filter(|event| event["data"]["address"] == address).collect();
            assert_eq!(found.len(), 1, "{told:?}");
            found[0]["data"].clone()
        };
        let jane = of("jane@company.com");
        assert_eq!((&jane["reason"], &jane["detail"]), (&"BOUNCED".into(), &"no such user".into()));
        assert_eq!((jane["delivery_id"].as_str(), &jane["subscription_id"]), (Some(deliveries[0].id.as_str()), &serde_json::Value::Null));
        assert_eq!(of("joe@company.com")["reason"], "COMPLAINED");
        assert_eq!(receiver.requests().len(), 2, "nothing of what was done by hand, or told before");
        app.stop().await;
    }
}

on_both! {
    async fn they_go_with_their_tenant(database: Database) {
        let store = database.open().await;
        let maker = crate::support::make::Maker::new(7);
        let now = store.now().await.expect("now");
        let (gone, stays) = (maker.tenant(&store, now).await, maker.tenant(&store, now).await);
        let of = |tenant: TenantId| Suppression {
            tenant_id: tenant, address: "a@company.com".into(), subscription_id: None,
            reason: Reason::Manual, detail: String::new(), delivery_id: None, create_time: now,
        };
        for tenant in [&gone, &stays] {
            store.suppress(&of(tenant.id)).await.expect("stored");
        }
        store.delete_tenant(gone.id, None, now).await.expect("deleted");
        assert_eq!(store.suppress(&of(gone.id)).await.expect("asked"), Suppressing::Known(of(gone.id)));
        let other = Suppression { address: "b@company.com".into(), ..of(gone.id) };
        assert_eq!(store.suppress(&other).await.expect("asked"), Suppressing::NoTenant);
        let hour = Duration::from_hours(1);
        let retention = Retention { events: hour, feed: hour, idempotency_keys: hour };
        for _ in 0..5 {
            store.purge(retention, now, Duration::ZERO).await.expect("purged");
        }
        let left = |tenant| store.list_suppressions(tenant, "", None, 10);
        assert!(left(gone.id).await.expect("listed").items.is_empty());
        assert_eq!(left(stays.id).await.expect("listed").items.len(), 1);
        store.close().await;
    }
}

on_both! {
    async fn tenants_keep_how_they_read(database: Database) {
        let app = App::start(database).await;
        let tenant = proto::Tenant {
            display_name: "Acme".into(),
            primary_contact: "Ops <Ops@Company.COM>".into(),
            locale: "de-at".into(),
            time_zone: "europe/vienna".into(),
            primary_contact_exclusions: vec!["audit.*".into(), "audit.*".into(), "run_failed".into()],
            ..Default::default()
        };
        let request = proto::CreateTenantRequest { tenant: Some(tenant.clone()) };
        let created = app.operator.tenants().create_tenant(request).await.expect("created").into_inner().tenant.expect("it");
        let read = app.operator.tenants().get_tenant(proto::GetTenantRequest { tenant_id: created.id.clone() }).await;
        let read = read.expect("read").into_inner().tenant.expect("it");
        assert_eq!(read, created);
        assert_eq!((read.primary_contact.as_str(), read.locale.as_str(), read.time_zone.as_str()), ("Ops@company.com", "de-AT", "Europe/Vienna"));
        assert_eq!(read.primary_contact_exclusions, ["audit.*", "run_failed"]);
        let wrong = proto::Tenant {
            id: created.id.clone(), primary_contact: "a@company.com, b@company.com".into(), locale: "english_US".into(),
            time_zone: "Mars/Olympus".into(), primary_contact_exclusions: vec!["*".into(), "a..b".into()], ..Default::default()
        };
        let request = proto::UpdateTenantRequest { tenant: Some(wrong), update_mask: None };
        let refused = app.operator.tenants().update_tenant(request).await.expect_err("refused");
        let mut fields = explain(&refused).2;
        fields.sort_unstable();
        assert_eq!(fields, ["tenant.locale", "tenant.primary_contact", "tenant.primary_contact_exclusions[1]", "tenant.time_zone"]);
        let mask = prost_types::FieldMask { paths: vec!["time_zone".into(), "primary_contact_exclusions".into()] };
        let cleared = proto::Tenant { id: created.id.clone(), ..Default::default() };
        let request = proto::UpdateTenantRequest { tenant: Some(cleared), update_mask: Some(mask) };
        let updated = app.operator.tenants().update_tenant(request).await.expect("updated").into_inner().tenant.expect("it");
        assert_eq!((updated.time_zone.as_str(), updated.locale.as_str()), ("", "de-AT"));
        assert!(updated.primary_contact_exclusions.is_empty());
        app.stop().await;
    }
}

on_both! {
    async fn commands_look_after_them(database: Database) {
        let key = operator_key(&database).await;
        let served = Served::start(&database, &[]).await;
        let client = Client::connect(&served.endpoint, &key).await;
        let mailing = Mailing::on(&database, &client, &["jane@company.com"]).await;
        let delivery = mailing.deliveries(&client).await.remove(0);
        let run = async |arguments: &[&str], input: Option<&str>| {
            let arguments = [&["suppressions"], arguments, &["--tenant", mailing.tenant.as_str()]].concat();
            let mut command = tidings(&arguments);
            command.env("TIDINGS_ENDPOINT", &served.endpoint).env("TIDINGS_API_KEY", &key);
            let file = database.folder.path().join("input.eml");
            std::fs::write(&file, input.unwrap_or_default()).expect("written");
            command.stdin(std::fs::File::open(&file).expect("there"));
            let output = command.output().await.expect("ran");
            let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
            (output.status.success(), text(output.stdout), text(output.stderr))
        };
        let (is_done, shown, _) = run(&["add", "Joe@company.com", "--detail", "left"], None).await;
        assert!(is_done && shown.contains("joe@company.com") && shown.contains("MANUAL"), "{shown}");
        let bounce = crate::bounces::bounce(&delivery.id, "jane@company.com", "failed", "5.1.1");
        let (is_done, shown, error) = run(&["report"], Some(&bounce)).await;
        assert!(is_done && shown.starts_with("suppressed\n"), "{shown}{error}");
        let (_, shown, _) = run(&["report"], Some("Subject: hello\r\n\r\nworld")).await;
        assert!(shown.starts_with("not a report"), "{shown}");
        let (_, listed, _) = run(&["list", "--json"], None).await;
        let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
        assert_eq!(listed["suppressions"][0]["reason"], "SUPPRESSION_REASON_BOUNCED");
        assert_eq!(listed["suppressions"][0]["delivery_id"], delivery.id);
        assert_eq!(listed["suppressions"][1]["detail"], "left");
        let (is_done, _, _) = run(&["remove", "JOE@company.com"], None).await;
        assert!(is_done);
        let (is_done, _, error) = run(&["remove", "joe@company.com"], None).await;
        assert!(!is_done && error.contains("SUPPRESSION_NOT_FOUND"), "{error}");
        let (_, shown, _) = run(&["list"], None).await;
        assert!(shown.contains("jane@company.com") && !shown.contains("joe@"), "{shown}");
        served.kill().await;
    }
}
