//! Latency of a healthy account beside a faulty neighbour: an account with an API that hangs, a
//! thousand callers that trickle their bodies, a log that is not read.
//!
//! Turns with and without the fault alternate, so that a drift of the speed of the machine affects
//! both.

use std::{
    fs::{self, File},
    io::Write as _,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use socket2::{Domain, Socket, Type};

use super::{plan::Plan, subject::Subject};
use crate::{
    Outcome,
    child::pinned,
    load::Tally,
    statistics::median,
    workload::{self, Workload},
    world::World,
};

const ROUNDS: usize = 7;
/// Address of faulty callers; healthy callers come from 127.0.0.1.
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const SLOW_CALLERS: usize = 1000;

/// Fault beside the healthy account.
#[derive(Debug, Clone, Copy)]
enum Neighbour {
    /// Account with an API that does not answer, and 50 calls a second.
    Hanging,
    /// A thousand bodies of 60 kB at 20 B/s each.
    Trickling,
    /// Standard error that is not read.
    StalledLog,
}

/// Prints the table; fails if a call of the healthy account fails.
pub(super) fn run(world: &World) -> Outcome {
    println!(
        "\nHealthy account beside a sick neighbour; 4,000 GET/s over 32 connections, {ROUNDS} \
         alternating rounds"
    );
    println!(
        "{:<12}{:>20}{:>20}{:>12}{:>12}",
        "neighbour", "quiet, us p50/p99", "sick, us p50/p99", "p99 ratio", "p99 + us"
    );
    for neighbour in [
        Neighbour::Hanging,
        Neighbour::Trickling,
        Neighbour::StalledLog,
    ] {
        measure(world, neighbour)?;
    }
    Ok(())
}

fn measure(world: &World, neighbour: Neighbour) -> Outcome {
    let plan = Plan {
        accounts: 2,
        neighbour: true,
        ..Plan::new()
    };
    let (mut quiet, mut sick) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let subject = Subject::start(world, &plan)?;
        load(world, &subject)?;
        quiet.push(load(world, &subject)?);
        sick.push(match neighbour {
            Neighbour::StalledLog => {
                let stalled = Subject::start_unread(world, &plan)?;
                // Fills the pipe with lines.
                load(world, &stalled)?;
                load(world, &stalled)?
            }
            Neighbour::Hanging => beside(world, &subject, hang)?,
            Neighbour::Trickling => beside(world, &subject, trickle)?,
        });
    }
    let mid = |tallies: &[Tally], of: fn(&Tally) -> u32| {
        median(&tallies.iter().map(|t| f64::from(of(t))).collect::<Vec<_>>())
    };
    let ratios: Vec<f64> = (quiet.iter().zip(&sick))
        .map(|(quiet, sick)| f64::from(sick.p99) / f64::from(quiet.p99))
        .collect();
    let more: Vec<f64> = (quiet.iter().zip(&sick))
        .map(|(quiet, sick)| f64::from(sick.p99) - f64::from(quiet.p99))
        .collect();
    let pair = |tallies: &[Tally]| {
        let (p50, p99) = (mid(tallies, |t| t.p50), mid(tallies, |t| t.p99));
        format!("{p50:.0} / {p99:.0}")
    };
    println!(
        "{:<12}{:>20}{:>20}{:>12.2}{:>12.0}",
        format!("{neighbour:?}"),
        pair(&quiet),
        pair(&sick),
        median(&ratios),
        median(&more)
    );
    Ok(())
}

/// Measures the healthy account beside a neighbour, which begins a second and a load earlier: the
/// quiet turn has one before it too, and finds connections to WeChat that stand.
fn beside(world: &World, subject: &Subject, neighbour: fn(u16, &AtomicBool)) -> Outcome<Tally> {
    let over = Arc::new(AtomicBool::new(false));
    let (port, seen) = (subject.port, Arc::clone(&over));
    let thread: JoinHandle<()> = thread::spawn(move || neighbour(port, &seen));
    thread::sleep(Duration::from_secs(1));
    let tally = load(world, subject).and_then(|_| load(world, subject));
    over.store(true, Ordering::Relaxed);
    let _ = thread.join();
    tally
}

fn hang(port: u16, over: &AtomicBool) {
    let target = format!("/@a0001{}?ms=60000", workload::SLOW);
    let request = workload::request("GET", &target, None, false, None);
    let mut kept = Vec::new();
    while !over.load(Ordering::Relaxed) {
        if let Ok(mut stream) = connect(port)
            && stream.write_all(&request).is_ok()
        {
            kept.push(stream);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn trickle(port: u16, over: &AtomicBool) {
    let target = format!("/@a0001{}", workload::POST);
    let mut request = workload::request("POST", &target, None, false, Some(60_000));
    request.truncate(request.len() - 60_000);
    let open = |_| {
        let mut stream = connect(port).ok()?;
        stream.write_all(&request).ok()?;
        Some(stream)
    };
    let mut streams: Vec<TcpStream> = (0..SLOW_CALLERS).filter_map(open).collect();
    while !over.load(Ordering::Relaxed) {
        streams.retain_mut(|stream| stream.write_all(b"xxxxxxxxxx").is_ok());
        thread::sleep(Duration::from_millis(500));
    }
}

fn connect(port: u16) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((NEIGHBOUR, 0)).into())?;
    socket.connect(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into())?;
    Ok(socket.into())
}

/// Measures the healthy account for two seconds. Each answer must have status 200.
fn load(world: &World, subject: &Subject) -> Outcome<Tally> {
    let mut command = Command::new(&world.exe);
    command
        .args(["load", Workload::Open4000.name(), "--port"])
        .arg(subject.port.to_string())
        .args(["--connections", "32", "--seconds", "2"]);
    let output = world.path("isolation-load.out");
    let file = File::create(&output).map_err(|error| error.to_string())?;
    let status = pinned(&command, world.load_core)
        .stdin(Stdio::null())
        .stdout(file)
        .status();
    status.map_err(|error| error.to_string())?;
    let said = fs::read_to_string(&output).unwrap_or_default();
    let tally: Tally =
        serde_json::from_str(&said).map_err(|_| format!("the load said {said:?}"))?;
    if tally.refused + tally.broken > 0 {
        return Err(format!(
            "healthy calls: {} refused, {} broken",
            tally.refused, tally.broken
        ));
    }
    Ok(tally)
}
