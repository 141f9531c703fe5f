//! Things that are broken, from the outside: the doctor's sentence for each, the same causes in
//! answers and log, and what `wxgate check` says of the form of a configuration.

mod accounts;
mod causes;
mod form;
mod listeners;
mod network;
mod running;
mod stores;

use std::{fs, path::Path, process::Command};

use tempfile::TempDir;
use wxgate::sandbox::{self, Sandbox, SandboxSettings};

use crate::support::{
    Setup,
    program::{Ended, finish, wxgate},
    setup,
};

/// A healthy set-up whose sandbox lives as long as this, to be broken in one place.
struct Patient {
    sandbox: Sandbox,
    folder: TempDir,
}

impl Patient {
    async fn new(change: impl FnOnce(Setup) -> Setup) -> Self {
        let sandbox = sandbox::start(SandboxSettings::default())
            .await
            .expect("the sandbox starts");
        let folder = tempfile::tempdir().expect("a temporary folder");
        let patient = Self { sandbox, folder };
        patient.put("root.pem", patient.sandbox.ca_pem());
        patient.put("wxgate.toml", &change(setup()).file(&patient.sandbox));
        patient
    }

    fn put(&self, name: &str, text: &str) {
        fs::write(self.folder.path().join(name), text).expect("written");
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = wxgate(arguments);
        command
            .arg("--config")
            .arg(self.path().join("wxgate.toml"))
            .current_dir(self.path());
        command
    }

    fn check(&self) -> Ended {
        finish(self.command(&["check", "--live"]))
    }

    /// Exactly one thing is broken, and the sentence on it has these parts.
    #[track_caller]
    fn suffers_from(&self, case: &str, parts: &[&str]) {
        assert_broken(case, &self.check(), parts);
    }

    /// Nothing is broken, and the report has these parts.
    #[track_caller]
    fn is_well(&self, parts: &[&str]) {
        let ended = self.check();
        assert_eq!(ended.status, Some(0), "{ended:?}");
        for part in parts {
            assert!(ended.stdout.contains(part), "{part}: {}", ended.stdout);
        }
    }
}

fn broken(ended: &Ended) -> Vec<&str> {
    let lines = ended.stdout.lines();
    lines.filter(|line| line.starts_with("BROKEN")).collect()
}

#[track_caller]
fn assert_broken(case: &str, ended: &Ended, parts: &[&str]) {
    assert_eq!(ended.status, Some(1), "{case}: {ended:?}");
    let [line] = broken(ended)[..] else {
        panic!("{case}: expected one broken thing: {ended:?}")
    };
    for part in parts {
        assert!(line.contains(part), "{case}: {part:?} is not in {line}");
    }
    assert!(
        line.contains("; ") || line.contains(": "),
        "{case}: {line} says nothing of what to do"
    );
    assert!(
        ended.stderr.contains("1 thing is broken"),
        "{case}: {ended:?}"
    );
    for secret in ["hunter2", "redis://", "access_token", "postgres://"] {
        assert!(!ended.stdout.contains(secret), "{case}: {}", ended.stdout);
    }
}
