//! What a lane decides: who stands back, and in which place.

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;
use crate::store::SubscriptionRef;

const NOW: Timestamp = Timestamp::from_micros(1_770_283_800_000_000);

struct Job {
    name: &'static str,
    place: Place,
}

fn name(job: &Job) -> &'static str {
    job.name
}

/// Lanes in which `names` wait for one subscription, and the jobs that began, of `limit` that may.
fn begun(names: [&'static str; 5], limit: usize) -> (Lanes<Job>, SubscriptionId, Vec<Job>) {
    let mut random = StdRng::seed_from_u64(11);
    let id = SubscriptionId::new(NOW, &mut random);
    let mut lanes = Lanes::new(64, 1 << 20);
    let allowance = Allowance { in_flight: limit, is_prompt: true };
    let places = lanes.reserve((id, None), names.len(), allowance, NOW);
    assert_eq!(places.len(), names.len());
    let mut started = Vec::new();
    for (name, place) in names.into_iter().zip(places) {
        started.extend(lanes.push(Job { name, place }, |job| &job.place, limit));
    }
    (lanes, id, started)
}

#[test]
fn workers_that_waited_for_their_turn_while_the_limit_fell_do_not_start() {
    let (mut lanes, id, mut started) = begun(["a", "b", "c", "d", "e"], 4);
    assert_eq!(started.iter().map(name).collect::<Vec<_>>(), ["a", "b", "c", "d"]);
    let under_way = started.remove(0);
    assert!(!lanes.is_surplus(&under_way.place, 4), "it may start");
    for job in started {
        assert!(lanes.is_surplus(&job.place, 1), "one is under way, and one may be");
        assert!(lanes.put_back(job, |job| &job.place).is_none());
    }
    assert!(!lanes.is_surplus(&under_way.place, 1), "somebody stays");
    assert!(!lanes.is_surplus(&under_way.place, 0), "if only to give its delivery back");
    let mut order = Vec::new();
    lanes.give_back(&under_way.place);
    while let (Some(job), more) = lanes.next(id, 1, NOW) {
        assert!(more.is_empty(), "one at a time");
        assert!(!lanes.is_surplus(&job.place, 1));
        lanes.give_back(&job.place);
        order.push(job.name);
    }
    assert_eq!(order, ["b", "c", "d", "e"], "in the order in which they came");
    assert!(lanes.is_empty());
}

#[test]
fn a_probe_is_never_one_too_many() {
    let (mut lanes, id, started) = begun(["a", "b", "c", "d", "e"], 1);
    let place = lanes.reserve_probe((id, None)).expect("a place");
    let probe = lanes.push(Job { name: "probe", place }, |job| &job.place, 1);
    assert_eq!(probe.iter().map(name).collect::<Vec<_>>(), ["probe"]);
    assert!(!lanes.is_surplus(&probe[0].place, 0));
    assert!(lanes.is_surplus(&started[0].place, 1), "the probe is under way");
}

#[test]
fn closed_lanes_let_go_of_what_would_wait_again() {
    let (mut lanes, _, started) = begun(["a", "b", "c", "d", "e"], 2);
    assert_eq!(lanes.close().iter().map(name).collect::<Vec<_>>(), ["c", "d", "e"]);
    let job = started.into_iter().next().expect("a job");
    assert!(lanes.is_surplus(&job.place, 1));
    assert_eq!(lanes.put_back(job, |job| &job.place).as_ref().map(name), Some("a"));
}

#[test]
fn what_was_too_heavy_has_room_when_something_was_given_back() {
    let mut random = StdRng::seed_from_u64(12);
    let tenant_id = TenantId::new(NOW, &mut random);
    let of = SubscriptionRef { tenant_id, id: SubscriptionId::new(NOW, &mut random) };
    let allowance = Allowance { in_flight: 4, is_prompt: true };
    let mut lanes = Lanes::<Job>::new(64, 1 << 20);
    let mut places = lanes.reserve((of.id, Some(tenant_id)), 1, allowance, NOW);
    let mut place = places.remove(0);
    lanes.occupy(&mut place, DeliveryId::new(NOW, &mut random));
    assert!(!lanes.want(Want { of, is_heavy: true }, allowance, NOW), "a place would not do");
    assert!(lanes.give_back(&place));
    assert_eq!(lanes.take_ready(), [of]);
    assert!(lanes.want(Want { of, is_heavy: false }, allowance, NOW), "there are places");
}

#[test]
fn however_many_lanes_are_full_there_is_room_for_a_prompt_endpoint() {
    let mut random = StdRng::seed_from_u64(13);
    let mut of = || (SubscriptionId::new(NOW, &mut random), Some(TenantId::new(NOW, &mut random)));
    let mut lanes = Lanes::<Job>::new(64, 1 << 20);
    let silent = Allowance { in_flight: 2, is_prompt: false };
    let held: usize = (0..100).map(|_| lanes.reserve(of(), 64, silent, NOW).len()).sum();
    assert_eq!(held, 56, "an eighth is kept");
    let prompt = Allowance { in_flight: 16, is_prompt: true };
    let more = lanes.reserve(of(), 64, prompt, NOW).len();
    assert!(more >= 3, "{more}");
}

#[test]
fn a_lane_that_has_run_empty_keeps_its_pace_for_a_while() {
    let mut random = StdRng::seed_from_u64(11);
    let id = SubscriptionId::new(NOW, &mut random);
    let mut lanes = Lanes::new(64, 1 << 20);
    let allowance = Allowance { in_flight: 1, is_prompt: false };
    for _ in 0..10 {
        let place = lanes.reserve((id, None), 1, allowance, NOW).pop().expect("there is room");
        let started = lanes.push(Job { name: "a", place }, |job| &job.place, 1);
        drop(lanes.next(id, 1, NOW));
        lanes.give_back(&started[0].place);
    }
    let mut room = |now| {
        lanes.prune(now);
        let places = lanes.reserve((id, None), 20, allowance, now);
        for place in &places {
            lanes.give_back(place);
        }
        (places.len(), lanes.by_subscription.len())
    };
    assert_eq!(room(NOW), (10, 1), "as many as have ended in a second");
    assert_eq!(room(NOW.plus(Pace::WINDOW)), (10, 1));
    assert_eq!(room(NOW.plus(3 * Pace::WINDOW)), (2, 0), "it is forgotten");
}
