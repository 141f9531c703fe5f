//! Recent events of this node for the console: a ring in memory, read by any number of subscribers.
//!
//! A subscriber has no queue of its own. It remembers a position and reads the ring from there, so
//! that a slow one costs no memory and holds up nobody. The log on standard error is the durable
//! record; this one is gone with the process.

use std::{
    borrow::Cow,
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use serde::Serialize;
use serde_json::{Map, Value};
use tokio::{sync::watch, time::Instant};

/// Ring of recent events. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct EventLog(Arc<EventLogInner>);

#[derive(Debug)]
struct EventLogInner {
    ring: Mutex<EventRing>,
    /// Position of the newest event.
    newest: watch::Sender<u64>,
    /// Unix time of the start in milliseconds.
    run: u64,
}

#[derive(Debug, Default)]
struct EventRing {
    entries: VecDeque<EventEntry>,
    position: u64,
    next_id: u64,
    /// Position of the latest event that made room for another one.
    evicted: u64,
}

#[derive(Debug)]
struct EventEntry {
    id: u64,
    position: u64,
    at: SystemTime,
    recorded: Instant,
    count: u64,
    event: Event,
}

/// Event before it is recorded. Holds no token, secret or key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    kind: &'static str,
    level: Level,
    account: Option<String>,
    client: Option<String>,
    fields: Vec<(&'static str, Value)>,
    /// Fields that make no other event of it, such as the path of a denied call.
    details: Vec<(&'static str, Value)>,
}

/// Urgency of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    Info,
    Warning,
    Error,
}

/// Recorded event as subscribers get it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct RecordedEvent {
    /// Number of the event. A repetition keeps the number.
    pub(crate) id: u64,
    #[serde(skip)]
    pub(crate) position: u64,
    /// Unix time in milliseconds.
    pub(crate) at: u64,
    pub(crate) kind: &'static str,
    pub(crate) level: Level,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) account: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) client: Option<String>,
    /// Occurrences within [`REPEAT_WITHIN`].
    pub(crate) count: u64,
    pub(crate) fields: Map<String, Value>,
}

/// Events that the ring has from a position on.
#[derive(Debug)]
pub(crate) struct EventBatch {
    pub(crate) events: Vec<RecordedEvent>,
    /// Set if events behind the position have left the ring.
    pub(crate) is_incomplete: bool,
}

/// Number of events that are kept.
pub(crate) const MAX_EVENTS: usize = 200;
/// Time in which the same event counts up instead of taking another place: one caller's storm must
/// not push everything else out of the ring.
const REPEAT_WITHIN: Duration = Duration::from_secs(60);
/// Longest text of a field, in characters.
const MAX_TEXT: usize = 240;

impl Default for EventLog {
    fn default() -> Self {
        Self(Arc::new(EventLogInner {
            ring: Mutex::default(),
            newest: watch::Sender::new(0),
            run: unix_ms(SystemTime::now()),
        }))
    }
}

impl EventLog {
    /// Records an event.
    pub(crate) fn record(&self, event: Event) {
        let position = self.lock().record(event);
        self.0.newest.send_replace(position);
    }

    /// Records an event unless another thread is at the ring just then. For requests: they never
    /// wait for each other here.
    pub(crate) fn record_unless_busy(&self, event: Event) {
        let position = match self.0.ring.try_lock() {
            Ok(mut ring) => ring.record(event),
            Err(_) => return,
        };
        self.0.newest.send_replace(position);
    }

    /// Events behind a position, oldest first.
    pub(crate) fn after(&self, position: u64) -> EventBatch {
        let ring = self.lock();
        let mut events: Vec<_> = ring
            .entries
            .iter()
            .filter(|entry| entry.position > position)
            .map(EventEntry::to_recorded)
            .collect();
        // A repetition moves on without changing its place in the ring.
        events.sort_unstable_by_key(|event| event.position);
        EventBatch {
            events,
            is_incomplete: position > 0 && ring.evicted > position,
        }
    }

    /// Number that tells the positions of this run from those of others.
    pub(crate) fn run(&self) -> u64 {
        self.0.run
    }

    /// Receiver that changes with each event.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.0.newest.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, EventRing> {
        self.0.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EventRing {
    /// Returns the position of the event.
    fn record(&mut self, event: Event) -> u64 {
        self.position += 1;
        let (position, at, recorded) = (self.position, SystemTime::now(), Instant::now());
        // Entries stand in the order in which they were recorded, so the search ends at an old one.
        let mut recent = self
            .entries
            .iter_mut()
            .rev()
            .take_while(|entry| recorded.duration_since(entry.recorded) < REPEAT_WITHIN);
        if let Some(entry) = recent.find(|entry| event.repeats(&entry.event)) {
            entry.count += 1;
            entry.at = at;
            entry.position = position;
            entry.event = event;
            return position;
        }
        if self.entries.len() >= MAX_EVENTS
            && let Some(oldest) = self.entries.pop_front()
        {
            self.evicted = self.evicted.max(oldest.position);
        }
        self.entries.push_back(EventEntry {
            id: self.next_id,
            position,
            at,
            recorded,
            count: 1,
            event,
        });
        self.next_id += 1;
        position
    }
}

impl EventEntry {
    fn to_recorded(&self) -> RecordedEvent {
        let fields = self.event.fields.iter().chain(&self.event.details);
        RecordedEvent {
            id: self.id,
            position: self.position,
            at: unix_ms(self.at),
            kind: self.event.kind,
            level: self.event.level,
            account: self.event.account.clone(),
            client: self.event.client.clone(),
            count: self.count,
            fields: fields
                .map(|(name, value)| ((*name).to_owned(), value.clone()))
                .collect(),
        }
    }
}

impl Event {
    /// Event of a kind from a fixed set, which the console has words for.
    pub(crate) fn new(kind: &'static str, level: Level) -> Self {
        Self {
            kind,
            level,
            account: None,
            client: None,
            fields: Vec::new(),
            details: Vec::new(),
        }
    }

    /// True if this event differs from `earlier` in its details alone.
    fn repeats(&self, earlier: &Self) -> bool {
        self.kind == earlier.kind
            && self.level == earlier.level
            && self.account == earlier.account
            && self.client == earlier.client
            && self.fields == earlier.fields
    }

    #[must_use]
    pub(crate) fn account(mut self, name: &str) -> Self {
        self.account = Some(name.to_owned());
        self
    }

    #[must_use]
    pub(crate) fn client(mut self, name: &str) -> Self {
        self.client = Some(shortened(name).into_owned());
        self
    }

    /// Adds a text, cut to a bounded length.
    #[must_use]
    pub(crate) fn text(mut self, name: &'static str, text: &str) -> Self {
        self.fields
            .push((name, Value::from(shortened(text).into_owned())));
        self
    }

    /// Adds a text that may differ between repetitions of the event; the latest is shown.
    #[must_use]
    pub(crate) fn detail(mut self, name: &'static str, text: &str) -> Self {
        self.details
            .push((name, Value::from(shortened(text).into_owned())));
        self
    }

    #[must_use]
    pub(crate) fn number(mut self, name: &'static str, number: impl Into<i64>) -> Self {
        self.fields.push((name, Value::from(number.into())));
        self
    }
}

fn unix_ms(at: SystemTime) -> u64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

fn shortened(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(MAX_TEXT) {
        None => Cow::Borrowed(text),
        Some((end, _)) => Cow::Owned(format!("{}…", &text[..end])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(number: i64) -> Event {
        Event::new("fetched", Level::Info).number("generation", number)
    }

    #[tokio::test(start_paused = true)]
    async fn the_ring_keeps_the_newest_and_says_when_some_are_gone() {
        let log = EventLog::default();
        for number in 1..=250 {
            log.record(numbered(number));
        }
        let all = log.after(0);
        assert_eq!(
            (all.events.len(), all.is_incomplete),
            (MAX_EVENTS, false),
            "who begins has missed nothing"
        );
        assert_eq!(all.events[0].fields["generation"], 51);
        assert!(log.after(20).is_incomplete && !log.after(60).is_incomplete);
        assert_eq!(log.after(249).events.len(), 1);
        assert!(log.after(250).events.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_storm_of_one_event_takes_one_place_and_its_count_is_told_again() {
        let log = EventLog::default();
        let denied = |client: &str, path: &str| {
            let event = Event::new("denied", Level::Warning).client(client);
            event.detail("path", path)
        };
        log.record(denied("crm", "/a"));
        log.record(denied("shop", "/a"));
        for number in 1..=1000 {
            log.record_unless_busy(denied("crm", &format!("/{number}")));
        }
        let again = log.after(2).events;
        assert_eq!((again.len(), again[0].id, again[0].count), (1, 0, 1001));
        assert_eq!(again[0].fields["path"], "/1000", "the latest");
        tokio::time::advance(REPEAT_WITHIN).await;
        log.record(denied("crm", "/a"));
        assert_eq!(log.after(0).events.len(), 3);
    }

    #[tokio::test]
    async fn long_texts_are_cut_between_characters() {
        let log = EventLog::default();
        log.record(Event::new("refused", Level::Error).text("words", &"牛".repeat(1000)));
        let words = &log.after(0).events[0].fields["words"];
        assert_eq!(words.as_str().unwrap().chars().count(), MAX_TEXT + 1);
    }
}
