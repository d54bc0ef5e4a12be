use super::*;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_764_000_000 + seconds).unwrap()
}

fn pull(device: &str, seconds: i64, outcome: Outcome) -> Pull {
    Pull {
        at: at(seconds),
        device: device.parse().unwrap(),
        repository: "ghcr.io/team/app".parse().unwrap(),
        digest: Digest::sha256(seconds.to_string().as_bytes()),
        source: Some("cache"),
        size_bytes: 100,
        duration: Duration::from_millis(5),
        outcome,
        request_id: format!("r-{seconds}").into(),
    }
}

/// A log of pulls a second apart; the even ones are `even`'s.
async fn log(directory: &Path, max_bytes: u64, seconds: std::ops::Range<i64>) -> Pulls {
    let pulls = Pulls::open(directory, max_bytes, Counter::default()).unwrap();
    for second in seconds {
        let device = if second % 2 == 0 { "even" } else { "odd" };
        pulls.note(pull(device, second, Outcome::Served));
    }
    pulls.flush().await;
    pulls
}

async fn all(pulls: &Pulls, filter: &Filter, limit: usize) -> Vec<String> {
    let (mut found, mut from) = (Vec::new(), None);
    loop {
        let page = pulls.search(filter.clone(), from, limit).await.unwrap();
        assert!(page.lines.len() <= limit);
        found.extend(page.lines.into_iter().map(|line| line.request_id));
        from = page.next;
        if from.is_none() {
            return found;
        }
    }
}

fn ids(seconds: impl Iterator<Item = i64>) -> Vec<String> {
    seconds.map(|second| format!("r-{second}")).collect()
}

#[tokio::test]
async fn pages_of_any_size_have_the_same_pulls_the_newest_first() {
    let directory = tempfile::tempdir().unwrap();
    // So small that the pages go over the ends of files.
    let pulls = log(directory.path(), 0, 0..200).await;
    assert!(std::fs::read_dir(directory.path()).unwrap().count() > 5);
    let odd = Filter { device: Some("odd".parse().unwrap()), ..Filter::default() };
    for limit in [1, 7, 1000] {
        assert_eq!(all(&pulls, &Filter::default(), limit).await, ids((0..200).rev()), "{limit}");
        assert_eq!(all(&pulls, &odd, limit).await, ids((0..200).rev().filter(|second| second % 2 == 1)));
    }
}

#[tokio::test]
async fn each_part_of_a_filter_narrows() {
    let directory = tempfile::tempdir().unwrap();
    let pulls = log(directory.path(), 1 << 20, 0..10).await;
    pulls.note(Pull { source: None, ..pull("even", 10, Outcome::Refused) });
    let refused = Filter { outcome: Some(Outcome::Refused), ..Filter::default() };
    assert_eq!(all(&pulls, &refused, 10).await, ["r-10"]);
    let begins = Digest::sha256(b"3").to_string()[..20].to_owned();
    assert_eq!(all(&pulls, &Filter { digest: Some(begins), ..Filter::default() }, 10).await, ["r-3"]);
    let between = Filter { since: Some(at(2)), until: Some(at(5)), ..Filter::default() };
    assert_eq!(all(&pulls, &between, 2).await, ["r-4", "r-3", "r-2"]);
    let named = |text: &str| Filter { repository: Some(text.to_owned()), ..Filter::default() };
    assert_eq!(all(&pulls, &named("team/app"), 100).await.len(), 11);
    assert_eq!(all(&pulls, &named("other"), 100).await.len(), 0);
}

#[tokio::test]
async fn the_log_outlives_a_restart_and_a_line_that_was_half_written() {
    let directory = tempfile::tempdir().unwrap();
    drop(log(directory.path(), 1 << 20, 0..3).await);
    let file = directory.path().join("00000001.jsonl");
    let mut bytes = std::fs::read(&file).unwrap();
    bytes.extend_from_slice(b"{\"at\":\"2026-");
    std::fs::write(&file, bytes).unwrap();
    let pulls = log(directory.path(), 1 << 20, 3..5).await;
    assert_eq!(all(&pulls, &Filter::default(), 10).await, ids((0..5).rev()));
}

#[tokio::test]
async fn the_log_stays_as_large_as_it_may_be() {
    let directory = tempfile::tempdir().unwrap();
    let pulls = Pulls::open(directory.path(), 64 * 1024, Counter::default()).unwrap();
    for second in 0..3000 {
        pulls.note(pull(&format!("board-{second}"), second, Outcome::Served));
        if second % 100 == 0 {
            pulls.flush().await;
        }
    }
    let newest = pulls.search(Filter::default(), None, 1).await.unwrap();
    assert_eq!(newest.lines[0].request_id, "r-2999");
    let sizes =
        std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len());
    let total: u64 = sizes.sum();
    assert!((32 * 1024..=64 * 1024).contains(&total), "{total}");
    let left = all(&pulls, &Filter::default(), 1000).await;
    assert_eq!(left, ids((3000 - i64::try_from(left.len()).unwrap()..3000).rev()));
}

#[tokio::test]
async fn a_device_that_pulls_without_end_does_not_push_out_the_others() {
    let directory = tempfile::tempdir().unwrap();
    let pulls = log(directory.path(), 1 << 20, 0..1).await;
    for _ in 0..3 * PER_DEVICE {
        pulls.note(pull("loud", 1, Outcome::Refused));
    }
    pulls.note(pull("loud", 100, Outcome::Refused));
    let found = pulls.search(Filter::default(), None, 2).await.unwrap();
    assert_eq!(found.lines[0].not_kept, u64::from(2 * PER_DEVICE));
    assert_eq!(pulls.0.dropped.get(), u64::from(2 * PER_DEVICE));
    assert_eq!(all(&pulls, &Filter::default(), 1000).await.last().unwrap(), "r-0");
}

#[test]
fn rejects_places_that_are_none() {
    for text in ["", "1", "-", "a-1", "1-", "1-a", "-1-1"] {
        assert!(text.parse::<Place>().is_err(), "{text}");
    }
    assert_eq!("3-99".parse::<Place>().unwrap().to_string(), "3-99");
}
