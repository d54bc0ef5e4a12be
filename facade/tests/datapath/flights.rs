//! The flight rules: one fetch for all, at nobody's pace, never a wrong byte.

use std::sync::Arc;
use std::time::Duration;

use facade::pull::Settings;
use facade::pull::evict::Policy;
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use pki::digest::Digest;
use tokio::sync::Semaphore;

use crate::client::{Answer, Device, finish};
use crate::rig::{Rig, Setup, blob, files, noise};
use crate::script::Fault;

/// Streamed, because longer than what is verified first.
const LONG: usize = 10_000_000;

async fn herd(rig: &Rig, count: usize, path: &str) -> Vec<Answer> {
    let credential = rig.fleet.device("board");
    let pulls = (0..count).map(|_| async {
        let mut device = Device::http1(rig, Some(&credential)).await;
        device.get(path).await
    });
    futures_util::future::join_all(pulls).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_herd_of_a_hundred_causes_one_fetch() {
    let rig = Rig::start().await;
    let layer = noise(1_000_000);
    rig.assign(&["board"], &[&layer]);
    for answer in herd(&rig, 100, &blob(&layer)).await {
        assert!(answer.body == layer && !answer.cut);
    }
    assert_eq!(rig.script.gets(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_streaming_herd_causes_one_fetch() {
    let rig = Rig::start().await;
    let layer = noise(LONG);
    rig.assign(&["board"], &[&layer]);
    for answer in herd(&rig, 12, &blob(&layer)).await {
        assert!(answer.body == layer && !answer.cut);
    }
    assert_eq!(rig.script.gets(), 1);
}

#[tokio::test]
async fn a_cut_is_resumed_where_it_happened() {
    let rig = Rig::start().await;
    let (long, short) = (noise(LONG), noise(500_000));
    rig.assign(&["board"], &[&long, &short]);
    rig.script.next(&[Fault::CutAt(3_000_000), Fault::CutAt(3_000_001), Fault::FromZero]);
    let mut device = Device::http1(&rig, Some(&rig.fleet.device("board"))).await;
    assert!(device.get(&blob(&long)).await.body == long);
    assert_eq!(rig.script.asked(), [0, 3_000_000, 3_000_001]);
    rig.script.next(&[Fault::CutAt(400_000)]);
    assert!(device.get(&blob(&short)).await.body == short);
    assert_eq!(rig.script.asked()[3..], [0, 400_000]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_right_goes_out_while_the_disk_is_still_busy() {
    let rig = Rig::start().await;
    let (short, long) = (noise(500_000), noise(LONG));
    rig.assign(&["board"], &[&short, &long]);
    let gate = Arc::new(Semaphore::new(0));
    rig.disk.lock().unwrap().gate = Some(Arc::clone(&gate));
    let mut device = Device::http1(&rig, Some(&rig.fleet.device("board"))).await;
    for layer in [&short, &long] {
        // The first begins the flight; the others find its content, though the cache does not have it yet.
        for _ in 0..3 {
            assert!(device.get(&blob(layer)).await.body == *layer);
        }
    }
    assert_eq!((rig.script.gets(), rig.metrics.cache_hits.get()), (2, 4));
    assert_eq!(rig.puller.usage().await.unwrap().blobs, 0);
    gate.add_permits(2);
    rig.landed().await;
    assert_eq!(rig.puller.usage().await.unwrap().blobs, 2);
    assert!(device.get(&blob(&short)).await.body == short);
    assert_eq!(rig.script.gets(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_keeps_nothing_spoils_no_answer_and_is_told_of() {
    let rig = Rig::start().await;
    let layer = noise(LONG);
    rig.assign(&["board"], &[&layer]);
    rig.disk.lock().unwrap().fails = true;
    for answer in herd(&rig, 5, &blob(&layer)).await {
        assert!(answer.status == StatusCode::OK && answer.body == layer && !answer.cut);
    }
    rig.landed().await;
    assert!(rig.metrics.flights_failed.get() >= 1);
    // Nothing was kept as whole; all of it is there to be resumed, and costs the registry nothing.
    let gets = rig.script.gets();
    rig.disk.lock().unwrap().fails = false;
    let mut device = Device::http1(&rig, Some(&rig.fleet.device("board"))).await;
    assert!(device.get(&blob(&layer)).await.body == layer);
    assert_eq!(rig.script.gets(), gets);
}

/// What the database needs (facade/docs/how-to-packages.md).
const DATABASE_BYTES: u64 = 16 * 1024 * 1024;
const MIN_FREE_BYTES: u64 = 17_000_000;

/// The disk is the database's too, which does not survive without room.
fn frugal() -> Setup {
    let policy = Policy { min_free_bytes: MIN_FREE_BYTES, ..Policy::default() };
    Setup { pull: Settings { policy, ..Settings::default() }, ..Setup::default() }
}

#[tokio::test]
async fn what_does_not_fit_passes_through_and_what_would_fill_the_disk_does_not_come() {
    let rig = Rig::with(frugal()).await;
    let layer = noise(500_000);
    rig.assign(&["board"], &[&layer]);
    let mut device = Device::http1(&rig, Some(&rig.fleet.device("board"))).await;
    let has = |free_bytes| rig.disk.lock().unwrap().free_bytes = Some(free_bytes);
    has(DATABASE_BYTES + 499_999);
    let answer = device.get(&blob(&layer)).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.text().contains("no room"), "{}", answer.text());
    assert_eq!(files(&rig.cache()), 0);
    let enough = MIN_FREE_BYTES + 500_000;
    for (free_bytes, kept) in [(DATABASE_BYTES + 500_000, 0), (enough - 1, 0), (enough, 1)] {
        has(free_bytes);
        assert!(device.get(&blob(&layer)).await.body == layer);
        rig.landed().await;
        assert_eq!(files(&rig.cache()), kept, "{free_bytes}");
    }
}

#[tokio::test]
async fn no_two_flights_count_on_the_same_room() {
    let rig = Rig::with(frugal()).await;
    let layers = [noise(1_000_000), noise(1_000_001), noise(1_000_002)];
    let [first, second, third] = &layers;
    rig.assign(&["board"], &[first, second, third]);
    rig.disk.lock().unwrap().free_bytes = Some(DATABASE_BYTES + 2_100_000);
    let gate = rig.script.hold();
    let credential = rig.fleet.device("board");
    let mut devices = Vec::new();
    for _ in &layers {
        devices.push(Device::http1(&rig, Some(&credential)).await);
    }
    let [one, two, three] = devices.as_mut_slice() else { panic!("three devices") };
    let (first_path, second_path, third_path) = (blob(first), blob(second), blob(third));
    let pause = || tokio::time::sleep(Duration::from_millis(100));
    let (one, two, three) = tokio::join!(
        one.get(&first_path),
        async {
            pause().await;
            two.get(&second_path).await
        },
        async {
            pause().await;
            pause().await;
            let refused = three.get(&third_path).await;
            gate.add_permits(1000);
            refused
        }
    );
    assert!(one.body == *first && two.body == *second);
    assert_eq!(three.status, StatusCode::SERVICE_UNAVAILABLE);
    rig.landed().await;
    assert_eq!(files(&rig.cache()), 1);
}

/// A facade that asks again at once for what was wrong.
fn forgetful() -> Setup {
    let pull = Settings { distrust: Duration::ZERO, ..Settings::default() };
    Setup { pull, ..Setup::default() }
}

#[tokio::test]
async fn what_a_registry_served_wrongly_is_not_fetched_again_for_every_retry() {
    let pull = Settings { distrust: Duration::from_millis(800), ..Settings::default() };
    let rig = Rig::with(Setup { pull, ..Setup::default() }).await;
    let (layer, other) = (noise(500_000), noise(500_001));
    rig.assign(&["board"], &[&layer, &other]);
    let mut device = Device::http1(&rig, Some(&rig.fleet.device("board"))).await;
    rig.script.next(&[Fault::WrongAt(7)]);
    for _ in 0..5 {
        assert_eq!(device.get(&blob(&layer)).await.status, StatusCode::BAD_GATEWAY);
    }
    assert_eq!(rig.script.gets(), 1);
    assert_eq!(rig.events.lock().unwrap().len(), 1);
    // Only that content is distrusted, and not for ever.
    assert!(device.get(&blob(&other)).await.body == other);
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert!(device.get(&blob(&layer)).await.body == layer);
    assert_eq!(rig.script.gets(), 3);
}

/// skopeo and docker accept sizes that are wrong, so there are such images (CLIENTS). They spoil nothing for others.
#[tokio::test]
async fn a_manifest_that_is_wrong_about_a_size_spoils_nothing_for_others() {
    for length in [500_000, LONG] {
        for difference in [-1, 1] {
            for cached in [false, true] {
                let rig = Rig::start().await;
                let layer = noise(length);
                let closure = rig.assign(&["board"], &[&layer]);
                let size_bytes = (layer.len() as u64).checked_add_signed(difference).unwrap();
                let mistaken = rig.assign_mistaken("other", &closure, size_bytes);
                let mistaken = format!("/v2/{mistaken}/blobs/{}", Digest::sha256(&layer));
                let mut right = Device::http1(&rig, Some(&rig.fleet.device("board"))).await;
                if cached {
                    assert!(right.get(&blob(&layer)).await.body == layer);
                    rig.landed().await;
                }
                let mut wrong = Device::http1(&rig, Some(&rig.fleet.device("other"))).await;
                for _ in 0..2 {
                    let answer = wrong.get(&mistaken).await;
                    assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
                    assert!(answer.text().contains("wrong about the size"), "{}", answer.text());
                }
                // Nothing was deleted, nobody is blamed, and who has the right manifest gets it.
                assert!(right.get(&blob(&layer)).await.body == layer);
                assert_eq!(rig.script.gets(), if cached { 1 } else { 2 });
                assert!(rig.events.lock().unwrap().is_empty());
            }
        }
    }
}

#[tokio::test]
async fn a_flight_under_a_wrong_size_is_not_joined_by_who_knows_the_right_one() {
    let rig = Rig::start().await;
    let layer = noise(500_000);
    let closure = rig.assign(&["board"], &[&layer]);
    let mistaken = rig.assign_mistaken("other", &closure, 500_001);
    let mistaken = format!("/v2/{mistaken}/blobs/{}", Digest::sha256(&layer));
    let gate = rig.script.hold();
    let mut wrong = Device::http1(&rig, Some(&rig.fleet.device("other"))).await;
    let mut right = Device::http1(&rig, Some(&rig.fleet.device("board"))).await;
    let path = blob(&layer);
    let (refused, answer, ()) = tokio::join!(wrong.get(&mistaken), right.get(&path), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        gate.add_permits(1000);
    });
    assert_eq!(refused.status, StatusCode::BAD_GATEWAY);
    assert!(answer.body == layer);
}

#[tokio::test]
async fn wrong_bytes_of_a_short_blob_never_go_out() {
    let rig = Rig::with(forgetful()).await;
    let layer = noise(500_000);
    rig.assign(&["board"], &[&layer]);
    let mut device = Device::http1(&rig, Some(&rig.fleet.device("board"))).await;
    for fault in [Fault::WrongAt(499_999), Fault::Longer, Fault::Total(1), Fault::Total(u64::MAX)] {
        rig.script.next(&[fault]);
        let answer = device.get(&blob(&layer)).await;
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
        assert_eq!(files(&rig.cache()), 0);
    }
    assert_eq!(rig.events.lock().unwrap().len(), 4);
    assert!(device.get(&blob(&layer)).await.body == layer);
}

#[tokio::test]
async fn wrong_bytes_of_a_long_blob_never_arrive_whole() {
    let rig = Rig::with(forgetful()).await;
    let layer = noise(LONG);
    rig.assign(&["board"], &[&layer]);
    let credential = rig.fleet.device("board");
    for http2 in [false, true] {
        rig.script.next(&[Fault::WrongAt(5)]);
        let mut device = if http2 {
            Device::http2(&rig, Some(&credential)).await
        } else {
            Device::http1(&rig, Some(&credential)).await
        };
        let answer = device.get(&blob(&layer)).await;
        assert!(answer.status == StatusCode::BAD_GATEWAY || answer.cut && answer.body.len() < LONG);
    }
    assert_eq!(files(&rig.cache()), 0);
    assert_eq!(rig.events.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn failure_reaches_every_follower() {
    let rig = Rig::start().await;
    let layer = noise(100_000);
    rig.assign(&["board"], &[&layer]);
    rig.script.next(&[Fault::Missing]);
    let gate = rig.script.hold();
    let path = blob(&layer);
    let answers = herd(&rig, 20, &path);
    let release = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        gate.add_permits(10_000);
    };
    let (answers, ()) = tokio::join!(answers, release);
    // Whoever came after the failure began another flight, and got the blob.
    let served = answers.iter().filter(|answer| answer.status == StatusCode::OK).count();
    let refused = answers.iter().filter(|answer| answer.status == StatusCode::NOT_FOUND).count();
    assert_eq!(served + refused, 20);
    assert!(refused >= 1);
}

#[tokio::test]
async fn a_slow_reader_slows_nobody() {
    let rig = Rig::start().await;
    let layer = noise(LONG * 2);
    rig.assign(&["board"], &[&layer]);
    let credential = rig.fleet.device("board");
    let mut slow = Device::http1(&rig, Some(&credential)).await;
    let mut unread = slow.begin(Method::GET, &blob(&layer), &[]).await.unwrap();
    unread.frame().await.unwrap().unwrap();
    let mut fast = Device::http1(&rig, Some(&credential)).await;
    let answer = tokio::time::timeout(Duration::from_secs(20), fast.get(&blob(&layer))).await.unwrap();
    assert!(answer.body == layer);
    assert!(!finish(unread).await.cut);
    assert_eq!(rig.script.gets(), 1);
}

#[tokio::test]
async fn a_caller_that_hangs_up_cancels_nothing() {
    let rig = Rig::start().await;
    let layer = noise(LONG);
    rig.assign(&["board"], &[&layer]);
    let gate = rig.script.hold();
    let credential = rig.fleet.device("board");
    let mut first = Device::http1(&rig, Some(&credential)).await;
    gate.add_permits(10);
    let mut response = first.begin(Method::GET, &blob(&layer), &[]).await.unwrap();
    response.frame().await.unwrap().unwrap();
    drop((response, first));
    gate.add_permits(10_000);
    let mut second = Device::http1(&rig, Some(&credential)).await;
    assert!(second.get(&blob(&layer)).await.body == layer);
    assert_eq!(rig.script.gets(), 1);
}

#[tokio::test]
async fn a_range_ahead_of_what_has_arrived_waits_for_it() {
    let rig = Rig::start().await;
    let layer = noise(LONG);
    rig.assign(&["board"], &[&layer]);
    let gate = rig.script.hold();
    let mut device = Device::http1(&rig, Some(&rig.fleet.device("board"))).await;
    let path = blob(&layer);
    let pull = device.range(&path, "bytes=5000000-5000009");
    let release = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        // Just enough pieces to reach the range, not the end of the blob.
        gate.add_permits(5_000_010 / (64 * 1024) + 1);
    };
    let (answer, ()) = tokio::join!(pull, release);
    assert_eq!(answer.status, StatusCode::PARTIAL_CONTENT);
    assert_eq!(answer.body, layer[5_000_000..5_000_010]);
}

#[tokio::test]
async fn the_cache_answers_without_any_upstream_and_after_a_crash() {
    let rig = Rig::start().await;
    let (whole, partial) = (noise(LONG), noise(LONG + 1));
    rig.assign(&["board"], &[&whole, &partial]);
    let credential = rig.fleet.device("board");
    let mut device = Device::http1(&rig, Some(&credential)).await;
    assert!(device.get(&blob(&whole)).await.body == whole);
    rig.landed().await;
    let gate = rig.script.hold();
    gate.add_permits(100);
    let mut response = device.begin(Method::GET, &blob(&partial), &[]).await.unwrap();
    response.frame().await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;

    let after = rig.restarted().await;
    after.assign(&["board"], &[&whole, &partial]);
    let mut device = Device::http1(&after, Some(&credential)).await;
    assert!(device.get(&blob(&whole)).await.body == whole);
    assert_eq!(after.script.gets(), 0);
    assert!(device.get(&blob(&partial)).await.body == partial);
    assert_eq!(after.script.asked(), [100 * 64 * 1024]);
}

#[tokio::test]
async fn a_short_rate_limit_is_waited_out_and_a_long_one_is_passed_on() {
    let rig = Rig::start().await;
    let (first, second) = (noise(1000), noise(2000));
    rig.assign(&["board"], &[&first, &second]);
    let mut device = Device::http1(&rig, Some(&rig.fleet.device("board"))).await;
    rig.script.next(&[Fault::RateLimited(Some(Duration::from_millis(300)))]);
    assert!(device.get(&blob(&first)).await.body == first);
    assert_eq!(rig.script.gets(), 2);
    rig.script.next(&[Fault::RateLimited(Some(Duration::from_mins(1)))]);
    for _ in 0..3 {
        let answer = device.get(&blob(&second)).await;
        assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
        assert!((58..70).contains(&answer.header("retry-after").parse::<u64>().unwrap()));
    }
    // The registry was asked once and then left alone.
    assert_eq!(rig.script.gets(), 3);
}

#[tokio::test]
async fn a_device_is_not_kept_waiting_longer_than_its_patience() {
    let pull = Settings { patience: Duration::from_millis(300), ..Settings::default() };
    let rig = Rig::with(Setup { pull, ..Setup::default() }).await;
    let layer = noise(1000);
    rig.assign(&["board"], &[&layer]);
    rig.script.next(&[Fault::Delay(Duration::from_secs(1))]);
    let mut device = Device::http1(&rig, Some(&rig.fleet.device("board"))).await;
    let answer = device.get(&blob(&layer)).await;
    assert_eq!(answer.status, StatusCode::GATEWAY_TIMEOUT);
    assert!(!answer.header("retry-after").is_empty());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(device.get(&blob(&layer)).await.body == layer);
    assert_eq!(rig.script.gets(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_cache_there_is_still_one_flight_and_nothing_stays() {
    let pull = Settings { cache: false, ..Settings::default() };
    let rig = Rig::with(Setup { pull, ..Setup::default() }).await;
    let layer = noise(LONG);
    rig.assign(&["board"], &[&layer]);
    let gate = rig.script.hold();
    let path = blob(&layer);
    let release = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        gate.add_permits(10_000);
    };
    let (answers, ()) = tokio::join!(herd(&rig, 5, &path), release);
    assert!(answers.iter().all(|answer| answer.body == layer));
    assert_eq!(rig.script.gets(), 1);
    rig.landed().await;
    assert_eq!(files(&rig.cache()), 0);
}

/// The most memory this process has had, in kibibytes.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Reads an answer to its end without keeping it.
async fn drain(response: http::Response<hyper::body::Incoming>) -> u64 {
    let (mut body, mut length) = (response.into_body(), 0);
    while let Some(frame) = body.frame().await {
        length += frame.unwrap().into_data().unwrap().len() as u64;
    }
    length
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_does_not_grow_with_the_size_of_a_blob() {
    const SIZE: u64 = 128 * 1024 * 1024;
    let rig = Rig::start().await;
    let mut closure = rig.assign(&["board"], &[]);
    let mut made = closure.root.clone();
    (made.digest, made.size) = (rig.script.make(SIZE), SIZE);
    let path = format!("/v2/{}/blobs/{}", crate::rig::REPOSITORY, made.digest);
    closure.blobs.push(made);
    rig.access.set_artifact(&closure);
    let credential = rig.fleet.device("board");
    let before = peak_kib();
    let pulls = (0..4).map(|_| async {
        let mut device = Device::http1(&rig, Some(&credential)).await;
        drain(device.begin(Method::GET, &path, &[]).await.unwrap()).await
    });
    assert_eq!(futures_util::future::join_all(pulls).await, [SIZE; 4]);
    // Facade and four clients together; under one process per test this is all there is.
    let grown = peak_kib() - before;
    eprintln!("grown by {grown} KiB from {before} KiB");
    assert!(grown < 40 * 1024, "grown by {grown} KiB");
}

#[tokio::test]
async fn a_device_gets_no_more_than_its_bandwidth() {
    let limits = facade::server::Limits { bandwidth_per_device: Some(2_000_000), ..Default::default() };
    let rig = Rig::with(Setup { limits, ..Setup::default() }).await;
    let layer = noise(1_500_000);
    rig.assign(&["board"], &[&layer]);
    let credential = rig.fleet.device("board");
    for http2 in [false, true] {
        let mut device = if http2 {
            Device::http2(&rig, Some(&credential)).await
        } else {
            Device::http1(&rig, Some(&credential)).await
        };
        let started = std::time::Instant::now();
        assert!(device.get(&blob(&layer)).await.body == layer);
        assert!(started.elapsed() > Duration::from_millis(400));
    }
}

#[tokio::test]
async fn the_cache_lets_the_least_recently_used_go_and_finds_damage() {
    let policy = Policy { max_size_bytes: Some(2_500_000), min_free_bytes: 0, ..Policy::default() };
    let pull = Settings { policy, ..Settings::default() };
    let rig = Rig::with(Setup { pull, ..Setup::default() }).await;
    let layers = [noise(1_000_000), noise(1_000_001), noise(1_000_002)];
    rig.assign(&["board"], &layers.iter().collect::<Vec<_>>());
    let mut device = Device::http1(&rig, Some(&rig.fleet.device("board"))).await;
    for layer in &layers {
        device.get(&blob(layer)).await;
        rig.landed().await;
        rig.clock.set(rig.clock.now() + Duration::from_secs(10));
    }
    rig.puller.evict().await.unwrap();
    let usage = rig.puller.usage().await.unwrap();
    assert_eq!((usage.blobs, usage.size_bytes, usage.partial_bytes), (2, 2_000_003, 0));
    assert_eq!(rig.script.gets(), 3);
    assert!(device.get(&blob(&layers[2])).await.body == layers[2]);
    assert_eq!(rig.script.gets(), 3);

    let digest = pki::digest::Digest::sha256(&layers[2]);
    let path = rig.cache().join("sha256").join(&digest.hex()[..2]).join(digest.hex());
    let mut damaged = layers[2].to_vec();
    damaged[77] ^= 1;
    std::fs::write(path, damaged).unwrap();
    let checked = rig.puller.verify().await.unwrap();
    assert_eq!((checked.good, checked.bad), (1, vec![digest]));
    assert!(device.get(&blob(&layers[2])).await.body == layers[2]);
}
