//! Listeners that a service manager passes: `LISTEN_FDS`, `LISTEN_PID`, `LISTEN_FDNAMES`.

use std::{
    net::{SocketAddr, TcpListener},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixListener,
    },
    path::Path,
    process::{Command, Stdio},
};

use tokio::net::UnixStream;
use wxgate::sandbox;

use super::service::{Node, Service, clean, prepare, program, stored};
use crate::support::{Setup, client, program::wxgate, raw::Wire};

const INFO: &str = "GET /cgi-bin/user/info?openid=o HTTP/1.1\r\nHost: gate\r\n\r\n";

/// Configuration with the addresses of two listeners.
pub fn sockets(setup: Setup, data: &TcpListener, admin: &TcpListener) -> (SocketAddr, Setup) {
    let at = |listener: &TcpListener| listener.local_addr().expect("bound");
    let setup = setup
        .set("server", &format!("listen = [\"{}\"]", at(data)))
        .set("admin", &format!("listen = \"{}\"", at(admin)));
    (at(data), setup)
}

/// The command that serves in a folder, with two descriptors passed under these names. A shell puts
/// them where they belong.
pub fn passed(folder: &Path, first: &impl AsFd, second: &impl AsFd, names: &str) -> Command {
    let own = |socket: &dyn Fn() -> std::io::Result<OwnedFd>| socket().expect("a descriptor");
    let script = format!(
        "exec 3<&0 4<&1 </dev/null >/dev/null; \
         LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES={names} exec \"$0\" \"$@\""
    );
    let mut command = Command::new("sh");
    command
        .args(["-c", &script])
        .arg(program(folder))
        .args(["serve", "--config", "wxgate.toml"]);
    clean(&mut command, folder);
    command
        .stdin(Stdio::from(own(&|| first.as_fd().try_clone_to_owned())))
        .stdout(Stdio::from(own(&|| second.as_fd().try_clone_to_owned())));
    command
}

async fn start(setup: Setup, first: &impl AsFd, second: &impl AsFd, names: &str) -> Service {
    let sandbox = sandbox::start(sandbox::SandboxSettings::default())
        .await
        .expect("the sandbox starts");
    let folder = prepare(&setup, &sandbox);
    let command = passed(folder.path(), first, second, names);
    Service::run(command, folder, sandbox)
}

#[tokio::test(flavor = "multi_thread")]
async fn listeners_are_used_by_address_and_outlive_the_process() {
    let data = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let admin = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let (proxy, setup) = sockets(stored(), &data, &admin);
    let mut service = start(setup, &data, &admin, "wxgate.socket:wxgate.socket").await;
    service.logged("goes on with a listener that was passed", 2);
    service.logged("new access token", 1);
    let mut wire = Wire::connect(proxy).await;
    assert_eq!(wire.ask(INFO).await.expect("an answer").status, 200);
    let livez = format!("http://{}/livez", admin.local_addr().expect("bound"));
    assert_eq!(
        client()
            .get(livez)
            .send()
            .await
            .expect("an answer")
            .status(),
        200
    );

    // The next process, by a replacement and by a restart.
    service.replace();
    service.ended(0);
    let mut wire = Wire::connect(proxy).await;
    assert_eq!(wire.ask(INFO).await.expect("an answer").status, 200);
    service.stop();
    let mut queued = Wire::connect(proxy).await;
    queued.send(INFO).await;
    let command = &mut passed(service.folder.path(), &data, &admin, ":");
    let _again = Node(command.spawn().expect("the program starts"));
    assert_eq!(queued.reply().await.expect("an answer").status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn listeners_of_both_kinds_are_used_by_name_and_socket_files_stay() {
    let place = tempfile::tempdir().expect("a folder");
    let path = place.path().join("data.sock");
    let data = UnixListener::bind(&path).expect("bound");
    let admin = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let mut service = start(stored(), &data, &admin, "data:admin").await;
    service.logged("new access token", 1);
    let stream = UnixStream::connect(&path).await.expect("it listens");
    let reply = Wire::over(stream).ask(INFO).await;
    assert_eq!(reply.expect("an answer").status, 200);
    let readyz = format!("http://{}/readyz", admin.local_addr().expect("bound"));
    assert_eq!(
        client()
            .get(readyz)
            .send()
            .await
            .expect("an answer")
            .status(),
        200
    );
    service.stop();
    assert!(path.exists(), "it is the service manager's");
}

#[tokio::test(flavor = "multi_thread")]
async fn descriptors_that_fit_nowhere_are_told_and_no_reason_not_to_start() {
    let other = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let file = tempfile::tempfile().expect("a file");
    let mut service = start(stored(), &other, &file, "metrics:log").await;
    service.logged("new access token", 1);
    let line = service.logged("neither in server.listen nor in admin.listen", 1);
    assert!(
        line.contains(&other.local_addr().unwrap().to_string()),
        "{line}"
    );
    assert!(line.contains("metrics"), "{line}");
    let line = service.logged("a descriptor of LISTEN_FDS cannot be used", 1);
    assert!(line.contains("log"), "{line}");
    service.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_admin_listener_for_other_machines_needs_a_key_also_when_it_is_passed() {
    let data = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let admin = TcpListener::bind("0.0.0.0:0").expect("a free port");
    let mut service = start(stored(), &data, &admin, "data:admin").await;
    assert_eq!(service.first.wait().expect("a child").code(), Some(1));
    assert!(service.log().contains("set admin.key"), "{}", service.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn variables_for_another_process_are_left_alone() {
    let sandbox = sandbox::start(sandbox::SandboxSettings::default())
        .await
        .expect("the sandbox starts");
    let folder = prepare(&stored(), &sandbox);
    let mut command = super::service::command(folder.path());
    command.envs([("LISTEN_PID", "1"), ("LISTEN_FDS", "1")]);
    let mut service = Service::run(command, folder, sandbox);
    service.logged("new access token", 1);
    assert!(!service.log().contains("passed"), "{}", service.log());
    service.stop();
    // A process that replaces nobody does not trust its standard input.
    let mut command = wxgate(&["serve"]);
    command.env("WXGATE_HANDOVER", "1").stdin(Stdio::null());
    let ended = crate::support::program::finish(command);
    assert_eq!(ended.status, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("WXGATE_HANDOVER"), "{}", ended.stderr);
}
