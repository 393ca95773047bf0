//! Nodes and their leases. A lease belongs to a node, not to a delivery: a node renews one row, and
//! when it falls silent its deliveries are given to others.
//!
//! The database's own time decides, in the statement itself: no node's clock can keep a lease alive.

use std::time::Duration;

use sea_orm::ConnectionTrait;

use crate::domain::Timestamp;
use crate::domain::id::NodeId;

use super::bulk::{bigint, text};
use super::rows::micros;
use super::{Error, Release, Store, Update};

impl Store {
    /// Registers a node with a lease of `ttl`.
    ///
    /// # Errors
    /// When the database does not take it.
    pub async fn register_node(&self, node: NodeId, ttl: Duration) -> Result<(), Error> {
        let now = self.dialect.now();
        let sql = format!(
            "INSERT INTO nodes (id, start_time, lease_expire_time) VALUES ($1, {now}, {now} + $2)"
        );
        let values = vec![text(node.as_str()), bigint(micros(ttl))];
        fail_point!(RegisterBefore);
        self.write.execute_raw(self.dialect.statement(sql, values)).await?;
        fail_point!(RegisterAfter);
        Ok(())
    }

    /// Renews a node's lease. [`Update::Stale`] when it had run out: then the node's deliveries may
    /// be anybody's, and the node must register anew under another id.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn renew_node(&self, node: NodeId, ttl: Duration) -> Result<Update, Error> {
        let now = self.dialect.now();
        let sql = format!(
            "UPDATE nodes SET lease_expire_time = {now} + $2 WHERE id = $1 AND lease_expire_time > {now}"
        );
        let values = vec![text(node.as_str()), bigint(micros(ttl))];
        fail_point!(RenewBefore);
        let changed =
            self.write.execute_raw(self.dialect.statement(sql, values)).await?.rows_affected();
        fail_point!(RenewAfter);
        Ok(if changed == 1 { Update::Done } else { Update::Stale })
    }

    /// Forgets a node.
    ///
    /// # Errors
    /// When the database does not take it.
    pub async fn remove_node(&self, node: NodeId) -> Result<(), Error> {
        let sql = "DELETE FROM nodes WHERE id = $1";
        fail_point!(RemoveBefore);
        self.write.execute_raw(self.dialect.statement(sql, vec![text(node.as_str())])).await?;
        fail_point!(RemoveAfter);
        Ok(())
    }

    /// Forgets every node but `survivor`: for an embedded database, whose one process has just
    /// started and knows that the others are gone.
    ///
    /// # Errors
    /// When the database does not take it.
    pub async fn remove_other_nodes(&self, survivor: NodeId) -> Result<(), Error> {
        let sql = "DELETE FROM nodes WHERE id <> $1";
        self.write.execute_raw(self.dialect.statement(sql, vec![text(survivor.as_str())])).await?;
        Ok(())
    }

    /// How many nodes have a lease now.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn count_nodes(&self) -> Result<u64, Error> {
        let sql =
            format!("SELECT count(*) FROM nodes WHERE lease_expire_time > {}", self.dialect.now());
        let row = self.read.query_one_raw(self.dialect.statement(sql, Vec::new())).await?;
        let count: i64 = row.map_or(Ok(0), |row| row.try_get_by_index(0))?;
        Ok(u64::try_from(count).unwrap_or(0))
    }

    /// The nodes that have a lease now, in order.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn live_nodes(&self) -> Result<Vec<NodeId>, Error> {
        let sql = format!(
            "SELECT id FROM nodes WHERE lease_expire_time > {} ORDER BY id",
            self.dialect.now()
        );
        let rows = self.read.query_all_raw(self.dialect.statement(sql, Vec::new())).await?;
        rows.iter().map(|row| super::rows::id(&row.try_get_by_index::<String>(0)?)).collect()
    }

    /// Nodes that have deliveries but no lease, and removes the rows of those that fell silent.
    async fn silent_nodes(&self) -> Result<Vec<NodeId>, Error> {
        let sql = format!("DELETE FROM nodes WHERE lease_expire_time <= {}", self.dialect.now());
        self.write.execute_raw(self.dialect.statement(sql, Vec::new())).await?;
        // A loose index scan: one look-up in the key of leases per node, however many rows.
        let sql = "WITH RECURSIVE n(id) AS (
                SELECT (SELECT min(node) FROM leases)
                UNION ALL
                SELECT (SELECT min(l.node) FROM leases l WHERE l.node > n.id)
                FROM n WHERE n.id IS NOT NULL)
            SELECT n.id FROM n WHERE n.id IS NOT NULL AND n.id NOT IN (SELECT id FROM nodes)";
        let rows = self.write.query_all_raw(self.dialect.statement(sql, Vec::new())).await?;
        rows.iter().map(|row| super::rows::id(&row.try_get_by_index::<String>(0)?)).collect()
    }

    /// Makes at most `limit` deliveries of each silent node due again, and counts that they were
    /// interrupted.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn take_over(&self, now: Timestamp, limit: u32) -> Result<Release, Error> {
        let mut total = Release::default();
        for node in self.silent_nodes().await? {
            fail_point!(TakeOverBetween);
            total.count += self.interrupt(node, now, limit).await?.count;
        }
        Ok(total)
    }
}
