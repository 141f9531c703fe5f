//! Growth with client connections: memory per idle connection, and instructions per request.

use std::{thread, time::Duration};

use super::{plan::Plan, subject::Subject};
use crate::{Outcome, driver::Driver, world::World};

/// Connections that are active in turn.
const ACTIVE: usize = 32;
/// Requests per active connection.
const ROUNDS: usize = 30;
/// Time after which memory that is returned with a delay has been returned; wxgate closes idle
/// connections only after 70 s.
const REST: Duration = Duration::from_secs(5);

/// Prints the table.
pub(super) fn run(world: &World) -> Outcome {
    println!(
        "\nClient connections that have made a request; 32 of them, or all, go on asking in turn."
    );
    println!(
        "{:>12}{:>12}{:>16}{:>16}",
        "connections", "RSS, MiB", "KiB per idle", "instr per GET"
    );
    for connections in [1, 100, 1000, 5000, 10_000] {
        let (rss, each) = memory(world, connections)?;
        let spent = instructions(world, connections)?;
        println!("{connections:>12}{:>12}{each:>16.1}{spent:>16}", rss / 1024);
    }
    Ok(())
}

fn open(subject: &Subject, connections: usize) -> Outcome<Vec<Driver>> {
    let one = |_| {
        let mut driver = subject.connect()?;
        driver.get(1)?;
        Ok(driver)
    };
    (0..connections).map(one).collect()
}

#[allow(clippy::cast_precision_loss, reason = "KiB")]
fn memory(world: &World, connections: usize) -> Outcome<(u64, f64)> {
    let subject = Subject::start(world, &Plan::new())?;
    subject.connect()?.get(100)?;
    let before = subject.rss();
    let drivers = open(&subject, connections)?;
    thread::sleep(REST);
    let rss = subject.rss();
    drop(drivers);
    Ok((rss, (rss as f64 - before as f64) / connections as f64))
}

fn instructions(world: &World, connections: usize) -> Outcome<u64> {
    let subject = Subject::counted(world, &Plan::new())?;
    let mut drivers = open(&subject, connections)?;
    // Spread over early and late connections.
    let step = (connections / ACTIVE).max(1);
    let mut active: Vec<_> = drivers.iter_mut().step_by(step).take(ACTIVE).collect();
    let mut round = || active.iter_mut().try_for_each(|driver| driver.get(1));
    // By then the other connections are parked.
    thread::sleep(REST);
    round()?;
    let spent = subject.instructions(|| (0..ROUNDS).try_for_each(|_| round()))?;
    Ok(spent / (ROUNDS * active.len()) as u64)
}
