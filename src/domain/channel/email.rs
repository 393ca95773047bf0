//! The settings of an email channel.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::domain::mail_address::{self, MailAddress};
use crate::domain::{Timestamp, Violations, mail};

/// The shortest and the longest window of a digest.
const WINDOW: std::ops::RangeInclusive<Duration> =
    Duration::from_mins(15)..=Duration::from_hours(7 * 24);
/// Most mails an hour that a digest may ask for: more would be no digest.
const MAX_PER_HOUR: u32 = 60;
const HOUR: Duration = Duration::from_hours(1);

/// The settings of an email channel.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EmailChannel {
    /// Addresses, one an item.
    pub recipients: Vec<String>,
    /// A template's source; empty for the event type's, or else the built-in one.
    pub template: String,
    /// The address that answers go to; empty for none.
    pub reply_to: String,
    /// One mail for the events of a window; `None` for one mail an event.
    #[serde(default)]
    pub digest: Option<Digest>,
}

/// How events are collected into one mail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// The window; zero when `max_per_hour` says it.
    pub interval: Duration,
    /// At most so many mails an hour: windows of an equal part of an hour; 0 when `interval` says it.
    pub max_per_hour: u32,
}

impl Digest {
    /// The time that one mail covers.
    pub fn window(&self) -> Duration {
        HOUR.checked_div(self.max_per_hour).unwrap_or(self.interval)
    }

    /// When the window ends in which `now` lies. Windows follow each other from the Unix epoch on, so
    /// that all replicas, and all deliveries of a window, agree: hours begin at the full hour, days at
    /// midnight, UTC.
    pub fn window_end(&self, now: Timestamp) -> Timestamp {
        let window = i64::try_from(self.window().as_micros()).unwrap_or(i64::MAX).max(1);
        Timestamp::from_micros((now.as_micros() / window + 1).saturating_mul(window))
    }
}

impl EmailChannel {
    /// Checks every field. Lists of addresses in one item are taken apart, duplicates merged.
    ///
    /// # Errors
    /// All violations, with paths below `subscription.email`.
    pub fn validated(mut self) -> Result<Self, Violations> {
        let mut violations = Violations::new();
        let recipients = mail_address::check_list(&self.recipients, "recipients", &mut violations);
        self.recipients = recipients.iter().map(MailAddress::to_string).collect();
        if !self.reply_to.is_empty() {
            let address = mail_address::check_one(&self.reply_to, "reply_to", &mut violations);
            self.reply_to = address.map_or_else(String::new, |address| address.to_string());
        }
        if let Err(error) = mail::check(&self.template) {
            violations.add("template", error.to_string());
        }
        if let Some(digest) = &self.digest {
            check_digest(digest, &mut violations);
        }
        if violations.is_empty() {
            return Ok(self);
        }
        let mut nested = Violations::new();
        nested.nest("subscription.email", violations);
        Err(nested)
    }
}

fn check_digest(digest: &Digest, violations: &mut Violations) {
    match (digest.interval.is_zero(), digest.max_per_hour) {
        (true, 0) => violations.add("digest", "must have an interval, or max_per_hour"),
        (true, count) if count > MAX_PER_HOUR => {
            violations.add("digest.max_per_hour", format!("must be from 1 to {MAX_PER_HOUR}"));
        }
        (false, 0) if !WINDOW.contains(&digest.interval) => {
            violations.add("digest.interval", "must be from 900s (15 minutes) to 604800s (7 days)");
        }
        (true, _) | (false, 0) => {}
        (false, _) => violations
            .add("digest.max_per_hour", "must not be set beside interval: either says the window"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(channel: EmailChannel) -> Vec<String> {
        match channel.validated() {
            Ok(_) => Vec::new(),
            Err(violations) => violations.iter().map(|it| it.field.clone()).collect(),
        }
    }

    #[test]
    fn pasted_lists_are_taken_apart_and_duplicates_merged() {
        let recipients =
            vec!["a@company.com, b@company.com,".to_owned(), " A@company.com".to_owned()];
        let channel = EmailChannel { recipients, ..EmailChannel::default() };
        let validated = channel.validated().expect("addresses");
        assert_eq!(validated.recipients, ["a@company.com", "b@company.com"]);
    }

    #[test]
    fn everything_wrong_is_told_with_its_path() {
        assert_eq!(fields(EmailChannel::default()), ["subscription.email.recipients"]);
        let channel = EmailChannel {
            recipients: vec!["a@company.com".into(), "b@company.com, nobody".into()],
            template: "{% block other %}{% endblock %}".into(),
            reply_to: "x".into(),
            digest: Some(Digest { interval: Duration::from_secs(1), max_per_hour: 0 }),
        };
        let below = ["recipients[1]", "reply_to", "template", "digest.interval"];
        assert_eq!(fields(channel), below.map(|field| format!("subscription.email.{field}")));
        let many =
            (0..=mail_address::MAX_RECIPIENTS).map(|i| format!("a{i}@company.com")).collect();
        let channel = EmailChannel { recipients: many, ..EmailChannel::default() };
        assert_eq!(fields(channel), ["subscription.email.recipients"]);
    }

    #[test]
    fn a_digest_says_its_window_in_one_way() {
        let digest = |interval, max_per_hour| {
            let digest = Digest { interval: Duration::from_secs(interval), max_per_hour };
            let recipients = vec!["a@company.com".into()];
            fields(EmailChannel { recipients, digest: Some(digest), ..EmailChannel::default() })
        };
        assert!(digest(3_600, 0).is_empty() && digest(0, 60).is_empty());
        assert_eq!(digest(0, 0), ["subscription.email.digest"]);
        assert_eq!(digest(0, 61), ["subscription.email.digest.max_per_hour"]);
        assert_eq!(digest(3_600, 4), ["subscription.email.digest.max_per_hour"]);
        assert_eq!(digest(899, 0), ["subscription.email.digest.interval"]);
    }

    #[test]
    fn windows_follow_each_other_without_a_gap() {
        let hourly = Digest { interval: Duration::from_hours(1), max_per_hour: 0 };
        let at = |seconds: i64| Timestamp::from_micros(seconds * 1_000_000);
        assert_eq!(hourly.window_end(at(0)), at(3_600));
        assert_eq!(hourly.window_end(at(3_599)), at(3_600));
        assert_eq!(hourly.window_end(at(3_600)), at(7_200));
        let four = Digest { interval: Duration::ZERO, max_per_hour: 4 };
        assert_eq!(four.window_end(at(100)), at(900));
    }
}
