//! CloudEvents, as they arrive: read by the SDKs that others wrote.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use tidings::api::proto::{self, PayloadFormat};

use crate::support::app::emit_request;
use crate::support::foreign::{ask, node, python};
use crate::support::{App, Database, Receiver};

/// The trace in which the events are emitted.
const TRACE_ID: &str = "0af7651916cd43dd8448eb211c80319c";

/// An event with everything that can be an attribute, and labels that cannot.
fn request(tenant_id: &str, data: &str, subject: &str) -> proto::EmitRequest {
    let labels = [
        ("region", "eu west \"1\" 50%"),
        ("city", "Zürich 東京 🙂"),
        ("Not_A_Name", "left out"),
        ("id", "left out"),
        ("control", "left\nout"),
    ];
    proto::EmitRequest {
        subject: subject.into(),
        labels: labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        occur_time: Some(prost_types::Timestamp { seconds: 1_770_283_800, nanos: 250_000_000 }),
        ..emit_request(tenant_id, "billing.paid", data)
    }
}

on_both! {
    async fn sdks_of_others_read_both_modes(database: Database) {
        let app = App::start(database).await;
        let receiver = Receiver::answering(204).await;
        let tenant = app.operator.create_tenant("Acme").await;
        let formats = [PayloadFormat::CloudeventsStructured, PayloadFormat::CloudeventsBinary];
        for format in formats {
            let webhook = proto::WebhookChannel { url: receiver.url(), payload_format: format as i32, ..Default::default() };
            app.operator.subscribe_with(&tenant.id, &["*"], webhook, None).await;
        }
        let mut emitted = BTreeMap::new();
        for (data, subject) in [
            (r#"{"amount":"12.30","name":"Zoë 東京","list":[1,{"a":null}]}"#, "invoice/7 \"ü\" 100%"),
            (r#" { "a" : 1 , "a":2 } "#, "plain"),
            ("{}", ""),
            ("7", "a number"),
            (r#""text""#, "a text"),
            ("[1,2,3]", "a list"),
            (r#"{"big":123456789012345678901234567890}"#, "a big integer"),
        ] {
            let mut request = tonic::Request::new(request(&tenant.id, data, subject));
            let traceparent = format!("00-{TRACE_ID}-b7ad6b7169203331-01");
            request.metadata_mut().insert("traceparent", traceparent.parse().expect("ASCII"));
            let event = app.operator.events().emit(request).await.expect("accepted").into_inner();
            emitted.insert(event.event_id, (data, subject));
        }
        let requests = receiver.wait_for(emitted.len() * formats.len()).await;

        let items: Vec<_> = requests
            .iter()
            .map(|request| {
                let (data, _) = emitted[request.header("webhook-id")];
                match request.header("content-type") {
                    "application/json" => assert_eq!(request.body, data),
                    other => {
                        assert_eq!(other, "application/cloudevents+json; charset=utf-8");
                        assert!(request.body.ends_with(format!(",\"data\":{data}}}").as_bytes()));
                    }
                }
                let headers: BTreeMap<_, _> = request.headers.iter().cloned().collect();
                json!({ "headers": headers, "body_base64": BASE64.encode(&request.body), "data": data })
            })
            .collect();
        let (pypi, npm) = tokio::join!(
            ask(python("tests/foreign/read_cloudevents.py"), &items),
            ask(node("tests/foreign/read_cloudevents.mjs"), &items),
        );
        for (sdk, said) in [("PyPI", pypi), ("npm", npm)] {
            for (request, said) in requests.iter().zip(said) {
                let id = request.header("webhook-id");
                let told = format!("{sdk}, {:?}: {said}", emitted[id]);
                let is_binary = request.header("content-type") == "application/json";
                if sdk == "npm" && is_binary && !emitted[id].0.starts_with(['{', '[', '"']) {
                    // The SDK puts quotes around any other body: numbers become texts, and a
                    // leading space an error. Nothing that a sender could say changes that.
                    continue;
                }
                assert_eq!(said["same_data"], true, "{told}");
                let mut attributes: BTreeMap<String, Value> = serde_json::from_value(said["attributes"].clone()).expect("attributes");
                let mut take = |name: &str| match attributes.remove(name) {
                    Some(Value::String(text)) => text,
                    other => panic!("{name} is {other:?}: {told}"),
                };
                assert_eq!(take("specversion"), "1.0");
                assert_eq!(take("id"), id, "{told}");
                assert_eq!(take("source"), format!("/tenants/{}", tenant.id));
                assert_eq!(take("type"), "billing.paid");
                assert_eq!(take("datacontenttype"), "application/json");
                assert!(take("time").starts_with("2026-02-05T09:30:00.25"), "{told}");
                // The trace of the Emit; the attempt's own is in the header of that name.
                let traceparent = take("traceparent");
                assert!(traceparent.starts_with(&format!("00-{TRACE_ID}-")), "{told}");
                assert_ne!(traceparent, request.header("traceparent"));
                assert_eq!(take("region"), "eu west \"1\" 50%");
                assert_eq!(take("city"), "Zürich 東京 🙂");
                let (_, subject) = emitted[id];
                if !subject.is_empty() {
                    assert_eq!(take("subject"), subject);
                }
                assert!(attributes.is_empty(), "nothing else: {attributes:?}");
            }
        }
        app.stop().await;
    }
}
