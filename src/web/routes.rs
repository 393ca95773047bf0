//! Which part answers which path.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Body;

use crate::domain::unsubscribe::PATH as UNSUBSCRIBE;

use super::{Facts, bounces, pages, unsubscribe};

/// Answers a request.
pub(super) async fn answer<B>(request: Request<B>, facts: &Facts) -> Response<Full<Bytes>>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let path = request.uri().path();
    let Some(mail) = &facts.mail else {
        return pages::answer(&request, facts);
    };
    if let Some(token) = path.strip_prefix(UNSUBSCRIBE) {
        let token = token.to_owned();
        return unsubscribe::answer(&token, request, mail).await;
    }
    match bounces::Sender::at(path) {
        Some(sender) => bounces::answer(sender, request, mail).await,
        None => pages::answer(&request, facts),
    }
}
