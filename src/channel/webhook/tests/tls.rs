//! TLS: whose certificates are believed, and what is said of the others. HTTP/2.

use std::io::Write as _;
use std::sync::Arc;

use http::Response;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio_rustls::TlsAcceptor;

use super::endpoint::Endpoint;
use super::*;

/// An authority of the tests, and its certificate in a file.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    file: tempfile::NamedTempFile,
}

impl Authority {
    pub(super) fn new() -> Self {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::new(Vec::new()).expect("params");
        params.distinguished_name.push(rcgen::DnType::CommonName, "Tidings test authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("certificate");
        let mut file = tempfile::NamedTempFile::new().expect("file");
        file.write_all(certificate.pem().as_bytes()).expect("written");
        Self { issuer: Issuer::new(params, key), file }
    }

    pub(super) fn config(&self) -> Config {
        Config { ca_file: Some(self.file.path().to_owned()), ..loopback() }
    }

    /// A server's configuration with a certificate for `params`.
    pub(super) fn server(&self, params: &CertificateParams, alpn: &[&[u8]]) -> ServerConfig {
        let key = KeyPair::generate().expect("key");
        let certificate = params.signed_by(&key, &self.issuer).expect("certificate");
        server(certificate.der().clone(), &key, alpn)
    }
}

fn server(
    certificate: rustls::pki_types::CertificateDer<'static>,
    key: &KeyPair,
    alpn: &[&[u8]],
) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = PrivateKeyDer::try_from(key.serialize_der()).expect("key");
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("server");
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config
}

pub(super) fn params(name: &str) -> CertificateParams {
    CertificateParams::new(vec![name.to_owned()]).expect("params")
}

/// An endpoint that answers `headers` more or less, in the protocol that ALPN chooses.
pub(super) async fn start(config: ServerConfig, headers: usize) -> Endpoint {
    let acceptor = TlsAcceptor::from(Arc::new(config));
    Endpoint::start(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(stream) = acceptor.accept(stream).await else {
                return Vec::new();
            };
            let service = service_fn(move |request: http::Request<Incoming>| async move {
                let version = format!("{:?}", request.version());
                request.into_body().collect().await?;
                let mut builder = Response::builder();
                for number in 0..headers {
                    builder = builder.header(format!("x-{number}"), "v");
                }
                Ok::<_, hyper::Error>(
                    builder.body(Full::new(Bytes::from(version))).expect("answer"),
                )
            });
            auto::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await
                .ok();
            Vec::new()
        }
    })
    .await
}

pub(super) fn https(endpoint: &Endpoint) -> String {
    format!("https://127.0.0.1:{}/", endpoint.address.port())
}

async fn refusal(config: &Config, server: ServerConfig) -> String {
    let endpoint = start(server, 0).await;
    let report =
        client(config).attempt(&task(&https(&endpoint)), &settings(&https(&endpoint))).await;
    assert_eq!((kind(&report), report.outcome.clone()), (Some(ErrorKind::Tls), RETRY));
    report.failure.expect("failed").message
}

#[tokio::test]
async fn http_2_and_http_1_are_negotiated_and_connections_shared() {
    let authority = Authority::new();
    for (alpn, version) in [
        (vec![b"h2".as_slice(), b"http/1.1"], "HTTP/2.0"),
        (vec![b"http/1.1".as_slice()], "HTTP/1.1"),
        (vec![], "HTTP/1.1"),
    ] {
        let endpoint = start(authority.server(&params("127.0.0.1"), &alpn), 3).await;
        let client = client(&Config { allow_http: false, ..authority.config() });
        for _ in 0..3 {
            let report =
                client.attempt(&task(&https(&endpoint)), &settings(&https(&endpoint))).await;
            assert_eq!(report.outcome, Outcome::Delivered, "{report:?}");
            assert_eq!(report.response_body, version.as_bytes());
        }
        assert_eq!(endpoint.connections(), 1);
    }
}

#[tokio::test]
async fn http_2_has_the_same_limit_of_headers() {
    let authority = Authority::new();
    // The server adds content-length and date.
    for (headers, expected) in [(98, None), (99, Some(ErrorKind::ResponseTooLarge))] {
        let endpoint = start(authority.server(&params("127.0.0.1"), &[b"h2"]), headers).await;
        let report = client(&authority.config())
            .attempt(&task(&https(&endpoint)), &settings(&https(&endpoint)))
            .await;
        assert_eq!(kind(&report), expected, "{headers}");
    }
}

#[tokio::test]
async fn bad_certificates_are_refused_with_a_reason() {
    let authority = Authority::new();
    let good = authority.server(&params("127.0.0.1"), &[]);
    assert!(refusal(&loopback(), good).await.contains("authority"), "not trusted by default");

    let key = KeyPair::generate().expect("key");
    let own = params("127.0.0.1").self_signed(&key).expect("certificate");
    let own = server(own.der().clone(), &key, &[]);
    let message = refusal(&authority.config(), own).await;
    assert!(message.contains("self-signed"), "{message}");

    let other = authority.server(&params("hooks.company.com"), &[]);
    assert!(refusal(&authority.config(), other).await.contains("another host name"));

    let mut old = params("127.0.0.1");
    old.not_before = date_time_ymd(2020, 1, 1);
    old.not_after = date_time_ymd(2020, 2, 1);
    let old = authority.server(&old, &[]);
    assert!(refusal(&authority.config(), old).await.contains("expired"));
}

#[tokio::test]
async fn what_is_no_tls_is_a_tls_error() {
    let endpoint = Endpoint::start(|mut stream| async move {
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"SSH-2.0-OpenSSH_9.9\r\n").await.ok();
        Vec::new()
    })
    .await;
    let report =
        client(&loopback()).attempt(&task(&https(&endpoint)), &settings(&https(&endpoint))).await;
    assert_eq!(kind(&report), Some(ErrorKind::Tls), "{report:?}");
}

#[tokio::test]
async fn a_handshake_that_hangs_ends_with_the_deadline() {
    let mut endpoint = Endpoint::start(|mut stream| async move {
        let mut hello = Vec::new();
        tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut hello).await.ok();
        hello
    })
    .await;
    let url = https(&endpoint);
    let settings = WebhookChannel { timeout: SHORT, ..settings(&url) };
    let report = client(&loopback()).attempt(&task(&url), &settings).await;
    assert_eq!(kind(&report), Some(ErrorKind::Timeout));
    assert_eq!(
        report.failure.expect("failed").message,
        "The endpoint did not complete the TLS handshake within 0.25 s."
    );
    assert!(!endpoint.ended().await.is_empty(), "the connection is closed");
}

#[test]
fn a_bad_ca_file_is_told() {
    let build = |path: &std::path::Path| {
        let config = Config { ca_file: Some(path.to_owned()), ..Config::default() };
        let metrics = Metrics::new(&mut Registry::default());
        Client::new(&config, Arc::new(Frozen), metrics).expect_err("refused").to_string()
    };
    assert!(build("/nowhere/ca.pem".as_ref()).contains("cannot be read"));
    let mut file = tempfile::NamedTempFile::new().expect("file");
    assert!(build(file.path()).contains("no certificate"));
    file.write_all(b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n")
        .expect("written");
    assert!(build(file.path()).contains("not a PEM file"));
}
