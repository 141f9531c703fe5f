//! Random interleavings of requests and the task of the refresher: one dead token, one fetch.
//!
//! The refresher is the real one. shuttle schedules its threads: one for each request, and one for
//! the runtime of the refresher's task, a millisecond at a time. A switch happens only where a
//! future waits; one poll is never interrupted.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use shuttle::{Config, Runner, rand::Rng as _, scheduler::RandomScheduler, thread};

use super::*;

/// Number of interleavings.
const ORDERS: usize = 1_000;
/// Number of concurrent requests.
const CALLERS: usize = 5;

/// Outcome of a run.
struct Run {
    outcomes: Vec<Outcome>,
    fetches: usize,
    forced: usize,
}

/// Runs requests that all find the token dead. Meanwhile `deaths` more tokens die.
fn run(kind: ProviderKind, deaths: usize) -> Run {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let bench = Arc::new(runtime.block_on(Bench::ready(kind)));
    bench
        .world
        .with(|state| state.delay = Duration::from_millis(3));
    let (before, forced) = (bench.world.fetches(), bench.world.forced());
    bench.world.revoke();
    let within = runtime.enter();
    let running = Arc::new(AtomicUsize::new(CALLERS));
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let (bench, running) = (Arc::clone(&bench), Arc::clone(&running));
            thread::spawn(move || {
                let token = bench.refresher.token().unwrap();
                // The rejection takes a while; other requests may have replaced the token by then.
                (0..shuttle::rand::thread_rng().gen_range(0..6)).for_each(|_| thread::yield_now());
                let outcome = shuttle::future::block_on(bench.call_with(&token, "/a", |_| false));
                running.fetch_sub(1, SeqCst);
                outcome
            })
        })
        .collect();
    let mut left = deaths;
    while running.load(SeqCst) > 0 {
        runtime.block_on(sleep(Duration::from_millis(1)));
        if left > 0 && shuttle::rand::thread_rng().gen_bool(0.2) {
            left -= 1;
            bench.world.revoke();
        }
        thread::yield_now();
    }
    let outcomes = callers
        .into_iter()
        .map(|caller| caller.join().unwrap())
        .collect();
    drop(within);
    Run {
        outcomes,
        fetches: bench.world.fetches() - before,
        forced: bench.world.forced() - forced,
    }
}

fn in_many_orders(check: impl Fn() + Send + Sync + 'static) {
    let mut config = Config::new();
    config.stack_size = 1 << 20;
    Runner::new(RandomScheduler::new_from_seed(7, ORDERS), config).run(check);
}

#[test]
fn a_dead_token_is_replaced_once_in_whatever_order_requests_and_refresher_run() {
    for kind in [ProviderKind::Stable, ProviderKind::Classic] {
        in_many_orders(move || {
            let run = run(kind, 0);
            let cured = |outcome: &Outcome| matches!(outcome, Outcome::Ok { .. });
            assert!(run.outcomes.iter().all(cured), "{:?}", run.outcomes);
            assert_eq!((run.fetches, run.forced), (1, 0));
        });
    }
}

#[test]
fn a_token_that_dies_again_meanwhile_costs_one_fetch_more_and_leaves_nobody_waiting() {
    in_many_orders(|| {
        let run = run(ProviderKind::Classic, 1);
        // A replay whose token died on the way gives back WeChat's answer. All others succeed.
        let answered = |outcome: &Outcome| {
            matches!(
                outcome,
                Outcome::Ok { .. } | Outcome::Stale { calls: 2, .. }
            ) || matches!(
                outcome,
                Outcome::Stale {
                    reason: "backoff",
                    ..
                }
            )
        };
        assert!(run.outcomes.iter().all(answered), "{:?}", run.outcomes);
        assert!(
            run.fetches <= 2 && run.forced == 0,
            "{} fetches",
            run.fetches
        );
    });
}
