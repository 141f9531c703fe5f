//! Search for an error code in an answer.

use std::hint::black_box;

use criterion::Criterion;
use wxgate::internals::wechat::verdict;

pub(super) fn verdicts(c: &mut Criterion) {
    let stale = br#"{"errcode":40001,"errmsg":"invalid credential, access_token is invalid or not latest, could get access_token by getStableAccessToken, more details at https://mmbizurl.cn/s/JtxxFh33r rid: 6aac0063-7ed08fb9-1250f724"}"#;
    let user = br#"{"subscribe":1,"openid":"o6_bmjrPTlm6_2sgVt7hMZOPfL2M","language":"zh_CN","subscribe_time":1382694957,"unionid":" o6_bmasdasdsad6_2sgVt7hMZOPfL","remark":"","groupid":0,"tagid_list":[128,2],"qr":98765}"#;
    let large = format!(
        "{{\"list\":[{}]}}",
        vec!["{\"openid\":\"o6_bmjrPTlm6_2sgVt7hMZOPfL2M\"}"; 1600].join(",")
    );
    let mut group = c.benchmark_group("verdict");
    group.bench_function("190 B, stale", |b| {
        b.iter(|| verdict::errcode(black_box(stale)));
    });
    group.bench_function("190 B, fine", |b| {
        b.iter(|| verdict::errcode(black_box(user)));
    });
    group.bench_function("64 KiB, fine", |b| {
        b.iter(|| verdict::errcode(black_box(large.as_bytes())));
    });
}
