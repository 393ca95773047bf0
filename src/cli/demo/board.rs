//! The live table: one row per event, one column per subscription, each cell a delivery.
//!
//! On a terminal it is redrawn in place, with a line below it that counts. Elsewhere each change is
//! a line of its own, and the table comes once, at the end.

use std::io::Write;
use std::time::Duration;

use super::super::Error;
use super::super::output::{Output, Style, table, time};
use super::ledger::{Ledger, failures, has_ended};
use super::scene::{PARTS, Part, SCENES};
use crate::api::proto::{Delivery, DeliveryState};
use crate::domain::Timestamp;

/// The columns' widths: with gaps and margin 79, so that 80 columns suffice. A terminal that is
/// narrower sees the left part.
const EVENT_WIDTH: usize = 17;
const CELL_WIDTH: usize = 10;
/// More failures than this are told by their number.
const MAX_MARKS: usize = 4;
/// How to read the table.
const LEGEND: &str = "✓ accepted   ✗ attempt that failed   · not subscribed";
/// Hides the cursor, which would dance over the table, and shows it again.
const HIDE_CURSOR: &str = "\x1b[?25l";
const SHOW_CURSOR: &str = "\x1b[?25h";

/// The table and where it stands on the screen.
pub(super) struct Board {
    output: Output,
    is_live: bool,
    drawn: usize,
    start: Timestamp,
    subscriptions: [String; 4],
    /// The id under which the tenant's contact gets its mail.
    contact: String,
    events: Vec<String>,
}

/// What the column of the contact's mail is called.
const CONTACT: &str = "contact";

impl Board {
    /// A table without events.
    pub(super) fn new(
        output: Output,
        subscriptions: &[(String, String); 4],
        contact: String,
    ) -> Self {
        // Heading, events, and what stands below them.
        let lines = SCENES.len() + 5;
        Self {
            output,
            is_live: output.is_redrawable(lines),
            drawn: 0,
            start: time::now(),
            subscriptions: subscriptions.clone().map(|(id, _)| id),
            contact,
            events: Vec::new(),
        }
    }

    /// Adds the next event of the scene.
    pub(super) fn add(&mut self, event_id: String) {
        self.events.push(event_id);
    }

    /// The ids of the events, in the order of the scene.
    pub(super) fn events(&self) -> &[String] {
        &self.events
    }

    /// The columns: name, subscription, and the part of a webhook's.
    fn columns(&self) -> impl Iterator<Item = (&'static str, &str, Option<&'static Part>)> {
        let webhooks = PARTS.iter().zip(&self.subscriptions);
        let webhooks = webhooks.map(|(part, id)| (part.name, id.as_str(), Some(part)));
        webhooks.chain(std::iter::once((CONTACT, self.contact.as_str(), None)))
    }

    /// The id of a part's subscription.
    pub(super) fn subscription(&self, part: usize) -> &str {
        &self.subscriptions[part]
    }

    /// Shows a change: at once as a line, or with the next [`Board::draw`].
    ///
    /// # Errors
    /// When nobody reads.
    pub(super) fn tell(&self, delivery: &Delivery) -> Result<(), Error> {
        let column = self.columns().find(|(_, id, _)| *id == delivery.subscription_id);
        let (false, Some((name, _, part))) = (self.is_live, column) else {
            return Ok(());
        };
        if delivery.attempt_count == 0 || delivery.state() == DeliveryState::Delivering {
            return Ok(());
        }
        let elapsed = format!("+{:.3} s", time::now().since(self.start).as_secs_f64());
        let attempt = delivery.last_attempt.as_ref();
        let status = match part {
            Some(_) => attempt.map_or(0, |attempt| attempt.http_status).to_string(),
            // Where mail goes here: a folder.
            None => "file".to_owned(),
        };
        let answer = format!("attempt {} → {status}", delivery.attempt_count);
        let (style, word) = match delivery.state() {
            DeliveryState::Succeeded => (Style::Good, "SUCCEEDED"),
            DeliveryState::Scheduled => (Style::Pending, "will be retried"),
            state => (Style::of_state(state), "FAILED"),
        };
        self.output.line(&format!(
            "  {}  {} → {}  {}  {}",
            table::fit(&elapsed, 9),
            table::fit(&delivery.event_type, EVENT_WIDTH),
            table::fit(name, 7),
            table::fit(&answer, 15),
            self.output.paint(style, word)
        ))
    }

    /// Draws the table anew over itself, on a terminal.
    ///
    /// # Errors
    /// When nobody reads.
    pub(super) fn draw(&mut self, ledger: &Ledger) -> Result<(), Error> {
        if !self.is_live {
            return Ok(());
        }
        let mut lines = self.lines(ledger);
        lines.push(self.counts(ledger));
        // A terminal that was made narrower meanwhile must not wrap: the count of lines stays right.
        let mut frame = format!("{HIDE_CURSOR}\x1b[?7l");
        if self.drawn > 0 {
            frame = format!("{frame}\x1b[{}A", self.drawn);
        }
        for line in &lines {
            frame.extend(["\r\x1b[2K", line, "\n"]);
        }
        frame.push_str("\x1b[?7h");
        self.drawn = lines.len();
        write(&frame)
    }

    /// What has happened up to now, in one line.
    fn counts(&self, ledger: &Ledger) -> String {
        let elapsed = time::now().since(self.start).as_secs_f64();
        let ended = ledger.all().filter(|delivery| has_ended(delivery)).count();
        let text = format!(
            "  {elapsed:.1} s   {} of {} events   {} deliveries, {ended} ended   {} retries",
            self.events.len(),
            SCENES.len(),
            ledger.all().count(),
            ledger.retries(),
        );
        self.output.paint(Style::Accent, &table::clip(&text, self.output.width()))
    }

    /// Draws the table as it is at the end, on a terminal or not.
    ///
    /// # Errors
    /// When nobody reads.
    pub(super) fn finish(&mut self, ledger: &Ledger) -> Result<(), Error> {
        if self.is_live {
            self.draw(ledger)?;
            return write(SHOW_CURSOR);
        }
        self.output.line("")?;
        self.lines(ledger).iter().try_for_each(|line| self.output.line(line))
    }

    fn lines(&self, ledger: &Ledger) -> Vec<String> {
        let mut heading = format!("  {}", table::fit("EVENT", EVENT_WIDTH));
        for (name, ..) in self.columns() {
            heading.push_str("  ");
            heading.push_str(&table::fit(&name.to_uppercase(), CELL_WIDTH));
        }
        let mut lines = vec![self.output.paint(Style::Strong, heading.trim_end())];
        for (index, scene) in SCENES.iter().enumerate() {
            let mut line = format!("  {}", table::fit(scene.event_type, EVENT_WIDTH));
            let event_id = self.events.get(index);
            if event_id.is_none() {
                line = self.output.paint(Style::Dim, &line);
            }
            for (_, subscription_id, part) in self.columns() {
                let delivery = event_id.and_then(|id| ledger.get(id, subscription_id));
                let is_wanted = part.is_none_or(|part| part.wants(scene.event_type));
                let cell = Cell::of(delivery, event_id.is_some() && is_wanted);
                line.push_str("  ");
                line.push_str(&cell.render(self.output));
            }
            line.truncate(line.trim_end().len());
            lines.push(line);
        }
        lines.push(String::new());
        lines.push(format!("  {}", self.output.paint(Style::Dim, LEGEND)));
        let width = self.output.width();
        lines.iter().map(|line| table::clip(line, width)).collect()
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        if self.is_live && self.drawn > 0 {
            // Also after Ctrl-C. Whether anybody still reads does not matter.
            let _ = write(SHOW_CURSOR);
        }
    }
}

fn write(text: &str) -> Result<(), Error> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}

/// A delivery in a few characters: a mark per attempt, and how it stands.
#[derive(Debug, PartialEq, Eq)]
struct Cell {
    failures: usize,
    has_succeeded: bool,
    text: String,
    style: Style,
}

impl Cell {
    fn of(delivery: Option<&Delivery>, is_wanted: bool) -> Self {
        let Some(delivery) = delivery else {
            let text = if is_wanted { "…" } else { "·" }.to_owned();
            return Self { failures: 0, has_succeeded: false, text, style: Style::Dim };
        };
        let has_succeeded = delivery.state() == DeliveryState::Succeeded;
        let text = match delivery.state() {
            DeliveryState::Succeeded => time::coarse(took(delivery)),
            DeliveryState::Scheduled if delivery.attempt_count > 0 => "retry".to_owned(),
            DeliveryState::Scheduled | DeliveryState::Delivering => "…".to_owned(),
            _ => "failed".to_owned(),
        };
        let style = match has_ended(delivery) {
            true if has_succeeded => Style::Plain,
            true => Style::Error,
            false => Style::Pending,
        };
        let failures = usize::try_from(failures(delivery)).unwrap_or(0);
        Self { failures, has_succeeded, text, style }
    }

    fn render(&self, output: Output) -> String {
        let failures = match self.failures {
            count @ ..=MAX_MARKS => "✗".repeat(count),
            count => format!("✗×{count}"),
        };
        let marks = table::width(&failures) + usize::from(self.has_succeeded);
        let gap = if marks == 0 { "" } else { " " };
        let used = marks + gap.len() + table::width(&self.text);
        format!(
            "{}{}{gap}{}{}",
            output.paint(Style::Error, &failures),
            output.paint(Style::Good, if self.has_succeeded { "✓" } else { "" }),
            output.paint(self.style, &self.text),
            " ".repeat(CELL_WIDTH.saturating_sub(used)),
        )
    }
}

/// From the event's acceptance to the delivery's end.
fn took(delivery: &Delivery) -> Duration {
    let instant = |time: &Option<prost_types::Timestamp>| time.as_ref().map(time::from_proto);
    match (instant(&delivery.create_time), instant(&delivery.update_time)) {
        (Some(start), Some(end)) => end.since(start),
        _ => Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::output::Options;
    use super::*;

    #[test]
    fn a_cell_shows_every_attempt_and_fits() {
        let delivery = Delivery {
            state: DeliveryState::Succeeded.into(),
            attempt_count: 3,
            create_time: Some(prost_types::Timestamp { seconds: 1, nanos: 0 }),
            update_time: Some(prost_types::Timestamp { seconds: 1, nanos: 634_000_000 }),
            ..Delivery::default()
        };
        let output = Output::new(Options::default());
        let text = Cell::of(Some(&delivery), true).render(output);
        assert_eq!(text, "✗✗✓ 634 ms");
        let failed = Delivery {
            state: DeliveryState::Failed.into(),
            attempt_count: 3,
            ..Delivery::default()
        };
        assert_eq!(Cell::of(Some(&failed), true).render(output), "✗✗✗ failed");
        assert_eq!(Cell::of(None, false).render(output).trim(), "·");
    }

    #[test]
    fn the_table_fits_into_80_columns() {
        let board = Board::new(Output::new(Options::default()), &Default::default(), String::new());
        for line in board.lines(&Ledger::default()) {
            assert!(table::width(&line) < 80, "{line}");
        }
    }
}
