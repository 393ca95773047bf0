//! A template: one MiniJinja source with the blocks `subject`, `text` and `html`, each optional.

use std::fmt;

use minijinja::{Environment, ErrorKind, context, value::Value};

use super::document::Document;
use super::engine::{Bounded, ENGINE, OWN};
use super::syntax::{self, Blocks, Part};
use super::{Content, MAX_SUBJECT_CHARS, clean, names};

/// Most bytes in a template's source.
pub const MAX_TEMPLATE_BYTES: usize = 32 * 1024;
/// Most bytes of a part of a mail by somebody's template: some readers cut HTML at 102 KiB.
const MAX_PART_BYTES: usize = 96 * 1024;
/// The same for our own, which are bounded by the document.
const MAX_OWN_PART_BYTES: usize = 1024 * 1024;

/// Most characters of what is said of a template.
const MAX_MESSAGE_CHARS: usize = 300;

/// What is wrong with a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    line: usize,
    message: String,
}

impl Error {
    pub(super) fn new(line: usize, message: &str) -> Self {
        Self { line, message: message.to_owned() }
    }

    /// An error of the engine in a part that begins on `line`.
    pub(super) fn at(line: usize, error: &minijinja::Error) -> Self {
        let kind = error.kind().to_string();
        let message = match error.detail() {
            Some(detail) => format!("{kind}: {detail}"),
            None => kind,
        };
        let line = line + error.line().unwrap_or(1).max(1) - 1;
        Self { line, message: clean::line(&message, MAX_MESSAGE_CHARS) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.message)
    }
}

impl std::error::Error for Error {}

/// Says what is wrong with a template, whatever event it will be used for: also names that there never
/// are. What its events' data have cannot be known.
///
/// # Errors
/// A sentence for whoever wrote it.
pub fn check(source: &str) -> Result<(), Error> {
    check_names(source, None)
}

/// The same for the template of an event type, whose payloads satisfy a JSON Schema: one that lists all
/// fields says which there never are. An empty schema says nothing.
///
/// # Errors
/// A sentence for whoever wrote it.
pub fn check_for(source: &str, json_schema: &str) -> Result<(), Error> {
    check_names(source, names::fields_of(json_schema).as_deref())
}

fn check_names(source: &str, fields: Option<&[String]>) -> Result<(), Error> {
    let blocks = checked(source)?;
    let mut parts = [blocks.subject, blocks.text, blocks.html].into_iter().flatten();
    parts.try_for_each(|part| names::check(part, fields))
}

/// The blocks of a template that is bounded and can be compiled.
fn checked(source: &str) -> Result<Blocks<'_>, Error> {
    if source.len() > MAX_TEMPLATE_BYTES {
        let has = source.len();
        let message = format!("must have at most {MAX_TEMPLATE_BYTES} bytes, has {has}");
        return Err(Error::new(1, &message));
    }
    if source.contains('\0') {
        return Err(Error::new(1, "must not contain NUL"));
    }
    let blocks = syntax::blocks(source)?;
    for (part, name) in
        [(blocks.subject, "subject.txt"), (blocks.text, "text.txt"), (blocks.html, "html.html")]
    {
        if let Some(part) = part {
            let compiled = ENGINE.template_from_named_str(name, part.source);
            compiled.map_err(|error| Error::at(part.line, &error))?;
        }
    }
    Ok(blocks)
}

/// The mail that `source` makes of `document`; the blocks that it lacks are the built-in ones.
pub(super) fn render(document: &Document<'_>, source: &str) -> Result<Content, Error> {
    let blocks = checked(source)?;
    let own = OWN.as_ref().map_err(|error| Error::at(1, error))?;
    let document = Value::from_serialize(document);
    let subject = match blocks.subject {
        Some(part) => theirs("subject.txt", part, &document)?,
        None => ours(own, "subject.txt", document.clone())?,
    };
    let text = match blocks.text {
        Some(part) => theirs("text.txt", part, &document)?,
        None => ours(own, "text.txt", document.clone())?,
    };
    let html = match blocks.html {
        Some(part) => theirs("html.html", part, &document)?,
        None => ours(own, "body.html", document.clone())?,
    };
    let html = if is_document(&html) {
        html
    } else {
        let body = Value::from_safe_string(html);
        ours(own, "frame.html", context! { body, ..document })?
    };
    Ok(Content {
        subject: clean::line(&subject, MAX_SUBJECT_CHARS),
        text: clean::text(text.trim(), MAX_OWN_PART_BYTES),
        html: clean::text(html.trim(), MAX_OWN_PART_BYTES),
    })
}

/// Whether the HTML stands for itself, without a frame.
fn is_document(html: &str) -> bool {
    let start: String = html.trim_start().chars().take(9).collect();
    let start = start.to_ascii_lowercase();
    start == "<!doctype" || start.starts_with("<html")
}

fn theirs(name: &str, part: Part<'_>, document: &Value) -> Result<String, Error> {
    let at = |error: minijinja::Error| Error::at(part.line, &error);
    let template = ENGINE.template_from_named_str(name, part.source).map_err(at)?;
    let mut out = Bounded::new(MAX_PART_BYTES);
    template.render_captured_to(document, &mut out).map_err(|error| {
        if error.kind() != ErrorKind::UndefinedError {
            return too_large(at(error));
        }
        let line = error.line().unwrap_or(1).max(1);
        match names::absent(part, line, document) {
            Some(path) => {
                let message = format!("undefined value: there is no {path}");
                Error::new(part.line + line - 1, &clean::line(&message, MAX_MESSAGE_CHARS))
            }
            None => at(error),
        }
    })?;
    Ok(out.into_text())
}

fn ours(engine: &Environment<'static>, name: &str, document: Value) -> Result<String, Error> {
    let at = |error: minijinja::Error| Error::at(1, &error);
    let template = engine.get_template(name).map_err(at)?;
    let mut out = Bounded::new(MAX_OWN_PART_BYTES);
    template.render_captured_to(document, &mut out).map_err(at)?;
    Ok(out.into_text())
}

/// Says what a failed write means.
fn too_large(error: Error) -> Error {
    if error.message.contains("could not write") || error.message.contains("write") {
        let message = format!("the output has more than {MAX_PART_BYTES} bytes");
        return Error { line: error.line, message };
    }
    error
}
