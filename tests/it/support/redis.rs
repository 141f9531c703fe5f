//! A real redis-server for tests: on a Unix socket in a folder of its own, ended with its handle.

use std::{
    io::{BufRead as _, BufReader},
    net,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
};

use redis::{Client, Connection, FromRedisValue, RedisResult};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncWrite, copy_bidirectional},
    net::{TcpListener, UnixStream},
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

const NEEDED: &str =
    "this test runs a real Redis: install redis-server (Debian: apt-get install redis-server)";

/// A server without persistence. Dropping it kills it.
pub struct RedisServer {
    folder: TempDir,
    child: Option<Child>,
    arguments: Vec<String>,
    sentinel: Option<PathBuf>,
}

/// A TCP port in front of a server, with TLS if so wished. Dropping it closes the port, not what is
/// open.
pub struct Door {
    pub port: u16,
    task: JoinHandle<()>,
}

impl RedisServer {
    pub fn start() -> Self {
        Self::start_with(&["--port", "0"])
    }

    /// With arguments of one's own, which come last.
    pub fn start_with(arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(ToString::to_string).collect();
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut server = Self {
            folder,
            child: None,
            arguments,
            sentinel: None,
        };
        server.restart();
        server
    }

    /// A Sentinel with this configuration, which it writes to.
    pub fn sentinel(lines: &str, port: u16) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("sentinel.conf");
        std::fs::write(&file, lines).expect("written");
        let arguments = vec!["--port".to_owned(), port.to_string()];
        let mut server = Self {
            folder,
            child: None,
            arguments,
            sentinel: Some(file),
        };
        server.restart();
        server
    }

    /// Kills it if it runs, and starts an empty one at the same place.
    pub fn restart(&mut self) {
        self.kill();
        let mut command = Command::new("redis-server");
        match &self.sentinel {
            Some(file) => command.arg(file).arg("--sentinel"),
            None => command.args(["--save", "", "--appendonly", "no"]),
        };
        command.args(["--daemonize", "no", "--logfile", ""]);
        command
            .arg("--unixsocket")
            .arg(self.socket())
            .arg("--dir")
            .arg(self.folder.path());
        command.args(&self.arguments);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{error}; {NEEDED}"));
        let mut log = BufReader::new(child.stdout.take().expect("piped"));
        self.child = Some(child);
        let mut line = String::new();
        while !line.contains("eady to accept connections") && !line.contains("Sentinel ID is") {
            line.clear();
            assert!(
                log.read_line(&mut line).expect("its log is text") > 0,
                "redis-server did not start"
            );
        }
        // Nobody reads on, and a server whose log goes nowhere must not stop for it.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
    }

    /// Ends it at once. The socket file stays, as after a crash.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Stops or continues the process.
    pub fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("it runs");
        kill_process(Pid::from_child(child), signal).expect("a process of our own");
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("redis.sock")
    }

    /// The form that configurations take; `more` is a query, such as `?user=a&pass=b`.
    pub fn url(&self, more: &str) -> String {
        format!("unix://{}{more}", self.socket().display())
    }

    pub fn connect(&self) -> Connection {
        self.try_connect().expect("redis-server answers")
    }

    fn try_connect(&self) -> RedisResult<Connection> {
        Client::open(self.url("")).expect("a path").get_connection()
    }

    /// Runs one command.
    pub fn run<T: FromRedisValue>(&self, words: &[&str]) -> T {
        self.try_run(words)
            .unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    /// Runs one command, where the server may have its reasons to close the connection.
    pub fn try_run<T: FromRedisValue>(&self, words: &[&str]) -> RedisResult<T> {
        let (command, arguments) = words.split_first().expect("a command");
        redis::cmd(command)
            .arg(arguments)
            .query(&mut self.try_connect()?)
    }

    pub fn set(&self, key: &str, value: &str) {
        self.run::<()>(&["SET", key, value]);
    }

    /// How often a command was carried out.
    pub fn calls(&self, command: &str) -> u64 {
        let stats: String = self.run(&["INFO", "commandstats"]);
        let line = stats
            .lines()
            .find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
        line.and_then(|rest| rest.split(',').next()?.parse().ok())
            .unwrap_or(0)
    }

    /// Lets it be reached over TCP.
    pub async fn door(&self, tls: Option<TlsAcceptor>) -> Door {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let socket = Arc::new(self.socket());
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, socket) = (tls.clone(), Arc::clone(&socket));
                tokio::spawn(async move {
                    match tls {
                        None => pass(stream, &socket).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                pass(stream, &socket).await;
                            }
                        }
                    }
                });
            }
        });
        Door { port, task }
    }
}

async fn pass(mut outside: impl AsyncRead + AsyncWrite + Unpin, socket: &PathBuf) {
    if let Ok(mut inside) = UnixStream::connect(socket).await {
        let _ = copy_bidirectional(&mut outside, &mut inside).await;
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A free port. Somebody else may take it before we do; then the test fails, and would not the next
/// time.
pub fn free_port() -> u16 {
    net::TcpListener::bind("127.0.0.1:0")
        .expect("a port")
        .local_addr()
        .expect("bound")
        .port()
}

/// A Sentinel that watches a server as `mymaster`, and takes a second and a half of silence for its
/// end.
pub struct Sentinel {
    pub port: u16,
    server: RedisServer,
}

impl Sentinel {
    /// `quorum`: how many of them have to agree that the server is gone.
    pub fn start(primary: u16, quorum: usize) -> Self {
        let port = free_port();
        let lines = format!(
            "sentinel monitor mymaster 127.0.0.1 {primary} {quorum}\nsentinel down-after-milliseconds mymaster 1500\n\
             sentinel failover-timeout mymaster 5000\n"
        );
        let server = RedisServer::sentinel(&lines, port);
        Self { port, server }
    }

    /// The port of the server that it calls the primary.
    pub fn primary(&self) -> u16 {
        let address: Vec<String> =
            self.server
                .run(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster"]);
        address[1].parse().expect("a port")
    }

    pub fn knows(&self, what: &str, value: &str) -> bool {
        let facts: Vec<String> = self.server.run(&["SENTINEL", "MASTER", "mymaster"]);
        facts.chunks(2).any(|pair| pair == [what, value])
    }
}
