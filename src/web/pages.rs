//! What each path answers.

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use prometheus_client::encoding::text;

use super::{Facts, Readiness};

/// The media type of what `prometheus-client` writes.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

const INDEX: &str = concat!(
    "Tidings ",
    env!("CARGO_PKG_VERSION"),
    "\n\n/healthz  whether the process is alive\n/readyz   whether it takes requests\n\
     /metrics  metrics for Prometheus\n\nThe API is served with gRPC on another port.\n"
);

/// Answers a request. Its body is not read.
pub(super) fn answer<B>(request: &Request<B>, facts: &Facts) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = page(StatusCode::METHOD_NOT_ALLOWED, PLAIN, "use GET\n".into());
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/" => page(StatusCode::OK, PLAIN, INDEX.into()),
        "/healthz" => page(StatusCode::OK, PLAIN, "ok\n".into()),
        "/readyz" => readiness(*facts.readiness.borrow()),
        "/metrics" => metrics(facts),
        _ => page(StatusCode::NOT_FOUND, PLAIN, "not found\n".into()),
    }
}

fn readiness(readiness: Readiness) -> Response<Full<Bytes>> {
    let (status, text) = match readiness {
        Readiness::Ready => (StatusCode::OK, "ready\n"),
        Readiness::Starting => (StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
        Readiness::DatabaseUnavailable => {
            (StatusCode::SERVICE_UNAVAILABLE, "the database does not answer\n")
        }
        Readiness::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "stopping\n"),
    };
    page(status, PLAIN, text.into())
}

fn metrics(facts: &Facts) -> Response<Full<Bytes>> {
    let mut written = String::new();
    match text::encode(&mut written, &facts.metrics) {
        Ok(()) => page(StatusCode::OK, OPEN_METRICS, written),
        Err(error) => {
            tracing::error!(%error, "the metrics cannot be written");
            page(StatusCode::INTERNAL_SERVER_ERROR, PLAIN, "the metrics cannot be written\n".into())
        }
    }
}

fn page(status: StatusCode, content_type: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http_body_util::BodyExt;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::registry::Registry;
    use tokio::sync::watch;

    use super::*;

    async fn ask(method: Method, path: &str, readiness: Readiness) -> (StatusCode, String) {
        let mut registry = Registry::default();
        registry.register("tidings_things", "Things", Counter::<u64>::default());
        let (_told, readiness) = watch::channel(readiness);
        let facts = Facts { metrics: Arc::new(registry), readiness, mail: None };
        let request = Request::builder().method(method).uri(path).body(()).unwrap();
        let response = answer(&request, &facts);
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn alive_is_not_the_same_as_ready() {
        for readiness in [Readiness::Starting, Readiness::DatabaseUnavailable, Readiness::Stopping]
        {
            assert_eq!(ask(Method::GET, "/healthz", readiness).await.0, StatusCode::OK);
            let (status, _) = ask(Method::GET, "/readyz", readiness).await;
            assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{readiness:?}");
        }
        assert_eq!(ask(Method::GET, "/readyz", Readiness::Ready).await.0, StatusCode::OK);
    }

    #[tokio::test]
    async fn metrics_exist_at_zero() {
        let (status, text) = ask(Method::GET, "/metrics?name=x", Readiness::Ready).await;
        assert_eq!(status, StatusCode::OK);
        assert!(text.contains("tidings_things_total 0\n"), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }

    #[tokio::test]
    async fn everything_else_is_refused() {
        for (method, path, status) in [
            (Method::GET, "/", StatusCode::OK),
            (Method::HEAD, "/healthz", StatusCode::OK),
            (Method::GET, "/healthz/", StatusCode::NOT_FOUND),
            (Method::GET, "/../etc/passwd", StatusCode::NOT_FOUND),
            (Method::POST, "/metrics", StatusCode::METHOD_NOT_ALLOWED),
        ] {
            assert_eq!(
                ask(method.clone(), path, Readiness::Ready).await.0,
                status,
                "{method} {path}"
            );
        }
    }
}
