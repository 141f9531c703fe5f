//! Standard error that nobody reads, that is closed, or that somebody has made non-blocking: calls
//! are served, a stop ends, and what was lost is told.

use std::{
    io::{BufRead as _, BufReader, PipeReader, pipe},
    net::SocketAddr,
    os::unix::process::ExitStatusExt as _,
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use rustix::{
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    process::{Pid, Signal, kill_process},
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::Instant;
use wxgate::sandbox::{self, Sandbox};

use crate::support::{
    client, json,
    program::{LIMIT, address, folder, serve},
    raw::Wire,
    setup,
};

/// Connections that send calls side by side.
const CONNECTIONS: usize = 4;
/// Two calls each: one that is allowed and one that is denied, three log lines in all.
const ROUNDS: usize = 800;

/// The program with standard error in the hands of the test: a line is read when it is asked for.
struct Logging {
    child: Child,
    log: Option<BufReader<PipeReader>>,
    proxy: SocketAddr,
    admin: SocketAddr,
    _sandbox: Sandbox,
    _folder: TempDir,
}

impl Drop for Logging {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Logging {
    /// Starts it and reads the log until the first call was answered.
    async fn start(format: &str, flags: OFlags) -> Self {
        let sandbox = sandbox::start(sandbox::SandboxSettings::default())
            .await
            .expect("the sandbox starts");
        let setup = setup().more(
            "[[client]]\nname = \"crm\"\nfrom = [\"127.0.0.1\"]\naccounts = [\"shop\"]\n\
             allow = [\"/cgi-bin/user/**\"]\n",
        );
        let folder = folder(&setup, &sandbox);
        let (reader, writer) = pipe().expect("a pipe");
        // The flag belongs to the pipe's end, not to the process.
        let now = fcntl_getfl(&writer).expect("a pipe");
        fcntl_setfl(&writer, now | flags).expect("a pipe");
        let mut command: Command = serve(folder.path());
        let child = command
            .env("WXGATE_LOG_FORMAT", format)
            .stdout(Stdio::null())
            .stderr(writer)
            .spawn()
            .expect("the program starts");
        // The other copy of the writing end.
        drop(command);
        let mut log = BufReader::new(reader);
        let proxy = address(&read_until(&mut log, "serving WeChat's API"));
        let admin = address(&read_until(&mut log, "admin listener"));
        let started = Self {
            child,
            log: Some(log),
            proxy,
            admin,
            _sandbox: sandbox,
            _folder: folder,
        };
        assert_eq!(started.statuses(1).await, [(200, 403)]);
        started
    }

    /// Makes calls on a connection and returns the statuses of each round.
    async fn statuses(&self, rounds: usize) -> Vec<(u16, u16)> {
        calls(self.proxy, rounds).await
    }

    /// Makes calls on several connections and asserts that each is served.
    async fn all_served(&self) {
        let callers = (0..CONNECTIONS).map(|_| tokio::spawn(calls(self.proxy, ROUNDS)));
        for caller in callers.collect::<Vec<_>>() {
            let statuses = caller.await.expect("every call is answered");
            assert!(statuses.iter().all(|pair| *pair == (200, 403)));
        }
    }

    /// `/readyz`, once its part about the log is in this state.
    async fn ready_with(&self, state: Option<&str>) -> Value {
        let started = Instant::now();
        loop {
            let answer = client()
                .get(format!("http://{}/readyz", self.admin))
                .send()
                .await
                .expect("the admin listener answers");
            let (status, body) = (answer.status().as_u16(), json(answer).await);
            assert_eq!(status, 200, "the log takes nobody's readiness: {body}");
            if body["log"]["state"].as_str() == state {
                return body["log"].clone();
            }
            assert!(started.elapsed() < LIMIT, "{body}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn dropped(&self, reason: &str) -> u64 {
        let answer = client()
            .get(format!("http://{}/metrics", self.admin))
            .send()
            .await
            .expect("the admin listener answers");
        let series = format!("wxgate_log_lines_dropped_total{{reason=\"{reason}\"}} ");
        let page = answer.text().await.expect("text");
        let value = page.lines().find_map(|line| line.strip_prefix(&series));
        value.expect("the metric").parse().expect("a number")
    }

    /// CPU time of the thread that writes the log, in ticks of 10 ms.
    fn writer_ticks(&self) -> u64 {
        let tasks = format!("/proc/{}/task", self.child.id());
        let tasks = std::fs::read_dir(tasks).expect("it runs");
        let stats =
            tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("stat")).ok());
        let stat = stats
            .into_iter()
            .find(|stat| stat.contains("(wxgate-log)"))
            .expect("the thread");
        let fields: Vec<_> = stat
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .collect();
        fields[11..13]
            .iter()
            .map(|ticks| ticks.parse::<u64>().unwrap())
            .sum()
    }

    /// Asks it to stop and waits for its end.
    fn stop(&mut self) -> ExitStatus {
        kill_process(Pid::from_child(&self.child), Signal::TERM).expect("it is there");
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("it can be waited for") {
                return status;
            }
            assert!(started.elapsed() < LIMIT / 2, "the stop waits for a reader");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

async fn calls(proxy: SocketAddr, rounds: usize) -> Vec<(u16, u16)> {
    // Long names make long lines, so that fewer calls fill the queue.
    let name = "n".repeat(240);
    let mut wire = Wire::connect(proxy).await;
    let mut statuses = Vec::new();
    for _ in 0..rounds {
        let mut pair = [0; 2];
        for (status, call) in pair.iter_mut().zip(["user/info", "menu/get"]) {
            let request =
                format!("GET /cgi-bin/{call}?openid=o&{name}=1 HTTP/1.1\r\nHost: x\r\n\r\n");
            wire.send(request).await;
            *status = wire.reply().await.expect("an answer").status;
        }
        statuses.push((pair[0], pair[1]));
    }
    statuses
}

#[track_caller]
fn read_until(log: &mut BufReader<PipeReader>, part: &str) -> String {
    loop {
        let mut line = String::new();
        assert_ne!(
            log.read_line(&mut line).expect("UTF-8"),
            0,
            "ended before {part:?}"
        );
        if line.contains(part) {
            return line;
        }
    }
}

/// The count of a line that tells of lost ones.
fn told(line: &str, format: &str) -> Option<u64> {
    if format == "json" {
        let line: Value = serde_json::from_str(line).expect("one JSON object a line");
        (line["target"] == "wxgate::log").then(|| line["dropped"].as_u64().expect("a count"))
    } else {
        let (_, count) = line
            .split_once(" WARN wxgate::log: ")?
            .1
            .rsplit_once(" dropped=")?;
        Some(count.trim_end().parse().expect("a count"))
    }
}

async fn calls_go_on_and_the_log_tells_what_was_lost(format: &str) {
    let mut program = Logging::start(format, OFlags::empty()).await;
    program.all_served().await;
    let log = program.ready_with(Some("stalled")).await;
    let lost = log["lines_dropped"].as_u64().expect("a count");
    assert!(
        lost > 0 && log["message"].as_str().unwrap().contains("standard error"),
        "{log}"
    );
    assert!(program.dropped("full").await >= lost);
    assert_eq!(program.dropped("failed").await, 0);

    // Three lines a round, and three of the first call.
    let all = 3 * (CONNECTIONS * ROUNDS + 1) as u64;
    let mut reader = program.log.take().unwrap();
    let (format, (kept, lost, notices), reader) = tokio::task::spawn_blocking({
        let format = format.to_owned();
        move || {
            let (mut kept, mut lost, mut notices) = (0, 0, 0);
            while kept + lost < all {
                let mut line = String::new();
                assert_ne!(
                    reader.read_line(&mut line).expect("UTF-8"),
                    0,
                    "{kept} + {lost}"
                );
                if let Some(count) = told(&line, &format) {
                    lost += count;
                    notices += 1;
                } else if line.contains("/cgi-bin/") {
                    assert!(line.ends_with('\n'), "{line}");
                    kept += 1;
                }
            }
            (format, (kept, lost, notices), reader)
        }
    })
    .await
    .expect("every line is kept or told of");
    assert_eq!(kept + lost, all, "{kept} {lost}");
    assert!((1..=2).contains(&notices), "{notices}");
    assert_eq!(program.dropped("full").await, lost);
    program.ready_with(None).await;

    // It flows again.
    program.log = Some(reader);
    program.statuses(1).await;
    let line = read_until(program.log.as_mut().unwrap(), "audit");
    assert_eq!(told(&line, &format), None);
    assert_eq!(program.stop().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_go_on_while_nobody_reads_the_log_and_it_tells_what_was_lost_in_text() {
    calls_go_on_and_the_log_tells_what_was_lost("text").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_go_on_while_nobody_reads_the_log_and_it_tells_what_was_lost_in_json() {
    calls_go_on_and_the_log_tells_what_was_lost("json").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_does_not_wait_for_the_reader_of_the_log() {
    let mut program = Logging::start("text", OFlags::empty()).await;
    program.all_served().await;
    let status = program.stop();
    assert_eq!((status.code(), status.signal()), (Some(0), None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_leaves_no_line_behind_that_a_live_reader_takes() {
    let mut program = Logging::start("text", OFlags::empty()).await;
    program.statuses(1).await;
    let mut reader = program.log.take().unwrap();
    let reading = std::thread::spawn(move || read_until(&mut reader, "stopped; every request"));
    assert_eq!(program.stop().code(), Some(0));
    reading.join().expect("the last line comes out");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_that_was_made_non_blocking_loses_no_line_and_costs_no_cpu() {
    let mut program = Logging::start("text", OFlags::NONBLOCK).await;
    // Less than the queue holds.
    const FEW: usize = 600;
    assert_eq!(program.statuses(FEW).await, vec![(200, 403); FEW]);
    program.ready_with(Some("stalled")).await;
    let (before, since) = (program.writer_ticks(), Instant::now());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let spent = program.writer_ticks() - before;
    assert!(
        u128::from(spent) * 10 < since.elapsed().as_millis() / 4,
        "{spent} ticks"
    );
    let mut reader = program.log.take().unwrap();
    let lines = tokio::task::spawn_blocking(move || {
        for _ in 0..=FEW {
            read_until(&mut reader, "audit");
        }
        reader
    });
    program.log = Some(lines.await.expect("all lines come"));
    assert_eq!(
        program.dropped("full").await + program.dropped("failed").await,
        0
    );
    assert_eq!(program.stop().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_pipe_ends_nothing_and_costs_no_cpu() {
    let mut program = Logging::start("json", OFlags::empty()).await;
    drop(program.log.take());
    assert_eq!(program.statuses(20).await, [(200, 403); 20]);
    let log = program.ready_with(Some("failing")).await;
    assert!(log["lines_dropped"].as_u64().unwrap() > 0, "{log}");
    assert!(program.dropped("failed").await > 0);
    let (before, since) = (program.writer_ticks(), Instant::now());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let spent = program.writer_ticks() - before;
    assert!(
        u128::from(spent) * 10 < since.elapsed().as_millis() / 4,
        "{spent} ticks"
    );
    assert_eq!(program.statuses(1).await, [(200, 403)]);
    assert_eq!(program.stop().code(), Some(0));
}
