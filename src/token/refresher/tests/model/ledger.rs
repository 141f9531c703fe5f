//! Ledger of one run: the facts that hosts report, and the checks on them.
//!
//! A breach is a sentence with the time, and ends the run. A panic inside a host would only end a
//! task.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::token::store::TokenRecord;

/// Facts of one run, shared by all hosts.
#[derive(Clone, Default)]
pub(super) struct Ledger(Arc<Mutex<Book>>);

#[derive(Default)]
struct Book {
    breaches: Vec<String>,
    story: Vec<String>,
    /// Last generation and token in the store.
    stored: Option<(u64, Option<String>)>,
    needless: Vec<Duration>,
    deaths: Vec<Duration>,
    fetched: Vec<Duration>,
    calls: u64,
    /// Last time at which a node reported that a token has to wait for its replacement.
    patient: Option<Duration>,
}

impl Ledger {
    fn with<T>(&self, act: impl FnOnce(&mut Book) -> T) -> T {
        act(&mut self.0.lock().unwrap())
    }

    /// Adds a line to the story, which is printed when the run fails.
    pub(super) fn note(&self, at: Duration, line: impl Into<String>) {
        let line = format!("{at:>9.3?} {}", line.into());
        self.with(|book| book.story.push(line));
    }

    pub(super) fn breach(&self, what: impl Into<String>) {
        let at = turmoil::sim_elapsed().unwrap_or_default();
        let what = what.into();
        self.note(at, format!("BREACH {what}"));
        self.with(|book| book.breaches.push(format!("at {at:?}: {what}")));
    }

    /// Notes the content of the store after a write.
    pub(super) fn stored(&self, record: Option<&TokenRecord>) {
        let now = record.map(|record| {
            (
                record.generation.0,
                record
                    .token
                    .as_ref()
                    .map(|token| token.value.expose().to_owned()),
            )
        });
        let before = self.with(|book| std::mem::replace(&mut book.stored, now.clone()));
        if before != now {
            self.note(turmoil::sim_elapsed().unwrap(), format!("stored {now:?}"));
        }
        let (Some(before), Some(now)) = (before, now) else {
            return;
        };
        let replaced = before.1.is_some() && now.1.is_some() && before.1 != now.1;
        if now.0 < before.0 || now.0 == before.0 && replaced {
            self.breach(format!("the store went from {before:?} to {now:?}"));
        }
    }

    pub(super) fn store_flushed(&self) {
        self.with(|book| book.stored = None);
    }

    pub(super) fn death(&self, at: Duration) {
        self.note(at, "the token dies");
        self.with(|book| book.deaths.push(at));
    }

    pub(super) fn fetched(&self, at: Duration, mode: &str) {
        self.note(at, format!("fetched {mode}"));
        self.with(|book| book.fetched.push(at));
    }

    /// Notes that a valid token was killed that a node knew.
    pub(super) fn needless(&self, at: Duration, mode: &str) {
        self.note(at, format!("NEEDLESS {mode}"));
        self.with(|book| book.needless.push(at));
    }

    pub(super) fn called(&self) {
        self.with(|book| book.calls += 1);
    }

    /// Notes that a refused token is not replaced yet, on purpose.
    pub(super) fn waits(&self, at: Duration) {
        self.with(|book| book.patient = Some(at));
    }

    /// True if a refused token was left in place since that time.
    pub(super) fn has_waited_since(&self, since: Duration) -> bool {
        self.with(|book| book.patient.is_some_and(|at| at >= since))
    }

    pub(super) fn calls(&self) -> u64 {
        self.with(|book| book.calls)
    }

    /// Number of valid tokens killed since that time.
    pub(super) fn needless_since(&self, since: Duration) -> usize {
        self.with(|book| book.needless.iter().filter(|at| **at >= since).count())
    }

    pub(super) fn deaths_since(&self, since: Duration) -> usize {
        self.with(|book| book.deaths.iter().filter(|at| **at >= since).count())
    }

    /// Largest number of fetches in any ten seconds.
    pub(super) fn busiest(&self) -> usize {
        let window = Duration::from_secs(10);
        self.with(|book| {
            let within = |from: Duration| {
                book.fetched
                    .iter()
                    .filter(|at| (from..from + window).contains(*at))
                    .count()
            };
            book.fetched
                .iter()
                .map(|from| within(*from))
                .max()
                .unwrap_or(0)
        })
    }

    pub(super) fn breaches(&self) -> Vec<String> {
        self.with(|book| book.breaches.clone())
    }

    pub(super) fn story(&self) -> String {
        self.with(|book| book.story.join("\n"))
    }
}
