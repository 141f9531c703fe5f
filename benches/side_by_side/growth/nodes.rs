//! Three nodes that share a Redis: the load on Redis in idle time and per refresh, and the memory
//! per account.

#![allow(clippy::cast_precision_loss, reason = "figures far below 2^52")]

use std::{path::Path, process::Command, thread, time::Duration};

use redis::Connection;
use tokio::time::Instant;

use super::{plan::Plan, subject::Subject};
use crate::{
    Outcome,
    child::{Child, free_port, pinned},
    readings,
    systems::on_path,
    world::World,
};

const NODES: usize = 3;
/// Time without requests.
const QUIET: Duration = Duration::from_secs(30);
/// Number of accounts that are refreshed by hand, one after the other.
const REFRESHES: usize = 10;

/// Prints the tables.
pub(super) fn run(world: &World) -> Outcome {
    let Some(server) = on_path("redis-server").or_else(|| on_path("valkey-server")) else {
        return Err(
            "redis-server is not on PATH (Debian: apt-get install redis-server)".to_owned(),
        );
    };
    println!("\n{NODES} nodes that share a Redis.");
    println!(
        "{:>9}{:>24}{:>22}{:>20}{:>14}{:>14}{:>16}",
        "accounts",
        "idle: cmds/acct/min",
        "bytes/acct/min",
        "cmds/refresh",
        "bytes/refresh",
        "conns/node",
        "node KiB/acct"
    );
    let mut first = None;
    let mut notes = Vec::new();
    for accounts in [1, 10, 100, 1000] {
        let (_redis, port, mut watch) = redis(world, &server)?;
        let empty = Traffic::look(&mut watch)?;
        let store = format!("kind = \"redis\"\nurl = {{ value = \"redis://127.0.0.1:{port}\" }}\n");
        let plan = Plan {
            accounts,
            store,
            ..Plan::new()
        };
        let start = Instant::now();
        let nodes = (0..NODES)
            .map(|_| Subject::start(world, &plan))
            .collect::<Outcome<Vec<_>>>()?;
        let ready = start.elapsed().as_secs_f64();
        thread::sleep(Duration::from_secs(7));
        let cpu = || readings::cpu_ns(nodes[1].child.id()) as f64 / 1e6;
        let (before, used) = (Traffic::look(&mut watch)?, cpu());
        thread::sleep(QUIET);
        let used = (cpu() - used) / QUIET.as_secs_f64();
        let quiet = Traffic::look(&mut watch)?.since(&before);
        // With more accounts, the periodic looks at the store hide the cost of a refresh.
        let refreshed = (accounts <= 100)
            .then(|| refresh(&nodes[0], accounts.min(REFRESHES), &mut watch, &quiet))
            .transpose()?
            .unwrap_or_else(Traffic::unknown);
        let now = Traffic::look(&mut watch)?;
        let rss = nodes[1].rss();
        let (first, count) = (*first.get_or_insert(rss), accounts as f64);
        let minute = 60.0 / QUIET.as_secs_f64() / count;
        println!(
            "{accounts:>9}{:>24.1}{:>22.0}{:>20.1}{:>14.0}{:>14.1}{:>16.1}",
            quiet.commands * minute,
            quiet.bytes * minute,
            refreshed.commands,
            refreshed.bytes,
            (now.connections - 1.0) / NODES as f64,
            (rss as f64 - first as f64) / (count - 1.0).max(1.0)
        );
        notes.push(format!(
            "{accounts:>9} accounts: Redis grew by {:.2} KiB per account, one record {} bytes (MEMORY USAGE), Redis used \
             {:.2} ms of CPU per second when quiet, a node {used:.2}; all nodes were ready after {ready:.1} s",
            (now.memory - empty.memory) / 1024.0 / count,
            usage(&mut watch)?,
            quiet.cpu * 1e3 / QUIET.as_secs_f64()
        ));
        if accounts == 100 {
            notes.push(format!("    quiet: {}", quiet.by_command));
            notes.push(format!("    per refresh: {}", refreshed.by_command));
        }
    }
    println!("{}", notes.join("\n"));
    Ok(())
}

/// Starts a Redis without persistence. Returns the process, its port and a connection.
fn redis(world: &World, server: &Path) -> Outcome<(Child, u16, Connection)> {
    let port = free_port()?;
    let mut command = Command::new(server);
    command.args([
        "--port",
        &port.to_string(),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
    ]);
    let mut redis = Child::spawn(
        &mut pinned(&command, world.load_core),
        &world.path("redis.out"),
    )?;
    redis.listens(port, Duration::from_secs(10))?;
    let watch = redis::Client::open(format!("redis://127.0.0.1:{port}"))
        .and_then(|client| client.get_connection());
    Ok((redis, port, watch.map_err(|error| error.to_string())?))
}

/// Returns the cost of a refresh, without that of idle time.
fn refresh(
    node: &Subject,
    count: usize,
    watch: &mut Connection,
    quiet: &Traffic,
) -> Outcome<Traffic> {
    let before = Traffic::look(watch)?;
    let start = Instant::now();
    for account in 0..count {
        let body = "{\"force\":true}";
        node.operator()?
            .post(&format!("/api/accounts/a{account:04}/refresh"), body)?;
    }
    // By then the other nodes have been notified and have looked.
    thread::sleep(Duration::from_secs(1));
    let anyhow = start.elapsed().as_secs_f64() / QUIET.as_secs_f64();
    let mut spent = Traffic::look(watch)?.since(&before);
    spent.commands = (spent.commands - quiet.commands * anyhow) / count as f64;
    spent.bytes = (spent.bytes - quiet.bytes * anyhow) / count as f64;
    spent.by_command = format!("(of {count}, with what passes anyhow) {}", spent.by_command);
    Ok(spent)
}

/// Counters of Redis so far.
#[derive(Debug, Clone)]
struct Traffic {
    commands: f64,
    /// Bytes in and out.
    bytes: f64,
    /// CPU time in seconds, user and system.
    cpu: f64,
    connections: f64,
    /// Memory in bytes.
    memory: f64,
    by_command: String,
    text: String,
}

impl Traffic {
    fn unknown() -> Self {
        let (commands, bytes, cpu, connections, memory) =
            (f64::NAN, f64::NAN, f64::NAN, f64::NAN, f64::NAN);
        Self {
            commands,
            bytes,
            cpu,
            connections,
            memory,
            by_command: String::new(),
            text: String::new(),
        }
    }

    fn look(watch: &mut Connection) -> Outcome<Self> {
        let text: String = redis::cmd("INFO")
            .arg("all")
            .query(watch)
            .map_err(|error: redis::RedisError| error.to_string())?;
        let of = |name: &str| figure(&text, name);
        Ok(Self {
            commands: of("total_commands_processed"),
            bytes: of("total_net_input_bytes") + of("total_net_output_bytes"),
            cpu: of("used_cpu_sys") + of("used_cpu_user"),
            connections: of("connected_clients"),
            memory: of("used_memory"),
            by_command: String::new(),
            text,
        })
    }

    fn since(&self, before: &Self) -> Self {
        let calls = |text: &str, line: &str| {
            let line = text
                .lines()
                .find_map(|other| other.strip_prefix(line))
                .unwrap_or_default();
            line.split(',')
                .find_map(|part| part.strip_prefix("calls=")?.parse::<u64>().ok())
                .unwrap_or(0)
        };
        let names = self
            .text
            .lines()
            .filter_map(|line| line.strip_prefix("cmdstat_")?.split_once(':'));
        let more = names.filter_map(|(name, _)| {
            let line = format!("cmdstat_{name}:");
            let more = calls(&self.text, &line) - calls(&before.text, &line);
            (more > 0 && name != "info").then(|| format!("{name} {more}"))
        });
        // Without the reading itself: one command and its long answer.
        Self {
            commands: self.commands - before.commands - 1.0,
            bytes: self.bytes - before.bytes - before.text.len() as f64,
            cpu: self.cpu - before.cpu,
            by_command: more.collect::<Vec<_>>().join(", "),
            ..self.clone()
        }
    }
}

fn figure(text: &str, name: &str) -> f64 {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|figure| figure.trim().parse().ok())
        .unwrap_or(f64::NAN)
}

/// Returns the size of a record in bytes.
fn usage(watch: &mut Connection) -> Outcome<u64> {
    let asked = redis::cmd("MEMORY")
        .arg("USAGE")
        .arg("wxgate:{a0000}")
        .query(watch);
    asked.map_err(|error: redis::RedisError| error.to_string())
}
