//! Where an attempt's time went, told by a clock that moves on whenever it is asked; and which
//! connections are given no more requests.

use std::sync::atomic::{AtomicI64, Ordering};

use http_body_util::{BodyExt as _, Full};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio_rustls::TlsAcceptor;

use super::tls::{Authority, https, params, start};
use super::*;
use crate::domain::attempt::Timings;

const TICK: Duration = Duration::from_millis(1);

/// A clock that is one tick later each time.
#[derive(Default)]
struct Ticking(AtomicI64);

impl Clock for Ticking {
    fn now(&self) -> Timestamp {
        let ticks = self.0.fetch_add(1, Ordering::SeqCst);
        Timestamp::from_micros(ticks * i64::try_from(TICK.as_micros()).expect("small"))
    }
}

fn ticking(config: &Config, answers: &[(&str, &[&str])]) -> Client {
    client_at(config, answers, Arc::<Ticking>::default())
}

async fn timings(client: &Client, url: &str) -> (Option<ErrorKind>, Option<Timings>) {
    let settings = WebhookChannel { timeout: SHORT * 4, ..settings(url) };
    let report = client.attempt(&task(url), &settings).await;
    (kind(&report), report.timings)
}

#[tokio::test]
async fn each_phase_has_its_time_and_a_reused_connection_only_the_last() {
    let endpoint = Endpoint::answering(OK).await;
    let client = ticking(&loopback(), &[("a.company.com", &["127.0.0.1"])]);
    let tick = Some(TICK);
    for host in ["a.company.com", "127.0.0.1"] {
        let url = format!("http://{host}:{}/", endpoint.address.port());
        let dns = tick.filter(|_| host != "127.0.0.1");
        let new = Timings { dns, connect: tick, first_byte: tick, ..Timings::default() };
        assert_eq!(timings(&client, &url).await, (None, Some(new)), "{host}");
        let reused = Timings { first_byte: tick, connection_reused: true, ..Timings::default() };
        assert_eq!(timings(&client, &url).await, (None, Some(reused)), "{host}");
    }
    let authority = Authority::new();
    for alpn in [b"h2".as_slice(), b"http/1.1"] {
        let endpoint = start(authority.server(&params("127.0.0.1"), &[alpn]), 0).await;
        let client = ticking(&authority.config(), &[]);
        let new = Timings { connect: tick, tls: tick, first_byte: tick, ..Timings::default() };
        assert_eq!(timings(&client, &https(&endpoint)).await, (None, Some(new)));
        let (_, again) = timings(&client, &https(&endpoint)).await;
        assert!(again.expect("timings").connection_reused);
    }
}

#[tokio::test]
async fn the_last_phase_is_where_an_attempt_ended() {
    let hanging = Endpoint::start(|mut stream| async move {
        while read_request(&mut stream).await.is_some() {}
        Vec::new()
    })
    .await;
    let silent = Endpoint::start(|mut stream| async move {
        let mut hello = Vec::new();
        tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut hello).await.ok();
        hello
    })
    .await;
    let names: [(&str, &[&str]); 2] =
        [("private.company.com", &["10.0.0.1"]), ("none.company.com", &[])];
    let client = ticking(&loopback(), &names);
    let tick = Some(TICK);
    let dns = Timings { dns: tick, ..Timings::default() };
    let connect = Timings { connect: tick, ..Timings::default() };
    for (url, kind, expected) in [
        ("ftp://a.co/".to_owned(), ErrorKind::UrlRefused, None),
        ("https://10.0.0.1/".to_owned(), ErrorKind::AddressRefused, Some(Timings::default())),
        ("https://private.company.com/".to_owned(), ErrorKind::AddressRefused, Some(dns)),
        ("https://none.company.com/".to_owned(), ErrorKind::Dns, Some(dns)),
        ("https://127.0.0.9:1025/".to_owned(), ErrorKind::Connect, Some(connect)),
        (https(&silent), ErrorKind::Timeout, Some(Timings { tls: tick, ..connect })),
        (hanging.url(), ErrorKind::Timeout, Some(Timings { first_byte: tick, ..connect })),
    ] {
        assert_eq!(timings(&client, &url).await, (Some(kind), expected), "{url}");
    }
}

/// An endpoint of HTTP/2 that answers a first request on each connection, but no other.
async fn answering_once_over_http_2(authority: &Authority) -> Endpoint {
    let acceptor = TlsAcceptor::from(Arc::new(authority.server(&params("127.0.0.1"), &[b"h2"])));
    Endpoint::start(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let stream = acceptor.accept(stream).await.expect("TLS");
            let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
            let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let number = asked.fetch_add(1, Ordering::SeqCst);
                async move {
                    request.into_body().collect().await?;
                    if number > 0 {
                        std::future::pending::<()>().await;
                    }
                    Ok::<_, hyper::Error>(http::Response::new(Full::new(Bytes::new())))
                }
            });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            server.serve_connection(TokioIo::new(stream), service).await.ok();
            Vec::new()
        }
    })
    .await
}

#[tokio::test]
async fn a_connection_of_http_2_that_hangs_is_not_used_again() {
    let authority = Authority::new();
    let endpoint = answering_once_over_http_2(&authority).await;
    let client = client(&authority.config());
    let url = https(&endpoint);
    let brief = WebhookChannel { timeout: SHORT, ..settings(&url) };
    for (settings, expected, connections) in [
        (&brief, None, 1),
        (&brief, Some(ErrorKind::Timeout), 1),
        (&brief, None, 2),
        (&brief, Some(ErrorKind::Timeout), 2),
    ] {
        let report = client.attempt(&task(&url), settings).await;
        assert_eq!((kind(&report), endpoint.connections()), (expected, connections));
    }
}
