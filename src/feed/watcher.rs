//! One watcher: a snapshot when it is wanted, then the tail, without a gap between them.
//!
//! The snapshot comes in pages, each read in one statement together with the feed's position that
//! it stands for. Before a page is told, the changes up to that position are told for the deliveries
//! of earlier pages; for the others the page itself is newer. So each delivery is told in order of
//! its revisions, nothing is missed, and nothing has to be remembered but two numbers.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;

use crate::domain::id::{DeliveryId, TenantId};
use crate::store::FeedRow;

use super::hub::{Hub, Topic};
use super::{Cursor, Error, Filter, Item, Snapshot, Start, Watched};

/// Longest time between two checkpoints.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(15);
/// Deliveries in one page of a snapshot.
const SNAPSHOT_PAGE: u32 = 200;
/// Rows of the feed that are held at once.
const PAGE: u32 = 128;

/// Hears of one tenant's deliveries.
pub struct Watcher {
    hub: Arc<Hub>,
    topic: Arc<Topic>,
    arrived: watch::Receiver<i64>,
    closing: CancellationToken,
    tenant_id: TenantId,
    filter: Filter,
    /// What has been read up to, and told once `pending` is empty.
    cursor: Cursor,
    pending: VecDeque<Watched>,
    checkpoint: Pin<Box<Sleep>>,
}

impl Watcher {
    pub(super) async fn open(
        hub: Arc<Hub>,
        closing: CancellationToken,
        tenant_id: TenantId,
        filter: Filter,
        start: Start,
    ) -> Result<Self, Error> {
        let head = hub.store.feed_head(tenant_id).await?.ok_or(Error::UnknownTenant)?;
        let cursor = match start {
            Start::Now => Cursor { position: head.position, ..Cursor::default() },
            Start::Current => Cursor {
                position: head.position,
                index: 0,
                snapshot: Some(Snapshot { after: None }),
            },
            // Beyond the head: the feed is not the one that the token was made from.
            Start::Resume(cursor)
                if cursor.position < head.floor || cursor.position > head.position =>
            {
                return Err(Error::Expired);
            }
            Start::Resume(cursor) => cursor,
        };
        let topic = hub.topic(tenant_id, head.position);
        let arrived = topic.position();
        hub.watchers.inc();
        let checkpoint = Box::pin(tokio::time::sleep(CHECKPOINT_INTERVAL));
        let first = Watched { item: Item::Checkpoint { snapshot_complete: false }, cursor };
        Ok(Self {
            hub,
            topic,
            arrived,
            closing,
            tenant_id,
            filter,
            cursor,
            pending: VecDeque::from([first]),
            checkpoint,
        })
    }

    /// Waits for the next item. Dropping the future loses nothing.
    ///
    /// # Errors
    /// When there is nothing more to hear; the last item's cursor says where to go on.
    pub async fn next(&mut self) -> Result<Watched, Error> {
        loop {
            if self.closing.is_cancelled() {
                return Err(Error::ShuttingDown);
            }
            if let Some(watched) = self.pending.pop_front() {
                return Ok(watched);
            }
            if self.checkpoint.is_elapsed() {
                self.checkpoint = Box::pin(tokio::time::sleep(CHECKPOINT_INTERVAL));
                return Ok(self.checkpoint_item(false));
            }
            match self.cursor.snapshot {
                Some(snapshot) => self.read_snapshot(snapshot).await?,
                None => self.read_tail().await?,
            }
        }
    }

    const fn checkpoint_item(&self, snapshot_complete: bool) -> Watched {
        Watched { item: Item::Checkpoint { snapshot_complete }, cursor: self.cursor }
    }

    async fn read_snapshot(&mut self, snapshot: Snapshot) -> Result<(), Error> {
        if let Some(covered) = snapshot.after {
            // Far behind: catch up in bounded steps before the next page.
            let head =
                self.hub.store.feed_head(self.tenant_id).await?.ok_or(Error::UnknownTenant)?;
            if head.position - self.cursor.position > i64::from(PAGE) {
                let rows = self.rows().await?;
                return self.take(&rows, i64::MAX, Some(covered));
            }
        }
        let page = self
            .hub
            .store
            .snapshot_page(
                self.tenant_id,
                self.filter.subscription_id,
                self.filter.event_id,
                &self.filter.states,
                snapshot.after,
                SNAPSHOT_PAGE,
            )
            .await?;
        if let Some(covered) = snapshot.after {
            while self.cursor.position < page.position {
                let rows = self.rows().await?;
                self.take(&rows, page.position, Some(covered))?;
            }
        }
        self.cursor = Cursor { position: page.position, index: 0, snapshot: Some(snapshot) };
        let is_last = page.deliveries.len() < SNAPSHOT_PAGE as usize;
        for delivery in page.deliveries {
            self.cursor.snapshot = Some(Snapshot { after: Some(delivery.id) });
            if self.filter.matches(&delivery) {
                let item = Item::Change(Box::new(delivery));
                self.pending.push_back(Watched { item, cursor: self.cursor });
            }
        }
        if is_last {
            self.cursor.snapshot = None;
            let complete = self.checkpoint_item(true);
            self.pending.push_back(complete);
        }
        Ok(())
    }

    async fn read_tail(&mut self) -> Result<(), Error> {
        self.arrived.mark_unchanged();
        let rows = self.rows().await?;
        if !rows.is_empty() {
            return self.take(&rows, i64::MAX, None);
        }
        tokio::select! {
            // The topic lives as long as the watcher.
            _ = self.arrived.changed() => {}
            () = self.closing.cancelled() => {}
            () = &mut self.checkpoint => {}
        }
        Ok(())
    }

    /// The next rows behind the cursor: from the ring, or, for who is behind it, from the database.
    /// A snapshot may stand for a position that the ring has not reached yet.
    async fn rows(&self) -> Result<Vec<Arc<FeedRow>>, Error> {
        let position = self.cursor.position;
        let rows = self.topic.rows_after(position, PAGE as usize).unwrap_or_default();
        let is_behind = self.cursor.snapshot.is_some() || *self.arrived.borrow() > position;
        if !rows.is_empty() || !is_behind {
            return Ok(rows);
        }
        let rows = self.hub.store.read_feed(self.tenant_id, position, PAGE).await?;
        Ok(rows.into_iter().map(Arc::new).collect())
    }

    /// Takes rows up to the position `until`; of deliveries up to `covered` alone, when given.
    fn take(
        &mut self,
        rows: &[Arc<FeedRow>],
        until: i64,
        covered: Option<DeliveryId>,
    ) -> Result<(), Error> {
        if rows.is_empty() && self.cursor.position < until && until != i64::MAX {
            return Err(Error::Expired);
        }
        for row in rows.iter().take_while(|row| row.position <= until) {
            if row.position != self.cursor.position + 1 {
                // Positions have no gaps: the rows between were removed.
                return Err(Error::Expired);
            }
            for (index, delivery) in (0_u32..).zip(&row.changes).skip(self.cursor.index as usize) {
                self.cursor.index = index + 1;
                if covered.is_none_or(|covered| delivery.id <= covered)
                    && self.filter.matches(delivery)
                {
                    let item = Item::Change(Box::new(delivery.clone()));
                    self.pending.push_back(Watched { item, cursor: self.cursor });
                }
            }
            self.cursor.position = row.position;
            self.cursor.index = 0;
        }
        Ok(())
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.hub.watchers.dec();
    }
}
