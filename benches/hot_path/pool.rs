//! Pool of upstream connections: taking a connection and returning it, without a request in
//! between.

use criterion::Criterion;
use tokio::net::TcpListener;
use wxgate::proxy::Kept;

pub(super) fn turns(c: &mut Criterion) {
    // The same kind of runtime as that of a worker.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let kept = runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = format!("http://{}", listener.local_addr().unwrap())
            .parse()
            .unwrap();
        tokio::spawn(async move {
            let mut open = Vec::new();
            while let Ok(accepted) = listener.accept().await {
                open.push(accepted);
            }
        });
        let kept = Kept::new(host).unwrap();
        assert!(kept.turn(64).await);
        kept
    });
    let mut group = c.benchmark_group("pool");
    for count in [1, 64] {
        group.bench_function(format!("take and give back {count} of 64"), |b| {
            b.to_async(&runtime).iter(|| kept.turn(count));
        });
    }
}
