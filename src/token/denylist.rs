//! Denylist of paths that reject every token, while other paths accept the same token.
//!
//! Bounded state of one account. The state machine of the refresher decides which paths to add.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use super::value::Generation;

/// Set of at most [`PathDenylist::MAX`] paths, each for at most [`PathDenylist::HOLD`].
#[derive(Debug, Default)]
pub(crate) struct PathDenylist {
    entries: HashMap<Box<str>, DenylistEntry>,
}

#[derive(Debug)]
struct DenylistEntry {
    /// Generation whose acceptance on another path proves this path wrong; `None` once proven.
    waits_for: Option<Generation>,
    until: Instant,
    rejections: u32,
}

impl PathDenylist {
    /// Limit for the paths in the table.
    pub(crate) const MAX: usize = 1024;
    /// Time for which an entry counts.
    pub(crate) const HOLD: Duration = Duration::from_secs(600);
    /// Time for which the first entry of a path counts if only a probe has accepted the token: new
    /// tokens spread through WeChat with a lag.
    pub(crate) const FIRST_HOLD: Duration = Duration::from_secs(60);

    /// Notes that a replay on `path` with the fresh `generation` was rejected too. The path is
    /// denied once that generation is accepted on another path.
    pub(crate) fn watch(&mut self, path: &str, generation: Generation, now: Instant) {
        self.put(path, Some(generation), now, Self::HOLD);
    }

    /// Denies `path`: the token that it rejected was accepted on another path or by a probe.
    pub(crate) fn insert(&mut self, path: &str, now: Instant) {
        let again = self
            .entries
            .get(path)
            .is_some_and(|entry| entry.rejections > 0);
        self.put(
            path,
            None,
            now,
            if again { Self::HOLD } else { Self::FIRST_HOLD },
        );
    }

    /// Notes that `generation` was accepted, which denies the paths that rejected it.
    pub(crate) fn confirm(&mut self, generation: Generation) {
        for entry in self
            .entries
            .values_mut()
            .filter(|entry| entry.waits_for == Some(generation))
        {
            entry.waits_for = None;
        }
    }

    /// True if a rejection on this path says nothing about the token.
    pub(crate) fn contains(&self, path: &str, now: Instant) -> bool {
        self.entries
            .get(path)
            .is_some_and(|entry| entry.waits_for.is_none() && now < entry.until)
    }

    /// Adds or renews an entry. A full table first drops expired entries, then the oldest one.
    fn put(&mut self, path: &str, waits_for: Option<Generation>, now: Instant, hold: Duration) {
        if path.is_empty() {
            return;
        }
        if self.entries.len() >= Self::MAX && !self.entries.contains_key(path) {
            self.entries.retain(|_, entry| now < entry.until);
            let oldest = self
                .entries
                .iter()
                .min_by_key(|(_, entry)| entry.until)
                .map(|(path, _)| path.clone());
            if let Some(oldest) = oldest.filter(|_| self.entries.len() >= Self::MAX) {
                self.entries.remove(&oldest);
            }
        }
        let entry = self.entries.entry(path.into()).or_insert(DenylistEntry {
            waits_for,
            until: now,
            rejections: 0,
        });
        *entry = DenylistEntry {
            waits_for,
            until: now + hold,
            rejections: entry.rejections.saturating_add(1),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_convicted_only_when_the_generation_is_accepted_elsewhere() {
        let now = Instant::now();
        let mut denied = PathDenylist::default();
        denied.watch("/a", Generation(2), now);
        assert!(!denied.contains("/a", now));
        denied.confirm(Generation(1));
        assert!(!denied.contains("/a", now));
        denied.confirm(Generation(2));
        assert!(denied.contains("/a", now) && !denied.contains("/b", now));
        assert!(
            !denied.contains("/a", now + PathDenylist::HOLD),
            "the memory ends"
        );
    }

    #[test]
    fn the_first_verdict_of_a_probe_is_short_and_the_second_is_not() {
        let now = Instant::now();
        let mut denied = PathDenylist::default();
        denied.insert("/a", now);
        let later = now + PathDenylist::FIRST_HOLD;
        assert!(denied.contains("/a", now) && !denied.contains("/a", later));
        denied.insert("/a", later);
        assert!(denied.contains("/a", later + PathDenylist::FIRST_HOLD * 2));
    }

    #[test]
    fn the_table_is_bounded_and_takes_no_empty_path() {
        let now = Instant::now();
        let mut denied = PathDenylist::default();
        denied.insert("", now);
        assert!(denied.entries.is_empty());
        for n in 0..3000_u64 {
            denied.insert(&format!("/{n}"), now + Duration::from_millis(n));
        }
        assert_eq!(denied.entries.len(), PathDenylist::MAX);
        assert!(denied.contains("/2999", now) && !denied.contains("/0", now));
    }
}
