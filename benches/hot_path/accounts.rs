//! Accounts for the benches, and the selection of an account.

use std::{hint::black_box, sync::Arc};

use criterion::Criterion;
use hyper::HeaderMap;
use prometheus_client::registry::Registry;
use wxgate::internals::{
    base::{AccountName, Secret},
    proxy::route::SelectionBench,
    token::{
        AccountSettings, TokenProvider, TokenRefresher, TokenSettings, metrics::TokenMetrics,
        source::TokenSource, store::MemoryStore,
    },
    wechat::api::Platform,
};

use super::token::Fixed;

/// Returns the account at an index, with its own appid and host.
pub(super) fn account(place: usize) -> AccountSettings {
    AccountSettings {
        name: AccountName::new(&format!("shop-{place}")).unwrap(),
        platform: Platform::Wechat,
        appid: format!("wx{place:016x}"),
        secret: Some(Secret::new("secret")),
        provider: TokenProvider::Stable,
        api: vec!["https://api.weixin.qq.com".parse().unwrap()],
        hosts: vec![format!("shop-{place}.wx.internal")],
        foreign_token: None,
    }
}

/// Starts the refresher of an account. Must be called inside a runtime.
pub(super) fn refresher(
    account: &AccountSettings,
    source: impl TokenSource + 'static,
) -> TokenRefresher {
    let metrics = TokenMetrics::register(&mut Registry::default()).for_account(&account.name);
    TokenRefresher::spawn(
        account.clone(),
        TokenSettings::default(),
        Arc::new(source),
        Arc::new(MemoryStore::default()),
        metrics,
    )
}

/// Compares one account with a hundred, which must cost the same.
pub(super) fn selection(c: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _inside = runtime.enter();
    let none = HeaderMap::new();
    let mut named = HeaderMap::new();
    named.insert("x-wxgate-account", "shop-0".parse().unwrap());
    let mut group = c.benchmark_group("selection");
    for count in [1, 100] {
        let accounts = (0..count)
            .map(account)
            .map(|account| (account.clone(), refresher(&account, Fixed)))
            .collect();
        let accounts = SelectionBench::new(accounts, AccountName::new("shop-0").as_ref());
        let mut bench = |by: &str, prefix: Option<&str>, headers: &HeaderMap, host: &str| {
            assert_eq!(
                accounts.find(prefix, headers, Some(host)).unwrap().as_str(),
                "shop-0"
            );
            group.bench_function(format!("{by}, one of {count}"), |b| {
                b.iter(|| {
                    accounts
                        .find(black_box(prefix), black_box(headers), black_box(Some(host)))
                        .is_some()
                });
            });
        };
        bench("prefix", Some("shop-0"), &none, "wxgate:8080");
        bench("appid", Some("wx0000000000000000"), &none, "wxgate:8080");
        bench("header", None, &named, "wxgate:8080");
        bench("host", None, &none, "shop-0.wx.internal:8080");
        bench("fall-back", None, &none, "wxgate:8080");
    }
}
