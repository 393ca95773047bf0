//! Fail points: places before and after the durable steps at which a test can end the process, have
//! the step fail, or have it dawdle.
//!
//! They exist only with the cargo feature `failpoints`, which no shipped build has: without it
//! `fail_point!` is nothing at all. What happens where is said by the variable `FAILPOINTS` of the
//! crate `fail`, read once at the start, with these actions:
//!
//! | action | what happens |
//! |---|---|
//! | `return(abort)` | the process aborts: no destructor runs, nothing more is written or sent |
//! | `return(error)` | the step fails as if the database had not answered |
//! | `return(delay)` | the step waits for [`DELAY`], and others go on meanwhile |
//!
//! `FAILPOINTS='accept.after_commit=7*off->1*return(abort)'` aborts after the eighth commit of events.

/// Comes to a fail point. An error is returned from the function, or, where there is nobody to return
/// it to, `$or` runs instead.
macro_rules! fail_point {
    ($point:ident) => {
        #[cfg(feature = "failpoints")]
        $crate::failpoint::reach($crate::failpoint::FailPoint::$point).await?;
    };
    ($point:ident, $or:expr) => {
        #[cfg(feature = "failpoints")]
        if $crate::failpoint::reach($crate::failpoint::FailPoint::$point).await.is_err() {
            $or
        }
    };
}

/// Like `fail_point!`, for work that waits on its thread.
macro_rules! fail_point_blocking {
    ($point:ident) => {
        #[cfg(feature = "failpoints")]
        $crate::failpoint::reach_blocking($crate::failpoint::FailPoint::$point)?;
    };
}

#[cfg(feature = "failpoints")]
pub use armed::{DELAY, FailPoint, Injected, arm, fail_at, reach, reach_blocking};

#[cfg(feature = "failpoints")]
mod armed {
    use std::time::Duration;

    /// How long `return(delay)` takes: longer than a group of events or of results, so that others
    /// overtake.
    pub const DELAY: Duration = Duration::from_millis(150);

    /// A step was made to fail.
    #[derive(Debug, thiserror::Error)]
    #[error("the fail point {0} was set to fail")]
    pub struct Injected(pub &'static str);

    /// Defines the points together with the list of them all.
    macro_rules! points {
        ($($(#[$doc:meta])* $point:ident = $name:literal,)*) => {
            /// A place at which something can go wrong.
            #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
            pub enum FailPoint { $($(#[$doc])* $point,)* }

            impl FailPoint {
                /// All of them.
                pub const ALL: &[Self] = &[$(Self::$point,)*];

                /// What `FAILPOINTS` and the log call it.
                pub const fn name(self) -> &'static str {
                    match self { $(Self::$point => $name,)* }
                }
            }
        };
    }

    points! {
        /// Events, deliveries and keys are written, and not committed.
        AcceptBeforeCommit = "accept.before_commit",
        /// They are committed; nobody has been told.
        AcceptAfterCommit = "accept.after_commit",
        /// A delivery is leased, and not yet in its lane. An error: it never gets there.
        AcceptHandOver = "accept.hand_over",
        /// Due deliveries are leased, and that is not committed.
        ClaimBeforeCommit = "claim.before_commit",
        /// It is committed; the claimer does not know.
        ClaimAfterCommit = "claim.after_commit",
        /// A claimed delivery is not yet in its lane. An error: it never gets there.
        ClaimHandOver = "claim.hand_over",
        /// A request is about to be sent. (No error.)
        AttemptBefore = "attempt.before",
        /// The answer is there, and recorded nowhere. (No error.)
        AttemptAfter = "attempt.after",
        /// Results are written, and not committed.
        RecordBeforeCommit = "record.before_commit",
        /// They are committed; the recorder does not know.
        RecordAfterCommit = "record.after_commit",
        /// The result of an attempt after the end is written, and not committed.
        LateBeforeCommit = "late.before_commit",
        /// It is committed; nobody knows.
        LateAfterCommit = "late.after_commit",
        /// Deliveries are changed as a set (given back, held, resumed, canceled, expired), and that is
        /// not committed.
        ChangeBeforeCommit = "change.before_commit",
        /// It is committed; nobody knows.
        ChangeAfterCommit = "change.after_commit",
        /// Deliveries have followed their subscription, and that is not noted.
        SettleBeforeMark = "settle.before_mark",
        /// A new node is not in its table yet.
        RegisterBefore = "node.before_register",
        /// It is; the node does not know.
        RegisterAfter = "node.after_register",
        /// A lease is about to be renewed.
        RenewBefore = "node.before_renew",
        /// It is renewed; the node does not know.
        RenewAfter = "node.after_renew",
        /// The rows of silent nodes are gone, and their deliveries are not given back yet.
        TakeOverBetween = "node.before_release",
        /// A stopping node has given back everything, and is still in its table.
        RemoveBefore = "node.before_remove",
        /// It is gone from there, and the process is still here.
        RemoveAfter = "node.after_remove",
        /// Rows of leases are about to go, since all their deliveries have a result.
        LeasesBefore = "leases.before_remove",
        /// They are gone; the node does not know.
        LeasesAfter = "leases.after_remove",
        /// Settings are written, and not committed.
        SettingsBeforeCommit = "settings.before_commit",
        /// They are committed; nobody knows.
        SettingsAfterCommit = "settings.after_commit",
        /// A delivery is leased for a manual attempt, and that is not committed.
        ManualBeforeCommit = "manual.before_commit",
        /// It is committed; nobody knows.
        ManualAfterCommit = "manual.after_commit",
        /// What a manual attempt said of its endpoint is written, and not committed.
        HealthBeforeCommit = "health.before_commit",
        /// It is committed; nobody knows.
        HealthAfterCommit = "health.after_commit",
        /// An event of the service itself is about to be emitted.
        AnnounceBeforeEmit = "announce.before_emit",
        /// It is emitted, and its announcement is still there.
        AnnounceAfterEmit = "announce.after_emit",
        /// Its announcement is gone.
        AnnounceAfterRemove = "announce.after_remove",
        /// A part of what a deleted tenant owned is removed.
        PurgeBetween = "purge.between_steps",
    }

    /// Reads `FAILPOINTS`; the points hold until the value is dropped.
    ///
    /// # Panics
    /// When the variable does not make sense.
    #[must_use]
    pub fn arm() -> impl Drop {
        fail::FailScenario::setup()
    }

    /// What `point` is set to.
    fn action(point: FailPoint) -> Option<String> {
        fail::fail_point!(point.name(), |action| Some(action.unwrap_or_default()));
        None
    }

    /// Does what `point` is set to, and says so in the log first.
    ///
    /// # Errors
    /// When it is set to fail.
    pub async fn reach(point: FailPoint) -> Result<(), Injected> {
        if act(point)? {
            tokio::time::sleep(DELAY).await;
        }
        Ok(())
    }

    /// Like [`reach`], for a thread that may wait.
    ///
    /// # Errors
    /// When it is set to fail.
    pub fn reach_blocking(point: FailPoint) -> Result<(), Injected> {
        if act(point)? {
            std::thread::sleep(DELAY);
        }
        Ok(())
    }

    /// Aborts, fails, or says whether to wait.
    fn act(point: FailPoint) -> Result<bool, Injected> {
        let Some(action) = action(point) else { return Ok(false) };
        tracing::warn!(fail.point = point.name(), fail.action = action, "a fail point fires");
        match action.as_str() {
            "abort" => std::process::abort(),
            "error" => Err(Injected(point.name())),
            _ => Ok(true),
        }
    }

    /// Fails as a fault of ours would at an attempt of one type of event: `attempt::abort=return(TYPE)`
    /// ends the process, `attempt::panic=return(TYPE)` panics.
    ///
    /// # Panics
    /// When it is set to.
    pub fn fail_at(event_type: &str) {
        let is_meant = |wanted: Option<String>| wanted.is_some_and(|wanted| wanted == event_type);
        fail::fail_point!("attempt::abort", |wanted| if is_meant(wanted) {
            std::process::abort()
        });
        fail::fail_point!("attempt::panic", |wanted| assert!(!is_meant(wanted), "a test says so"));
    }

    #[cfg(test)]
    mod tests {
        use std::collections::HashSet;

        use super::FailPoint;

        #[test]
        fn every_point_has_a_name_of_its_own() {
            let names: HashSet<_> = FailPoint::ALL.iter().map(|point| point.name()).collect();
            assert_eq!(names.len(), FailPoint::ALL.len());
        }
    }
}
