//! Builds and signs a request.
//!
//! Guarantees: the URL and the custom headers are checked again, whatever is stored; custom headers
//! cannot replace ours, nor a signature any of them; the signatures cover exactly the bytes that are sent; signatures and the
//! values of custom headers are marked as sensitive, so that neither HPACK nor our records keep them.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use http::{Method, Request, Uri};
use http_body_util::Full;

use super::failure::Failed;
use super::urls::Urls;
use crate::domain::attempt::{ErrorKind, Task};
use crate::domain::channel::WebhookChannel;
use crate::domain::header_list::HeaderList;
use crate::domain::signature::Message;
use crate::domain::{Timestamp, envelope, headers, signature};

const PRODUCT: HeaderValue =
    HeaderValue::from_static(concat!("Tidings/", env!("CARGO_PKG_VERSION")));
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const DELIVERY_ID: HeaderName = HeaderName::from_static("tidings-delivery-id");
const EVENT_TYPE: HeaderName = HeaderName::from_static("tidings-event-type");
const ATTEMPT: HeaderName = HeaderName::from_static("tidings-attempt");
const WEBHOOK_ID: HeaderName = HeaderName::from_static(signature::ID_HEADER);
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static(signature::TIMESTAMP_HEADER);
const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static(signature::SIGNATURE_HEADER);

/// Headers of our own, signatures included: the room to reserve.
const OWN_HEADERS: usize = 12;

/// The request of an attempt that is made at `now`.
pub(super) fn build(
    task: &Task,
    settings: &WebhookChannel,
    urls: &Urls,
    now: Timestamp,
) -> Result<Request<Full<Bytes>>, Failed> {
    if task.subscription.unreadable {
        return Err(unreadable());
    }
    let uri = uri(task, settings, urls)?;
    let body = envelope::body(settings.payload_format, &task.event, &task.tenant)
        .map_err(|error| Failed::permanent(ErrorKind::Internal, error.to_string()))?;
    let mut map = HeaderMap::with_capacity(OWN_HEADERS + settings.headers.len());
    custom(settings, &mut map)?;
    own(task, settings, &mut map)?;
    sign(task, settings, now, &body, &mut map)?;
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri;
    *request.headers_mut() = map;
    Ok(request)
}

/// The headers as they are recorded: without signatures and without what customers added, which
/// may be a secret of theirs.
pub(super) fn recorded(map: &HeaderMap, settings: &WebhookChannel) -> HeaderList {
    let mut list = HeaderList::with_capacity(map.len());
    for (name, value) in map {
        let name = name.as_str();
        match value.to_str() {
            Ok(text) if !value.is_sensitive() => list.push(name, text),
            text => list.push(name, &signature::masked(settings, name, text.unwrap_or_default())),
        }
    }
    list
}

fn uri(task: &Task, settings: &WebhookChannel, urls: &Urls) -> Result<Uri, Failed> {
    let url = match settings.url.as_str() {
        "" => task.tenant.spec.webhook_url.as_str(),
        url => url,
    };
    if url.is_empty() && task.tenant.unreadable {
        return Err(unreadable());
    }
    if url.is_empty() {
        return Err(Failed::retry(
            ErrorKind::Configuration,
            "Neither the subscription nor its tenant has a webhook URL.",
        ));
    }
    urls.uri(url).ok_or_else(Failed::url_refused)
}

/// Retried: the row or the key can be restored meanwhile.
fn unreadable() -> Failed {
    Failed::retry(
        ErrorKind::Configuration,
        "What Tidings keeps sealed for this subscription (its secrets, URL or headers) cannot be \
         read. An operator has to restore it; the service's log says what is wrong. Or delete the \
         subscription and create it anew.",
    )
}

fn custom(settings: &WebhookChannel, map: &mut HeaderMap) -> Result<(), Failed> {
    let refused = || {
        Failed::retry(ErrorKind::Configuration, "The subscription's custom headers cannot be sent.")
    };
    if settings.headers.len() > headers::MAX_HEADERS
        || !headers::check(&settings.headers).is_empty()
    {
        return Err(refused());
    }
    for (name, value) in &settings.headers {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| refused())?;
        map.insert(name, sensitive(value.as_bytes()).map_err(|_| refused())?);
    }
    Ok(())
}

fn own(task: &Task, settings: &WebhookChannel, map: &mut HeaderMap) -> Result<(), Failed> {
    let broken = || Failed::retry(ErrorKind::Internal, "The request could not be built.");
    let internal = |_| broken();
    let event_type = HeaderValue::from_str(&task.event.event_type).map_err(internal)?;
    let delivery_id = HeaderValue::from_str(task.delivery_id.as_str()).map_err(internal)?;
    let traceparent = HeaderValue::try_from(task.trace.to_string()).map_err(internal)?;
    let format = settings.payload_format;
    for (name, value) in envelope::headers(format, &task.event) {
        let name = HeaderName::try_from(name).map_err(|_| broken())?;
        map.insert(name, HeaderValue::try_from(value).map_err(internal)?);
    }
    map.insert(CONTENT_TYPE, HeaderValue::from_static(envelope::content_type(format)));
    map.insert(USER_AGENT, PRODUCT);
    map.insert(TRACEPARENT, traceparent);
    map.insert(DELIVERY_ID, delivery_id);
    map.insert(EVENT_TYPE, event_type);
    map.insert(ATTEMPT, HeaderValue::from(task.number));
    Ok(())
}

fn sign(
    task: &Task,
    settings: &WebhookChannel,
    now: Timestamp,
    body: &[u8],
    map: &mut HeaderMap,
) -> Result<(), Failed> {
    let unsigned =
        |_| Failed::retry(ErrorKind::Configuration, signature::Error::Secret.to_string());
    let secrets: Vec<_> = task.subscription.secrets_at(now).collect();
    let message = Message { id: task.event.id.as_str(), timestamp_secs: now.as_secs(), body };
    for (name, text) in signature::sign(settings, &secrets, &message).map_err(unsigned)? {
        let name = header_name(name).map_err(|_| unstorable())?;
        let public = name == WEBHOOK_ID || name == WEBHOOK_TIMESTAMP;
        let mut value = HeaderValue::try_from(text).map_err(|_| unstorable())?;
        value.set_sensitive(!public);
        // Two headers of one name would leave the receiver with the wrong one of them.
        if map.insert(name, value).is_some() {
            return Err(unstorable());
        }
    }
    Ok(())
}

/// Settings that are refused when they are stored, and are stored nevertheless.
fn unstorable() -> Failed {
    Failed::retry(ErrorKind::Configuration, "The subscription's signature headers cannot be sent.")
}

/// The names that nearly every request has cost nothing.
fn header_name(name: &str) -> Result<HeaderName, http::header::InvalidHeaderName> {
    match name {
        signature::ID_HEADER => Ok(WEBHOOK_ID),
        signature::TIMESTAMP_HEADER => Ok(WEBHOOK_TIMESTAMP),
        signature::SIGNATURE_HEADER => Ok(WEBHOOK_SIGNATURE),
        _ => HeaderName::from_bytes(name.as_bytes()),
    }
}

fn sensitive(value: &[u8]) -> Result<HeaderValue, http::header::InvalidHeaderValue> {
    let mut value = HeaderValue::from_bytes(value)?;
    value.set_sensitive(true);
    Ok(value)
}
