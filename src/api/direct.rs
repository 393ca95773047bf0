//! Brings a call to its service. Nearly all calls are about events: those go straight to their
//! service, all others through the router, whose look-ups and boxes cost as much as an emit itself.

use std::convert::Infallible;
use std::task::{Context, Poll};

use futures::future::{BoxFuture, Either};
use http::{Request, Response};
use tonic::body::Body;
use tonic::server::NamedService;
use tower::Service;

use super::events::Events;
use super::proto::event_service_server::EventServiceServer;

/// The service of events, and a service for everything else.
#[derive(Clone)]
pub(super) struct Direct<S> {
    pub(super) events: EventServiceServer<Events>,
    pub(super) others: S,
}

impl<S> Service<Request<Body>> for Direct<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<BoxFuture<'static, Result<Response<Body>, Infallible>>, S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // That of events is always ready.
        self.others.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if is_of(EventServiceServer::<Events>::NAME, request.uri().path()) {
            Either::Left(self.events.call(request))
        } else {
            Either::Right(self.others.call(request))
        }
    }
}

/// Whether `path` names a method of `service`: `/tidings.v1.EventService/Emit`.
fn is_of(service: &str, path: &str) -> bool {
    let rest = path.strip_prefix('/').and_then(|path| path.strip_prefix(service));
    rest.is_some_and(|rest| rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_a_service_and_its_method() {
        let service = "tidings.v1.EventService";
        assert!(is_of(service, "/tidings.v1.EventService/Emit"));
        for other in [
            "/tidings.v1.EventService",
            "/tidings.v1.EventServiceX/Emit",
            "tidings.v1.EventService/Emit",
            "/tidings.v1.TenantService/GetTenant",
        ] {
            assert!(!is_of(service, other), "{other}");
        }
    }
}
