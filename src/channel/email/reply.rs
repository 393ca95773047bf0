//! What a server's reply, or its absence, means for a delivery.
//!
//! RFC 5321 says which digit is temporary, and RFC 3463 what the enhanced status means. What was said
//! at RCPT is about the recipient; before that it is about us, and blames no recipient.
//!
//! | when | reply | becomes |
//! |---|---|---|
//! | before RCPT | any refusal | the next relay, then a retry: our configuration |
//! | RCPT | 4xx | a retry |
//! | RCPT | 5xx that says there is no such mailbox | permanent, a hard bounce: the address is suppressed |
//! | RCPT | other 5xx: full (5.2.2), too large, policy (5.7.x) | permanent; the address stays |
//! | RCPT | 530, 535, 538: we have to log in | a retry: our configuration |
//! | DATA and the content | 4xx | a retry |
//! | DATA and the content | 5xx: policy, too large, spam | permanent; the address stays |
//! | any | no reply, a broken connection | a retry; before the content by the next relay |

use std::time::Duration;

use crate::domain::attempt::{ErrorKind, Failure, Outcome};
use crate::domain::mail;

use super::failure;

/// Most characters of a reply that are kept.
const MAX_REPLY_CHARS: usize = 512;

/// Where a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// Looking up the name and connecting.
    Connect,
    /// The greeting, EHLO, and STARTTLS.
    Hello,
    /// Logging in.
    Auth,
    /// MAIL FROM.
    Sender,
    /// RCPT TO.
    Recipient,
    /// DATA, before anything of the content was sent.
    Data,
    /// From the content's first byte on: the server may have taken it.
    Content,
}

/// Why a session ended without success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Problem {
    /// The server said no.
    Refused(Reply),
    /// It said nothing for too long.
    Timeout,
    /// There is no TLS session.
    Tls,
    /// The name has no address.
    Dns,
    /// No connection, or it broke.
    Connection,
    /// What came was not SMTP, or too much.
    Protocol,
    /// The server cannot do what the message needs.
    Unsupported(&'static str),
}

/// A reply on one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) code: u16,
    pub(super) text: String,
}

impl Reply {
    /// A reply, cleaned and cut.
    pub(super) fn new(code: u16, text: &str) -> Self {
        Self { code, text: mail::line(text, MAX_REPLY_CHARS) }
    }

    /// The reply as it is shown.
    pub(super) fn shown(&self) -> String {
        format!("{} {}", self.code, self.text).trim_end().to_owned()
    }

    /// The enhanced status, such as (5, 1, 1).
    fn status(&self) -> Option<(u16, u16, u16)> {
        let mut numbers = self.text.split_whitespace().next()?.split('.');
        let mut number = || numbers.next()?.parse::<u16>().ok();
        let status = (number()?, number()?, number()?);
        (numbers.next().is_none() && status.0 == self.code / 100).then_some(status)
    }

    /// Whether it says, at RCPT, that the address does not work and never will.
    fn is_hard_bounce(&self) -> bool {
        match self.status() {
            // No such mailbox, no such domain, wrong syntax, moved, null MX; the mailbox is disabled.
            Some((5, 1, 0..=3 | 6 | 10) | (5, 2, 1)) => true,
            // Full, too large, routing, protocol, policy: another day, another message.
            Some(_) => false,
            // Without one, the code: 552 and 554 are full mailboxes and policy.
            None => matches!(self.code, 550 | 551 | 553 | 556),
        }
    }
}

/// What becomes of the delivery.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Verdict {
    pub(super) outcome: Outcome,
    /// The last reply; empty for none.
    pub(super) reply: String,
    /// The relay that it is about, as tenants see it; empty for none.
    pub(super) relay: String,
    pub(super) failure: Option<Failure>,
}

const RETRY: Outcome = Outcome::Retry { retry_after: None };

impl Verdict {
    pub(super) fn delivered(reply: String) -> Self {
        Self { outcome: Outcome::Delivered, reply, relay: String::new(), failure: None }
    }

    /// Our configuration is to blame; nobody's address.
    pub(super) fn ours(message: &str) -> Self {
        Self {
            outcome: RETRY,
            reply: String::new(),
            relay: String::new(),
            failure: failure(ErrorKind::Configuration, message),
        }
    }

    /// It will never work, and no server was asked.
    pub(super) fn permanent(kind: ErrorKind, message: &str) -> Self {
        let outcome = Outcome::Permanent;
        Self {
            outcome,
            reply: String::new(),
            relay: String::new(),
            failure: failure(kind, message),
        }
    }

    /// What came of it by way of `relay`: said where it failed, too.
    pub(super) fn by(mut self, relay: &str) -> Self {
        if let Some(failure) = &mut self.failure {
            failure.message = format!("{} The relay: {relay}.", failure.message);
        }
        relay.clone_into(&mut self.relay);
        self
    }

    /// Its turn is too far away.
    pub(super) fn paced(wait: Duration) -> Self {
        let message =
            "More messages wait than the configured rate lets out; this one is sent later.";
        Self { outcome: Outcome::Retry { retry_after: Some(wait) }, ..Self::ours(message) }
    }
}

/// Whether another relay may be asked in the same attempt.
pub(super) fn may_go_on(stage: Stage, problem: &Problem) -> bool {
    match problem {
        Problem::Refused(reply) => {
            stage <= Stage::Sender || (stage < Stage::Content && reply.code == 421)
        }
        _ => stage < Stage::Content,
    }
}

/// What becomes of the delivery whose session ended with `problem` at `stage`.
pub(super) fn judge(stage: Stage, problem: &Problem) -> Verdict {
    let failed = |kind, message: &str| Verdict {
        outcome: RETRY,
        reply: String::new(),
        relay: String::new(),
        failure: failure(kind, message),
    };
    match problem {
        Problem::Refused(reply) => {
            let (outcome, kind, message) = refused(stage, reply);
            Verdict {
                outcome,
                reply: reply.shown(),
                relay: String::new(),
                failure: failure(kind, message),
            }
        }
        Problem::Timeout => failed(ErrorKind::Timeout, "The mail server did not answer in time."),
        Problem::Tls => failed(
            ErrorKind::Tls,
            "No TLS session with the mail server: it does not offer one, or its certificate is not \
             trusted.",
        ),
        Problem::Dns => failed(ErrorKind::Dns, "The mail server's name does not resolve."),
        Problem::Connection if stage == Stage::Content => failed(
            ErrorKind::Protocol,
            "The mail server hung up before it confirmed the message, which may have been taken.",
        ),
        Problem::Connection if stage == Stage::Connect => {
            failed(ErrorKind::Connect, "The mail server cannot be reached.")
        }
        Problem::Connection => failed(ErrorKind::Protocol, "The mail server hung up."),
        Problem::Protocol => failed(ErrorKind::Protocol, "The mail server's answer was not SMTP."),
        Problem::Unsupported(what) => Verdict::permanent(ErrorKind::Smtp, what),
    }
}

fn refused(stage: Stage, reply: &Reply) -> (Outcome, ErrorKind, &'static str) {
    let is_permanent = reply.code / 100 == 5;
    match stage {
        _ if !is_permanent => (RETRY, ErrorKind::Smtp, "The mail server said to try again later."),
        Stage::Connect | Stage::Hello | Stage::Auth | Stage::Sender => (
            RETRY,
            ErrorKind::Configuration,
            "The mail server does not take messages from this service. An operator has to look at \
             the relay, its credentials and mail-from.",
        ),
        Stage::Recipient if matches!(reply.code, 530 | 534 | 535 | 538) => (
            RETRY,
            ErrorKind::Configuration,
            "The mail server wants this service to log in. An operator has to look at smtp-url.",
        ),
        Stage::Recipient if reply.is_hard_bounce() => {
            (Outcome::Bounced, ErrorKind::Smtp, "There is no such address.")
        }
        Stage::Recipient => {
            (Outcome::Permanent, ErrorKind::Smtp, "The mail server refused the recipient.")
        }
        Stage::Data | Stage::Content => {
            (Outcome::Permanent, ErrorKind::Smtp, "The mail server refused the message.")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use ErrorKind::{Configuration, Smtp};
    use Outcome::{Bounced, Permanent};
    use Stage::{Auth, Content, Data, Hello, Recipient, Sender};

    #[test]
    fn every_refusal_has_its_meaning() {
        for (stage, code, text, outcome, kind, goes_on) in [
            (Hello, 421, "4.3.2 busy", RETRY, Smtp, true),
            (Hello, 554, "no", RETRY, Configuration, true),
            (Auth, 535, "5.7.8 bad credentials", RETRY, Configuration, true),
            (Auth, 454, "4.7.0 later", RETRY, Smtp, true),
            (Sender, 450, "later", RETRY, Smtp, true),
            (Sender, 550, "5.7.1 not from you", RETRY, Configuration, true),
            (Recipient, 421, "closing", RETRY, Smtp, true),
            (Recipient, 450, "4.2.1 greylisted", RETRY, Smtp, false),
            (Recipient, 452, "4.2.2 full", RETRY, Smtp, false),
            (Recipient, 530, "5.7.0 log in", RETRY, Configuration, false),
            (Recipient, 550, "5.1.1 no such user", Bounced, Smtp, false),
            (Recipient, 550, "5.1.10 null MX", Bounced, Smtp, false),
            (Recipient, 550, "5.2.1 disabled", Bounced, Smtp, false),
            (Recipient, 550, "no such user", Bounced, Smtp, false),
            (Recipient, 551, "moved", Bounced, Smtp, false),
            (Recipient, 553, "syntax", Bounced, Smtp, false),
            (Recipient, 550, "5.7.1 relaying denied", Permanent, Smtp, false),
            (Recipient, 550, "5.2.2 full", Permanent, Smtp, false),
            (Recipient, 552, "full", Permanent, Smtp, false),
            (Recipient, 554, "policy", Permanent, Smtp, false),
            // A status of another class than the code says nothing.
            (Recipient, 554, "4.1.1 odd", Permanent, Smtp, false),
            (Data, 451, "later", RETRY, Smtp, false),
            (Data, 421, "closing", RETRY, Smtp, true),
            (Data, 554, "no valid recipients", Permanent, Smtp, false),
            (Content, 421, "closing", RETRY, Smtp, false),
            (Content, 452, "4.3.1 disk", RETRY, Smtp, false),
            (Content, 550, "5.1.1 no such user", Permanent, Smtp, false),
            (Content, 552, "5.3.4 too large", Permanent, Smtp, false),
            (Content, 554, "5.7.1 spam", Permanent, Smtp, false),
        ] {
            let problem = Problem::Refused(Reply::new(code, text));
            let verdict = judge(stage, &problem);
            let told = verdict.failure.expect("told").kind;
            assert_eq!((verdict.outcome, told), (outcome, kind), "{stage:?} {code} {text}");
            assert_eq!(may_go_on(stage, &problem), goes_on, "{stage:?} {code} {text}");
            assert_eq!(verdict.reply, format!("{code} {text}"));
        }
    }

    #[test]
    fn a_message_that_may_be_taken_goes_to_no_other_relay() {
        for problem in [Problem::Timeout, Problem::Connection, Problem::Protocol, Problem::Tls] {
            assert!(may_go_on(Data, &problem) && !may_go_on(Content, &problem), "{problem:?}");
            assert_eq!(judge(Content, &problem).outcome, RETRY, "{problem:?}");
        }
    }

    #[test]
    fn a_reply_is_one_short_line() {
        let reply = Reply::new(550, &format!("5.1.1 a\r\nb\0\u{202E}{}", "c".repeat(100_000)));
        assert!(reply.shown().starts_with("550 5.1.1 a b\u{FFFD}\u{FFFD}cc"));
        assert!(reply.shown().chars().count() <= MAX_REPLY_CHARS + 4);
        assert!(reply.is_hard_bounce());
    }
}
