//! The long absence of the store: a minute, with real sockets and tokens that die meanwhile.

use std::time::Duration;

use tokio::{
    runtime::Builder,
    time::{Instant, sleep_until},
};
use wxgate::sandbox::DEFAULT_APPID;

use super::{
    fleet::Fleet,
    recovered,
    site::{Fault, Site},
};

const NODES: u64 = 3;

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_gone_for_sixty_seconds_costs_no_call_and_is_shared_again_within_two() {
    let background = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("threads");
    let mut site = Site::open(Fault::Down, 3).await;
    let urls = (0..3).map(|n| site.url(n)).collect();
    let fleet = Fleet::start(background.handle(), urls, None).await;
    let load = fleet.load();
    let control = fleet.control();
    assert_eq!(control.fetches(), 1);
    site.strike(Fault::Down).await;
    let gone = Instant::now();
    for (at, deaths) in [(5, 1), (45, 2)] {
        sleep_until(gone + Duration::from_secs(at)).await;
        control.revoke(DEFAULT_APPID);
        sleep_until(gone + Duration::from_secs(at + 10)).await;
        let fetches = control.fetches() - 1;
        assert!(
            (deaths..=deaths * NODES).contains(&fetches),
            "{fetches} for {deaths} deaths"
        );
    }
    sleep_until(gone + Duration::from_secs(60)).await;
    let before = control.fetches();
    site.heal(Fault::Down).await;
    let recovery = recovered(&site, &fleet).await;
    let calls = load.end().await;
    println!(
        "{} calls, {} failed, the longest took {:?}; {} fetches for two deaths; shared again after {recovery:?}",
        calls.served,
        calls.failures.len(),
        calls.longest,
        before - 1
    );
    assert!(calls.failures.is_empty(), "{:?}", calls.failures.first());
    assert_eq!((calls.backwards, fleet.returns()), (0, 0));
    assert_eq!(
        (control.fetches(), control.forced()),
        (before, 0),
        "the return costs none"
    );
    assert!(recovery <= Duration::from_secs(2), "{recovery:?}");
    background.shutdown_background();
}
