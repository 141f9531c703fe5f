//! Growth with accounts: instructions per request, memory per account, and the cost of idle time.

use std::{thread, time::Duration};

use super::{plan::Plan, subject::Subject};
use crate::{Outcome, workload, world::World};

/// Requests per point.
const REQUESTS: u32 = 1000;
/// Time without requests.
const QUIET: Duration = Duration::from_secs(15);

/// Prints the table.
pub(super) fn run(world: &World) -> Outcome {
    println!(
        "\nAccounts. The last one is asked, by prefix; kinstr: thousand instructions in user space."
    );
    println!(
        "{:>9}{:>16}{:>12}{:>14}{:>22}",
        "accounts", "instr per GET", "RSS, MiB", "KiB each", "idle, kinstr/minute"
    );
    let mut first = None;
    for accounts in [1, 10, 100, 1000] {
        let plan = Plan {
            accounts,
            ..Plan::new()
        };
        let (fresh, rss) = memory(world, &plan)?;
        let first = *first.get_or_insert((fresh, rss));
        #[allow(clippy::cast_precision_loss, reason = "KiB")]
        let each =
            |rss: u64, first: u64| (rss as f64 - first as f64) / (accounts.max(2) - 1) as f64;
        let subject = Subject::counted(world, &plan)?;
        let target = Plan::target(accounts - 1, workload::GET);
        let mut driver = subject.connect()?;
        let ask = |driver: &mut crate::driver::Driver, times| {
            (0..times).try_for_each(|_| driver.ask(&target).map(drop))
        };
        ask(&mut driver, 100)?;
        let spent = subject.instructions(|| ask(&mut driver, REQUESTS))?;
        let idle = subject.instructions(|| {
            thread::sleep(QUIET);
            Ok(())
        })?;
        println!(
            "{accounts:>9}{:>16}{:>12}{:>14.1}{:>14.1}{:>22}",
            spent / u64::from(REQUESTS),
            rss / 1024,
            each(rss, first.1),
            each(fresh, first.0),
            idle * 60 / QUIET.as_secs() / 1000
        );
    }
    Ok(())
}

/// Returns the memory in KiB before and after one request to each account.
fn memory(world: &World, plan: &Plan) -> Outcome<(u64, u64)> {
    let subject = Subject::start(world, plan)?;
    let mut driver = subject.connect()?;
    driver.ask(&Plan::target(0, workload::GET))?;
    let fresh = subject.rss();
    (0..plan.accounts)
        .try_for_each(|account| driver.ask(&Plan::target(account, workload::GET)).map(drop))?;
    Ok((fresh, subject.rss()))
}
