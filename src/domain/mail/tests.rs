//! What mails say, and that nothing can make them say or cost something else.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;
use crate::domain::Timestamp;
use crate::domain::id::{DeliveryId, EventId, TenantId};
use crate::domain::tenant::TenantSpec;
use crate::domain::trace::TraceContext;

/// 2026-11-21 15:49 in UTC.
const NOW: Timestamp = Timestamp::from_micros(1_795_276_140_000_000);

fn event(data: impl Into<Bytes>) -> Event {
    Event {
        id: EventId::first_at(NOW),
        tenant_id: TenantId::first_at(NOW),
        event_type: "billing.invoice_paid".to_owned(),
        subject: "INV-7".to_owned(),
        data: data.into(),
        labels: BTreeMap::new(),
        occur_time: NOW,
        create_time: NOW,
        deliver_time: None,
        expire_time: None,
        trace: TraceContext::root(&mut StdRng::seed_from_u64(7)),
    }
}

fn tenant() -> Tenant {
    Tenant {
        id: TenantId::first_at(NOW),
        spec: TenantSpec { display_name: "Acme".to_owned(), ..TenantSpec::default() },
        unreadable: false,
        revision: 1,
        create_time: NOW,
        update_time: NOW,
    }
}

fn with<T>(event: &Event, read: impl FnOnce(Occasion<'_>) -> T) -> T {
    let (tenant, look) = (tenant(), Look::default());
    read(Occasion {
        event,
        further: &[],
        tenant: &tenant,
        locale: "",
        time_zone: "Europe/Berlin",
        look: &look,
        unsubscribe_url: "",
    })
}

fn mail(data: impl Into<Bytes>) -> Content {
    with(&event(data), |occasion| render(occasion, "").expect("built-in").content)
}

fn by(template: &str, data: &'static str) -> Result<Content, String> {
    with(&event(data), |occasion| preview(occasion, template).map_err(|error| error.to_string()))
}

fn subject(inner: &str, data: &'static str) -> Result<String, String> {
    let template = format!("{{% block subject %}}{inner}{{% endblock %}}");
    by(&template, data).map(|content| content.subject)
}

const INVOICE: &str = r#"{
    "message": "We received your payment.",
    "amount_due": 123456789012345678901234567890, "currency": "EUR",
    "dueDate": "2026-12-01T09:30:00Z",
    "customer": {"name": "Zoë", "address": {"city": "Köln"}},
    "items": [{"sku": "a-1"}, {"sku": "b-2"}], "tags": ["new", "vip"],
    "paid": true, "note": null, "logo_url": "https://cdn.company.com/l.png",
    "invoice_url": "https://company.com/invoices/7?a=1&b=2"}"#;

#[test]
fn any_event_is_readable() {
    let Content { subject, text, html } = mail(INVOICE);
    assert_eq!(subject, "Billing invoice paid: INV-7");
    let expected = "Billing invoice paid: INV-7
2026-11-21 16:49 (+01:00)

We received your payment.

Amount due: 123456789012345678901234567890
Currency: EUR
Due date: 2026-12-01 10:30 (+01:00)
Customer › Name: Zoë
Customer › Address › City: Köln
Items › 1 › Sku: a-1
Items › 2 › Sku: b-2
Tags: new, vip
Paid: yes
Note: —
Logo url: https://cdn.company.com/l.png
Invoice url: https://company.com/invoices/7?a=1&b=2

Open invoice: https://company.com/invoices/7?a=1&b=2

-- 
Acme";
    assert_eq!(text, expected);
    for part in [
        r#"href="https://company.com/invoices/7?a=1&amp;b=2""#,
        ">Open invoice</a>",
        "Opens company.com",
        "We received your payment.",
        ">Customer › Address › City</th>",
        "prefers-color-scheme: dark",
        r#"<html lang="en" dir="ltr">"#,
    ] {
        assert!(html.contains(part), "{part} in {html}");
    }
    assert!(html.starts_with("<!doctype html>") && html.ends_with("</html>"));
}

#[test]
fn every_payload_makes_a_mail() {
    let deep = format!("{}1{}", "[".repeat(64), "]".repeat(64));
    let wide = format!("[{}]", vec!["{\"a\":1}"; 100_000].join(","));
    for data in [
        "null",
        "1",
        "\"x\"",
        "[]",
        "{}",
        "[1,[2,{}]]",
        "not json",
        "",
        r#"{"a":"\ud800"}"#,
        r#"{"\ud800":1}"#,
        r#"{"a":1,"a":2}"#,
        r#"{"message":5,"url":7}"#,
        &deep,
        &wide,
        "1e999999",
        &"9".repeat(100_000),
    ] {
        let content = mail(data.to_owned());
        assert!(content.html.len() < 100_000 && content.text.len() < 30_000, "{data:.40}");
        assert!(content.html.contains("Billing invoice paid"));
    }
    let content = mail(wide);
    assert!(content.text.contains("more fields."), "{}", content.text);
}

#[test]
fn ten_megabytes_are_cut() {
    let huge = "é".repeat(5_000_000);
    let data =
        format!(r#"{{"message":"{huge}","a":"{huge}","{huge}":1,"url":"https://a.com/{huge}"}}"#);
    let mut event = event(data);
    event.subject = huge.clone();
    event.event_type = huge;
    let content = with(&event, |occasion| render(occasion, "").expect("built-in").content);
    assert!(content.subject.chars().count() <= MAX_SUBJECT_CHARS);
    assert!(content.html.len() < 40_000 && content.text.len() < 10_000);
    let all = "{% block text %}{{ data.a }}{% endblock %}";
    let content = with(&event, |occasion| preview(occasion, all).expect("bounded"));
    assert_eq!(content.text.chars().count(), 4_001);
}

#[test]
fn data_is_never_markup_and_never_a_template() {
    let content = mail(
        r#"{"message":"<script>alert(1)</script>","a\"><b>":"{{ 7 * 191 }}{% for x in y %}",
            "c":"' onload='x","url":"https://company.com/\"><script>"}"#,
    );
    for forbidden in ["<script", "<b>", "' onload", "1337"] {
        assert!(!content.html.contains(forbidden), "{forbidden}");
    }
    assert!(content.html.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
    assert!(content.text.contains("{{ 7 * 191 }}{% for x in y %}"));
    let html = "{% block html %}<i title='{{ data.c }}'>{{ data.c|upper }}</i>{% endblock %}";
    let content = by(html, r#"{"c":"'><img src=x>"}"#).expect("a mail");
    assert!(content.html.contains("<i title='&#39;&gt;&lt;img src=x&gt;'>&#39;&gt;&lt;IMG"));
}

#[test]
fn hostile_characters_are_gone() {
    let mut event = event(r#"{"message":"a\u0000b\r\nc\u202Ed","x\r\ny":"e\u2066f\u001bg"}"#);
    event.subject = "INV\r\nBcc: all@company.com\0\u{202E}".to_owned();
    let Content { subject, text, html } =
        with(&event, |occasion| render(occasion, "").expect("built-in").content);
    assert_eq!(subject, "Billing invoice paid: INV Bcc: all@company.com\u{FFFD}\u{FFFD}");
    for part in [&subject, &text, &html] {
        assert!(!part.contains(['\0', '\r', '\u{1B}', '\u{202E}', '\u{2066}']), "{part:?}");
    }
    assert!(text.contains("a\u{FFFD}b\nc\u{FFFD}d") && text.contains("X y: e\u{FFFD}f\u{FFFD}g"));
}

#[test]
fn only_pages_become_links() {
    let link = |data: &str| mail(data.to_owned()).html.contains("Opens ");
    for data in [
        r#"{"url":"http://company.com/"}"#,
        r#"{"url":"javascript:alert(1)"}"#,
        r#"{"url":"https://user:secret@company.com/"}"#,
        r#"{"link":"company.com"}"#,
        r#"{"avatar_url":"https://company.com/a.png"}"#,
        r#"{"urls":"https://company.com/"}"#,
        r#"{"curl":"x"}"#,
        r#"["https://company.com/"]"#,
    ] {
        assert!(!link(data), "{data}");
    }
    for data in [
        r#"{"url":"https://company.com"}"#,
        r#"{"url":"x","href":"https://company.com"}"#,
        r#"{"receiptLink":"https://company.com"}"#,
    ] {
        assert!(link(data), "{data}");
    }
}

#[test]
fn a_digest_tells_each_event() {
    let further: Vec<_> = (0..150)
        .map(|number| DigestItem {
            delivery_id: DeliveryId::first_at(NOW),
            event: Arc::new(event(format!(r#"{{"message":"number {number}","a":1}}"#))),
        })
        .collect();
    let event = event("{}");
    let content = with(&event, |occasion| {
        render(Occasion { further: &further, ..occasion }, "").expect("built-in").content
    });
    assert_eq!(content.subject, "151 notifications");
    assert_eq!(content.text.matches("number ").count(), 99);
    assert!(content.text.contains("And 51 more.") && content.html.contains("And 51 more."));
}

#[test]
fn templates_replace_what_they_have() {
    let template = "{% block subject %}{{ tenant.name }}\n paid {{ data.n }}{% endblock %}\n
        {% block html %}<p>{{ data.n }}</p>{% endblock %}";
    let content = by(template, r#"{"n":"1 < 2"}"#).expect("a mail");
    assert_eq!(content.subject, "Acme paid 1 < 2");
    assert!(content.text.contains("N: 1 < 2"));
    assert!(content.html.contains("<p>1 &lt; 2</p>") && content.html.contains("Sent to you as"));
    let whole = "{% block html %}\n<!DOCTYPE html><p>{{ event.type }}</p>{% endblock %}";
    assert_eq!(by(whole, "{}").expect("a mail").html, "<!DOCTYPE html><p>billing.invoice_paid</p>");
    let by_date = subject("{{ data.t|date('%d.%m.%Y %H:%M') }}", r#"{"t":"2026-12-01T09:30:00Z"}"#);
    assert_eq!(by_date.as_deref(), Ok("01.12.2026 10:30"));
    let missing =
        "{% if data.x %}a{% else %}b{% endif %}{{ data.x|default('c') }}{{ data.l|join }}";
    assert_eq!(subject(missing, r#"{"l":[1,"d"]}"#).as_deref(), Ok("bc1, d"));
}

#[test]
fn a_template_is_strict_and_says_where_it_is_wrong() {
    for (inner, says) in [
        ("{{ data.nothing }}", "line 1: undefined value: there is no data.nothing"),
        ("{{ data.a }}\n{{ data['b'].c }}", "line 2: undefined value: there is no data.b"),
        ("{% if data.x %}{% else %}{{ data.y.z }}{% endif %}", "there is no data.y"),
        ("{{ data.x|default('') }}{{ event.labels.team }}", "there is no event.labels.team"),
        ("{% for row in rows %}{{ row.nme }}{% endfor %}", "there is no row.nme"),
        ("\n\n{{ data.a.b.c }}", "line 3: "),
        ("{{ data }}", "a list or a map cannot be printed"),
        ("{{ nobody }}", "undefined value: there is no nobody; there are data, "),
        ("\n{{ event.name }}", "line 2: undefined value: there is no event.name; there are id, "),
        ("{% for a in data.l %}{{ a.b }}{{ b }}{% endfor %}", "there is no b;"),
        ("{% for k, v in data.m|items %}{{ k }}{{ loop.last }}{% endfor %}{{ v }}", "no v;"),
        ("{{ data.a|date }}", "value is not a string"),
        ("{{ 'x'|date }}", "only an RFC 3339 time"),
        ("{{ '2026-12-01T09:30:00Z'|date('%!') }}", "the date's format is wrong"),
        ("{{ 'x'|nothing }}", "there is no filter nothing; there are capitalize"),
        ("{{ data.a is odder }}", "there is no test odder"),
        ("{{ data.a", "line 1: "),
        ("{% if data.a %}", "line 1: "),
    ] {
        let error = subject(inner, r#"{"a":1}"#).expect_err(inner);
        assert!(error.contains(says), "{inner}: {error}");
    }
    // What is known before there is an event is said before there is one.
    for inner in ["{{ nobody }}", "{{ tenant.id }}", "{% if nobody is defined %}a{% endif %}"] {
        let template = format!("{{% block text %}}{inner}{{% endblock %}}");
        assert!(check(&template).expect_err(inner).to_string().contains("there is no "), "{inner}");
    }
    check("{% block text %}{% for k, v in data|items %}{{ k }}{{ v }}{{ loop.index }}{% endfor %}{% endblock %}")
        .expect("names of loops");
    for (template, says) in [
        ("Hello", "text must stand in one of the blocks"),
        ("{{ title }}", "must stand in one of the blocks"),
        ("{% block title %}{% endblock %}", "a block must be subject, text or html"),
        ("{% block text %}a", "the block has no endblock"),
        (
            "\n{% block text %}{% endblock %}\n{% block text %}{% endblock %}",
            "line 3: the block is there",
        ),
        (
            "{% block text %}{% block html %}{% endblock %}{% endblock %}",
            "must not stand in another",
        ),
        ("{% extends 'x' %}", "must stand in one of the blocks"),
        ("{% block text %}\0{% endblock %}", "NUL"),
    ] {
        let error = check(template).expect_err(template).to_string();
        assert!(error.contains(says), "{template}: {error}");
    }
    assert!(check(&" ".repeat(MAX_TEMPLATE_BYTES + 1)).is_err());
    assert_eq!(check(""), Ok(()));
}

#[test]
fn what_could_cost_without_end_is_refused() {
    for inner in [
        "{% set a = 'x' %}",
        "{% set a %}x{% endset %}",
        "{% with a = 1 %}{% endwith %}",
        "{{ 'a' ~ 'b' }}",
        "{{ 'a' * 1000000000 }}",
        "{{ 2 ** 1000000 }}",
        "{{ data.a + data.a }}",
        "{{ [1, 2] }}",
        "{{ {'a': 1} }}",
        "{{ (1, 2) }}",
        "{{ range(1000000) }}",
        "{{ data.a[1:] }}",
        "{{ self.subject() }}",
        "{{ super() }}",
        "{% macro a() %}{% endmacro %}",
        "{% filter upper %}x{% endfilter %}",
        "{% autoescape false %}{% endautoescape %}",
        "{% for a in data recursive %}{{ loop(a) }}{% endfor %}",
        "{{ data.a|safe }}",
        "{{ data.a|replace('a', 'b') }}",
        "{{ '%1000000000d'|format(1) }}",
        "{% include 'x' %}",
        "{{ data.a|join(*data.b) }}",
        "{% do data.a() %}",
        "{{ debug() }}",
        "{% for a in [data, data] %}{% endfor %}",
        "{% if [1] == [1] %}{% endif %}",
    ] {
        let source = format!("{{% block text %}}{inner}{{% endblock %}}");
        assert!(check(&source).is_err(), "{inner}");
    }
}

#[test]
fn chains_do_not_exhaust_the_stack() {
    let chain = |piece: &str| piece.repeat(MAX_TEMPLATE_BYTES / piece.len() - 20);
    for inner in [
        format!("{{{{ a{} }}}}", chain(" and a")),
        format!("{{{{ {}a }}}}", chain("not ")),
        format!("{{{{ {}a }}}}", chain("(")),
        format!("{{{{ a{} }}}}", chain(".a")),
        format!("{{{{ a{} }}}}", chain("|trim")),
        format!("{{{{ a{} }}}}", chain("[a")),
        format!("{{{{ a{} }}}}", chain(" if a else a")),
        format!("{{% if a %}}{}", chain("{% elif a %}")),
        chain("{% if a %}"),
        chain("{% for a in b %}"),
        chain("{% if a %}{% else %}"),
    ] {
        let source = format!("{{% block text %}}{inner}{{% endblock %}}");
        assert!(check(&source).is_err(), "{inner:.40}");
    }
}

#[test]
fn loops_end_by_fuel_and_output_by_its_limit() {
    let nested = "{% for a in data.l %}{% for b in data.l %}{% for c in data.l %}x{% endfor %}\
                  {% endfor %}{% endfor %}";
    let list = format!(r#"{{"l":[{}1]}}"#, "1,".repeat(500));
    let source = format!("{{% block text %}}{nested}{{% endblock %}}");
    let run = |source: &str| {
        with(&event(list.clone()), |occasion| preview(occasion, source).map_err(|e| e.to_string()))
    };
    let error = run(&source).expect_err("no fuel");
    assert!(error.contains("fuel"), "{error}");
    let large = "x".repeat(10_000);
    let source =
        format!("{{% block html %}}{{% for a in data.l %}}{large}{{% endfor %}}{{% endblock %}}");
    let error = run(&source).expect_err("too large");
    assert!(error.contains("more than 98304 bytes"), "{error}");
}

#[test]
fn a_schema_that_lists_all_fields_says_which_are_never_there() {
    let closed = r#"{"type":"object","properties":{"amount":{},"customer":{"type":"object"}},"additionalProperties":false}"#;
    let open = r#"{"properties":{"amount":{}}}"#;
    let patterns =
        r#"{"properties":{},"additionalProperties":false,"patternProperties":{"^x-":{}}}"#;
    let template = |inner: &str| format!("{{% block text %}}\n{inner}{{% endblock %}}");
    for inner in ["{{ data.amount }}", "{{ data.customer.name }}", "{{ data.x|default('') }}"] {
        check_for(&template(inner), closed).expect(inner);
    }
    let misspelt = template("{{ data.amont }}");
    let error = check_for(&misspelt, closed).expect_err("misspelt").to_string();
    assert_eq!(
        error,
        "line 2: undefined value: there is no data.amont; there are amount, customer"
    );
    for schema in [open, patterns, "", "true", "not JSON"] {
        check_for(&misspelt, schema).expect(schema);
    }
}

#[test]
fn the_names_are_those_of_the_document() {
    let seen = with(&event(INVOICE), |occasion| {
        let document = serde_json::to_value(document::Document::of(occasion)).expect("a document");
        let fields = document.as_object().expect("fields").clone();
        fields.into_iter().map(|(name, value)| {
            let of: Vec<_> = match (name.as_str(), value) {
                ("data", _) => Vec::new(),
                (_, serde_json::Value::Object(of)) => {
                    of.into_iter().map(|(name, _)| name).collect()
                }
                _ => Vec::new(),
            };
            (name, of)
        })
    });
    let sorted = |mut names: Vec<String>| {
        names.sort();
        names
    };
    let seen: BTreeMap<_, _> = seen.map(|(name, of)| (name, sorted(of))).collect();
    let said = names::SEEN.iter().map(|(name, of)| {
        let of = of.iter().map(ToString::to_string).collect();
        ((*name).to_owned(), sorted(of))
    });
    assert_eq!(said.collect::<BTreeMap<_, _>>(), seen);
}

#[test]
fn a_template_that_fails_costs_its_looks_only() {
    let template = "{% block subject %}{{ data.nothing }}{% endblock %}";
    let rendered = with(&event(INVOICE), |occasion| render(occasion, template).expect("built-in"));
    assert_eq!(rendered.content, mail(INVOICE));
    let told = rendered.template_error.expect("told");
    assert_eq!(told, "line 1: undefined value: there is no data.nothing");
}

#[test]
fn languages_have_their_direction() {
    let html = |locale: &str| {
        with(&event("{}"), |occasion| {
            render(Occasion { locale, ..occasion }, "").expect("built-in").content.html
        })
    };
    assert!(html("he-IL").contains(r#"<html lang="he-IL" dir="rtl">"#));
    assert!(html("\"><script>").contains(r#"<html lang="en" dir="ltr">"#));
}
