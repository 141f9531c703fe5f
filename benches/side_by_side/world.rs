//! Parts that all systems share: a folder, certificates, the fake upstream, the cores, and the
//! wxgate to measure.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tempfile::TempDir;

use super::{
    Outcome,
    child::{Child, free_port, pinned},
    systems::on_path,
    tls,
};

/// Access token of the length that WeChat's tokens have.
pub(crate) const TOKEN: &str = "77_A1b2C3d4A1b2C3d4A1b2C3d4A1b2C3d4A1b2C3d4A1b2C3d4A1b2C3d4A1b2C3d4A1b2C3d4A1b2C3d4A1b2C3d4A1b2C3d4A1b2C3d4A1b2C3d4A1b2C3d4A1b2C3d4wxyz0";

/// Shared parts of a run. Processes end and files are removed when dropped.
pub(crate) struct World {
    _upstream: Child,
    pub(crate) upstream_port: u16,
    folder: TempDir,
    /// Path of this program.
    pub(crate) exe: PathBuf,
    pub(crate) wxgate: PathBuf,
    /// Core of the proxy alone.
    pub(crate) proxy_core: Option<usize>,
    /// Core that load and upstream share.
    pub(crate) load_core: Option<usize>,
}

impl World {
    pub(crate) fn new(product: Option<PathBuf>) -> Outcome<Self> {
        allow_many_files();
        let exe = env::current_exe().map_err(|error| error.to_string())?;
        let wxgate = match product {
            Some(path) => path,
            None => release_build(&exe)?,
        };
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        tls::write_certificates(folder.path()).map_err(|error| format!("certificates: {error}"))?;
        let (proxy_core, load_core) = cores();
        let upstream_port = free_port()?;
        let mut command = Command::new(&exe);
        command
            .args(["upstream", "--token", TOKEN, "--port"])
            .arg(upstream_port.to_string());
        command.arg("--folder").arg(folder.path());
        let mut upstream = Child::spawn(
            &mut pinned(&command, load_core),
            &folder.path().join("upstream.out"),
        )?;
        upstream
            .listens(upstream_port, Duration::from_secs(10))
            .map_err(|error| format!("upstream: {error}"))?;
        Ok(Self {
            _upstream: upstream,
            upstream_port,
            folder,
            exe,
            wxgate,
            proxy_core,
            load_core,
        })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Describes the use of the cores.
    pub(crate) fn seating(&self) -> String {
        match (self.proxy_core, self.load_core) {
            (Some(proxy), Some(load)) => format!("proxy alone on core {proxy}, load and upstream on core {load}"),
            _ => "NOT PINNED (it takes two cores and taskset): proxy, load and upstream are in each other's way".into(),
        }
    }
}

fn cores() -> (Option<usize>, Option<usize>) {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if cores < 2 || on_path("taskset").is_none() {
        (None, None)
    } else {
        (Some(cores - 1), Some(0))
    }
}

/// Raises the limit of open files, for thousands of connections.
fn allow_many_files() {
    let limit = getrlimit(Resource::Nofile);
    // If the system refuses, the load generator reports connections that cannot be opened.
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
}

/// Builds the release binary. An existing file may be another build: `cargo bench` puts a wxgate
/// there that is built with other flags, and with features of dependencies that only tests enable.
fn release_build(exe: &Path) -> Outcome<PathBuf> {
    let target = exe
        .ancestors()
        .nth(3)
        .ok_or("where is the target directory? Give --wxgate PATH")?;
    eprintln!("bringing the release build up to date (or give --wxgate PATH)");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args([
            "build",
            "--release",
            "--locked",
            "--quiet",
            "--bin",
            "wxgate",
            "--target-dir",
        ])
        .arg(target);
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    let status = cargo.status().map_err(|error| format!("cargo: {error}"))?;
    let path = target.join("release/wxgate");
    if status.success() && fs::exists(&path).unwrap_or(false) {
        Ok(path)
    } else {
        Err("the release build failed".into())
    }
}
