//! Limits on the share that an account or a caller may take of requests in flight and connections.
//!
//! Each account, client and peer address has counters of its own, which its requests find without
//! a look-up. The limits come with each call, since a reload may change them.

use std::{
    cell::RefCell,
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use prometheus_client::metrics::gauge::Gauge;
use rustc_hash::FxBuildHasher;
use tokio::time::Instant;

use super::error::ProxyError;
use crate::net::address::Peer;

/// Seconds for which a request of another account or caller limits the share of the rest.
const RECENT: u32 = 60;
/// Seconds between two warnings about refused connections.
const WARN_EVERY: u32 = 60;

/// Counters of an account, a client or a peer address.
#[derive(Debug)]
pub(crate) struct Holder {
    /// Hash of the name, never 0. Two holders with the same id count as one in [`RecentHolders`].
    id: u32,
    in_flight: AtomicUsize,
    connections: AtomicUsize,
}

/// Limits of requests in flight.
#[derive(Debug, Clone, Copy)]
pub(super) struct InFlightLimits {
    /// `upstream.max_in_flight`.
    pub(super) in_flight: usize,
    /// `upstream.max_share`.
    pub(super) share: usize,
}

/// Reasons why a request gets no permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LimitReached {
    InFlight,
    Account,
    Client,
    /// The eighth of `upstream.max_in_flight` for calls without a key.
    Keyless,
}

/// All requests under way, over all configurations.
pub(super) struct Load {
    in_flight: AtomicUsize,
    accounts: RecentHolders,
    clients: RecentHolders,
    /// Counters of calls that use no account.
    pub(super) without_account: Arc<Holder>,
    /// Counters of calls without a key.
    pub(super) keyless: Arc<Holder>,
    started: Instant,
    /// Seconds since `started`, plus 1, so that 0 means never. The workers' housekeeping keeps it
    /// current.
    seconds: AtomicU32,
    pub(super) under_way: Gauge<i64, AtomicI64>,
}

/// Permit for a request in flight, given back when dropped.
pub(super) struct InFlightPermit {
    load: Arc<Load>,
    account: Arc<Holder>,
    client: Arc<Holder>,
}

/// The last two holders of one kind that sent a request, which is enough to tell each holder if
/// another one has. Each word has an id in its upper half, the second of the request in the lower.
#[derive(Debug, Default)]
struct RecentHolders([AtomicU64; 2]);

/// Open connections by peer address. Locked when a connection begins and ends only.
#[derive(Debug, Default)]
pub(super) struct PeerConnections {
    open: Mutex<HashMap<Peer, Arc<Holder>>>,
    ids: RandomState,
    warned: WarnLimit,
}

/// An open connection of a peer address, counted until it is dropped.
#[derive(Debug)]
pub(super) struct PeerCount {
    peers: Arc<PeerConnections>,
    peer: Peer,
    holder: Arc<Holder>,
}

/// The client that an open connection counts for: the client of its last request.
#[derive(Debug, Default)]
pub(super) struct ClientCount {
    holder: RefCell<Option<Arc<Holder>>>,
}

/// Lets one warning through per minute.
#[derive(Debug, Default)]
struct WarnLimit {
    /// Second of the last warning, plus 1.
    last: AtomicU32,
    left_out: AtomicU32,
}

impl Holder {
    /// Makes the counters of an account or a client.
    pub(crate) fn named(name: &str) -> Arc<Self> {
        Self::new(FxBuildHasher.hash_one(name))
    }

    #[allow(
        clippy::cast_possible_truncation,
        reason = "any 32 bits of the hash do"
    )]
    fn new(hash: u64) -> Arc<Self> {
        Arc::new(Self {
            id: ((hash >> 32) as u32).max(1),
            in_flight: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
        })
    }
}

impl Load {
    pub(super) fn new(under_way: Gauge<i64, AtomicI64>) -> Arc<Self> {
        Arc::new(Self {
            in_flight: AtomicUsize::new(0),
            accounts: RecentHolders::default(),
            clients: RecentHolders::default(),
            without_account: Holder::named("-"),
            keyless: Holder::named("-"),
            started: Instant::now(),
            seconds: AtomicU32::new(1),
            under_way,
        })
    }

    /// Advances the coarse clock.
    pub(super) fn tick(&self) {
        let seconds = self.started.elapsed().as_secs() + 1;
        self.seconds
            .store(u32::try_from(seconds).unwrap_or(u32::MAX), Relaxed);
    }

    /// Returns the seconds of the coarse clock, at most one housekeeping interval late.
    pub(super) fn seconds(&self) -> u32 {
        self.seconds.load(Relaxed)
    }

    /// Takes a permit.
    pub(super) fn enter(
        self: &Arc<Self>,
        limits: InFlightLimits,
        account: &Arc<Holder>,
        client: &Arc<Holder>,
    ) -> Result<InFlightPermit, LimitReached> {
        let now = self.seconds();
        // Calls without an account or a key have no share, and leave a sole holder the whole.
        let is_keyless = Arc::ptr_eq(client, &self.keyless);
        let others_accounts =
            !Arc::ptr_eq(account, &self.without_account) && self.accounts.note(account.id, now);
        let others_clients = !is_keyless && self.clients.note(client.id, now);
        let before = self.in_flight.fetch_add(1, Relaxed);
        let of_account = account.in_flight.fetch_add(1, Relaxed);
        let of_client = client.in_flight.fetch_add(1, Relaxed);
        // Made before the limits are checked: dropping it on a refusal gives the counts back.
        let permit = InFlightPermit {
            load: Arc::clone(self),
            account: Arc::clone(account),
            client: Arc::clone(client),
        };
        // The narrower limit first: its error names the account or client that fills it.
        if is_keyless && of_client >= (limits.in_flight / 8).max(1) {
            Err(LimitReached::Keyless)
        } else if others_accounts && of_account >= limits.share {
            Err(LimitReached::Account)
        } else if others_clients && of_client >= limits.share {
            Err(LimitReached::Client)
        } else if before >= limits.in_flight {
            Err(LimitReached::InFlight)
        } else {
            Ok(permit)
        }
    }
}

impl Drop for InFlightPermit {
    fn drop(&mut self) {
        self.load.in_flight.fetch_sub(1, Relaxed);
        self.account.in_flight.fetch_sub(1, Relaxed);
        self.client.in_flight.fetch_sub(1, Relaxed);
    }
}

impl RecentHolders {
    /// Notes a request of a holder, and returns true if another holder sent one within [`RECENT`].
    ///
    /// Writes at most a few times a second, however many requests come: once two holders are noted
    /// in this second, they are proof for all. A race between workers can lose a note; the next
    /// request makes up for it.
    fn note(&self, id: u32, now: u32) -> bool {
        let [first, second] = [0, 1].map(|slot: usize| unpack(self.0[slot].load(Relaxed)));
        let (own, other) = if first.0 == id {
            (Some((0, first.1)), second)
        } else if second.0 == id {
            (Some((1, second.1)), first)
        } else {
            (None, if first.1 >= second.1 { first } else { second })
        };
        let older = usize::from(second.1 < first.1);
        match own {
            Some((_, at)) if at == now => {}
            Some((slot, _)) => self.0[slot].store(pack(id, now), Relaxed),
            None if first.1 == now && second.1 == now && first.0 != second.0 => {}
            None => self.0[older].store(pack(id, now), Relaxed),
        }
        other.0 != 0 && other.0 != id && now.saturating_sub(other.1) <= RECENT
    }
}

fn pack(id: u32, at: u32) -> u64 {
    u64::from(id) << 32 | u64::from(at)
}

#[allow(clippy::cast_possible_truncation, reason = "two halves of a word")]
fn unpack(word: u64) -> (u32, u32) {
    ((word >> 32) as u32, word as u32)
}

impl PeerConnections {
    /// Counts a connection of this address; `None` if `limit` are open already.
    pub(super) fn enter(self: &Arc<Self>, peer: Peer, limit: usize) -> Option<PeerCount> {
        let peer = match peer {
            Peer::Ip(ip) => Peer::Ip(ip.to_canonical()),
            Peer::Unix => Peer::Unix,
        };
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let holder = open
            .entry(peer)
            .or_insert_with(|| Holder::new(self.ids.hash_one(peer)));
        if holder.connections.load(Relaxed) >= limit {
            return None;
        }
        holder.connections.fetch_add(1, Relaxed);
        Some(PeerCount {
            peers: Arc::clone(self),
            peer,
            holder: Arc::clone(holder),
        })
    }

    /// Logs that a connection was closed at once, at most once a minute.
    pub(super) fn warn(&self, peer: Peer, now: u32) {
        if let Some(left_out) = self.warned.due(now) {
            tracing::warn!(
                %peer,
                left_out,
                "a connection is closed at once: its address has server.max_connections_per_client open; \
                 behind a reverse proxy, raise it"
            );
        }
    }
}

impl PeerCount {
    pub(super) fn holder(&self) -> &Arc<Holder> {
        &self.holder
    }
}

impl Drop for PeerCount {
    fn drop(&mut self) {
        let mut open = self
            .peers
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // Counted under the lock, so that no connection is added in between.
        if self.holder.connections.fetch_sub(1, Relaxed) == 1 {
            open.remove(&self.peer);
        }
    }
}

impl ClientCount {
    /// Counts the connection for this client from now on; false if `limit` are open already.
    pub(super) fn belongs_to(&self, client: &Arc<Holder>, limit: usize) -> bool {
        let mut counted = self.holder.borrow_mut();
        if counted.as_ref().is_some_and(|known| known.id == client.id) {
            return true;
        }
        if client.connections.fetch_add(1, Relaxed) >= limit {
            client.connections.fetch_sub(1, Relaxed);
            return false;
        }
        if let Some(before) = counted.replace(Arc::clone(client)) {
            before.connections.fetch_sub(1, Relaxed);
        }
        true
    }
}

impl Drop for ClientCount {
    fn drop(&mut self) {
        if let Some(client) = self.holder.get_mut() {
            client.connections.fetch_sub(1, Relaxed);
        }
    }
}

impl WarnLimit {
    /// Returns the number of warnings left out since the last, if the next is due.
    fn due(&self, now: u32) -> Option<u32> {
        let last = self.last.load(Relaxed);
        let is_due = last == 0 || now.saturating_sub(last - 1) >= WARN_EVERY;
        if is_due
            && self
                .last
                .compare_exchange(last, now + 1, Relaxed, Relaxed)
                .is_ok()
        {
            return Some(self.left_out.swap(0, Relaxed));
        }
        self.left_out.fetch_add(1, Relaxed);
        None
    }
}

impl LimitReached {
    /// Makes the error for the caller, which names the account or the client.
    pub(super) fn error(self, account: &str, client: impl FnOnce() -> String) -> ProxyError {
        match self {
            Self::InFlight => ProxyError::Overloaded("upstream.max_in_flight"),
            Self::Account => ProxyError::ShareTaken(format!("account {account}")),
            Self::Client => ProxyError::ShareTaken(client()),
            Self::Keyless => ProxyError::KeylessTaken,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: InFlightLimits = InFlightLimits {
        in_flight: 4,
        share: 3,
    };

    fn load() -> Arc<Load> {
        Load::new(Gauge::default())
    }

    #[test]
    fn a_sole_holder_has_everything_and_two_leave_each_other_room() {
        let load = load();
        let [a, b, crm] = ["a", "b", "crm"].map(Holder::named);
        let enter = |account| load.enter(LIMITS, account, &crm);
        let all: Vec<_> = (0..4).map(|_| enter(&a).expect("alone")).collect();
        assert_eq!(enter(&a).err(), Some(LimitReached::InFlight));
        assert_eq!(enter(&b).err(), Some(LimitReached::InFlight));
        drop(all);
        let held: Vec<_> = (0..3).map(|_| enter(&a).expect("a share")).collect();
        assert_eq!(enter(&a).err(), Some(LimitReached::Account));
        let other = enter(&b).expect("what the share leaves");
        assert_eq!(enter(&b).err(), Some(LimitReached::InFlight));
        drop((held, other));
        assert_eq!(load.in_flight.load(Relaxed), 0);
        assert_eq!(a.in_flight.load(Relaxed) + b.in_flight.load(Relaxed), 0);
        // Only b's last question counts, and after a minute it does not.
        load.seconds.store(RECENT + 2, Relaxed);
        let all: Vec<_> = (0..4).map(|_| enter(&a).expect("alone")).collect();
        drop(all);
    }

    #[test]
    fn calls_without_an_account_or_a_key_leave_a_sole_holder_everything() {
        let load = load();
        let [a, crm] = ["a", "crm"].map(Holder::named);
        let carried = load.enter(LIMITS, &load.without_account, &load.keyless);
        drop(carried.expect("there is room"));
        let all: Vec<_> = (0..4)
            .map(|_| load.enter(LIMITS, &a, &crm).expect("alone"))
            .collect();
        drop(all);
        let held = load.enter(LIMITS, &load.without_account, &load.keyless);
        let second = load.enter(LIMITS, &load.without_account, &load.keyless);
        assert_eq!(second.err(), Some(LimitReached::Keyless));
        drop(held);
    }

    #[test]
    fn clients_are_kept_apart_like_accounts() {
        let load = load();
        let [shop, crm, erp] = ["shop", "crm", "erp"].map(Holder::named);
        let _other = load.enter(LIMITS, &shop, &erp).expect("the first");
        let _held: Vec<_> = (0..3)
            .map(|_| load.enter(LIMITS, &shop, &crm).expect("a share"))
            .collect();
        assert_eq!(
            load.enter(LIMITS, &shop, &crm).err(),
            Some(LimitReached::Client),
            "a sole account is not limited, its client is"
        );
    }

    #[test]
    fn whether_another_one_has_asked_is_known_however_many_ask() {
        let askers = RecentHolders::default();
        assert!(!askers.note(7, 1) && !askers.note(7, 30), "nobody else");
        assert!(askers.note(8, 31) && askers.note(7, 31));
        for (second, id) in (32..90).zip([9, 10, 11].into_iter().cycle()) {
            assert!(askers.note(id, second) && askers.note(id, second));
        }
        assert!(askers.note(11, 100), "9 has asked a few seconds ago");
        assert!(!askers.note(11, 89 + RECENT + 1), "no longer");
        assert!(askers.note(7, 89 + RECENT + 2), "11 has");
    }

    #[test]
    fn connections_are_counted_by_address_and_forgotten_with_the_last() {
        let peers = Arc::new(PeerConnections::default());
        let address = |text: &str| Peer::Ip(text.parse().expect("an address"));
        let (one, two) = (address("10.0.0.1"), address("10.0.0.2"));
        let first = peers.enter(one, 2).expect("the first");
        let mapped = peers.enter(address("::ffff:10.0.0.1"), 2);
        assert!(mapped.is_some() && peers.enter(one, 2).is_none());
        let other = peers.enter(two, 2).expect("another address");
        drop(mapped);
        assert!(peers.enter(one, 2).is_some());
        drop((first, other));
        assert!(peers.open.lock().expect("sound").is_empty());
    }

    #[test]
    fn a_connection_counts_for_the_client_of_its_last_request() {
        let [crm, erp] = ["crm", "erp"].map(Holder::named);
        let (first, second) = (ClientCount::default(), ClientCount::default());
        assert!(first.belongs_to(&crm, 1) && first.belongs_to(&crm, 1));
        assert!(!second.belongs_to(&crm, 1) && second.belongs_to(&erp, 1));
        assert!(first.belongs_to(&erp, 2) && second.belongs_to(&crm, 1));
        drop((first, second));
        assert_eq!(
            crm.connections.load(Relaxed) + erp.connections.load(Relaxed),
            0
        );
    }

    #[test]
    fn a_warning_a_minute_tells_how_many_were_left_out() {
        let limit = WarnLimit::default();
        assert_eq!([0, 1, 59].map(|now| limit.due(now)), [Some(0), None, None]);
        assert_eq!([60, 61].map(|now| limit.due(now)), [Some(2), None]);
    }
}
