//! Rounds of load on all systems in turn. A single round is as noisy as the machine; only ratios
//! within a round can be compared, and their medians over several rounds.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use clap::Args;
use serde::Serialize;
use tokio::time::Instant;

use super::{
    Outcome,
    child::pinned,
    driver::Driver,
    load::Tally,
    readings,
    report::{self, Report, Table},
    systems::{Running, System, UPLOADS_ONLY},
    workload::Workload,
    world::World,
};

/// Command line of `compare`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Systems, in this order; ratios are to the first. Default: all that can run here.
    #[arg(long, value_delimiter = ',')]
    systems: Vec<System>,
    /// Workloads.
    #[arg(
        long,
        short,
        value_delimiter = ',',
        default_value = "get,post1k,open4000,churn,dl1m,up10m"
    )]
    workloads: Vec<Workload>,
    /// Numbers of connections (at most 16 are used where bodies are large).
    #[arg(long, short, value_delimiter = ',', default_value = "32,256")]
    connections: Vec<usize>,
    /// Number of rounds, each with one turn per system.
    #[arg(long, short, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Length of a turn in seconds.
    #[arg(long, short, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: u32,
    /// Number of idle client connections for the memory figure; 0 leaves it out.
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(0..=8000))]
    idle: u32,
    /// File for all figures.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Figures of a turn of one system.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Turn {
    #[serde(flatten)]
    pub(crate) tally: Tally,
    /// CPU time per request in microseconds.
    pub(crate) cpu: f64,
    pub(crate) per_second: f64,
    /// Share of the time on the core of the proxy that other processes took.
    pub(crate) alien: f64,
    pub(crate) rss_kib: u64,
}

/// Measures all systems and prints the tables.
pub(crate) fn run(options: &Options, product: Option<PathBuf>) -> Outcome {
    let world = World::new(product)?;
    println!("machine: {}\n{}", readings::machine(), world.seating());
    let systems = start(&world, options);
    let Some(first) = systems.first() else {
        return Err("no system runs".to_owned());
    };
    if let Some(workload) = options
        .workloads
        .iter()
        .find(|workload| !first.system.takes(**workload))
    {
        let (first, workload) = (first.system.name(), workload.name());
        return Err(format!(
            "ratios are to the first system, and {first} takes no part in {workload}: name another one first"
        ));
    }
    println!(
        "ratios are to {}; a turn with an error is thrown out\n",
        first.system.name()
    );
    let mut report = Report::new(&systems);
    let mut done = Vec::new();
    for workload in &options.workloads {
        for wanted in &options.connections {
            let connections = workload.connections(*wanted);
            if !done.contains(&(*workload, connections)) {
                done.push((*workload, connections));
                let turns = rounds(&world, &systems, *workload, connections, options)?;
                report.add(Table::new(*workload, connections, turns));
            }
        }
    }
    if options.idle > 0 {
        let measured = systems
            .iter()
            .map(|running| running.system)
            .filter(|system| system.takes(Workload::Get));
        let each = measured
            .map(|system| (system.name(), idle(&world, system, options.idle)))
            .collect();
        report.add_idle(options.idle, each);
    }
    if let Some(path) = &options.json {
        report::write(path, &report)?;
    }
    // With SIGTERM, since an instrumented wxgate (scripts/release) writes its profile at its end.
    systems
        .into_iter()
        .try_for_each(|running| running.child.end(Duration::from_secs(40)).map(drop))
}

/// Starts the systems that are wanted, and prints the reason for each that cannot run.
fn start(world: &World, options: &Options) -> Vec<Running> {
    let wanted = if options.systems.is_empty() {
        &System::ALL[..]
    } else {
        &options.systems
    };
    let mut systems = Vec::new();
    for system in wanted {
        let started = match system.missing() {
            Some(reason) => Err(reason),
            None if !options
                .workloads
                .iter()
                .any(|workload| system.takes(*workload)) =>
            {
                Err(UPLOADS_ONLY.to_owned())
            }
            None => system.start(world),
        };
        match started.and_then(|running| Ok((running.tls()?, running))) {
            Ok((tls, running)) => {
                println!("  {:<12}runs; towards the upstream {tls}", system.name());
                systems.push(running);
            }
            Err(reason) => println!("  {:<12}LEFT OUT: {reason}", system.name()),
        }
    }
    systems
}

fn rounds(
    world: &World,
    systems: &[Running],
    workload: Workload,
    connections: usize,
    options: &Options,
) -> Outcome<BTreeMap<&'static str, Vec<Option<Turn>>>> {
    let mut turns = BTreeMap::<_, Vec<_>>::new();
    let systems: Vec<_> = systems
        .iter()
        .filter(|running| running.system.takes(workload))
        .collect();
    for running in &systems {
        turn(world, running, workload, connections, 1)?;
    }
    for round in 0..options.rounds as usize {
        // The order rotates, so that no system always runs after the same other.
        let mut order: Vec<_> = (0..systems.len())
            .map(|place| systems[(place + round) % systems.len()])
            .collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for running in order {
            let turn = turn(world, running, workload, connections, options.seconds)?;
            let Tally {
                requests,
                refused,
                broken,
                ..
            } = turn.tally;
            let fine = refused == 0 && broken == 0 && requests > 0;
            if !fine {
                let (name, workload) = (running.system.name(), workload.name());
                println!(
                    "THROWN OUT: {name}, {workload}: {refused} refused, {broken} broken of {requests}"
                );
            }
            turns
                .entry(running.system.name())
                .or_default()
                .push(fine.then_some(turn));
        }
    }
    Ok(turns)
}

#[allow(
    clippy::cast_precision_loss,
    reason = "a turn has less than 2^52 of anything"
)]
fn turn(
    world: &World,
    running: &Running,
    workload: Workload,
    connections: usize,
    seconds: u32,
) -> Outcome<Turn> {
    let pid = running.child.id();
    let busy = || world.proxy_core.map_or(0, readings::busy);
    let (cpu, core, start) = (readings::cpu_ns(pid), busy(), Instant::now());
    let mut tally = load(world, running, workload, connections, seconds)?;
    let used = readings::cpu_ns(pid).saturating_sub(cpu) as f64;
    let others = (busy() - core) as f64 / 100.0 - used / 1e9;
    let log = world.path(&format!("{}.out", running.system.name()));
    // The others fail if a copy fails. wxgate goes on without the copy, as it should, which would
    // make its figure too good.
    let lost_copy = |said: String| said.contains("cannot keep a request body");
    if workload == Workload::Up10m && fs::read_to_string(&log).is_ok_and(lost_copy) {
        tally.broken += 1;
    }
    let turn = Turn {
        cpu: used / 1e3 / tally.requests.max(1) as f64,
        per_second: tally.requests as f64 / tally.seconds,
        alien: (others / start.elapsed().as_secs_f64()).max(0.0),
        rss_kib: readings::rss_kib(pid),
        tally,
    };
    // A log of all turns would fill the disk.
    let _ = File::options()
        .write(true)
        .open(log)
        .and_then(|file| file.set_len(0));
    Ok(turn)
}

fn load(
    world: &World,
    running: &Running,
    workload: Workload,
    connections: usize,
    seconds: u32,
) -> Outcome<Tally> {
    let mut command = Command::new(&world.exe);
    command.args(["load", workload.name(), "--port", &running.port.to_string()]);
    command.args([
        "--connections",
        &connections.to_string(),
        "--seconds",
        &seconds.to_string(),
    ]);
    if let Some(key) = running.system.key() {
        command.args(["--key", key]);
    }
    let output = world.path("load.out");
    let file = File::create(&output).map_err(|error| error.to_string())?;
    let mut process = pinned(&command, world.load_core)
        .stdin(Stdio::null())
        .stdout(file)
        .spawn()
        .map_err(|error| format!("load: {error}"))?;
    let end = Instant::now() + Duration::from_secs(u64::from(seconds) + 40);
    while let Ok(None) = process.try_wait() {
        if Instant::now() > end {
            let _ = process.kill();
        }
        thread::sleep(Duration::from_millis(10));
    }
    let said = fs::read_to_string(&output).unwrap_or_default();
    // Without a line of output, the load generator could not even connect.
    Ok(serde_json::from_str(&said).unwrap_or(Tally {
        broken: 1,
        seconds: 1.0,
        ..Tally::default()
    }))
}

/// Measures the memory in KiB that the proxy takes for each connection that has made a request and
/// is idle now. Starts a new proxy, since a proxy that was under load has memory to spare.
#[allow(clippy::cast_precision_loss, reason = "KiB")]
fn idle(world: &World, system: System, count: u32) -> Outcome<f64> {
    let running = system.start(world)?;
    let pid = running.child.id();
    let before = readings::rss_kib(pid);
    let mut open = Vec::new();
    for _ in 0..count {
        let mut driver = Driver::connect(running.port, running.system.key())?;
        driver.get(1)?;
        open.push(driver);
    }
    // By then, memory that is returned with a delay has been returned.
    thread::sleep(Duration::from_secs(6));
    Ok((readings::rss_kib(pid) as f64 - before as f64) / f64::from(count))
}
