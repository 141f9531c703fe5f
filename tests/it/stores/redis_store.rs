//! The shared store in a real Redis: what it keeps there, and what it does when something is wrong
//! with the server.

use std::{sync::Arc, time::Duration};

use rustix::process::Signal;
use tokio::time::Instant;
use wxgate::internals::{
    base::Secret,
    net::egress::Egress,
    token::store::{
        Lease, RecordKey, RedisSettings, RedisStore, Saved, ServerFault, StoreError, TokenStore,
    },
};

use crate::{
    store_contract::{
        KEY, Place, ring,
        shared::{hold, key, record},
    },
    support::{
        redis::{RedisServer, Sentinel, free_port},
        token_tools::eventually,
    },
};

/// A little more than one call may take.
const CALL: Duration = Duration::from_millis(900);

fn store(url: &str) -> RedisStore {
    let settings = RedisSettings::new(Secret::new(url), "wxgate:".to_owned()).expect("a good URL");
    RedisStore::open(&settings, None, Egress::default().tls().expect("roots"))
}

/// A server for one test, and the keys of its nodes.
struct Shared<const SEALED: bool>(RedisServer);

impl<const SEALED: bool> Place for Shared<SEALED> {
    const LASTING: bool = true;

    async fn fresh() -> Option<Self> {
        Some(Self(RedisServer::start()))
    }

    fn node(&self) -> Arc<dyn TokenStore> {
        let settings = RedisSettings::new(Secret::new(self.0.url("")), "wxgate:".to_owned())
            .expect("a good URL");
        let keys = SEALED.then(|| ring(KEY));
        Arc::new(RedisStore::open(
            &settings,
            keys,
            Egress::default().tls().expect("roots"),
        ))
    }

    /// The server goes on; nodes are made anew each time.
    async fn restart(&mut self) {}

    async fn poison(&self, key: &RecordKey, bytes: &[u8]) -> bool {
        let full = key.to_string();
        let more = full.strip_prefix(key.account.as_str()).unwrap_or_default();
        let name = format!("wxgate:{{{}}}{more}", key.account);
        redis::cmd("SET")
            .arg(name)
            .arg(bytes)
            .exec(&mut self.0.connect())
            .expect("Redis takes it");
        true
    }
}

mod plain {
    crate::store_contract::keeps_the_contract!(super::Shared<false>);
}

mod sealed {
    crate::store_contract::keeps_the_contract!(super::Shared<true>);
}

fn of(redis: &RedisServer) -> RedisStore {
    store(&redis.url(""))
}

fn fault(fault: ServerFault) -> StoreError {
    StoreError::Server(fault)
}

/// Waits until the store can be written, and says how long that took.
async fn works_again(store: &RedisStore) -> Duration {
    let key = key("again");
    eventually("the store works again", async || {
        store.save(&key, record(1, "t")).await == Ok(Saved::Written)
    })
    .await
}

/// Waits until a save fails like this.
async fn fails(store: &RedisStore, with: ServerFault) {
    let key = key("fails");
    eventually(with.label(), async || {
        let start = Instant::now();
        let result = store.save(&key, record(1, "t")).await;
        assert!(start.elapsed() < CALL, "{:?}", start.elapsed());
        result == Err(fault(with))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_keeps_the_contract() {
    let redis = RedisServer::start();
    hold(Arc::new(of(&redis)), Arc::new(of(&redis))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_have_a_prefix_a_hash_tag_and_an_end_and_only_documented_commands_are_needed() {
    let redis = RedisServer::start();
    redis.run::<()>(&[
        "ACL",
        "SETUSER",
        "gate",
        "on",
        ">p@ss/word",
        "resetchannels",
        "~wxgate:*",
        "&wxgate:*",
        "-@all",
        "+get",
        "+set",
        "+del",
        "+pttl",
        "+eval",
        "+publish",
        "+subscribe",
        "+ping",
    ]);
    let store = store(&redis.url("?user=gate&pass=p%40ss%2Fword"));
    let key = key("shop");
    let mut changes = store.changes(&key).unwrap();
    store.save(&key, record(1, "t")).await.unwrap();
    assert_eq!(
        store.lease(&key, "a", Duration::from_secs(60)).await,
        Ok(Lease::Granted)
    );
    tokio::time::timeout(Duration::from_secs(5), changes.changed())
        .await
        .unwrap()
        .unwrap();
    let mut keys: Vec<String> = redis.run(&["KEYS", "*"]);
    keys.sort();
    assert_eq!(keys, ["wxgate:{shop}", "wxgate:{shop}:lease"]);
    let left: u64 = redis.run(&["TTL", "wxgate:{shop}"]);
    assert!((8 * 86_400 - 60..=8 * 86_400).contains(&left), "{left}");
    let stranger = crate::stores::redis_store::store(&redis.url("?user=gate&pass=wrong"));
    fails(&stranger, ServerFault::Denied).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_forbids_publishing_is_still_written() {
    let redis = RedisServer::start();
    redis.run::<()>(&[
        "ACL",
        "SETUSER",
        "gate",
        "on",
        ">pw",
        "resetchannels",
        "~wxgate:*",
        "+@all",
    ]);
    let store = store(&redis.url("?user=gate&pass=pw"));
    assert_eq!(
        store.save(&key("shop"), record(1, "t")).await,
        Ok(Saved::Written)
    );
    // Long enough for the connection to be looked at.
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(2500) {
        assert_eq!(
            store.save(&key("shop"), record(1, "t")).await,
            Ok(Saved::Written)
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_record_is_never_used_and_only_replaced_when_it_is_nobodys() {
    let redis = RedisServer::start();
    let store = of(&redis);
    let key = key("shop");
    for poison in [
        "",
        "{}",
        "hello",
        r#"{"format":1,"sha256":"00"}"#,
        "\u{0}\u{1}",
    ] {
        redis.set("wxgate:{shop}", poison);
        assert_eq!(store.load(&key).await, Ok(None), "{poison}");
        assert_eq!(
            store.save(&key, record(1, "t")).await,
            Ok(Saved::Written),
            "{poison}"
        );
        assert_eq!(store.load(&key).await, Ok(Some(record(1, "t"))));
    }
    let mut torn: Vec<u8> = redis.run(&["GET", "wxgate:{shop}"]);
    torn[100] ^= 1;
    redis.set("wxgate:{shop}", std::str::from_utf8(&torn).unwrap());
    assert_eq!(store.load(&key).await, Ok(None), "one bit");
    // Of a later version, whose nodes we must not harm.
    redis.set("wxgate:{shop}", r#"{"format":9,"record":{}}"#);
    assert_eq!(store.load(&key).await, Err(fault(ServerFault::Unreadable)));
    assert_eq!(
        store.save(&key, record(1, "t")).await,
        Err(fault(ServerFault::Unreadable))
    );
    assert_eq!(
        redis.run::<String>(&["GET", "wxgate:{shop}"]),
        r#"{"format":9,"record":{}}"#
    );
    redis.run::<()>(&["DEL", "wxgate:{shop}"]);
    redis.run::<()>(&["RPUSH", "wxgate:{shop}", "other's"]);
    assert_eq!(store.load(&key).await, Err(fault(ServerFault::Foreign)));
    assert_eq!(
        store.save(&key, record(1, "t")).await,
        Err(fault(ServerFault::Foreign))
    );
    assert_eq!(redis.run::<u64>(&["LLEN", "wxgate:{shop}"]), 1);
    assert_eq!(
        store
            .save(&crate::store_contract::shared::key("other"), record(1, "t"))
            .await,
        Ok(Saved::Written)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_fails_at_once_and_is_found_again_within_two_seconds() {
    let mut redis = RedisServer::start();
    let store = of(&redis);
    works_again(&store).await;
    for _ in 0..3 {
        redis.kill();
        eventually("it is gone", async || {
            store.load(&key("shop")).await.is_err()
        })
        .await;
        let start = Instant::now();
        for _ in 0..50 {
            assert!(store.load(&key("shop")).await.is_err());
        }
        assert!(
            start.elapsed() < CALL,
            "nobody waits for it: {:?}",
            start.elapsed()
        );
        redis.restart();
        let took = works_again(&store).await;
        assert!(took < Duration::from_secs(2), "{took:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there_yet_is_found_later() {
    let mut redis = RedisServer::start();
    redis.kill();
    let store = of(&redis);
    fails(&store, ServerFault::Unreachable).await;
    let mut changes = store.changes(&key("shop")).unwrap();
    redis.restart();
    works_again(&store).await;
    assert!(
        changes.has_changed().unwrap(),
        "whatever happened meanwhile was not told"
    );
    changes.borrow_and_update();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_call_takes_longer_than_half_a_second_while_the_server_hangs() {
    let redis = RedisServer::start();
    let store = of(&redis);
    works_again(&store).await;
    redis.run::<()>(&["CLIENT", "PAUSE", "2500", "ALL"]);
    fails(&store, ServerFault::Timeout).await;
    works_again(&store).await;
    redis.signal(Signal::STOP);
    fails(&store, ServerFault::Timeout).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let start = Instant::now();
    assert!(store.load(&key("shop")).await.is_err());
    assert!(
        start.elapsed() < Duration::from_millis(50),
        "it is known by now: {:?}",
        start.elapsed()
    );
    redis.signal(Signal::CONT);
    let took = works_again(&store).await;
    assert!(took < Duration::from_secs(3), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_is_read_not_written_and_used_again_when_it_becomes_the_primary() {
    let port = free_port();
    let primary = RedisServer::start_with(&["--port", &port.to_string()]);
    let redis = RedisServer::start();
    let store = of(&redis);
    assert_eq!(
        store.save(&key("shop"), record(1, "t")).await,
        Ok(Saved::Written)
    );
    primary.run::<()>(&["PING"]);
    redis.run::<()>(&["REPLICAOF", "127.0.0.1", &port.to_string()]);
    fails(&store, ServerFault::ReadOnly).await;
    redis.run::<()>(&["REPLICAOF", "NO", "ONE"]);
    works_again(&store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn full_locked_and_clustered_servers_have_names() {
    let redis = RedisServer::start();
    let store = of(&redis);
    works_again(&store).await;
    redis.run::<()>(&["CONFIG", "SET", "maxmemory", "1"]);
    fails(&store, ServerFault::Full).await;
    redis.run::<()>(&["CONFIG", "SET", "maxmemory", "0"]);
    works_again(&store).await;
    let locked = RedisServer::start_with(&["--port", "0", "--requirepass", "pw"]);
    fails(&of(&locked), ServerFault::Denied).await;
    works_again(&crate::stores::redis_store::store(&locked.url("?pass=pw"))).await;
    let cluster = RedisServer::start_with(&[
        "--port",
        &free_port().to_string(),
        "--cluster-enabled",
        "yes",
        "--cluster-port",
        &free_port().to_string(),
    ]);
    fails(&of(&cluster), ServerFault::Busy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinels_lead_to_the_primary_and_to_the_next_one_after_it_stopped() {
    let ports = [free_port(), free_port()];
    let primary = RedisServer::start_with(&["--port", &ports[0].to_string()]);
    let replica = RedisServer::start_with(&["--port", &ports[1].to_string()]);
    replica.run::<()>(&["REPLICAOF", "127.0.0.1", &ports[0].to_string()]);
    let sentinels: Vec<_> = (0..3).map(|_| Sentinel::start(ports[0], 2)).collect();
    let hosts: Vec<_> = sentinels
        .iter()
        .map(|sentinel| format!("127.0.0.1:{}", sentinel.port))
        .collect();
    let store = store(&format!("redis+sentinel://{}/mymaster/0", hosts.join(",")));
    works_again(&store).await;
    eventually(
        "the replica follows and the Sentinels know each other",
        async || {
            let info: String = replica.run(&["INFO", "replication"]);
            info.contains("master_link_status:up")
                && sentinels.iter().all(|sentinel| {
                    sentinel.knows("num-other-sentinels", "2") && sentinel.knows("num-slaves", "1")
                })
        },
    )
    .await;
    store.save(&key("shop"), record(3, "t")).await.unwrap();
    eventually("the replica has it", async || {
        replica.run::<u64>(&["EXISTS", "wxgate:{shop}"]) == 1
    })
    .await;
    primary.signal(Signal::STOP);
    let start = Instant::now();
    fails(&store, ServerFault::Timeout).await;
    eventually("the fail-over", async || {
        store.save(&key("shop"), record(4, "u")).await == Ok(Saved::Written)
    })
    .await;
    println!("fail-over: writable again after {:?}", start.elapsed());
    assert_eq!(replica.run::<u64>(&["EXISTS", "wxgate:{shop}"]), 1);
    // The old primary believes in itself for a while; nobody may follow it. Told otherwise, it
    // closes all connections.
    primary.signal(Signal::CONT);
    eventually("the old primary is a replica", async || {
        let role = primary.try_run::<Vec<redis::Value>>(&["ROLE"]);
        role.is_ok_and(|role| role[0] == redis::Value::BulkString(b"slave".to_vec()))
    })
    .await;
    assert_eq!(store.load(&key("shop")).await, Ok(Some(record(4, "u"))));
}
