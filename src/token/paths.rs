//! Paths that lie: they answer "stale" whatever token they get, while the same token is welcome
//! elsewhere.
//!
//! A bounded memory of one account. It only remembers verdicts; its owner forms them.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use super::value::Generation;

/// Remembers at most [`Paths::MOST`] paths for at most [`Paths::HOLD`].
#[derive(Debug, Default)]
pub(crate) struct Paths {
    entries: HashMap<Box<str>, Entry>,
}

#[derive(Debug)]
struct Entry {
    /// The generation whose acceptance elsewhere would prove the path wrong; `None` once that is
    /// settled.
    waits_for: Option<Generation>,
    until: Instant,
    strikes: u32,
}

impl Paths {
    /// The bound of the table.
    pub(crate) const MOST: usize = 1024;
    /// How long a verdict stands.
    pub(crate) const HOLD: Duration = Duration::from_secs(600);
    /// How long the first verdict stands that rests on a probe alone: tokens spread through WeChat
    /// with a lag.
    pub(crate) const FIRST_HOLD: Duration = Duration::from_secs(60);

    /// A replay on `path` with a fresh `generation` was stale again. That convicts once the
    /// generation is accepted.
    pub(crate) fn suspect(&mut self, path: &str, generation: Generation, now: Instant) {
        self.insert(path, Some(generation), now, Self::HOLD);
    }

    /// The token that `path` rejected is good: it is the current one at WeChat, and was accepted
    /// elsewhere or by a probe.
    pub(crate) fn convict(&mut self, path: &str, now: Instant) {
        let again = self
            .entries
            .get(path)
            .is_some_and(|entry| entry.strikes > 0);
        self.insert(
            path,
            None,
            now,
            if again { Self::HOLD } else { Self::FIRST_HOLD },
        );
    }

    /// `generation` was accepted somewhere.
    pub(crate) fn accepted(&mut self, generation: Generation) {
        for entry in self
            .entries
            .values_mut()
            .filter(|entry| entry.waits_for == Some(generation))
        {
            entry.waits_for = None;
        }
    }

    /// Whether a rejection on this path says nothing about the token.
    pub(crate) fn lies(&self, path: &str, now: Instant) -> bool {
        self.entries
            .get(path)
            .is_some_and(|entry| entry.waits_for.is_none() && now < entry.until)
    }

    fn insert(&mut self, path: &str, waits_for: Option<Generation>, now: Instant, hold: Duration) {
        if path.is_empty() {
            return;
        }
        if self.entries.len() >= Self::MOST && !self.entries.contains_key(path) {
            self.entries.retain(|_, entry| now < entry.until);
            let oldest = self
                .entries
                .iter()
                .min_by_key(|(_, entry)| entry.until)
                .map(|(path, _)| path.clone());
            if let Some(oldest) = oldest.filter(|_| self.entries.len() >= Self::MOST) {
                self.entries.remove(&oldest);
            }
        }
        let entry = self.entries.entry(path.into()).or_insert(Entry {
            waits_for,
            until: now,
            strikes: 0,
        });
        *entry = Entry {
            waits_for,
            until: now + hold,
            strikes: entry.strikes.saturating_add(1),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_convicted_only_when_the_generation_is_accepted_elsewhere() {
        let now = Instant::now();
        let mut paths = Paths::default();
        paths.suspect("/a", Generation(2), now);
        assert!(!paths.lies("/a", now));
        paths.accepted(Generation(1));
        assert!(!paths.lies("/a", now));
        paths.accepted(Generation(2));
        assert!(paths.lies("/a", now) && !paths.lies("/b", now));
        assert!(!paths.lies("/a", now + Paths::HOLD), "the memory ends");
    }

    #[test]
    fn the_first_verdict_of_a_probe_is_short_and_the_second_is_not() {
        let now = Instant::now();
        let mut paths = Paths::default();
        paths.convict("/a", now);
        let later = now + Paths::FIRST_HOLD;
        assert!(paths.lies("/a", now) && !paths.lies("/a", later));
        paths.convict("/a", later);
        assert!(paths.lies("/a", later + Paths::FIRST_HOLD * 2));
    }

    #[test]
    fn the_table_is_bounded_and_takes_no_empty_path() {
        let now = Instant::now();
        let mut paths = Paths::default();
        paths.convict("", now);
        assert!(paths.entries.is_empty());
        for n in 0..3000_u64 {
            paths.convict(&format!("/{n}"), now + Duration::from_millis(n));
        }
        assert_eq!(paths.entries.len(), Paths::MOST);
        assert!(paths.lies("/2999", now) && !paths.lies("/0", now));
    }
}
