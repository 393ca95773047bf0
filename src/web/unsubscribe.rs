//! The page by which a recipient unsubscribes, and the one click by which a mail program does.
//!
//! Guarantees: nothing but a POST changes anything, since programs follow links (RFC 8058); every
//! link that is not ours, or whose tenant is gone, is answered alike; what a recipient can take back
//! is what the recipient said, not a bounce, a complaint or the tenant's own doing; no address and no
//! token is logged.

mod page;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Body;

use crate::domain::suppression::{Reason, Suppression};
use crate::domain::unsubscribe::{Link, ONE_CLICK};
use crate::store::{Error, Suppressing};

use super::body;
use super::mail::Mail;

use page::{Names, View};

/// Most bytes of a form: ours, and that of RFC 8058, have some dozens.
const MAX_FORM_BYTES: usize = 4 * 1024;

/// What a form asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Unsubscribe,
    Resubscribe,
}

/// Answers a request for the link with this token.
pub(super) async fn answer<B>(
    token: &str,
    request: Request<B>,
    mail: &Mail,
) -> Response<Full<Bytes>>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let wish = match *request.method() {
        Method::GET | Method::HEAD => None,
        Method::POST => match wish(request).await {
            Ok(wish) => Some(wish),
            Err(status) => return page::plain(status),
        },
        _ => {
            let mut response = page::plain(StatusCode::METHOD_NOT_ALLOWED);
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD, POST"));
            return response;
        }
    };
    match view(token, wish, mail).await {
        Ok(Some((names, view))) => page::of(&names, view),
        Ok(None) => page::unknown(),
        Err(error) => {
            tracing::warn!(%error, "an unsubscribe link cannot be answered");
            page::unavailable()
        }
    }
}

/// What a form asks for.
async fn wish<B>(request: Request<B>) -> Result<Wish, StatusCode>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let content_type = request.headers().get(CONTENT_TYPE);
    let content_type = content_type.and_then(|value| value.to_str().ok()).unwrap_or_default();
    let content_type = content_type.to_ascii_lowercase();
    let body = body::read(request.into_body(), MAX_FORM_BYTES).await;
    let body = body.map_err(|unread| match unread {
        body::Unread::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        body::Unread::Broken => StatusCode::BAD_REQUEST,
        body::Unread::NoRoom => StatusCode::SERVICE_UNAVAILABLE,
    })?;
    wish_of(&content_type, &body).ok_or(StatusCode::BAD_REQUEST)
}

/// RFC 8058 allows both kinds of forms; our own page sends the first one.
fn wish_of(content_type: &str, body: &[u8]) -> Option<Wish> {
    let (name, value) = ONE_CLICK;
    if content_type.starts_with("multipart/form-data") {
        let text = String::from_utf8_lossy(body);
        let has_name =
            text.contains(&format!("name=\"{name}\"")) || text.contains(&format!("name={name}\r"));
        return (has_name && text.lines().any(|line| line.trim() == value))
            .then_some(Wish::Unsubscribe);
    }
    url::form_urlencoded::parse(body).find_map(|(field, given)| match (&*field, &*given) {
        ("action", "unsubscribe") => Some(Wish::Unsubscribe),
        ("action", "resubscribe") => Some(Wish::Resubscribe),
        (field, given) if field == name && given == value => Some(Wish::Unsubscribe),
        _ => None,
    })
}

/// Does what is wished, and says how things stand then. `None` when the link is not one of ours.
async fn view(
    token: &str,
    wish: Option<Wish>,
    mail: &Mail,
) -> Result<Option<(Names, View)>, Error> {
    let Some(link) = mail.store.read_unsubscribe_token(token).await? else {
        return Ok(None);
    };
    let Some(tenant) = mail.store.tenant(link.tenant_id).await? else {
        return Ok(None);
    };
    let subscription = match link.subscription_id {
        Some(id) => mail.store.subscription(link.tenant_id, id).await?,
        None => None,
    };
    let names = Names {
        tenant: tenant.spec.display_name,
        subscription: subscription.map(|it| it.spec.display_name).unwrap_or_default(),
        is_all: link.subscription_id.is_none(),
        address: link.address.clone(),
    };
    match wish {
        Some(Wish::Unsubscribe) if !unsubscribe(&link, mail).await? => return Ok(None),
        Some(Wish::Resubscribe) => resubscribe(&link, mail).await?,
        None | Some(Wish::Unsubscribe) => {}
    }
    let applies = applying(&link, mail).await?;
    let view = match applies.map(|suppression| suppression.reason) {
        None if wish == Some(Wish::Resubscribe) => View::Resubscribed,
        None => View::Subscribed,
        Some(Reason::Unsubscribed) => View::Unsubscribed,
        Some(reason) => View::Blocked(reason),
    };
    Ok(Some((names, view)))
}

/// The suppression that applies to the link's recipient.
async fn applying(link: &Link, mail: &Mail) -> Result<Option<Suppression>, Error> {
    let of = [(link.tenant_id, link.address.as_str(), link.subscription_id)];
    Ok(mail.store.suppressed(&of).await?.pop().flatten())
}

/// Tells whether the tenant is still there.
async fn unsubscribe(link: &Link, mail: &Mail) -> Result<bool, Error> {
    let wanted = Suppression {
        tenant_id: link.tenant_id,
        address: link.address.clone(),
        subscription_id: link.subscription_id,
        reason: Reason::Unsubscribed,
        detail: String::new(),
        delivery_id: None,
        create_time: mail.clock.now(),
    };
    match mail.store.suppress(&wanted).await? {
        Suppressing::NoTenant => Ok(false),
        Suppressing::Known(_) => Ok(true),
        Suppressing::Done(_) => {
            tracing::info!(tenant.id = %link.tenant_id, "a recipient has unsubscribed");
            Ok(true)
        }
    }
}

/// Takes back what the mailbox's owner said: of this subscription, and of all of the tenant's mail,
/// which would stand in the way.
async fn resubscribe(link: &Link, mail: &Mail) -> Result<(), Error> {
    let mut scopes = vec![None];
    scopes.extend(link.subscription_id.map(Some));
    for scope in scopes {
        let own = Some(Reason::Unsubscribed);
        if mail.store.unsuppress(link.tenant_id, &link.address, scope, own).await? {
            tracing::info!(tenant.id = %link.tenant_id, "a recipient has subscribed again");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_of_both_kinds_are_understood_and_nothing_else_is() {
        let url_encoded = "application/x-www-form-urlencoded";
        let multipart = "--x\r\nContent-Disposition: form-data; name=\"List-Unsubscribe\"\r\n\r\nOne-Click\r\n--x--\r\n";
        for (content_type, body, wish) in [
            (url_encoded, "List-Unsubscribe=One-Click", Some(Wish::Unsubscribe)),
            ("", "List-Unsubscribe=One%2DClick", Some(Wish::Unsubscribe)),
            ("multipart/form-data; boundary=x", multipart, Some(Wish::Unsubscribe)),
            (url_encoded, "action=unsubscribe", Some(Wish::Unsubscribe)),
            (url_encoded, "a=b&action=resubscribe", Some(Wish::Resubscribe)),
            (url_encoded, "", None),
            (url_encoded, "List-Unsubscribe=", None),
            (url_encoded, "List-Unsubscribe=Two-Clicks", None),
            (url_encoded, "action=delete", None),
            ("multipart/form-data; boundary=x", "--x--\r\n", None),
            ("multipart/form-data; boundary=x", "One-Click", None),
        ] {
            assert_eq!(wish_of(content_type, body.as_bytes()), wish, "{content_type} {body}");
        }
    }
}
