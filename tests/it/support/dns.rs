//! A DNS server that says what a test wants, and keeps what it was asked.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use tokio::net::UdpSocket;
use tokio::task::JoinSet;

/// NOERROR: the name exists, whether or not it has such addresses.
const NO_ERROR: u8 = 0;
/// The server failed.
pub(crate) const SERVFAIL: u8 = 2;
/// The name does not exist.
pub(crate) const NXDOMAIN: u8 = 3;
/// The server does not want to.
pub(crate) const REFUSED: u8 = 5;

const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;

/// What is said of a name.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// It has these addresses, of both families.
    Addresses(Vec<IpAddr>),
    /// Each look-up gets the next address, and then the first again.
    InTurn(Vec<IpAddr>),
    /// This response code.
    Code(u8),
    /// Nothing.
    Silence,
}

/// A server; it ends when it is dropped.
#[derive(Clone)]
pub(crate) struct Dns {
    state: Arc<Mutex<State>>,
    _task: Arc<JoinSet<()>>,
}

#[derive(Default)]
struct State {
    zone: BTreeMap<String, Answer>,
    /// Every question: the name in lower case, and the type.
    asked: Vec<(String, u16)>,
}

impl Dns {
    /// Serves on port 53 of `address`. Names that are not in `zone` do not exist.
    pub(crate) async fn start(address: &str, zone: BTreeMap<String, Answer>) -> Self {
        let socket = UdpSocket::bind((address, 53)).await.expect("port 53");
        let state = Arc::new(Mutex::new(State { zone, asked: Vec::new() }));
        let (shared, mut task) = (Arc::clone(&state), JoinSet::new());
        task.spawn(async move {
            let mut packet = [0; 1_500];
            loop {
                let (length, sender) = socket.recv_from(&mut packet).await.expect("a packet");
                let answer = shared.lock().expect("not poisoned").answer(&packet[..length]);
                if let Some(answer) = answer {
                    socket.send_to(&answer, sender).await.expect("sent");
                }
            }
        });
        Self { state, _task: Arc::new(task) }
    }

    /// How often addresses of version 4 and of version 6 were asked for.
    pub(crate) fn asked(&self, name: &str) -> (usize, usize) {
        let state = self.state.lock().expect("not poisoned");
        let count = |wanted| {
            state.asked.iter().filter(|(asked, kind)| asked == name && *kind == wanted).count()
        };
        (count(TYPE_A), count(TYPE_AAAA))
    }

    /// Every name that was asked for.
    pub(crate) fn names(&self) -> Vec<String> {
        let state = self.state.lock().expect("not poisoned");
        state.asked.iter().map(|(name, _)| name.clone()).collect()
    }
}

impl State {
    fn answer(&mut self, query: &[u8]) -> Option<Vec<u8>> {
        let (name, kind, question) = parse(query)?;
        let known = self.zone.get(&name).cloned().unwrap_or(Answer::Code(NXDOMAIN));
        // A look-up asks for both families; only one question of the two is to count.
        let turn = self.asked.iter().filter(|asked| **asked == (name.clone(), TYPE_A)).count();
        self.asked.push((name, kind));
        let (code, addresses) = match known {
            Answer::Silence => return None,
            Answer::Code(code) => (code, Vec::new()),
            Answer::Addresses(addresses) => (NO_ERROR, addresses),
            Answer::InTurn(addresses) => (NO_ERROR, vec![addresses[turn % addresses.len()]]),
        };
        let records: Vec<_> =
            addresses.iter().filter_map(|address| record(*address, kind)).collect();
        let count = u16::try_from(records.len()).expect("few").to_be_bytes();
        // Identifier; a response, recursion desired and available; one question, so many answers.
        let mut answer = vec![query[0], query[1], 0x81, 0x80 | code, 0, 1, count[0], count[1]];
        answer.extend([0; 4]);
        answer.extend(question);
        answer.extend(records.concat());
        Some(answer)
    }
}

/// The name, the type and the bytes of a query's only question.
fn parse(query: &[u8]) -> Option<(String, u16, &[u8])> {
    let (mut labels, mut at) = (Vec::new(), 12);
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(query.get(at..at + length)?).to_lowercase());
        at += length;
    }
    let kind = u16::from_be_bytes([*query.get(at)?, *query.get(at + 1)?]);
    Some((labels.join("."), kind, query.get(12..at + 4)?))
}

/// A record of the question's name, valid for no time at all.
fn record(address: IpAddr, kind: u16) -> Option<Vec<u8>> {
    let bytes = match address {
        IpAddr::V4(address) if kind == TYPE_A => address.octets().to_vec(),
        IpAddr::V6(address) if kind == TYPE_AAAA => address.octets().to_vec(),
        _ => return None,
    };
    let length = u8::try_from(bytes.len()).expect("16 at most");
    let kind = kind.to_be_bytes();
    Some([&[0xc0, 12, kind[0], kind[1], 0, 1, 0, 0, 0, 0, 0, length], &bytes[..]].concat())
}
