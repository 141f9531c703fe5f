//! The program as it was started: its path and its arguments.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// Command line of this process, with the place where its program lay at the start.
#[derive(Debug, Clone)]
pub struct Program {
    pub(super) path: PathBuf,
    pub(super) arguments: Vec<OsString>,
}

impl Program {
    /// Program of this process; to be called at its start, before the file can be replaced. `None`
    /// if it cannot be found.
    pub fn of_this_process() -> Option<Self> {
        let mut command = env::args_os();
        let name = command.next().unwrap_or_default();
        // `/proc/self/exe` follows the file and not the name: it would not lead to the next version
        // behind a symbolic link, nor to the file that takes the place of a deleted one.
        let running = fs::metadata("/proc/self/exe").ok();
        let is_running = |path: &PathBuf| {
            let found = fs::metadata(path).ok();
            let identity = |file: &fs::Metadata| (file.dev(), file.ino());
            found.as_ref().map(identity) == running.as_ref().map(identity)
        };
        let path = candidates(&name)
            .into_iter()
            .find(is_running)
            .or_else(|| env::current_exe().ok())?;
        Some(Self {
            path,
            arguments: command.collect(),
        })
    }
}

/// Places that the first word of a command line can mean, made absolute.
fn candidates(name: &OsStr) -> Vec<PathBuf> {
    let name = Path::new(name);
    if name.components().count() > 1 || name.is_absolute() {
        return std::path::absolute(name).into_iter().collect();
    }
    let folders = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&folders)
        .filter_map(|folder| std::path::absolute(folder.join(name)).ok())
        .collect()
}
