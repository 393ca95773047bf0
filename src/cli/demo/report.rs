//! What the demo has shown: numbers for people, and whether everything came as it should.

use std::time::Duration;

use super::super::Error;
use super::super::output::{Output, Style, table, time};
use super::board::Board;
use super::burst::{self, Accepted, grouped, rate};
use super::ledger::{Ledger, has_ended};
use super::receivers::{Receivers, Role};
use super::scene::{BURST_TYPE, CONTACT, PARTS, SCENES};
use super::service::Folder;
use crate::api::proto::{Delivery, DeliveryState};
use crate::domain::trace::TraceContext;

/// The columns before a value: the margin, the longest label and a gap.
const MARGIN: usize = 14;

/// Everything that was seen.
pub(super) struct Report<'a> {
    pub(super) board: &'a Board,
    pub(super) ledger: &'a Ledger,
    pub(super) receivers: &'a Receivers,
    /// The burst; `None` without one.
    pub(super) burst: Option<Accepted>,
    /// What the first event was emitted with.
    pub(super) trace: TraceContext,
    /// What a forged request was answered with.
    pub(super) forged_status: u16,
    /// The mail to the tenant's contact.
    pub(super) mail: &'a Mail<'a>,
}

/// What the tenant's contact got by mail.
pub(super) struct Mail<'a> {
    pub(super) folder: &'a Folder,
    /// Under which its deliveries are.
    pub(super) subscription_id: String,
}

impl Mail<'_> {
    fn delivery<'l>(&self, ledger: &'l Ledger, event_id: &str) -> Option<&'l Delivery> {
        ledger.get(event_id, &self.subscription_id)
    }

    /// Whether a message is where it should be.
    fn has_come(&self, delivery: &Delivery) -> bool {
        delivery.state() == DeliveryState::Succeeded && self.folder.message(&delivery.id).is_file()
    }
}

impl Report<'_> {
    /// What did not come as it should: empty when all is well.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for (scene, event_id) in SCENES.iter().zip(self.board.events()) {
            for (number, part) in PARTS.iter().enumerate() {
                let delivery = self.ledger.get(event_id, self.board.subscription(number));
                let name = format!("{} to {}", scene.event_type, part.name);
                match delivery {
                    None if part.wants(scene.event_type) => {
                        problems.push(format!("{name}: never made"));
                    }
                    Some(_) if !part.wants(scene.event_type) => {
                        problems.push(format!("{name}: nobody wanted it"));
                    }
                    Some(delivery) => problems.extend(
                        self.problem_of(delivery, number).map(|text| format!("{name}: {text}")),
                    ),
                    None => {}
                }
            }
        }
        problems.extend(self.problems_of_receivers());
        for (scene, event_id) in SCENES.iter().zip(self.board.events()) {
            let delivery = self.mail.delivery(self.ledger, event_id);
            if !delivery.is_some_and(|delivery| self.mail.has_come(delivery)) {
                problems.push(format!("{} to {CONTACT}: no message came", scene.event_type));
            }
        }
        problems
    }

    /// How many messages came, and one to open.
    fn mailed(&self, output: Output) -> String {
        let ids = self.board.events().iter();
        let mut mails = ids.filter_map(|id| self.mail.delivery(self.ledger, id));
        let count = mails.clone().filter(|delivery| self.mail.has_come(delivery)).count();
        let one =
            mails.next_back().map(|it| self.mail.folder.message(&it.id).display().to_string());
        let count = output.paint(Style::Good, &count.to_string());
        let open = output.paint(Style::Dim, "to open:");
        format!("{count} messages to {CONTACT}, text and HTML\n{open} {}", one.unwrap_or_default())
    }

    fn problem_of(&self, delivery: &Delivery, number: usize) -> Option<String> {
        let part = &PARTS[number];
        let expected = match part.role {
            Role::Refusing => DeliveryState::Failed,
            Role::Good | Role::Flaky => DeliveryState::Succeeded,
        };
        if delivery.state() != expected {
            return Some(format!("{} in place of {}", name(delivery.state()), name(expected)));
        }
        if delivery.attempt_count != part.attempts() {
            let (made, expected) = (delivery.attempt_count, part.attempts());
            return Some(format!("{made} attempts in place of {expected}"));
        }
        let has_accepted = self.receivers.seen().has_accepted(part, &delivery.id);
        (has_accepted != (expected == DeliveryState::Succeeded))
            .then(|| "the receiver says otherwise".to_owned())
    }

    fn problems_of_receivers(&self) -> Vec<String> {
        let seen = self.receivers.seen();
        let mut problems = Vec::new();
        if self.forged_status != 401 || seen.refusals() != 1 {
            let status = self.forged_status;
            problems.push(format!(
                "signatures: 1 request was forged, and answered {status}; refused were:"
            ));
            let refused = seen.refused.iter();
            problems.extend(refused.map(|(reason, count)| format!("  {count} because {reason}")));
        }
        if let Some(burst) = &self.burst
            && burst.count() != seen.burst_count
        {
            let (accepted, delivered) = (burst.count(), seen.burst_count);
            problems.push(format!("burst: {accepted} accepted, {delivered} delivered"));
        }
        drop(seen);
        if self.received().is_none_or(|received| received.trace_id != self.trace.trace_id) {
            problems.push("trace: the receiver did not see the trace that Emit began".to_owned());
        }
        problems
    }

    /// The trace context that the first receiver saw with the first event.
    fn received(&self) -> Option<TraceContext> {
        let event_id = self.board.events().first()?;
        let delivery = self.ledger.get(event_id, self.board.subscription(0))?;
        TraceContext::parse(self.receivers.seen().traceparent(&delivery.id))
    }

    /// Prints the numbers.
    ///
    /// # Errors
    /// When nobody reads.
    pub(super) fn print(&self, output: Output, elapsed: Duration) -> Result<(), Error> {
        output.line("")?;
        let took = output.paint(Style::Dim, &format!("after {}", time::coarse(elapsed)));
        output.line(&format!("{} {took}", output.paint(Style::Strong, "Summary")))?;
        let mut lines = vec![("deliveries", self.deliveries(output))];
        lines.extend(self.speed(output).into_iter().flatten());
        lines.push(("mail", self.mailed(output)));
        lines.push(("retries", self.retries()));
        lines.push(("signatures", self.signatures(output)));
        lines.push(("trace", self.traced(output)));
        let labelled: Vec<_> =
            lines.iter().map(|(label, text)| (format!("  {label}"), text.clone())).collect();
        let fields: Vec<_> =
            labelled.iter().map(|(label, text)| (label.as_str(), text.clone())).collect();
        output.fields(&fields)
    }

    fn deliveries(&self, output: Output) -> String {
        let refusing = self.subscriptions(Role::Refusing);
        let succeeded = self.ledger.count(DeliveryState::Succeeded);
        let open = self.ledger.all().filter(|delivery| !has_ended(delivery)).count();
        let refused = self.ledger.all().filter(|delivery| {
            delivery.state() == DeliveryState::Failed
                && refusing.contains(&delivery.subscription_id.as_str())
        });
        let refused = refused.count();
        let others = self.ledger.all().count() - succeeded - open - refused;
        let counts = [
            (succeeded, Style::Good, "succeeded"),
            (refused, Style::Error, "given up, as `ops` refuses all"),
            (others, Style::Error, "ended otherwise"),
            (open, Style::Pending, "not ended"),
        ];
        let parts =
            counts.into_iter().filter(|(count, ..)| *count > 0).map(|(count, style, word)| {
                let count = grouped(u64::try_from(count).unwrap_or(u64::MAX));
                format!("{} {word}", output.paint(style, &count))
            });
        parts.collect::<Vec<_>>().join(" · ")
    }

    /// The subscriptions whose receivers play this role.
    fn subscriptions(&self, role: Role) -> Vec<&str> {
        let parts = PARTS.iter().enumerate().filter(|(_, part)| part.role == role);
        parts.map(|(number, _)| self.board.subscription(number)).collect()
    }

    fn speed(&self, output: Output) -> Option<[(&'static str, String); 2]> {
        let accepted = self.burst.as_ref()?;
        let of = |count, duration, details: &[&str]| {
            let rate = format!("{} events/s", grouped(rate(count, duration)));
            let detail = |text: &&str| {
                let lines = table::wrap(text, output.width().saturating_sub(MARGIN));
                let lines = lines.iter().map(|line| output.paint(Style::Dim, line));
                lines.collect::<Vec<_>>().join("\n")
            };
            let details: Vec<_> = details.iter().map(detail).collect();
            format!("{}\n{}", output.paint(Style::Accent, &rate), details.join("\n"))
        };
        let seen = self.receivers.seen();
        let until_end = seen.burst_end.map(|end| end.since(accepted.start)).unwrap_or_default();
        let callers = format!(
            "{} events from {} callers: half within {}, 99 % within {}",
            grouped(u64::try_from(accepted.count()).unwrap_or(u64::MAX)),
            burst::CALLERS.min(accepted.count()),
            time::coarse(accepted.percentile(50)),
            time::coarse(accepted.percentile(99)),
        );
        let durable = "each on disk before it was acknowledged";
        let mut details = vec!["each signed, sent, and verified by its receiver"];
        if cfg!(debug_assertions) {
            details.push("this is a debug build: with `cargo run --release` it is faster");
        }
        Some([
            ("accepted", of(accepted.count(), accepted.duration, &[durable, &callers])),
            ("delivered", of(seen.burst_count, until_end, &details)),
        ])
    }

    fn retries(&self) -> String {
        let of = |role: Role| -> i32 {
            let ids = self.subscriptions(role);
            let deliveries =
                self.ledger.all().filter(|one| ids.contains(&one.subscription_id.as_str()));
            deliveries.map(|delivery| (delivery.attempt_count - 1).max(0)).sum()
        };
        let (flaky, refusing) = (of(Role::Flaky), of(Role::Refusing));
        format!("{}: {flaky} to `crm`, {refusing} to `ops`", self.ledger.retries())
    }

    fn signatures(&self, output: Output) -> String {
        let seen = self.receivers.seen();
        let verified = output.paint(Style::Good, &grouped(seen.verified));
        let refused = output.paint(Style::Error, &seen.refusals().to_string());
        format!("{verified} verified by the receivers · {refused} refused (the demo forged 1)")
    }

    fn traced(&self, output: Output) -> String {
        let received = self.received().map_or_else(|| "?".to_owned(), |trace| trace.to_string());
        let sent = self.trace.to_string();
        let label = |text| output.paint(Style::Dim, text);
        format!("{sent}  {}\n{received}  {}", label("Emit"), label(PARTS[0].name))
    }
}

/// A failed delivery and one that took several attempts: good ones to look at.
pub(super) fn worth_a_look<'a>(board: &Board, ledger: &'a Ledger) -> Vec<&'a Delivery> {
    let of = |role: Role| {
        let number = PARTS.iter().position(|part| part.role == role)?;
        let subscription_id = board.subscription(number);
        board.events().iter().find_map(|event_id| ledger.get(event_id, subscription_id))
    };
    [Role::Flaky, Role::Refusing].into_iter().filter_map(of).collect()
}

/// How many deliveries of the burst the service calls succeeded.
pub(super) fn burst_succeeded(ledger: &Ledger) -> usize {
    let succeeded =
        |one: &&Delivery| one.event_type == BURST_TYPE && one.state() == DeliveryState::Succeeded;
    ledger.all().filter(succeeded).count()
}

fn name(state: DeliveryState) -> &'static str {
    state.as_str_name().trim_start_matches("DELIVERY_STATE_")
}
