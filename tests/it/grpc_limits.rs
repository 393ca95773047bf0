//! What a client may take of the gRPC side: every limit is met from outside, and holds.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use prost::Message;
use tidings::api::proto;
use tidings::config::{Config, Options};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::support::app::{emit_request, explain, options};
use crate::support::proxy::Proxy;
use crate::support::{App, Client, Database};

/// Long enough for everything on a busy machine; nothing here is expected to take it.
const PATIENCE: Duration = Duration::from_secs(30);
/// HTTP/2's client connection preface and an empty SETTINGS frame.
const GREETING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;

fn configured(database: &Database, change: impl FnOnce(&mut Config)) -> Config {
    let mut config = options(database).config();
    change(&mut config);
    config
}

/// A key of the tenant with every scope that a tenant's key can have for events and deliveries.
async fn tenant_key(app: &App, tenant_id: &str) -> (Client, proto::ApiKey) {
    let api_key = proto::ApiKey {
        tenant_id: tenant_id.into(),
        display_name: "test".into(),
        scopes: vec!["events:emit".into(), "deliveries:read".into()],
        ..Default::default()
    };
    let request = proto::CreateApiKeyRequest { api_key: Some(api_key) };
    let created = app.operator.tenants().create_api_key(request).await.expect("created");
    let created = created.into_inner();
    let client = Client::on(app.operator.channel.clone(), &created.secret);
    (client, created.api_key.expect("a key"))
}

/// One call by hand. `compressed` is the flag before the message.
async fn call_by_hand(
    app: &App,
    message: &[u8],
    compressed: bool,
    headers: &[(&str, &str)],
) -> http::Response<Bytes> {
    let length = u32::try_from(message.len()).expect("small").to_be_bytes();
    let frame = [&[u8::from(compressed)][..], &length, message].concat();
    let stream = TcpStream::connect(app.running.grpc_addr()).await.expect("connected");
    let (mut sender, connection) = hyper::client::conn::http2::handshake(
        hyper_util::rt::TokioExecutor::new(),
        hyper_util::rt::TokioIo::new(stream),
    )
    .await
    .expect("HTTP/2");
    let connection = tokio::spawn(connection);
    let mut request =
        hyper::Request::post(format!("{}/tidings.v1.EventService/Emit", app.endpoint()))
            .header("content-type", "application/grpc")
            .header("authorization", format!("Bearer {}", app.operator_key));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(Bytes::from(frame))).expect("a request");
    let (parts, body) = sender.send_request(request).await.expect("answered").into_parts();
    let body = body.collect().await.expect("a body").to_bytes();
    connection.abort();
    http::Response::from_parts(parts, body)
}

/// The next frame that the server sends: its type and payload; `None` at the end.
async fn next_frame(stream: &mut TcpStream) -> Option<(u8, Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.ok()?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; usize::try_from(length).expect("small")];
    stream.read_exact(&mut payload).await.ok()?;
    Some((head[3], payload))
}

/// Waits until the server has hung up.
async fn hung_up(mut stream: TcpStream) {
    let mut sink = Vec::new();
    // A reset is an end too.
    let read = timeout(PATIENCE, stream.read_to_end(&mut sink)).await;
    let _ = read.expect("the server hangs up");
}

on_both! {
    async fn a_key_may_call_as_often_as_its_rate(database: Database) {
        let limited = Options { key_rate_limit: 20, ..options(&database) };
        let app = App::start_with(database, &limited).await;
        let tenant = app.operator.create_tenant("Acme").await;
        let (client, _) = tenant_key(&app, &tenant.id).await;
        let (other, _) = tenant_key(&app, &tenant.id).await;

        let mut refused = None;
        for _ in 0..1_000 {
            let result = client.events().emit(emit_request("", "user.created", "{}")).await;
            refused = result.err();
            if refused.is_some() {
                break;
            }
        }
        let refused = refused.expect("a thousand calls in a second or two are too many");
        assert_eq!(explain(&refused), (Code::ResourceExhausted, "RATE_LIMITED".into(), vec![]));
        let details = refused.get_error_details();
        let wait = details.retry_info().and_then(|info| info.retry_delay).expect("RetryInfo");
        assert!(wait > Duration::ZERO && wait <= Duration::from_millis(100), "{wait:?}");

        other.emit("", "user.created", "{}").await;
        tokio::time::sleep(wait).await;
        client.emit("", "user.created", "{}").await;

        // A batch costs as much as its events, and is paid off afterwards.
        let batch = proto::EmitBatchRequest {
            requests: vec![emit_request("", "user.created", "{}"); 200],
            ..Default::default()
        };
        let results = other.events().emit_batch(batch).await.expect("let in").into_inner().results;
        assert_eq!(results.len(), 200);
        let refused = other.events().emit(emit_request("", "user.created", "{}")).await;
        let details = refused.expect_err("owes ten seconds").get_error_details();
        let wait = details.retry_info().and_then(|info| info.retry_delay).expect("RetryInfo");
        assert!(wait > Duration::from_secs(5), "{wait:?}");
        app.stop().await;
    }
}

on_both! {
    async fn a_stream_is_slowed_down_and_not_refused(database: Database) {
        const ITEMS: usize = 60;
        let limited = Options { key_rate_limit: 30, ..options(&database) };
        let app = App::start_with(database, &limited).await;
        let tenant = app.operator.create_tenant("Acme").await;
        let (client, _) = tenant_key(&app, &tenant.id).await;
        let items = (0..ITEMS).map(|sequence| proto::EmitStreamRequest {
            sequence: i64::try_from(sequence).expect("small"),
            request: Some(emit_request("", "user.created", "{}")),
        });
        let started = Instant::now();
        let stream = client.events().emit_stream(tokio_stream::iter(items)).await.expect("open");
        let mut stream = stream.into_inner();
        let mut acknowledged = 0;
        while let Some(answer) = stream.message().await.expect("goes on") {
            let result = answer.result.and_then(|result| result.result);
            let accepted = matches!(result, Some(proto::emit_result::Result::Response(_)));
            assert!(accepted, "{result:?}");
            acknowledged += 1;
        }
        assert_eq!(acknowledged, ITEMS);
        // A second's worth at once, the others at the rate: at least the other second.
        assert!(started.elapsed() > Duration::from_millis(800), "{:?}", started.elapsed());
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_beyond_the_limit_wait_for_a_place() {
    let database = Database::sqlite().await;
    let config = configured(&database, |config| config.api.max_connections = 2);
    let app = App::start_configured(database, config).await;
    let second = Client::connect(&app.endpoint(), &app.operator_key).await;
    second.create_tenant("Second").await;

    let endpoint = Endpoint::from_shared(app.endpoint()).expect("a URL");
    let third = Client::on(endpoint.connect_lazy(), &app.operator_key);
    let waiting = tokio::spawn(async move { third.create_tenant("Third").await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!waiting.is_finished(), "the third connection is served beyond the limit");
    drop(second);
    timeout(PATIENCE, waiting).await.expect("a place is free").expect("created");
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_connects_has_to_speak() {
    let database = Database::sqlite().await;
    let config = configured(&database, |config| {
        config.api.greeting_timeout = Duration::from_millis(200);
    });
    let app = App::start_configured(database, config).await;
    for beginning in [&b""[..], b"P", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r"] {
        let mut stream = TcpStream::connect(app.running.grpc_addr()).await.expect("connected");
        stream.write_all(beginning).await.expect("sent");
        hung_up(stream).await;
    }
    // Who has spoken may be silent.
    tokio::time::sleep(Duration::from_millis(400)).await;
    app.operator.create_tenant("Acme").await;
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_is_gone_is_found_out() {
    let database = Database::sqlite().await;
    let config = configured(&database, |config| {
        config.api.keepalive_interval = Duration::from_millis(100);
        config.api.keepalive_timeout = Duration::from_millis(100);
    });
    let app = App::start_configured(database, config).await;
    let mut stream = TcpStream::connect(app.running.grpc_addr()).await.expect("connected");
    // It greets, and never answers a ping.
    stream.write_all(GREETING).await.expect("sent");
    hung_up(stream).await;
    // One that answers stays.
    tokio::time::sleep(Duration::from_millis(500)).await;
    app.operator.create_tenant("Acme").await;
    app.stop().await;
}

/// Whether the client says that its connection ended before it had sent the call.
fn was_not_sent(status: &tonic::Status) -> bool {
    let said = format!("{status:?}");
    said.contains("GoAway(b\"\", NO_ERROR") || said.contains("Canceled, \"connection closed\"")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_connection_is_asked_to_reconnect_and_no_call_fails() {
    let database = Database::sqlite().await;
    let config = configured(&database, |config| {
        config.api.max_connection_age = Duration::from_millis(300);
    });
    let app = App::start_configured(database, config).await;
    let tenant = app.operator.create_tenant("Acme").await;
    let mut stream = TcpStream::connect(app.running.grpc_addr()).await.expect("connected");
    stream.write_all(GREETING).await.expect("sent");
    let asked = timeout(PATIENCE, async {
        while let Some((kind, _)) = next_frame(&mut stream).await {
            if kind == GOAWAY {
                return true;
            }
        }
        false
    });
    // The client's calls go on over all of the time in which its connection grows too old.
    let calls = async {
        for number in 0..20 {
            let mut request = emit_request(&tenant.id, "user.created", "{}");
            request.idempotency_key = number.to_string();
            let answer = app.operator.events().emit(request.clone()).await;
            let answer = match answer {
                // This client does not see GOAWAY between two of its own steps, and does not repeat what it
                // has not sent, as others do: https://github.com/grpc/grpc-rust/issues/2185
                Err(status) if was_not_sent(&status) => app.operator.events().emit(request).await,
                answer => answer,
            };
            assert!(!answer.expect("accepted").into_inner().duplicate, "it had not been sent");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let (asked, ()) = tokio::join!(asked, calls);
    assert!(asked.expect("in time"), "the connection ended without GOAWAY");
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_has_so_many_streams_and_no_more() {
    const STREAMS: u32 = 3;
    const MAX_CONCURRENT_STREAMS: [u8; 2] = [0, 3];
    let database = Database::sqlite().await;
    let limited = Options { max_streams_per_connection: STREAMS, ..options(&database) };
    let app = App::start_with(database, &limited).await;
    let mut stream = TcpStream::connect(app.running.grpc_addr()).await.expect("connected");
    stream.write_all(GREETING).await.expect("sent");
    let (kind, settings) = next_frame(&mut stream).await.expect("SETTINGS");
    assert_eq!(kind, SETTINGS);
    let told = settings.chunks(6).find(|setting| setting[..2] == MAX_CONCURRENT_STREAMS);
    assert_eq!(told.expect("told")[2..], STREAMS.to_be_bytes());

    let tenant = app.operator.create_tenant("Acme").await;
    let request =
        proto::WatchDeliveriesRequest { tenant_id: tenant.id.clone(), ..Default::default() };
    let mut watches = Vec::new();
    for _ in 0..STREAMS {
        let watch = app.operator.deliveries().watch_deliveries(request.clone()).await;
        watches.push(watch.expect("open").into_inner());
    }
    let client = app.operator.clone();
    let one_more = tokio::spawn(async move { client.create_tenant("Late").await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!one_more.is_finished(), "one stream too many was served");
    watches.pop();
    timeout(PATIENCE, one_more).await.expect("a stream is free").expect("created");
    drop(watches);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn oversized_metadata_and_compressed_messages_are_refused() {
    let database = Database::sqlite().await;
    let app = App::start(database).await;
    let tenant = app.operator.create_tenant("Acme").await;
    let message = emit_request(&tenant.id, "user.created", "{}").encode_to_vec();

    let large = "x".repeat(20 * 1024);
    let refused = call_by_hand(&app, &message, false, &[("x-large", &large)]).await;
    assert_eq!(refused.status(), 431, "RFC 6585: the header fields are too large");

    // 4 KiB that would be 4 MiB, if anybody decompressed them.
    let bomb = {
        let mut bytes = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
        bytes.resize(4 * 1024, 0);
        bytes
    };
    let refused = call_by_hand(&app, &bomb, true, &[("grpc-encoding", "gzip")]).await;
    let status = Status::from_header_map(refused.headers()).expect("a status");
    let reason = "COMPRESSION_UNSUPPORTED".to_owned();
    assert_eq!(explain(&status), (Code::Unimplemented, reason, vec![]));

    app.operator.emit(&tenant.id, "user.created", "{}").await;
    app.stop().await;
}

on_both! {
    /// The key is revoked behind the replica's back, as another replica would do it.
    async fn an_open_stream_ends_when_its_key_is_revoked(database: Database) {
        let store = database.open().await;
        let app = App::start(database).await;
        let tenant = app.operator.create_tenant("Acme").await;
        let (client, api_key) = tenant_key(&app, &tenant.id).await;
        let request = proto::WatchDeliveriesRequest::default();
        let watch = client.deliveries().watch_deliveries(request).await.expect("open");
        let mut watch = watch.into_inner();
        let (items, receiver) = tokio::sync::mpsc::channel(1);
        let receiver = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let emits = client.events().emit_stream(receiver).await.expect("open");
        let mut emits = emits.into_inner();

        let tenant_id = tidings::domain::id::TenantId::parse(&tenant.id).expect("an id");
        let key_id = tidings::domain::id::KeyId::parse(&api_key.id).expect("an id");
        let now = store.now().await.expect("now");
        store.revoke_key(Some(tenant_id), key_id, now).await.expect("revoked");
        let revoked = Instant::now();
        let ended = timeout(PATIENCE, async {
            loop {
                if let Err(status) = watch.message().await {
                    return status;
                }
            }
        });
        let (watch_end, emit_end) = tokio::join!(ended, timeout(PATIENCE, emits.message()));
        let elapsed = revoked.elapsed();
        let watch_end = watch_end.expect("the watch ends");
        let emit_end = emit_end.expect("the stream ends").expect_err("with an error");
        for status in [watch_end, emit_end] {
            assert_eq!(explain(&status), (Code::Unauthenticated, "API_KEY_INVALID".into(), vec![]));
        }
        // Five seconds are promised; the rest is for a busy machine.
        assert!(elapsed < Duration::from_secs(8), "{elapsed:?}");
        drop(items);
        store.close().await;
        app.stop().await;
    }
}

/// A table that somebody has locked holds up every call that needs it, but none beyond its deadline.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_ends_a_call_that_the_database_holds_up() {
    use sea_orm::{ConnectionTrait, TransactionTrait};
    let database = Database::postgres().await;
    let url = database.config.database_url.clone();
    let app = App::start(database).await;
    let tenant = app.operator.create_tenant("Acme").await;
    let connection = sea_orm::Database::connect(&url).await.expect("connected");
    let locked = connection.begin().await.expect("begun");
    locked.execute_unprepared("LOCK TABLE events IN ACCESS EXCLUSIVE MODE").await.expect("locked");

    let message = emit_request(&tenant.id, "user.created", "{}").encode_to_vec();
    let started = Instant::now();
    let calls = (0..50).map(|_| app.raw_emit(&message, &[("grpc-timeout", "300m")]));
    for status in futures::future::join_all(calls).await {
        assert_eq!(explain(&status).0, Code::DeadlineExceeded);
    }
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    locked.rollback().await.expect("unlocked");
    app.operator.emit(&tenant.id, "user.created", "{}").await;
    app.stop().await;
}

/// What goes wrong inside is no business of a caller.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_tells_nothing_of_the_inside() {
    let mut database = Database::postgres().await;
    let proxy = Proxy::before(&mut database).await;
    let opened = options(&database);
    let app = App::start_with(database, &opened).await;
    let tenant = app.operator.create_tenant("Acme").await;
    proxy.cut();
    let mut statuses = Vec::new();
    for _ in 0..10 {
        let emit = emit_request(&tenant.id, "user.created", "{}");
        statuses.extend(app.operator.events().emit(emit).await.err());
        let list = proto::ListTenantsRequest::default();
        statuses.extend(app.operator.tenants().list_tenants(list).await.err());
    }
    assert!(!statuses.is_empty(), "no call failed while the database was gone");
    let port = proxy.addr.port().to_string();
    let url: url::Url = app.database.config.database_url.parse().expect("a URL");
    let name = url.path().trim_matches('/').to_owned();
    for status in statuses {
        let told = format!("{status:?} {}", String::from_utf8_lossy(status.details()));
        let told = told.to_lowercase();
        let inside = ["postgres", "sqlx", "sea_orm", "select ", "insert ", "127.0.0.1", "src/"];
        for word in inside.into_iter().chain([port.as_str(), name.as_str()]) {
            assert!(!told.contains(word), "{word} in {told}");
        }
    }
    proxy.restore();
    app.stop().await;
}

/// A certificate authority, and certificates that it has signed: (authority, (certificate, key)).
fn certificates(names: &[&str]) -> (String, Vec<(String, String)>) {
    let authority_key = rcgen::KeyPair::generate().expect("a key");
    let mut authority = rcgen::CertificateParams::default();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority_pem = authority.self_signed(&authority_key).expect("signed").pem();
    let issuer = rcgen::Issuer::new(authority, authority_key);
    let signed = names.iter().map(|name| {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec![(*name).to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &issuer).expect("signed");
        (certificate.pem(), key.serialize_pem())
    });
    (authority_pem, signed.collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_speaks_tls_and_asks_for_certificates() {
    let folder = tempfile::tempdir().expect("a folder");
    let (authority, signed) = certificates(&["localhost", "client.example"]);
    let [(server_cert, server_key), (client_cert, client_key)] = &signed[..] else { panic!() };
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        Some(path)
    };
    for with_client_ca in [false, true] {
        let database = Database::sqlite().await;
        let store = database.open().await;
        let key = crate::support::app::operator_key(&store).await;
        store.close().await;
        let options = Options {
            grpc_tls_cert: file("server.pem", server_cert),
            grpc_tls_key: file("server.key", server_key),
            grpc_client_ca: file("ca.pem", &authority).filter(|_| with_client_ca),
            ..options(&database)
        };
        let running = tidings::app::start(options.config()).await.expect("started");
        let addr = running.grpc_addr();
        let trusting = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&authority))
            .domain_name("localhost");
        let connect = |tls: ClientTlsConfig| {
            let endpoint = Endpoint::from_shared(format!("https://{addr}")).expect("a URL");
            let channel = endpoint.tls_config(tls).expect("TLS").connect_lazy();
            Client::on(channel, &key)
        };
        let list = proto::ListTenantsRequest::default();
        let without = connect(trusting.clone()).tenants().list_tenants(list.clone()).await;
        assert_eq!(without.is_ok(), !with_client_ca, "{without:?}");
        let identified = trusting.identity(Identity::from_pem(client_cert, client_key));
        connect(identified).tenants().list_tenants(list.clone()).await.expect("let in");
        let distrusting = ClientTlsConfig::new().with_native_roots().domain_name("localhost");
        assert!(connect(distrusting).tenants().list_tenants(list).await.is_err());
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_cannot_be_used_is_told_at_the_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let garbage = folder.path().join("garbage.pem");
    std::fs::write(&garbage, "garbage").expect("written");
    let missing = folder.path().join("missing.pem");
    for (cert, part) in [(missing, "missing.pem"), (garbage.clone(), "--grpc-tls-cert")] {
        let database = Database::sqlite().await;
        let options = Options {
            grpc_tls_cert: Some(cert),
            grpc_tls_key: Some(garbage.clone()),
            ..options(&database)
        };
        let error = tidings::app::start(options.config()).await.err().expect("refused");
        assert!(error.to_string().contains(part), "{error}");
    }
}
