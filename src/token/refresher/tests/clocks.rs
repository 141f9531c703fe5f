//! Wall clocks that jump, stand still or differ between nodes, and machines that slept.
//!
//! The monotonic clock of these tests is the paused clock of tokio, so both clocks can be moved
//! apart.

use std::sync::atomic::{AtomicI64, Ordering};

use super::{nodes::node, *};

const HOUR_MS: i64 = 3_600_000;
const YEAR_MS: i64 = 8766 * HOUR_MS;
/// Jumps of a clock: by hours, by years, and to before 1970.
const JUMPS: [i64; 6] = [
    2 * HOUR_MS,
    -2 * HOUR_MS,
    10 * YEAR_MS,
    -10 * YEAR_MS,
    60 * YEAR_MS,
    -70 * YEAR_MS,
];

/// Nodes on one store, each with a wall clock of its own.
struct Clocks {
    world: Arc<World>,
    store: Arc<MemoryStore>,
    nodes: Vec<Bench>,
    hands: Vec<&'static AtomicI64>,
}

impl Clocks {
    /// Nodes whose clocks are ahead by these milliseconds, after one request each.
    async fn ready(kind: ProviderKind, ahead: &[i64]) -> Self {
        let (world, store) = (World::new(kind), Arc::new(MemoryStore::shared()));
        let mut clocks = Self {
            world,
            store,
            nodes: Vec::new(),
            hands: Vec::new(),
        };
        for ahead in ahead {
            let (clock, hand) = WallClock::movable(NOON_MS);
            hand.store(*ahead, Ordering::Relaxed);
            let store = Arc::clone(&clocks.store) as Arc<dyn TokenStore>;
            clocks.nodes.push(node(&clocks.world, store, clock));
            clocks.hands.push(hand);
            sleep(secs(1)).await;
        }
        clocks.use_for(secs(60)).await;
        clocks
    }

    /// Makes a call on every node every second. No call may fail, and no reader may wait.
    async fn use_for(&self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            for node in &self.nodes {
                let outcome = node.call("/a").await;
                assert!(
                    matches!(outcome, Outcome::Ok { .. }),
                    "{outcome:?} {:?}",
                    self.nodes
                        .iter()
                        .map(|node| node.refresher.status())
                        .collect::<Vec<_>>()
                );
            }
            sleep(secs(1)).await;
        }
    }

    /// Number of fetches while `act` runs.
    async fn cost(&self, act: impl Future<Output = ()>) -> usize {
        let before = self.world.fetches();
        act.await;
        self.world.fetches() - before
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_jumps_costs_at_most_one_fetch_and_no_call() {
    for kind in [ProviderKind::Stable, ProviderKind::Classic] {
        for jump in JUMPS {
            let clocks = Clocks::ready(kind, &[0]).await;
            clocks.hands[0].store(jump, Ordering::Relaxed);
            let cost = clocks.cost(clocks.use_for(secs(3600))).await;
            assert!(cost <= 1, "{kind:?}, {jump}: {cost} fetches");
            clocks.hands[0].store(0, Ordering::Relaxed);
            let cost = clocks.cost(clocks.use_for(secs(1800))).await;
            assert!(cost <= 1, "{kind:?}, {jump} and back: {cost} fetches");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn clocks_that_jump_on_all_nodes_or_on_one_cost_at_most_one_fetch_and_no_call() {
    for kind in [ProviderKind::Stable, ProviderKind::Classic] {
        for jump in JUMPS {
            for jumping in [1, 3] {
                let clocks = Clocks::ready(kind, &[0, 0, 0]).await;
                clocks.hands[..jumping]
                    .iter()
                    .for_each(|hand| hand.store(jump, Ordering::Relaxed));
                let cost = clocks.cost(clocks.use_for(secs(3600))).await;
                assert!(cost <= 1, "{kind:?}, {jump} on {jumping}: {cost} fetches");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nodes_whose_clocks_differ_a_little_share_a_token_all_day() {
    for kind in [ProviderKind::Stable, ProviderKind::Classic] {
        let clocks = Clocks::ready(kind, &[0, 290_000, -5_000]).await;
        let cost = clocks.cost(clocks.use_for(secs(6 * 3600))).await;
        assert!(cost <= 8, "{kind:?}: {cost} fetches in six hours");
    }
}

#[tokio::test(start_paused = true)]
async fn nodes_whose_clocks_differ_by_hours_still_answer_and_do_not_fetch_in_a_loop() {
    for kind in [ProviderKind::Stable, ProviderKind::Classic] {
        for ahead in [2 * HOUR_MS, -2 * HOUR_MS, 10 * YEAR_MS, -10 * YEAR_MS] {
            let clocks = Clocks::ready(kind, &[0, ahead, 0]).await;
            let day = clocks.cost(clocks.use_for(secs(3 * 3600))).await;
            clocks.world.revoke();
            let death = clocks.cost(clocks.use_for(secs(60))).await;
            assert!(day <= 2, "{kind:?}, {ahead}: {day} fetches in three hours");
            assert!(
                death <= 1,
                "{kind:?}, {ahead}: {death} fetches for one death"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_slept_for_three_hours_fetches_once_and_goes_on() {
    for kind in [ProviderKind::Stable, ProviderKind::Classic] {
        // The monotonic clock slept as well: the token looks good and is not.
        let clocks = Clocks::ready(kind, &[0, 0, 0]).await;
        clocks
            .hands
            .iter()
            .for_each(|hand| hand.store(3 * HOUR_MS, Ordering::Relaxed));
        clocks.world.with(State::expire);
        let cost = clocks.cost(clocks.use_for(secs(60))).await;
        assert_eq!(cost, 1, "{kind:?}: the monotonic clock slept");

        // It went on: all timers are due at once.
        let clocks = Clocks::ready(kind, &[0, 0, 0]).await;
        tokio::time::advance(secs(3 * 3600)).await;
        let cost = clocks.cost(clocks.use_for(secs(60))).await;
        assert_eq!(cost, 1, "{kind:?}: the monotonic clock went on");
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_starts_with_a_wrong_clock_fetches_once() {
    for kind in [ProviderKind::Stable, ProviderKind::Classic] {
        for jump in JUMPS {
            let clocks = Clocks::ready(kind, &[0]).await;
            let Clocks {
                world,
                store,
                nodes,
                ..
            } = clocks;
            drop(nodes);
            let (clock, hand) = WallClock::movable(NOON_MS);
            hand.store(jump, Ordering::Relaxed);
            let before = world.fetches();
            let late = node(&world, store, clock);
            for _ in 0..600 {
                assert!(matches!(late.call("/a").await, Outcome::Ok { .. }));
                sleep(secs(1)).await;
            }
            assert!(world.fetches() - before <= 1, "{kind:?}, {jump}");
        }
    }
}
