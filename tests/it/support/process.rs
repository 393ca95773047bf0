//! The real binary as a process of its own, to be killed.

use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};

use super::Database;

/// A running `tidings serve`.
pub(crate) struct Served {
    pub(crate) child: Child,
    pub(crate) endpoint: String,
    pub(crate) http: String,
    /// What it has logged so far.
    pub(crate) log: Log,
    /// The line of the log that said where it listens.
    pub(crate) ready: String,
    reading: tokio::task::JoinHandle<()>,
}

/// The lines of a process's log; it outlives the process.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn push(&self, line: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    /// The lines so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A process that ended before it was ready.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) log: Vec<String>,
}

/// The binary with arguments.
pub(crate) fn tidings(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
    command.args(arguments).kill_on_drop(true);
    // No option of whoever runs the tests.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TIDINGS_")) {
        command.env_remove(name);
    }
    command
}

impl Served {
    /// Starts the service on free ports, with receivers on the loopback permitted.
    pub(crate) async fn start(database: &Database, more: &[&str]) -> Self {
        Self::start_in(database, more, &[]).await
    }

    /// Likewise, with variables.
    pub(crate) async fn start_in(
        database: &Database,
        more: &[&str],
        variables: &[(&str, &str)],
    ) -> Self {
        let local = [
            "--allow-cidr",
            "127.0.0.0/8",
            "--allow-http",
            "--lease-ttl",
            "3s",
            "--poll-interval",
            "50ms",
        ];
        Self::start_as_shipped(database, &[&local, more].concat(), variables).await
    }

    /// Starts the service on free ports with the defaults that it is shipped with.
    pub(crate) async fn start_as_shipped(
        database: &Database,
        more: &[&str],
        variables: &[(&str, &str)],
    ) -> Self {
        Self::launch(database, more, variables).await.expect("the service is ready")
    }

    /// Like [`Self::start_as_shipped`], for a process that may end before it is ready.
    pub(crate) async fn launch(
        database: &Database,
        more: &[&str],
        variables: &[(&str, &str)],
    ) -> Result<Self, Ended> {
        let of_database = database.arguments();
        let of_database: Vec<_> = of_database.iter().map(String::as_str).collect();
        let arguments = [
            &["serve", "--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0"][..],
            &of_database,
            if more.contains(&"--log-format") { &[] } else { &["--log-format", "json"] },
            more,
        ]
        .concat();
        let mut child = tidings(&arguments)
            .envs(variables.iter().copied())
            .current_dir(database.folder.path())
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("started");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let log = Log::default();
        let ready = tokio::time::timeout(Duration::from_mins(1), ready(&mut lines, &log))
            .await
            .unwrap_or_else(|_| panic!("ready in time: {}", log.lines().join("\n")));
        let Some(line) = ready else {
            let status = child.wait().await.expect("waited");
            return Err(Ended { status, log: log.lines() });
        };
        let written = log.clone();
        let reading = tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                written.push(line);
            }
        });
        let endpoint = format!("http://{}", field(&line, "grpc.addr"));
        let http = field(&line, "http.addr");
        Ok(Self { child, endpoint, http, log, ready: line, reading })
    }

    /// The status of a page.
    pub(crate) async fn get(&self, path: &str) -> u16 {
        let answer = self.page(path).await;
        answer.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status")
    }

    /// A page as it is answered.
    pub(crate) async fn page(&self, path: &str) -> String {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(&self.http).await.expect("connected");
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("answered");
        answer
    }

    /// The value of a series that counts.
    pub(crate) async fn metric(&self, series: &str) -> i64 {
        super::app::metric(self.http.parse().expect("an address"), series).await
    }

    /// SIGKILL: nothing is written or said any more.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.expect("killed");
    }

    /// Sends a signal by its name.
    pub(crate) async fn signal(&self, name: &str) {
        let pid = self.child.id().expect("running").to_string();
        let sent =
            Command::new("kill").args([&format!("-{name}"), &pid]).status().await.expect("sent");
        assert!(sent.success());
    }

    /// Waits for the end, and returns the exit code and the log.
    pub(crate) async fn wait(self) -> (Option<i32>, Vec<String>) {
        let ended = self.ended(Duration::from_mins(1)).await;
        (ended.status.code(), ended.log)
    }

    /// Waits for the end.
    pub(crate) async fn ended(mut self, limit: Duration) -> Ended {
        let status = tokio::time::timeout(limit, self.child.wait())
            .await
            .unwrap_or_else(|_| panic!("ends in time: {}", self.log.lines().join("\n")));
        // Its log ends with it.
        self.reading.await.expect("read");
        Ended { status: status.expect("waited"), log: self.log.lines() }
    }
}

/// Reads the log, in either format, until the service says where it listens; `None` when it ends.
async fn ready(lines: &mut Lines<BufReader<ChildStderr>>, log: &Log) -> Option<String> {
    while let Some(line) = lines.next_line().await.expect("readable") {
        log.push(line.clone());
        if line.contains("tidings is ready") {
            return Some(line);
        }
    }
    None
}

/// A field of a line.
fn field(line: &str, name: &str) -> String {
    let rest = line.split(name).nth(1).expect("a field");
    let rest = rest.trim_start_matches(['"', ':', '=']);
    rest.split(['"', ' ']).next().unwrap_or_default().to_owned()
}

/// An operator's key, made by the command line on the database itself.
pub(crate) async fn operator_key(database: &Database) -> String {
    let output =
        tidings(&["keys", "create", "--operator", "--database-url", &database.config.database_url])
            .current_dir(database.folder.path())
            .output()
            .await
            .expect("ran");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let stdout = String::from_utf8(output.stdout).expect("UTF-8");
    assert_eq!(stdout.lines().count(), 1, "the key alone is on standard output");
    stdout.trim().to_owned()
}
