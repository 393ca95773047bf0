//! Builds and signs a request.
//!
//! Guarantees: the URL and the custom headers are checked again, whatever is stored; custom headers
//! cannot replace ours; the signatures cover exactly the bytes that are sent; signatures and the
//! values of custom headers are marked as sensitive, so that neither HPACK nor our records keep them.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use http::{Method, Request, Uri};
use http_body_util::Full;

use super::failure::Failed;
use crate::domain::attempt::{ErrorKind, HeaderList, Task};
use crate::domain::channel::{DEFAULT_SIGNATURE_HEADER, WebhookChannel};
use crate::domain::endpoint::Rules;
use crate::domain::{Timestamp, envelope, headers, signature};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const PRODUCT: HeaderValue =
    HeaderValue::from_static(concat!("Tidings/", env!("CARGO_PKG_VERSION")));
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const DELIVERY_ID: HeaderName = HeaderName::from_static("tidings-delivery-id");
const EVENT_TYPE: HeaderName = HeaderName::from_static("tidings-event-type");
const ATTEMPT: HeaderName = HeaderName::from_static("tidings-attempt");
const WEBHOOK_ID: HeaderName = HeaderName::from_static(signature::ID_HEADER);
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static(signature::TIMESTAMP_HEADER);
const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static(signature::SIGNATURE_HEADER);
const X_SIGNATURE: HeaderName = HeaderName::from_static("x-signature");

/// Headers of our own, signatures included: the room to reserve.
const OWN_HEADERS: usize = 12;

/// The request of an attempt that is made at `now`.
pub(super) fn build(
    task: &Task,
    settings: &WebhookChannel,
    rules: Rules,
    now: Timestamp,
) -> Result<Request<Full<Bytes>>, Failed> {
    let uri = uri(task, settings, rules)?;
    let body = envelope::body(settings.payload_format, &task.event, &task.tenant)
        .map_err(|error| Failed::permanent(kind_of(error), error.to_string()))?;
    let mut map = HeaderMap::with_capacity(OWN_HEADERS + settings.headers.len());
    custom(settings, &mut map)?;
    own(task, &mut map)?;
    sign(task, settings, now, &body, &mut map)?;
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri;
    *request.headers_mut() = map;
    Ok(request)
}

/// The headers as they are recorded: without signatures and without what customers added, which
/// may be a secret of theirs.
pub(super) fn recorded(map: &HeaderMap) -> HeaderList {
    let shown = |(name, value): (&HeaderName, &HeaderValue)| {
        let text = match value.to_str() {
            _ if *name == WEBHOOK_SIGNATURE => "v1,***",
            Ok(text) if !value.is_sensitive() => text,
            _ => "***",
        };
        (name.as_str().to_owned(), text.to_owned())
    };
    map.iter().map(shown).collect()
}

fn kind_of(error: envelope::Error) -> ErrorKind {
    match error {
        envelope::Error::Unsupported(_) => ErrorKind::Configuration,
        envelope::Error::NotJson => ErrorKind::Internal,
    }
}

fn uri(task: &Task, settings: &WebhookChannel, rules: Rules) -> Result<Uri, Failed> {
    let url = match settings.url.as_str() {
        "" => task.tenant.spec.webhook_url.as_str(),
        url => url,
    };
    if url.is_empty() {
        return Err(Failed::retry(
            ErrorKind::Configuration,
            "Neither the subscription nor its tenant has a webhook URL.",
        ));
    }
    match rules.canonical(url) {
        Ok(canonical) if canonical == url => {
            Uri::from_maybe_shared(Bytes::from(canonical)).map_err(|_| Failed::url_refused())
        }
        _ => Err(Failed::url_refused()),
    }
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

fn own(task: &Task, map: &mut HeaderMap) -> Result<(), Failed> {
    let internal = |_| Failed::retry(ErrorKind::Internal, "The request could not be built.");
    let event_type = HeaderValue::from_str(&task.event.event_type).map_err(internal)?;
    let delivery_id = HeaderValue::from_str(task.delivery_id.as_str()).map_err(internal)?;
    let traceparent = HeaderValue::try_from(task.trace.to_string()).map_err(internal)?;
    map.insert(CONTENT_TYPE, JSON);
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
    let secrets: Vec<&str> = task.subscription.secrets_at(now).collect();
    let header = match settings.signature_header.as_str() {
        "" => DEFAULT_SIGNATURE_HEADER,
        name => name,
    };
    for scheme in &settings.signatures {
        let id = task.event.id.as_str();
        let signed = signature::sign(*scheme, &secrets, id, now.as_secs(), body, header)
            .map_err(unsigned)?;
        for (name, text) in signed {
            let name = header_name(name).map_err(|_| unsigned(signature::Error::Secret))?;
            let public = name == WEBHOOK_ID || name == WEBHOOK_TIMESTAMP;
            let mut value =
                HeaderValue::try_from(text).map_err(|_| unsigned(signature::Error::Secret))?;
            value.set_sensitive(!public);
            map.insert(name, value);
        }
    }
    Ok(())
}

/// A secret can be rotated while the delivery is retried; a scheme waits for another version.
fn unsigned(error: signature::Error) -> Failed {
    match error {
        signature::Error::Unsupported(_) => {
            Failed::permanent(ErrorKind::Configuration, error.to_string())
        }
        signature::Error::Secret => Failed::retry(ErrorKind::Configuration, error.to_string()),
    }
}

/// The names that nearly every request has cost nothing.
fn header_name(name: &str) -> Result<HeaderName, http::header::InvalidHeaderName> {
    match name {
        signature::ID_HEADER => Ok(WEBHOOK_ID),
        signature::TIMESTAMP_HEADER => Ok(WEBHOOK_TIMESTAMP),
        signature::SIGNATURE_HEADER => Ok(WEBHOOK_SIGNATURE),
        DEFAULT_SIGNATURE_HEADER => Ok(X_SIGNATURE),
        _ => HeaderName::from_bytes(name.as_bytes()),
    }
}

fn sensitive(value: &[u8]) -> Result<HeaderValue, http::header::InvalidHeaderValue> {
    let mut value = HeaderValue::from_bytes(value)?;
    value.set_sensitive(true);
    Ok(value)
}
