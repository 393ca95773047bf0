//! What a mail says: its subject, its text and its HTML, made from an event and a template.
//!
//! The way of a mail: `document` says what is to be told (a title, the event's fields in rows, a
//! link), `template` renders it strictly and within limits, `look` is what operators choose, and
//! `clean` keeps hostile characters out. Sending is the email channel's business.
//!
//! Guarantees: the same input gives the same content, byte for byte; whatever the payload and the
//! template are, rendering ends, in bounded memory, without a panic; what comes from a payload is
//! data, never a template, and stands escaped in HTML; a subject is one line. A template that fails
//! with an event's data costs its looks, never the mail: the built-in one takes its place.

mod clean;
mod document;
mod engine;
mod look;
mod names;
mod syntax;
mod template;
#[cfg(test)]
mod tests;
mod values;

use serde::Serialize;

use super::attempt::DigestItem;
use super::event::Event;
use super::tenant::Tenant;

pub use clean::{line, one_line};
pub use look::{InvalidLook, Look};
pub use template::{Error, MAX_TEMPLATE_BYTES, check, check_for};

use document::Document;

/// Most characters in a subject: RFC 5322 allows 998 a line, and nobody reads more than this.
const MAX_SUBJECT_CHARS: usize = 200;

/// What a mail is about, and for whom.
#[derive(Clone, Copy, Debug)]
pub struct Occasion<'a> {
    /// The event.
    pub event: &'a Event,
    /// Further events of the same mail.
    pub further: &'a [DigestItem],
    /// Whose they are.
    pub tenant: &'a Tenant,
    /// The readers' language (BCP 47); empty for `en`.
    pub locale: &'a str,
    /// Their time zone (IANA); empty or unknown for UTC.
    pub time_zone: &'a str,
    /// What operators chose.
    pub look: &'a Look,
    /// Where the reader unsubscribes; empty for nowhere.
    pub unsubscribe_url: &'a str,
}

/// A mail's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Content {
    /// One line.
    pub subject: String,
    /// The plain text.
    pub text: String,
    /// The same as a whole HTML document.
    pub html: String,
}

/// A mail as it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// What it says.
    pub content: Content,
    /// Why it does not look as its template says, if it does not.
    pub template_error: Option<String>,
}

/// Renders a mail by `template`, or by the built-in one when it is empty or fails.
///
/// # Errors
/// When even the built-in template fails, which is a fault of ours.
pub fn render(occasion: Occasion<'_>, template: &str) -> Result<Rendered, Error> {
    let document = Document::of(occasion);
    let built_in = || template::render(&document, "");
    if template.is_empty() {
        return Ok(Rendered { content: built_in()?, template_error: None });
    }
    match template::render(&document, template) {
        Ok(content) => Ok(Rendered { content, template_error: None }),
        Err(error) => {
            Ok(Rendered { content: built_in()?, template_error: Some(error.to_string()) })
        }
    }
}

/// Renders a mail by `template`, for somebody who wants to see what is wrong with it.
///
/// # Errors
/// What is wrong with the template, or with it and this event together.
pub fn preview(occasion: Occasion<'_>, template: &str) -> Result<Content, Error> {
    check(template)?;
    template::render(&Document::of(occasion), template)
}
