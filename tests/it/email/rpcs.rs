//! Subscriptions by mail: what is taken, what is refused and why, previews and tests.

use tidings::api::proto::{self, AttemptTrigger, DeliveryState, ErrorKind};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::{by_mail, by_way_of, channel, create, only, start, subscribed};
use crate::support::app::explain;
use crate::support::smtp::{Act, SmtpServer};
use crate::support::{App, Database};

fn email(subscription: &proto::Subscription) -> &proto::EmailChannel {
    match &subscription.channel {
        Some(proto::subscription::Channel::Email(email)) => email,
        other => panic!("not by mail: {other:?}"),
    }
}

/// What was said about each field.
fn violations(refused: &Status) -> Vec<(String, String)> {
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    let details = refused.get_error_details();
    let named = details.bad_request().expect("fields").field_violations.iter();
    named.map(|it| (it.field.clone(), it.description.clone())).collect()
}

async fn update(
    app: &App,
    subscription: proto::Subscription,
    paths: &[&str],
) -> Result<proto::Subscription, Status> {
    let paths = paths.iter().map(ToString::to_string).collect();
    let request = proto::UpdateSubscriptionRequest {
        subscription: Some(subscription),
        update_mask: Some(prost_types::FieldMask { paths }),
    };
    let updated = app.operator.subscriptions().update_subscription(request).await?;
    Ok(updated.into_inner().subscription.expect("a subscription"))
}

on_both! {
    async fn addresses_are_taken_as_people_paste_them(database: Database) {
        let app = App::start(database).await;
        let pasted = [
            "Ada.Lovelace@Company.com, \"Doe, Joe\" <joe@company.com>; ann@company.com,",
            "  ada.lovelace@COMPANY.com ",
            "info@bücher.de,info@xn--bcher-kva.de",
        ];
        let expected = ["Ada.Lovelace@company.com", "joe@company.com", "ann@company.com", "info@xn--bcher-kva.de"];
        let tenant = app.operator.create_tenant("Acme").await;
        let created = create(&app.operator, by_mail(&tenant.id, channel(&pasted))).await.expect("created");
        // Mail is not signed by a secret that somebody must keep.
        assert_eq!(created.signing_secret, "");
        let subscription = created.subscription.expect("a subscription");
        let request = proto::RotateSecretRequest {
            tenant_id: tenant.id.clone(),
            subscription_id: subscription.id.clone(),
            ..Default::default()
        };
        let refused = app.operator.subscriptions().rotate_secret(request).await.expect_err("no secret");
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
        assert_eq!(email(&subscription).recipients, expected);
        assert_eq!(email(&app.operator.subscription(&subscription).await).recipients, expected);

        let changed = by_mail(&tenant.id, channel(&["eve@company.com,ann@company.com"]));
        let changed = proto::Subscription { id: subscription.id.clone(), ..changed };
        let updated = update(&app, changed, &["email.recipients"]).await.expect("updated");
        assert_eq!(email(&updated).recipients, ["eve@company.com", "ann@company.com"]);
        assert_eq!(email(&app.operator.subscription(&subscription).await), email(&updated));
        app.stop().await;
    }
}

on_both! {
    async fn every_wrong_field_of_a_subscription_by_mail_is_named(database: Database) {
        let app = App::start(database).await;
        let (tenant, subscription) = subscribed(&app, channel(&["ada@company.com"])).await;
        let wrong = proto::EmailChannel {
            recipients: vec!["ada@company.com".into(), "nobody".into(), "bob@company.com, x@localhost".into(), "a@company.com\r\nBcc: all@company.com".into(), "x@[127.0.0.1]".into()],
            template: "{% block subject %}\n{{ data.amount|frobnicate }}\n{% endblock %}".into(),
            reply_to: "me".into(),
            digest: Some(proto::EmailDigest { interval: Some(prost_types::Duration { seconds: 1, nanos: 0 }), max_per_hour: 0 }),
        };
        let fields = [
            "subscription.email.digest.interval",
            "subscription.email.recipients[1]",
            "subscription.email.recipients[2]",
            "subscription.email.recipients[3]",
            "subscription.email.recipients[4]",
            "subscription.email.reply_to",
            "subscription.email.template",
        ];
        let all = ["email.recipients", "email.template", "email.reply_to", "email.digest"];
        let changed = proto::Subscription { id: subscription.id.clone(), ..by_mail(&tenant.id, wrong.clone()) };
        for refused in [
            create(&app.operator, by_mail(&tenant.id, wrong)).await.expect_err("refused"),
            update(&app, changed, &all).await.expect_err("refused"),
        ] {
            let mut violations = violations(&refused);
            violations.sort_unstable();
            let named: Vec<_> = violations.iter().map(|(field, _)| field.as_str()).collect();
            assert_eq!(named, fields, "{violations:?}");
            assert_eq!(explain(&refused).1, "INVALID_FIELDS");
            let (_, says) = &violations[6];
            assert!(says.contains("line 2") && says.contains("no filter frobnicate"), "{says}");
            let (_, says) = &violations[2];
            assert!(says.contains("\"x@localhost\"") && says.contains("number 2"), "{says}");
        }
        // What there was has not changed, and a webhook it does not become.
        let kept = app.operator.subscription(&subscription).await;
        assert_eq!(email(&kept).recipients, ["ada@company.com"]);
        let webhook = proto::Subscription {
            channel: Some(proto::subscription::Channel::Webhook(proto::WebhookChannel { url: "https://hooks.company.com/".into(), ..Default::default() })),
            ..kept.clone()
        };
        let refused = update(&app, webhook, &["webhook.url"]).await.expect_err("refused");
        assert_eq!(violations(&refused)[0].0, "subscription.webhook");
        let many: Vec<_> = (0..101).map(|number| format!("a{number}@company.com")).collect();
        let refused = create(&app.operator, by_mail(&tenant.id, channel(&[many.join(",").as_str()]))).await.expect_err("refused");
        assert_eq!(violations(&refused)[0].0, "subscription.email.recipients");
        app.stop().await;
    }
}

on_both! {
    async fn templates_are_refused_with_the_line_that_is_wrong(database: Database) {
        let app = App::start(database).await;
        let tenant = app.operator.create_tenant("Acme").await;
        for (template, line, says) in [
            ("{% block subject %}\n\n{% if %}{% endblock %}".to_owned(), 3, "syntax error"),
            ("hello".to_owned(), 1, "subject, text and html"),
            ("{% block text %}{% endblock %}\n{% block text %}{% endblock %}".to_owned(), 2, "twice"),
            ("{% block html %}\n{% include 'x' %}{% endblock %}".to_owned(), 2, "unknown statement include"),
            ("{% block html %}{% set x = 1 %}{% endblock %}".to_owned(), 1, "no set"),
            ("{% block html %}{{ data.x * 1000000 }}{% endblock %}".to_owned(), 1, "operators"),
            ("{% block html %}{{ range(10) }}{% endblock %}".to_owned(), 1, "functions"),
            ("{% block html %}{{ data.x|safe }}{% endblock %}".to_owned(), 1, "no filter safe"),
            ("{% block text %}\n{{ data.x }} {{ dta.y }}{% endblock %}".to_owned(), 2, "there is no dta; there are data, "),
            ("{% block text %}{{ tenant.id }}{% endblock %}".to_owned(), 1, "there is no tenant.id; there are name, "),
            (format!("{{% block text %}}{}{{% endblock %}}", "x".repeat(32 * 1024)), 1, "32768 bytes"),
        ] {
            let shown: String = template.chars().take(80).collect();
            let own = proto::EmailChannel { template: template.clone(), ..channel(&["ada@company.com"]) };
            let refused = create(&app.operator, by_mail(&tenant.id, own)).await.expect_err("refused");
            let told = violations(&refused);
            assert_eq!((told.len(), told[0].0.as_str()), (1, "subscription.email.template"), "{shown}: {told:?}");
            assert!(told[0].1.contains(&format!("line {line}:")) && told[0].1.contains(says), "{shown}: {told:?}");
            // A preview says the same.
            let request = proto::PreviewEmailRequest { tenant_id: tenant.id.clone(), template, ..Default::default() };
            let refused = app.operator.subscriptions().preview_email(request).await.expect_err("refused");
            assert_eq!(violations(&refused)[0].0, "template", "{shown}");
        }
        app.stop().await;
    }
}

on_both! {
    async fn a_preview_shows_what_will_be_sent(database: Database) {
        let server = SmtpServer::acting(&[]).await;
        let app = start(database, by_way_of(&[server.url()])).await;
        let template = "{% block subject %}Paid: {{ data.amount }}{% endblock %}{% block html %}<p>{{ data.note }}</p>{% endblock %}";
        let own = proto::EmailChannel { template: template.into(), ..channel(&["ada@company.com"]) };
        let (tenant, subscription) = subscribed(&app, own).await;
        let request = proto::PreviewEmailRequest {
            tenant_id: tenant.id.clone(),
            subscription_id: subscription.id.clone(),
            event_type: "billing.paid".into(),
            data_json: r#"{"amount":"12.30","note":"<b>"}"#.into(),
            ..Default::default()
        };
        let preview = |request: proto::PreviewEmailRequest| async { Ok::<_, Status>(app.operator.subscriptions().preview_email(request).await?.into_inner()) };
        let shown = preview(request.clone()).await.expect("a preview");
        assert_eq!(shown.subject, "Paid: 12.30");
        assert!(shown.html.contains("<p>&lt;b&gt;</p>") && shown.text.contains("Amount: 12.30"), "{shown:?}");
        app.operator.emit(&tenant.id, "billing.paid", &request.data_json).await;
        let given = server.wait_for(1).await;
        assert!(given[0].content.contains("Subject: Paid: 12.30\r\n"), "{}", given[0].content);

        // A template to try comes before the stored one; what fails with this event is told.
        let tried = "{% block subject %}Tried{% endblock %}";
        let tried = preview(proto::PreviewEmailRequest { template: tried.into(), ..request.clone() }).await;
        assert_eq!(tried.expect("a preview").subject, "Tried");
        let missing = proto::PreviewEmailRequest { data_json: "{}".into(), ..request.clone() };
        let refused = preview(missing).await.expect_err("strict");
        assert!(violations(&refused)[0].1.contains("line 1"), "{refused:?}");
        let plain = proto::PreviewEmailRequest { subscription_id: String::new(), ..request.clone() };
        assert_eq!(preview(plain).await.expect("a preview").subject, "Billing paid");
        let sample = proto::PreviewEmailRequest { tenant_id: tenant.id.clone(), ..Default::default() };
        assert_eq!(preview(sample).await.expect("a preview").subject, "Preview");
        let broken = proto::PreviewEmailRequest { data_json: "{".into(), event_type: "a b".into(), ..request };
        let mut fields: Vec<_> = violations(&preview(broken).await.expect_err("refused")).into_iter().map(|(field, _)| field).collect();
        fields.sort_unstable();
        assert_eq!(fields, ["data_json", "event_type"]);
        app.stop().await;
    }
}

on_both! {
    async fn a_template_that_fails_with_an_event_costs_its_looks_and_not_the_mail(database: Database) {
        let server = SmtpServer::acting(&[]).await;
        let app = start(database, by_way_of(&[server.url()])).await;
        let template = "{% block subject %}Paid: {{ data.amount }}{% endblock %}";
        let own = proto::EmailChannel { template: template.into(), ..channel(&["ada@company.com"]) };
        let (tenant, _) = subscribed(&app, own).await;
        let event = app.operator.emit(&tenant.id, "billing.paid", r#"{"total":1}"#).await;
        let (delivery, attempts) = only(&app, &tenant.id, &event.event_id).await;
        assert_eq!(delivery.state(), DeliveryState::Succeeded);
        let content = &server.given()[0].content;
        assert!(content.contains("Subject: Billing paid\r\n"), "{content}");
        let told = attempts[0].request_headers.iter().find(|header| header.name == "Tidings-Template-Error");
        assert_eq!(told.expect("told").value, "line 1: undefined value: there is no data.amount");
        app.stop().await;
    }
}

on_both! {
    async fn a_test_sends_one_mail_and_tells_what_the_server_said(database: Database) {
        let server = SmtpServer::acting(&[Act::Say("RCPT", "550 5.7.1 relaying denied")]).await;
        let app = start(database, by_way_of(&[server.url()])).await;
        let (tenant, subscription) = subscribed(&app, channel(&["ada@company.com", "bob@company.com"])).await;
        let request = proto::TestSubscriptionRequest { tenant_id: tenant.id.clone(), subscription_id: subscription.id.clone() };
        let test = || async { app.operator.subscriptions().test_subscription(request.clone()).await.expect("tried").into_inner() };
        let refused = test().await.attempt.expect("an attempt");
        assert_eq!((refused.error_kind(), refused.smtp_reply.as_str()), (ErrorKind::Smtp, "550 5.7.1 relaying denied"));
        let taken = test().await.attempt.expect("an attempt");
        assert_eq!((taken.error_kind(), taken.trigger()), (ErrorKind::Unspecified, AttemptTrigger::Test));
        assert_eq!(taken.smtp_reply, "250 2.0.0 Ok: queued as 7");
        let given = server.given();
        assert_eq!(given.iter().map(|it| it.recipient.as_str()).collect::<Vec<_>>(), ["ada@company.com"]);
        assert!(given[0].content.contains("Tidings-Event-Type: tidings.ping\r\n"), "{}", given[0].content);
        // It is no delivery.
        assert!(app.operator.deliveries_to(&subscription).await.is_empty());
        app.stop().await;
    }
}
