//! Proxies under comparison: their configuration for the same job, and the packages that they need.
//!
//! All verify the certificate of the upstream, keep connections to the upstream open, allow TLS 1.2
//! and 1.3, add the same token and run on one core. Only wxgate also identifies callers, checks
//! their rights, inspects answers, logs and counts.

use std::{env, fs, path::PathBuf, process::Command, time::Duration};

use clap::ValueEnum;

use super::{
    Outcome,
    child::{Child, free_port, pinned},
    driver::Driver,
    tls::HOST,
    workload::{self, Workload},
    world::{TOKEN, World},
};

/// Key of the client `bench`.
const KEY: &str = "0f1e2d3c4b5a69788796a5b4c3d2e1f0";

/// Reason for leaving out a system that copies bodies.
pub(crate) const UPLOADS_ONLY: &str = "it takes part in up10m only";

/// Proxy under comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum System {
    Nginx,
    /// nginx as configured by default: writes a body to a file before sending it on.
    NginxCopy,
    NginxLua,
    Haproxy,
    Envoy,
    /// hyper with a simple pool.
    Bare,
    /// hyper with a simple pool, and with bodies copied to a file.
    BareCopy,
    /// hyper with the client of hyper-util.
    Legacy,
    /// wxgate with a client known by its network.
    Wxgate,
    /// wxgate with a client known by its key.
    WxgateKey,
}

/// Proxy that is running.
pub(crate) struct Running {
    pub(crate) system: System,
    pub(crate) child: Child,
    pub(crate) port: u16,
}

impl System {
    /// All systems, in the order of tables.
    pub(crate) const ALL: [Self; 10] = [
        Self::Nginx,
        Self::NginxCopy,
        Self::NginxLua,
        Self::Haproxy,
        Self::Envoy,
        Self::Bare,
        Self::BareCopy,
        Self::Legacy,
        Self::Wxgate,
        Self::WxgateKey,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::NginxCopy => "nginx-copy",
            Self::NginxLua => "nginx-lua",
            Self::Haproxy => "haproxy",
            Self::Envoy => "envoy",
            Self::Bare => "bare",
            Self::BareCopy => "bare-copy",
            Self::Legacy => "legacy",
            Self::Wxgate => "wxgate",
            Self::WxgateKey => "wxgate-key",
        }
    }

    /// True if the workload applies. Systems that copy bodies differ from their counterparts with
    /// large bodies only, and take no other workload.
    pub(crate) fn takes(self, workload: Workload) -> bool {
        !matches!(self, Self::NginxCopy | Self::BareCopy) || workload == Workload::Up10m
    }

    /// Key that callers show.
    pub(crate) fn key(self) -> Option<&'static str> {
        (self == Self::WxgateKey).then_some(KEY)
    }

    /// Reason why the system cannot run here, with the missing package.
    pub(crate) fn missing(self) -> Option<String> {
        let needs = |program: &str, package: &str| {
            on_path(program)
                .is_none()
                .then(|| format!("{program} is not on PATH ({package})"))
        };
        match self {
            Self::Nginx | Self::NginxCopy => needs("nginx", "Debian: apt-get install nginx"),
            Self::NginxLua => needs(
                "nginx",
                "Debian: apt-get install nginx libnginx-mod-http-lua",
            )
            .or_else(|| {
                let module = nginx_modules().join("ngx_http_lua_module.so");
                let there = fs::exists(&module).unwrap_or(false);
                (!there).then(|| {
                    format!(
                        "no {} (Debian: apt-get install libnginx-mod-http-lua)",
                        module.display()
                    )
                })
            }),
            Self::Haproxy => needs("haproxy", "Debian: apt-get install haproxy"),
            Self::Envoy => needs("envoy", "https://www.envoyproxy.io, not in Debian"),
            Self::Bare | Self::BareCopy | Self::Legacy | Self::Wxgate | Self::WxgateKey => None,
        }
    }

    /// Returns the command that listens on this port, and writes its configuration.
    pub(crate) fn command(self, world: &World, port: u16) -> Outcome<Command> {
        self.command_to(world, world.upstream_port, port)
    }

    fn command_to(self, world: &World, upstream: u16, port: u16) -> Outcome<Command> {
        let mut command;
        match self {
            Self::Nginx | Self::NginxCopy | Self::NginxLua => {
                command = program("nginx");
                command
                    .args(["-e", "stderr", "-c"])
                    .arg(self.configuration(world, upstream, port)?);
            }
            Self::Haproxy => {
                command = program("haproxy");
                command
                    .args(["-db", "-f"])
                    .arg(self.configuration(world, upstream, port)?);
            }
            Self::Envoy => {
                command = program("envoy");
                command.args([
                    "--concurrency",
                    "1",
                    "--disable-hot-restart",
                    "-l",
                    "error",
                    "-c",
                ]);
                command.arg(self.configuration(world, upstream, port)?);
            }
            Self::Bare | Self::BareCopy | Self::Legacy => {
                command = Command::new(&world.exe);
                command.args(["bare", self.name(), "--token", TOKEN]);
                command.args([
                    "--port",
                    &port.to_string(),
                    "--upstream",
                    &upstream.to_string(),
                    "--ca",
                ]);
                command.arg(world.path("ca.pem"));
            }
            Self::Wxgate | Self::WxgateKey => {
                command = Command::new(&world.wxgate);
                command
                    .args(["serve", "--config"])
                    .arg(self.configuration(world, upstream, port)?);
                for (name, _) in
                    env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("WXGATE_"))
                {
                    command.env_remove(name);
                }
            }
        }
        Ok(command)
    }

    fn configuration(self, world: &World, upstream: u16, port: u16) -> Outcome<PathBuf> {
        let (template, ending) = match self {
            Self::Nginx | Self::NginxCopy => (include_str!("conf/nginx.conf"), "conf"),
            Self::NginxLua => (include_str!("conf/nginx-lua.conf"), "conf"),
            Self::Haproxy => (include_str!("conf/haproxy.cfg"), "cfg"),
            Self::Envoy => (include_str!("conf/envoy.yaml"), "yaml"),
            _ => (include_str!("conf/wxgate.toml"), "toml"),
        };
        let client = match self.key() {
            Some(key) => format!("key = {{ value = \"{key}\" }}"),
            None => "from = [\"loopback\"]".to_owned(),
        };
        let mut text = template.to_owned();
        for (place, value) in [
            ("@SCRATCH@", world.path(self.name()).display().to_string()),
            ("@CA@", world.path("ca.pem").display().to_string()),
            ("@MODULES@", nginx_modules().display().to_string()),
            ("@PORT@", port.to_string()),
            ("@UPSTREAM@", upstream.to_string()),
            ("@TOKEN@", TOKEN.to_owned()),
            ("@HOST@", HOST.to_owned()),
            ("@CLIENT@", client),
            (
                "@BUFFERED@",
                if self == Self::NginxCopy { "on" } else { "off" }.to_owned(),
            ),
        ] {
            text = text.replace(place, &value);
        }
        let path = world.path(&format!("{}.{ending}", self.name()));
        fs::write(&path, text).map_err(|error| error.to_string())?;
        Ok(path)
    }

    /// Starts the system on the core for the proxy, and checks that it answers.
    pub(crate) fn start(self, world: &World) -> Outcome<Running> {
        self.start_to(world, world.upstream_port)
    }

    /// Starts the system with this port as its upstream.
    pub(crate) fn start_to(self, world: &World, upstream: u16) -> Outcome<Running> {
        let port = free_port()?;
        let mut command = pinned(&self.command_to(world, upstream, port)?, world.proxy_core);
        let output = world.path(&format!("{}.out", self.name()));
        let mut child = Child::spawn(&mut command, &output)?;
        child.listens(port, Duration::from_secs(15))?;
        let mut driver = Driver::connect(port, self.key())?;
        driver
            .get(1)
            .map_err(|error| format!("{error}; {}", child.said()))?;
        Ok(Running {
            system: self,
            child,
            port,
        })
    }
}

impl Running {
    /// Returns TLS version and cipher towards the upstream.
    pub(crate) fn tls(&self) -> Outcome<String> {
        let said = Driver::connect(self.port, self.system.key())?.ask(workload::TLS)?;
        Ok(said.split('"').nth(3).unwrap_or_default().to_owned())
    }
}

/// Prints the systems and tools that can run here, and those that are missing.
pub(crate) fn list() {
    println!("Commands: compare, count, gate (--help tells more). Systems and tools:\n");
    for system in System::ALL {
        println!(
            "  {:<12}{}",
            system.name(),
            system.missing().unwrap_or_else(|| "ready".to_owned())
        );
    }
    for (tool, package, what) in [
        ("taskset", "util-linux", "binds processes to cores"),
        ("valgrind", "valgrind", "counts instructions"),
        ("strace", "strace", "counts system calls"),
    ] {
        let missing = format!("missing: {what} (Debian: apt-get install {package})");
        println!(
            "  {tool:<12}{}",
            on_path(tool).map_or(missing, |path| path.display().to_string())
        );
    }
}

/// Finds a program.
pub(crate) fn on_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    // Daemons are in the sbin folders, which are on the PATH of root only.
    let places =
        env::split_paths(&path).chain(["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from));
    places
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

fn program(name: &str) -> Command {
    Command::new(on_path(name).unwrap_or_else(|| name.into()))
}

/// Returns the folder of the nginx modules.
fn nginx_modules() -> PathBuf {
    let said = on_path("nginx").and_then(|nginx| Command::new(nginx).arg("-V").output().ok());
    let said = said
        .map(|output| String::from_utf8_lossy(&output.stderr).into_owned())
        .unwrap_or_default();
    let path = said
        .split_whitespace()
        .find_map(|word| word.strip_prefix("--modules-path="));
    PathBuf::from(path.unwrap_or("/usr/lib/nginx/modules"))
}
