//! Growth with requests in flight to one account: to a slow WeChat, and uploads.

use std::{process::Command, thread, time::Duration};

use super::{plan::Plan, subject::Subject};
use crate::{
    Outcome,
    child::{Child, pinned},
    driver::Driver,
    readings,
    world::World,
};

/// Delay of the upstream in milliseconds.
const SLOW: u64 = 400;
/// Requests per point, about.
const REQUESTS: usize = 400;

/// Prints the tables.
pub(super) fn run(world: &World) -> Outcome {
    println!(
        "\nRequests in flight to one account; the upstream takes {SLOW} ms. Connections included, both sides."
    );
    println!(
        "{:>12}{:>20}{:>16}",
        "in flight", "KiB per request", "instr per GET"
    );
    for count in [1, 10, 50, 200] {
        println!(
            "{count:>12}{:>20.1}{:>16.0}",
            memory(world, count)?,
            instructions(world, count)?
        );
    }
    println!("\nUploads of 10 MiB in flight, each copied for a replay. Growth of the highest RSS.");
    println!(
        "{:>12}{:>12}{:>16}",
        "in flight", "RSS, MiB", "MiB per upload"
    );
    for count in [1, 4, 16] {
        uploads(world, count)?;
    }
    Ok(())
}

fn target() -> String {
    format!("/cgi-bin/bench/slow?ms={SLOW}")
}

fn connect(subject: &Subject, count: usize) -> Outcome<Vec<Driver>> {
    (0..count).map(|_| subject.connect()).collect()
}

/// Sends a request over each connection; `between` runs while they are in flight.
fn batch(drivers: &mut [Driver], between: impl FnOnce()) -> Outcome {
    let target = target();
    drivers
        .iter_mut()
        .try_for_each(|driver| driver.send(&target))?;
    between();
    drivers
        .iter_mut()
        .try_for_each(|driver| driver.receive().map(drop))
}

/// Returns the memory in KiB. Takes several batches, since the first has to open connections.
#[allow(clippy::cast_precision_loss, reason = "KiB")]
fn memory(world: &World, count: usize) -> Outcome<f64> {
    let subject = Subject::start(world, &Plan::new())?;
    subject.connect()?.get(100)?;
    let before = subject.rss();
    let mut drivers = connect(&subject, count)?;
    batch(&mut drivers, || ())?;
    let mut most = 0;
    batch(&mut drivers, || {
        thread::sleep(Duration::from_millis(SLOW / 2));
        most = subject.rss();
    })?;
    Ok((most as f64 - before as f64) / count as f64)
}

/// Returns the instructions per GET, of all threads, with this number in flight. Takes the cheapest
/// batch, in which no connection had to be opened.
#[allow(clippy::cast_precision_loss, reason = "a count")]
pub(crate) fn instructions(world: &World, count: usize) -> Outcome<f64> {
    let subject = Subject::counted(world, &Plan::new())?;
    let mut drivers = connect(&subject, count)?;
    let mut least = u64::MAX;
    for _ in 0..(REQUESTS / count).clamp(8, 40) {
        least = least.min(subject.instructions(|| batch(&mut drivers, || ()))?);
    }
    Ok(least as f64 / count as f64)
}

#[allow(clippy::cast_precision_loss, reason = "KiB")]
fn uploads(world: &World, count: usize) -> Outcome {
    let subject = Subject::start(world, &Plan::new())?;
    subject.connect()?.get(100)?;
    let before = subject.rss();
    let mut command = Command::new(&world.exe);
    command.args([
        "load",
        "up10m",
        "--seconds",
        "2",
        "--port",
        &subject.port.to_string(),
    ]);
    command.args(["--connections", &count.to_string()]);
    let load = Child::spawn(
        &mut pinned(&command, world.load_core),
        &world.path("uploads.out"),
    )?;
    thread::sleep(Duration::from_millis(2500));
    let most = readings::highest_rss_kib(subject.child.id());
    let said = load.said();
    if !said.contains("\"broken\":0") {
        return Err(said);
    }
    println!(
        "{count:>12}{:>12}{:>16.2}",
        most / 1024,
        (most as f64 - before as f64) / 1024.0 / count as f64
    );
    Ok(())
}
