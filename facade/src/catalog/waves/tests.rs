use proptest::prelude::*;

use super::*;

fn plan(waves: &str) -> Plan {
    Plan {
        waves: waves.parse().unwrap(),
        approval: Approval::None,
        success_percent: 95,
        min_sample: None,
        failure_budget: None,
        soak_seconds: 0,
        deadline_seconds: None,
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn seen(devices: usize, healthy: usize, failed: usize) -> Seen {
    Seen {
        wave: Tally { devices, healthy, failed },
        failed,
        devices,
        began_at: at(0),
        met_since: None,
        now: at(100),
    }
}

#[test]
fn waves_are_counts_and_percents_of_all_devices_and_reach_everybody() {
    let waves: Waves = "1,10%,50%,100%".parse().unwrap();
    assert_eq!(waves.ends(200), [1, 20, 100, 200]);
    assert_eq!(waves.ends(5), [1, 3, 5]);
    assert_eq!(waves.ends(1), [1]);
    assert_eq!(waves.ends(0), [0; 0]);
    assert_eq!(waves.to_string(), "1,10%,50%,100%");
}

#[test]
fn rejects_waves_that_forget_devices_or_do_not_grow() {
    for text in
        ["", "1", "10%,50%", "0,100%", "0%,100%", "50%,10%,100%", "5,5,100%", "101%", "-1,100%", "100%,"]
    {
        assert!(text.parse::<Waves>().is_err(), "{text:?}");
    }
}

#[test]
fn the_order_is_the_same_every_time_and_another_for_each_rollout() {
    let devices = |numbers: std::ops::Range<u32>| -> Vec<DeviceId> {
        numbers.map(|number| format!("board-{number}").parse().unwrap()).collect()
    };
    let mut backwards = devices(0..50);
    backwards.reverse();
    assert_eq!(order("one", devices(0..50)), order("one", backwards));
    assert_ne!(order("one", devices(0..50)), order("two", devices(0..50)));
}

#[test]
fn a_wave_succeeds_when_enough_of_all_its_devices_are_healthy() {
    let plan = plan("100%");
    assert!(matches!(plan.judge(&seen(20, 18, 0)).verdict, Verdict::Wait(Waiting::Devices { .. })));
    assert_eq!(plan.judge(&seen(20, 19, 1)).verdict, Verdict::Succeeded);
    assert_eq!(
        plan.judge(&seen(20, 10, 2)).verdict,
        Verdict::Halt(Halt::Hopeless { failed: 2, devices: 20 })
    );
}

#[test]
fn with_a_sample_a_wave_is_judged_by_those_who_have_finished() {
    let plan = Plan { min_sample: Some(5), ..plan("100%") };
    assert!(matches!(plan.judge(&seen(20, 4, 0)).verdict, Verdict::Wait(_)));
    assert_eq!(plan.judge(&seen(20, 5, 0)).verdict, Verdict::Succeeded);
    assert!(matches!(plan.judge(&seen(20, 5, 1)).verdict, Verdict::Wait(_)));
    assert_eq!(plan.judge(&seen(3, 3, 0)).verdict, Verdict::Succeeded, "a wave is its own largest sample");
}

#[test]
fn more_failures_than_the_budget_halt_even_a_wave_that_succeeds() {
    let plan = Plan { failure_budget: Some(Size::Percent(1)), ..plan("100%") };
    assert_eq!(plan.judge(&seen(100, 99, 1)).verdict, Verdict::Succeeded);
    assert_eq!(plan.judge(&seen(100, 98, 2)).verdict, Verdict::Halt(Halt::Budget { failed: 2, budget: 1 }));
}

#[test]
fn the_next_wave_waits_for_the_soak_time_and_the_wave_for_its_deadline() {
    let plan = Plan { soak_seconds: 60, deadline_seconds: Some(100), ..plan("100%") };
    let first = plan.judge(&seen(1, 1, 0));
    assert_eq!(first.met_since, Some(at(100)));
    assert_eq!(first.verdict, Verdict::Wait(Waiting::Soak { until: at(160) }));
    let later = Seen { met_since: first.met_since, now: at(160), ..seen(1, 1, 0) };
    assert_eq!(plan.judge(&later).verdict, Verdict::Succeeded);
    assert_eq!(plan.judge(&seen(1, 0, 0)).verdict, Verdict::Halt(Halt::Deadline));
    let early = Seen { now: at(99), ..seen(1, 0, 0) };
    assert_eq!(plan.judge(&early).met_since, None);
}

#[test]
fn approvals_are_asked_for_where_the_plan_says_so() {
    let asks = |approval| {
        let plan = Plan { approval, ..plan("100%") };
        [0, 1, 2].map(|wave| plan.needs_approval(wave))
    };
    assert_eq!(asks(Approval::Each), [false, true, true]);
    assert_eq!(asks(Approval::First), [false, true, false]);
    assert_eq!(asks(Approval::None), [false, false, false]);
}

/// What becomes of devices, in the order in which they report.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Healthy,
    Fails,
    Silent,
}

/// Runs a rollout to its end as the driver does, one report after another, and gives how many devices were assigned at
/// each step, how many had failed, and whether it halted.
fn run(plan: &Plan, fates: &[Fate]) -> (Vec<(usize, usize)>, bool) {
    let ends = plan.waves.ends(fates.len());
    let (mut steps, mut failed, mut begin) = (Vec::new(), 0, 0);
    for end in ends {
        let mut wave = Tally { devices: end - begin, ..Tally::default() };
        let mut succeeded = false;
        for fate in &fates[begin..end] {
            match fate {
                Fate::Healthy => wave.healthy += 1,
                Fate::Fails => {
                    wave.failed += 1;
                    failed += 1;
                }
                Fate::Silent => {}
            }
            steps.push((end, failed));
            let now = Seen {
                wave,
                failed,
                devices: fates.len(),
                began_at: at(0),
                met_since: Some(at(0)),
                now: at(1_000_000),
            };
            match plan.judge(&now).verdict {
                Verdict::Halt(_) => return (steps, true),
                Verdict::Succeeded => succeeded = true,
                Verdict::Wait(_) => succeeded = false,
            }
            if let (Verdict::Succeeded, sample) = (plan.judge(&now).verdict, plan.min_sample.unwrap_or(0)) {
                let finished = wave.healthy + wave.failed;
                assert!(finished >= usize::try_from(sample).unwrap().min(wave.devices));
                assert!(wave.healthy * 100 >= usize::from(plan.success_percent) * finished);
            }
        }
        if !succeeded {
            return (steps, false);
        }
        begin = end;
    }
    (steps, false)
}

fn sizes() -> impl Strategy<Value = String> {
    proptest::sample::subsequence(vec![1_u8, 5, 10, 25, 50, 75], 0..5).prop_map(|percents| {
        let mut texts: Vec<String> = percents.iter().map(|percent| format!("{percent}%")).collect();
        texts.push("100%".to_owned());
        texts.join(",")
    })
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![8 => Just(Fate::Healthy), 1 => Just(Fate::Fails), 1 => Just(Fate::Silent)]
}

proptest! {
    #[test]
    fn waves_only_grow_and_end_with_everybody(waves in sizes(), devices in 0_usize..500) {
        let ends = waves.parse::<Waves>().unwrap().ends(devices);
        prop_assert!(ends.is_sorted_by(|one, next| one < next));
        prop_assert_eq!(ends.last().copied().unwrap_or(0), devices);
    }

    #[test]
    fn a_rollout_never_reaches_fewer_devices_than_before_and_halts_within_its_budget(
        waves in sizes(),
        fates in proptest::collection::vec(fate(), 1..120),
        success in 50_u8..=100,
        sample in proptest::option::of(1_u32..20),
        budget in proptest::option::of(0_u32..6),
    ) {
        let plan = Plan {
            success_percent: success,
            min_sample: sample,
            failure_budget: budget.map(Size::Count),
            ..plan(&waves)
        };
        let (steps, halted) = run(&plan, &fates);
        prop_assert!(steps.is_sorted_by(|one, next| one.0 <= next.0));
        let budget = budget.map(|budget| usize::try_from(budget).unwrap());
        if let Some(budget) = budget {
            // One report after another: the first failure that is one too many is the last that is let happen.
            let failed = steps.last().map_or(0, |(_, failed)| *failed);
            prop_assert!(failed <= budget + 1);
            prop_assert!(failed <= budget || halted);
        }
    }

    #[test]
    fn nothing_succeeds_without_its_sample_and_its_share(
        devices in 1_usize..200, healthy in 0_usize..200, failed in 0_usize..200,
        success in 1_u8..=100, sample in proptest::option::of(1_u32..50),
    ) {
        let healthy = healthy % (devices + 1);
        let failed = failed % (devices - healthy + 1);
        let plan = Plan { success_percent: success, min_sample: sample, ..plan("100%") };
        if plan.judge(&seen(devices, healthy, failed)).verdict == Verdict::Succeeded {
            match sample {
                Some(sample) => {
                    prop_assert!(healthy + failed >= usize::try_from(sample).unwrap().min(devices));
                    prop_assert!(healthy * 100 >= usize::from(success) * (healthy + failed));
                }
                None => prop_assert!(healthy * 100 >= usize::from(success) * devices),
            }
        }
    }
}
