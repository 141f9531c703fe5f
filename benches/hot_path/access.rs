//! Identification of callers and check of their rights: keys, networks, paths and phantoms, with
//! few and with many clients and accounts.

use std::{hint::black_box, net::IpAddr, time::Duration};

use criterion::Criterion;
use hyper::HeaderMap;
use wxgate::internals::{
    base::{AccountName, Secret},
    net::address::NetworkSet,
    proxy::{
        AccessBench, inject,
        settings::{ClientKey, ClientSettings, PathPattern},
    },
    service::phantom::{Phantom, PhantomKey},
};

use super::accounts::account;

const PATH: &str = "/cgi-bin/message/custom/send";

/// Returns the client at an index: every second has a key, the others a network. Each may use every
/// account, by name.
fn client(place: usize, accounts: usize) -> ClientSettings {
    let key = format!("key-{place}-0123456789abcdef");
    let mut from = NetworkSet::default();
    from.add(&format!("10.{}.{}.0/24", place / 250, place % 250))
        .unwrap();
    let by_key = place.is_multiple_of(2);
    ClientSettings {
        keys: by_key.then(|| ClientKey::of(&key)).into_iter().collect(),
        from: (!by_key).then_some(from),
        accounts: Some((0..accounts).map(|place| account(place).name).collect()),
        allow: Some(vec![
            PathPattern::parse("/cgi-bin/user/**").unwrap(),
            PathPattern::parse("/cgi-bin/message/**").unwrap(),
        ]),
        deny: vec![PathPattern::parse("/cgi-bin/message/mass/**").unwrap()],
        ..ClientSettings::named(AccountName::new(&format!("client-{place}")).unwrap())
    }
}

/// Compares one client and account with a hundred of each, which must cost little more.
pub(super) fn rights(c: &mut Criterion) {
    let mut group = c.benchmark_group("access");
    for count in [2, 100] {
        let callers = AccessBench::new((0..count).map(|place| client(place, count)).collect());
        let account = account(count - 1).name;
        let (with_key, last) = (count - 2, count - 1);
        let mut key = HeaderMap::new();
        key.insert(
            "x-wxgate-key",
            format!("key-{with_key}-0123456789abcdef").parse().unwrap(),
        );
        let elsewhere: IpAddr = "192.0.2.1".parse().unwrap();
        let inside: IpAddr = format!("10.{}.{}.7", last / 250, last % 250)
            .parse()
            .unwrap();
        for (by, ip, headers) in [
            ("key", elsewhere, key),
            ("network", inside, HeaderMap::new()),
        ] {
            assert!(callers.admit(ip, &headers, &account, PATH));
            assert!(!callers.admit(ip, &headers, &account, "/cgi-bin/message/mass/send"));
            group.bench_function(
                format!("{by}, the last of {count} clients and accounts"),
                |b| {
                    b.iter(|| {
                        callers.admit(
                            black_box(ip),
                            black_box(&headers),
                            &account,
                            black_box(PATH),
                        )
                    });
                },
            );
        }
    }
}

pub(super) fn phantoms(c: &mut Criterion) {
    let key = PhantomKey::new(
        "shop",
        Some(&Secret::new("0123456789abcdef")),
        "crm",
        Some(b"digest"),
    );
    let now = Duration::from_secs(1_800_000_000);
    let shown = key.mint(now);
    let forged = PhantomKey::new(
        "shop",
        Some(&Secret::new("another")),
        "crm",
        Some(b"digest"),
    )
    .mint(now);
    let accepts = |query: &str| {
        let text = inject::phantom(Some(query)).unwrap().unwrap();
        Phantom::parse(text).is_some_and(|phantom| key.accepts(&phantom, now))
    };
    let mut group = c.benchmark_group("phantom");
    for (name, token, good) in [("good", shown, true), ("forged", forged, false)] {
        let query = format!("openid=o6_bmjrPTlm6_2sgVt7hMZOPfL2M&access_token={token}");
        assert_eq!(accepts(&query), good);
        group.bench_function(name, |b| b.iter(|| accepts(black_box(&query))));
    }
    let none = "openid=o6_bmjrPTlm6_2sgVt7hMZOPfL2M&lang=zh_CN";
    group.bench_function("none shown", |b| {
        b.iter(|| inject::phantom(black_box(Some(none))).unwrap().is_none());
    });
}
