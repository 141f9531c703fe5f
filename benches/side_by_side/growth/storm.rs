//! Five thousand requests in flight when the token dies: one fetch, each request sent once more,
//! none fails.
//!
//! A test in one process would need 20,000 open files for this; here the caller, wxgate and the
//! sandbox are processes of their own.

use std::{process::Command, thread, time::Duration};

use serde_json::Value;
use tokio::time::Instant;

use super::{plan::Plan, subject::Subject};
use crate::{
    Outcome,
    child::{Child, free_port, pinned},
    driver::Driver,
    readings, workload,
    world::World,
};

const COUNT: u64 = 5000;
const ASKED: &str = "/cgi-bin/user/info";
const FETCH: &str = "/cgi-bin/stable_token";

/// Prints the counts, and fails if they are not as they must be.
pub(super) fn run(world: &World) -> Outcome {
    println!("\n{COUNT} requests in flight on a dying token, against the sandbox (plain HTTP):");
    let port = free_port()?;
    let mut command = Command::new(&world.wxgate);
    command.args(["sandbox", "--listen", &format!("127.0.0.1:{port}")]);
    command.args(["--account", "wx0000000000000000:secret-0"]);
    let mut sandbox = Child::spawn(
        &mut pinned(&command, world.load_core),
        &world.path("sandbox.out"),
    )?;
    sandbox.listens(port, Duration::from_secs(10))?;
    let mut control = Driver::connect(port, None)?;
    let subject = Subject::start(
        world,
        &Plan {
            api: Some(format!("http://127.0.0.1:{port}")),
            ..Plan::new()
        },
    )?;
    subject.connect()?.get(1)?;
    let mut drivers = (0..COUNT)
        .map(|_| subject.connect())
        .collect::<Outcome<Vec<_>>>()?;
    control.post("/sandbox/revoke", "{}")?;
    // The fetch lasts until every request has been refused, so that all of them wait for the same
    // fetch.
    control.post(
        "/sandbox/faults",
        &format!("{{\"path\":\"{FETCH}\",\"hold\":true}}"),
    )?;
    let before = counts(&mut control)?;
    let start = Instant::now();
    drivers
        .iter_mut()
        .try_for_each(|driver| driver.send(workload::GET))?;
    let end = start + Duration::from_secs(40);
    while counts(&mut control)?.asked < before.asked + COUNT && Instant::now() < end {
        thread::sleep(Duration::from_millis(50));
    }
    let (refused, rss) = (start.elapsed(), readings::rss_kib(subject.child.id()));
    control.post("/sandbox/faults/1/release", "")?;
    let (mut failed, released) = (0, Instant::now());
    for driver in &mut drivers {
        failed += u64::from(!driver.receive().is_ok_and(|body| !body.contains("errcode")));
    }
    let took = released.elapsed();
    let after = counts(&mut control)?;
    let (fetches, sent, executed) = (
        after.fetches - before.fetches,
        after.asked - before.asked,
        after.executed - before.executed,
    );
    println!(
        "  all refused after {:.1} s, RSS then {} MiB",
        refused.as_secs_f64(),
        rss / 1024
    );
    println!(
        "  all answered {:.1} s after the new token",
        took.as_secs_f64()
    );
    println!("  failed {failed}, fetches {fetches}, sent upstream {sent}, executed {executed}");
    let fine = failed == 0 && fetches == 1 && sent == 2 * COUNT && executed == COUNT;
    if fine {
        Ok(())
    } else {
        Err("wanted: failed 0, fetches 1, sent twice each, executed once each".to_owned())
    }
}

/// Counters of the sandbox.
struct Counts {
    asked: u64,
    executed: u64,
    fetches: u64,
}

fn counts(control: &mut Driver) -> Outcome<Counts> {
    let said = control.ask("/sandbox/counters")?;
    let said: Value = serde_json::from_str(&said).map_err(|error| error.to_string())?;
    let of = |path: &str, what: &str| said["paths"][path][what].as_u64().unwrap_or(0);
    Ok(Counts {
        asked: of(ASKED, "requests"),
        executed: of(ASKED, "executed"),
        fetches: of(FETCH, "requests"),
    })
}
