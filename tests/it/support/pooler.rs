//! Connection poolers before PostgreSQL: one of our own that is as strict as one can be, and `PgBouncer`.
//!
//! Ours lends a session of the server for one transaction at a time, and a different one each time,
//! so that whoever relies on a session fails at once and not now and then. It follows `PgBouncer` in what
//! it does for its clients: prepared statements are prepared again where they are missing, and nothing
//! else is: what a session sets or locks stays with it, and what it listens to reaches whoever has it
//! then.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// The sessions that all clients of a database share.
const SESSIONS: usize = 6;
/// What stands in the place of a start-up message's length when a client asks for TLS.
const SSL_REQUEST: u32 = 80_877_103;

/// A session of the server.
struct Session {
    stream: TcpStream,
    /// Statements that are prepared on it, by the names that the pooler gave them.
    prepared: HashSet<Vec<u8>>,
}

#[derive(Default)]
struct Shared {
    target: String,
    /// Sessions that nobody has; the one that was given back first is given out first.
    idle: Mutex<VecDeque<Session>>,
    /// How often a client went on in another session than before.
    switches: AtomicUsize,
    /// How often a session was asked to listen.
    listens: AtomicUsize,
}

/// The pooler.
pub(crate) struct Pooler {
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

impl Pooler {
    /// Puts itself between the server of `url` and whoever connects to the URL that it returns.
    pub(crate) async fn before(url: &str) -> (Self, String) {
        let mut url: url::Url = url.parse().expect("a URL");
        let target = format!("{}:{}", url.host_str().expect("a host"), url.port().unwrap_or(5432));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        point(&mut url, listener.local_addr().expect("an address"));
        let shared = Arc::new(Shared { target, ..Shared::default() });
        let (mut tasks, sessions) = (JoinSet::new(), Arc::new(Semaphore::new(SESSIONS)));
        let all = Arc::clone(&shared);
        tasks.spawn(async move {
            let mut clients = JoinSet::new();
            for number in 0_u32.. {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let (shared, sessions) = (Arc::clone(&all), Arc::clone(&sessions));
                // A client that goes away is none of a pooler's errors.
                clients.spawn(async move { drop(serve(stream, number, shared, sessions).await) });
            }
        });
        (Self { shared, _tasks: tasks }, url.to_string())
    }

    /// How often a client went on in another session than before.
    pub(crate) fn switches(&self) -> usize {
        self.shared.switches.load(Ordering::Relaxed)
    }

    /// How often somebody listened.
    pub(crate) fn listens(&self) -> usize {
        self.shared.listens.load(Ordering::Relaxed)
    }
}

/// Has the URL of a database lead to `addr`.
pub(crate) fn point(url: &mut url::Url, addr: SocketAddr) {
    url.set_host(Some("127.0.0.1")).expect("a host");
    url.set_port(Some(addr.port())).expect("a port");
}

type Message = (u8, Vec<u8>);

async fn serve(
    mut client: TcpStream,
    number: u32,
    shared: Arc<Shared>,
    sessions: Arc<Semaphore>,
) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    let start = start(&mut client).await?;
    let (mut from, mut to) = client.into_split();
    let refused = ["options", "extra_float_digits"]
        .into_iter()
        .find(|name| start.split(|byte| *byte == 0).any(|word| word == name.as_bytes()));
    if let Some(refused) = refused {
        let text = format!("SFATAL\0C08P01\0Munsupported startup parameter: {refused}\0\0");
        return to.write_all(&framed(b'E', text.as_bytes())).await;
    }
    let mut greeting = framed(b'R', &0_u32.to_be_bytes());
    for parameter in ["server_version\x0015.0\0", "client_encoding\0UTF8\0"] {
        greeting.extend(framed(b'S', parameter.as_bytes()));
    }
    greeting.extend(framed(b'K', &[0; 8]));
    greeting.extend(framed(b'Z', b"I"));
    to.write_all(&greeting).await?;

    let mut statements = Statements { client: number, ..Statements::default() };
    let mut last = None;
    loop {
        let mut request = turn(&mut from).await?;
        let _permit = sessions.acquire().await.expect("never closed");
        let mut session = shared.take(&start).await?;
        let local = session.stream.local_addr()?;
        if last.replace(local).is_some_and(|last| last != local) {
            shared.switches.fetch_add(1, Ordering::Relaxed);
        }
        // Until the transaction is over. Dropping the session on the way ends it at the server.
        loop {
            if request.iter().any(|(kind, body)| *kind == b'Q' && body.starts_with(b"LISTEN")) {
                shared.listens.fetch_add(1, Ordering::Relaxed);
            }
            let (forwarded, mut hidden) = statements.translate(&request, &mut session.prepared);
            session.stream.write_all(&forwarded).await?;
            let is_over = loop {
                let (kind, body) = message(&mut session.stream).await?;
                match kind {
                    b'1' if hidden.pop_front() == Some(true) => continue,
                    _ => to.write_all(&framed(kind, &body)).await?,
                }
                if kind == b'Z' {
                    break body == b"I";
                }
            };
            if is_over {
                break;
            }
            request = turn(&mut from).await?;
        }
        shared.idle.lock().expect("not poisoned").push_back(session);
    }
}

impl Shared {
    /// A session of the server for the user and the database that `start` names.
    async fn take(&self, start: &[u8]) -> std::io::Result<Session> {
        let idle = {
            let mut idle = self.idle.lock().expect("not poisoned");
            // Only when all exist are they used again: that keeps them in turn.
            if idle.len() >= SESSIONS { idle.pop_front() } else { None }
        };
        if let Some(session) = idle {
            return Ok(session);
        }
        let mut stream = TcpStream::connect(&self.target).await?;
        stream.set_nodelay(true)?;
        let length = u32::try_from(start.len() + 4).expect("short");
        stream.write_all(&[&length.to_be_bytes()[..], start].concat()).await?;
        while message(&mut stream).await?.0 != b'Z' {}
        Ok(Session { stream, prepared: HashSet::new() })
    }
}

/// What one client has prepared.
#[derive(Default)]
struct Statements {
    client: u32,
    count: u32,
    /// By the client's names: the pooler's, and what Parse said behind the name.
    known: HashMap<Vec<u8>, (Vec<u8>, Vec<u8>)>,
}

impl Statements {
    /// What the server is sent for a client's messages, and for each statement that is parsed by it
    /// whether the client is to know.
    fn translate(
        &mut self,
        request: &[Message],
        prepared: &mut HashSet<Vec<u8>>,
    ) -> (Vec<u8>, VecDeque<bool>) {
        let (mut out, mut hidden) = (Vec::new(), VecDeque::new());
        for (kind, body) in request {
            // The name of the statement, and what stands before and behind it.
            let before = match kind {
                b'P' => 0,
                b'D' | b'C' if body.first() == Some(&b'S') => 1,
                b'B' => body.iter().position(|byte| *byte == 0).expect("a portal") + 1,
                _ => {
                    out.extend(framed(*kind, body));
                    continue;
                }
            };
            let end = body[before..].iter().position(|byte| *byte == 0).expect("a name") + before;
            let (name, rest) = (body[before..end].to_vec(), &body[end..]);
            if name.is_empty() {
                hidden.extend((*kind == b'P').then_some(false));
                out.extend(framed(*kind, body));
                continue;
            }
            if *kind == b'P' {
                self.count += 1;
                let ours = format!("p{}_{}", self.client, self.count).into_bytes();
                self.known.insert(name.clone(), (ours, rest.to_vec()));
            }
            let Some((ours, parse)) = self.known.get(&name) else {
                out.extend(framed(*kind, body));
                continue;
            };
            if *kind != b'C' && prepared.insert(ours.clone()) {
                hidden.push_back(*kind != b'P');
                out.extend(framed(b'P', &[&ours[..], parse].concat()));
            }
            if *kind != b'P' {
                out.extend(framed(*kind, &[&body[..before], ours, rest].concat()));
            }
        }
        (out, hidden)
    }
}

/// Reads what a client says first, without its length; TLS is refused.
async fn start(client: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    loop {
        let length = client.read_u32().await?;
        let mut start = vec![0; length.saturating_sub(4) as usize];
        client.read_exact(&mut start).await?;
        if start[..4] != SSL_REQUEST.to_be_bytes() {
            return Ok(start);
        }
        client.write_all(b"N").await?;
    }
}

/// Reads a client's messages up to the one that waits for an answer.
async fn turn(from: &mut OwnedReadHalf) -> std::io::Result<Vec<Message>> {
    let mut messages = Vec::new();
    loop {
        let (kind, body) = message(from).await?;
        match kind {
            b'X' => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            b'S' | b'Q' => {
                messages.push((kind, body));
                return Ok(messages);
            }
            _ => messages.push((kind, body)),
        }
    }
}

async fn message(from: &mut (impl AsyncReadExt + Unpin)) -> std::io::Result<Message> {
    let kind = from.read_u8().await?;
    let length = from.read_u32().await?;
    let mut body = vec![0; length.saturating_sub(4) as usize];
    from.read_exact(&mut body).await?;
    Ok((kind, body))
}

fn framed(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).expect("a message of PostgreSQL");
    [&[kind][..], &length.to_be_bytes(), body].concat()
}

/// `PgBouncer`, running before the tests' PostgreSQL until it is dropped.
pub(crate) struct PgBouncer {
    _process: tokio::process::Child,
    _folder: tempfile::TempDir,
}

/// The program: Debian puts it where only root's PATH leads.
fn program() -> &'static str {
    let elsewhere = "/usr/sbin/pgbouncer";
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let is_found = std::env::split_paths(&paths).any(|path| path.join("pgbouncer").is_file());
    if !is_found && Path::new(elsewhere).is_file() { elsewhere } else { "pgbouncer" }
}

/// `PgBouncer`'s version: major and minor.
pub(crate) async fn pgbouncer_version() -> (u32, u32) {
    let output = tokio::process::Command::new(program()).arg("--version").output().await;
    let output = output.expect("PgBouncer is installed: run `make tools`");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.split_whitespace().nth(1).expect("a version");
    let mut parts = version.split('.').map(|part| part.parse().expect("a number"));
    (parts.next().expect("major"), parts.next().expect("minor"))
}

impl PgBouncer {
    /// Starts it with `pool_mode` before the server of `url`; returns the URL that leads through it.
    pub(crate) async fn before(url: &str, pool_mode: &str) -> (Self, String) {
        use std::os::unix::fs::PermissionsExt;
        let mut url: url::Url = url.parse().expect("a URL");
        let folder = tempfile::tempdir().expect("a folder");
        // Root lends it to somebody else.
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(folder.path(), open).expect("permitted");
        // One that pools sessions has none to spare for a second client.
        let sessions = if pool_mode == "session" { 100 } else { SESSIONS };
        for _ in 0..10 {
            let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
            let addr = free.local_addr().expect("an address");
            drop(free);
            let config = format!(
                "[databases]\n* = host={} port={} user={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
                 listen_port = {}\nunix_socket_dir =\nauth_type = any\npool_mode = {pool_mode}\n\
                 default_pool_size = {sessions}\nmax_client_conn = 200\n",
                url.host_str().expect("a host"),
                url.port().unwrap_or(5432),
                url.username(),
                addr.port(),
            );
            let path = folder.path().join("pgbouncer.ini");
            let is_tracking = pool_mode == "transaction" && pgbouncer_version().await >= (1, 21);
            let tracking = if is_tracking { "max_prepared_statements = 200\n" } else { "" };
            std::fs::write(&path, config + tracking).expect("written");
            let mut process = as_nobody()
                .arg("--quiet")
                .arg(&path)
                .stderr(std::process::Stdio::null())
                .kill_on_drop(true)
                .spawn()
                .expect("started");
            // Another program may have been quicker with the port.
            loop {
                if process.try_wait().expect("waited").is_some() {
                    break;
                }
                if TcpStream::connect(addr).await.is_ok() {
                    point(&mut url, addr);
                    return (Self { _process: process, _folder: folder }, url.to_string());
                }
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        }
        panic!("PgBouncer did not start");
    }
}

/// `PgBouncer` does not run as root.
fn as_nobody() -> tokio::process::Command {
    let program = program();
    if !rustix::process::geteuid().is_root() {
        return tokio::process::Command::new(program);
    }
    let mut command = tokio::process::Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", program]);
    command
}
