//! Event loop of the load generator.

use std::{io, time::Duration};

use rustix::{
    buffer::spare_capacity,
    event::{PollFd, PollFlags, Timespec, epoll, poll},
    fd::OwnedFd,
};
use tokio::time::Instant;

use super::{
    Options, Tally,
    connection::{Connection, Progress},
};

/// Time limit for requests that are under way at the end.
const MAX_WAIT_AT_END: Duration = Duration::from_secs(10);

/// Connections and figures of the event loop.
pub(super) struct Engine {
    epoll: OwnedFd,
    connections: Vec<Connection>,
    /// Connections without a request under way.
    free: Vec<usize>,
    request: Vec<u8>,
    port: u16,
    closes: bool,
    /// Time between two requests, in open loop.
    gap: Option<Duration>,
    duration: Duration,
    tally: Tally,
    latencies: Vec<u32>,
}

impl Engine {
    /// Opens the connections.
    pub(super) fn new(options: &Options) -> io::Result<Self> {
        let Options {
            workload,
            port,
            connections,
            seconds,
            key,
        } = options;
        let mut engine = Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            connections: Vec::new(),
            free: (0..*connections).rev().collect(),
            request: workload.request(key.as_deref()),
            port: *port,
            closes: workload.closes(),
            gap: workload.rate().map(|rate| Duration::from_secs(1) / rate),
            duration: Duration::from_secs(u64::from(*seconds)),
            tally: Tally::default(),
            latencies: Vec::new(),
        };
        for place in 0..*connections {
            let connection = engine.open(place)?;
            engine.connections.push(connection);
        }
        Ok(engine)
    }

    /// Runs for the configured time, then waits for the requests under way.
    pub(super) fn run(mut self) -> io::Result<(Tally, Vec<u32>)> {
        let (mut events, mut room) = (Vec::with_capacity(256), vec![0; 256 << 10]);
        let start = Instant::now();
        let end = start + self.duration;
        let mut next = start;
        while Instant::now() < end || (self.under_way() && Instant::now() < end + MAX_WAIT_AT_END) {
            self.send_what_is_due(&mut next, end);
            self.sleep(next, end)?;
            epoll::wait(
                &self.epoll,
                spare_capacity(&mut events),
                Some(&Timespec::default()),
            )?;
            for event in events.drain(..) {
                self.go_on(
                    usize::try_from(event.data.u64()).unwrap_or(usize::MAX),
                    &mut room,
                );
            }
        }
        self.tally.seconds = start.elapsed().as_secs_f64();
        self.tally.broken += self
            .connections
            .iter()
            .filter(|connection| connection.due.is_some())
            .count() as u64;
        Ok((self.tally, self.latencies))
    }

    fn under_way(&self) -> bool {
        self.free.len() < self.connections.len()
    }

    fn send_what_is_due(&mut self, next: &mut Instant, end: Instant) {
        loop {
            let now = Instant::now();
            if now >= end || (self.gap.is_some() && *next > now) {
                return;
            }
            let Some(place) = self.free.pop() else { return };
            let due = self.gap.map_or(now, |_| *next);
            if self.connections[place].send(&self.request, due).is_err() {
                self.breaks(place);
            }
            *next += self.gap.unwrap_or_default();
        }
    }

    /// Sleeps until a socket is ready or a request is due. The timeout of epoll is in milliseconds,
    /// which is too coarse.
    fn sleep(&self, next: Instant, end: Instant) -> io::Result<()> {
        let now = Instant::now();
        let longest = Duration::from_millis(100);
        let waits = self.gap.is_some() && !self.free.is_empty() && now < end;
        let sleep = if waits {
            next.saturating_duration_since(now).min(longest)
        } else {
            longest
        };
        let timeout = Timespec {
            tv_sec: 0,
            tv_nsec: i64::from(sleep.subsec_nanos()),
        };
        poll(
            &mut [PollFd::new(&self.epoll, PollFlags::IN)],
            Some(&timeout),
        )?;
        Ok(())
    }

    fn go_on(&mut self, place: usize, room: &mut [u8]) {
        let Some(connection) = self.connections.get_mut(place) else {
            return;
        };
        // The next request finds out that the connection was closed.
        let Some(due) = connection.due else { return };
        match connection.go_on(&self.request, room) {
            Ok(Progress::Waiting) => {}
            Ok(Progress::Answered(status)) => {
                connection.due = None;
                let latency = u32::try_from(due.elapsed().as_micros()).unwrap_or(u32::MAX);
                if (200..300).contains(&status) {
                    self.tally.requests += 1;
                    self.latencies.push(latency);
                } else {
                    self.tally.refused += 1;
                }
                if self.closes {
                    self.renew(place);
                }
                self.free.push(place);
            }
            Err(_) => self.breaks(place),
        }
    }

    fn breaks(&mut self, place: usize) {
        self.tally.broken += 1;
        self.renew(place);
        self.free.push(place);
    }

    fn renew(&mut self, place: usize) {
        match self.open(place) {
            Ok(connection) => self.connections[place] = connection,
            Err(_) => self.tally.broken += 1,
        }
    }

    fn open(&self, place: usize) -> io::Result<Connection> {
        let connection = Connection::open(self.port)?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        epoll::add(
            &self.epoll,
            &connection.stream,
            epoll::EventData::new_u64(place as u64),
            flags,
        )?;
        Ok(connection)
    }
}
