//! First call after a silence, to an upstream that is 30 ms away and closes idle connections after
//! 19 s, as WeChat does.
//!
//! The way there is a relay on loopback. It charges a round trip for a new connection, which the
//! handshake of TCP takes on a real way.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    sync::mpsc,
    thread,
    time::Duration,
};

use tokio::time::Instant;

use super::{plan::Plan, subject::Subject};
use crate::{
    Outcome,
    driver::Driver,
    statistics::{least, median, most},
    systems::System,
    tls::HOST,
    workload,
    world::World,
};

const ROUNDS: usize = 7;
const SILENCE: Duration = Duration::from_secs(20);
/// Delay of each direction.
const DELAY: Duration = Duration::from_millis(30);
/// Time after which the upstream closes a connection without data.
const IDLE: Duration = Duration::from_secs(19);

/// Prints the table.
pub(super) fn run(world: &World) -> Outcome {
    println!(
        "\nFirst call after {} s of silence; {} ms each way, idle connections closed after {} s; {ROUNDS} rounds",
        SILENCE.as_secs(),
        DELAY.as_millis(),
        IDLE.as_secs()
    );
    let relay = relay(world.upstream_port)?;
    let plan = |warm| Plan {
        api: Some(format!("https://{HOST}:{relay}")),
        warm,
        ..Plan::new()
    };
    let warm = Subject::start(world, &plan(true))?;
    let cold = Subject::start(world, &plan(false))?;
    let nginx = System::Nginx.start_to(world, relay)?;
    let systems = [
        ("wxgate", warm.port),
        ("warm = false", cold.port),
        ("nginx", nginx.port),
    ];
    let (mut first, mut kept) = ([const { Vec::new() }; 3], [const { Vec::new() }; 3]);
    for _ in 0..ROUNDS {
        thread::sleep(SILENCE);
        for (at, (_, port)) in systems.iter().enumerate() {
            first[at].push(call(*port)?);
            kept[at].push(call(*port)?);
        }
    }
    println!(
        "{:<14}{:>26}{:>26}{:>10}",
        "system", "first call, ms", "next call, ms", "x nginx"
    );
    let base = median(&first[2]);
    for (at, (name, _)) in systems.iter().enumerate() {
        let shown = |times: &[f64]| {
            format!(
                "{:.0} ({:.0} to {:.0})",
                median(times),
                least(times),
                most(times)
            )
        };
        println!(
            "{name:<14}{:>26}{:>26}{:>10.2}",
            shown(&first[at]),
            shown(&kept[at]),
            median(&first[at]) / base
        );
    }
    Ok(())
}

/// Returns the milliseconds of a small GET.
fn call(port: u16) -> Outcome<f64> {
    let mut driver = Driver::connect(port, None)?;
    let began = Instant::now();
    driver.ask(workload::GET)?;
    Ok(began.elapsed().as_secs_f64() * 1000.0)
}

/// Starts the relay to a port, and returns its own. It ends with the program.
fn relay(upstream: u16) -> Outcome<u16> {
    let listener =
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|error| error.to_string())?;
    let port = listener.local_addr().map_err(|error| error.to_string())?;
    thread::spawn(move || {
        for caller in listener.incoming().flatten() {
            thread::spawn(move || {
                thread::sleep(2 * DELAY);
                let _ = join(&caller, upstream);
            });
        }
    });
    Ok(port.port())
}

fn join(caller: &TcpStream, upstream: u16) -> std::io::Result<()> {
    let upstream = TcpStream::connect((Ipv4Addr::LOCALHOST, upstream))?;
    for stream in [caller, &upstream] {
        stream.set_nodelay(true)?;
    }
    // Either direction without data for so long: the exchanges of this bench have data in both.
    caller.set_read_timeout(Some(IDLE))?;
    let (there, back) = (caller.try_clone()?, upstream.try_clone()?);
    thread::spawn(move || pass(&back, &there));
    pass(caller, &upstream);
    Ok(())
}

/// Passes bytes on, each [`DELAY`] after it came, until one side ends.
fn pass(mut from: &TcpStream, to: &TcpStream) {
    let (sender, pieces) = mpsc::channel::<(Instant, Vec<u8>)>();
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut to = to;
            for (due, piece) in pieces {
                thread::sleep(due.saturating_duration_since(Instant::now()));
                if to.write_all(&piece).is_err() {
                    break;
                }
            }
            let _ = to.shutdown(Shutdown::Both);
        });
        let mut buffer = [0; 16 * 1024];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            let piece = buffer.get(..length).unwrap_or_default().to_vec();
            if sender.send((Instant::now() + DELAY, piece)).is_err() {
                break;
            }
        }
        drop(sender);
        let _ = from.shutdown(Shutdown::Both);
    });
}
