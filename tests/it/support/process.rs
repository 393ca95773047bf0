//! The real binary as a process of its own, to be killed.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};

use super::Database;

/// A running `tidings serve`.
pub(crate) struct Served {
    pub(crate) child: Child,
    pub(crate) endpoint: String,
    pub(crate) http: String,
    log: tokio::task::JoinHandle<Vec<String>>,
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
        let url = database.config.database_url.as_str();
        let arguments = [
            &[
                "serve",
                "--database-url",
                url,
                "--grpc-addr",
                "127.0.0.1:0",
                "--http-addr",
                "127.0.0.1:0",
            ][..],
            &[
                "--allow-cidr",
                "127.0.0.0/8",
                "--allow-http",
                "--log-format",
                "json",
                "--lease-ttl",
                "3s",
            ],
            &["--poll-interval", "50ms"],
            more,
        ]
        .concat();
        let mut child = tidings(&arguments)
            .current_dir(database.folder.path())
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("started");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let (grpc, http) = tokio::time::timeout(Duration::from_secs(30), addresses(&mut lines))
            .await
            .expect("ready in time");
        let log = tokio::spawn(async move {
            let mut log = Vec::new();
            while let Ok(Some(line)) = lines.next_line().await {
                log.push(line);
            }
            log
        });
        Self { child, endpoint: format!("http://{grpc}"), http, log }
    }

    /// The status of a page.
    pub(crate) async fn get(&self, path: &str) -> u16 {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(&self.http).await.expect("connected");
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("answered");
        answer.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status")
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
    pub(crate) async fn wait(mut self) -> (Option<i32>, Vec<String>) {
        let ended = tokio::time::timeout(Duration::from_mins(1), self.child.wait())
            .await
            .expect("ends in time");
        (ended.expect("waited").code(), self.log.await.expect("read"))
    }
}

/// Reads the log until the service says where it listens.
async fn addresses(lines: &mut Lines<BufReader<ChildStderr>>) -> (String, String) {
    let mut seen = Vec::new();
    while let Some(line) = lines.next_line().await.expect("readable") {
        if line.contains("tidings is ready") {
            let address = |name: &str| {
                let rest = line.split(&format!("\"{name}\":\"")).nth(1).expect("an address");
                rest.split('"').next().unwrap_or_default().to_owned()
            };
            return (address("grpc.addr"), address("http.addr"));
        }
        seen.push(line);
    }
    panic!("the service ended: {}", seen.join("\n"));
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
