//! Exchanged secrets, kept until shortly before they expire, with one exchange for any number of concurrent needs.
//!
//! Time here is the monotonic clock from the moment an answer came: neither a wrong system clock nor a registry's
//! `issued_at` can make a dead token look alive. A rejection is remembered briefly, so that a wrong password does not
//! hammer a registry.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{Shared, WeakShared};
use tokio::time::Instant;

use crate::secret::Secret;
use crate::upstream::error::UpstreamError;

/// More keys than a registry's repositories in use at one time; beyond it what is not in flight is dropped.
const MAX_KEYS: usize = 4096;
/// A token that claims to live for years is asked for again all the same.
const MAX_LIFETIME: Duration = Duration::from_hours(24);
/// A token that claims to be dead on arrival is used for the need at hand and not exchanged in a loop.
const MIN_LIFETIME: Duration = Duration::from_secs(10);

/// What an exchange brought.
#[derive(Clone, Debug)]
pub(in crate::upstream) struct Issued {
    pub(in crate::upstream) value: Secret,
    /// How long it lives from the moment it came.
    pub(in crate::upstream) lifetime: Duration,
}

/// A secret out of the cache.
#[derive(Clone, Debug)]
pub(in crate::upstream) struct Cached {
    pub(in crate::upstream) value: Secret,
    /// Tells this one from the one that replaces it.
    number: u64,
    /// Whether it was exchanged for the very need that got it: then its rejection is final.
    pub(in crate::upstream) is_fresh: bool,
}

/// Exchanged secrets by key. Cheap to clone.
pub(in crate::upstream) struct Cache<K>(Arc<Mutex<State<K>>>);

struct State<K> {
    slots: HashMap<K, Slot>,
    issued: u64,
}

#[derive(Default)]
struct Slot {
    kept: Option<Kept>,
    rejection: Option<(UpstreamError, Instant)>,
    // Weak: when the last caller goes away, so does the exchange, and the next caller starts a new one.
    flight: Option<WeakShared<Exchange>>,
}

struct Kept {
    value: Secret,
    number: u64,
    renew_at: Instant,
    expires_at: Instant,
}

type Exchange = Pin<Box<dyn Future<Output = Result<Cached, UpstreamError>> + Send>>;

/// How long before its end a secret is renewed: a fifth of its life, at least a minute, but a short-lived one is used
/// for half of its life.
pub(in crate::upstream) fn usable_for(lifetime: Duration) -> Duration {
    let lifetime = lifetime.clamp(MIN_LIFETIME, MAX_LIFETIME);
    let margin = (lifetime / 5).max(Duration::from_mins(1)).min(lifetime / 2);
    lifetime.saturating_sub(margin)
}

impl<K: Clone + Eq + Hash + Send + 'static> Cache<K> {
    pub(in crate::upstream) fn new() -> Self {
        Self(Arc::new(Mutex::new(State { slots: HashMap::new(), issued: 0 })))
    }

    /// The secret of a key: kept, or out of the exchange that is under way, or out of the exchange made here.
    pub(in crate::upstream) async fn get<F>(
        &self,
        key: &K,
        exchange: impl FnOnce() -> F,
    ) -> Result<Cached, UpstreamError>
    where
        F: Future<Output = Result<Issued, UpstreamError>> + Send + 'static,
    {
        let flight = match self.at_hand(key)? {
            AtHand::Cached(cached) => return Ok(cached),
            AtHand::InFlight(flight) => flight,
            AtHand::Nothing => self.depart(key, exchange()),
        };
        flight.await
    }

    /// Forgets a secret that was rejected, unless it has been replaced already.
    pub(in crate::upstream) fn forget(&self, key: &K, rejected: &Cached) {
        if let Some(slot) = self.state().slots.get_mut(key) {
            slot.kept.take_if(|kept| kept.number == rejected.number);
        }
    }

    /// Remembers for a while that there is no use in trying.
    pub(in crate::upstream) fn reject(&self, key: &K, error: &UpstreamError, period: Duration) {
        let mut state = self.state();
        let slot = state.slots.entry(key.clone()).or_default();
        slot.kept = None;
        slot.rejection = Some((error.clone(), Instant::now() + period));
    }

    /// The rejection that is still remembered.
    pub(in crate::upstream) fn rejection(&self, key: &K) -> Option<UpstreamError> {
        let state = self.state();
        let (error, until) = state.slots.get(key)?.rejection.as_ref()?;
        (Instant::now() < *until).then(|| error.clone())
    }

    fn at_hand(&self, key: &K) -> Result<AtHand, UpstreamError> {
        if let Some(error) = self.rejection(key) {
            return Err(error);
        }
        let state = self.state();
        let Some(slot) = state.slots.get(key) else {
            return Ok(AtHand::Nothing);
        };
        if let Some(kept) = slot.kept.as_ref().filter(|kept| Instant::now() < kept.renew_at) {
            return Ok(AtHand::Cached(kept.cached()));
        }
        Ok(match slot.flight.as_ref().and_then(WeakShared::upgrade) {
            Some(flight) => AtHand::InFlight(flight),
            None => AtHand::Nothing,
        })
    }

    fn depart<F>(&self, key: &K, exchange: F) -> Shared<Exchange>
    where
        F: Future<Output = Result<Issued, UpstreamError>> + Send + 'static,
    {
        let (cache, owned) = (Self(Arc::clone(&self.0)), key.clone());
        let flight: Exchange = Box::pin(async move {
            let outcome = exchange.await;
            cache.arrive(&owned, outcome)
        });
        let flight = flight.shared();
        let mut state = self.state();
        if state.slots.len() >= MAX_KEYS {
            state.slots.retain(|_, slot| slot.flight.as_ref().and_then(WeakShared::upgrade).is_some());
        }
        let slot = state.slots.entry(key.clone()).or_default();
        // Two callers may have found nothing at the same time: the second one joins the first.
        if let Some(under_way) = slot.flight.as_ref().and_then(WeakShared::upgrade) {
            return under_way;
        }
        slot.flight = flight.downgrade();
        flight
    }

    fn arrive(&self, key: &K, outcome: Result<Issued, UpstreamError>) -> Result<Cached, UpstreamError> {
        let mut state = self.state();
        state.issued += 1;
        let number = state.issued;
        let slot = state.slots.entry(key.clone()).or_default();
        slot.flight = None;
        match outcome {
            Ok(issued) => {
                let now = Instant::now();
                let kept = Kept {
                    value: issued.value,
                    number,
                    renew_at: now + usable_for(issued.lifetime),
                    expires_at: now + issued.lifetime.min(MAX_LIFETIME),
                };
                let cached = kept.cached();
                slot.kept = Some(kept);
                slot.rejection = None;
                Ok(Cached { is_fresh: true, ..cached })
            }
            // The old one still works: a token server that is away must not stop a pull before it has to.
            Err(error) if error.is_retryable() => match &slot.kept {
                Some(kept) if Instant::now() < kept.expires_at => Ok(kept.cached()),
                _ => Err(error),
            },
            Err(error) => Err(error),
        }
    }

    fn state(&self) -> MutexGuard<'_, State<K>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum AtHand {
    Cached(Cached),
    InFlight(Shared<Exchange>),
    Nothing,
}

impl Kept {
    fn cached(&self) -> Cached {
        Cached { value: self.value.clone(), number: self.number, is_fresh: false }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;
    use tokio::time::{advance, sleep};

    use super::*;
    use crate::upstream::error::Cause;

    const LIFE: Duration = Duration::from_mins(5);

    fn denied() -> UpstreamError {
        UpstreamError::Denied { host: "r".into(), source: Cause::new("no") }
    }

    fn away() -> UpstreamError {
        UpstreamError::Unavailable { host: "r".into(), status: 503 }
    }

    struct Counted(Arc<AtomicUsize>);

    impl Counted {
        fn new() -> Self {
            Self(Arc::new(AtomicUsize::new(0)))
        }

        fn exchange(
            &self,
            outcome: Result<Duration, UpstreamError>,
        ) -> impl Future<Output = Result<Issued, UpstreamError>> + Send + 'static {
            let count = Arc::clone(&self.0);
            async move {
                let number = count.fetch_add(1, Ordering::SeqCst) + 1;
                sleep(Duration::from_millis(100)).await;
                outcome.map(|lifetime| Issued { value: Secret::new(format!("t{number}")), lifetime })
            }
        }

        fn count(&self) -> usize {
            self.0.load(Ordering::SeqCst)
        }
    }

    #[test]
    fn renews_in_time_but_uses_short_lived_tokens() {
        for (lifetime, usable) in [(3600, 2880), (300, 240), (100, 50), (70, 35), (60, 30), (1, 5), (0, 5)] {
            assert_eq!(usable_for(Duration::from_secs(lifetime)), Duration::from_secs(usable), "{lifetime}");
        }
        assert!(usable_for(Duration::MAX) <= MAX_LIFETIME);
    }

    #[tokio::test(start_paused = true)]
    async fn one_exchange_serves_any_number_of_concurrent_needs() {
        let (cache, counted) = (Cache::new(), Counted::new());
        let needs = (0..500).map(|_| cache.get(&1, || counted.exchange(Ok(LIFE))));
        for cached in join_all(needs).await {
            assert_eq!(cached.unwrap().value.expose(), "t1");
        }
        assert_eq!(counted.count(), 1);
        assert!(!cache.get(&1, || counted.exchange(Ok(LIFE))).await.unwrap().is_fresh);
        advance(Duration::from_secs(241)).await;
        let renewed = cache.get(&1, || counted.exchange(Ok(LIFE))).await.unwrap();
        assert_eq!((renewed.value.expose(), renewed.is_fresh), ("t2", true));
    }

    #[tokio::test(start_paused = true)]
    async fn an_exchange_outlives_its_first_caller_and_dies_with_its_last() {
        let (cache, counted) = (Cache::new(), Counted::new());
        let mut first = Box::pin(cache.get(&1, || counted.exchange(Ok(LIFE))));
        assert!(futures_util::poll!(&mut first).is_pending());
        let mut second = Box::pin(cache.get(&1, || counted.exchange(Ok(LIFE))));
        assert!(futures_util::poll!(&mut second).is_pending());
        drop(first);
        assert_eq!(second.await.unwrap().value.expose(), "t1");

        let mut only = Box::pin(cache.get(&2, || counted.exchange(Ok(LIFE))));
        assert!(futures_util::poll!(&mut only).is_pending());
        drop(only);
        assert_eq!(cache.get(&2, || counted.exchange(Ok(LIFE))).await.unwrap().value.expose(), "t3");
    }

    #[tokio::test(start_paused = true)]
    async fn a_rejected_token_is_forgotten_once_however_many_had_it() {
        let (cache, counted) = (Cache::new(), Counted::new());
        let old = cache.get(&1, || counted.exchange(Ok(LIFE))).await.unwrap();
        cache.forget(&1, &old);
        let new = cache.get(&1, || counted.exchange(Ok(LIFE))).await.unwrap();
        cache.forget(&1, &old);
        assert_eq!(cache.get(&1, || counted.exchange(Ok(LIFE))).await.unwrap().number, new.number);
        assert_eq!(counted.count(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_rejection_is_remembered_briefly_and_a_failure_is_not() {
        let (cache, counted) = (Cache::new(), Counted::new());
        assert_eq!(cache.get(&1, || counted.exchange(Err(away()))).await.unwrap_err(), away());
        assert_eq!(cache.get(&1, || counted.exchange(Err(denied()))).await.unwrap_err(), denied());
        cache.reject(&1, &denied(), Duration::from_secs(10));
        for _ in 0..100 {
            assert_eq!(cache.get(&1, || counted.exchange(Ok(LIFE))).await.unwrap_err(), denied());
        }
        assert_eq!(counted.count(), 2);
        advance(Duration::from_secs(11)).await;
        assert!(cache.get(&1, || counted.exchange(Ok(LIFE))).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_token_serves_while_the_token_server_is_away() {
        let (cache, counted) = (Cache::new(), Counted::new());
        cache.get(&1, || counted.exchange(Ok(LIFE))).await.unwrap();
        advance(Duration::from_secs(250)).await;
        assert_eq!(cache.get(&1, || counted.exchange(Err(away()))).await.unwrap().value.expose(), "t1");
        advance(Duration::from_mins(1)).await;
        assert_eq!(cache.get(&1, || counted.exchange(Err(away()))).await.unwrap_err(), away());
    }
}
