//! What a recipient sees: one card, light or dark, on a phone as on a desk.
//!
//! Guarantees: names that others chose are text, never markup, and keep their direction of writing to
//! themselves; the page loads nothing, runs nothing, may not be framed, is not kept and is not found
//! by search engines.

use std::fmt::Write;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue, REFERRER_POLICY,
    RETRY_AFTER, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::{Response, StatusCode};
use http_body_util::Full;
use sha2::{Digest, Sha256};

use crate::domain::suppression::Reason;

const STYLE: &str = include_str!("style.css");
/// An envelope, in the colour of the text around it.
const MARK: &str = r#"<div class="mark"><svg width="26" height="26" viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-width="1.8" stroke-linecap="round" stroke-linejoin="round" aria-hidden="true"><rect x="2.5" y="4.5" width="19" height="15" rx="2.5"/><path d="m3 7 9 6.2L21 7"/></svg></div>"#;

/// The policy allows this style alone, and forms that lead back here.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = STANDARD.encode(Sha256::digest(STYLE.as_bytes()));
    format!(
        "default-src 'none'; style-src 'sha256-{hash}'; form-action 'self'; base-uri 'none'; \
         frame-ancestors 'none'"
    )
});

/// Who is meant, in the words of those who chose them.
#[derive(Clone, Debug)]
pub(super) struct Names {
    /// The tenant's name.
    pub(super) tenant: String,
    /// The subscription's name; empty when it has none, or is gone.
    pub(super) subscription: String,
    /// Whether all of the tenant's mail is meant.
    pub(super) is_all: bool,
    /// The address.
    pub(super) address: String,
}

/// How things stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum View {
    /// The address gets mail.
    Subscribed,
    /// It does again, since now.
    Resubscribed,
    /// Its owner has unsubscribed.
    Unsubscribed,
    /// It gets none, for a reason that its owner cannot take back.
    Blocked(Reason),
}

/// The page about a link.
pub(super) fn of(names: &Names, view: View) -> Response<Full<Bytes>> {
    let tenant = bold(&names.tenant);
    let address = bold(&names.address);
    let what = match names.subscription.as_str() {
        _ if names.is_all => "notifications".to_owned(),
        "" => "these notifications".to_owned(),
        name => format!("the notifications {}", bold(name)),
    };
    let (title, text, form, note) = match view {
        View::Subscribed => (
            "Unsubscribe?",
            format!("{tenant} sends {what} to {address}."),
            button("unsubscribe", "", "Unsubscribe"),
            if names.is_all {
                "This stops all mail of this sender to this address. Nothing has changed yet."
            } else {
                "Other mail of this sender is not affected. Nothing has changed yet."
            },
        ),
        View::Resubscribed => (
            "You are subscribed again",
            format!("{tenant} sends {what} to {address}, from the next one on."),
            button("unsubscribe", "quiet", "Unsubscribe"),
            "What was held back in between is not sent.",
        ),
        View::Unsubscribed => (
            "You are unsubscribed",
            format!("{tenant} no longer sends {what} to {address}."),
            button("resubscribe", "quiet", "Subscribe again"),
            "A message that is on its way may still arrive. You can close this page.",
        ),
        View::Blocked(reason) => (
            "This address gets no mail",
            format!("{tenant} sends nothing to {address}, because {}.", why(reason)),
            String::new(),
            "If you want mail again, ask the sender: it cannot be switched on from here.",
        ),
    };
    html(StatusCode::OK, title, &format!("<p>{text}</p>{form}<p class=\"note\">{note}</p>"))
}

const fn why(reason: Reason) -> &'static str {
    match reason {
        Reason::Manual => "the sender has taken it off the list",
        Reason::Unsubscribed => "its owner has unsubscribed",
        Reason::Bounced => "messages to it came back",
        Reason::Complained => "a message was reported as unwanted",
    }
}

/// The same for every link that is not ours.
pub(super) fn unknown() -> Response<Full<Bytes>> {
    html(
        StatusCode::NOT_FOUND,
        "This link does not work",
        "<p>It may not be complete. Open it from the message itself, or copy all of it.</p>\
         <p class=\"note\">Nothing has changed.</p>",
    )
}

/// When the database does not answer.
pub(super) fn unavailable() -> Response<Full<Bytes>> {
    let mut response = html(
        StatusCode::SERVICE_UNAVAILABLE,
        "Please try again in a minute",
        "<p>Your wish could not be saved at the moment.</p>",
    );
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("60"));
    response
}

/// A request that no page of ours makes.
pub(super) fn plain(status: StatusCode) -> Response<Full<Bytes>> {
    html(status, "This request was not understood", "<p class=\"note\">Nothing has changed.</p>")
}

fn button(action: &str, class: &str, text: &str) -> String {
    format!(
        "<form method=\"post\"><button class=\"{class}\" name=\"action\" value=\"{action}\">{text}\
         </button></form>"
    )
}

/// A name that somebody chose, set apart in weight and in direction.
fn bold(text: &str) -> String {
    format!("<b><bdi>{}</bdi></b>", escaped(text))
}

/// `text` as HTML shows it. Marks that turn the direction of what follows are left out.
fn escaped(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {}
            c if c.is_control() => html.push(' '),
            c => html.push(c),
        }
    }
    html
}

fn html(status: StatusCode, title: &str, content: &str) -> Response<Full<Bytes>> {
    let mut page = String::with_capacity(STYLE.len() + content.len() + 1_024);
    // Writing into a String cannot fail.
    let _ = writeln!(
        page,
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta name=\"robots\" content=\"noindex\"><title>{title}</title><style>{STYLE}</style>\
         </head><body><main>{MARK}<h1>{title}</h1>{content}</main></body></html>"
    );
    let mut response = Response::new(Full::new(Bytes::from(page)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    for (name, value) in [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CACHE_CONTROL, "no-store"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        // The address of the page is its secret.
        (REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("x-robots-tag"), "noindex"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if let Ok(policy) = HeaderValue::from_str(&POLICY) {
        headers.insert(CONTENT_SECURITY_POLICY, policy);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_text() {
        let hostile = "<script>alert(1)</script>\" onload='x' & \u{202e}evil\u{0}";
        let shown = escaped(hostile);
        assert!(!shown.contains(['<', '>', '"', '\'', '\u{202e}', '\0']), "{shown}");
        assert!(shown.contains("&lt;script&gt;") && shown.contains("&amp; evil"), "{shown}");
    }

    #[test]
    fn the_policy_is_for_this_style() {
        let response = unknown();
        let policy = response.headers()[CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"), "{policy}");
        // The hash is over what stands between the tags.
        assert!(!STYLE.contains("</"), "the style would end early");
    }
}
