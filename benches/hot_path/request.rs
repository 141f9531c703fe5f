//! Path, query and headers of a request on their way to WeChat.

use std::hint::black_box;

use criterion::Criterion;
use hyper::{HeaderMap, header::HeaderValue};
use wxgate::internals::proxy::{
    headers::{PresentHeaders, RequestHeaders},
    inject,
    path::SplitPath,
    read_answer_head,
};

use super::TOKEN;

pub(super) fn paths(c: &mut Criterion) {
    let mut group = c.benchmark_group("path");
    for (name, path) in [
        ("plain", "/cgi-bin/message/custom/send"),
        ("prefix", "/@shop/cgi-bin/message/custom/send"),
        ("folded", "//cgi-bin//message/custom/send"),
    ] {
        group.bench_function(name, |b| {
            b.iter(|| {
                SplitPath::new(black_box(path))
                    .check()
                    .unwrap()
                    .as_str()
                    .len()
            });
        });
    }
}

pub(super) fn injection(c: &mut Criterion) {
    let long = (0..200)
        .map(|n| format!("p{n}=v{n}"))
        .collect::<Vec<_>>()
        .join("&");
    let mut group = c.benchmark_group("inject");
    for (name, query) in [
        ("no query", None),
        (
            "two parameters",
            Some("openid=o6_bmjrPTlm6_2sgVt7hMZOPfL2M&lang=zh_CN"),
        ),
        (
            "a token already there",
            Some("access_token=ACCESS_TOKEN&openid=o6_bmjrPTlm6_2sgVt7hMZOPfL2M"),
        ),
        ("2 KiB", Some(long.as_str())),
    ] {
        let path = SplitPath::new("/cgi-bin/user/info").check().unwrap();
        group.bench_function(name, |b| {
            b.iter(|| {
                let query = black_box(query);
                let own = inject::examine(query).own().unwrap();
                inject::inject(&path, query, own, TOKEN)
                    .unwrap()
                    .as_str()
                    .len()
            });
        });
    }
}

pub(super) fn header_cleaning(c: &mut Criterion) {
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
    let mark = HeaderValue::from_static("wxgate");
    let mut group = c.benchmark_group("headers");
    group.bench_function("to upstream", |b| {
        let mut head = Vec::new();
        b.iter(|| {
            let request = black_box(&request);
            let present = PresentHeaders::in_request(request);
            head.clear();
            RequestHeaders::new(request, present, &[], &mark).write(&mut head);
            head.len()
        });
    });
    group.bench_function("to client", |b| {
        let answer = b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Type: application/json; encoding=utf-8\r\n\
            Date: Sun, 22 Nov 2026 12:00:00 GMT\r\nContent-Length: 190\r\n\r\n";
        b.iter(|| read_answer_head(black_box(answer)).unwrap());
    });
}
