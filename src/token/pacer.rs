//! Pacer of first fetches: a thousand accounts that start together must not call their API host a
//! thousand times at once.
//!
//! Each account without a token waits for a turn at its API host. Accounts that a request waits for
//! come first, all others slowly. The fetch itself is left to the refresher.

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

/// Pace of each API host, by authority. Cheap to clone; clones share the pace.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pacer(Arc<Mutex<HashMap<String, Arc<HostPace>>>>);

/// Handle of one account for its turns. The default handle gets every turn at once.
#[derive(Debug, Default)]
pub struct Turn(Option<Arc<Waiter>>);

#[derive(Debug)]
struct HostPace {
    queue: Mutex<TurnQueue>,
    /// Wakes the dispatcher after an account moved ahead.
    hurried: Notify,
}

/// Accounts that wait for a turn at one host: `asked` those that a request waits for, `rest` all
/// others.
#[derive(Debug)]
struct TurnQueue {
    asked: VecDeque<QueueEntry>,
    rest: VecDeque<QueueEntry>,
    /// Earliest time of the next turn.
    next: Instant,
    /// Earliest time of the next turn of `rest`.
    next_rest: Instant,
    /// Number of the last entry.
    entries: u64,
    /// Set while a task grants turns, which is as long as an account waits.
    dispatched: bool,
}

/// Entry in a queue. Valid only while the waiter still has its number, so that leaving and moving
/// ahead need no search in a queue.
#[derive(Debug)]
struct QueueEntry {
    waiter: Weak<Waiter>,
    number: u64,
}

/// Account at its API host.
#[derive(Debug)]
struct Waiter {
    host: Arc<HostPace>,
    /// Set while a request waits for the account's token.
    asked: AtomicBool,
    /// Lock order: `HostPace::queue` first.
    state: Mutex<WaiterState>,
    granted: Notify,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WaiterState {
    Idle,
    Waiting { number: u64 },
    Granted { at: Instant },
}

/// Time between two turns at one host: fewer than 20 a second, also if calls arrive closer together
/// than they were sent.
const SPACING: Duration = Duration::from_millis(55);
/// Time between two turns of accounts that no request waits for: 5 a second.
const IDLE_SPACING: Duration = Duration::from_millis(200);
/// Time after which a turn that was not taken is lost.
const TURN_LIFE: Duration = Duration::from_secs(1);

impl Pacer {
    /// Handle for one more account at this host.
    pub(crate) fn turn(&self, host: &str) -> Turn {
        let mut hosts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let host = hosts.entry(host.to_owned()).or_default();
        Turn(Some(Arc::new(Waiter {
            host: Arc::clone(host),
            asked: AtomicBool::new(false),
            state: Mutex::new(WaiterState::Idle),
            granted: Notify::new(),
        })))
    }
}

impl Turn {
    /// Resolves at `at`; if the account has no token yet (`first`), at its turn after that. Can be
    /// cancelled and called again without losing the position in the queue.
    pub(crate) async fn due(&self, at: Instant, first: bool) {
        if let Some(waiter) = &self.0
            && !first
        {
            waiter.leave();
        }
        sleep_until(at).await;
        if let Some(waiter) = &self.0
            && first
        {
            waiter.granted().await;
        }
    }

    /// Moves the account ahead of those that no request waits for.
    pub(crate) fn hurry(&self) {
        // Without the lock: requests call this for every wait, and only the first one matters.
        if let Some(waiter) = &self.0
            && !waiter.asked.load(Relaxed)
        {
            waiter.hurry();
        }
    }
}

impl Waiter {
    async fn granted(self: &Arc<Self>) {
        loop {
            let mut granted = pin!(self.granted.notified());
            // Registered before `take`, so that a turn that is granted in between is not missed.
            granted.as_mut().enable();
            if self.take() {
                return;
            }
            granted.await;
        }
    }

    /// Takes the turn if it was granted, else enters the queue. Returns true if taken.
    fn take(self: &Arc<Self>) -> bool {
        let now = Instant::now();
        let mut queue = self.host.queue();
        let state = *self.state();
        match state {
            WaiterState::Waiting { .. } => return false,
            WaiterState::Granted { at } if now.duration_since(at) < TURN_LIFE => {}
            WaiterState::Granted { .. } | WaiterState::Idle => {
                queue.enter(self);
                queue.grant(now);
                if matches!(*self.state(), WaiterState::Waiting { .. }) {
                    if !std::mem::replace(&mut queue.dispatched, true) {
                        tokio::spawn(Arc::clone(&self.host).dispatch());
                    }
                    return false;
                }
            }
        }
        *self.state() = WaiterState::Idle;
        self.asked.store(false, Relaxed);
        true
    }

    fn leave(&self) {
        let _queue = self.host.queue();
        *self.state() = WaiterState::Idle;
        self.asked.store(false, Relaxed);
    }

    fn hurry(self: &Arc<Self>) {
        let mut queue = self.host.queue();
        self.asked.store(true, Relaxed);
        let waits = matches!(*self.state(), WaiterState::Waiting { .. });
        if waits {
            queue.enter(self);
            // The dispatcher may sleep until the next turn of the rest.
            self.host.hurried.notify_one();
        }
    }

    fn state(&self) -> MutexGuard<'_, WaiterState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HostPace {
    fn queue(&self) -> MutexGuard<'_, TurnQueue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Grants turns until no account waits.
    async fn dispatch(self: Arc<Self>) {
        loop {
            let next = {
                let mut queue = self.queue();
                let next = queue.grant(Instant::now());
                queue.dispatched = next.is_some();
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
            queue: Mutex::new(TurnQueue {
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
    /// Puts the waiter at the end of its queue. An older entry becomes invalid by the new number.
    fn enter(&mut self, waiter: &Arc<Waiter>) {
        self.entries += 1;
        let number = self.entries;
        *waiter.state() = WaiterState::Waiting { number };
        let weak = Arc::downgrade(waiter);
        let queue = if waiter.asked.load(Relaxed) {
            &mut self.asked
        } else {
            &mut self.rest
        };
        queue.push_back(QueueEntry {
            waiter: weak,
            number,
        });
    }

    /// Grants the turns that are due. Returns the time of the next turn, if an account still waits.
    fn grant(&mut self, now: Instant) -> Option<Instant> {
        loop {
            let (waiter, due, is_rest) = if let Some(waiter) = first(&mut self.asked) {
                (waiter, self.next, false)
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
            *waiter.state() = WaiterState::Granted { at: now };
            waiter.granted.notify_waiters();
        }
    }
}

/// Returns the first valid waiter of a queue, and drops the invalid entries before it.
fn first(queue: &mut VecDeque<QueueEntry>) -> Option<Arc<Waiter>> {
    while let Some(entry) = queue.front() {
        let number = entry.number;
        if let Some(waiter) = entry.waiter.upgrade()
            && *waiter.state() == (WaiterState::Waiting { number })
        {
            return Some(waiter);
        }
        queue.pop_front();
    }
    None
}

#[cfg(test)]
mod tests {
    use tokio::{sync::mpsc, time::advance};

    use super::*;

    /// Starts `count` accounts at a host, and receives number and time of each turn.
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

    /// Largest number of turns in any second.
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
        // The account got its token by another way, so the next account need not wait for it.
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
