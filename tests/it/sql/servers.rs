//! Real database servers for tests: in folders of their own, on Unix sockets, ended with their
//! handles.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::TcpListener,
    os::unix::{fs::chown, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use tempfile::TempDir;

/// What starts a server, besides its data.
type Launch = fn(&Server) -> Command;

/// A running server. Dropping it ends it.
pub struct Server {
    pub folder: TempDir,
    pub tcp: Option<u16>,
    launch: Launch,
    child: Option<Child>,
}

pub const PASSWORD: &str = "only-for-the-test";
/// Debian's `nobody`: database servers refuse to run as root.
const NOBODY: u32 = 65_534;
const NEEDS_POSTGRES: &str =
    "this test runs a real PostgreSQL: install it (Debian: apt-get install postgresql)";
const NEEDS_MARIADB: &str =
    "this test runs a real MariaDB: install it (Debian: apt-get install mariadb-server)";

impl Server {
    /// PostgreSQL with a user `wxgate`, who needs no password: making sure of one takes long
    /// without optimisation.
    pub fn postgres() -> Self {
        Self::make_postgres().running()
    }

    /// The same on a free port of 127.0.0.1 too, where a password is needed, with the certificate
    /// `server.pem`.
    pub fn postgres_with_tls(certificate: &str, key: &str) -> Self {
        let mut server = Self::make_postgres();
        for (name, text) in [("server.pem", certificate), ("server.key", key)] {
            let path = server.folder.path().join(name);
            fs::write(&path, text).expect("the folder can be written");
            set_mode(&path, 0o600);
            give_away(&path);
        }
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        server.tcp = Some(free.local_addr().expect("bound").port());
        drop(free);
        server.running()
    }

    fn make_postgres() -> Self {
        let server = Self::on_folder(postgres);
        let secret = server.folder.path().join("password");
        fs::write(&secret, PASSWORD).expect("the folder can be written");
        give_away(&secret);
        let mut command = command(&postgres_tool("initdb"), server.folder.path());
        command.args([
            "--no-sync",
            "--encoding=UTF8",
            "--locale=C",
            "--username=wxgate",
        ]);
        command.args(["--auth-local=trust", "--auth-host=scram-sha-256"]);
        command
            .arg("--pwfile")
            .arg(&secret)
            .arg("--pgdata")
            .arg(server.folder.path().join("data"));
        done(command, NEEDS_POSTGRES);
        server
    }

    /// MariaDB with a database and a user `wxgate` that needs a password.
    pub fn mariadb() -> Self {
        let server = Self::on_folder(mariadb);
        let grants = format!(
            "CREATE DATABASE wxgate;\nCREATE USER wxgate@localhost IDENTIFIED BY '{PASSWORD}';\n\
             GRANT ALL ON wxgate.* TO wxgate@localhost;\n"
        );
        fs::write(server.folder.path().join("grants.sql"), grants)
            .expect("the folder can be written");
        let mut command = command("mariadb-install-db", server.folder.path());
        command.args([
            "--no-defaults",
            "--skip-test-db",
            "--auth-root-authentication-method=normal",
        ]);
        command.arg(format!(
            "--datadir={}",
            server.folder.path().join("data").display()
        ));
        done(command, NEEDS_MARIADB);
        let mut server = server.running();
        fs::remove_file(server.folder.path().join("grants.sql")).expect("it is there");
        server.tcp = None;
        server
    }

    fn on_folder(launch: Launch) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        give_away(folder.path());
        Self {
            folder,
            tcp: None,
            launch,
            child: None,
        }
    }

    fn running(mut self) -> Self {
        self.start();
        self
    }

    /// Starts it on the data that are there, and waits until it answers.
    pub fn start(&mut self) {
        let mut command = (self.launch)(self);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it ran");
        let mut log = BufReader::new(child.stderr.take().expect("piped"));
        self.child = Some(child);
        let (mut line, mut all) = (String::new(), String::new());
        while !line.contains("ready to accept connections")
            && !line.contains("ready for connections")
        {
            line.clear();
            assert!(
                log.read_line(&mut line).expect("its log is text") > 0,
                "the server did not start:\n{all}"
            );
            all.push_str(&line);
        }
        // Nobody reads on, and a server whose log goes nowhere must not stop for it.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
    }

    /// Ends it without a word to its clients.
    pub fn kill(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        let pid = pid_of(&child);
        for process in family(pid) {
            let _ = kill_process(process, Signal::CONT);
        }
        // PostgreSQL ends at once with all it has started; MariaDB is one process.
        let _ = kill_process(pid, Signal::QUIT);
        let _ = child.wait();
    }

    /// Stops it, so that it neither answers nor hangs up.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    pub fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let pid = pid_of(self.child.as_ref().expect("it runs"));
        for process in family(pid) {
            kill_process(process, signal).expect("it runs");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn postgres(server: &Server) -> Command {
    let folder = server.folder.path();
    let mut command = command(&postgres_tool("postgres"), folder);
    command
        .arg("-D")
        .arg(folder.join("data"))
        .arg("-k")
        .arg(folder);
    // No promise about a crash of the machine is needed here.
    command.args(["-c", "fsync=off", "-c", "max_connections=200"]);
    match server.tcp {
        None => command.args(["-c", "listen_addresses="]),
        Some(port) => {
            command.args([
                "-c",
                "listen_addresses=127.0.0.1",
                "-c",
                "ssl=on",
                "-p",
                &port.to_string(),
            ]);
            command.arg("-c").arg(format!(
                "ssl_cert_file={}",
                folder.join("server.pem").display()
            ));
            command.arg("-c").arg(format!(
                "ssl_key_file={}",
                folder.join("server.key").display()
            ))
        }
    };
    command
}

fn mariadb(server: &Server) -> Command {
    let folder = server.folder.path();
    let mut command = command("mariadbd", folder);
    command.args([
        "--no-defaults",
        "--skip-networking",
        "--innodb-buffer-pool-size=16M",
        "--max-connections=200",
    ]);
    command.arg("--innodb-flush-log-at-trx-commit=0");
    for (option, name) in [
        ("datadir", "data"),
        ("socket", "mariadb.sock"),
        ("pid-file", "mariadb.pid"),
    ] {
        command.arg(format!("--{option}={}", folder.join(name).display()));
    }
    let grants = folder.join("grants.sql");
    if grants.exists() {
        command.arg(format!("--init-file={}", grants.display()));
    }
    command
}

/// Debian keeps the tools of each version out of the path.
fn postgres_tool(name: &str) -> String {
    let versions = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(Result::ok);
    let mut found: Vec<PathBuf> = versions
        .map(|entry| entry.path().join("bin").join(name))
        .filter(|p| p.exists())
        .collect();
    found.sort();
    found
        .pop()
        .map_or_else(|| name.to_owned(), |path| path.display().to_string())
}

/// Beside others of its kind, each needs a folder of its own for what is temporary.
fn command(program: &str, folder: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .current_dir("/")
        .env("LC_ALL", "C")
        .env("HOME", "/")
        .env("TMPDIR", folder);
    if geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

fn done(mut command: Command, needed: &str) {
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{error}; {needed}"));
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn give_away(path: &Path) {
    if geteuid().is_root() {
        chown(path, Some(NOBODY), Some(NOBODY)).expect("root may");
    }
}

fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("it is ours");
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).expect("a pid")).expect("not zero")
}

/// The process and those that it has started.
fn family(parent: Pid) -> Vec<Pid> {
    let children = format!("/proc/{0}/task/{0}/children", parent.as_raw_nonzero());
    let children = fs::read_to_string(children).unwrap_or_default();
    let children = children
        .split_whitespace()
        .filter_map(|pid| Pid::from_raw(pid.parse().ok()?));
    std::iter::once(parent).chain(children).collect()
}
