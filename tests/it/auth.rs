//! Who may: every RPC of the descriptor set with no key, with a wrong scope, and with another
//! tenant's ids.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, BufMut};
use prost::Message;
use tidings::api::proto::{self, FILE_DESCRIPTOR_SET};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::support::app::{emit_request, explain};
use crate::support::{App, Database, Receiver};

/// Sends and receives messages as bytes.
#[derive(Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut bytes = vec![0; buffer.remaining()];
        buffer.copy_to_slice(&mut bytes);
        Ok(Some(bytes))
    }
}

/// Calls a method of any shape with one message, and returns its first answer.
async fn call(
    channel: &Channel,
    path: &str,
    key: Option<&str>,
    message: Vec<u8>,
) -> Result<Vec<u8>, Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.expect("ready");
    let mut request = Request::new(futures::stream::iter([message]));
    if let Some(key) = key {
        request
            .metadata_mut()
            .insert("authorization", format!("Bearer {key}").parse().expect("ASCII"));
    }
    let path = path.parse().expect("a path");
    let mut answers = client.streaming(request, path, Raw).await?.into_inner();
    answers.message().await.map(Option::unwrap_or_default)
}

/// Every method of the contract, as `/tidings.v1.Service/Method`.
fn methods() -> BTreeSet<String> {
    let set =
        prost_types::FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).expect("a descriptor set");
    let mut methods = BTreeSet::new();
    for file in set.file.iter().filter(|file| file.package() == "tidings.v1") {
        for service in &file.service {
            for method in &service.method {
                methods.insert(format!("/{}.{}/{}", file.package(), service.name(), method.name()));
            }
        }
    }
    assert!(methods.len() >= 30, "{methods:?}");
    methods
}

/// The scope that each method needs, written down a second time: `""` is any valid key.
fn scopes() -> BTreeMap<String, &'static str> {
    let table: &[(&str, &str, &[&str])] = &[
        ("EventService", "events:emit", &["Emit", "EmitBatch", "EmitStream"]),
        ("EventService", "events:read", &["GetEvent", "ListEvents", "PollEvents"]),
        (
            "SubscriptionService",
            "subscriptions:read",
            &["GetSubscription", "ListSubscriptions", "PreviewEmail", "GetSubscriptionStats"],
        ),
        (
            "SubscriptionService",
            "subscriptions:write",
            &[
                "CheckSubscription",
                "CreateSubscription",
                "UpdateSubscription",
                "DeleteSubscription",
                "PauseSubscription",
                "ResumeSubscription",
                "RotateSecret",
                "TestSubscription",
            ],
        ),
        ("SuppressionService", "subscriptions:read", &["ListSuppressions"]),
        (
            "SuppressionService",
            "subscriptions:write",
            &["CreateSuppression", "DeleteSuppression", "ReportFeedback"],
        ),
        (
            "DeliveryService",
            "deliveries:read",
            &["GetDelivery", "ListDeliveries", "ListAttempts", "WatchDeliveries"],
        ),
        ("DeliveryService", "deliveries:write", &["RetryDelivery", "CancelDelivery"]),
        ("CatalogService", "", &["GetEventType", "ListEventTypes"]),
        (
            "CatalogService",
            "catalog:write",
            &["CreateEventType", "UpdateEventType", "DeleteEventType", "ImportCatalog"],
        ),
        ("TenantService", "", &["GetTenant"]),
        (
            "TenantService",
            "admin",
            &[
                "CreateTenant",
                "ListTenants",
                "UpdateTenant",
                "DeleteTenant",
                "CreateApiKey",
                "ListApiKeys",
                "RevokeApiKey",
            ],
        ),
    ];
    let mut scopes = BTreeMap::new();
    for (service, scope, names) in table {
        for name in *names {
            scopes.insert(format!("/tidings.v1.{service}/{name}"), *scope);
        }
    }
    scopes
}

const TENANT_SCOPES: [&str; 7] = [
    "events:emit",
    "events:read",
    "subscriptions:read",
    "subscriptions:write",
    "deliveries:read",
    "deliveries:write",
    "catalog:write",
];

#[test]
fn the_table_of_scopes_names_every_method() {
    assert_eq!(scopes().into_keys().collect::<BTreeSet<_>>(), methods());
}

on_both! {
    async fn without_a_key_nothing_is_answered(database: Database) {
        let app = App::start(database).await;
        let channel = &app.operator.channel;
        for method in methods() {
            let missing = call(channel, &method, None, Vec::new()).await.expect_err(&method);
            assert_eq!(explain(&missing), (Code::Unauthenticated, "API_KEY_MISSING".into(), vec![]), "{method}");
            for key in ["", "nonsense", "tdk_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"] {
                let unknown = call(channel, &method, Some(key), Vec::new()).await.expect_err(&method);
                assert_eq!(unknown.code(), Code::Unauthenticated, "{method} {key:?}");
            }
        }
        app.stop().await;
    }
}

/// A key with every scope of a tenant but one.
async fn key_without(app: &App, tenant_id: &str, scope: &str) -> String {
    let scopes =
        TENANT_SCOPES.iter().filter(|other| **other != scope).map(ToString::to_string).collect();
    let api_key = proto::ApiKey {
        tenant_id: tenant_id.into(),
        display_name: "t".into(),
        scopes,
        ..Default::default()
    };
    let request = proto::CreateApiKeyRequest { api_key: Some(api_key) };
    app.operator.tenants().create_api_key(request).await.expect("created").into_inner().secret
}

on_both! {
    async fn a_key_without_the_scope_is_denied_before_the_request_is_looked_at(database: Database) {
        let app = App::start(database).await;
        let tenant = app.operator.create_tenant("Acme").await;
        let mut keys = BTreeMap::new();
        for scope in TENANT_SCOPES.into_iter().chain(["admin"]) {
            keys.insert(scope, key_without(&app, &tenant.id, scope).await);
        }
        for (method, scope) in scopes().into_iter().filter(|(_, scope)| !scope.is_empty()) {
            // An empty message is wrong almost everywhere: the scope comes first.
            let denied = call(&app.operator.channel, &method, Some(&keys[scope]), Vec::new()).await.expect_err(&method);
            assert_eq!(explain(&denied), (Code::PermissionDenied, "SCOPE_MISSING".into(), vec![]), "{method}");
        }
        app.stop().await;
    }
}

/// A request for each method that names somebody else's tenant, or ids of somebody else's.
#[expect(clippy::too_many_lines, reason = "a table of requests")]
fn foreign_requests(tenant_id: &str, ids: &Ids) -> BTreeMap<String, Vec<u8>> {
    let mut requests = BTreeMap::new();
    let mut add = |method: &str, message: Vec<u8>| {
        drop(requests.insert(format!("/tidings.v1.{method}"), message));
    };
    let tenant = || tenant_id.to_owned();
    let (sub, dlv, evt) =
        (|| ids.subscription.clone(), || ids.delivery.clone(), || ids.event.clone());
    let emit = emit_request(tenant_id, "user.created", "{}");
    add("EventService/Emit", emit.encode_to_vec());
    add(
        "EventService/EmitBatch",
        proto::EmitBatchRequest { tenant_id: tenant(), requests: vec![emit] }.encode_to_vec(),
    );
    add(
        "EventService/GetEvent",
        proto::GetEventRequest { tenant_id: tenant(), event_id: evt() }.encode_to_vec(),
    );
    add(
        "EventService/ListEvents",
        proto::ListEventsRequest { tenant_id: tenant(), ..Default::default() }.encode_to_vec(),
    );
    let subscription = proto::Subscription {
        id: sub(),
        tenant_id: tenant(),
        event_types: vec!["*".into()],
        channel: Some(proto::subscription::Channel::Webhook(proto::WebhookChannel {
            url: "https://hooks.company.com/".into(),
            ..Default::default()
        })),
        ..Default::default()
    };
    add(
        "SubscriptionService/CreateSubscription",
        proto::CreateSubscriptionRequest {
            subscription: Some(subscription.clone()),
            ..Default::default()
        }
        .encode_to_vec(),
    );
    add(
        "SubscriptionService/UpdateSubscription",
        proto::UpdateSubscriptionRequest { subscription: Some(subscription), ..Default::default() }
            .encode_to_vec(),
    );
    add(
        "SubscriptionService/ListSubscriptions",
        proto::ListSubscriptionsRequest { tenant_id: tenant(), ..Default::default() }
            .encode_to_vec(),
    );
    // These have the tenant and the subscription as their first two fields.
    let of_subscription =
        proto::GetSubscriptionRequest { tenant_id: tenant(), subscription_id: sub() }
            .encode_to_vec();
    for name in [
        "GetSubscription",
        "DeleteSubscription",
        "PauseSubscription",
        "ResumeSubscription",
        "RotateSecret",
        "TestSubscription",
        "PreviewEmail",
        "GetSubscriptionStats",
    ] {
        add(&format!("SubscriptionService/{name}"), of_subscription.clone());
    }
    let suppression = proto::Suppression {
        tenant_id: tenant(),
        address: "a@company.com".into(),
        ..Default::default()
    };
    add(
        "SuppressionService/CreateSuppression",
        proto::CreateSuppressionRequest { suppression: Some(suppression) }.encode_to_vec(),
    );
    add(
        "SuppressionService/ListSuppressions",
        proto::ListSuppressionsRequest { tenant_id: tenant(), ..Default::default() }
            .encode_to_vec(),
    );
    add(
        "SuppressionService/DeleteSuppression",
        proto::DeleteSuppressionRequest {
            tenant_id: tenant(),
            address: "a@company.com".into(),
            ..Default::default()
        }
        .encode_to_vec(),
    );
    let feedback = proto::Feedback {
        kind: proto::FeedbackKind::Bounce.into(),
        delivery_id: dlv(),
        ..Default::default()
    };
    add(
        "SuppressionService/ReportFeedback",
        proto::ReportFeedbackRequest {
            tenant_id: tenant(),
            report: Some(proto::report_feedback_request::Report::Feedback(feedback)),
        }
        .encode_to_vec(),
    );
    let of_delivery =
        proto::GetDeliveryRequest { tenant_id: tenant(), delivery_id: dlv() }.encode_to_vec();
    for name in ["GetDelivery", "ListAttempts", "RetryDelivery", "CancelDelivery"] {
        add(&format!("DeliveryService/{name}"), of_delivery.clone());
    }
    add(
        "DeliveryService/ListDeliveries",
        proto::ListDeliveriesRequest { tenant_id: tenant(), ..Default::default() }.encode_to_vec(),
    );
    add(
        "DeliveryService/WatchDeliveries",
        proto::WatchDeliveriesRequest { tenant_id: tenant(), ..Default::default() }.encode_to_vec(),
    );
    let event_type =
        proto::EventType { tenant_id: tenant(), name: "user.created".into(), ..Default::default() };
    add(
        "CatalogService/CreateEventType",
        proto::CreateEventTypeRequest { event_type: Some(event_type.clone()) }.encode_to_vec(),
    );
    add(
        "CatalogService/UpdateEventType",
        proto::UpdateEventTypeRequest { event_type: Some(event_type), ..Default::default() }
            .encode_to_vec(),
    );
    add(
        "CatalogService/GetEventType",
        proto::GetEventTypeRequest { tenant_id: tenant(), name: "user.created".into() }
            .encode_to_vec(),
    );
    add(
        "CatalogService/DeleteEventType",
        proto::DeleteEventTypeRequest {
            tenant_id: tenant(),
            name: "user.created".into(),
            ..Default::default()
        }
        .encode_to_vec(),
    );
    add(
        "CatalogService/ListEventTypes",
        proto::ListEventTypesRequest { tenant_id: tenant(), ..Default::default() }.encode_to_vec(),
    );
    add(
        "TenantService/GetTenant",
        proto::GetTenantRequest { tenant_id: tenant_id.into() }.encode_to_vec(),
    );
    requests
}

struct Ids {
    subscription: String,
    delivery: String,
    event: String,
}

/// Methods that no key of a tenant may call, that answer for items, or that are yet to come.
const NOT_ASKED: [&str; 11] = [
    "TenantService/CreateTenant",
    "TenantService/ListTenants",
    "TenantService/UpdateTenant",
    "TenantService/DeleteTenant",
    "TenantService/CreateApiKey",
    "TenantService/ListApiKeys",
    "TenantService/RevokeApiKey",
    "EventService/EmitStream",
    "EventService/PollEvents",
    "SubscriptionService/CheckSubscription",
    "CatalogService/ImportCatalog",
];

on_both! {
    async fn another_tenants_ids_are_not_found_whether_or_not_they_exist(database: Database) {
        let app = App::start(database).await;
        let receiver = Receiver::answering(200).await;
        let victim = app.operator.create_tenant("Victim").await;
        let (subscription, _) = app.operator.subscribe(&victim.id, &["*"], &receiver.url()).await;
        let emitted = app.operator.emit(&victim.id, "user.created", "{}").await;
        let delivery = app.operator.deliveries_of(&victim.id, &emitted.event_id).await.remove(0);
        let real = Ids { subscription: subscription.id.clone(), delivery: delivery.id, event: emitted.event_id };
        let nowhere = "00000000000000000000000000";
        let unreal = Ids {
            subscription: format!("sub_{nowhere}"),
            delivery: format!("dlv_{nowhere}"),
            event: format!("evt_{nowhere}"),
        };
        let attacker = app.operator.create_tenant("Attacker").await;
        let key = key_without(&app, &attacker.id, "").await;
        let channel = &app.operator.channel;

        // The other tenant's name, whether or not it exists.
        let mut asked = BTreeSet::new();
        for tenant_id in [victim.id.clone(), format!("ten_{nowhere}")] {
            for (method, message) in foreign_requests(&tenant_id, &real) {
                let refused = call(channel, &method, Some(&key), message).await;
                let refused = refused.expect_err(&method);
                assert_eq!(explain(&refused), (Code::NotFound, "TENANT_NOT_FOUND".into(), vec![]), "{method}");
                asked.insert(method);
            }
        }
        asked.extend(NOT_ASKED.iter().map(|method| format!("/tidings.v1.{method}")));
        assert_eq!(asked, methods(), "every method was asked");

        // The own name with the other's ids: the same answer as for ids of nobody.
        for method in ["GetEvent", "GetSubscription", "DeleteSubscription", "PauseSubscription", "ResumeSubscription",
            "RotateSecret", "TestSubscription", "PreviewEmail", "GetSubscriptionStats", "GetDelivery", "ListAttempts", "RetryDelivery",
            "CancelDelivery", "UpdateSubscription"] {
            let answer = async |ids: &Ids| {
                let requests = foreign_requests(&attacker.id, ids);
                let (path, message) = requests.into_iter().find(|(path, _)| path.ends_with(&format!("/{method}"))).expect("known");
                let refused = call(channel, &path, Some(&key), message).await.expect_err(method);
                (refused.code(), refused.message().to_owned(), explain(&refused).1)
            };
            let (of_real, of_unreal) = (answer(&real).await, answer(&unreal).await);
            assert_eq!(of_real.0, Code::NotFound, "{method}");
            assert_eq!(of_real, of_unreal, "{method} tells whether an id exists");
        }
        let batch = call(channel, "/tidings.v1.EventService/EmitStream", Some(&key), proto::EmitStreamRequest {
            sequence: 1,
            request: Some(emit_request(&victim.id, "user.created", "{}")),
        }.encode_to_vec()).await.expect("answered");
        let answer = proto::EmitStreamResponse::decode(batch.as_slice()).expect("an answer");
        let Some(proto::emit_result::Result::Error(error)) = answer.result.and_then(|result| result.result) else {
            panic!("a foreign event was accepted");
        };
        assert_eq!(error.reason, "TENANT_NOT_FOUND");

        let untouched = app.operator.subscriptions().get_subscription(proto::GetSubscriptionRequest {
            tenant_id: victim.id, subscription_id: subscription.id,
        }).await.expect("read").into_inner().subscription.expect("there");
        assert_eq!(untouched.etag, subscription.etag);
        app.stop().await;
    }
}

on_both! {
    async fn revoked_and_expired_keys_stop_working(database: Database) {
        let app = App::start(database).await;
        let tenant = app.operator.create_tenant("Acme").await;
        let create = |expire_time| proto::CreateApiKeyRequest {
            api_key: Some(proto::ApiKey {
                tenant_id: tenant.id.clone(),
                display_name: "short".into(),
                scopes: vec!["events:emit".into()],
                expire_time,
                ..Default::default()
            }),
        };
        let created = app.operator.tenants().create_api_key(create(None)).await.expect("created").into_inner();
        let api_key = created.api_key.expect("a key");
        assert!(created.secret.starts_with(&api_key.prefix) && api_key.prefix.len() < created.secret.len() / 2);
        let client = crate::support::Client::on(app.operator.channel.clone(), &created.secret);
        client.emit("", "user.created", "{}").await;
        let revoke = proto::RevokeApiKeyRequest { tenant_id: tenant.id.clone(), api_key_id: api_key.id };
        app.operator.tenants().revoke_api_key(revoke).await.expect("revoked");
        let mut refused = None;
        for _ in 0..60 {
            refused = client.events().emit(emit_request("", "user.created", "{}")).await.err();
            if refused.is_some() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        let refused = refused.expect("revoked within six seconds");
        assert_eq!(explain(&refused), (Code::Unauthenticated, "API_KEY_INVALID".into(), vec![]));

        let soon = std::time::SystemTime::now() + std::time::Duration::from_millis(800);
        let created = app.operator.tenants().create_api_key(create(Some(soon.into()))).await.expect("created").into_inner();
        let client = crate::support::Client::on(app.operator.channel.clone(), &created.secret);
        client.emit("", "user.created", "{}").await;
        tokio::time::sleep(std::time::Duration::from_millis(900)).await;
        let expired = client.events().emit(emit_request("", "user.created", "{}")).await.expect_err("expired");
        assert_eq!(explain(&expired).1, "API_KEY_INVALID");
        app.stop().await;
    }
}
