//! Child processes: bound to a core, waited for, and ended by their process id when dropped.

use std::{
    fs::{self, File},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child as Process, Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::Instant;

use super::{Outcome, systems::on_path};

/// Child process, killed when dropped.
pub(crate) struct Child {
    process: Process,
    /// File with standard output and standard error.
    output: PathBuf,
}

/// Returns the command, bound to a core if `taskset` is there.
pub(crate) fn pinned(command: &Command, core: Option<usize>) -> Command {
    let Some(core) = core.filter(|_| on_path("taskset").is_some()) else {
        return copy(command, None);
    };
    copy(command, Some(core))
}

fn copy(command: &Command, core: Option<usize>) -> Command {
    let mut copy = match core {
        Some(core) => {
            let mut taskset = Command::new("taskset");
            taskset
                .arg("-c")
                .arg(core.to_string())
                .arg(command.get_program());
            taskset
        }
        None => Command::new(command.get_program()),
    };
    copy.args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => copy.env(name, value),
            None => copy.env_remove(name),
        };
    }
    copy
}

/// Returns a port on loopback that is free at this moment.
pub(crate) fn free_port() -> Outcome<u16> {
    let port = TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
    port.map(|address| address.port())
        .map_err(|error| format!("no free port: {error}"))
}

impl Child {
    /// Starts a process with its output in a file.
    pub(crate) fn spawn(command: &mut Command, output: &Path) -> Outcome<Self> {
        let file = File::create(output).map_err(|error| error.to_string())?;
        let both = file.try_clone().map_err(|error| error.to_string())?;
        command.stdin(Stdio::null()).stdout(file).stderr(both);
        let process = command.spawn();
        let process = process.map_err(|error| {
            format!("cannot start {}: {error}", command.get_program().display())
        })?;
        Ok(Self {
            process,
            output: output.to_owned(),
        })
    }

    /// Starts a process with a pipe as standard error. The other end is held here and never read.
    pub(crate) fn spawn_unread(command: &mut Command) -> Outcome<Self> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let process = command.spawn();
        let process = process.map_err(|error| {
            format!("cannot start {}: {error}", command.get_program().display())
        })?;
        Ok(Self {
            process,
            output: PathBuf::new(),
        })
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Waits until something listens on a port.
    pub(crate) fn listens(&mut self, port: u16, patience: Duration) -> Outcome {
        let end = Instant::now() + patience;
        loop {
            if let Ok(Some(status)) = self.process.try_wait() {
                return Err(format!("it ended with {status}: {}", self.said()));
            }
            if TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).is_ok() {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(format!(
                    "it does not listen after {} s: {}",
                    patience.as_secs(),
                    self.said()
                ));
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Returns the end of the output.
    pub(crate) fn said(&self) -> String {
        let said = fs::read(&self.output).unwrap_or_default();
        let tail = String::from_utf8_lossy(&said[said.len().saturating_sub(800)..]).into_owned();
        if tail.trim().is_empty() {
            "it said nothing".to_owned()
        } else {
            tail.trim().to_owned()
        }
    }

    /// Sends SIGTERM once a second until the process has ended.
    pub(crate) fn end(mut self, patience: Duration) -> Outcome<ExitStatus> {
        let start = Instant::now();
        let mut asked = 0;
        while start.elapsed() < patience {
            if start.elapsed().as_secs() >= asked {
                asked += 1;
                if let Some(pid) = i32::try_from(self.id()).ok().and_then(Pid::from_raw) {
                    let _ = kill_process(pid, Signal::TERM);
                }
            }
            if let Ok(Some(status)) = self.process.try_wait() {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(20));
        }
        Err(format!("it does not end: {}", self.said()))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
