//! What a mail has to tell, before it has a form: what templates see.
//!
//! The names in here are the contract with whoever writes templates: `event`, `data`, `tenant`,
//! `title`, `lead`, `rows`, `omitted`, `link`, `digest`, `locale`, `look`, `unsubscribe_url`.

use jiff::tz::{TimeZone, TimeZoneDatabase};
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;
use url::Url;

use super::values::{self, Node};
use super::{Look, Occasion, clean};
use crate::domain::Timestamp;
use crate::domain::event::Event;
use crate::domain::labels::Labels;

/// Most rows in the table of an event's fields.
const MAX_ROWS: usize = 40;
/// Most rows of each event of a digest.
const MAX_DIGEST_ROWS: usize = 4;
/// Most events that a digest tells one by one; of the others it tells how many there are.
const MAX_DIGEST_EVENTS: usize = 100;
/// Most characters of a row's value.
const MAX_CELL_CHARS: usize = 400;
/// Most characters of a title, and of a name.
const MAX_TITLE_CHARS: usize = 150;
/// Most characters of the lead.
const MAX_LEAD_CHARS: usize = 1_000;
/// Most items of an array that are shown side by side.
const MAX_INLINE_ITEMS: usize = 10;
/// How deep fields are shown; payloads are at most 64 deep.
const MAX_DEPTH: usize = 64;
/// Most bytes in a link, as in webhook URLs.
const MAX_LINK_BYTES: usize = 2_048;
/// Fields that hold a sentence for people, the best first.
const LEADS: [&str; 3] = ["message", "summary", "description"];
/// Fields that hold a page for people, the best first.
const LINKS: [&str; 3] = ["url", "link", "href"];
/// Words in the names of links that are no page to open.
const NO_PAGES: [&str; 8] =
    ["image", "logo", "avatar", "icon", "thumbnail", "webhook", "callback", "api"];
/// Languages that are written from right to left.
const RIGHT_TO_LEFT: [&str; 8] = ["ar", "dv", "fa", "he", "ps", "sd", "ur", "yi"];

/// Everything that a template may use.
#[derive(Serialize)]
pub(super) struct Document<'a> {
    event: EventPart<'a>,
    data: Value,
    tenant: TenantPart,
    title: String,
    lead: String,
    rows: Vec<Row>,
    omitted: usize,
    link: Option<Link>,
    digest: Vec<Entry>,
    digest_omitted: usize,
    locale: Locale,
    look: &'a Look,
    unsubscribe_url: &'a str,
}

#[derive(Serialize)]
struct EventPart<'a> {
    id: String,
    r#type: &'a str,
    subject: String,
    time: String,
    labels: &'a Labels,
}

#[derive(Serialize)]
struct TenantPart {
    name: String,
    environment: String,
}

/// A field of the payload, for people.
#[derive(Serialize)]
struct Row {
    name: String,
    value: String,
}

/// A page to open.
#[derive(Serialize)]
struct Link {
    url: String,
    label: String,
    host: String,
}

/// An event of a digest.
#[derive(Serialize)]
struct Entry {
    title: String,
    time: String,
    lead: String,
    rows: Vec<Row>,
    link: Option<Link>,
}

#[derive(Serialize)]
struct Locale {
    lang: String,
    dir: &'static str,
    /// The side on which lines begin.
    start: &'static str,
    time_zone: String,
}

impl<'a> Document<'a> {
    pub(super) fn of(occasion: Occasion<'a>) -> Self {
        let Occasion { event, tenant, look, unsubscribe_url, .. } = occasion;
        let zone = zone(occasion.time_zone);
        let raw: Option<&RawValue> = serde_json::from_slice(&event.data).ok();
        let told = Told::of(raw, MAX_ROWS, &zone);
        let further = || occasion.further.iter().map(|item| &*item.event);
        let is_digest = !occasion.further.is_empty();
        let title = title(event);
        let digest: Vec<_> = std::iter::once(event)
            .chain(further())
            .take(if is_digest { MAX_DIGEST_EVENTS } else { 0 })
            .map(|event| entry(event, &zone))
            .collect();
        let total = occasion.further.len() + 1;
        Self {
            event: EventPart {
                id: event.id.to_string(),
                r#type: &event.event_type,
                subject: clean::one_line(&event.subject),
                time: moment(event.occur_time, &zone),
                labels: &event.labels,
            },
            data: raw.map_or(Value::Null, values::value),
            tenant: TenantPart {
                name: clean::line(&tenant.spec.display_name, MAX_TITLE_CHARS),
                environment: clean::line(&tenant.spec.environment, MAX_TITLE_CHARS),
            },
            title: if is_digest { format!("{total} notifications") } else { title },
            lead: told.lead,
            rows: told.rows,
            omitted: told.omitted,
            link: told.link,
            digest_omitted: if is_digest { total - digest.len() } else { 0 },
            digest,
            locale: locale(occasion.locale, occasion.time_zone),
            look,
            unsubscribe_url,
        }
    }
}

fn entry(event: &Event, zone: &TimeZone) -> Entry {
    let raw: Option<&RawValue> = serde_json::from_slice(&event.data).ok();
    let Told { lead, rows, link, .. } = Told::of(raw, MAX_DIGEST_ROWS, zone);
    Entry { title: title(event), time: moment(event.occur_time, zone), lead, rows, link }
}

/// What the event is, in words: `billing.invoice_paid` about `INV-7` is "Billing invoice paid: INV-7".
fn title(event: &Event) -> String {
    let of_type = event.event_type.strip_prefix("tidings.").unwrap_or(&event.event_type);
    let words = humanized(of_type);
    let subject = clean::one_line(&event.subject);
    let title = if subject.is_empty() { words } else { format!("{words}: {subject}") };
    clean::line(&title, MAX_TITLE_CHARS)
}

/// `amount_due` and `amountDue` are "Amount due".
fn humanized(name: &str) -> String {
    let mut words = String::with_capacity(name.len());
    let mut was_lower = false;
    for c in name.chars() {
        let is_break = matches!(c, '_' | '-' | '.');
        if c.is_uppercase() && was_lower {
            words.push(' ');
            words.extend(c.to_lowercase());
        } else {
            words.push(if is_break { ' ' } else { c });
        }
        was_lower = c.is_lowercase() || c.is_numeric();
    }
    let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut chars = words.chars();
    match chars.next() {
        Some(first) => first.to_uppercase().chain(chars).collect(),
        None => name.to_owned(),
    }
}

/// What a payload tells people.
struct Told {
    lead: String,
    rows: Vec<Row>,
    omitted: usize,
    link: Option<Link>,
}

impl Told {
    fn of(raw: Option<&RawValue>, max_rows: usize, zone: &TimeZone) -> Self {
        let mut told = Self { lead: String::new(), rows: Vec::new(), omitted: 0, link: None };
        let Some(raw) = raw else { return told };
        let node = Node::of(raw);
        let lead = match &node {
            Node::Object(members) => lead(members),
            _ => None,
        };
        told.link = link(&node);
        let mut table = Table { max_rows, zone, rows: Vec::new(), omitted: 0 };
        match node {
            Node::Object(members) => {
                for (name, value) in members {
                    if lead.as_ref().is_none_or(|(lead, _)| *lead != name) {
                        table.add(&humanized(&name), value, 1);
                    }
                }
            }
            Node::Null => {}
            _ => table.add("Value", raw, 0),
        }
        told.lead = lead.map(|(_, text)| text).unwrap_or_default();
        (told.rows, told.omitted) = (table.rows, table.omitted);
        told
    }
}

/// The sentence of a payload that tells most, and the field that it stands in.
fn lead(members: &[(String, &RawValue)]) -> Option<(String, String)> {
    LEADS.iter().find_map(|wanted| {
        let (name, value) = members.iter().find(|(name, _)| name == wanted)?;
        match Node::of(value) {
            Node::Text(text) if !text.trim().is_empty() => {
                Some((name.clone(), clean::text(text.trim(), MAX_LEAD_CHARS)))
            }
            _ => None,
        }
    })
}

/// Fields as rows, the nested ones with the way to them: "Customer › Address › City".
struct Table<'a> {
    max_rows: usize,
    zone: &'a TimeZone,
    rows: Vec<Row>,
    omitted: usize,
}

impl Table<'_> {
    fn add(&mut self, name: &str, raw: &RawValue, depth: usize) {
        if self.rows.len() >= self.max_rows {
            self.omitted += 1;
            return;
        }
        let node = Node::of(raw);
        match &node {
            Node::Object(members) if !members.is_empty() && depth < MAX_DEPTH => {
                for (inner, value) in members {
                    self.add(&format!("{name} › {}", humanized(inner)), value, depth + 1);
                }
            }
            Node::Array(items) if !items.is_empty() && depth < MAX_DEPTH => {
                if let Some(value) = self.inline(items) {
                    self.push(name, value);
                } else {
                    for (index, item) in items.iter().enumerate() {
                        self.add(&format!("{name} › {}", index + 1), item, depth + 1);
                    }
                }
            }
            node => {
                let value = self.cell(node);
                self.push(name, value);
            }
        }
    }

    fn push(&mut self, name: &str, value: String) {
        self.rows.push(Row { name: clean::line(name, MAX_TITLE_CHARS), value });
    }

    /// Some plain values side by side.
    fn inline(&self, items: &[&RawValue]) -> Option<String> {
        if items.len() > MAX_INLINE_ITEMS {
            return None;
        }
        let mut cells = Vec::with_capacity(items.len());
        for item in items {
            match Node::of(item) {
                Node::Object(_) | Node::Array(_) => return None,
                node => cells.push(self.cell(&node)),
            }
        }
        let joined = cells.join(", ");
        (joined.chars().count() <= MAX_CELL_CHARS).then_some(joined)
    }

    fn cell(&self, node: &Node<'_>) -> String {
        match node {
            Node::Text(text) if text.trim().is_empty() => "—".to_owned(),
            Node::Text(text) => match text.parse::<jiff::Timestamp>() {
                Ok(time) if text.contains('T') => shown(time, self.zone),
                _ => clean::text(text.trim(), MAX_CELL_CHARS),
            },
            Node::Number(written) => (*written).to_owned(),
            Node::Bool(true) => "yes".to_owned(),
            Node::Bool(false) => "no".to_owned(),
            Node::Null | Node::Object(_) | Node::Array(_) => "—".to_owned(),
        }
    }
}

/// The page that the payload names for people: by the field's name, the outermost first.
fn link(node: &Node<'_>) -> Option<Link> {
    let Node::Object(members) = node else { return None };
    let named = LINKS.iter().find_map(|wanted| {
        let (_, value) = members.iter().find(|(name, _)| name == wanted)?;
        page("View details".to_owned(), value)
    });
    named.or_else(|| {
        members.iter().find_map(|(name, value)| {
            let words = humanized(name).to_lowercase();
            let what = LINKS.iter().find_map(|suffix| words.strip_suffix(suffix))?.trim_end();
            if what.is_empty() || words.split(' ').any(|word| NO_PAGES.contains(&word)) {
                return None;
            }
            page(format!("Open {}", clean::line(what, 40)), value)
        })
    })
}

fn page(label: String, raw: &RawValue) -> Option<Link> {
    let Node::Text(text) = Node::of(raw) else { return None };
    let url = Url::parse(text.trim()).ok()?;
    let host = url.host_str()?.to_owned();
    let is_plain = url.scheme() == "https" && url.username().is_empty() && url.password().is_none();
    let url = String::from(url);
    (is_plain && url.len() <= MAX_LINK_BYTES).then_some(Link { url, label, host })
}

fn zone(name: &str) -> TimeZone {
    // The bundled rules: what a mail says does not hang on the machine that sends it.
    TimeZoneDatabase::bundled().get(name).unwrap_or(TimeZone::UTC)
}

/// A time in the readers' zone, for example `2026-11-21 16:49 (+01:00)`.
fn moment(time: Timestamp, zone: &TimeZone) -> String {
    jiff::Timestamp::from_microsecond(time.as_micros())
        .map_or_else(|_| time.to_string(), |time| shown(time, zone))
}

fn shown(time: jiff::Timestamp, zone: &TimeZone) -> String {
    let time = time.to_zoned(zone.clone());
    if time.offset().seconds() == 0 {
        return time.strftime("%Y-%m-%d %H:%M UTC").to_string();
    }
    time.strftime("%Y-%m-%d %H:%M (%:z)").to_string()
}

fn locale(tag: &str, time_zone: &str) -> Locale {
    let is_tag = tag.len() <= 35 && tag.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    let lang = if is_tag && !tag.is_empty() { tag.to_owned() } else { "en".to_owned() };
    let primary = lang.split('-').next().unwrap_or_default().to_ascii_lowercase();
    let is_reversed = RIGHT_TO_LEFT.contains(&primary.as_str());
    let (dir, start) = if is_reversed { ("rtl", "right") } else { ("ltr", "left") };
    Locale { lang, dir, start, time_zone: time_zone.to_owned() }
}
