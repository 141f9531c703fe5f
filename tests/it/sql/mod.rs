//! Tokens in a database: SQLite in a file, and a real PostgreSQL and a real MariaDB on sockets of
//! their own.

mod clauses;
mod places;
mod servers;
mod together;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::{Instant, timeout};
use wxgate::internals::token::store::{
    Lease, Saved, ServerFault, SqlStore, StoreError, TokenStore,
};

use self::{
    places::{Place, postgres_over_tcp, postgres_url, settings, until},
    servers::{PASSWORD, Server},
};
use crate::{
    store_contract::{keeps_the_contract, sample, token_of},
    support::token_tools::DEADLINE,
};

/// No call takes longer, whatever the server does: half a second, a second where a connection or a
/// turn is awaited first, and room for a busy machine.
const BOUND: Duration = Duration::from_secs(3);

mod file {
    crate::store_contract::keeps_the_contract!(super::places::File<false>);
}

mod sealed_file {
    crate::store_contract::keeps_the_contract!(super::places::File<true>);
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_keeps_the_contract_of_databases() {
    clauses::all(Place::sqlite).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_keeps_the_contract() {
    let server = Server::postgres();
    keeps_the_contract!(in one test: Place::postgres(&server));
    keeps_the_contract!(in one test: Place::postgres(&server).sealed());
    clauses::all(|| Place::postgres(&server)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadb_keeps_the_contract() {
    let server = Server::mariadb();
    keeps_the_contract!(in one test: Place::mariadb(&server));
    keeps_the_contract!(in one test: Place::mariadb(&server).sealed());
    clauses::all(|| Place::mariadb(&server)).await;
}

/// Every call ends in time while the server is `gone`, and works again without a new store once it
/// is `back`.
async fn survives(
    node: &dyn TokenStore,
    server: &mut Server,
    gone: fn(&mut Server),
    back: fn(&mut Server),
) {
    let key = token_of("shop");
    assert_eq!(
        node.save(&key, sample(1, Some("t"))).await,
        Ok(Saved::Written)
    );
    let mut changes = node.changes(&key).expect("it is shared");
    gone(server);
    for round in 0..3 {
        let since = Instant::now();
        assert!(node.load(&key).await.is_err());
        assert!(node.save(&key, sample(2, Some("u"))).await.is_err());
        assert!(
            node.lease(&key, "me", Duration::from_secs(9))
                .await
                .is_err()
        );
        assert!(node.release(&key, "me").await.is_err());
        assert!(
            since.elapsed() < BOUND * 4,
            "round {round}: {:?}",
            since.elapsed()
        );
    }
    changes.mark_unchanged();
    back(server);
    let since = Instant::now();
    timeout(DEADLINE, changes.changed())
        .await
        .expect("it says that changes may have been missed")
        .expect("it lives");
    until(node, |answer| matches!(answer, Ok(Some(_)))).await;
    eprintln!("back after {:?}", since.elapsed());
    // What was under way when it went may still have been written.
    assert!(node.save(&key, sample(3, Some("v"))).await == Ok(Saved::Written));
    assert_eq!(
        node.lease(&key, "me", Duration::from_secs(9)).await,
        Ok(Lease::Granted)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_is_stopped_or_ended_delays_nobody_for_long() {
    let mut server = Server::postgres();
    let node = Place::postgres(&server).node();
    survives(
        &*node,
        &mut server,
        |server| server.pause(),
        |server| server.go_on(),
    )
    .await;
    let node = Place::postgres(&server).node();
    survives(&*node, &mut server, Server::kill, Server::start).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mariadb_that_is_stopped_or_ended_delays_nobody_for_long() {
    let mut server = Server::mariadb();
    let node = Place::mariadb(&server).node();
    survives(
        &*node,
        &mut server,
        |server| server.pause(),
        |server| server.go_on(),
    )
    .await;
    let node = Place::mariadb(&server).node();
    survives(&*node, &mut server, Server::kill, Server::start).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_tells_other_nodes_of_a_change_at_once() {
    let server = Server::postgres();
    let place = Place::postgres(&server);
    let (one, other) = (place.node(), place.node());
    until(&*other, Result::is_ok).await;
    let key = token_of("shop");
    let mut told = other.changes(&key).expect("it is shared");
    let mut about_others = other.changes(&token_of("other")).expect("it is shared");
    told.mark_unchanged();
    about_others.mark_unchanged();
    assert_eq!(
        one.save(&key, sample(1, Some("t"))).await,
        Ok(Saved::Written)
    );
    timeout(DEADLINE, told.changed())
        .await
        .expect("in time")
        .expect("it lives");
    assert!(!about_others.has_changed().expect("it lives"));
    assert_eq!(other.load(&key).await, Ok(Some(sample(1, Some("t")))));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_calls_at_once_take_turns() {
    let place = Place::sqlite();
    let node = place.node();
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..300 {
        let node = std::sync::Arc::clone(&node);
        calls.spawn(async move { node.load(&token_of(&format!("shop-{number}"))).await });
    }
    assert_eq!(calls.join_all().await, vec![Ok(None); 300]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_is_for_its_owner_only() {
    let place = Place::sqlite();
    let node = place.node();
    assert_eq!(
        node.save(&token_of("shop"), sample(1, Some("t"))).await,
        Ok(Saved::Written)
    );
    for entry in fs::read_dir(place.file().parent().expect("a folder")).expect("a folder") {
        let entry = entry.expect("an entry");
        assert_eq!(
            entry.metadata().expect("it is there").permissions().mode() & 0o777,
            0o600,
            "{:?}",
            entry.path()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_database_is_left_as_it_is() {
    let place = Place::sqlite();
    fs::write(
        place.file(),
        "something else, and long enough to be looked at",
    )
    .expect("the folder can be written");
    assert_eq!(
        place.node().load(&token_of("shop")).await,
        Err(StoreError::Server(ServerFault::File))
    );
    assert!(
        fs::read_to_string(place.file())
            .expect("it is there")
            .starts_with("something else")
    );
    let nowhere = SqlStore::open(&settings("sqlite:///nowhere/tokens.db", "t"), None, None);
    assert_eq!(
        nowhere.load(&token_of("shop")).await,
        Err(StoreError::Server(ServerFault::File))
    );
}

/// A PostgreSQL on a port, and its certificate, for `localhost`.
fn with_tls() -> (PathBuf, Server) {
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let server = Server::postgres_with_tls(&own.cert.pem(), &own.signing_key.serialize_pem());
    (server.folder.path().join("server.pem"), server)
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_and_mariadb_refuse_a_wrong_password_by_name() {
    let (_, postgres) = with_tls();
    let mariadb = Server::mariadb();
    for url in [
        postgres_over_tcp(&postgres, "127.0.0.1", ""),
        Place::mariadb(&mariadb).url,
    ] {
        let load = async |url: &str| {
            SqlStore::open(&settings(url, "t"), None, None)
                .load(&token_of("shop"))
                .await
        };
        assert_eq!(load(&url).await, Ok(None), "{url}");
        assert_eq!(
            load(&url.replace(PASSWORD, "wrong")).await,
            Err(StoreError::Server(ServerFault::Denied)),
            "{url}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_is_verified_wherever_tls_is_asked_for() {
    let (ca_file, server) = with_tls();
    let load = async |host: &str, mode: &str, ca_file: Option<&Path>| {
        let url = postgres_over_tcp(&server, host, &format!("?sslmode={mode}"));
        SqlStore::open(&settings(&url, "t"), None, ca_file)
            .load(&token_of("shop"))
            .await
    };
    let untrusted = Err(StoreError::Server(ServerFault::Untrusted));
    for mode in ["verify-full", "require"] {
        assert_eq!(
            load("localhost", mode, Some(&ca_file)).await,
            Ok(None),
            "{mode}"
        );
        assert_eq!(
            load("localhost", mode, None).await,
            untrusted,
            "{mode}, unknown authority"
        );
        assert_eq!(
            load("127.0.0.1", mode, Some(&ca_file)).await,
            untrusted,
            "{mode}, another name"
        );
    }
    let plain = Server::postgres();
    let url = format!("{}?sslmode=verify-full", postgres_url(&plain));
    let refused = SqlStore::open(&settings(&url, "t"), None, None)
        .load(&token_of("shop"))
        .await;
    assert!(refused.is_err(), "a server without TLS: {refused:?}");
}
