//! As much of PostgreSQL's protocol (version 3) as the proxy has to know: what is asked, and which
//! answer confirms a COMMIT. It reads along and changes nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use super::lock;

/// A message without a type, at the beginning: its length, then this code.
const PROTOCOL_3: u32 = 196_608;

/// What has been asked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asked {
    /// How often each statement was executed, by the beginning of its text.
    pub(crate) statements: BTreeMap<String, usize>,
    /// The different texts that the server was given to prepare.
    pub(crate) texts: BTreeSet<String>,
    /// Times that the client waited for the server.
    pub(crate) round_trips: usize,
    /// Transactions that changed something: those that ended with a COMMIT, and statements that are
    /// transactions of their own.
    pub(crate) commits: usize,
}

impl Asked {
    /// Executed statements, transaction control included.
    pub(crate) fn total(&self) -> usize {
        self.statements.values().sum()
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().expect("four bytes")))
}

/// A message at the beginning of `bytes`, if it is there as a whole: its kind, its body and its length.
fn message(bytes: &[u8]) -> Option<(u8, &[u8], usize)> {
    let (kind, length) = (*bytes.first()?, number(bytes, 1)? as usize + 1);
    Some((kind, bytes.get(5..length)?, length))
}

/// What the client of one connection says.
pub(super) struct Questions {
    asked: Arc<Mutex<Asked>>,
    pending: Vec<u8>,
    is_started: bool,
    /// The texts of prepared statements by their names.
    texts: HashMap<String, String>,
    /// What the portal that was bound last stands for.
    bound: String,
    /// What ran in the transaction that is under way.
    ran: Vec<String>,
    /// Whether a BEGIN has begun it. Otherwise a statement is a transaction of its own.
    has_begun: bool,
    /// Whether what was read last asks for a commit.
    commits: bool,
}

impl Questions {
    pub(super) fn new(asked: Arc<Mutex<Asked>>) -> Self {
        Self {
            asked,
            pending: Vec::new(),
            is_started: false,
            texts: HashMap::new(),
            bound: String::new(),
            ran: Vec::new(),
            has_begun: false,
            commits: false,
        }
    }

    /// Whether the transaction has run a statement with `part` in it.
    pub(super) fn has_run(&self, part: &str) -> bool {
        self.ran.iter().any(|text| text.contains(part))
    }

    /// The transaction is over.
    pub(super) fn end(&mut self) {
        self.ran.clear();
    }

    /// Reads on; whether a commit was asked for.
    pub(super) fn read(&mut self, bytes: &[u8]) -> bool {
        self.commits = false;
        self.pending.extend_from_slice(bytes);
        let pending = std::mem::take(&mut self.pending);
        let mut rest = &pending[..];
        while let Some(length) = self.one(rest) {
            rest = &rest[length..];
        }
        self.pending = rest.to_vec();
        self.commits
    }

    /// Reads a message, if it is there as a whole; gives its length.
    fn one(&mut self, bytes: &[u8]) -> Option<usize> {
        if !self.is_started {
            // A request for encryption looks the same and is followed by another beginning.
            let (length, code) = (number(bytes, 0)? as usize, number(bytes, 4)?);
            self.is_started = code == PROTOCOL_3;
            return (bytes.len() >= length).then_some(length);
        }
        let (kind, body, length) = message(bytes)?;
        self.note(kind, body);
        Some(length)
    }

    fn note(&mut self, kind: u8, body: &[u8]) {
        let mut texts = body.split(|byte| *byte == 0).map(|text| String::from_utf8_lossy(text));
        let mut text = || texts.next().unwrap_or_default().into_owned();
        let mut asked = lock(&self.asked);
        match kind {
            // Parse: the statement's name and text.
            b'P' => {
                let (name, text) = (text(), text());
                asked.texts.insert(text.clone());
                self.texts.insert(name, text);
            }
            // Bind: the portal's name and the statement's.
            b'B' => {
                let _portal = text();
                self.bound = self.texts.get(&text()).cloned().unwrap_or_default();
            }
            // Execute.
            b'E' => {
                *asked.statements.entry(beginning(&self.bound)).or_default() += 1;
                self.ran.push(self.bound.clone());
            }
            // Query.
            b'Q' => {
                let text = text();
                *asked.statements.entry(beginning(&text)).or_default() += 1;
                asked.round_trips += 1;
                match text.split_whitespace().next() {
                    Some("BEGIN") => (self.ran, self.has_begun) = (Vec::new(), true),
                    Some("ROLLBACK") => (self.ran, self.has_begun) = (Vec::new(), false),
                    Some("COMMIT") => (self.commits, self.has_begun) = (true, false),
                    _ => {}
                }
                asked.commits += usize::from(text.starts_with("COMMIT"));
            }
            // Sync. Outside of BEGIN and COMMIT it commits what was executed.
            b'S' => {
                asked.round_trips += 1;
                if !self.has_begun && self.ran.iter().any(|text| changes_something(text)) {
                    self.commits = true;
                    asked.commits += 1;
                }
            }
            _ => {}
        }
    }
}

fn changes_something(text: &str) -> bool {
    ["INSERT", "UPDATE", "DELETE"].iter().any(|word| text.contains(word))
}

/// What the server of one connection says.
#[derive(Default)]
pub(super) struct Answers {
    pending: Vec<u8>,
    has_failed: bool,
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It is committed, or changed nothing.
    Confirmed,
    /// The server took it back.
    Failed,
}

impl Answers {
    /// Reads on; how the transaction ended, if it did.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Option<End> {
        self.pending.extend_from_slice(bytes);
        let (mut end, mut at) = (None, 0);
        while let Some((kind, body, length)) = message(&self.pending[at..]) {
            match (kind, body) {
                (b'E', _) => self.has_failed = true,
                // Ready for the next query, and in no transaction. Only now is anything certain.
                (b'Z', b"I") => {
                    let has_failed = std::mem::take(&mut self.has_failed);
                    end = Some(if has_failed { End::Failed } else { End::Confirmed });
                }
                _ => {}
            }
            at += length;
        }
        self.pending.drain(..at);
        end
    }
}

/// Enough of a statement to know it by: without line breaks, and without the columns of its input.
fn beginning(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let text = match text.strip_prefix("WITH r(").and_then(|rest| rest.split_once("[]))")) {
        Some((_, rest)) => rest.trim_start_matches([')', ',', ' ']).to_owned(),
        None => text,
    };
    text.chars().take(60).collect()
}
