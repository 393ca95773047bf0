//! The HTTP server: accepts connections and holds each within its limits.
//!
//! A connection that says nothing, says it slowly, or stays for too long is closed. Beyond the most
//! connections, new ones wait in the operating system's queue.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time;
use tokio_util::task::TaskTracker;

use crate::shutdown::Stages;

use super::{Config, Facts, routes};

/// Most bytes of a request's headers.
const MAX_HEADER_BYTES: usize = 16 * 1_024;
/// Most headers of a request.
const MAX_HEADERS: usize = 64;
/// Most requests at once on one HTTP/2 connection.
const MAX_STREAMS: u32 = 16;
/// How long to wait after a failed accept: usually there are too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves the pages until the soft stage of `stages`, then lets connections finish.
pub async fn serve(listener: TcpListener, config: Config, facts: Facts, stages: Stages) {
    let permits = Arc::new(Semaphore::new(config.max_connections));
    let connections = TaskTracker::new();
    let accept = async {
        let mut is_failing = false;
        loop {
            // The semaphore is never closed.
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
                break;
            };
            let stream = match listener.accept().await {
                Ok((stream, _)) => {
                    is_failing = false;
                    stream
                }
                Err(error) => {
                    if !is_failing {
                        tracing::warn!(%error, "an HTTP connection cannot be accepted; trying again");
                    }
                    is_failing = true;
                    time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (config, facts, stages) = (config.clone(), facts.clone(), stages.clone());
            connections.spawn(async move {
                tokio::select! {
                    () = connection(stream, &config, &facts, &stages) => {}
                    () = stages.hard() => {}
                }
                drop(permit);
            });
        }
    };
    tokio::select! {
        () = accept => {}
        () = stages.soft() => {}
    }
    connections.close();
    connections.wait().await;
}

async fn connection(stream: TcpStream, config: &Config, facts: &Facts, stages: &Stages) {
    let was_asked = AtomicBool::new(false);
    let service = service_fn(|request| {
        was_asked.store(true, Ordering::Relaxed);
        let facts = facts.clone();
        async move { Ok::<_, Infallible>(routes::answer(request, &facts).await) }
    });
    let builder = builder(config);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    // What goes wrong on a connection is its client's affair: there is nobody to tell.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = idle(config.header_timeout, &was_asked) => return,
        () = time::sleep(config.connection_age) => {}
        () = stages.soft() => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = time::timeout(config.finish_timeout, connection).await;
}

/// Resolves when no request has come in time; otherwise never.
async fn idle(timeout: Duration, was_asked: &AtomicBool) {
    time::sleep(timeout).await;
    if was_asked.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
}

fn builder(config: &Config) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(config.header_timeout)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEADER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(config.header_timeout)
        .keep_alive_timeout(config.header_timeout)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(MAX_HEADER_BYTES).unwrap_or(u32::MAX));
    builder
}

#[cfg(test)]
mod tests {
    use std::io;

    use prometheus_client::registry::Registry;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::watch;
    use tokio::task::JoinHandle;

    use crate::web::Readiness;

    use super::*;

    async fn start(config: Config) -> (std::net::SocketAddr, Stages, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (_told, readiness) = watch::channel(Readiness::Ready);
        let facts = Facts { metrics: Arc::new(Registry::default()), readiness, mail: None };
        let stages = Stages::new();
        let task = tokio::spawn(serve(listener, config, facts, stages.clone()));
        (address, stages, task)
    }

    async fn read(mut stream: TcpStream) -> io::Result<String> {
        let mut text = String::new();
        stream.read_to_string(&mut text).await.map(|_| text)
    }

    #[tokio::test]
    async fn a_silent_and_a_slow_connection_are_closed() {
        let timeout = Duration::from_millis(50);
        let (address, stages, task) =
            start(Config { header_timeout: timeout, ..Config::default() }).await;
        for said in ["", "P", "PRI * HTTP/2.0\r\n", "GET / HTTP/1.1\r\nx"] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(said.as_bytes()).await.unwrap();
            let answer = read(stream).await.unwrap_or_default();
            assert!(!answer.contains("200 OK"), "{said:?}: {answer}");
        }
        stages.begin_soft();
        task.await.unwrap();
    }

    #[tokio::test]
    async fn a_connection_beyond_the_most_waits() {
        let (address, stages, task) =
            start(Config { max_connections: 1, ..Config::default() }).await;
        let first = TcpStream::connect(address).await.unwrap();
        let mut second = TcpStream::connect(address).await.unwrap();
        second
            .write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut answer = tokio::spawn(read(second));
        let early = time::timeout(Duration::from_millis(50), &mut answer).await;
        assert!(early.is_err(), "it waits while the first is open");
        drop(first);
        let answer = answer.await.unwrap().unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        stages.begin_soft();
        task.await.unwrap();
    }

    #[tokio::test]
    async fn an_open_connection_does_not_hold_up_a_stop() {
        let (address, stages, task) = start(Config::default()).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut first = [0; 12];
        stream.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
        stages.begin_soft();
        time::timeout(Duration::from_secs(2), task).await.unwrap().unwrap();
    }
}
