//! What comes from outside stays data: in headers, in text, in HTML, in SMTP.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use tidings::api::proto::{self, DeliveryState};

use super::{by_way_of, channel, only, start, subscribed};
use crate::support::app::{emit_request, explain};
use crate::support::foreign::{ask, python};
use crate::support::smtp::SmtpServer;
use crate::support::{App, Database};

/// The message that the event made, as Python's `email` reads it, with its content on the wire.
async fn mailed(app: &App, server: &SmtpServer, request: proto::EmitRequest) -> (Value, String) {
    let before = server.given().len();
    let tenant_id = request.tenant_id.clone();
    let event = app.operator.events().emit(request).await.expect("accepted").into_inner();
    let (delivery, attempts) = only(app, &tenant_id, &event.event_id).await;
    assert_eq!(delivery.state(), DeliveryState::Succeeded, "{attempts:?}");
    let given = server.given();
    assert_eq!(given.len(), before + 1, "one message, whatever it says");
    let content = given.into_iter().next_back().expect("a message").content;
    let item = json!({ "message_base64": BASE64.encode(&content), "records": {} });
    let read = ask(python("tests/foreign/read_mail.py"), &[item]).await.remove(0);
    assert_eq!(read["defects"], json!([]), "{content}");
    (read, content)
}

/// The names of the headers; the values of one of them.
fn headers(read: &Value, name: &str) -> (Vec<String>, Vec<String>) {
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let headers = read["headers"].as_array().expect("headers");
    let values = headers.iter().filter(|header| header[0] == name);
    (
        headers.iter().map(|header| text(&header[0])).collect(),
        values.map(|it| text(&it[1])).collect(),
    )
}

fn part(read: &Value, number: usize) -> String {
    read["parts"][number]["content"].as_str().expect("content").to_owned()
}

/// What turns or hides text, or ends a line.
const FORBIDDEN: [char; 7] = ['\0', '\r', '\u{202E}', '\u{2066}', '\u{200B}', '\u{1B}', '\u{7}'];

on_both! {
    async fn nothing_that_makes_a_subject_makes_a_header(database: Database) {
        let server = SmtpServer::acting(&[]).await;
        let app = start(database, by_way_of(&[server.url()])).await;
        // The tenant's name and the event's subject cannot hold breaks at all.
        let tenant = proto::Tenant { display_name: "Acme\r\nBcc: all@company.com".into(), ..Default::default() };
        let request = proto::CreateTenantRequest { tenant: Some(tenant) };
        let refused = app.operator.tenants().create_tenant(request).await.expect_err("refused");
        assert_eq!(explain(&refused).2, ["tenant.display_name"]);
        let template = "{% block subject %}{{ data.name }} {{ event.subject }}{% endblock %}";
        let own = proto::EmailChannel { template: template.into(), ..channel(&["ada@company.com"]) };
        let (tenant, _) = subscribed(&app, own).await;
        let broken = proto::EmitRequest { subject: "INV-7\r\nBcc: all@company.com".into(), ..emit_request(&tenant.id, "billing.paid", "{}") };
        let refused = app.operator.events().emit(broken).await.expect_err("refused");
        assert_eq!(explain(&refused).2, ["subject"]);

        // A payload can hold everything.
        let name = "INV\r\nBcc: all@company.com\r\n\r\n<h1>\0\u{202E}gnp.exe\u{2066}\u{200B}\u{1B}[31m\u{7}\u{2028}X-Evil: 1";
        let data = json!({ "name": name, "message": name, "key\r\nX-Evil: 1": name }).to_string();
        let subject = "\u{202E}7-VNI =?utf-8?B?QmNjOiBhbGxA?= Ünï".to_owned();
        let request = proto::EmitRequest { subject, ..emit_request(&tenant.id, "billing.paid", &data) };
        let (read, content) = mailed(&app, &server, request).await;
        let (names, subjects) = headers(&read, "Subject");
        assert_eq!(subjects.len(), 1);
        assert!(subjects[0].starts_with("INV Bcc: all@company.com <h1>\u{FFFD}\u{FFFD}gnp.exe"), "{subjects:?}");
        assert!(!names.iter().any(|name| ["Bcc", "X-Evil"].contains(&name.as_str())), "{names:?}");
        assert_eq!(names.iter().filter(|name| *name == "To").count(), 1);
        for shown in [subjects[0].clone(), part(&read, 0), part(&read, 1)] {
            // Lines end as they do on the wire.
            let shown = shown.replace("\r\n", "\n");
            assert!(!shown.contains(FORBIDDEN), "{shown:?}");
        }
        assert!(!part(&read, 1).contains("<h1>\u{FFFD}"), "{}", part(&read, 1));
        // RFC 5322 and 5321: lines end with CR LF and have no more than 998 bytes; nothing is NUL.
        for line in content.split("\r\n") {
            assert!(line.len() <= 998 && !line.contains(['\r', '\n', '\0']), "{line:?}");
        }
        app.stop().await;
    }
}

on_both! {
    async fn payloads_are_no_templates_no_markup_and_no_commands(database: Database) {
        let server = SmtpServer::acting(&[]).await;
        let app = start(database, by_way_of(&[server.url()])).await;
        let template = "{% block subject %}{{ data.a }}{% endblock %}{% block html %}<p title=\"{{ data.b }}\">{{ data.a }}</p>{% endblock %}";
        let own = proto::EmailChannel { template: template.into(), ..channel(&["ada@company.com"]) };
        let injected = "{{ 7*191 }}{% for i in [1,2] %}x{% endfor %}{{ look }}";
        let markup = "\"><script>alert(1)</script><img src=x onerror='alert(2)'>";
        let smtp = "\r\n.\r\nMAIL FROM:<evil@evil.com>\r\nRCPT TO:<all@company.com>\r\nDATA\r\nevil\r\n.\r\n";
        let data = json!({ "a": injected, "b": markup, "message": smtp, "url": "javascript:alert(3)", "link": "https://evil.com/\"onclick=\"alert(4)" }).to_string();
        // The built-in template, and one of somebody's own.
        for channel in [channel(&["ada@company.com"]), own] {
            let (tenant, _) = subscribed(&app, channel).await;
            let (read, _) = mailed(&app, &server, emit_request(&tenant.id, "billing.paid", &data)).await;
            let (text, html) = (part(&read, 0), part(&read, 1));
            assert!(text.contains("{{ 7*191 }}{% for i in [1,2] %}x{% endfor %}{{ look }}"), "{text}");
            assert!(html.contains("{{ 7*191 }}") && !html.contains("1337"), "{html}");
            assert!(text.contains("MAIL FROM:<evil@evil.com>"), "{text}");
            assert!(html.contains("&lt;script&gt;alert(1)&lt;/script&gt;"), "{html}");
            for hostile in ["<script", "<img src=x", "href=\"javascript", "\"onclick", "\"><"] {
                let count = html.matches(hostile).count();
                // The frame closes tags of its own.
                assert!(count == 0 || hostile == "\"><", "{hostile} in {html}");
            }
            assert!(!html.contains("\"><script") && !html.contains("\"&gt;<script"), "{html}");
        }
        assert!(server.given().iter().all(|it| it.recipient == "ada@company.com"));
        assert_eq!(server.commands("MAIL").len(), 2);
        app.stop().await;
    }
}

on_both! {
    async fn the_largest_payloads_make_mails_of_a_bounded_size(database: Database) {
        const LIMIT: usize = 256 * 1024;
        let server = SmtpServer::acting(&[]).await;
        let app = start(database, by_way_of(&[server.url()])).await;
        let template = "{% block text %}{% for item in data %}{{ item }}{% endfor %}{% endblock %}";
        let own = proto::EmailChannel { template: template.into(), ..channel(&["ada@company.com"]) };
        let fill = |start: &str, item: &str, end: &str| {
            let mut data = start.to_owned();
            while data.len() + item.len() + end.len() <= LIMIT {
                data.push_str(item);
            }
            format!("{data}{end}")
        };
        let deep = format!("{}{}", "[".repeat(64), "]".repeat(64));
        for channel in [channel(&["ada@company.com"]), own] {
            let (tenant, _) = subscribed(&app, channel).await;
            for data in [
                fill("\"", "x", "\""),
                fill("{\"message\":\"", "\\u202e<", "\"}"),
                fill("[", "{},", "0]"),
                fill("{", "\"a\":\"&\",", "\"b\":0}"),
                fill("[\"", "<", "\"]"),
                deep.clone(),
            ] {
                let (read, content) = mailed(&app, &server, emit_request(&tenant.id, "billing.paid", &data)).await;
                assert!(content.len() < 512 * 1024, "{} bytes of {data:.40}", content.len());
                assert_eq!(read["parts"].as_array().expect("parts").len(), 2, "{data:.40}");
            }
        }
        // One byte more is refused, and so is what is far larger.
        let (tenant, _) = subscribed(&app, channel(&["ada@company.com"])).await;
        for size in [LIMIT + 1, 3 * 1024 * 1024] {
            let data = format!("\"{}\"", "x".repeat(size - 2));
            let refused = app.operator.events().emit(emit_request(&tenant.id, "billing.paid", &data)).await;
            assert_eq!(explain(&refused.expect_err("refused")).2, ["data_json"]);
        }
        app.stop().await;
    }
}
