//! Pool of upstream connections: taking a connection and returning it, without a request in
//! between.

use criterion::{Criterion, async_executor::AsyncExecutor};
use tokio::{net::TcpListener, runtime::LocalRuntime};
use wxgate::internals::proxy::PoolBench;

/// A runtime as a worker has it.
struct Worker(LocalRuntime);

impl AsyncExecutor for &Worker {
    fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.0.block_on(future)
    }
}

pub(super) fn turns(c: &mut Criterion) {
    let worker = Worker(LocalRuntime::new().unwrap());
    let kept = worker.0.block_on(async {
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
        let kept = PoolBench::new(host).unwrap();
        assert!(kept.turn(64).await);
        kept
    });
    let mut group = c.benchmark_group("pool");
    for count in [1, 64] {
        group.bench_function(format!("take and give back {count} of 64"), |b| {
            b.to_async(&worker).iter(|| kept.turn(count));
        });
    }
}
