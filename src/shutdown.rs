//! Stopping: the signals that ask for it, and the two stages in which it happens.
//!
//! Soft first: nothing new is taken, and what runs may finish. Hard afterwards: what still runs is
//! dropped. Hard implies soft.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The signals that ask the process to stop. Once installed, they no longer kill it.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Starts to listen for SIGTERM and SIGINT.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn install() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next signal and gives its name. Dropping the future loses no signal.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// The two stages, as tasks see them.
#[derive(Clone, Debug, Default)]
pub struct Stages {
    soft: CancellationToken,
    hard: CancellationToken,
}

impl Stages {
    /// Stages that have not begun.
    pub fn new() -> Self {
        let hard = CancellationToken::new();
        Self { soft: hard.child_token(), hard }
    }

    /// Asks everything to finish.
    pub fn begin_soft(&self) {
        self.soft.cancel();
    }

    /// Ends everything.
    pub fn begin_hard(&self) {
        self.hard.cancel();
    }

    /// Resolves when nothing new should be taken.
    pub async fn soft(&self) {
        self.soft.cancelled().await;
    }

    /// Runs `task` until the soft stage.
    pub async fn until_soft(self, task: impl Future<Output = ()>) {
        self.soft.run_until_cancelled(task).await;
    }

    /// The soft stage, for a component that knows only tokens.
    pub fn soft_token(&self) -> CancellationToken {
        self.soft.clone()
    }

    /// Resolves when nothing may run any longer.
    pub async fn hard(&self) {
        self.hard.cancelled().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn hard_implies_soft_and_soft_does_not_imply_hard() {
        let stages = Stages::new();
        stages.begin_soft();
        stages.soft().await;
        assert!(!stages.hard.is_cancelled());
        let stages = Stages::new();
        stages.begin_hard();
        stages.soft().await;
    }
}
