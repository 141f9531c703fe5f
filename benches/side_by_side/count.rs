//! Instructions in user space (callgrind) and system calls (strace) per request: one GET after the
//! other over a single kept-alive connection, TLS towards the upstream.
//!
//! Each system runs twice, with few and with many requests. The difference of the totals is divided
//! by the difference of the requests, so that start, handshakes and end are not in the figures.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use clap::Args;

use super::{
    Outcome,
    child::{Child, free_port, pinned},
    driver::Driver,
    readings,
    systems::{System, UPLOADS_ONLY, on_path},
    workload::Workload,
    world::World,
};

/// Command line of `count`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Systems. Default: nginx, nginx-lua, haproxy, bare, legacy, wxgate and wxgate-key, as far as
    /// they are installed.
    #[arg(long, value_delimiter = ',')]
    systems: Vec<System>,
}

/// Program that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tool {
    Callgrind,
    Strace,
}

/// Systems that are counted. Envoy does not run under valgrind.
const COUNTED: [System; 7] = [
    System::Nginx,
    System::NginxLua,
    System::Haproxy,
    System::Bare,
    System::Legacy,
    System::Wxgate,
    System::WxgateKey,
];

/// Counts and prints the table.
pub(crate) fn run(options: &Options, product: Option<PathBuf>) -> Outcome {
    let world = World::new(product)?;
    println!("machine: {}", readings::machine());
    println!(
        "per GET, one kept connection, TLS towards the upstream; instructions of user space only\n"
    );
    println!(
        "{:<12}{:>14}{:>14}",
        "system", "instructions", "system calls"
    );
    let systems = if options.systems.is_empty() {
        &COUNTED[..]
    } else {
        &options.systems
    };
    for system in systems {
        let count = |tool| match system.missing() {
            Some(reason) => Err(reason),
            None if !system.takes(Workload::Get) => Err(UPLOADS_ONLY.to_owned()),
            None => per_request(&world, *system, tool),
        };
        let cell = |figure: &Outcome<f64>, digits| {
            figure
                .as_ref()
                .map_or("-".into(), |f| format!("{f:.digits$}"))
        };
        let (instructions, calls) = (count(Tool::Callgrind), count(Tool::Strace));
        println!(
            "{:<12}{:>14}{:>14}",
            system.name(),
            cell(&instructions, 0),
            cell(&calls, 3)
        );
        for reason in [instructions.err(), calls.err()].into_iter().flatten() {
            println!("{:<12}  not counted: {reason}", "");
        }
    }
    Ok(())
}

/// Returns the cost of a request.
pub(crate) fn per_request(world: &World, system: System, tool: Tool) -> Outcome<f64> {
    let (few, many) = match tool {
        Tool::Callgrind => (500, 2500),
        Tool::Strace => (500, 4500),
    };
    let first = total(world, system, tool, few)?;
    let second = total(world, system, tool, many)?;
    Ok((second - first) / f64::from(many - few))
}

/// Returns the cost of a process from start to end, with this number of requests.
fn total(world: &World, system: System, tool: Tool, requests: u32) -> Outcome<f64> {
    let port = free_port()?;
    let counted = world.path(&format!("{}.{}", system.name(), tool.program()));
    let _ = fs::remove_file(&counted);
    let command = tool.around(&system.command(world, port)?, &counted)?;
    let mut child = Child::spawn(
        &mut pinned(&command, world.proxy_core),
        &world.path("count.out"),
    )?;
    child.listens(port, Duration::from_secs(90))?;
    let mut driver = Driver::connect(port, system.key())?;
    driver
        .get(requests)
        .map_err(|error| format!("{error}; {}", child.said()))?;
    drop(driver);
    child.end(Duration::from_secs(60))?;
    // strace is no child of this process, and writes a moment after the traced process has ended.
    for _ in 0..250 {
        if let Some(figure) = fs::read_to_string(&counted)
            .ok()
            .and_then(|text| tool.read(&text))
        {
            return Ok(figure);
        }
        thread::sleep(Duration::from_millis(20));
    }
    Err(format!(
        "{} wrote no figure into {}",
        tool.program(),
        counted.display()
    ))
}

impl Tool {
    /// Name on PATH and of the Debian package.
    pub(crate) fn program(self) -> &'static str {
        match self {
            Self::Callgrind => "valgrind",
            Self::Strace => "strace",
        }
    }

    /// Reason why the tool does not work here, if it does not.
    pub(crate) fn missing(self) -> Option<String> {
        let program = self.program();
        if on_path(program).is_none() {
            return Some(format!(
                "{program} is not installed (Debian: apt-get install {program})"
            ));
        }
        // Tried out, since a container may forbid the system calls that the tool needs.
        let mut command = match self {
            Self::Callgrind => Command::new("valgrind"),
            Self::Strace => Command::new("strace"),
        };
        match self {
            Self::Callgrind => {
                command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "true"])
            }
            Self::Strace => command.args(["-f", "-c", "-o", "/dev/null", "true"]),
        };
        match command.output() {
            Ok(output) if output.status.success() => None,
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                Some(format!(
                    "{program} does not work here: {}",
                    said.lines().last().unwrap_or_default()
                ))
            }
            Err(error) => Some(format!("{program}: {error}")),
        }
    }

    /// Returns the command under the tool, with the process id that of the command itself.
    pub(crate) fn around(self, command: &Command, counted: &Path) -> Outcome<Command> {
        if let Some(reason) = self.missing() {
            return Err(reason);
        }
        let mut watched = Command::new(self.program());
        match self {
            Self::Callgrind => {
                watched.arg("--tool=callgrind");
                watched.arg(format!("--callgrind-out-file={}", counted.display()));
                // Keeps OpenSSL from vector AES, which valgrind does not know.
                watched.env("OPENSSL_ia32cap", "~0x1000000000000000");
            }
            Self::Strace => {
                watched
                    .args(["-D", "-f", "-c", "-U", "calls,name", "-o"])
                    .arg(counted);
            }
        }
        watched.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => watched.env(name, value),
                None => watched.env_remove(name),
            };
        }
        Ok(watched)
    }

    /// Reads the figure from the output of the tool, if it is complete.
    pub(crate) fn read(self, text: &str) -> Option<f64> {
        let mut words = text.lines().rev().map(str::split_whitespace);
        match self {
            // totals: 123
            Self::Callgrind => words.find_map(|mut line| {
                (line.next()? == "totals:").then(|| line.next()?.parse().ok())?
            }),
            // 123 total
            Self::Strace => words.find_map(|mut line| {
                let count = line.next()?.parse().ok()?;
                (line.next()? == "total").then_some(count)
            }),
        }
    }
}
