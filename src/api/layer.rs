//! What happens to every call before and after its service.
//!
//! Before: the method must exist, the service must not be stopping, the key must permit the call
//! (so that nobody learns from violations what it may not see) and have some of its rate left, and
//! there must be room. After:
//! errors that tonic made by itself get a reason like ours, a passed deadline is said, and a panic
//! becomes INTERNAL instead of a broken connection.
//!
//! A call whose deadline passes is dropped where it waits. An emit that is dropped before its
//! commit began stores nothing.

use std::convert::Infallible;
use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use super::Reason;
use super::access::{Access, Table};
use super::auth::Auth;
use super::direct::Direct;
use super::events::Events;
use super::proto::event_service_server::EventServiceServer;
use super::status::{self, Failure};

/// How long before its deadline a call ends: tonic keeps the same deadline with a timer of its own,
/// which must not be first, because its answer has no reason.
const EARLY: Duration = Duration::from_millis(5);

/// What every call passes.
pub(super) struct Gate {
    table: Table,
    auth: Arc<Auth>,
    /// One permit per call that is under way.
    room: Semaphore,
    /// Cancelled when nothing new is to be accepted.
    shutdown: CancellationToken,
    /// Cancelled when streams without a key (watches of the health) are to end.
    closing: CancellationToken,
}

impl Gate {
    /// A gate for at most `max_requests` calls at the same time.
    pub(super) fn new(
        auth: Arc<Auth>,
        max_requests: usize,
        shutdown: CancellationToken,
        closing: CancellationToken,
    ) -> Self {
        let room = Semaphore::new(max_requests.min(Semaphore::MAX_PERMITS));
        Self { table: Table::new(), auth, room, shutdown, closing }
    }

    async fn pass<S>(
        &self,
        mut inner: S,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, Failure>
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    {
        let access = self.table.access(request.uri().path());
        let access = access.ok_or_else(|| Failure::of(Reason::MethodUnknown))?;
        if access == Access::Open {
            let Ok(response) = inner.call(request).await;
            return Ok(response.map(|body| Body::new(UntilClosed::new(body, &self.closing))));
        }
        if self.shutdown.is_cancelled() {
            return Err(Failure::of(Reason::ShuttingDown));
        }
        let deadline = deadline(request.headers());
        let work = async {
            let caller = self.auth.admit(request.headers(), access, deadline).await?;
            self.auth.count(&caller)?;
            let room = self.room.try_acquire();
            let _room = room.map_err(|_| Failure::of(Reason::Overloaded))?;
            request.extensions_mut().insert(caller);
            let Ok(response) = inner.call(request).await;
            Ok(response)
        };
        match deadline {
            None => work.await,
            Some(deadline) => before(deadline.checked_sub(EARLY).unwrap_or(deadline), work).await?,
        }
    }
}

/// When the client stops to wait, as its `grpc-timeout` says. A malformed one counts as none.
fn deadline(headers: &HeaderMap) -> Option<Instant> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if number.len() > 8 || !number.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number: u64 = number.parse().ok()?;
    let timeout = match unit {
        "H" => Duration::from_secs(number * 3_600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    };
    now().checked_add(timeout)
}

#[expect(
    clippy::disallowed_methods,
    reason = "deadlines of calls are real time, as the client's are"
)]
pub(super) fn now() -> Instant {
    Instant::now()
}

/// What `work` gives, if it gives it before `deadline`. It is not even begun after it.
///
/// tonic keeps the same deadline around this, and says less when it passes. So the time is looked
/// at whenever the call is polled, and not only when a timer of ours fires.
async fn before<T>(deadline: Instant, work: impl Future<Output = T>) -> Result<T, Failure> {
    let mut work = pin!(work);
    let mut timer = pin!(tokio::time::sleep_until(deadline));
    poll_fn(|context| {
        if now() >= deadline {
            return Poll::Ready(Err(Failure::of(Reason::DeadlineExceeded)));
        }
        if let Poll::Ready(result) = work.as_mut().poll(context) {
            return Poll::Ready(Ok(result));
        }
        timer.as_mut().poll(context).map(|()| Err(Failure::of(Reason::DeadlineExceeded)))
    })
    .await
}

/// `response`, with a reason where tonic gave none.
fn explained(response: Response<Body>) -> Response<Body> {
    if !response.headers().contains_key("grpc-status")
        || response.headers().contains_key("grpc-status-details-bin")
    {
        return response;
    }
    match Status::from_header_map(response.headers()) {
        // Not ours: the health service's word for a service that it does not know.
        Some(status) if status.code() == tonic::Code::NotFound => response,
        Some(status) if status.code() != tonic::Code::Ok => {
            Status::from(status::of_transport(status.code(), status.message())).into_http()
        }
        _ => response,
    }
}

/// Puts a [`Gate`] around the service of events and all others.
#[derive(Clone)]
pub(super) struct GateLayer {
    pub gate: Arc<Gate>,
    pub events: EventServiceServer<Events>,
}

impl<S> Layer<S> for GateLayer {
    type Service = Gated<Direct<S>>;

    fn layer(&self, others: S) -> Gated<Direct<S>> {
        let inner = Direct { events: self.events.clone(), others };
        Gated { gate: Arc::clone(&self.gate), inner }
    }
}

/// A service behind a [`Gate`].
#[derive(Clone)]
pub(super) struct Gated<S> {
    gate: Arc<Gate>,
    inner: S,
}

impl<S> Service<Request<Body>> for Gated<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The clone that was polled ready is the one to call.
        let fresh = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, fresh);
        let gate = Arc::clone(&self.gate);
        Box::pin(async move {
            let passed = AssertUnwindSafe(gate.pass(inner, request)).catch_unwind().await;
            let response = match passed {
                Ok(Ok(response)) => explained(response),
                Ok(Err(failure)) => Status::from(failure).into_http(),
                Err(_) => Status::from(Failure::internal(&"a call panicked")).into_http(),
            };
            Ok(response)
        })
    }
}

/// A body that ends with UNAVAILABLE when the server closes: a watch of the health never ends by
/// itself, and would hold up the shutdown.
struct UntilClosed {
    body: Body,
    closed: Pin<Box<WaitForCancellationFutureOwned>>,
    ended: bool,
}

impl UntilClosed {
    fn new(body: Body, closing: &CancellationToken) -> Self {
        Self { body, closed: Box::pin(closing.clone().cancelled_owned()), ended: false }
    }
}

impl HttpBody for UntilClosed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            return Poll::Ready(frame);
        }
        if self.closed.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        self.ended = true;
        let mut trailers = HeaderMap::new();
        let status = Status::from(Failure::of(Reason::ShuttingDown));
        Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // It may end early.
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeout_of(text: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-timeout", text.parse().expect("a header"));
        let before = now();
        deadline(&headers).map(|deadline| deadline - before)
    }

    #[test]
    fn timeouts_are_read_as_the_specification_has_them() {
        for (text, expected) in [
            ("2H", Duration::from_hours(2)),
            ("3M", Duration::from_mins(3)),
            ("4S", Duration::from_secs(4)),
            ("5000m", Duration::from_secs(5)),
            ("6000000u", Duration::from_secs(6)),
            ("99999999H", Duration::from_hours(99_999_999)),
        ] {
            let read = timeout_of(text).expect(text);
            assert!(
                read >= expected && read < expected + Duration::from_secs(1),
                "{text} {read:?}"
            );
        }
        for text in
            ["", "S", "1", "-1S", "+1S", "1s", "123456789S", "1.5S", "99999999999999999999S"]
        {
            assert_eq!(timeout_of(text), None, "{text}");
        }
    }

    #[tokio::test]
    async fn work_is_not_begun_after_its_deadline() {
        let begun = std::cell::Cell::new(false);
        let failure = before(now(), async { begun.set(true) }).await.expect_err("too late");
        assert_eq!(failure.reason, Reason::DeadlineExceeded);
        assert!(!begun.get());
        let later = now() + Duration::from_mins(1);
        assert_eq!(before(later, async { 7 }).await, Ok(7));
    }

    #[test]
    fn only_errors_without_a_reason_are_explained() {
        let ours = Status::from(Failure::of(Reason::EventNotFound)).into_http();
        let same = explained(ours);
        let status = Status::from_header_map(same.headers()).expect("a status");
        assert_eq!(status.code(), tonic::Code::NotFound);
        let theirs = Status::out_of_range("decoded message length too large").into_http();
        let status = Status::from_header_map(explained(theirs).headers()).expect("a status");
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        assert!(!status.details().is_empty());
    }
}
