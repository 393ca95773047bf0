//! The rules by example, and by the thousand.

use proptest::prelude::*;

use super::*;

const START: Timestamp = Timestamp::from_micros(1_770_283_800_000_000);
const MIDDLE: f64 = 0.5;
const DAY: u64 = 24 * 60 * 60;

fn at(seconds: u64) -> Timestamp {
    START.plus(Duration::from_secs(seconds))
}

fn success(start: Timestamp, end: Timestamp) -> Observation {
    Observation { start_time: start, end_time: end, failure: None }
}

fn failure(start: Timestamp, end: Timestamp) -> Observation {
    let failed =
        Failed { kind: ErrorKind::Timeout, is_slowing: false, retry_after: None, is_gone: false };
    Observation { start_time: start, end_time: end, failure: Some(failed) }
}

fn busy(start: Timestamp, retry_after: Option<u64>) -> Observation {
    let mut seen = failure(start, start);
    if let Some(failed) = &mut seen.failure {
        failed.kind = ErrorKind::HttpStatus;
        failed.is_slowing = true;
        failed.retry_after = retry_after.map(Duration::from_secs);
    }
    seen
}

fn after(health: Health, seen: Observation) -> Health {
    health.after(&seen, &Policy::default(), seen.end_time, MIDDLE).0
}

/// Open since second 9, by ten failures from second 0 on.
fn open() -> Health {
    (0..10).fold(Health::default(), |health, second| after(health, failure(at(second), at(second))))
}

/// Somebody takes the probe, as the store writes it.
fn probing(health: Health, now: Timestamp) -> Health {
    let lease = Policy::default().probe_lease;
    let taken = |breaker: Breaker| Breaker {
        probe_time: Some(now),
        open_until: now.plus(lease),
        ..breaker
    };
    Health { breaker: health.breaker.map(taken), ..health }
}

#[test]
fn ten_failures_in_a_row_open_the_breaker_and_a_success_between_begins_anew() {
    let mut health = Health::default();
    for second in 0..9 {
        health = after(health, failure(at(second), at(second)));
        assert_eq!(health.gate(16, at(second)), Gate::Open { in_flight: 16 });
    }
    let saved = after(health, success(at(9), at(9)));
    assert_eq!(saved, Health::default());
    let opened = after(health, failure(at(9), at(9)));
    assert_eq!(opened, open());
    assert_eq!(opened.state(16, at(9)), State::Open);
    assert_eq!(opened.failing_since, Some(at(0)));
    assert_eq!(opened.gate(16, at(9)), Gate::Closed { until: at(14) });
    assert_eq!(opened.gate(16, at(14)), Gate::Probe);
    assert_eq!(opened.gate(16, at(1_000_000)), Gate::Probe, "it does not close by itself");
}

#[test]
fn the_cool_down_doubles_with_each_failed_probe_up_to_five_minutes() {
    let (mut health, mut now, mut pauses) = (open(), at(14), Vec::new());
    for _ in 0..9 {
        health = probing(health, now);
        assert!(matches!(health.gate(16, now), Gate::Closed { .. }), "there is one probe");
        health = after(health, failure(now, now));
        let Gate::Closed { until } = health.gate(16, now) else { panic!("{health:?}") };
        pauses.push(until.since(now).as_secs());
        now = until;
    }
    assert_eq!(pauses, [10, 20, 40, 80, 160, 300, 300, 300, 300]);
}

#[test]
fn only_the_probe_makes_the_cool_down_longer() {
    let opened = open();
    // Six more were under way when the tenth failed.
    let late = (0..6).fold(opened, |health, _| after(health, failure(at(8), at(12))));
    assert_eq!(late.breaker, opened.breaker);
    assert_eq!(late.consecutive_failures, 16);
    let probed = probing(late, at(14));
    assert_eq!(after(probed, failure(at(8), at(15))).breaker, probed.breaker);
}

#[test]
fn a_probe_that_succeeds_closes_it_and_the_ramp_begins() {
    let closed = after(probing(open(), at(14)), success(at(14), at(15)));
    assert_eq!(
        (closed.breaker, closed.consecutive_failures, closed.failing_since),
        (None, 0, None)
    );
    let allowed: Vec<_> = (15..22)
        .map(|second| match closed.gate(20, at(second)) {
            Gate::Open { in_flight } => in_flight,
            gate => panic!("{gate:?}"),
        })
        .collect();
    assert_eq!(allowed, [1, 2, 4, 8, 16, 20, 20]);
    assert_eq!(closed.state(20, at(19)), State::Recovering);
    assert_eq!(closed.state(20, at(20)), State::Healthy);
    assert!(!closed.is_over(at(20)) && closed.is_over(at(25)));
    assert!(!closed.awaits_success(), "what follows costs nothing");
}

#[test]
fn a_success_from_before_the_failures_closes_nothing() {
    let opened = open();
    let slow = success(START.minus(Duration::from_secs(5)), at(10));
    assert_eq!(after(opened, slow), opened);
}

#[test]
fn busy_endpoints_get_pauses_that_double_while_it_goes_on() {
    let (mut health, mut now, mut pauses) = (Health::default(), START, Vec::new());
    let policy = Policy { failures_to_open: u32::MAX, ..Policy::default() };
    for _ in 0..8 {
        health = health.after(&busy(now, None), &policy, now, MIDDLE).0;
        assert_eq!(health.state(16, now), State::Slowed);
        let Gate::Closed { until } = health.gate(16, now) else { panic!("{health:?}") };
        pauses.push(until.since(now).as_secs());
        assert_eq!(health.gate(16, until), Gate::Open { in_flight: 1 }, "then the ramp");
        now = until;
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
    let well = after(health, success(now, now));
    assert_eq!(well.slow, None);
    assert_eq!(well.gate(16, now.plus(RAMP_STEP)), Gate::Open { in_flight: 2 }, "it goes on");
    let again = well.after(&busy(now, None), &policy, now, MIDDLE).0;
    assert_eq!(again.slow.map(|slow| slow.level), Some(1), "from the start");
}

#[test]
fn requests_that_were_under_way_together_slow_down_once() {
    let first = after(Health::default(), busy(START, None));
    let second = after(first, busy(START, None));
    assert_eq!(second.slow, first.slow);
    let longer = after(first, busy(START, Some(30)));
    assert_eq!(longer.gate(16, START), Gate::Closed { until: at(30) });
    let good = after(first, success(START, START));
    assert_eq!(good.gate(16, START), first.gate(16, START), "it began before the pause");
}

#[test]
fn retry_after_is_honoured_for_the_endpoint_within_limits() {
    for (asked, given) in [(0, 1), (30, 30), (300, 300), (86_400, 300)] {
        for random in [0.0, MIDDLE, 0.999] {
            let seen = busy(START, Some(asked));
            let health = Health::default().after(&seen, &Policy::default(), START, random).0;
            assert_eq!(health.gate(16, START), Gate::Closed { until: at(given) });
        }
    }
}

#[test]
fn a_subscription_is_disabled_by_410_or_by_days_of_nothing_but_failures() {
    let mut gone = failure(START, START);
    if let Some(failed) = &mut gone.failure {
        failed.is_gone = true;
    }
    let policy = Policy::default();
    let reason =
        |health: &Health, seen, policy: &Policy| health.after(&seen, policy, at(0), MIDDLE).1;
    assert_eq!(reason(&Health::default(), gone, &policy), Some(DisableReason::Gone));
    let failing = open();
    let late = |seconds| failure(at(seconds), at(seconds));
    assert_eq!(reason(&failing, late(5 * DAY - 1), &policy), None);
    assert_eq!(reason(&failing, late(5 * DAY), &policy), Some(DisableReason::Failing));
    let never = Policy { disable_after: None, ..policy };
    assert_eq!(reason(&failing, late(500 * DAY), &never), None);
    assert_eq!(reason(&failing, gone, &never), Some(DisableReason::Gone));
    assert_eq!(reason(&failing, success(at(5 * DAY), at(5 * DAY)), &policy), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Whatever happens: the database's CHECKs hold, a gate that is closed opens again, what is said
    /// to await no success is not changed by one, and one success after everything makes it well.
    #[test]
    fn every_history_leaves_a_health_that_holds_together(
        history in prop::collection::vec((0..3_u8, 0..400_u64, 0..30_u64, prop::option::of(0..4_000_u64), 0.0..1.0_f64), 0..80),
    ) {
        let policy = Policy::default();
        let (mut health, mut now) = (Health::default(), START);
        for (kind, step, duration, retry_after, random) in history {
            now = now.plus(Duration::from_secs(step));
            if health.gate(16, now) == Gate::Probe {
                health = probing(health, now);
            }
            let end = now.plus(Duration::from_secs(duration));
            let seen = match kind {
                0 => success(now, end),
                1 => failure(now, end),
                _ => Observation { end_time: end, ..busy(now, retry_after) },
            };
            if kind == 0 && !health.awaits_success() {
                prop_assert_eq!(health.after(&seen, &policy, end, random).0, health);
            }
            health = health.after(&seen, &policy, end, random).0;
            now = end;
            prop_assert_eq!(health.consecutive_failures == 0, health.failing_since.is_none());
            prop_assert_eq!(health.consecutive_failures == 0, health.last_error.is_none());
            prop_assert!(health.breaker.is_none() || health.consecutive_failures >= 10);
            if let Some(breaker) = health.breaker {
                prop_assert!((policy.first_cool_down..=policy.longest_cool_down).contains(&breaker.cool_down));
            }
            prop_assert!(health.slow.is_none_or(|slow| slow.level > 0));
            if let Gate::Closed { until } = health.gate(16, now) {
                prop_assert!(until.since(now) <= Duration::from_secs(330), "{health:?}");
            }
        }
        let later = now.plus(Duration::from_mins(10));
        let well = health.after(&success(later, later), &policy, later, MIDDLE).0;
        prop_assert!(!well.awaits_success());
        let is_open = matches!(well.gate(16, later), Gate::Open { .. });
        prop_assert!(is_open);
    }
}
