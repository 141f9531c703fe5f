//! wxgate where WeChat's name leads back to it: not started into, and recognised when it comes up
//! later.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};
use wxgate::{app::App, config, sandbox::DEFAULT_APPID};

use crate::support::{
    Gate, header, json,
    program::{finish, serve, wxgate},
    setup, start,
};

const USER: &str = "/cgi-bin/user/info?openid=o";

/// Passes connections on to wherever it is told.
struct Forwarder {
    address: SocketAddr,
    target: Arc<Mutex<SocketAddr>>,
    open: Arc<Mutex<JoinSet<()>>>,
    task: JoinHandle<()>,
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Forwarder {
    async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (target, open) = (
            Arc::new(Mutex::new(target)),
            Arc::new(Mutex::new(JoinSet::new())),
        );
        let (told, opened) = (Arc::clone(&target), Arc::clone(&open));
        let task = tokio::spawn(async move {
            while let Ok((mut incoming, _)) = listener.accept().await {
                let target = *told.lock().unwrap();
                opened.lock().unwrap().spawn(async move {
                    if let Ok(mut outgoing) = TcpStream::connect(target).await {
                        let _ = copy_bidirectional(&mut incoming, &mut outgoing).await;
                    }
                });
            }
        });
        Self {
            address,
            target,
            open,
            task,
        }
    }

    /// Leads elsewhere from now on; what is open is cut.
    async fn lead_to(&self, target: SocketAddr) {
        *self.target.lock().unwrap() = target;
        let mut open = std::mem::take(&mut *self.open.lock().unwrap());
        open.shutdown().await;
    }
}

/// A gate whose way to its sandbox can be changed.
async fn gate_behind_forwarder() -> (Gate, Forwarder) {
    let setup = setup().plain();
    let sandbox = setup.start_sandbox().await;
    let forwarder = Forwarder::to(sandbox.http_addr().expect("plain HTTP")).await;
    let gate = setup
        .account(&format!("api = [\"http://{}\"]", forwarder.address))
        .start_with(sandbox)
        .await;
    gate.warm().await;
    (gate, forwarder)
}

/// A port that nobody else gets, and that can be listened at all the same.
fn kept_port() -> (socket2::Socket, u16) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket
        .bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
        .unwrap();
    let port = socket.local_addr().unwrap().as_socket().unwrap().port();
    (socket, port)
}

/// A configuration that listens at `listen` and takes `api` for WeChat.
fn file(listen: &str, api: &str, upstream: &str) -> String {
    format!(
        "[server]\nlisten = [\"{listen}\"]\nallow = [\"private\"]\n[admin]\nlisten = \"127.0.0.1:0\"\n\
         [store]\nkind = \"memory\"\n[upstream]\n{upstream}\n\
         [[account]]\nname = \"shop\"\nappid = \"wx1\"\nsecret = {{ file = \"shop.secret\" }}\napi = [\"{api}\"]\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_into_a_loop_is_refused() {
    for (host, scheme, resolve) in [
        ("127.0.0.1", "http", ""),
        ("localhost", "http", ""),
        (
            "api.weixin.qq.com",
            "https",
            "resolve = { \"api.weixin.qq.com\" = [\"127.0.0.1\"] }",
        ),
    ] {
        for listen in ["127.0.0.1", "0.0.0.0"] {
            let (_kept, port) = kept_port();
            let text = file(
                &format!("{listen}:{port}"),
                &format!("{scheme}://{host}:{port}"),
                resolve,
            );
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("shop.secret"), "s").unwrap();
            let config = config::parse(
                &text,
                folder.path(),
                "f",
                &BTreeMap::<String, String>::new(),
            )
            .unwrap();
            let refused = App::build(&config, None)
                .err()
                .unwrap_or_else(|| panic!("{text}"))
                .to_string();
            assert!(
                refused.starts_with(&format!(
                    "account shop: {host} leads to 127.0.0.1:{port}, where"
                )),
                "{refused}"
            );
            assert_eq!(
                refused.contains("upstream.resolve"),
                host != "127.0.0.1",
                "{refused}"
            );
        }
    }
}

#[test]
fn the_program_says_so_and_ends_with_78() {
    let (_kept, port) = kept_port();
    let folder = tempfile::tempdir().unwrap();
    let resolve = "resolve = { \"api.weixin.qq.com\" = [\"127.0.0.1\"] }";
    let text = file(
        &format!("127.0.0.1:{port}"),
        &format!("https://api.weixin.qq.com:{port}"),
        resolve,
    );
    std::fs::write(folder.path().join("shop.secret"), "s").unwrap();
    std::fs::write(folder.path().join("wxgate.toml"), text).unwrap();
    let mut check = wxgate(&["check", "--config", "wxgate.toml"]);
    check.current_dir(folder.path());
    for command in [serve(folder.path()), check] {
        let ended = finish(command);
        assert_eq!(ended.status, Some(78), "{ended:?}");
        assert!(
            ended
                .stderr
                .contains("set upstream.resolve to WeChat's own addresses"),
            "{ended:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_into_a_loop_is_refused_and_changes_nothing() {
    let gate = start().await;
    gate.warm().await;
    let api = gate
        .file()
        .lines()
        .find(|line| line.starts_with("api ="))
        .unwrap()
        .to_owned();
    let looping = gate.file().replace(
        &api,
        &format!("api = [\"http://localhost:{}\"]", gate.proxy.port()),
    );
    let answer = gate.reload(&looping).await;
    assert_eq!(answer.status(), 422);
    let body = answer.text().await.unwrap();
    assert!(
        body.contains("account shop: localhost leads to 127.0.0.1"),
        "{body}"
    );
    assert_eq!(gate.get(USER).await.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_comes_back_is_answered_and_goes_no_further() {
    let (gate, forwarder) = gate_behind_forwarder().await;
    gate.control().clear_record();
    forwarder.lead_to(gate.proxy).await;
    for answer in [
        gate.get(USER).await,
        gate.send_message("o").send().await.unwrap(),
    ] {
        assert_eq!(answer.status(), 502);
        assert_eq!(header(&answer, "x-wxgate-attempts"), "1");
        let body = json(answer).await;
        assert_eq!(body["errcode"], 990_502);
        let says = body["errmsg"].as_str().unwrap();
        assert!(
            says.contains("leads back to wxgate itself; set upstream.resolve"),
            "{says}"
        );
        assert!(!says.contains("127.0.0.1"), "{says}");
    }
    assert_eq!(gate.control().counters().requests, 0);
    forwarder.lead_to(gate.sandbox.http_addr().unwrap()).await;
    assert_eq!(gate.get(USER).await.status(), 200, "nothing is left behind");
    let (_, log) = gate.stop().await;
    let refused = log
        .lines()
        .filter(|line| line.contains("upstream_failed"))
        .count();
    assert_eq!(
        (refused, log.lines().count()),
        (2, 6),
        "each came back once: {log}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn two_gates_that_point_at_each_other_find_it_out() {
    let (here, from_here) = gate_behind_forwarder().await;
    let (there, from_there) = gate_behind_forwarder().await;
    from_here.lead_to(there.proxy).await;
    // One behind the other is fine.
    assert_eq!(here.get(USER).await.status(), 200);
    let calls = there.control().requests("/cgi-bin/user/info");
    assert_eq!(marks(&calls.last().unwrap().headers).len(), 2);
    from_there.lead_to(here.proxy).await;
    here.control().clear_record();
    there.control().clear_record();
    let answer = here.get(USER).await;
    assert_eq!(answer.status(), 502);
    assert!(
        answer
            .text()
            .await
            .unwrap()
            .contains("leads back to wxgate itself")
    );
    assert_eq!(
        (
            here.control().counters().requests,
            there.control().counters().requests
        ),
        (0, 0)
    );
    let (_, log) = there.stop().await;
    assert_eq!(
        log.lines()
            .filter(|line| line.contains("\"status\":502"))
            .count(),
        1,
        "{log}"
    );
}

/// The values of `CDN-Loop`.
fn marks(headers: &[(String, String)]) -> Vec<&str> {
    headers
        .iter()
        .filter(|(name, _)| name == "cdn-loop")
        .map(|(_, value)| value.as_str())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn honest_calls_carry_one_mark_of_this_process_and_answers_none() {
    let gate = start().await;
    gate.warm().await;
    gate.control().revoke(DEFAULT_APPID);
    let answer = gate.send_message("o").send().await.unwrap();
    assert_eq!(
        (
            answer.status().as_u16(),
            header(&answer, "x-wxgate-attempts")
        ),
        (200, "2".to_owned())
    );
    assert_eq!(header(&answer, "cdn-loop"), "");
    let other = start().await;
    other.warm().await;
    let records = gate.control().requests("/cgi-bin/message/custom/send");
    let first = marks(&records[0].headers);
    assert_eq!((records.len(), first.len()), (2, 1));
    let id = first[0]
        .strip_prefix("wxgate; id=")
        .expect("the form of RFC 8586");
    assert!(
        id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()),
        "{id}"
    );
    assert_eq!(marks(&records[1].headers), first);
    let others = other.control().requests("/cgi-bin/user/info");
    assert!(marks(&others[0].headers).len() == 1 && marks(&others[0].headers) != first);
}

#[tokio::test(flavor = "multi_thread")]
async fn marks_of_others_travel_on_until_there_are_too_many() {
    let gate = start().await;
    gate.warm().await;
    let ask = async |value: &str| {
        gate.control().clear_record();
        let answer = gate
            .client
            .get(gate.url(USER))
            .header("CDN-Loop", value)
            .send()
            .await
            .unwrap();
        let seen = gate.control().requests("/cgi-bin/user/info");
        let marks = seen.first().map(|record| {
            marks(&record.headers)
                .into_iter()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        });
        (
            answer.status().as_u16(),
            header(&answer, "x-wxgate-error"),
            marks,
        )
    };
    let (status, _, marks) = ask("cdn.example; v=\"1\", wxgate; id=0").await;
    let marks = marks.expect("it arrives");
    assert_eq!(
        (status, marks.len(), &*marks[0]),
        (200, 2, "cdn.example; v=\"1\", wxgate; id=0")
    );
    assert_eq!(
        ask(&["wxgate; id=0"; 9].join(", ")).await,
        (502, "upstream_failed".to_owned(), None)
    );
    assert_eq!(
        ask(&"x".repeat(2000)).await,
        (502, "upstream_failed".to_owned(), None)
    );
    assert_eq!(
        ask(&marks[1]).await,
        (502, "upstream_failed".to_owned(), None),
        "its own"
    );
}
