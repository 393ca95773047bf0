//! The faults that a world knows, and how often each one fired.

/// What happened. A fault counts when it bites, not when it is planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Fired {
    /// A node died with deliveries in its hands.
    Crash,
    /// A node died of an attempt.
    DiedOfAttempt,
    /// A delivery whose attempts had been interrupted was attempted apart, and harmless.
    AttemptedApart,
    /// An attempt that was made apart brought down its process, and the delivery was quarantined.
    Quarantined,
    /// A node stood still, shorter than its lease.
    ShortStall,
    /// A node stood still until its lease had run out, and went on.
    LongStall,
    /// A transaction failed.
    FailedCommit,
    /// A transaction took effect, but its confirmation was lost.
    LostConfirmation,
    /// A transaction failed because the database was away.
    DatabaseAway,
    /// The database's clock jumped forward.
    JumpForward,
    /// The database's clock jumped back.
    JumpBack,
    /// A receiver refused a request, as long as it was down.
    ReceiverDown,
    /// A receiver let a request hang until its time was up.
    ReceiverHangs,
    /// A receiver asked for a pause.
    RetryAfter,
    /// A receiver said that it is gone.
    Gone,
    /// A receiver's answer was final.
    Permanent,
    /// A tenant emitted many events at once.
    Burst,
    /// A subscription was paused with deliveries under way.
    Pause,
    /// A subscription was resumed with deliveries held.
    Resume,
    /// A delivery was canceled while it was under way.
    CancelUnderWay,
    /// A waiting delivery was attempted on request.
    ManualRetry,
    /// A delivery that had ended was attempted on request.
    ManualAfterEnd,
    /// Settings changed with deliveries under way.
    SettingsChange,
    /// A subscription was deleted with deliveries open.
    Delete,
    /// An event expired before it was delivered.
    Expired,
    /// Deliveries of a silent node were taken over.
    TakeOver,
    /// A node went on under a new name.
    NewName,
    /// A lease was given back that its node did not know of.
    Unknown,
    /// A worker left a delivery to others, since its lease had run out.
    LeftToOthers,
    /// A result was fenced: another node had the delivery.
    Fenced,
    /// A result was found recorded by a transaction that was not confirmed.
    Known,
    /// An attempt was added to a delivery that had ended meanwhile.
    Added,
    /// A delivery was given back because of its endpoint.
    GivenBack,
    /// A breaker opened.
    BreakerOpened,
    /// A probe was sent.
    Probe,
    /// A subscription was disabled.
    Disabled,
    /// A receiver got a delivery more than once.
    Duplicate,
    /// A delivery waited for the place of an attempt.
    WaitedForPlace,
    /// It did so because many attempts had begun that might hang.
    WaitedForRamp,
    /// A worker had its turn when its lane had more workers than it may have by then.
    StoodBack,
    /// A delivery was born due, and there was no place in the queue for it.
    NoPlace,
    /// It was claimed for those alone that had room again.
    RoomAgain,
    /// Check: the sum of attempts over all replicas was held to the limit.
    CheckedInFlight,
    /// Check: a request was held to its subscription's rate.
    CheckedRate,
    /// Check: a quiet tenant's first attempt was held to the fairness bound, beside hanging ones.
    CheckedFairness,
    /// Check: an attempt was held to an earlier Retry-After.
    CheckedRetryAfter,
    /// Check: a request was held to the breaker that its node must have known.
    CheckedBreaker,
}

impl Fired {
    pub(crate) const ALL: [Self; 47] = [
        Self::Crash,
        Self::DiedOfAttempt,
        Self::AttemptedApart,
        Self::Quarantined,
        Self::ShortStall,
        Self::LongStall,
        Self::FailedCommit,
        Self::LostConfirmation,
        Self::DatabaseAway,
        Self::JumpForward,
        Self::JumpBack,
        Self::ReceiverDown,
        Self::ReceiverHangs,
        Self::RetryAfter,
        Self::Gone,
        Self::Permanent,
        Self::Burst,
        Self::Pause,
        Self::Resume,
        Self::CancelUnderWay,
        Self::ManualRetry,
        Self::ManualAfterEnd,
        Self::SettingsChange,
        Self::Delete,
        Self::Expired,
        Self::TakeOver,
        Self::NewName,
        Self::Unknown,
        Self::LeftToOthers,
        Self::Fenced,
        Self::Known,
        Self::Added,
        Self::GivenBack,
        Self::BreakerOpened,
        Self::Probe,
        Self::Disabled,
        Self::Duplicate,
        Self::WaitedForPlace,
        Self::WaitedForRamp,
        Self::StoodBack,
        Self::NoPlace,
        Self::RoomAgain,
        Self::CheckedInFlight,
        Self::CheckedRate,
        Self::CheckedFairness,
        Self::CheckedRetryAfter,
        Self::CheckedBreaker,
    ];
    const COUNT: usize = Self::ALL.len();
}

/// How often each fault fired.
#[derive(Clone)]
pub(crate) struct Tally([u64; Fired::COUNT]);

impl Default for Tally {
    fn default() -> Self {
        Self([0; Fired::COUNT])
    }
}

impl Tally {
    pub(crate) fn note(&mut self, fired: Fired) {
        self.0[fired as usize] += 1;
    }

    pub(crate) fn of(&self, fired: Fired) -> u64 {
        self.0[fired as usize]
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (own, other) in self.0.iter_mut().zip(&other.0) {
            *own += other;
        }
    }
}
