//! What can happen to the store of a group of nodes: a real Redis, a road to it for each node, and
//! the faults.

use std::time::Duration;

use rustix::process::Signal;
use wxgate::internals::{
    base::{AccountName, Secret},
    net::egress::Egress,
    token::{
        budget::Forcer,
        store::{RecordKey, RedisSettings, RedisStore, TokenStore as _},
    },
};

use super::{
    RECORD,
    road::{Road, Way},
};
use crate::support::{
    redis::{RedisServer, Sentinel, free_port},
    token_tools::eventually,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Killed; another one, which is empty, takes its place.
    Down,
    /// It answers so many milliseconds late.
    Slow(u64),
    /// The process is stopped; connections stay open.
    Paused,
    /// What nodes ask never arrives.
    RequestsVanish,
    /// What is asked is done, and nobody hears of it.
    AnswersVanish,
    BothVanish,
    /// The same, for the first node only.
    OneCutOff,
    /// The primary stops; over when Sentinel names the replica instead.
    FailOver,
    /// Everything is deleted.
    Flush,
    /// By Redis itself, for want of memory.
    Evict,
}

pub struct Site {
    pub redis: RedisServer,
    /// Who takes over from it.
    next: Option<(RedisServer, Sentinel)>,
    roads: Vec<Road>,
    failed_over: bool,
}

impl Fault {
    pub fn name(self) -> String {
        match self {
            Self::Down => "down".to_owned(),
            Self::Slow(ms) => format!("answers after {ms} ms"),
            Self::Paused => "paused (SIGSTOP)".to_owned(),
            Self::RequestsVanish => "requests vanish".to_owned(),
            Self::AnswersVanish => "answers vanish".to_owned(),
            Self::BothVanish => "both vanish".to_owned(),
            Self::OneCutOff => "one of three cut off".to_owned(),
            Self::FailOver => "fail-over (Sentinel)".to_owned(),
            Self::Flush => "FLUSHALL".to_owned(),
            Self::Evict => "evicted".to_owned(),
        }
    }

    /// Whether it is over as soon as it has happened, whatever its effect.
    pub fn is_an_event(self) -> bool {
        matches!(self, Self::Flush | Self::Evict | Self::FailOver)
    }

    /// How many fetches nodes may need for one token while this lasts.
    pub fn fetches(self, nodes: u64) -> u64 {
        match self {
            Self::Slow(200) | Self::Flush | Self::Evict => 1,
            Self::OneCutOff => 2,
            _ => nodes,
        }
    }

    /// How long the store may take to be shared again by all. A record that is lost is missed at
    /// the next look.
    pub fn recovery(self) -> Duration {
        Duration::from_secs(if matches!(self, Self::Flush | Self::Evict) {
            8
        } else {
            2
        })
    }
}

impl Site {
    pub async fn open(fault: Fault, nodes: usize) -> Self {
        let ports = [free_port(), free_port()].map(|port| port.to_string());
        let redis = RedisServer::start_with(&[
            "--port",
            if fault == Fault::FailOver {
                &ports[0]
            } else {
                "0"
            },
        ]);
        let mut next = None;
        if fault == Fault::FailOver {
            let replica = RedisServer::start_with(&[
                "--port",
                &ports[1],
                "--replicaof",
                "127.0.0.1",
                &ports[0],
            ]);
            eventually("the replica follows", async || {
                replica
                    .run::<String>(&["INFO", "replication"])
                    .contains("master_link_status:up")
            })
            .await;
            let sentinel = Sentinel::start(ports[0].parse().expect("a port"), 1);
            eventually("the Sentinel knows it", async || {
                sentinel.knows("num-slaves", "1")
            })
            .await;
            next = Some((replica, sentinel));
        }
        let mut roads = Vec::new();
        while roads.len() < nodes {
            roads.push(Road::to(redis.socket()).await);
        }
        Self {
            redis,
            next,
            roads,
            failed_over: false,
        }
    }

    /// A server that its nodes reach in a way of their own.
    pub fn of(redis: RedisServer) -> Self {
        Self {
            redis,
            next: None,
            roads: Vec::new(),
            failed_over: false,
        }
    }

    /// What node `n` is configured with.
    pub fn url(&self, n: usize) -> String {
        match &self.next {
            Some((_, sentinel)) => {
                format!("redis+sentinel://127.0.0.1:{}/mymaster/0", sentinel.port)
            }
            None => self.roads[n].url(),
        }
    }

    /// The server that counts now.
    pub fn server(&self) -> &RedisServer {
        self.next
            .as_ref()
            .filter(|_| self.failed_over)
            .map_or(&self.redis, |(replica, _)| replica)
    }

    pub async fn strike(&mut self, fault: Fault) {
        match fault {
            Fault::Down => self.redis.kill(),
            Fault::Slow(ms) => self.all(Way::Pass, Way::Slow(Duration::from_millis(ms))),
            Fault::Paused | Fault::FailOver => self.redis.signal(Signal::STOP),
            Fault::RequestsVanish => self.all(Way::Silent, Way::Pass),
            Fault::AnswersVanish => self.all(Way::Pass, Way::Silent),
            Fault::BothVanish => self.all(Way::Silent, Way::Silent),
            Fault::OneCutOff => self.roads[0].set(Way::Silent, Way::Silent),
            Fault::Flush => self.redis.run::<()>(&["FLUSHALL"]),
            Fault::Evict => {
                self.redis
                    .run::<()>(&["CONFIG", "SET", "maxmemory-policy", "allkeys-random"]);
                self.redis.run::<()>(&["CONFIG", "SET", "maxmemory", "1"]);
                eventually("it is evicted", async || {
                    self.redis.run::<u64>(&["EXISTS", RECORD]) == 0
                })
                .await;
            }
        }
    }

    pub async fn heal(&mut self, fault: Fault) {
        match fault {
            Fault::Down => self.redis.restart(),
            Fault::Paused => self.redis.signal(Signal::CONT),
            Fault::Evict => self.redis.run::<()>(&["CONFIG", "SET", "maxmemory", "0"]),
            Fault::FailOver => {
                let (_, sentinel) = self.next.as_ref().expect("there is one");
                let old = sentinel.primary();
                eventually("there is another primary", async || {
                    sentinel.primary() != old
                })
                .await;
                self.failed_over = true;
            }
            Fault::Flush => {}
            _ => self.all(Way::Pass, Way::Pass),
        }
    }

    fn all(&self, there: Way, back: Way) {
        self.roads.iter().for_each(|road| road.set(there, back));
    }

    /// Notes in the record that a forced refresh was spent, as another node would, so that one can
    /// see who hears of it.
    pub async fn mark(&self) {
        let settings = RedisSettings::new(Secret::new(self.server().url("")), "wxgate:".to_owned())
            .expect("a good URL");
        let store = RedisStore::open(&settings, None, Egress::default().tls().expect("roots"));
        let key = RecordKey::token(&AccountName::new("shop").expect("a name"));
        let now = std::time::SystemTime::UNIX_EPOCH
            .elapsed()
            .expect("after 1970")
            .as_millis();
        eventually("the record is marked", async || {
            let Ok(Some(mut record)) = store.load(&key).await else {
                return false;
            };
            let _ = record
                .budget
                .spend_forced(u64::try_from(now).expect("not yet"), Forcer::Refresher);
            store.save(&key, record).await.is_ok()
        })
        .await;
    }
}
