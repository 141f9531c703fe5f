//! Whole proxies that share a database.

use wxgate::sandbox::{DEFAULT_APPID, TokenKind};

use super::{
    places::{Place, postgres_url},
    servers::Server,
};
use crate::support::{
    Gate, Setup, setup,
    token_tools::{Said, all, get, spawned},
};

const USER: &str = "/cgi-bin/user/info?openid=a";

fn sharing(url: &str) -> Setup {
    setup()
        .set("store", "kind = \"sql\"")
        .set("store", &format!("url = {{ value = \"{url}\" }}"))
}

/// Two nodes before one WeChat, that of the first.
async fn two(url: &str) -> [Gate; 2] {
    let first = sharing(url).start().await;
    first.warm().await;
    let api = first.sandbox.http_url().expect("the sandbox listens");
    let second = sharing(url)
        .account(&format!("api = [\"{api}\"]"))
        .start()
        .await;
    [first, second]
}

async fn share(url: &str) {
    let gates = two(url).await;
    let control = gates[0].control();
    for gate in &gates {
        assert!(get(gate, USER).await.is_fine());
    }
    assert_eq!(
        control.fetches(),
        1,
        "the second node takes what the first has fetched"
    );

    control.revoke(DEFAULT_APPID);
    let calls = (0..60)
        .map(|n| spawned(gates[n % 2].send_message(&format!("user-{n}"))))
        .collect();
    assert!(all(calls).await.iter().all(Said::is_fine));
    assert_eq!(control.fetches(), 2, "one of them fetches for both");
    assert!(
        control
            .current_token(DEFAULT_APPID, TokenKind::Stable)
            .is_some()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn two_proxies_on_one_postgres_fetch_once() {
    let server = Server::postgres();
    share(&postgres_url(&server)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_proxies_on_one_mariadb_fetch_once() {
    let server = Server::mariadb();
    share(&Place::mariadb(&server).url).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_proxies_on_one_file_fetch_once() {
    let place = Place::sqlite();
    share(&place.url).await;
}
