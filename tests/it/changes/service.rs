//! The program as a service manager runs it: its log in a file, since the process that replaces
//! another one writes to the same place, and the process found by the lock of the store.

use std::{
    fs::{self, File},
    net::SocketAddr,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::time::Instant;
use wxgate::sandbox::{self, Sandbox};

use crate::support::{
    Setup,
    program::{LIMIT, address, wxgate},
    setup,
};

/// A service, whichever process it consists of. Dropping it kills them all.
pub struct Service {
    pub folder: TempDir,
    pub sandbox: Sandbox,
    pub first: Child,
    pids: Vec<Pid>,
}

/// A process that a test restarts itself. Dropping it kills it.
pub struct Node(pub Child);

/// Folder with a configuration, and with the program behind a link that can be replaced.
pub fn prepare(setup: &Setup, sandbox: &Sandbox) -> TempDir {
    let folder = crate::support::program::folder(setup, sandbox);
    symlink(env!("CARGO_BIN_EXE_wxgate"), program(folder.path())).expect("a link");
    folder
}

/// Path of the program in a folder.
pub fn program(folder: &Path) -> PathBuf {
    folder.join("wxgate")
}

/// Configuration with a file store, whose lock names the process.
pub fn stored() -> Setup {
    setup()
        .set("store", "kind = \"file\"")
        .set("store", "path = \"state\"")
}

/// The command that serves in a folder, with its log in a file there.
pub fn command(folder: &Path) -> Command {
    let mut command = Command::new(program(folder));
    command
        .args(["serve", "--config"])
        .arg(folder.join("wxgate.toml"));
    clean(&mut command, folder);
    command
}

/// Gives a command the environment and the log of a service.
pub fn clean(command: &mut Command, folder: &Path) {
    command.env_clear();
    for (name, value) in wxgate(&[]).get_envs() {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    let log = File::options()
        .create(true)
        .append(true)
        .open(folder.join("log"))
        .expect("a log");
    command
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
}

impl Service {
    pub async fn start(setup: Setup) -> Self {
        Self::start_with(setup, |_| {}).await
    }

    pub async fn start_with(setup: Setup, change: impl FnOnce(&mut Command)) -> Self {
        let sandbox = sandbox::start(sandbox::SandboxSettings::default())
            .await
            .expect("the sandbox starts");
        let folder = prepare(&setup, &sandbox);
        let mut command = command(folder.path());
        change(&mut command);
        Self::run(command, folder, sandbox)
    }

    pub fn run(mut command: Command, folder: TempDir, sandbox: Sandbox) -> Self {
        let first = command.spawn().expect("the program starts");
        let pids = vec![Pid::from_child(&first)];
        Self {
            folder,
            sandbox,
            first,
            pids,
        }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Where the data listener on TCP stands.
    #[track_caller]
    pub fn proxy(&self) -> SocketAddr {
        address(&self.logged("token is needed here address=127.0.0.1:", 1))
    }

    /// Where the admin listener stands.
    #[track_caller]
    pub fn admin(&self) -> SocketAddr {
        address(&self.logged("admin listener", 1))
    }

    /// Waits until so many lines of the log contain `part`, and returns the last of them.
    #[track_caller]
    pub fn logged(&self, part: &str, times: usize) -> String {
        let deadline = Instant::now() + LIMIT;
        loop {
            let log = self.log();
            let lines: Vec<_> = log.lines().filter(|line| line.contains(part)).collect();
            if lines.len() >= times {
                return (*lines.last().expect("one")).to_owned();
            }
            assert!(Instant::now() < deadline, "{part:?} × {times}:\n{log}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Process that serves now.
    pub fn pid(&self) -> Pid {
        *self.pids.last().expect("one")
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("it runs");
    }

    /// Has the program replaced, and waits until the new process serves.
    #[track_caller]
    pub fn replace(&mut self) {
        let done = self.log().matches("replaced: the new process").count();
        self.signal(Signal::USR2);
        self.logged("replaced: the new process", done + 1);
        let before = self.pid();
        let pid = locked_by(self.folder.path()).expect("the store is locked");
        assert_ne!(pid, before, "the lock names the new process");
        self.pids.push(pid);
    }

    /// Waits until a former process, the first one for 0, has ended.
    #[track_caller]
    pub fn ended(&mut self, index: usize) {
        let deadline = Instant::now() + LIMIT;
        while self.is_running(index) {
            assert!(Instant::now() < deadline, "still there:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn is_running(&mut self, index: usize) -> bool {
        if index == 0 {
            return self.first.try_wait().expect("a child").is_none();
        }
        is_alive(self.pids[index])
    }

    /// Stops the process that serves and waits for its end.
    #[track_caller]
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        self.ended(self.pids.len() - 1);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let last = locked_by(self.folder.path());
        for pid in self.pids.iter().copied().skip(1).chain(last) {
            if is_alive(pid) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        let _ = self.first.kill();
        let _ = self.first.wait();
    }
}

/// Process whose number is in the lock of the folder's store.
pub fn locked_by(folder: &Path) -> Option<Pid> {
    let text = fs::read_to_string(folder.join("state/lock")).ok()?;
    Pid::from_raw(text.trim().parse().ok()?)
}

/// Tells if a process runs. One that has ended may not have been waited for.
pub fn is_alive(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    stat.is_ok_and(|stat| {
        let state = stat.rsplit(')').next().unwrap_or_default().trim_start();
        !state.starts_with(['Z', 'X'])
    })
}
