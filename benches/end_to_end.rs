//! Whole requests: client, proxy and fake WeChat in one process, over loopback and TLS.
//!
//! All parts share the cores of the machine, so only the differences between the rows are
//! meaningful.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a benchmark"
)]

use std::{collections::BTreeMap, net::SocketAddr};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use reqwest::Client;
use wxgate::{
    app::App,
    config,
    internals::net::egress::Egress,
    sandbox::{self, DEFAULT_APPID, DEFAULT_SECRET, Sandbox},
};

struct Running {
    proxy: SocketAddr,
    _sandbox: Sandbox,
    _folder: tempfile::TempDir,
}

async fn start() -> Running {
    let settings = sandbox::SandboxSettings {
        record: false,
        ..sandbox::SandboxSettings::default()
    };
    let sandbox = sandbox::start(settings).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("root.pem"), sandbox.ca_pem()).unwrap();
    let api = sandbox.https_url().unwrap();
    let text = format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\nworkers = 1\n[admin]\nlisten = \"127.0.0.1:0\"\n\
         [upstream]\nca_file = \"root.pem\"\n[store]\nkind = \"memory\"\n\
         [[account]]\nname = \"shop\"\nappid = \"{DEFAULT_APPID}\"\nsecret = {{ value = \"{DEFAULT_SECRET}\" }}\napi = [\"{api}\"]\n"
    );
    let config = config::parse(
        &text,
        folder.path(),
        "bench.toml",
        &BTreeMap::<String, String>::new(),
    )
    .unwrap();
    let app = App::build(&config, None).unwrap();
    let proxy = app.addresses()[0].tcp().unwrap();
    tokio::spawn(app.run(std::future::pending(), std::future::pending()));
    Running {
        proxy,
        _sandbox: sandbox,
        _folder: folder,
    }
}

fn requests(c: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let running = runtime.block_on(start());
    let tls = Egress::default().tls().unwrap();
    let client = Client::builder()
        .tls_backend_preconfigured((*tls).clone())
        .no_proxy()
        .build()
        .unwrap();
    let url = |target: &str| format!("http://{}{target}", running.proxy);
    let user = url("/cgi-bin/user/info?openid=o6_b");
    let send = url("/cgi-bin/message/custom/send");
    let message = r#"{"touser":"o6_b","msgtype":"text","text":{"content":"hello"}}"#;
    let image = url("/cgi-bin/media/get?media_id=blob-1048576");
    let mut group = c.benchmark_group("request");
    group.bench_function("GET", |b| {
        b.to_async(&runtime).iter(|| async {
            client
                .get(&user)
                .send()
                .await
                .unwrap()
                .bytes()
                .await
                .unwrap()
        });
    });
    group.bench_function("POST", |b| {
        b.to_async(&runtime).iter(|| async {
            client
                .post(&send)
                .body(message)
                .send()
                .await
                .unwrap()
                .bytes()
                .await
                .unwrap()
        });
    });
    group.throughput(Throughput::Bytes(1 << 20));
    group.sample_size(20);
    group.bench_function("1 MiB download", |b| {
        b.to_async(&runtime).iter(|| async {
            let bytes = client
                .get(&image)
                .send()
                .await
                .unwrap()
                .bytes()
                .await
                .unwrap();
            assert_eq!(bytes.len(), 1 << 20);
        });
    });
}

criterion_group!(benches, requests);
criterion_main!(benches);
