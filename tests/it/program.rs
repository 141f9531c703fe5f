//! The real program as a process of its own, for what only the kernel or the environment can show.

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, mpsc},
};

use tempfile::TempDir;
use wxgate::sandbox::Sandbox;

use crate::{support::Setup, wire::DEADLINE};

/// A running `wxgate serve`. Dropping it ends it.
pub struct Program {
    child: Child,
    pub proxy: SocketAddr,
    log: Arc<Mutex<String>>,
    _folder: TempDir,
}

impl Program {
    /// Starts it against this sandbox, with these variables and no others of its kind.
    pub fn start(setup: &Setup, sandbox: &Sandbox, variables: &[(&str, String)]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("root.pem"), sandbox.ca_pem()).expect("the root is written");
        let file = folder.path().join("wxgate.toml");
        std::fs::write(&file, setup.file(sandbox)).expect("the file is written");
        let mut command = Command::new(env!("CARGO_BIN_EXE_wxgate"));
        command.arg("serve").arg("--config").arg(&file).env("TMPDIR", folder.path());
        command.env_remove("WXGATE_LOG").envs(variables.iter().map(|(name, value)| (name, value)));
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the program starts");
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        let log = Arc::new(Mutex::new(String::new()));
        let (found, address) = mpsc::channel();
        let written = Arc::clone(&log);
        // Reads on to the end, so that the program never waits for room in the pipe.
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if line.contains("serving WeChat's API") {
                    let _ = found.send(address_in(&line));
                }
                let mut log = written.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        let proxy = address.recv_timeout(DEADLINE);
        let proxy = proxy.unwrap_or_else(|_| panic!("the program does not serve:\n{}", log.lock().unwrap()));
        Self { child, proxy, log, _folder: folder }
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// The most memory that it ever had resident, in bytes.
    pub fn peak(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("Linux tells");
        line.split_whitespace().nth(1).expect("a number").parse::<u64>().expect("in kB") * 1024
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn address_in(line: &str) -> SocketAddr {
    let start = line.find("127.0.0.1:").expect("the address stands in the line");
    let end = line[start + 10..].find(|c: char| !c.is_ascii_digit()).map_or(line.len(), |end| start + 10 + end);
    line[start..end].parse().expect("an address")
}
