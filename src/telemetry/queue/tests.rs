//! Tests of the queue with sinks that stall, fail and recover.

use std::{collections::VecDeque, sync::mpsc, thread};

use super::*;

const LONG: Duration = Duration::from_secs(60);

/// Sink that blocks while shut, and fails as scripted.
#[derive(Clone, Default)]
struct Sink(Arc<(Mutex<Inner>, Condvar)>);

#[derive(Default)]
struct Inner {
    taken: Vec<u8>,
    shut: bool,
    /// Outcomes of the next writes: bytes taken, or `None` for a failure. Writes after these
    /// succeed.
    next: VecDeque<Option<usize>>,
}

impl Sink {
    fn change(&self, change: impl FnOnce(&mut Inner)) {
        change(&mut self.0.0.lock().unwrap());
        self.0.1.notify_all();
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.0.lock().unwrap().taken.clone()).unwrap()
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let inner = self.0.0.lock().unwrap();
        let mut inner = self.0.1.wait_while(inner, |inner| inner.shut).unwrap();
        let count = match inner.next.pop_front() {
            Some(None) => return Err(io::ErrorKind::StorageFull.into()),
            Some(Some(count)) => count.min(bytes.len()),
            None => bytes.len(),
        };
        inner.taken.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn start(format: Format) -> (Sink, Arc<LogQueue>) {
    let sink = Sink::default();
    let queue = LogQueue::start(sink.clone(), format).unwrap();
    (sink, queue)
}

/// Waits for a condition of the queue.
fn until(queue: &LogQueue, holds: impl Fn(&LogHealth) -> bool) {
    let started = Instant::now();
    while !holds(&queue.health()) {
        assert!(started.elapsed() < LONG, "{:?}", queue.health());
        thread::yield_now();
    }
}

#[test]
fn a_reader_that_stalls_costs_lines_but_no_time_and_the_log_tells_how_many() {
    for format in [Format::Text, Format::Json] {
        let (sink, queue) = start(format);
        sink.change(|inner| inner.shut = true);
        let line = format!("{}\n", "x".repeat(199));
        queue.push(line.as_bytes());
        // While the writer is blocked, the buffer alone takes lines.
        while queue.lock().writing_since.is_none() {
            thread::yield_now();
        }
        let (pushed, done) = mpsc::channel();
        let producer = thread::spawn({
            let (queue, line) = (Arc::clone(&queue), line.clone());
            move || {
                for _ in 1..30_000 {
                    queue.push(line.as_bytes());
                }
                pushed.send(()).unwrap();
            }
        });
        done.recv_timeout(LONG).expect("no line waits");
        producer.join().unwrap();
        until(&queue, |health| matches!(health, LogHealth::Stalled { .. }));
        let LogHealth::Stalled { dropped, .. } = queue.health() else {
            panic!("stalled");
        };
        assert!(queue.lock().pending.len() <= MAX_PENDING);
        assert_eq!(dropped, 30_000 - 1 - MAX_PENDING as u64 / 200);
        assert_eq!(queue.full.get(), dropped);

        sink.change(|inner| inner.shut = false);
        queue.flush(None);
        let text = sink.text();
        let (kept, told): (Vec<_>, Vec<_>) = text.lines().partition(|l| l.starts_with('x'));
        assert!(kept.iter().all(|l| l.len() == 199), "whole lines only");
        assert_eq!(kept.len() as u64 + dropped, 30_000);
        assert_eq!(told.len(), 1, "{told:?}");
        if format == Format::Json {
            let told: serde_json::Value = serde_json::from_str(told[0]).unwrap();
            assert_eq!(
                (told["level"].as_str(), told["dropped"].as_u64()),
                (Some("WARN"), Some(dropped))
            );
        } else {
            assert!(told[0].contains("  WARN wxgate::log: "), "{told:?}");
            assert!(
                told[0].ends_with(&format!(" dropped={dropped}")),
                "{told:?}"
            );
        }
        assert_eq!(queue.health(), LogHealth::Flowing);
        queue.push(b"after\n");
        queue.flush(Some(LONG));
        assert!(sink.text().ends_with("\nafter\n"), "told once");
    }
}

#[test]
fn a_write_that_fails_is_told_of_later_and_tears_no_later_line() {
    let (sink, queue) = start(Format::Text);
    sink.change(|inner| inner.next.extend([Some(6), None]));
    queue.push(b"one\ntwo\nthree\n");
    queue.flush(Some(LONG));
    assert!(
        matches!(queue.health(), LogHealth::Failing { dropped: 2, .. }),
        "{:?}",
        queue.health()
    );
    // Another failure, this time before the first byte.
    sink.change(|inner| inner.next.push_back(None));
    queue.push(b"four\n");
    queue.flush(Some(LONG));
    assert!(
        matches!(queue.health(), LogHealth::Failing { dropped: 3, .. }),
        "{:?}",
        queue.health()
    );
    queue.push(b"five\n");
    queue.flush(Some(LONG));
    let text = sink.text();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[..3], ["one", "tw", "five"], "{text}");
    assert!(
        lines[3].ends_with(" dropped=3") && lines.len() == 4,
        "{text}"
    );
    assert_eq!(
        (queue.health(), queue.failed.get()),
        (LogHealth::Flowing, 3)
    );
}

#[test]
fn short_writes_lose_nothing() {
    let (sink, queue) = start(Format::Text);
    sink.change(|inner| inner.next.extend((1..40).map(Some)));
    let lines = "one line\n".repeat(400);
    queue.push(lines.as_bytes());
    queue.flush(Some(LONG));
    assert_eq!(sink.text(), lines);
}

#[test]
fn a_batch_is_taken_over_whether_lines_wait_or_not() {
    let (sink, queue) = start(Format::Text);
    sink.change(|inner| inner.shut = true);
    queue.push(b"one\n");
    // The writer has taken the first line and waits for the sink.
    while queue.lock().writing_since.is_none() {
        thread::yield_now();
    }
    for line in ["two\n", "three\n", ""] {
        let mut batch = line.as_bytes().to_vec();
        queue.push_batch(&mut batch);
        assert!(batch.is_empty());
    }
    let mut batch = "x\n".repeat(MAX_PENDING).into_bytes();
    queue.push_batch(&mut batch);
    assert!(batch.is_empty(), "a full queue drops the lines");
    sink.change(|inner| inner.shut = false);
    queue.flush(None);
    let text = sink.text();
    assert!(text.starts_with("one\ntwo\nthree\n"), "{text}");
    assert!(
        text.ends_with(&format!("dropped={MAX_PENDING}\n")),
        "{text}"
    );
}

#[test]
fn a_flush_ends_at_its_limit_and_at_once_where_the_reader_has_stalled() {
    let (sink, queue) = start(Format::Text);
    sink.change(|inner| inner.shut = true);
    queue.push(b"one\n");
    let started = Instant::now();
    queue.flush(Some(Duration::from_millis(50)));
    assert!(started.elapsed() >= Duration::from_millis(50));
    until(&queue, |health| matches!(health, LogHealth::Stalled { .. }));
    let started = Instant::now();
    queue.flush(Some(LONG));
    assert!(started.elapsed() < LONG / 2);
    sink.change(|inner| inner.shut = false);
    queue.flush(None);
    assert_eq!(sink.text(), "one\n");
}

#[test]
fn a_single_text_larger_than_the_queue_passes_where_nothing_waits() {
    let (sink, queue) = start(Format::Text);
    let text = "x\n".repeat(MAX_PENDING);
    queue.push(text.as_bytes());
    queue.flush(None);
    assert_eq!(sink.text().len(), text.len());
}
