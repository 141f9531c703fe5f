//! `GET /api/events`: recent and new events as a stream of server-sent events.
//!
//! A subscriber is a position in the ring of [`EventLog`], so a slow one costs no memory. It ends
//! with the session or the key that it was admitted by, and with a stop.

use std::{
    convert::Infallible,
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::{Stream, stream};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::answer::ApiError;
use crate::{
    net::drain::{Drain, Phase},
    telemetry::events::{EventLog, RecordedEvent},
};

/// Places for subscribers.
#[derive(Debug, Clone, Default)]
pub(super) struct Subscribers(Arc<AtomicUsize>);

/// Place of one subscriber, given back when dropped.
#[derive(Debug)]
struct SubscriberPlace(Arc<AtomicUsize>);

/// Parts of a subscription.
pub(super) struct Subscription {
    pub(super) events: EventLog,
    /// Position behind which the subscriber wants events; 0 for all that are kept.
    pub(super) position: u64,
    pub(super) drain: Drain,
    /// True while the caller may still see events.
    pub(super) is_admitted: Box<dyn Fn() -> bool + Send>,
}

struct EventStream {
    subscription: Subscription,
    newest: watch::Receiver<u64>,
    is_greeted: bool,
    _place: SubscriberPlace,
}

/// Subscribers at a time; each holds one of the listener's 64 connections.
pub(super) const MAX_SUBSCRIBERS: usize = 8;
/// Interval of comments while nothing happens. Shorter than the deadline of the listener for an
/// answer that makes no progress, and the longest time that an ended session still holds a stream.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Pause behind a batch, so that a storm of events costs a few writes a second.
const PAUSE: Duration = Duration::from_millis(250);

impl Subscribers {
    fn enter(&self) -> Option<SubscriberPlace> {
        let place = SubscriberPlace(Arc::clone(&self.0));
        // The place counts at once; one too many is given back by its drop.
        (self.0.fetch_add(1, Relaxed) < MAX_SUBSCRIBERS).then_some(place)
    }
}

impl Drop for SubscriberPlace {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Answers `GET /api/events`.
pub(super) fn answer(
    subscribers: &Subscribers,
    subscription: Subscription,
) -> Result<Response, ApiError> {
    let Some(place) = subscribers.enter() else {
        return Err(ApiError {
            retry_after: Some(10),
            ..ApiError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "too_many_subscribers",
                "too many consoles follow the events: close one of them, then try again",
            )
        });
    };
    let newest = subscription.events.watch();
    let events = EventStream {
        subscription,
        newest,
        is_greeted: false,
        _place: place,
    };
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        // nginx would collect events before it passes them on.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    Ok((headers, Body::from_stream(events.into_stream())).into_response())
}

/// Position after which a subscriber that comes again goes on.
pub(super) fn position(headers: &HeaderMap, start: u64) -> u64 {
    let last = headers
        .get("last-event-id")
        .and_then(|id| id.to_str().ok())
        .and_then(|id| id.split_once('.'));
    match last {
        // Positions of another run mean nothing here.
        Some((run, position)) if run.parse() == Ok(start) => position.parse().unwrap_or(0),
        _ => 0,
    }
}

impl EventStream {
    fn into_stream(self) -> impl Stream<Item = Result<Bytes, Infallible>> {
        stream::unfold(self, |mut events| async move {
            let text = events.next_text().await?;
            Some((Ok(Bytes::from(text)), events))
        })
    }

    /// Text of the next events, or a heartbeat; `None` at the end.
    async fn next_text(&mut self) -> Option<String> {
        if !self.is_greeted {
            self.is_greeted = true;
            let mut text = "retry: 3000\n\n".to_owned();
            self.append_new(&mut text);
            return Some(text);
        }
        let mut drain = self.subscription.drain.clone();
        let waiting = async {
            sleep(PAUSE).await;
            timeout(HEARTBEAT, self.newest.changed()).await
        };
        tokio::select! {
            // Closing, not leaving: until then the console shows that the node is leaving.
            () = drain.reached(Phase::Closing) => return None,
            _ = waiting => {}
        }
        // Looked at before each write, so that nothing is shown after a log-out.
        if !(self.subscription.is_admitted)() {
            return None;
        }
        let mut text = String::new();
        self.append_new(&mut text);
        if text.is_empty() {
            text.push_str(":\n\n");
        }
        Some(text)
    }

    fn append_new(&mut self, text: &mut String) {
        // Marked as seen before the ring is read, so that no event in between is missed.
        self.newest.borrow_and_update();
        let batch = self.subscription.events.after(self.subscription.position);
        if batch.is_incomplete {
            text.push_str("event: gap\ndata: {}\n\n");
        }
        let run = self.subscription.events.run();
        for event in batch.events {
            self.subscription.position = event.position;
            append(text, run, &event);
        }
    }
}

fn append(text: &mut String, run: u64, event: &RecordedEvent) {
    // JSON holds no line break, so the data is one line.
    if let Ok(data) = serde_json::to_string(event) {
        // Writing to a string cannot fail.
        let _ = write!(text, "id: {run}.{}\ndata: {data}\n\n", event.position);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;

    use super::*;
    use crate::{
        net::drain,
        telemetry::events::{Event, Level},
    };

    fn subscription(events: &EventLog, drain: &Drain) -> Subscription {
        Subscription {
            events: events.clone(),
            position: 0,
            drain: drain.clone(),
            is_admitted: Box::new(|| true),
        }
    }

    async fn next(
        response: &mut (impl Stream<Item = Result<Bytes, axum::Error>> + Unpin),
    ) -> Option<String> {
        let chunk = response.next().await?.unwrap();
        Some(String::from_utf8(chunk.to_vec()).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_begins_with_what_is_kept_beats_and_ends_with_a_stop() {
        let (events, (control, drain)) = (EventLog::default(), drain::drain());
        events.record(Event::new("fetched", Level::Info).account("shop"));
        let answer = answer(&Subscribers::default(), subscription(&events, &drain)).unwrap();
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        let mut body = answer.into_body().into_data_stream();
        let first = next(&mut body).await.unwrap();
        assert!(first.starts_with("retry: 3000\n\nid: "), "{first}");
        assert!(first.contains("\"kind\":\"fetched\"") && first.ends_with("\n\n"));
        assert_eq!(next(&mut body).await.unwrap(), ":\n\n", "a heartbeat");
        events.record(Event::new("reload", Level::Info).text("x", "a\r\nb"));
        let second = next(&mut body).await.unwrap();
        assert!(second.contains("\"kind\":\"reload\"") && !second.contains("fetched"));
        assert_eq!(second.lines().count(), 3, "an event is one line of data");
        control.advance(Phase::Closing);
        assert_eq!(next(&mut body).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_subscriber_that_comes_again_goes_on_where_it_was() {
        let events = EventLog::default();
        let shown = |id: String| {
            let mut headers = HeaderMap::new();
            headers.insert("last-event-id", id.parse().unwrap());
            position(&headers, events.run())
        };
        assert_eq!(shown(format!("{}.7", events.run())), 7);
        for other in ["", "7", ".7", "1.7", "x.y"] {
            assert_eq!(shown(other.to_owned()), 0, "{other}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn places_are_few_and_given_back() {
        let (events, (_control, drain)) = (EventLog::default(), drain::drain());
        let subscribers = Subscribers::default();
        let ask = || answer(&subscribers, subscription(&events, &drain));
        let mut open: Vec<_> = (0..MAX_SUBSCRIBERS).map(|_| ask().unwrap()).collect();
        for _ in 0..3 {
            assert_eq!(ask().unwrap_err().slug, "too_many_subscribers");
        }
        open.pop();
        assert!(ask().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_ends_with_its_session_and_shows_nothing_more() {
        let (events, (_control, drain)) = (EventLog::default(), drain::drain());
        let ended = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&ended);
        let answer = answer(
            &Subscribers::default(),
            Subscription {
                is_admitted: Box::new(move || seen.load(Relaxed) == 0),
                ..subscription(&events, &drain)
            },
        );
        let mut body = answer.unwrap().into_body().into_data_stream();
        next(&mut body).await.unwrap();
        ended.store(1, Relaxed);
        events.record(Event::new("fetched", Level::Info));
        assert_eq!(next(&mut body).await, None);
    }
}
