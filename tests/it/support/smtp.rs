//! A mail server that does what a script says, and remembers what it was given.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

/// The command that stands for the content and its end.
pub(crate) const CONTENT: &str = "<content>";
/// The command that stands for a new connection.
pub(crate) const GREETING: &str = "<greeting>";

/// What the server does, once, instead of what it should: at a command that begins so.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Act {
    /// Gives this answer.
    Say(&'static str, &'static str),
    /// Hangs up.
    Drop(&'static str),
    /// Says nothing for ever.
    Hang(&'static str),
    /// Begins an answer that has no end.
    Flood(&'static str),
    /// Says nothing until it is let go on, then what it should.
    Hold(&'static str),
}

impl Act {
    fn is_at(self, command: &str) -> bool {
        let (Self::Say(at, _) | Self::Drop(at) | Self::Hang(at) | Self::Flood(at) | Self::Hold(at)) =
            self;
        command.starts_with(at)
    }
}

/// A message whose content came to its end, whatever was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Given {
    /// The address in MAIL FROM.
    pub(crate) sender: String,
    /// The address in RCPT TO.
    pub(crate) recipient: String,
    /// The content without its dots, as it came.
    pub(crate) content: String,
}

struct Shared {
    acts: Vec<Act>,
    given: Vec<Given>,
    commands: Vec<String>,
    held: Arc<Semaphore>,
}

/// The server; it ends when it is dropped.
pub(crate) struct SmtpServer {
    url: String,
    shared: Arc<Mutex<Shared>>,
    task: AbortHandle,
}

impl Drop for SmtpServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl SmtpServer {
    /// A server that acts once by each of `acts`, when its time comes, and takes everything else.
    pub(crate) async fn acting(acts: &[Act]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("smtp://{}", listener.local_addr().expect("an address"));
        let shared = Arc::new(Mutex::new(Shared {
            acts: acts.to_vec(),
            held: Arc::new(Semaphore::new(0)),
            given: Vec::new(),
            commands: Vec::new(),
        }));
        let served = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            let mut sessions = tokio::task::JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                sessions.spawn(serve(socket, Arc::clone(&served)));
            }
        });
        Self { url, shared, task: task.abort_handle() }
    }

    /// Lets everything go on that is held.
    pub(crate) fn go_on(&self) {
        self.shared.lock().expect("lock").held.close();
    }

    /// Waits until a command came that begins so.
    pub(crate) async fn wait_for_command(&self, beginning: &str) {
        for _ in 0..6_000 {
            if !self.commands(beginning).is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{beginning} was expected");
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// The messages in the order in which they came.
    pub(crate) fn given(&self) -> Vec<Given> {
        self.shared.lock().expect("lock").given.clone()
    }

    /// The commands that began so.
    pub(crate) fn commands(&self, beginning: &str) -> Vec<String> {
        let shared = self.shared.lock().expect("lock");
        shared.commands.iter().filter(|it| it.starts_with(beginning)).cloned().collect()
    }

    /// The acts whose time has not come.
    pub(crate) fn left(&self) -> usize {
        self.shared.lock().expect("lock").acts.len()
    }

    /// Waits until so many messages were given, and returns them.
    pub(crate) async fn wait_for(&self, count: usize) -> Vec<Given> {
        for _ in 0..6_000 {
            let given = self.given();
            if given.len() >= count {
                return given;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{count} messages were expected: {:?}", self.given());
    }
}

/// The address between angle brackets.
fn address(command: &str) -> String {
    let inner = command.split_once('<').and_then(|(_, rest)| rest.split_once('>'));
    inner.map_or_else(String::new, |(address, _)| address.to_owned())
}

async fn serve(socket: TcpStream, shared: Arc<Mutex<Shared>>) -> Option<()> {
    let (read, mut write) = socket.into_split();
    let mut lines = BufReader::new(read);
    let mut command = GREETING.to_owned();
    let (mut sender, mut recipient) = (String::new(), String::new());
    loop {
        let act = {
            let mut shared = shared.lock().expect("lock");
            shared.commands.push(command.clone());
            let at = shared.acts.iter().position(|act| act.is_at(&command));
            at.map(|at| (shared.acts.remove(at), Arc::clone(&shared.held)))
        };
        let act = match act {
            Some((Act::Hold(_), held)) => {
                // Closed when it is to go on.
                let _ = held.acquire().await;
                None
            }
            act => act.map(|(act, _)| act),
        };
        let answer = match (act, command.split([' ', ':']).next().unwrap_or_default()) {
            (Some(Act::Say(_, answer)), _) => answer,
            (Some(Act::Drop(_)), _) => return None,
            (Some(Act::Flood(_)), _) => loop {
                write.write_all(&[b'2'; 4 * 1024]).await.ok()?;
            },
            (Some(Act::Hang(_) | Act::Hold(_)), _) => std::future::pending().await,
            (None, GREETING) => "220 mail.company.com ESMTP",
            (None, "EHLO") => "250-mail.company.com\r\n250 8BITMIME",
            (None, "MAIL") => {
                sender = address(&command);
                "250 2.1.0 Ok"
            }
            (None, "RCPT") => {
                recipient = address(&command);
                "250 2.1.5 Ok"
            }
            (None, "DATA") => "354 go on",
            (None, "QUIT") => "221 2.0.0 bye",
            (None, _) => "250 2.0.0 Ok: queued as 7",
        };
        write.write_all(format!("{answer}\r\n").as_bytes()).await.ok()?;
        if answer.starts_with("354") {
            let content = content(&mut lines).await?;
            let (sender, recipient) = (sender.clone(), recipient.clone());
            shared.lock().expect("lock").given.push(Given { sender, recipient, content });
            CONTENT.clone_into(&mut command);
            continue;
        }
        command.clear();
        if lines.read_line(&mut command).await.ok()? == 0 {
            return None;
        }
        command.truncate(command.trim_end().len());
    }
}

/// Reads to the line with a dot alone.
async fn content(lines: &mut (impl AsyncBufReadExt + Unpin)) -> Option<String> {
    let mut content = String::new();
    loop {
        let mut line = String::new();
        if lines.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        if line == ".\r\n" {
            return Some(content);
        }
        content.push_str(line.strip_prefix('.').unwrap_or(&line));
    }
}
