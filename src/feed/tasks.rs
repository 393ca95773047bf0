//! The feed's own tasks. They run until the feed is closed; one that ends before that, by itself or
//! by a panic, is a fault, which is told to whoever runs the feed.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The tasks. Cheap to clone.
#[derive(Clone)]
pub(super) struct Tasks {
    tracker: TaskTracker,
    closing: CancellationToken,
    /// Which task has ended too early.
    failed: Arc<watch::Sender<Option<&'static str>>>,
}

/// Tells of a task's end, however it comes.
struct End {
    name: &'static str,
    tasks: Tasks,
}

impl Drop for End {
    fn drop(&mut self) {
        if !self.tasks.closing.is_cancelled() {
            self.tasks.failed.send_replace(Some(self.name));
        }
    }
}

impl Tasks {
    pub(super) fn new() -> Self {
        Self {
            tracker: TaskTracker::new(),
            closing: CancellationToken::new(),
            failed: Arc::new(watch::Sender::new(None)),
        }
    }

    /// Runs a task until it is closed.
    pub(super) fn spawn(
        &self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let end = End { name, tasks: self.clone() };
        let closing = self.closing.clone();
        self.tracker.spawn(async move {
            let _end = end;
            closing.run_until_cancelled_owned(task).await;
        });
    }

    /// Cancelled when the feed is closed.
    pub(super) fn closing(&self) -> CancellationToken {
        self.closing.clone()
    }

    /// Ends the tasks.
    pub(super) fn close(&self) {
        self.closing.cancel();
        self.tracker.close();
    }

    /// Waits, once closed, until they have ended.
    pub(super) async fn drained(&self) {
        self.tracker.wait().await;
    }

    /// Waits until a task has ended too early; tells which.
    pub(super) async fn failed(&self) -> &'static str {
        let mut failed = self.failed.subscribe();
        let name = failed.wait_for(Option::is_some).await.map(|name| *name);
        match name {
            Ok(Some(name)) => name,
            // The sender lives as long as `self`.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt;

    use super::*;

    async fn failed(tasks: &Tasks) -> &'static str {
        let failed = tokio::time::timeout(Duration::from_secs(5), tasks.failed()).await;
        failed.expect("no fault was told")
    }

    #[tokio::test]
    async fn an_end_and_a_panic_are_faults() {
        let tasks = Tasks::new();
        tasks.spawn("an endless one", std::future::pending());
        assert!(tasks.failed().now_or_never().is_none());
        tasks.spawn("one that ends", async {});
        assert_eq!(failed(&tasks).await, "one that ends");

        let tasks = Tasks::new();
        tasks.spawn("one that panics", async { panic!("on purpose") });
        assert_eq!(failed(&tasks).await, "one that panics");
    }

    #[tokio::test]
    async fn the_end_of_a_feed_that_is_closed_is_none() {
        let tasks = Tasks::new();
        tasks.spawn("an endless one", std::future::pending());
        tasks.close();
        tasks.drained().await;
        assert!(tasks.failed().now_or_never().is_none());
    }
}
