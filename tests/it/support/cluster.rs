//! A PostgreSQL server of a test's own, to be stopped and started again.

use std::path::PathBuf;
use std::process::{Command, Output};

use tempfile::TempDir;

/// A server in a temporary folder, on a port that it keeps; it ends when it is dropped.
pub(crate) struct Cluster {
    folder: TempDir,
    port: u16,
}

/// How the server is to stop.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stop {
    /// It ends every connection, and writes a checkpoint.
    Fast,
    /// It ends at once, as if it had crashed, and recovers at its next start.
    Immediate,
}

impl Stop {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Immediate => "immediate",
        }
    }
}

/// A program of the server that `make test` uses.
fn program(name: &str) -> PathBuf {
    std::env::var_os("TIDINGS_TEST_POSTGRES_BIN")
        .map_or_else(|| PathBuf::from(name), |folder| PathBuf::from(folder).join(name))
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

impl Cluster {
    /// Makes a server and starts it. What is acknowledged is on the disk, as by default.
    pub(crate) fn start() -> Self {
        // The path of its socket must be short, and its user must be able to reach it.
        let folder = tempfile::Builder::new().prefix("tidings-cluster").tempdir_in("/tmp");
        let mut cluster = Self { folder: folder.expect("a temporary folder"), port: 0 };
        if is_root() {
            let chown = ["postgres".as_ref(), cluster.folder.path().as_os_str()];
            let owned = Command::new("chown").args(chown).status().expect("chown runs");
            assert!(owned.success(), "the server's user owns its folder");
        }
        let data = cluster.data();
        cluster.run(
            "initdb",
            &["--pgdata", &data, "--username", "tidings", "--auth", "trust", "--no-sync"],
        );
        // Nobody can reserve a port for another program: if somebody was quicker, another one.
        for _ in 0..10 {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
            cluster.port = listener.local_addr().expect("an address").port();
            drop(listener);
            if cluster.try_start() {
                return cluster;
            }
        }
        panic!("the server does not start");
    }

    fn data(&self) -> String {
        self.folder.path().join("data").display().to_string()
    }

    pub(crate) fn url(&self) -> String {
        format!("postgres://tidings@127.0.0.1:{}/postgres", self.port)
    }

    /// Stops the server.
    pub(crate) fn stop(&self, how: Stop) {
        self.run("pg_ctl", &["stop", "--pgdata", &self.data(), "--mode", how.name(), "--silent"]);
    }

    /// Starts it again.
    pub(crate) fn restart(&self) {
        assert!(self.try_start(), "the server starts again on its port");
    }

    fn try_start(&self) -> bool {
        let folder = self.folder.path().display();
        let options = format!(
            "-p {} -c listen_addresses=127.0.0.1 -k {folder} -c max_connections=60",
            self.port
        );
        let log = self.folder.path().join("server.log").display().to_string();
        let arguments = ["start", "--pgdata", &self.data(), "--log", &log, "--options", &options];
        let waiting = ["--wait", "--timeout", "60", "--silent"];
        self.try_run("pg_ctl", &[&arguments[..], &waiting].concat()).status.success()
    }

    fn run(&self, name: &str, arguments: &[&str]) {
        let output = self.try_run(name, arguments);
        assert!(
            output.status.success(),
            "{name}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// PostgreSQL refuses to run as root, so root lends the server to a user who may do little.
    fn try_run(&self, name: &str, arguments: &[&str]) -> Output {
        let mut command = if is_root() {
            let mut command = Command::new("runuser");
            command.args(["-u", "postgres", "--"]).arg(program(name));
            command
        } else {
            Command::new(program(name))
        };
        // The server outlives the command: it must not have our ends of pipes.
        let output = tempfile::tempfile().expect("a file");
        let status = command
            .args(arguments)
            .current_dir(self.folder.path())
            .stdin(std::process::Stdio::null())
            .stdout(output.try_clone().expect("a file"))
            .stderr(output.try_clone().expect("a file"))
            .status()
            .unwrap_or_else(|error| panic!("{name} does not run: {error}"));
        Output { status, stdout: read(output), stderr: Vec::new() }
    }
}

fn read(mut file: std::fs::File) -> Vec<u8> {
    use std::io::{Read, Seek};
    let mut text = Vec::new();
    file.rewind().expect("a file");
    file.read_to_end(&mut text).expect("readable");
    text
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let data = self.data();
        // Its data goes with it.
        let stop = ["stop", "--pgdata", &data, "--mode", "immediate", "--silent"];
        drop(self.try_run("pg_ctl", &stop));
    }
}
