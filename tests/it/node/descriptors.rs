//! Limits of open files: raised at the start, told when too low, and never all in the hands of the
//! silent.

use std::{net::TcpStream, process::Command, time::Duration};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::time::{Instant, timeout};
use wxgate::sandbox;

use crate::support::{
    program::{LIMIT, Program, finish, folder, serve},
    raw::Wire,
    setup,
};

const INFO: &str = "GET /cgi-bin/user/info?openid=o HTTP/1.1\r\nHost: gate\r\n\r\n";

/// The command behind `ulimit` with these arguments.
fn limited(ulimit: &str, command: &Command) -> Command {
    let mut shell = Command::new("/bin/sh");
    shell
        .args(["-c", &format!("ulimit {ulimit} && exec \"$@\""), "sh"])
        .arg(command.get_program())
        .args(command.get_args())
        .env_clear()
        .stdin(std::process::Stdio::null());
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            shell.env(name, value);
        }
    }
    if let Some(folder) = command.get_current_dir() {
        shell.current_dir(folder);
    }
    shell
}

/// Lets this process hold as many sockets as a test wants.
fn raise_own_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, raised).expect("up to the hard limit");
}

async fn answered(address: std::net::SocketAddr, text: &str) {
    let asking = async {
        let mut wire = Wire::connect(address).await;
        wire.ask(text).await.expect("an answer").status
    };
    assert_eq!(timeout(LIMIT, asking).await.expect("in time"), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_low_soft_limit_is_raised_to_the_hard_one() {
    raise_own_limit();
    let sandbox = sandbox::start(sandbox::SandboxSettings::default())
        .await
        .expect("the sandbox starts");
    let folder = folder(&setup(), &sandbox);
    let program = Program::start(&mut limited("-Sn 256", &serve(folder.path())));
    let address = program.proxy();
    program.logged("new access token");
    let idle: Vec<_> = (0..300)
        .map(|_| TcpStream::connect(address).expect("it listens"))
        .collect();
    answered(address, INFO).await;
    drop(idle);
    assert!(!program.stderr().contains("cannot accept"));
    assert!(
        !program.stderr().contains("hard limit is"),
        "{}",
        program.stderr()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hard_limit_that_is_too_low_is_told_by_check_and_at_the_start() {
    let sandbox = sandbox::start(sandbox::SandboxSettings::default())
        .await
        .expect("the sandbox starts");
    let settings = setup()
        .set("server", "max_connections = 1000")
        .set("upstream", "max_in_flight = 100");
    let folder = folder(&settings, &sandbox);
    // 1000 + 2 × 100 + 256.
    for (limit, is_low) in [(1455, true), (1456, false)] {
        let program = Program::start(&mut limited(&format!("-n {limit}"), &serve(folder.path())));
        program.proxy();
        let mut check = crate::support::program::wxgate(&["check", "--config"]);
        check.arg(folder.path().join("wxgate.toml"));
        let checked = finish(limited(&format!("-n {limit}"), &check));
        assert_eq!(checked.status, Some(0), "{checked:?}");
        for said in [program.stderr(), checked.stdout] {
            let told = said.contains("1456") && said.contains(&format!("hard limit is {limit}"));
            assert_eq!(told, is_low, "{said}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_sockets_at_the_admin_listener_take_nothing_from_the_data_listener_or_from_probes() {
    raise_own_limit();
    let sandbox = sandbox::start(sandbox::SandboxSettings::default())
        .await
        .expect("the sandbox starts");
    let folder = folder(&setup(), &sandbox);
    let program = Program::start(&mut limited("-n 512", &serve(folder.path())));
    let (address, admin) = (program.proxy(), program.admin());
    program.logged("new access token");
    let silent: Vec<_> = (0..600)
        .map(|_| TcpStream::connect(admin).expect("it listens"))
        .collect();
    for _ in 0..20 {
        answered(address, INFO).await;
    }
    let asked = Instant::now();
    answered(admin, "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    println!("a probe behind 600 silent sockets: {:?}", asked.elapsed());
    let open = std::fs::read_dir(format!("/proc/{}/fd", program.pid.as_raw_nonzero()))
        .map(Iterator::count);
    // Not readable without the right to debug the program.
    assert!(open.unwrap_or(0) < 256, "descriptors");
    drop(silent);
    assert!(
        !program.stderr().contains("cannot accept"),
        "{}",
        program.stderr()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_cannot_be_accepted_are_told_once() {
    raise_own_limit();
    let sandbox = sandbox::start(sandbox::SandboxSettings::default())
        .await
        .expect("the sandbox starts");
    let folder = folder(&setup(), &sandbox);
    let program = Program::start(&mut limited("-n 128", &serve(folder.path())));
    let address = program.proxy();
    program.logged("new access token");
    let idle: Vec<_> = (0..200)
        .map(|_| TcpStream::connect(address).expect("it listens"))
        .collect();
    program.logged("cannot accept connections");
    // As long as several of its pauses.
    tokio::time::sleep(Duration::from_secs(3)).await;
    drop(idle);
    answered(address, INFO).await;
    let said = program.stderr();
    assert_eq!(
        said.matches("cannot accept connections").count(),
        1,
        "{said}"
    );
}
