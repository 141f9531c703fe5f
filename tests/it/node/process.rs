//! What the operating system shows of a running wxgate to others on the machine.

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        process::CommandExt as _,
    },
    path::Path,
    process::{Command, Stdio},
};

use tempfile::TempDir;
use wxgate::sandbox;

use crate::support::{
    program::{Program, folder, serve, wxgate},
    setup,
};

/// `nobody`: what the program runs as where the tests run as root, which may read everything.
pub const NOBODY: u32 = 65534;

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The program in a place that every user can reach.
pub fn reachable_program() -> TempDir {
    let place = tempfile::tempdir().expect("a temporary folder");
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).expect("mine");
    fs::copy(env!("CARGO_BIN_EXE_wxgate"), place.path().join("wxgate")).expect("copied");
    place
}

/// Whether another program of the same user can read a file.
fn can_read(path: &Path) -> bool {
    let mut reader = Command::new("cat");
    reader.arg(path).stdout(Stdio::null()).stderr(Stdio::null());
    if is_root() {
        reader.uid(NOBODY).gid(NOBODY);
    }
    reader.status().expect("cat runs").success()
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_and_environment_are_closed_to_others_of_the_same_user_and_no_core_is_written() {
    let sandbox = sandbox::start(sandbox::SandboxSettings::default())
        .await
        .expect("the sandbox starts");
    let (place, folder) = (reachable_program(), folder(&setup(), &sandbox));
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("mine");
    let mut command = Command::new(place.path().join("wxgate"));
    command
        .args(["serve", "--config"])
        .arg(folder.path().join("wxgate.toml"))
        .current_dir(folder.path());
    let mut bystander = Command::new("sleep");
    bystander.arg("600");
    for command in [&mut command, &mut bystander] {
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default());
        if is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
    }
    let program = Program::start(&mut command);
    program.proxy();
    let bystander = Program::start(&mut bystander);
    let file = |program: &Program, name: &str| {
        Path::new("/proc")
            .join(program.pid.as_raw_nonzero().to_string())
            .join(name)
    };
    assert!(
        can_read(&file(&bystander, "environ")),
        "an ordinary program of this user can be read"
    );
    for name in ["environ", "mem", "maps", "auxv"] {
        assert!(
            !can_read(&file(&program, name)),
            "/proc/PID/{name} can be read"
        );
    }
    assert_eq!(
        fs::metadata(file(&program, "environ"))
            .expect("it is there")
            .uid(),
        0,
        "not dumpable: root's"
    );
    let limits =
        fs::read_to_string(file(&program, "limits")).expect("everybody may see the limits");
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .expect("a limit");
    assert_eq!(
        core.split_whitespace().collect::<Vec<_>>()[4..6],
        ["0", "0"],
        "{core}"
    );
    assert_eq!(program.stop().status, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_and_state_belong_to_the_user_alone() {
    let sandbox = sandbox::start(sandbox::SandboxSettings::default())
        .await
        .expect("the sandbox starts");
    let setup = setup()
        .set("store", "kind = \"file\"")
        .set("store", "path = \"state\"");
    let folder = folder(&setup, &sandbox);
    let program = Program::start(&mut serve(folder.path()));
    program.logged("new access token");
    let state = folder.path().join("state");
    let mode = |path: &Path| fs::metadata(path).expect("it is there").mode() & 0o777;
    assert_eq!(mode(&state), 0o700);
    let files: Vec<_> = fs::read_dir(&state)
        .expect("readable")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    assert!(
        files.iter().any(|file| file.ends_with("shop.json")),
        "{files:?}"
    );
    for file in files {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
    // The folder has one user.
    let second = crate::support::program::finish(serve(folder.path()));
    assert_eq!(second.status, Some(1), "{second:?}");
    let pid = program.pid.as_raw_nonzero().to_string();
    assert!(
        second.stderr.contains(&pid) && second.stderr.contains("state"),
        "{}",
        second.stderr
    );
    assert_eq!(program.stop().status, Some(0));
}

#[test]
fn the_command_line_takes_no_secret() {
    // What stands on a command line can be read by everybody on the machine.
    for command in [
        "serve", "check", "status", "token", "reload", "health", "demo",
    ] {
        let help = crate::support::program::finish(wxgate(&[command, "--help"]))
            .stdout
            .to_ascii_lowercase()
            // The name of a file, which only its owner can read.
            .replace("--key-file", "");
        for word in ["--secret", "--key", "--password", "--token"] {
            assert!(!help.contains(word), "{command} has {word}");
        }
    }
}
