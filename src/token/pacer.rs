//! The pace of first fetches: a thousand accounts that start at once must not call their API host a
//! thousand times at once.
//!
//! Each account without a token waits for a turn at its API host. Accounts that a request waits for
//! are served first, the rest slowly. Knows neither tokens nor HTTP.

use std::{
    collections::{HashMap, VecDeque},
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

/// Time between two turns at one host. Stays below 20 a second also where calls arrive closer
/// together than they were sent.
const SPACING: Duration = Duration::from_millis(55);
/// Time between two turns of accounts that no request waits for: 5 a second.
const IDLE_SPACING: Duration = Duration::from_millis(200);
/// How long a turn is kept for an account that does not take it at once.
const TURN_LIFE: Duration = Duration::from_secs(1);

/// The API hosts with accounts. Cheap to clone; clones share the pace.
#[derive(Debug, Clone, Default)]
pub struct Pacer(Arc<Mutex<HashMap<String, Arc<HostPace>>>>);

/// The turns of one account. The default is always granted.
#[derive(Debug, Default)]
pub struct Turn(Option<Arc<Waiter>>);

#[derive(Debug)]
struct HostPace {
    line: Mutex<TurnQueue>,
    /// Tells the dispatcher that an account moved ahead.
    hurried: Notify,
}

/// Accounts that wait for a turn at one host.
#[derive(Debug)]
struct TurnQueue {
    asked: VecDeque<QueueEntry>,
    rest: VecDeque<QueueEntry>,
    /// The next turn comes not before this.
    next: Instant,
    /// The next turn of the rest comes not before this.
    next_rest: Instant,
    entries: u64,
    /// A task hands out turns as their time comes. There is one only while somebody waits.
    dispatched: bool,
}

/// A place in the line. It counts only while its seat names the same entry, so that leaving and
/// moving ahead need no search in a queue.
#[derive(Debug)]
struct QueueEntry {
    seat: Weak<Waiter>,
    number: u64,
}

#[derive(Debug)]
struct Waiter {
    host: Arc<HostPace>,
    /// A request waits for the account's token.
    asked: AtomicBool,
    /// Locked only while the line is.
    place: Mutex<WaiterState>,
    granted: Notify,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WaiterState {
    Away,
    Waiting { number: u64 },
    Granted { at: Instant },
}

impl Pacer {
    /// The turns of one more account at this host.
    pub(crate) fn turn(&self, host: &str) -> Turn {
        let mut hosts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let host = hosts.entry(host.to_owned()).or_default();
        Turn(Some(Arc::new(Waiter {
            host: Arc::clone(host),
            asked: AtomicBool::new(false),
            place: Mutex::new(WaiterState::Away),
            granted: Notify::new(),
        })))
    }
}

impl Turn {
    /// Resolves at `at`; where the account has no token yet (`first`), at its turn after that. Can
    /// be cancelled and called again without losing the place in the line.
    pub(crate) async fn due(&self, at: Instant, first: bool) {
        if let Some(seat) = self.0.as_ref().filter(|_| !first) {
            seat.leave();
        }
        sleep_until(at).await;
        if let Some(seat) = self.0.as_ref().filter(|_| first) {
            seat.granted().await;
        }
    }

    /// Moves the account ahead of those that no request waits for.
    pub(crate) fn hurry(&self) {
        if let Some(seat) = &self.0
            && !seat.asked.load(Relaxed)
        {
            seat.hurry();
        }
    }
}

impl Waiter {
    async fn granted(self: &Arc<Self>) {
        loop {
            let mut granted = pin!(self.granted.notified());
            // Registered before the look, so that a turn between the two is not missed.
            granted.as_mut().enable();
            if self.take() {
                return;
            }
            granted.await;
        }
    }

    /// Takes the turn if it was granted, else waits in the line.
    fn take(self: &Arc<Self>) -> bool {
        let now = Instant::now();
        let mut line = self.host.line();
        let place = *self.place();
        match place {
            WaiterState::Waiting { .. } => return false,
            WaiterState::Granted { at } if now.duration_since(at) < TURN_LIFE => {}
            WaiterState::Granted { .. } | WaiterState::Away => {
                line.enter(self);
                line.grant(now);
                if matches!(*self.place(), WaiterState::Waiting { .. }) {
                    if !std::mem::replace(&mut line.dispatched, true) {
                        tokio::spawn(Arc::clone(&self.host).dispatch());
                    }
                    return false;
                }
            }
        }
        *self.place() = WaiterState::Away;
        self.asked.store(false, Relaxed);
        true
    }

    fn leave(&self) {
        let _line = self.host.line();
        *self.place() = WaiterState::Away;
        self.asked.store(false, Relaxed);
    }

    fn hurry(self: &Arc<Self>) {
        let mut line = self.host.line();
        self.asked.store(true, Relaxed);
        let waits = matches!(*self.place(), WaiterState::Waiting { .. });
        if waits {
            line.enter(self);
            // The dispatcher may sleep until the next turn of the rest.
            self.host.hurried.notify_one();
        }
    }

    fn place(&self) -> MutexGuard<'_, WaiterState> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HostPace {
    fn line(&self) -> MutexGuard<'_, TurnQueue> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands out turns until nobody waits.
    async fn dispatch(self: Arc<Self>) {
        loop {
            let next = {
                let mut line = self.line();
                let next = line.grant(Instant::now());
                line.dispatched = next.is_some();
                next
            };
            let Some(next) = next else { return };
            tokio::select! {
                () = sleep_until(next) => {}
                () = self.hurried.notified() => {}
            }
        }
    }
}

impl Default for HostPace {
    fn default() -> Self {
        let now = Instant::now();
        Self {
            line: Mutex::new(TurnQueue {
                asked: VecDeque::new(),
                rest: VecDeque::new(),
                next: now,
                next_rest: now,
                entries: 0,
                dispatched: false,
            }),
            hurried: Notify::new(),
        }
    }
}

impl TurnQueue {
    /// Puts the seat at the end of its queue, and takes it out of the other one.
    fn enter(&mut self, seat: &Arc<Waiter>) {
        self.entries += 1;
        let number = self.entries;
        *seat.place() = WaiterState::Waiting { number };
        let seat_ref = Arc::downgrade(seat);
        let queue = if seat.asked.load(Relaxed) {
            &mut self.asked
        } else {
            &mut self.rest
        };
        queue.push_back(QueueEntry {
            seat: seat_ref,
            number,
        });
    }

    /// Grants the turns that are due; the time of the next one, if somebody still waits.
    fn grant(&mut self, now: Instant) -> Option<Instant> {
        loop {
            let (seat, due, is_rest) = if let Some(seat) = first(&mut self.asked) {
                (seat, self.next, false)
            } else {
                (first(&mut self.rest)?, self.next.max(self.next_rest), true)
            };
            if due > now {
                return Some(due);
            }
            self.next = now + SPACING;
            if is_rest {
                self.next_rest = now + IDLE_SPACING;
            }
            *seat.place() = WaiterState::Granted { at: now };
            seat.granted.notify_waiters();
        }
    }
}

/// The first seat that still waits in this queue; entries before it are dropped.
fn first(queue: &mut VecDeque<QueueEntry>) -> Option<Arc<Waiter>> {
    while let Some(entry) = queue.front() {
        let number = entry.number;
        let waits = |seat: &Arc<Waiter>| *seat.place() == WaiterState::Waiting { number };
        if let Some(seat) = entry.seat.upgrade().filter(waits) {
            return Some(seat);
        }
        queue.pop_front();
    }
    None
}

#[cfg(test)]
mod tests {
    use tokio::{sync::mpsc, time::advance};

    use super::*;

    /// Starts `count` accounts at a host. What comes back are their numbers and times as they get
    /// their turns.
    fn accounts(
        pacer: &Pacer,
        host: &str,
        count: usize,
    ) -> (Vec<Arc<Turn>>, mpsc::UnboundedReceiver<(usize, Instant)>) {
        let (tell, told) = mpsc::unbounded_channel();
        let turns: Vec<_> = (0..count).map(|_| Arc::new(pacer.turn(host))).collect();
        for (number, turn) in turns.iter().cloned().enumerate() {
            let tell = tell.clone();
            tokio::spawn(async move {
                turn.due(Instant::now(), true).await;
                let _ = tell.send((number, Instant::now()));
            });
        }
        (turns, told)
    }

    /// Most turns in any second.
    fn peak(times: &[Instant]) -> usize {
        let second = Duration::from_secs(1);
        let within = |from: Instant| {
            let window = from..from + second;
            times.iter().filter(|at| window.contains(*at)).count()
        };
        times.iter().map(|from| within(*from)).max().unwrap_or(0)
    }

    async fn all(told: &mut mpsc::UnboundedReceiver<(usize, Instant)>) -> Vec<(usize, Instant)> {
        let mut turns = Vec::new();
        while let Some(turn) = told.recv().await {
            turns.push(turn);
        }
        turns
    }

    #[tokio::test(start_paused = true)]
    async fn the_rest_takes_five_turns_a_second_in_order() {
        let begun = Instant::now();
        let (_turns, mut told) = accounts(&Pacer::default(), "h", 1000);
        let turns = all(&mut told).await;
        let times: Vec<_> = turns.iter().map(|(_, at)| *at).collect();
        assert_eq!(
            turns.iter().map(|(n, _)| *n).collect::<Vec<_>>(),
            (0..1000).collect::<Vec<_>>()
        );
        assert_eq!(times[0], begun, "a sole account does not wait");
        assert!(peak(&times) <= 5, "{}", peak(&times));
        let took = times[999] - begun;
        assert!((199..=210).contains(&took.as_secs()), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn accounts_that_are_asked_for_go_ahead_at_no_more_than_twenty_a_second() {
        let begun = Instant::now();
        let (turns, mut told) = accounts(&Pacer::default(), "h", 1000);
        told.recv().await;
        for turn in &turns[900..] {
            turn.hurry();
            turn.hurry();
        }
        let turns = all(&mut told).await;
        let times: Vec<_> = turns.iter().map(|(_, at)| *at).collect();
        assert!(peak(&times) <= 20, "{}", peak(&times));
        let first: Vec<_> = turns.iter().take(100).map(|(n, _)| *n).collect();
        assert_eq!(first, (900..1000).collect::<Vec<_>>());
        let took = times[99] - begun;
        assert!(took <= Duration::from_secs(6), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_account_that_is_asked_for_wakes_the_dispatcher() {
        let (turns, mut told) = accounts(&Pacer::default(), "h", 3);
        let (_, first) = told.recv().await.unwrap();
        tokio::task::yield_now().await;
        turns[2].hurry();
        assert_eq!(told.recv().await.unwrap(), (2, first + SPACING));
        assert_eq!(told.recv().await.unwrap(), (1, first + IDLE_SPACING));
    }

    #[tokio::test(start_paused = true)]
    async fn hosts_do_not_wait_for_each_other_and_a_second_fetch_for_nobody() {
        let begun = Instant::now();
        let pacer = Pacer::default();
        let (_a, mut at_a) = accounts(&pacer, "a", 1);
        let (_b, mut at_b) = accounts(&pacer.clone(), "b", 2);
        assert_eq!(at_a.recv().await.unwrap().1, begun);
        assert_eq!(at_b.recv().await.unwrap().1, begun);
        let other = pacer.turn("b");
        other.due(begun, false).await;
        Turn::default().due(begun, true).await;
        assert_eq!(Instant::now(), begun);
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_wait_keeps_its_place_and_an_account_that_is_gone_takes_none() {
        let pacer = Pacer::default();
        let now = Instant::now();
        let (first, gone, second) = (pacer.turn("h"), pacer.turn("h"), pacer.turn("h"));
        first.due(now, true).await;
        for turn in [&gone, &second, &first] {
            let wait = tokio::time::timeout(Duration::from_millis(10), turn.due(now, true));
            assert!(wait.await.is_err());
        }
        drop(gone);
        second.due(now, true).await;
        assert_eq!(Instant::now(), now + IDLE_SPACING);
        // Its token came from elsewhere: the next one need not wait for it.
        first.due(now, false).await;
        let third = pacer.turn("h");
        third.due(now, true).await;
        assert_eq!(Instant::now(), now + 2 * IDLE_SPACING);
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_was_not_taken_in_time_is_lost() {
        let pacer = Pacer::default();
        let (first, late) = (pacer.turn("h"), pacer.turn("h"));
        let now = Instant::now();
        first.due(now, true).await;
        let wait = tokio::time::timeout(Duration::from_millis(10), late.due(now, true));
        assert!(wait.await.is_err());
        advance(Duration::from_secs(3600)).await;
        tokio::task::yield_now().await;
        first.due(now, true).await;
        let before = Instant::now();
        late.due(now, true).await;
        assert!(before.elapsed() <= IDLE_SPACING);
    }
}
