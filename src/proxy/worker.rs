//! A thread that serves connections, and the hand that deals them out.
//!
//! Each worker runs a runtime of its own with its own upstream connections, so that requests share
//! nothing but the published tokens. The first one also accepts, and fills the workers in order: at
//! low load everything stays on one thread and one warm pool, at high load they share evenly.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::{Instant, timeout},
};

use super::{
    Proxy,
    access::LastKey,
    access_log::AccessLog,
    bulkhead::{ClientConnection, PeerConnection},
    pipeline::Origin,
    request_id::RequestId,
    upstream::Upstream,
};
use crate::net::{
    address::Peer,
    connection::{Connections, Cut},
    drain::{Drain, Phase},
    listen::{Accepted, Listener, Unwatched},
    tls,
};

/// A worker gets this many connections before the next one gets its first.
const FILL: usize = 16;
/// How often a worker writes its log and looks at its idle connections.
const HOUSEKEEPING: Duration = Duration::from_millis(200);
/// A client that has not finished its TLS handshake by then is cut.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// What one thread owns.
pub(super) struct Worker {
    pub(super) proxy: Arc<Proxy>,
    pub(super) upstream: Upstream,
    pub(super) access_log: Option<AccessLog>,
    pub(super) drain: Drain,
    started: Instant,
    id_prefix: u32,
    next_id: AtomicU32,
}

impl Worker {
    /// Seconds since the worker started.
    pub(super) fn seconds(&self) -> u64 {
        self.started.elapsed().as_secs()
    }

    /// An id that no other request of this process has, and hardly any of another.
    pub(super) fn request_id(&self) -> RequestId {
        let next = self.next_id.fetch_add(1, Relaxed);
        RequestId::numbered(u64::from(self.id_prefix) << 32 | u64::from(next))
    }
}

/// The other end of a worker.
#[derive(Debug)]
pub(super) struct Handle {
    orders: mpsc::UnboundedSender<Order>,
    open: Arc<AtomicUsize>,
}

/// What a worker is told to do.
#[derive(Debug)]
enum Order {
    Serve(Unwatched, Slot),
    Accept(Listener, Arc<[Handle]>, Arc<Semaphore>),
}

/// Resolves when the thread has ended, however it did.
pub(super) type Ended = oneshot::Receiver<()>;

/// A place among the open connections of a worker, of the process and of an address.
#[derive(Debug)]
pub(super) struct Slot {
    of_peer: PeerConnection,
    of_worker: OfWorker,
}

#[derive(Debug)]
struct OfWorker {
    open: Arc<AtomicUsize>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for OfWorker {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Relaxed);
    }
}

/// Starts the thread.
pub(super) fn spawn(index: usize, proxy: Arc<Proxy>, drain: Drain) -> io::Result<(Handle, Ended)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (orders, incoming) = mpsc::unbounded_channel();
    let open = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&open);
    let (alive, ended) = oneshot::channel::<()>();
    std::thread::Builder::new()
        .name(format!("wxgate-{index}"))
        .spawn(move || {
            runtime.block_on(serve(proxy, drain, incoming, &counted));
            // Dialling tasks and the like have nobody left to serve.
            runtime.shutdown_background();
            drop(alive);
        })?;
    Ok((Handle { orders, open }, ended))
}

/// Has the first of the workers take connections for all of them, until the drain reaches
/// [`Phase::Closing`].
pub(super) fn start(listeners: Vec<Listener>, workers: &Arc<[Handle]>, limit: &Arc<Semaphore>) {
    let Some(first) = workers.first() else { return };
    for listener in listeners {
        let _ = first.orders.send(Order::Accept(
            listener,
            Arc::clone(workers),
            Arc::clone(limit),
        ));
    }
}

/// What a worker needs to serve a connection.
#[derive(Clone)]
struct Service {
    worker: Arc<Worker>,
    connections: Connections,
}

impl Service {
    fn begin(&self, accepted: Accepted, slot: Slot) {
        tokio::spawn(connection(self.clone(), accepted, slot));
    }
}

/// Runs on the first worker.
async fn accept(
    listener: Listener,
    workers: Arc<[Handle]>,
    limit: Arc<Semaphore>,
    service: Service,
) {
    let acceptor = match listener.start() {
        Ok(acceptor) => acceptor,
        Err(error) => return tracing::error!(%error, "a listener cannot be watched"),
    };
    let mut drain = service.worker.drain.clone();
    let accepting = async {
        loop {
            // Beyond max_connections the kernel's backlog holds them until one ends.
            let Ok(permit) = Arc::clone(&limit).acquire_owned().await else {
                return;
            };
            let accepted = acceptor.accept().await;
            let Some(of_peer) = service.worker.proxy.admit(accepted.peer) else {
                continue;
            };
            let fullness = |(_, worker): &(usize, &Handle)| worker.open.load(Relaxed) / FILL;
            let Some((index, worker)) = workers.iter().enumerate().min_by_key(fullness) else {
                return;
            };
            worker.open.fetch_add(1, Relaxed);
            let of_worker = OfWorker {
                open: Arc::clone(&worker.open),
                _permit: permit,
            };
            let slot = Slot { of_peer, of_worker };
            if index == 0 {
                service.begin(accepted, slot);
            } else if let Err(error) = worker.take(accepted, slot) {
                tracing::error!(%error, "a connection is dropped");
            }
        }
    };
    tokio::select! {
        () = accepting => {}
        () = drain.reached(Phase::Closing) => {}
    }
}

impl Handle {
    fn take(&self, accepted: Accepted, slot: Slot) -> io::Result<()> {
        let unwatched = accepted.unwatch()?;
        self.orders
            .send(Order::Serve(unwatched, slot))
            .map_err(|_| io::Error::other("a worker thread has ended"))
    }
}

async fn serve(
    proxy: Arc<Proxy>,
    mut drain: Drain,
    mut incoming: mpsc::UnboundedReceiver<Order>,
    open: &AtomicUsize,
) {
    let mut random = [0; 4];
    let _ = getrandom::fill(&mut random);
    let worker = Arc::new(Worker {
        upstream: Upstream::new(proxy.dialer.clone(), proxy.pool_idle),
        access_log: proxy.access_log(),
        proxy,
        drain: drain.clone(),
        started: Instant::now(),
        id_prefix: u32::from_ne_bytes(random),
        next_id: AtomicU32::new(0),
    });
    let connections = Connections::default();
    let service = Service {
        worker: Arc::clone(&worker),
        connections: connections.clone(),
    };
    let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
    let mut closing = drain.clone();
    let mut told = false;
    let stopping = async {
        closing.reached(Phase::Closing).await;
    };
    tokio::pin!(stopping);
    loop {
        tokio::select! {
            next = incoming.recv(), if !incoming.is_closed() || !incoming.is_empty() => {
                match next {
                    Some(Order::Serve(unwatched, slot)) => match unwatched.watch() {
                        Ok(accepted) => service.begin(accepted, slot),
                        Err(error) => tracing::warn!(%error, "an accepted connection could not be watched"),
                    },
                    Some(Order::Accept(listener, workers, limit)) => {
                        tokio::spawn(accept(listener, workers, limit, service.clone()));
                    }
                    None => {}
                }
            }
            _ = housekeeping.tick() => {
                worker.keep_house();
                connections.set_min_rate(worker.proxy.live.load().min_rate);
            }
            () = &mut stopping, if !told => {
                told = true;
                connections.close_gracefully();
            }
            () = connections.all_gone(), if told => {
                // One that was accepted last may still be on its way to its task.
                if open.load(Relaxed) == 0 {
                    break;
                }
                tokio::task::yield_now().await;
            }
            () = drain.reached(Phase::Aborting) => break,
        }
    }
    worker.keep_house();
}

impl Worker {
    fn keep_house(&self) {
        if let Some(log) = &self.access_log {
            log.flush();
        }
        self.upstream.reap();
        self.proxy.spool.reap();
        self.proxy.live.load().load.tick();
    }
}

impl Proxy {
    /// Counts a connection of this address, unless it has too many.
    fn admit(&self, peer: Peer) -> Option<PeerConnection> {
        let live = self.live.load();
        let admitted = self.peers.enter(peer, live.max_connections_per_client);
        if admitted.is_none() {
            self.metrics.connection_ended("max_connections_per_client");
            self.peers.warn(peer, live.load.seconds());
        }
        admitted
    }
}

async fn connection(service: Service, accepted: Accepted, slot: Slot) {
    let Service {
        worker,
        connections,
    } = &service;
    let Accepted { stream, peer } = accepted;
    let Slot {
        of_peer,
        of_worker: _of_worker,
    } = slot;
    let entered = connections.enter();
    let leaving = || worker.drain.is_leaving();
    let origin = |names| Origin {
        peer,
        shown: peer.to_string(),
        names,
        last_key: LastKey::default(),
        connection: entered.state(),
        of_peer,
        of_client: ClientConnection::default(),
    };
    let tls = worker.proxy.live.load().tls.clone();
    match tls.filter(|_| matches!(peer, Peer::Ip(_))) {
        None => {
            let origin = origin(Vec::new());
            let handler = |head, body| super::handle(worker, &origin, head, body);
            entered.serve(stream, leaving, handler).await;
        }
        Some(acceptor) => {
            let mut closing = worker.drain.clone();
            let shaken = tokio::select! {
                shaken = Box::pin(timeout(HANDSHAKE, acceptor.accept(stream))) => shaken,
                // Nothing was asked yet, so nothing is lost.
                () = closing.reached(Phase::Closing) => return,
            };
            match shaken {
                Ok(Ok(stream)) => {
                    let origin = origin(tls::names_of(stream.get_ref().1));
                    let handler = |head, body| super::handle(worker, &origin, head, body);
                    Box::pin(entered.serve(stream, leaving, handler)).await;
                }
                Ok(Err(error)) => {
                    tracing::debug!(%peer, %error, "TLS handshake with a client failed")
                }
                Err(_) => tracing::debug!(%peer, "TLS handshake with a client took too long"),
            }
        }
    }
    if let Some(cut) = entered.state().cut().filter(|cut| *cut != Cut::Silent) {
        worker.proxy.metrics.connection_ended(cut.slug());
        tracing::info!(%peer, outcome = cut.slug(), "a connection is cut: slower than server.min_rate");
    }
}
