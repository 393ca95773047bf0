//! `POST /bounces`, `POST /bounces/sendgrid`: bounces and complaints from mail servers and providers.
//!
//! Guarantees: a body is read only as far as there is room for it, and understood only after its
//! signature was checked; a path whose sender is not configured takes nothing, and says so. Each
//! sender has room of its own, and who sends slowly holds no more of it than has come. Whatever is
//! reported twice changes nothing the second time, so a sender may try again.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Body;
use serde::Serialize;
use tokio::sync::Semaphore;

use crate::domain::feedback::webhook::{self, Signed};
use crate::domain::feedback::{Feedback, Ignored, mail};
use crate::domain::signature::{ID_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER};
use crate::store::FeedbackResult;

use super::body::{self, Unread};
use super::mail::Mail;

/// Most bytes of a body: a thousand reports of a provider, or one mail.
const MAX_BODY_BYTES: usize = 2 * 1024 * 1024;
const SENDGRID_SIGNATURE: &str = "x-twilio-email-event-webhook-signature";
const SENDGRID_TIMESTAMP: &str = "x-twilio-email-event-webhook-timestamp";

/// Who reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sender {
    /// Whoever has one of the secrets.
    Own,
    /// SendGrid.
    SendGrid,
}

impl Sender {
    /// Who reports at this path.
    pub(super) fn at(path: &str) -> Option<Self> {
        match path {
            "/bounces" => Some(Self::Own),
            "/bounces/sendgrid" => Some(Self::SendGrid),
            _ => None,
        }
    }

    const fn is_configured(self, mail: &Mail) -> bool {
        match self {
            Self::Own => mail.secrets.is_some(),
            Self::SendGrid => mail.sendgrid_key.is_some(),
        }
    }

    /// The room for bodies of this sender's.
    const fn room(self, mail: &Mail) -> &Arc<Semaphore> {
        match self {
            Self::Own => &mail.own_room,
            Self::SendGrid => &mail.sendgrid_room,
        }
    }

    fn verify(self, headers: &HeaderMap, body: &[u8], mail: &Mail) -> bool {
        let text = |name: &str| {
            headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
        };
        let now = mail.clock.now();
        match self {
            Self::Own => {
                let signed = Signed {
                    id: text(ID_HEADER),
                    timestamp: text(TIMESTAMP_HEADER),
                    signature: text(SIGNATURE_HEADER),
                };
                mail.secrets.as_ref().is_some_and(|secrets| secrets.verify(&signed, body, now))
            }
            Self::SendGrid => {
                let signed = Signed {
                    id: "",
                    timestamp: text(SENDGRID_TIMESTAMP),
                    signature: text(SENDGRID_SIGNATURE),
                };
                mail.sendgrid_key.as_ref().is_some_and(|key| key.verify(&signed, body, now))
            }
        }
    }

    /// Whether there is a signature at all: without one no body is read.
    fn is_signed(self, headers: &HeaderMap) -> bool {
        headers.contains_key(match self {
            Self::Own => SIGNATURE_HEADER,
            Self::SendGrid => SENDGRID_SIGNATURE,
        })
    }

    fn read(self, headers: &HeaderMap, body: &[u8]) -> Result<Reports, Refusal> {
        let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let content_type = content_type.unwrap_or_default();
        let media_type = content_type.split(';').next().unwrap_or_default().trim();
        let one = |message: &[u8]| vec![mail::read(message).ok_or(Ignored::NotAReport)];
        let reports = match (self, media_type.to_ascii_lowercase().as_str()) {
            (Self::SendGrid, _) => {
                webhook::read_sendgrid(body).map(|reports| reports.into_iter().map(Ok).collect())
            }
            (Self::Own, "application/json") => webhook::read_plain(body),
            (Self::Own, "message/rfc822") => return Ok(one(body)),
            // The header of the request is that of the message.
            (Self::Own, "multipart/report") => {
                let head = format!("MIME-Version: 1.0\r\nContent-Type: {content_type}\r\n\r\n");
                return Ok(one(&[head.as_bytes(), body].concat()));
            }
            _ => return Err(Refusal::MediaType),
        };
        reports.map_err(|_| Refusal::Malformed)
    }
}

/// What was read: reports, and what is none that could have a consequence.
type Reports = Vec<Result<Feedback, Ignored>>;

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    NotConfigured(Sender),
    Signature,
    MediaType,
    Malformed,
    TooLarge,
    Busy,
    Database,
}

impl Refusal {
    const fn status(self) -> StatusCode {
        match self {
            Self::NotConfigured(_) => StatusCode::NOT_FOUND,
            Self::Signature => StatusCode::UNAUTHORIZED,
            Self::MediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Malformed => StatusCode::BAD_REQUEST,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Busy | Self::Database => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    const fn message(self) -> &'static str {
        match self {
            Self::NotConfigured(Sender::Own) => {
                "this service takes no reports here: its operator has not set bounce-secret-file"
            }
            Self::NotConfigured(Sender::SendGrid) => {
                "this service takes no reports here: its operator has not set sendgrid-key"
            }
            Self::Signature => "the signature is missing, wrong or too old",
            Self::MediaType => {
                "the content type must be application/json, message/rfc822 or multipart/report"
            }
            Self::Malformed => "the body is not what its content type and the documentation say",
            Self::TooLarge => "the body is too large: at most 2 MiB",
            Self::Busy => "too many requests at once; try again",
            Self::Database => "the database does not answer; try again",
        }
    }
}

/// What is answered: one outcome per report, in their order.
#[derive(Serialize)]
struct Answer {
    outcomes: Vec<&'static str>,
}

#[derive(Serialize)]
struct Refused {
    error: &'static str,
}

/// Answers a request of this sender.
pub(super) async fn answer<B>(
    sender: Sender,
    request: Request<B>,
    mail: &Mail,
) -> Response<Full<Bytes>>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    if !sender.is_configured(mail) {
        let refusal = Refusal::NotConfigured(sender);
        return json(refusal.status(), &Refused { error: refusal.message() });
    }
    if *request.method() != Method::POST {
        let mut response = json(StatusCode::METHOD_NOT_ALLOWED, &Refused { error: "use POST" });
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
        return response;
    }
    match take(sender, request, mail).await {
        Ok(outcomes) => json(StatusCode::OK, &Answer { outcomes }),
        Err(refusal) => {
            tracing::info!(sender = ?sender, reason = ?refusal, "a report about mail was refused");
            let mut response = json(refusal.status(), &Refused { error: refusal.message() });
            if refusal.status() == StatusCode::SERVICE_UNAVAILABLE {
                response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("10"));
            }
            response
        }
    }
}

async fn take<B>(
    sender: Sender,
    request: Request<B>,
    mail: &Mail,
) -> Result<Vec<&'static str>, Refusal>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (head, body) = request.into_parts();
    if !sender.is_signed(&head.headers) {
        return Err(Refusal::Signature);
    }
    let room = sender.room(mail);
    let read = body::read_into(body, MAX_BODY_BYTES, room).await;
    let (body, _room) = read.map_err(|unread| match unread {
        Unread::TooLarge => Refusal::TooLarge,
        Unread::Broken => Refusal::Malformed,
        Unread::NoRoom => Refusal::Busy,
    })?;
    if !sender.verify(&head.headers, &body, mail) {
        return Err(Refusal::Signature);
    }
    let mut outcomes = Vec::new();
    for report in sender.read(&head.headers, &body)? {
        outcomes.push(outcome(report, mail).await?);
    }
    log(sender, &outcomes);
    Ok(outcomes)
}

async fn outcome(report: Result<Feedback, Ignored>, mail: &Mail) -> Result<&'static str, Refusal> {
    let report = match report {
        Ok(report) => report,
        Err(ignored) => return Ok(named(ignored)),
    };
    let result = mail.store.take_feedback(&report, None, mail.clock.now()).await;
    let result = result.map_err(|error| {
        tracing::warn!(%error, "a report about mail cannot be stored");
        Refusal::Database
    })?;
    Ok(match result {
        FeedbackResult::Suppressed(_) => "SUPPRESSED",
        FeedbackResult::Known(_) => "ALREADY_SUPPRESSED",
        FeedbackResult::Ignored(ignored) => named(ignored),
    })
}

const fn named(ignored: Ignored) -> &'static str {
    match ignored {
        Ignored::Temporary => "TEMPORARY",
        Ignored::OtherAddress => "OTHER_ADDRESS",
        Ignored::UnknownDelivery => "UNKNOWN_DELIVERY",
        Ignored::NotAReport => "NOT_A_REPORT",
    }
}

/// Says how many reports came to what; never about whom.
fn log(sender: Sender, outcomes: &[&'static str]) {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for outcome in outcomes {
        *counts.entry(outcome).or_default() += 1;
    }
    tracing::info!(sender = ?sender, outcomes = ?counts, "reports about mail were taken");
}

fn json(status: StatusCode, document: &impl Serialize) -> Response<Full<Bytes>> {
    // Documents of ours have nothing that JSON cannot say.
    let body = serde_json::to_vec(document).unwrap_or_default();
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
