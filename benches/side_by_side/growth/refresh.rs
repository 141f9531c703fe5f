//! Latency during a refresh while the previous token is still valid, compared with the time before
//! and after.

use std::{
    fs::{self, File},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use super::{plan::Plan, subject::Subject};
use crate::{
    Outcome,
    child::{Child, free_port, pinned},
    load::Tally,
    statistics::median,
    tls::HOST,
    workload::Workload,
    world::{TOKEN, World},
};

/// Number of rounds, each with a new wxgate: of the twenty forced refreshes a day that WeChat
/// allows, wxgate uses six.
const ROUNDS: usize = 7;
/// Delay of the token endpoint in milliseconds.
const SLOW: u64 = 2500;

/// Prints the table.
pub(super) fn run(world: &World) -> Outcome {
    println!(
        "\nLatency while a refresh runs ({SLOW} ms) and the old token is good; 4,000 GET/s over 32 connections."
    );
    println!(
        "{:>7}{:>22}{:>22}{:>22}",
        "round", "quiet, us p50/p99", "refresh, us p50/p99", "quiet, us p50/p99"
    );
    let port = free_port()?;
    let mut command = Command::new(&world.exe);
    command.args([
        "upstream",
        "--token",
        TOKEN,
        "--port",
        &port.to_string(),
        "--token-delay",
        &SLOW.to_string(),
    ]);
    command.arg("--folder").arg(world.path(""));
    let mut upstream = Child::spawn(
        &mut pinned(&command, world.load_core),
        &world.path("slow-upstream.out"),
    )?;
    upstream.listens(port, Duration::from_secs(10))?;
    let plan = Plan {
        api: Some(format!("https://{HOST}:{port}")),
        ..Plan::new()
    };
    let (mut p50, mut p99) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        let subject = Subject::start(world, &plan)?;
        load(world, &subject)?;
        let quiet = load(world, &subject)?;
        let mut operator = subject.operator()?;
        operator.send_post("/api/accounts/a0000/refresh", "{\"force\":true}")?;
        let busy = load(world, &subject)?;
        if operator.has_answer() {
            return Err("the refresh was over before the load".to_owned());
        }
        operator.receive()?;
        let after = load(world, &subject)?;
        let pair = |tally: &Tally| format!("{} / {}", tally.p50, tally.p99);
        println!(
            "{round:>7}{:>22}{:>22}{:>22}",
            pair(&quiet),
            pair(&busy),
            pair(&after)
        );
        let calm = |of: fn(&Tally) -> u32| f64::midpoint(of(&quiet).into(), of(&after).into());
        p50.push(f64::from(busy.p50) / calm(|tally| tally.p50));
        p99.push(f64::from(busy.p99) / calm(|tally| tally.p99));
    }
    println!(
        "refresh to quiet, median of {ROUNDS}: p50 {:.2}, p99 {:.2}",
        median(&p50),
        median(&p99)
    );
    Ok(())
}

/// Measures for two seconds.
fn load(world: &World, subject: &Subject) -> Outcome<Tally> {
    let mut command = Command::new(&world.exe);
    command.args([
        "load",
        Workload::Open4000.name(),
        "--port",
        &subject.port.to_string(),
    ]);
    command.args(["--connections", "32", "--seconds", "2"]);
    let output = world.path("refresh-load.out");
    let file = File::create(&output).map_err(|error| error.to_string())?;
    let mut command = pinned(&command, world.load_core);
    command
        .stdin(Stdio::null())
        .stdout(file)
        .status()
        .map_err(|error| error.to_string())?;
    let said = fs::read_to_string(&output).unwrap_or_default();
    let tally: Tally =
        serde_json::from_str(&said).map_err(|_| format!("the load said {said:?}"))?;
    if tally.refused + tally.broken > 0 {
        return Err(format!(
            "{} refused, {} broken",
            tally.refused, tally.broken
        ));
    }
    thread::sleep(Duration::from_millis(50));
    Ok(tally)
}
