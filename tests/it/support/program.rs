//! Runs the real program as a process of its own and reads what it writes.

use std::{
    io::Read,
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc, Condvar, Mutex,
        mpsc::{Receiver, channel},
    },
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::time::Instant;
use wxgate::sandbox::Sandbox;

use crate::support::Setup;

/// Nothing here takes longer than this, even on a busy machine; reaching it fails the test.
pub const LIMIT: Duration = Duration::from_secs(60);

/// The program with arguments, in a clean environment.
pub fn wxgate(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wxgate"));
    command.args(arguments).env_clear().stdin(Stdio::null());
    for kept in [
        "PATH",
        "HOME",
        "TMPDIR",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "LLVM_PROFILE_FILE",
    ] {
        if let Some(value) = std::env::var_os(kept) {
            command.env(kept, value);
        }
    }
    command
}

/// What a program that has ended left behind.
#[derive(Debug)]
pub struct Ended {
    /// `None` after a signal.
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// A program that runs. Dropping it kills it.
pub struct Program {
    pub pid: Pid,
    stdout: Arc<Written>,
    stderr: Arc<Written>,
    ended: Receiver<Option<i32>>,
    status: Option<Option<i32>>,
}

/// What a program wrote so far.
#[derive(Default)]
struct Written {
    state: Mutex<(Vec<u8>, bool)>,
    more: Condvar,
}

/// Runs a program to its end.
#[track_caller]
pub fn finish(mut command: Command) -> Ended {
    Program::start(&mut command).end()
}

/// A folder with the configuration of the set-up and the sandbox's root certificate.
pub fn folder(setup: &Setup, sandbox: &Sandbox) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join("root.pem"), sandbox.ca_pem()).expect("the root is written");
    std::fs::write(folder.path().join("wxgate.toml"), setup.file(sandbox))
        .expect("the configuration is written");
    folder
}

/// `wxgate serve` with the configuration of a folder.
pub fn serve(folder: &Path) -> Command {
    let mut command = wxgate(&["serve", "--config"]);
    command.arg(folder.join("wxgate.toml")).current_dir(folder);
    command
}

impl Program {
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let pid = Pid::from_child(&child);
        let stdout = Written::of(child.stdout.take().expect("a pipe"));
        let stderr = Written::of(child.stderr.take().expect("a pipe"));
        let (tell, ended) = channel();
        std::thread::spawn(move || {
            let status = child.wait().expect("the program can be waited for");
            let _ = tell.send(status.code());
        });
        Self {
            pid,
            stdout,
            stderr,
            ended,
            status: None,
        }
    }

    /// Waits for a line on standard error that contains `part`, and returns it.
    #[track_caller]
    pub fn logged(&self, part: &str) -> String {
        self.stderr.line(part)
    }

    /// The same on standard output.
    #[track_caller]
    pub fn printed(&self, part: &str) -> String {
        self.stdout.line(part)
    }

    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// Where the data listener stands, as the log says.
    #[track_caller]
    pub fn proxy(&self) -> SocketAddr {
        address(&self.logged("serving WeChat's API"))
    }

    /// Where the admin listener stands, as the log says.
    #[track_caller]
    pub fn admin(&self) -> SocketAddr {
        address(&self.logged("admin listener"))
    }

    /// The most memory that it ever had resident, in bytes.
    pub fn peak(&self) -> u64 {
        self.memory("VmHWM:")
    }

    /// The memory that it has resident, in bytes.
    pub fn resident(&self) -> u64 {
        self.memory("VmRSS:")
    }

    fn memory(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid.as_raw_nonzero()))
            .expect("it runs");
        let line = status
            .lines()
            .find(|line| line.starts_with(field))
            .expect("Linux tells");
        line.split_whitespace()
            .nth(1)
            .expect("a number")
            .parse::<u64>()
            .expect("in kB")
            * 1024
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid, signal).expect("the program is there");
    }

    /// Asks it to stop and waits for that.
    #[track_caller]
    pub fn stop(self) -> Ended {
        self.signal(Signal::TERM);
        self.end()
    }

    /// Waits for the end.
    #[track_caller]
    pub fn end(mut self) -> Ended {
        let status = self
            .ended
            .recv_timeout(LIMIT)
            .unwrap_or_else(|_| panic!("still running:\n{}", self.stderr()));
        self.status = Some(status);
        Ended {
            status,
            stdout: self.stdout.rest(),
            stderr: self.stderr.rest(),
        }
    }

    pub fn is_running(&mut self) -> bool {
        if self.status.is_none() {
            self.status = self.ended.try_recv().ok();
        }
        self.status.is_none()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if self.is_running() {
            let _ = kill_process(self.pid, Signal::KILL);
        }
    }
}

impl Written {
    fn of(mut pipe: impl Read + Send + 'static) -> Arc<Self> {
        let written = Arc::new(Self::default());
        let kept = Arc::clone(&written);
        std::thread::spawn(move || {
            let mut buffer = [0; 64 * 1024];
            loop {
                let count = pipe.read(&mut buffer).unwrap_or(0);
                let mut state = kept.state.lock().unwrap();
                state.0.extend_from_slice(&buffer[..count]);
                state.1 = count == 0;
                kept.more.notify_all();
                if count == 0 {
                    return;
                }
            }
        });
        written
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.state.lock().unwrap().0).into_owned()
    }

    /// Everything, once the pipe is closed.
    #[track_caller]
    fn rest(&self) -> String {
        let state = self.state.lock().unwrap();
        let (state, late) = self
            .more
            .wait_timeout_while(state, LIMIT, |state| !state.1)
            .unwrap();
        assert!(!late.timed_out(), "somebody still holds the pipe");
        String::from_utf8_lossy(&state.0).into_owned()
    }

    #[track_caller]
    fn line(&self, part: &str) -> String {
        let deadline = Instant::now() + LIMIT;
        let mut state = self.state.lock().unwrap();
        loop {
            let text = String::from_utf8_lossy(&state.0).into_owned();
            // A line that is still being written is no line yet.
            let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
            if let Some(line) = whole.lines().find(|line| line.contains(part)) {
                return line.to_owned();
            }
            assert!(
                !state.1 && Instant::now() < deadline,
                "{part:?} was not written:\n{text}"
            );
            state = self
                .more
                .wait_timeout(state, Duration::from_secs(1))
                .unwrap()
                .0;
        }
    }
}

/// The loopback address in a line.
#[track_caller]
pub fn address(line: &str) -> SocketAddr {
    let start = line
        .find("127.0.0.1:")
        .unwrap_or_else(|| panic!("no address in {line:?}"));
    let rest = &line[start..];
    let is_part = |c: char| c.is_ascii_digit() || c == '.' || c == ':';
    rest[..rest.find(|c| !is_part(c)).unwrap_or(rest.len())]
        .parse()
        .expect("an address")
}
