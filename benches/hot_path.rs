//! The stages that every request pays for, each by itself. Calls production code only.
//!
//! Absolute times depend on the machine; compare runs on the same one (`cargo bench --bench hot_path`).

#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]

use std::{hint::black_box, sync::Arc, time::Duration};

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use hyper::HeaderMap;
use prometheus_client::registry::Registry;
use wxgate::{
    base::{AccountName, Secret},
    proxy::{
        headers,
        inject::{self, Query},
        path::SplitPath,
        route::Selection,
    },
    token::{
        AccountSettings, Keeper, Origin, Settings,
        metrics::Metrics,
        source::{BoxFuture, FetchError, Fetched, Mode, Probe, TokenSource},
        store::MemoryStore,
    },
    wechat::{api::Platform, verdict},
};

const TOKEN: &str = "91_kOqZ3vX1m0yJ7pTq2bWcR5nUeH8sLdFgAaYxIiOoPpQqSsDdFfGgHhJjKkLlZzXxCcVvBbNnMm1234567890-_abcdefghijklmnopqrstuvwxyzABCDEFGHIJKL0123";

fn paths(c: &mut Criterion) {
    let mut group = c.benchmark_group("path");
    for (name, path) in [
        ("plain", "/cgi-bin/message/custom/send"),
        ("prefix", "/@shop/cgi-bin/message/custom/send"),
        ("folded", "//cgi-bin//message/custom/send"),
    ] {
        group.bench_function(name, |b| b.iter(|| SplitPath::new(black_box(path)).check().unwrap().as_str().len()));
    }
}

fn injection(c: &mut Criterion) {
    let long = (0..200).map(|n| format!("p{n}=v{n}")).collect::<Vec<_>>().join("&");
    let mut group = c.benchmark_group("inject");
    for (name, query) in [
        ("no query", None),
        ("two parameters", Some("openid=o6_bmjrPTlm6_2sgVt7hMZOPfL2M&lang=zh_CN")),
        ("a token already there", Some("access_token=ACCESS_TOKEN&openid=o6_bmjrPTlm6_2sgVt7hMZOPfL2M")),
        ("2 KiB", Some(long.as_str())),
    ] {
        let path = SplitPath::new("/cgi-bin/user/info").check().unwrap();
        group.bench_function(name, |b| {
            b.iter(|| {
                let query = black_box(query);
                let Query::TakesToken { own } = inject::examine(query).unwrap() else { return 0 };
                inject::inject(&path, query, own, TOKEN).unwrap().as_str().len()
            });
        });
    }
}

fn header_cleaning(c: &mut Criterion) {
    let mut request = HeaderMap::new();
    for (name, value) in [
        ("host", "wxgate:8080"),
        ("user-agent", "curl/8.5.0"),
        ("accept", "*/*"),
        ("accept-encoding", "gzip, deflate"),
        ("connection", "keep-alive"),
        ("content-type", "application/json"),
        ("x-forwarded-for", "10.0.0.1"),
    ] {
        request.insert(name, value.parse().unwrap());
    }
    let mut answer = HeaderMap::new();
    for (name, value) in [
        ("connection", "keep-alive"),
        ("content-type", "application/json; encoding=utf-8"),
        ("date", "Sun, 22 Nov 2026 12:00:00 GMT"),
        ("content-length", "190"),
    ] {
        answer.insert(name, value.parse().unwrap());
    }
    let mut group = c.benchmark_group("headers");
    group.bench_function("to upstream", |b| {
        b.iter_batched_ref(|| request.clone(), headers::to_upstream, BatchSize::SmallInput);
    });
    group.bench_function("to client", |b| {
        b.iter_batched_ref(|| answer.clone(), headers::to_client, BatchSize::SmallInput);
    });
}

fn verdicts(c: &mut Criterion) {
    let stale = br#"{"errcode":40001,"errmsg":"invalid credential, access_token is invalid or not latest, could get access_token by getStableAccessToken, more details at https://mmbizurl.cn/s/JtxxFh33r rid: 6aac0063-7ed08fb9-1250f724"}"#;
    let user = br#"{"subscribe":1,"openid":"o6_bmjrPTlm6_2sgVt7hMZOPfL2M","language":"zh_CN","subscribe_time":1382694957,"unionid":" o6_bmasdasdsad6_2sgVt7hMZOPfL","remark":"","groupid":0,"tagid_list":[128,2],"qr":98765}"#;
    let large = format!("{{\"list\":[{}]}}", vec!["{\"openid\":\"o6_bmjrPTlm6_2sgVt7hMZOPfL2M\"}"; 1600].join(","));
    let mut group = c.benchmark_group("verdict");
    group.bench_function("190 B, stale", |b| b.iter(|| verdict::errcode(black_box(stale))));
    group.bench_function("190 B, fine", |b| b.iter(|| verdict::errcode(black_box(user))));
    group.bench_function("64 KiB, fine", |b| b.iter(|| verdict::errcode(black_box(large.as_bytes()))));
}

/// Always the same token.
struct Fixed;

impl TokenSource for Fixed {
    fn fetch(&self, _: Mode) -> BoxFuture<'_, Result<Fetched, FetchError>> {
        Box::pin(async { Ok(Fetched { token: Secret::new(TOKEN), expires_in: Duration::from_secs(7200) }) })
    }

    fn probe<'f>(&'f self, _: &'f Secret) -> BoxFuture<'f, Probe> {
        Box::pin(async { Probe::Fine })
    }
}

/// The account at this place, with an appid and a host of its own.
fn account(place: usize) -> AccountSettings {
    AccountSettings {
        name: AccountName::new(&format!("shop-{place}")).unwrap(),
        platform: Platform::Wechat,
        appid: format!("wx{place:016x}"),
        secret: Some(Secret::new("secret")),
        origin: Origin::Stable,
        api: vec!["https://api.weixin.qq.com".parse().unwrap()],
        hosts: vec![format!("shop-{place}.wx.internal")],
    }
}

/// Must be called inside a runtime.
fn keeper(account: &AccountSettings) -> Keeper {
    let metrics = Metrics::register(&mut Registry::default()).for_account(&account.name);
    Keeper::spawn(account.clone(), Settings::default(), Arc::new(Fixed), Arc::new(MemoryStore::default()), metrics)
}

/// A hundred accounts must cost a request no more than one.
fn selection(c: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _inside = runtime.enter();
    let none = HeaderMap::new();
    let mut named = HeaderMap::new();
    named.insert("x-wxgate-account", "shop-0".parse().unwrap());
    let mut group = c.benchmark_group("selection");
    for count in [1, 100] {
        let accounts = (0..count).map(account).map(|account| (account.clone(), keeper(&account))).collect();
        let accounts = Selection::new(accounts, AccountName::new("shop-0").as_ref());
        let mut bench = |by: &str, prefix: Option<&str>, headers: &HeaderMap, host: &str| {
            assert_eq!(accounts.find(prefix, headers, Some(host)).unwrap().as_str(), "shop-0");
            group.bench_function(format!("{by}, one of {count}"), |b| {
                b.iter(|| accounts.find(black_box(prefix), black_box(headers), black_box(Some(host))).is_some());
            });
        };
        bench("prefix", Some("shop-0"), &none, "wxgate:8080");
        bench("appid", Some("wx0000000000000000"), &none, "wxgate:8080");
        bench("header", None, &named, "wxgate:8080");
        bench("host", None, &none, "shop-0.wx.internal:8080");
        bench("fall-back", None, &none, "wxgate:8080");
    }
}

fn token_read(c: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let keeper = runtime.block_on(async {
        let keeper = keeper(&account(0));
        keeper.current().await.unwrap();
        keeper
    });
    let mut group = c.benchmark_group("token");
    group.bench_function("read", |b| b.iter(|| keeper.token().unwrap().generation()));
    group.bench_function("accepted", |b| {
        let generation = keeper.token().unwrap().generation();
        b.iter(|| keeper.accepted(black_box(generation)));
    });
    group.bench_function("read while three other threads do", |b| {
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let others: Vec<_> = (0..3)
            .map(|_| {
                let (keeper, stop) = (keeper.clone(), Arc::clone(&stop));
                std::thread::spawn(move || {
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        black_box(keeper.token());
                    }
                })
            })
            .collect();
        b.iter(|| keeper.token().unwrap().generation());
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        for thread in others {
            thread.join().unwrap();
        }
    });
}

criterion_group!(benches, paths, injection, header_cleaning, verdicts, selection, token_read);
criterion_main!(benches);
