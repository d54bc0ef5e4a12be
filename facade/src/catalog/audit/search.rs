//! Looking things up in the audit log, without ever reading all of it for one answer.

use jiff::Timestamp;

use super::{Audit, Happening, Record};
use crate::store::{StoreError, get_json};

/// Records that one search reads at most; the next one goes on where it stopped.
const MAX_READ: usize = 5000;
/// Records that are read at a time.
const STEP: usize = 500;

/// Which records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only what the token of this name did.
    pub who: Option<String>,
    /// Only what has this text in its action or subject.
    pub text: Option<String>,
    /// Only what happened then or later.
    pub since: Option<Timestamp>,
    /// Only what happened before then.
    pub until: Option<Timestamp>,
}

/// In which order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As it happened.
    OldestFirst,
    /// What happened last comes first.
    NewestFirst,
}

/// What a search found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The records, in the order asked for.
    pub records: Vec<Record>,
    /// After which record the search goes on; nothing where there is no more. A page may be short, or empty, and yet
    /// have one.
    pub next: Option<u64>,
}

impl Filter {
    fn takes(&self, happening: &Happening) -> bool {
        let has = |text: &String| happening.action.contains(text) || happening.subject.contains(text);
        self.who.as_ref().is_none_or(|who| happening.who == *who)
            && self.text.as_ref().is_none_or(has)
            && self.since.is_none_or(|since| happening.at >= since)
            && self.until.is_none_or(|until| happening.at < until)
    }
}

impl Audit {
    /// A page of the records that a filter takes, after the one with the number `after`.
    pub async fn search(
        &self,
        filter: &Filter,
        order: Order,
        after: Option<u64>,
        limit: usize,
    ) -> Result<Found, StoreError> {
        let end = self.head.lock().await.sequence.saturating_add(1);
        // The first record that may be meant, and the first behind the last one.
        let mut from = self.first_at(filter.since, 1, end).await?;
        let mut to = match filter.until {
            Some(until) => self.first_at(Some(until), from, end).await?,
            None => end,
        };
        match (order, after) {
            (Order::OldestFirst, Some(after)) => from = from.max(after.saturating_add(1)),
            (Order::NewestFirst, Some(after)) => to = to.min(after),
            (_, None) => {}
        }
        let mut found = Found { records: Vec::new(), next: None };
        let mut read = 0;
        while from < to {
            let page = self.step(order, from, to).await?;
            if page.is_empty() {
                break;
            }
            for record in page {
                let sequence = record.sequence;
                match order {
                    Order::OldestFirst => from = sequence.saturating_add(1),
                    Order::NewestFirst => to = sequence,
                }
                read += 1;
                if filter.takes(&record.happening) {
                    found.records.push(record);
                }
                if found.records.len() >= limit || read >= MAX_READ {
                    found.next = (from < to).then_some(sequence);
                    return Ok(found);
                }
            }
        }
        Ok(found)
    }

    /// The next records of a range, in the order asked for.
    async fn step(&self, order: Order, from: u64, to: u64) -> Result<Vec<Record>, StoreError> {
        let step = STEP as u64;
        let (from, to) = match order {
            Order::OldestFirst => (from, to.min(from.saturating_add(step))),
            Order::NewestFirst => (from.max(to.saturating_sub(step)), to),
        };
        let length = usize::try_from(to.saturating_sub(from)).unwrap_or(STEP);
        let mut page = self.list(Some(from.saturating_sub(1)), length).await?;
        page.retain(|record| (from..to).contains(&record.sequence));
        if order == Order::NewestFirst {
            page.reverse();
        }
        Ok(page)
    }

    /// The number of the first record from then on, by halving: records are in the order of their times.
    async fn first_at(&self, at: Option<Timestamp>, low: u64, high: u64) -> Result<u64, StoreError> {
        let Some(at) = at else { return Ok(low) };
        let (mut low, mut high) = (low, high);
        while low < high {
            let middle = low + (high - low) / 2;
            let record: Option<Record> = get_json(&*self.store, super::TABLE, &super::key(middle)).await?;
            if record.is_some_and(|record| record.happening.at < at) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::tests::happening;
    use super::*;
    use crate::store::sled::SledStore;

    /// A log of so many records, a minute apart; the even ones are `admin`'s.
    async fn log(directory: &std::path::Path, length: u32) -> Audit {
        let (store, _) = SledStore::open(&directory.join("store"), &directory.join("dumps")).unwrap();
        let audit = Audit::open(Arc::new(store)).await.unwrap();
        for number in 1..=length {
            audit.append(happening(number)).await.unwrap();
        }
        audit
    }

    async fn all(audit: &Audit, filter: &Filter, order: Order, limit: usize) -> Vec<u64> {
        let (mut numbers, mut after) = (Vec::new(), None);
        loop {
            let found = audit.search(filter, order, after, limit).await.unwrap();
            assert!(found.records.len() <= limit);
            numbers.extend(found.records.iter().map(|record| record.sequence));
            after = found.next;
            if after.is_none() {
                return numbers;
            }
        }
    }

    #[tokio::test]
    async fn finds_the_same_records_from_both_ends_on_pages_of_any_size() {
        let directory = tempfile::tempdir().unwrap();
        let audit = log(directory.path(), 9).await;
        let mine = Filter { who: Some("admin".to_owned()), ..Filter::default() };
        for limit in [1, 2, 4, 100] {
            assert_eq!(all(&audit, &mine, Order::OldestFirst, limit).await, [2, 4, 6, 8]);
            assert_eq!(all(&audit, &mine, Order::NewestFirst, limit).await, [8, 6, 4, 2]);
        }
        let none = Filter { text: Some("nowhere".to_owned()), ..Filter::default() };
        assert_eq!(all(&audit, &none, Order::NewestFirst, 10).await, [0; 0]);
        assert_eq!(all(&audit, &Filter::default(), Order::NewestFirst, 4).await.len(), 9);
    }

    #[tokio::test]
    async fn a_time_is_found_by_halving() {
        let directory = tempfile::tempdir().unwrap();
        let audit = log(directory.path(), 9).await;
        let (third, seventh) = (happening(3).at, happening(7).at);
        let between = Filter { since: Some(third), until: Some(seventh), ..Filter::default() };
        assert_eq!(all(&audit, &between, Order::OldestFirst, 2).await, [3, 4, 5, 6]);
        assert_eq!(all(&audit, &between, Order::NewestFirst, 3).await, [6, 5, 4, 3]);
        let later = Filter { since: Some(happening(60).at), ..Filter::default() };
        assert_eq!(all(&audit, &later, Order::NewestFirst, 3).await, [0; 0]);
    }
}
