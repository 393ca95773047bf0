//! What happened in a run, and whether it may have happened.
//!
//! A history has what callers attempted and were answered, what receivers got, what watchers were told,
//! and what the database says in the end. [`History::judge`] compares the four. It knows nothing of how
//! the run was made, so it can be given histories that must not be, and its own tests do.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;

/// What a caller was told of one event, whatever number of times it asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The event is durable, under this id.
    Acknowledged(String),
    /// Refused for good: the request itself is wrong.
    Refused,
    /// Nobody said, or asked to try again, and the caller gave up.
    Unknown,
}

/// An event that somebody wanted to emit.
#[derive(Clone, Debug)]
pub(crate) struct Attempted {
    /// The payload: different for every event.
    pub(crate) data: String,
    pub(crate) event_type: String,
    pub(crate) answer: Answer,
}

/// A request that came to an endpoint.
#[derive(Clone, Debug)]
pub(crate) struct Arrived {
    pub(crate) endpoint: usize,
    pub(crate) event_id: String,
    pub(crate) delivery_id: String,
    pub(crate) data: String,
    /// Whether it was answered with success.
    pub(crate) is_success: bool,
}

/// A delivery as the database has it in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) endpoint: usize,
    pub(crate) event_id: String,
    pub(crate) delivery_id: String,
    pub(crate) state: String,
    pub(crate) revision: usize,
    pub(crate) attempt_count: usize,
    /// Attempts in the ledger, and those among them that an endpoint answered.
    pub(crate) recorded: usize,
    pub(crate) answered: usize,
}

/// A change that a watcher was told of.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    /// Which of the watcher's streams told it: each but the first one goes on where the one before ended.
    pub(crate) stream: usize,
    pub(crate) delivery_id: String,
    pub(crate) revision: usize,
    pub(crate) state: String,
}

/// An endpoint, by the types of events that it subscribes to.
pub(crate) type Wanted = Vec<&'static str>;

/// A run.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    pub(crate) endpoints: Vec<Wanted>,
    pub(crate) attempted: Vec<Attempted>,
    pub(crate) arrived: Vec<Arrived>,
    /// Ids of the events that the database has.
    pub(crate) events: HashSet<String>,
    pub(crate) stored: Vec<Stored>,
    /// What each watcher was told, in order.
    pub(crate) told: Vec<Vec<Told>>,
    /// How many deliveries may have been under way when their node was killed, or lost its lease: the
    /// most that may arrive once more.
    pub(crate) interrupted: usize,
}

/// What is wrong with a history, each kind with where it was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Events that somebody wanted to emit, those aside that were refused for good.
    pub(crate) attempted: usize,
    pub(crate) acknowledged: usize,
    /// Pairs of an event and an endpoint that wants it, delivered.
    pub(crate) delivered: usize,
    /// Successful requests beyond the first of their delivery.
    pub(crate) duplicates: usize,
    /// Acknowledged, and never answered with success by an endpoint that wants it.
    pub(crate) lost: Vec<String>,
    /// What should not have come, or should not be there.
    pub(crate) unexpected: Vec<String>,
    /// Deliveries whose record is not what arrived, or has no good end.
    pub(crate) misrecorded: Vec<String>,
    /// Changes that a watcher was not told of, or out of order, or otherwise than they are.
    pub(crate) untold: Vec<String>,
    /// Repeats that no fault explains.
    pub(crate) unexplained: Vec<String>,
}

impl Verdict {
    pub(crate) fn is_good(&self) -> bool {
        self.faults().iter().all(|(_, found)| found.is_empty())
    }

    fn faults(&self) -> [(&'static str, &Vec<String>); 5] {
        [
            ("lost", &self.lost),
            ("unexpected", &self.unexpected),
            ("misrecorded", &self.misrecorded),
            ("untold", &self.untold),
            ("unexplained", &self.unexplained),
        ]
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} attempted, {} acknowledged, {} delivered, {} duplicates",
            self.attempted, self.acknowledged, self.delivered, self.duplicates
        )?;
        for (name, found) in self.faults() {
            writeln!(f, "{}: {}", name, found.len())?;
            for one in found.iter().take(10) {
                writeln!(f, "    {one}")?;
            }
        }
        Ok(())
    }
}

impl History {
    pub(crate) fn judge(&self) -> Verdict {
        let is_good = |attempted: &&Attempted| attempted.answer != Answer::Refused;
        let attempted = self.attempted.iter().filter(is_good).count();
        let mut verdict = Verdict { attempted, ..Verdict::default() };
        let by_data: HashMap<&str, &Attempted> =
            self.attempted.iter().map(|attempted| (attempted.data.as_str(), attempted)).collect();
        assert_eq!(by_data.len(), self.attempted.len(), "every payload is different");
        self.judge_arrivals(&by_data, &mut verdict);
        self.judge_answers(&mut verdict);
        self.judge_records(&mut verdict);
        for told in &self.told {
            self.judge_told(told, &mut verdict);
        }
        verdict
    }

    /// Nothing comes that nobody wanted: each request has the bytes of an event that was emitted and
    /// not refused, under its id, at an endpoint that subscribes to it, as one delivery.
    fn judge_arrivals(&self, by_data: &HashMap<&str, &Attempted>, verdict: &mut Verdict) {
        let mut ids: HashMap<&str, BTreeSet<&str>> = HashMap::new();
        let mut deliveries: BTreeMap<(&str, usize), BTreeSet<&str>> = BTreeMap::new();
        for arrived in &self.arrived {
            let wrong = match by_data.get(arrived.data.as_str()) {
                None => Some("nobody emitted it"),
                Some(Attempted { answer: Answer::Refused, .. }) => Some("it was refused"),
                Some(Attempted { answer: Answer::Acknowledged(id), .. })
                    if *id != arrived.event_id =>
                {
                    Some("another id was acknowledged")
                }
                Some(of) if !self.wants(arrived.endpoint, &of.event_type) => {
                    Some("the endpoint does not subscribe to it")
                }
                Some(_) => None,
            };
            verdict.unexpected.extend(wrong.map(|wrong| format!("{wrong}: {arrived:?}")));
            ids.entry(&arrived.data).or_default().insert(&arrived.event_id);
            let place = (arrived.event_id.as_str(), arrived.endpoint);
            deliveries.entry(place).or_default().insert(&arrived.delivery_id);
        }
        for (data, ids) in ids.into_iter().filter(|(_, ids)| ids.len() > 1) {
            verdict.unexpected.push(format!("one Emit made several events: {data}, {ids:?}"));
        }
        for (place, ids) in deliveries.into_iter().filter(|(_, ids)| ids.len() > 1) {
            verdict.unexpected.push(format!("several deliveries to one place: {place:?}, {ids:?}"));
        }
    }

    /// Nothing that was acknowledged is missing.
    fn judge_answers(&self, verdict: &mut Verdict) {
        let arrived: HashSet<(&str, usize)> = self
            .arrived
            .iter()
            .filter(|arrived| arrived.is_success)
            .map(|arrived| (arrived.event_id.as_str(), arrived.endpoint))
            .collect();
        verdict.delivered = arrived.len();
        for attempted in &self.attempted {
            let Answer::Acknowledged(id) = &attempted.answer else { continue };
            verdict.acknowledged += 1;
            for endpoint in self.who_want(&attempted.event_type) {
                if !arrived.contains(&(id.as_str(), endpoint)) {
                    verdict.lost.push(format!("{id} at endpoint {endpoint}: {attempted:?}"));
                }
            }
            if !self.events.contains(id) {
                verdict.lost.push(format!("{id} is not in the database: {attempted:?}"));
            }
        }
    }

    /// The database tells what happened: every event has all its deliveries or is not there, all have
    /// succeeded, and the ledger has as many attempts as the deliveries count. Each lease makes one
    /// request at most, so what arrived more often than it was leased is a fault, however many nodes
    /// were killed.
    fn judge_records(&self, verdict: &mut Verdict) {
        let mut requests: HashMap<&str, (usize, usize)> = HashMap::new();
        for arrived in &self.arrived {
            let (all, successful) = requests.entry(&arrived.delivery_id).or_default();
            *all += 1;
            *successful += usize::from(arrived.is_success);
        }
        let mut places: HashMap<&str, BTreeSet<usize>> = HashMap::new();
        for stored in &self.stored {
            places.entry(&stored.event_id).or_default().insert(stored.endpoint);
            let (all, successful) =
                requests.remove(stored.delivery_id.as_str()).unwrap_or_default();
            verdict.duplicates += successful.saturating_sub(1);
            let wrong = if stored.state != "SUCCEEDED" {
                Some("it has no good end")
            } else if successful == 0 {
                Some("it says that it succeeded, and no request did")
            } else if stored.recorded != stored.attempt_count {
                Some("its attempts are not in the ledger")
            } else if all < stored.answered {
                Some("the ledger has answers that no endpoint gave")
            } else {
                None
            };
            verdict
                .misrecorded
                .extend(wrong.map(|wrong| format!("{wrong}: {stored:?}, {all} requests")));
            // A delivery's revision is 1 at first, whether it is born leased or waiting. Every lease
            // begins with a change, or with the birth, and ends with another.
            let is_leased = stored.state == "DELIVERING";
            let leases = if is_leased { stored.revision.div_ceil(2) } else { stored.revision / 2 };
            if all > leases {
                verdict.unexplained.push(format!("{all} requests in {leases} leases: {stored:?}"));
            }
        }
        for (id, _) in requests {
            verdict.unexpected.push(format!("the database has no delivery {id}, which came"));
        }
        let types = self.types_of_events();
        for id in &self.events {
            let Some(event_type) = types.get(id.as_str()) else { continue };
            let wanted: BTreeSet<_> = self.who_want(event_type).collect();
            let has = places.get(id.as_str()).cloned().unwrap_or_default();
            if has != wanted {
                verdict.misrecorded.push(format!("{id} is for {wanted:?} and has {has:?}"));
            }
        }
        if verdict.duplicates > self.interrupted {
            verdict.unexplained.push(format!(
                "{} duplicates, and at most {} were interrupted",
                verdict.duplicates, self.interrupted
            ));
        }
    }

    /// A watcher is told of every change of every delivery, each after the one before it. What a stream
    /// has told may be told once more by the next one, and then it is the same.
    fn judge_told(&self, told: &[Told], verdict: &mut Verdict) {
        let mut states: HashMap<&str, Vec<&str>> = HashMap::new();
        let mut last: HashMap<&str, &Told> = HashMap::new();
        for told in told {
            let known = states.entry(&told.delivery_id).or_default();
            let before = last.insert(&told.delivery_id, told);
            let before = before.filter(|before| before.stream == told.stream);
            let same = told.revision.checked_sub(1).and_then(|at| known.get(at));
            let wrong = if told.revision == 0 || told.revision > known.len() + 1 {
                Some("what comes before it was not told")
            } else if before.is_some_and(|before| told.revision != before.revision + 1) {
                Some("one stream told it in another order")
            } else if same.is_some_and(|same| *same != told.state) {
                Some("it was told otherwise before")
            } else {
                None
            };
            verdict.untold.extend(wrong.map(|wrong| format!("{wrong}: {told:?}, {known:?}")));
            if told.revision == known.len() + 1 {
                known.push(&told.state);
            }
        }
        for stored in &self.stored {
            let known = states.remove(stored.delivery_id.as_str()).unwrap_or_default();
            let wrong = if known.len() < stored.revision {
                Some("not all of its changes were told")
            } else if known.len() > stored.revision {
                Some("changes were told that it does not have")
            } else if known.last() != Some(&stored.state.as_str()) {
                Some("its end was told otherwise")
            } else {
                None
            };
            verdict.untold.extend(wrong.map(|wrong| format!("{wrong}: {stored:?}, {known:?}")));
        }
        let unknown =
            states.into_keys().map(|id| format!("there is no delivery {id}, of which was told"));
        verdict.untold.extend(unknown);
    }

    /// The types of the events whose ids are known, from an answer or from an arrival.
    fn types_of_events(&self) -> HashMap<&str, &str> {
        let by_data: HashMap<&str, &str> = self
            .attempted
            .iter()
            .map(|attempted| (attempted.data.as_str(), attempted.event_type.as_str()))
            .collect();
        let arrived = self.arrived.iter().filter_map(|arrived| {
            Some((arrived.event_id.as_str(), *by_data.get(arrived.data.as_str())?))
        });
        let acknowledged = self.attempted.iter().filter_map(|attempted| match &attempted.answer {
            Answer::Acknowledged(id) => Some((id.as_str(), attempted.event_type.as_str())),
            Answer::Refused | Answer::Unknown => None,
        });
        arrived.chain(acknowledged).collect()
    }

    fn wants(&self, endpoint: usize, event_type: &str) -> bool {
        self.endpoints.get(endpoint).is_some_and(|wanted| wanted.contains(&event_type))
    }

    fn who_want(&self, event_type: &str) -> impl Iterator<Item = usize> {
        (0..self.endpoints.len()).filter(move |endpoint| self.wants(*endpoint, event_type))
    }
}

mod tests {
    use super::{Answer, Arrived, Attempted, History, Stored, Told, Verdict};

    fn arrived(endpoint: usize, event: &str, data: &str) -> Arrived {
        Arrived {
            endpoint,
            event_id: event.into(),
            delivery_id: format!("{event}-{endpoint}"),
            data: data.into(),
            is_success: true,
        }
    }

    fn stored(endpoint: usize, event: &str) -> Stored {
        Stored {
            endpoint,
            event_id: event.into(),
            delivery_id: format!("{event}-{endpoint}"),
            state: "SUCCEEDED".into(),
            revision: 2,
            attempt_count: 1,
            recorded: 1,
            answered: 1,
        }
    }

    fn told(stream: usize, delivery_id: &str, revision: usize, state: &str) -> Told {
        Told { stream, delivery_id: delivery_id.into(), revision, state: state.into() }
    }

    /// Two events at two endpoints, a refused one, and one of which nobody knows.
    fn good() -> History {
        let attempted = |data: &str, event_type: &str, answer| Attempted {
            data: data.into(),
            event_type: event_type.into(),
            answer,
        };
        History {
            endpoints: vec![vec!["paid", "sent"], vec!["paid"]],
            attempted: vec![
                attempted("one", "paid", Answer::Acknowledged("e1".into())),
                attempted("two", "sent", Answer::Acknowledged("e2".into())),
                attempted("bad", "paid", Answer::Refused),
                attempted("who", "sent", Answer::Unknown),
            ],
            arrived: vec![
                arrived(0, "e1", "one"),
                arrived(1, "e1", "one"),
                arrived(0, "e2", "two"),
            ],
            events: ["e1".into(), "e2".into()].into(),
            stored: vec![stored(0, "e1"), stored(1, "e1"), stored(0, "e2")],
            told: vec![vec![
                told(0, "e1-0", 1, "DELIVERING"),
                told(0, "e2-0", 1, "DELIVERING"),
                told(0, "e1-0", 2, "SUCCEEDED"),
                told(1, "e1-1", 1, "DELIVERING"),
                told(1, "e2-0", 2, "SUCCEEDED"),
                told(1, "e1-1", 2, "SUCCEEDED"),
            ]],
            interrupted: 0,
        }
    }

    /// The verdict on a good history that `spoil` has made a bad one.
    fn of(spoil: impl FnOnce(&mut History)) -> Verdict {
        let mut history = good();
        spoil(&mut history);
        history.judge()
    }

    #[test]
    fn a_good_history_passes() {
        let verdict = good().judge();
        assert!(verdict.is_good(), "{verdict}");
        assert_eq!((verdict.attempted, verdict.acknowledged), (3, 2));
        assert_eq!((verdict.delivered, verdict.duplicates), (3, 0));
        // What nobody knows of may have been stored, and then it is delivered.
        let verdict = of(|history| {
            history.arrived.push(arrived(0, "e4", "who"));
            history.events.insert("e4".into());
            history.stored.push(stored(0, "e4"));
            history.told[0]
                .extend([told(1, "e4-0", 1, "DELIVERING"), told(1, "e4-0", 2, "SUCCEEDED")]);
        });
        assert!(verdict.is_good(), "{verdict}");
        // A retry is no duplicate, and a repeat is none that counts against us when it is explained.
        let verdict = of(|history| {
            let failed = Arrived { is_success: false, ..arrived(0, "e2", "two") };
            history.arrived.extend([failed, arrived(0, "e2", "two")]);
            let stored = &mut history.stored[2];
            (stored.revision, stored.attempt_count, stored.recorded, stored.answered) =
                (6, 2, 2, 2);
            history.told[0].extend([
                told(1, "e2-0", 3, "SCHEDULED"),
                told(1, "e2-0", 4, "DELIVERING"),
                // What was told comes again with the next stream.
                told(2, "e2-0", 3, "SCHEDULED"),
                told(2, "e2-0", 4, "DELIVERING"),
                told(2, "e2-0", 5, "SCHEDULED"),
                told(2, "e2-0", 6, "SUCCEEDED"),
            ]);
            history.interrupted = 1;
        });
        assert!(verdict.is_good(), "{verdict}");
        assert_eq!(verdict.duplicates, 1);
    }

    #[test]
    fn what_is_lost_is_found() {
        let verdict = of(|history| drop(history.arrived.remove(1)));
        assert_eq!(verdict.lost.len(), 1, "one of its two endpoints never got it: {verdict}");
        let verdict = of(|history| history.arrived[2].is_success = false);
        assert_eq!(verdict.lost.len(), 1, "its endpoint refused it: {verdict}");
        let verdict = of(|history| assert!(history.events.remove("e1")));
        assert_eq!(verdict.lost.len(), 1, "the database does not know it: {verdict}");
    }

    #[test]
    fn what_is_unexpected_is_found() {
        type Case = (&'static str, fn(&mut History));
        let cases: [Case; 7] = [
            ("nobody emitted it", |history| history.arrived[0].data = "other".into()),
            ("refused", |history| history.arrived.push(arrived(0, "e3", "bad"))),
            ("another id", |history| history.arrived[0].event_id = "e9".into()),
            ("does not subscribe", |history| history.arrived.push(arrived(1, "e2", "two"))),
            ("several events", |history| {
                history.arrived.extend([arrived(0, "e4", "who"), arrived(0, "e5", "who")]);
            }),
            ("several deliveries", |history| {
                let again = Arrived { delivery_id: "d9".into(), ..arrived(0, "e1", "one") };
                history.arrived.push(again);
            }),
            ("no delivery", |history| drop(history.stored.remove(0))),
        ];
        for (reason, spoil) in cases {
            let verdict = of(spoil);
            let is_found = verdict.unexpected.iter().any(|found| found.contains(reason));
            assert!(is_found, "{reason}: {verdict}");
        }
    }

    #[test]
    fn a_record_that_is_not_what_happened_is_found() {
        type Case = (&'static str, fn(&mut History));
        let cases: [Case; 5] = [
            ("no good end", |history| history.stored[0].state = "DELIVERING".into()),
            ("no request did", |history| history.arrived[0].is_success = false),
            ("not in the ledger", |history| history.stored[0].recorded = 0),
            ("that no endpoint gave", |history| {
                let stored = &mut history.stored[0];
                (stored.recorded, stored.attempt_count, stored.answered) = (2, 2, 2);
            }),
            ("is for {0, 1} and has {0}", |history| {
                drop((history.stored.remove(1), history.arrived.remove(1)));
            }),
        ];
        for (reason, spoil) in cases {
            let verdict = of(spoil);
            let is_found = verdict.misrecorded.iter().any(|found| found.contains(reason));
            assert!(is_found, "{reason}: {verdict}");
        }
    }

    #[test]
    fn what_a_watcher_was_not_told_as_it_is_is_found() {
        type Case = (&'static str, fn(&mut Vec<Told>));
        let cases: [Case; 9] = [
            ("what comes before it was not told", |told| drop(told.remove(0))),
            ("what comes before it was not told", |told| told[0].revision = 0),
            ("not all of its changes were told", |told| drop(told.pop())),
            ("not all of its changes were told", Vec::clear),
            ("in another order", |told| told[4] = told[3].clone()),
            ("told otherwise before", |all| all.insert(4, told(1, "e2-0", 1, "SCHEDULED"))),
            ("that it does not have", |all| all.push(told(2, "e1-1", 3, "SCHEDULED"))),
            ("its end was told otherwise", |told| told[5].state = "CANCELED".into()),
            ("there is no delivery e9", |all| all.push(told(1, "e9", 1, "DELIVERING"))),
        ];
        for (reason, spoil) in cases {
            let verdict = of(|history| spoil(&mut history.told[0]));
            let is_found = verdict.untold.iter().any(|found| found.contains(reason));
            assert!(is_found, "{reason}: {verdict}");
        }
    }

    #[test]
    fn a_repeat_that_nothing_explains_is_found() {
        let again = |history: &mut History| history.arrived.push(arrived(0, "e2", "two"));
        // More requests than leases.
        let verdict = of(|history| {
            again(history);
            history.interrupted = 1;
        });
        assert_eq!(verdict.unexplained.len(), 1, "{verdict}");
        // Leased again, although nothing was interrupted.
        let verdict = of(|history| {
            again(history);
            history.stored[2].revision = 4;
        });
        assert_eq!(verdict.unexplained.len(), 1, "{verdict}");
    }
}
