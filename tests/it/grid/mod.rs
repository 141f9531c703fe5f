//! The grid of faults: what can happen to the shared store, to tokens of each age, with one node
//! and with three.
//!
//! One table, whose figures `docs/cluster.md` repeats. What WeChat itself does wrong stands in
//! other modules.

mod fleet;
mod netns;
mod outage;
mod road;
mod site;

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Mutex,
    time::Duration,
};

use tokio::{
    runtime::{Builder, Handle},
    time::{Instant, sleep_until},
};
use wxgate::sandbox::{DEFAULT_APPID, TokenKind};

use self::{
    fleet::{Calls, Fleet},
    site::{Fault, Site},
};
use crate::support::token_tools::eventually;

const RECORD: &str = "wxgate:{shop}";
/// How long a fault lasts at least: longer than nodes need to notice.
const HOLD: Duration = Duration::from_secs(3);
/// Cells that run at the same time.
const ABREAST: usize = 10;

const FAULTS: [Fault; 11] = [
    Fault::Down,
    Fault::Slow(200),
    Fault::Slow(5000),
    Fault::Paused,
    Fault::RequestsVanish,
    Fault::AnswersVanish,
    Fault::BothVanish,
    Fault::OneCutOff,
    Fault::FailOver,
    Fault::Flush,
    Fault::Evict,
];

/// What the token is worth when the fault begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Age {
    Valid,
    /// It has to be renewed while the fault lasts.
    NearExpiry,
    /// WeChat takes it no more, and there is no other one anywhere.
    Expired,
}

#[derive(Debug, Clone, Copy)]
struct Cell {
    fault: Fault,
    age: Age,
    nodes: usize,
}

struct Figures {
    calls: Calls,
    normal: u64,
    forced: u64,
    recovery: Duration,
    /// How often a caller saw a token come back.
    returns: usize,
}

#[test]
fn no_fault_of_the_store_costs_a_call_or_more_fetches_than_promised_whatever_the_age_of_the_token()
{
    let ages = [Age::Valid, Age::NearExpiry, Age::Expired];
    let cells: Vec<_> = FAULTS
        .into_iter()
        .flat_map(|fault| ages.map(|age| (fault, age)))
        .flat_map(|(fault, age)| [1, 3].map(|nodes| Cell { fault, age, nodes }))
        .filter(|cell| cell.fault != Fault::OneCutOff || cell.nodes > 1)
        .collect();
    let results = run_all(&cells);
    print(&cells, &results);
    let complaints: Vec<_> = cells
        .iter()
        .zip(&results)
        .flat_map(|(cell, result)| {
            match result {
                Ok(figures) => cell.complaints(figures),
                Err(panic) => vec![panic.clone()],
            }
            .into_iter()
            .map(move |complaint| format!("{cell:?}: {complaint}"))
        })
        .collect();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

/// A few at a time, each on a thread of its own.
fn run_all(cells: &[Cell]) -> Vec<Result<Figures, String>> {
    let background = Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()
        .expect("threads");
    let waiting: Mutex<VecDeque<usize>> = Mutex::new((0..cells.len()).collect());
    let results: Mutex<Vec<_>> = Mutex::new(cells.iter().map(|_| None).collect());
    std::thread::scope(|scope| {
        for _ in 0..ABREAST {
            scope.spawn(|| {
                loop {
                    let next = waiting.lock().expect("no panic").pop_front();
                    let Some(n) = next else { return };
                    let run = || {
                        let runtime = Builder::new_current_thread()
                            .enable_all()
                            .build()
                            .expect("a runtime");
                        runtime.block_on(cells[n].run(background.handle()))
                    };
                    let result = catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
                        panic
                            .downcast_ref::<String>()
                            .cloned()
                            .unwrap_or_else(|| "it panicked".to_owned())
                    });
                    results.lock().expect("no panic")[n] = Some(result);
                }
            });
        }
    });
    background.shutdown_background();
    let results = results.into_inner().expect("no panic");
    results
        .into_iter()
        .map(|result| result.expect("each has run"))
        .collect()
}

impl Cell {
    async fn run(self, background: &Handle) -> Figures {
        if self.age != Age::NearExpiry {
            return self
                .attempt(background, None)
                .await
                .expect("nothing is due");
        }
        // On a slow machine the token may have been renewed before the fault began.
        for life in [12, 24, 48] {
            if let Some(figures) = self.attempt(background, Some(life)).await {
                return figures;
            }
        }
        panic!("this machine needs more than 20 s to start three nodes");
    }

    /// Nothing, when the token was replaced too soon.
    async fn attempt(self, background: &Handle, life: Option<u64>) -> Option<Figures> {
        let mut site = Site::open(self.fault, self.nodes).await;
        let urls = (0..self.nodes).map(|n| site.url(n)).collect();
        let fleet = Fleet::start(background, urls, life).await;
        let control = fleet.control();
        if let Some(life) = life {
            control.set_remaining(DEFAULT_APPID, Duration::from_secs(life));
        }
        let load = fleet.load();
        let before = fleet.rows().await;
        if before
            .iter()
            .any(|row| row != &before[0] || row.generation != 1)
        {
            load.end().await;
            assert!(life.is_some(), "{before:?}");
            return None;
        }
        let renewed = async || {
            fleet
                .rows()
                .await
                .iter()
                .zip(&before)
                .all(|(now, then)| now.fingerprint != then.fingerprint)
        };
        let began = Instant::now();
        site.strike(self.fault).await;
        if self.age == Age::Expired {
            control.expire(DEFAULT_APPID);
        }
        if control.fetches() > 1 && self.age == Age::NearExpiry {
            load.end().await;
            return None;
        }
        if !self.fault.is_an_event() {
            sleep_until(began + HOLD).await;
            if self.age != Age::Valid {
                eventually("each node has another token", renewed).await;
            }
        }
        site.heal(self.fault).await;
        let recovery = recovered(&site, &fleet).await;
        if self.age != Age::Valid {
            eventually("each node has another token", renewed).await;
        }
        eventually("all have the same", async || {
            let rows = fleet.rows().await;
            rows.iter().all(|row| *row == rows[0])
        })
        .await;
        let calls = load.end().await;
        let forced = control.forced();
        let normal = control.fetches() - forced - 1;
        Some(Figures {
            calls,
            normal,
            forced,
            recovery,
            returns: fleet.returns(),
        })
    }

    /// What is not as it should be.
    fn complaints(self, figures: &Figures) -> Vec<String> {
        let mut complaints = Vec::new();
        let mut expect = |fine: bool, what: String| {
            if !fine {
                complaints.push(what);
            }
        };
        let Figures {
            calls,
            normal,
            forced,
            recovery,
            returns,
        } = figures;
        expect(
            calls.failures.is_empty(),
            format!(
                "{} calls failed: {:?}",
                calls.failures.len(),
                calls.failures.first()
            ),
        );
        let (least, most) = match self.age {
            Age::Valid => (0, 0),
            Age::NearExpiry | Age::Expired => (1, self.fault.fetches(self.nodes as u64)),
        };
        expect(
            (least..=most).contains(normal) && *forced == 0,
            format!("{normal} fetches, {forced} forced, {most} are bearable"),
        );
        expect(
            *recovery <= self.fault.recovery(),
            format!("shared again after {recovery:?}"),
        );
        expect(
            calls.backwards == 0 && *returns == 0,
            format!(
                "{} generations, {returns} tokens went back",
                calls.backwards
            ),
        );
        expect(calls.served > 0, "nobody called".to_owned());
        complaints
    }
}

/// From now until the record holds the current token, and each node has heard what another one
/// writes.
async fn recovered(site: &Site, fleet: &Fleet) -> Duration {
    let healed = Instant::now();
    eventually("the record holds the current token", async || {
        let token = fleet
            .control()
            .current_token(DEFAULT_APPID, TokenKind::Stable)
            .expect("a token");
        let record: Option<Vec<u8>> = site.server().run(&["GET", RECORD]);
        record.is_some_and(|record| String::from_utf8_lossy(&record).contains(&token))
    })
    .await;
    site.mark().await;
    eventually("each node hears of a change", async || {
        fleet.rows().await.iter().all(|row| row.forced_left == 5)
    })
    .await;
    healed.elapsed()
}

fn print(cells: &[Cell], results: &[Result<Figures, String>]) {
    println!(
        "{:<22} {:<11} {:>5} {:>6} {:>8} {:>8} {:>7} {:>9} {:>12}",
        "fault",
        "token",
        "nodes",
        "calls",
        "failures",
        "fetches",
        "forced",
        "recovery",
        "longest call"
    );
    for (Cell { fault, age, nodes }, result) in cells.iter().zip(results) {
        let (fault, age) = (fault.name(), format!("{age:?}"));
        match result {
            Ok(Figures {
                calls,
                normal,
                forced,
                recovery,
                ..
            }) => println!(
                "{fault:<22} {age:<11} {nodes:>5} {:>6} {:>8} {normal:>8} {forced:>7} {:>7} ms {:>9} ms",
                calls.served,
                calls.failures.len(),
                recovery.as_millis(),
                calls.longest.as_millis()
            ),
            Err(panic) => println!("{fault:<22} {age:<11} {nodes:>5} {panic}"),
        }
    }
}
