//! Partitions by a real network: nodes and Redis in two network namespaces, and a wire between them
//! that is cut in one direction or in both.
//!
//! Needs root, and `ip` and `tc` of iproute2; where they are not to be had it says so and passes.
//! The namespaces are its own, and nothing outside of them is changed.

use std::{fs::File, os::fd::AsFd as _, process::Command, thread, time::Duration};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::{
    runtime::Builder,
    time::{Instant, sleep_until},
};
use wxgate::sandbox::DEFAULT_APPID;

use super::{HOLD, fleet::Fleet, recovered, site::Site};
use crate::support::{redis::RedisServer, token_tools::eventually};

const NODES: u64 = 2;
const STORE: &str = "10.231.77.2";

/// What cuts the wire and what mends it: a command each, for one end or for both.
const CUTS: [(&str, &[Cut]); 3] = [
    (
        "requests vanish",
        &[Cut {
            end: End::Nodes,
            cut: BLACKHOLE,
            mend: NO_BLACKHOLE,
        }],
    ),
    (
        "answers vanish",
        &[Cut {
            end: End::Store,
            cut: BLACKHOLE,
            mend: NO_BLACKHOLE,
        }],
    ),
    (
        "the wire is cut",
        &[Cut {
            end: End::Store,
            cut: "ip link set dev wire down",
            mend: "ip link set dev wire up",
        }],
    ),
];
const BLACKHOLE: &str = "tc qdisc add dev wire root blackhole";
const NO_BLACKHOLE: &str = "tc qdisc del dev wire root";

struct Cut {
    end: End,
    cut: &'static str,
    mend: &'static str,
}

#[derive(Clone, Copy)]
enum End {
    Nodes,
    Store,
}

/// Two namespaces of this process, gone with this.
struct Hosts;

#[test]
fn a_cut_wire_costs_no_call_and_is_made_good_within_two_seconds() {
    let hosts = match Hosts::set_up() {
        Ok(hosts) => hosts,
        Err(missing) => {
            eprintln!("SKIPPED: partitions by network namespaces were not tried: {missing}");
            return;
        }
    };
    let redis = hosts.on(End::Store, || {
        RedisServer::start_with(&["--bind", STORE, "--port", "6379", "--protected-mode", "no"])
    });
    hosts.on(End::Nodes, || {
        // Its threads are where the one is that starts them.
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("threads");
        runtime.block_on(async {
            let site = Site::of(redis);
            for (name, cuts) in CUTS {
                site.redis.run::<()>(&["FLUSHALL"]);
                partition(name, cuts, &site, runtime.handle()).await;
            }
        });
        runtime.shutdown_background();
    });
}

async fn partition(name: &str, cuts: &[Cut], site: &Site, background: &tokio::runtime::Handle) {
    let urls = (0..NODES)
        .map(|_| format!("redis://{STORE}:6379/"))
        .collect();
    let fleet = Fleet::start(background, urls, None).await;
    let control = fleet.control();
    assert_eq!(control.fetches(), 1, "{name}: one for all nodes");
    let load = fleet.load();
    let before = fleet.rows().await;
    for cut in cuts {
        run(&cut.end.inside(cut.cut)).expect("the wire is cut");
    }
    let began = Instant::now();
    control.expire(DEFAULT_APPID);
    sleep_until(began + HOLD).await;
    eventually("each node has another token", async || {
        fleet
            .rows()
            .await
            .iter()
            .zip(&before)
            .all(|(now, then)| now.fingerprint != then.fingerprint)
    })
    .await;
    for cut in cuts {
        run(&cut.end.inside(cut.mend)).expect("the wire is mended");
    }
    let recovery = recovered(site, &fleet).await;
    let calls = load.end().await;
    let fetches = control.fetches() - 1;
    println!(
        "{name}: {} calls, {} failed, the longest took {:?}; {fetches} fetches; shared again after {recovery:?}",
        calls.served,
        calls.failures.len(),
        calls.longest
    );
    assert!(
        calls.failures.is_empty(),
        "{name}: {:?}",
        calls.failures.first()
    );
    assert_eq!(
        fetches, NODES,
        "{name}: each for itself, so the wire was really cut"
    );
    assert_eq!((calls.backwards, fleet.returns()), (0, 0), "{name}");
    assert!(recovery <= Duration::from_secs(2), "{name}: {recovery:?}");
    // Nodes that still run would write their records into the store of the next ones.
    fleet.stop().await;
}

impl Hosts {
    fn set_up() -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("this takes root".to_owned());
        }
        // From here on, what was made is taken away whatever comes.
        let hosts = Self;
        let (nodes, store) = (End::Nodes.name(), End::Store.name());
        for command in [
            format!("ip netns add {nodes}"),
            format!("ip netns add {store}"),
            format!("ip -n {nodes} link add name wire type veth peer name wire netns {store}"),
            format!("ip -n {nodes} address add 10.231.77.1/30 dev wire"),
            format!("ip -n {store} address add {STORE}/30 dev wire"),
            format!("ip -n {nodes} link set dev wire up"),
            format!("ip -n {store} link set dev wire up"),
            format!("ip -n {nodes} link set dev lo up"),
            End::Nodes.inside(BLACKHOLE),
            End::Nodes.inside(NO_BLACKHOLE),
        ] {
            run(&command)?;
        }
        Ok(hosts)
    }

    /// Acts on a thread that is on one of the two.
    fn on<T: Send>(&self, end: End, act: impl FnOnce() -> T + Send) -> T {
        let place = File::open(format!("/run/netns/{}", end.name())).expect("it was added");
        thread::scope(|scope| {
            let there = scope.spawn(move || {
                move_into_link_name_space(place.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("root may");
                act()
            });
            there
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for end in [End::Nodes, End::Store] {
            let _ = run(&format!("ip netns del {}", end.name()));
        }
    }
}

impl End {
    fn name(self) -> String {
        let end = match self {
            Self::Nodes => "nodes",
            Self::Store => "store",
        };
        format!("wxgate-test-{}-{end}", std::process::id())
    }

    fn inside(self, command: &str) -> String {
        format!("ip netns exec {} {command}", self.name())
    }
}

fn run(command: &str) -> Result<(), String> {
    let mut words = command.split(' ');
    let output = Command::new(words.next().unwrap_or_default())
        .args(words)
        .output();
    let output = output.map_err(|error| format!("{command}: {error}; it is part of iproute2"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("{command}: {}", said.trim()))
    }
}
