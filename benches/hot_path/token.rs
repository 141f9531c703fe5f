//! Reading the token, alone and while other threads read and new tokens are published.

use std::{
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use criterion::Criterion;
use tokio::time::Instant;
use wxgate::internals::{
    base::Secret,
    token::{
        AccountSettings, TokenProvider, TokenRefresher,
        source::{BoxFuture, FetchError, FetchMode, Fetched, Probe, TokenSource, external},
    },
};

use super::{
    TOKEN,
    accounts::{account, refresher},
};

/// Source of always the same token.
pub(super) struct Fixed;

/// Source of another token at each fetch.
#[derive(Default)]
struct Changing(AtomicU64);

fn fetched(token: String) -> Fetched {
    Fetched {
        token: Secret::new(token),
        expires_in: Duration::from_secs(7200),
    }
}

impl TokenSource for Fixed {
    fn fetch(&self, _: FetchMode) -> BoxFuture<'_, Result<Fetched, FetchError>> {
        Box::pin(async { Ok(fetched(TOKEN.to_owned())) })
    }

    fn probe<'f>(&'f self, _: &'f Secret) -> BoxFuture<'f, Probe> {
        Box::pin(async { Probe::Fine })
    }
}

impl TokenSource for Changing {
    fn fetch(&self, _: FetchMode) -> BoxFuture<'_, Result<Fetched, FetchError>> {
        let number = self.0.fetch_add(1, Relaxed);
        Box::pin(async move { Ok(fetched(format!("{TOKEN}{number}"))) })
    }

    fn probe<'f>(&'f self, _: &'f Secret) -> BoxFuture<'f, Probe> {
        Box::pin(async { Probe::Fine })
    }
}

/// Threads that repeat an action until they are stopped.
struct Others {
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Others {
    fn start(count: usize, work: impl Fn() + Clone + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let start = || {
            let (work, stop) = (work.clone(), Arc::clone(&stop));
            thread::spawn(move || {
                while !stop.load(Relaxed) {
                    work();
                }
            })
        };
        let threads = (0..count).map(|_| start()).collect();
        Self { stop, threads }
    }

    fn stop(self) {
        self.stop.store(true, Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
    }
}

pub(super) fn read(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let ready = |account: &AccountSettings, source: Changing| {
        runtime.block_on(async {
            let refresher = refresher(account, source);
            refresher.current().await.unwrap();
            refresher
        })
    };
    let kept = ready(&account(0), Changing::default());
    let mut group = c.benchmark_group("token");
    let reading = |refresher: &TokenRefresher| refresher.token().unwrap().generation();
    group.bench_function("read", |b| b.iter(|| reading(&kept)));
    group.bench_function("accepted", |b| {
        let generation = reading(&kept);
        b.iter(|| kept.accepted(black_box(generation)));
    });
    group.bench_function("read while three other threads do", |b| {
        let others = Others::start(3, {
            let refresher = kept.clone();
            move || drop(black_box(refresher.token()))
        });
        b.iter(|| reading(&kept));
        others.stop();
    });
    // Reading the token of another server spends no budget, so that any number of new tokens can be
    // published.
    let http = external::ExternalHttpSettings::new(
        Secret::new("http://127.0.0.1:9/token"),
        Vec::new(),
        None,
    )
    .unwrap();
    let provider = TokenProvider::External(external::ExternalSettings::Http(http));
    let busy = ready(
        &AccountSettings {
            provider,
            ..account(1)
        },
        Changing::default(),
    );
    group.bench_function(
        "read while two other threads do and a third has it replaced",
        |b| {
            let before = reading(&busy);
            let readers = Others::start(2, {
                let refresher = busy.clone();
                move || drop(black_box(refresher.token()))
            });
            let writer = Others::start(1, {
                let (refresher, handle) = (busy.clone(), runtime.handle().clone());
                move || drop(handle.block_on(refresher.refresh_now(false)))
            });
            let patience = Instant::now() + Duration::from_secs(10);
            while reading(&busy) == before {
                assert!(Instant::now() < patience, "nothing is written");
                thread::yield_now();
            }
            b.iter(|| reading(&busy));
            readers.stop();
            writer.stop();
        },
    );
}
