//! The fields of a subscription as options, for `create` and `update`.

use std::time::Duration;

use super::super::emit::parse_label;
use super::super::output::{names, time};
use super::retry::RetryOptions;
use crate::api::proto::subscription::Channel;
use crate::api::proto::{
    EmailChannel, EmailDigest, PayloadFormat, SignatureScheme, Subscription, WebhookChannel,
};

/// What a subscription is made of.
#[derive(Debug, clap::Args)]
pub(super) struct Fields {
    /// A name for people
    #[arg(long, visible_alias = "name", value_name = "TEXT")]
    display_name: Option<String>,
    /// What to be told of: `billing.paid`, `billing.*`, `*`; may be given several times
    #[arg(long = "event-type", short = 't', value_name = "PATTERN", value_delimiter = ',')]
    event_types: Vec<String>,
    /// A label of your own; may be given several times, and replaces all that there were
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    labels: Vec<(String, String)>,
    #[command(flatten)]
    webhook: WebhookFields,
    #[command(flatten)]
    mail: MailFields,
    #[command(flatten)]
    retry: RetryOptions,
}

/// How requests are sent.
#[derive(Debug, clap::Args)]
struct WebhookFields {
    /// Where to send; otherwise the tenant's `webhook_url`
    #[arg(help_heading = "Webhook", long, value_name = "URL")]
    url: Option<String>,
    /// How requests are signed; several may stand side by side [default: standard-webhooks]
    #[arg(help_heading = "Webhook", long = "signature", value_delimiter = ',',
        value_parser = names::parser::<SignatureScheme>(names::SIGNATURE_SCHEMES))]
    signatures: Vec<SignatureScheme>,
    /// The header of `hmac-sha256-hex` [default: X-Signature]
    #[arg(help_heading = "Webhook", long, value_name = "NAME")]
    signature_header: Option<String>,
    /// The header of `stripe` [default: Stripe-Signature]
    #[arg(help_heading = "Webhook", long, value_name = "NAME")]
    stripe_signature_header: Option<String>,
    /// What the body looks like [default: standard]
    #[arg(help_heading = "Webhook", long, value_parser = names::parser::<PayloadFormat>(names::PAYLOAD_FORMATS))]
    format: Option<PayloadFormat>,
    /// A header of your own; may be given several times, and replaces all that there were
    #[arg(help_heading = "Webhook", long = "header", short = 'H', value_name = "NAME: VALUE", value_parser = parse_header)]
    headers: Vec<(String, String)>,
    /// How long one attempt may take [default: 15s]
    #[arg(help_heading = "Webhook", long, value_name = "DURATION", value_parser = time::parse_duration)]
    timeout: Option<Duration>,
    /// Most requests at the same time [default: 16]
    #[arg(help_heading = "Webhook", long, value_name = "COUNT")]
    max_in_flight: Option<i32>,
    /// Most requests per second [default: no limit]
    #[arg(help_heading = "Webhook", long, value_name = "RATE")]
    max_requests_per_second: Option<f64>,
}

/// How messages are sent. None of this goes with what only requests have.
#[derive(Debug, clap::Args)]
struct MailFields {
    /// Tell by mail instead: an address; may be given several times
    #[arg(help_heading = "Mail", long = "email", value_name = "ADDRESS", conflicts_with_all = OF_REQUESTS)]
    recipients: Vec<String>,
    /// A file with a template in place of the event type's: see docs/email.md
    #[arg(help_heading = "Mail", long, value_name = "FILE", value_parser = read_template, conflicts_with_all = OF_REQUESTS)]
    template: Option<String>,
    /// Where answers go [default: the sender]
    #[arg(help_heading = "Mail", long, value_name = "ADDRESS", conflicts_with_all = OF_REQUESTS)]
    reply_to: Option<String>,
    /// One message for all that happens in a window of this length, such as 1h or 24h
    #[arg(help_heading = "Mail", long, value_name = "DURATION", value_parser = time::parse_duration, conflicts_with_all = OF_REQUESTS)]
    digest: Option<Duration>,
    /// One message for a part of an hour: at most so many an hour
    #[arg(help_heading = "Mail", long, value_name = "COUNT", conflicts_with = "digest", conflicts_with_all = OF_REQUESTS)]
    max_per_hour: Option<i32>,
}

/// Flags that only requests have.
const OF_REQUESTS: [&str; 9] = [
    "url",
    "signatures",
    "signature_header",
    "stripe_signature_header",
    "format",
    "headers",
    "timeout",
    "max_in_flight",
    "max_requests_per_second",
];
/// Flags that only messages have.
pub(super) const OF_MAIL: [&str; 5] =
    ["recipients", "template", "reply_to", "digest", "max_per_hour"];

/// Reads a file with a template.
pub(crate) fn read_template(path: &str) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| error.to_string())
}

impl Fields {
    /// The subscription, and the paths of the fields that are given.
    pub(super) fn subscription(self) -> (Subscription, Vec<&'static str>) {
        let retry_policy = self.retry.policy();
        let given = [
            ("display_name", self.display_name.is_some()),
            ("event_types", !self.event_types.is_empty()),
            ("labels", !self.labels.is_empty()),
            ("retry_policy", retry_policy.is_some()),
        ];
        let (webhook, webhook_given) = self.webhook.channel();
        let (email, email_given) = self.mail.channel();
        let channel =
            if email_given.is_empty() { Channel::Webhook(webhook) } else { Channel::Email(email) };
        let subscription = Subscription {
            display_name: self.display_name.unwrap_or_default(),
            event_types: self.event_types,
            labels: self.labels.into_iter().collect(),
            retry_policy,
            channel: Some(channel),
            ..Subscription::default()
        };
        (subscription, paths(given).chain(webhook_given).chain(email_given).collect())
    }
}

impl WebhookFields {
    fn channel(self) -> (WebhookChannel, Vec<&'static str>) {
        let given = [
            ("webhook.url", self.url.is_some()),
            ("webhook.signatures", !self.signatures.is_empty()),
            ("webhook.signature_header", self.signature_header.is_some()),
            ("webhook.stripe_signature_header", self.stripe_signature_header.is_some()),
            ("webhook.payload_format", self.format.is_some()),
            ("webhook.headers", !self.headers.is_empty()),
            ("webhook.timeout", self.timeout.is_some()),
            ("webhook.max_in_flight", self.max_in_flight.is_some()),
            ("webhook.max_requests_per_second", self.max_requests_per_second.is_some()),
        ];
        let channel = WebhookChannel {
            url: self.url.unwrap_or_default(),
            signatures: self.signatures.into_iter().map(i32::from).collect(),
            signature_header: self.signature_header.unwrap_or_default(),
            payload_format: self.format.unwrap_or_default().into(),
            headers: self.headers.into_iter().collect(),
            timeout: self.timeout.map(time::duration_to_proto),
            max_in_flight: self.max_in_flight.unwrap_or_default(),
            max_requests_per_second: self.max_requests_per_second.unwrap_or_default(),
            stripe_signature_header: self.stripe_signature_header.unwrap_or_default(),
        };
        (channel, paths(given).collect())
    }
}

impl MailFields {
    fn channel(self) -> (EmailChannel, Vec<&'static str>) {
        let has_digest = self.digest.is_some() || self.max_per_hour.is_some();
        let given = [
            ("email.recipients", !self.recipients.is_empty()),
            ("email.template", self.template.is_some()),
            ("email.reply_to", self.reply_to.is_some()),
            ("email.digest", has_digest),
        ];
        let digest = has_digest.then(|| EmailDigest {
            interval: self.digest.map(time::duration_to_proto),
            max_per_hour: self.max_per_hour.unwrap_or_default(),
        });
        let channel = EmailChannel {
            recipients: self.recipients,
            template: self.template.unwrap_or_default(),
            reply_to: self.reply_to.unwrap_or_default(),
            digest,
        };
        (channel, paths(given).collect())
    }
}

fn paths<const N: usize>(given: [(&'static str, bool); N]) -> impl Iterator<Item = &'static str> {
    given.into_iter().filter(|(_, given)| *given).map(|(path, _)| path)
}

/// Reads `Name: value`.
fn parse_header(text: &str) -> Result<(String, String), String> {
    match text.split_once(':') {
        Some((name, value)) if !name.trim().is_empty() => {
            Ok((name.trim().to_owned(), value.trim().to_owned()))
        }
        _ => Err(format!("`{text}` is no header; write 'Name: value'")),
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args, Command, FromArgMatches};

    use super::*;

    fn parse(args: &[&str]) -> (Subscription, Vec<&'static str>) {
        let command = Fields::augment_args(Command::new("test").no_binary_name(true));
        let matches = command.try_get_matches_from(args).unwrap();
        Fields::from_arg_matches(&matches).unwrap().subscription()
    }

    #[test]
    fn the_mask_names_what_is_given() {
        let (subscription, given) =
            parse(&["--timeout", "5s", "-t", "a.*,b", "--max-retries", "0", "-H", "X-A: b: c"]);
        assert_eq!(given, ["event_types", "retry_policy", "webhook.headers", "webhook.timeout"]);
        assert_eq!(subscription.event_types, ["a.*", "b"]);
        let Some(Channel::Webhook(webhook)) = subscription.channel else { panic!("no webhook") };
        assert_eq!(webhook.headers["X-A"], "b: c");

        let (subscription, given) = parse(&[
            "--signature",
            "stripe,standard-webhooks-ed25519",
            "--stripe-signature-header",
            "X-B",
            "--format",
            "cloudevents-binary",
        ]);
        let paths = ["signatures", "stripe_signature_header", "payload_format"];
        assert_eq!(given, paths.map(|path| format!("webhook.{path}")));
        let Some(Channel::Webhook(webhook)) = subscription.channel else { panic!("no webhook") };
        assert_eq!(webhook.stripe_signature_header, "X-B");
        assert_eq!(webhook.signatures, [5, 2]);
    }

    #[test]
    fn what_only_requests_have_is_refused_beside_mail() {
        for flags in [
            ["--timeout", "5s"],
            ["--max-in-flight", "2"],
            ["--max-requests-per-second", "2"],
            ["--url", "https://company.com/"],
            ["--format", "flat"],
        ] {
            for mail in [["--email", "a@example.com"], ["--reply-to", "a@example.com"]] {
                let command = Fields::augment_args(Command::new("test").no_binary_name(true));
                let error = command.try_get_matches_from([mail, flags].concat()).unwrap_err();
                assert!(error.to_string().contains(flags[0]), "{error}");
            }
        }
    }

    #[test]
    fn mail_takes_the_place_of_a_webhook() {
        let (subscription, given) = parse(&["--email", "a@example.com"]);
        assert_eq!(given, ["email.recipients"]);
        assert!(matches!(subscription.channel, Some(Channel::Email(_))));
        let (subscription, given) = parse(&["--reply-to", "b@example.com", "--digest", "1h"]);
        assert_eq!(given, ["email.reply_to", "email.digest"]);
        let Some(Channel::Email(email)) = subscription.channel else { panic!("mail") };
        assert_eq!(email.reply_to, "b@example.com");
        assert_eq!(email.digest.and_then(|it| it.interval).map(|it| it.seconds), Some(3_600));
        assert_eq!(parse(&["--max-per-hour", "4"]).1, ["email.digest"]);
        assert_eq!(parse(&[]).1, Vec::<&str>::new());
    }
}
