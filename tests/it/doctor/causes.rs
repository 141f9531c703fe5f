//! The cause of a missing token, in the caller's 503, in `/api/accounts` and in the log, in the
//! words that the doctor has for it.

use serde_json::Value;

use crate::{
    support::{
        Setup,
        fake::{Act, Fake, Greeting},
        header, json,
        program::{Program, folder, serve},
        setup,
    },
    upstream::egress::{BlackHole, refusing},
};

const INFO: &str = "/cgi-bin/user/info?openid=a";

async fn assert_cause(case: &str, setup: Setup, cause: &str) {
    let setup = setup
        .set("upstream", "connect_timeout = \"400ms\"")
        .set("token", "wait = \"2s\"");
    let gate = setup.start().await;
    let answer = gate.get(INFO).await;
    assert_eq!(answer.status(), 503, "{case}");
    assert_eq!(header(&answer, "x-wxgate-error"), "token_unavailable");
    let message = json(answer).await["errmsg"].as_str().unwrap().to_owned();
    assert!(message.contains(cause), "{case}: {message}");
    assert!(
        !message.contains("://") && !message.contains("hunter2"),
        "{case}: {message}"
    );
    let accounts = gate.client.get(gate.admin_url("/api/accounts"));
    let accounts: Value = json(accounts.send().await.unwrap()).await;
    let sentence = accounts[0]["last_error"]["sentence"].as_str().unwrap();
    assert!(sentence.contains(cause), "{case}: {sentence}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_cause_is_told_to_the_caller_and_to_the_operator() {
    let (_socket, refused) = refusing();
    let hole = BlackHole::start();
    let proxy = |address: &str| format!("proxy = \"http://u:hunter2@{address}\"");
    let answering = |status: &str| {
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
        Fake::start_at("127.0.0.1:0", Greeting::Bytes(answer.into()), |_| {
            Act::Silent
        })
    };
    let (login, denied) = (answering("407 Login").await, answering("403 No").await);
    for (case, line, cause) in [
        (
            "proxy down",
            proxy(&refused.to_string()),
            "upstream.proxy refuses the connection",
        ),
        (
            "407",
            proxy(&login.address.to_string()),
            "wants a user and password (HTTP status 407)",
        ),
        (
            "403",
            proxy(&denied.address.to_string()),
            "does not let this machine through to the host (HTTP status 403)",
        ),
        (
            "proxy that is silent",
            proxy(&hole.address.to_string()),
            "upstream.proxy did not answer within upstream.connect_timeout",
        ),
        (
            "proxy's name",
            proxy("egress.wxgate.invalid:3128"),
            "upstream.proxy",
        ),
    ] {
        assert_cause(case, setup().set("upstream", &line), cause).await;
    }
    for (case, api, cause) in [
        (
            "no such name",
            "https://api.wxgate.invalid".to_owned(),
            "DNS servers of this machine",
        ),
        (
            "refused",
            format!("https://{refused}"),
            "the host refuses the connection",
        ),
        (
            "blackhole",
            format!("https://{}", hole.address),
            "the host did not answer within upstream.connect_timeout",
        ),
    ] {
        let setup = setup().account(&format!("api = [\"{api}\"]"));
        assert_cause(case, setup, cause).await;
    }
    let authority = crate::upstream::upstream_tls::Authority::new();
    let foreign = Fake::start_at("127.0.0.1:0", authority.greeting(|_| {}), |_| Act::Silent).await;
    let api = format!("api = [\"https://localhost:{}\"]", foreign.address.port());
    assert_cause(
        "foreign authority",
        setup().account(&api),
        "authority that is not trusted here",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_has_the_cause_at_its_usual_level() {
    let login = Fake::start_at(
        "127.0.0.1:0",
        Greeting::Bytes(b"HTTP/1.1 407 Login\r\nContent-Length: 0\r\n\r\n".into()),
        |_| Act::Silent,
    )
    .await;
    let setup = setup().set("upstream", &format!("proxy = \"http://{}\"", login.address));
    let sandbox = setup.start_sandbox().await;
    let folder = folder(&setup, &sandbox);
    let program = Program::start(&mut serve(folder.path()));
    let line = program.logged("no connection to the token endpoint");
    assert!(
        line.contains("user and password (HTTP status 407)"),
        "{line}"
    );
    assert_eq!(program.stop().status, Some(0));
}
