//! A thread that serves connections, and the hand that deals them out.
//!
//! Each worker runs a runtime of its own with its own upstream connections, so that requests share
//! nothing but the published tokens. The first one also accepts, and fills the workers in order: at
//! low load everything stays on one thread and one warm pool, at high load they share evenly.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::{Instant, timeout},
};

use super::{
    Proxy,
    access::LastKey,
    bulkhead::{ClientConnection, PeerConnection},
    client_conn::ClientConn,
    pipeline,
    worker_state::Worker,
};
use crate::{
    net::{
        address::Peer,
        connection::{Connections, Cut},
        drain::{Drain, Phase},
        listen::{Accepted, Acceptor, Listener, Unwatched},
        tls,
    },
    telemetry::workers::StuckWorkers,
};

/// A worker gets this many connections before the next one gets its first.
const FILL: usize = 16;
/// How often a worker writes its log and looks at its idle connections.
const HOUSEKEEPING: Duration = Duration::from_millis(200);
/// A client that has not finished its TLS handshake by then is cut.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Time in which handshakes under way may reach the queue of a listener that is about to close. A
/// round trip between callers and wxgate takes a fraction of it.
const SETTLE: Duration = Duration::from_millis(100);
/// Pause before the queue is asked again when it could not be read.
const TRY_AGAIN: Duration = Duration::from_millis(100);

/// The other end of a worker.
#[derive(Debug)]
pub(super) struct Handle {
    orders: mpsc::UnboundedSender<Order>,
    open: Arc<OpenCount>,
}

/// Connections of a worker, from the moment they are dealt out.
#[derive(Debug, Default)]
struct OpenCount {
    count: AtomicUsize,
    emptied: Notify,
}

/// What a worker is told to do.
#[derive(Debug)]
enum Order {
    Serve(Unwatched, Slot),
    Accept(Listener, Arc<[Handle]>, Arc<Semaphore>),
    Probe(oneshot::Sender<()>),
}

/// Resolves when the thread has ended, however it did, with the number of requests that it cut.
pub(super) type Ended = oneshot::Receiver<usize>;

/// A place among the open connections of a worker, of the process and of an address.
#[derive(Debug)]
pub(super) struct Slot {
    of_peer: PeerConnection,
    of_worker: OfWorker,
}

#[derive(Debug)]
struct OfWorker {
    open: Arc<OpenCount>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for OfWorker {
    fn drop(&mut self) {
        if self.open.count.fetch_sub(1, Relaxed) == 1 {
            self.open.emptied.notify_waiters();
        }
    }
}

impl OpenCount {
    /// Returns when there is none.
    async fn empty(&self) {
        loop {
            let mut emptied = std::pin::pin!(self.emptied.notified());
            emptied.as_mut().enable();
            if self.count.load(Relaxed) == 0 {
                return;
            }
            emptied.await;
        }
    }
}

/// Starts the thread.
pub(super) fn spawn(index: usize, proxy: Arc<Proxy>, drain: Drain) -> io::Result<(Handle, Ended)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (orders, incoming) = mpsc::unbounded_channel();
    let open = Arc::new(OpenCount::default());
    let counted = Arc::clone(&open);
    let (alive, ended) = oneshot::channel();
    std::thread::Builder::new()
        .name(format!("wxgate-{index}"))
        .spawn(move || {
            let cut = runtime.block_on(serve(proxy, drain, incoming, &counted));
            // Dialling tasks and the like have nobody left to serve.
            runtime.shutdown_background();
            let _ = alive.send(cut);
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

/// A listener whose connections are taken. Dropped before a stop, it counts as stuck.
struct OpenListener {
    address: String,
    drain: Drain,
    stuck: StuckWorkers,
}

impl Drop for OpenListener {
    fn drop(&mut self) {
        if self.drain.phase() < Phase::Closing {
            self.stuck.insert(&self.address, Instant::now());
        }
    }
}

/// Deals connections out, on the first worker.
struct Dealer {
    workers: Arc<[Handle]>,
    limit: Arc<Semaphore>,
    service: Service,
}

/// Takes connections until the drain closes the listener, then those that the kernel holds.
async fn accept(
    listener: Listener,
    workers: Arc<[Handle]>,
    limit: Arc<Semaphore>,
    service: Service,
) {
    let _open = OpenListener {
        address: listener.address().to_string(),
        drain: service.worker.drain.clone(),
        stuck: service.worker.proxy.stuck.clone(),
    };
    let mut acceptor = match listener.start() {
        Ok(acceptor) => acceptor,
        Err(error) => return tracing::error!(%error, "a listener cannot be watched"),
    };
    let mut drain = service.worker.drain.clone();
    let dealer = Dealer {
        workers,
        limit,
        service,
    };
    tokio::select! {
        () = dealer.accept(&mut acceptor) => {}
        () = drain.reached(Phase::Closing) => {}
    }
    acceptor.close_entrance();
    let _ = timeout(SETTLE, dealer.accept(&mut acceptor)).await;
    let emptied = async {
        match acceptor.stop() {
            Ok(listener) => dealer.empty(&listener).await,
            Err(error) => tracing::error!(%error, "the queue of a listener cannot be emptied"),
        }
    };
    tokio::select! {
        () = emptied => {}
        () = drain.reached(Phase::Aborting) => {}
    }
}

impl Dealer {
    /// Takes connections for ever. Being dropped loses none.
    async fn accept(&self, acceptor: &mut Acceptor) {
        loop {
            // Beyond max_connections the kernel's backlog holds them until one ends.
            let Ok(permit) = Arc::clone(&self.limit).acquire_owned().await else {
                return;
            };
            let accepted = acceptor.accept().await;
            self.deal(accepted, permit);
        }
    }

    /// Takes what the kernel holds.
    async fn empty(&self, listener: &Listener) {
        loop {
            let Ok(permit) = Arc::clone(&self.limit).acquire_owned().await else {
                return;
            };
            match listener.take_waiting() {
                Ok(None) => return,
                Ok(Some(unwatched)) => match unwatched.watch() {
                    Ok(accepted) => self.deal(accepted, permit),
                    Err(error) => tracing::error!(%error, "a connection is dropped"),
                },
                Err(error) => {
                    tracing::debug!(%error, "the queue of a listener cannot be read");
                    tokio::time::sleep(TRY_AGAIN).await;
                }
            }
        }
    }

    fn deal(&self, accepted: Accepted, permit: OwnedSemaphorePermit) {
        let fullness = |(_, worker): &(usize, &Handle)| worker.open.count.load(Relaxed) / FILL;
        let Some((index, worker)) = self.workers.iter().enumerate().min_by_key(fullness) else {
            return;
        };
        let Some(of_peer) = self.service.worker.proxy.admit(accepted.peer) else {
            return;
        };
        worker.open.count.fetch_add(1, Relaxed);
        let of_worker = OfWorker {
            open: Arc::clone(&worker.open),
            _permit: permit,
        };
        let slot = Slot { of_peer, of_worker };
        if index == 0 {
            self.service.begin(accepted, slot);
        } else if let Err(error) = worker.take(accepted, slot) {
            tracing::error!(%error, "a connection is dropped");
        }
    }
}

impl Handle {
    fn take(&self, accepted: Accepted, slot: Slot) -> io::Result<()> {
        let unwatched = accepted.unwatch()?;
        self.orders
            .send(Order::Serve(unwatched, slot))
            .map_err(|_| io::Error::other("a worker thread has ended"))
    }

    /// Asks the worker for a sign of life. An error comes back where the thread has ended.
    pub(super) fn probe(&self) -> oneshot::Receiver<()> {
        let (answer, answered) = oneshot::channel();
        let _ = self.orders.send(Order::Probe(answer));
        answered
    }
}

/// Runs a worker to its end. Returns how many requests were cut.
async fn serve(
    proxy: Arc<Proxy>,
    mut drain: Drain,
    mut incoming: mpsc::UnboundedReceiver<Order>,
    open: &OpenCount,
) -> usize {
    let worker = Arc::new(Worker::new(proxy, drain.clone()));
    let connections = Connections::default();
    let service = Service {
        worker: Arc::clone(&worker),
        connections: connections.clone(),
    };
    let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
    let mut closing = drain.clone();
    let closing_idle = closing.reached(Phase::ClosingIdle);
    tokio::pin!(closing_idle);
    let mut told = false;
    // Whether whoever accepts has gone, so that nothing more will come.
    let mut is_last = false;
    let cut = loop {
        tokio::select! {
            next = incoming.recv(), if !is_last => match next {
                Some(Order::Serve(unwatched, slot)) => match unwatched.watch() {
                    Ok(accepted) => service.begin(accepted, slot),
                    Err(error) => tracing::warn!(%error, "an accepted connection could not be watched"),
                },
                Some(Order::Accept(listener, workers, limit)) => {
                    tokio::spawn(accept(listener, workers, limit, service.clone()));
                }
                // Answered by a task, as a request would be.
                Some(Order::Probe(answer)) => {
                    tokio::spawn(async move { answer.send(()) });
                }
                None => is_last = true,
            },
            _ = housekeeping.tick() => {
                worker.keep_house();
                connections.set_min_rate(worker.proxy.live.load().min_rate);
            }
            () = &mut closing_idle, if !told => {
                told = true;
                connections.close_idle();
            }
            () = open.empty(), if is_last => break 0,
            () = drain.reached(Phase::Aborting) => break connections.answering(),
        }
    };
    worker.keep_house();
    cut
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
    let conn = |cert_names| {
        Arc::new(ClientConn {
            peer,
            peer_text: peer.to_string(),
            cert_names,
            last_key: LastKey::default(),
            state: entered.state(),
            of_peer,
            of_client: ClientConnection::default(),
        })
    };
    let tls = worker.proxy.live.load().tls.clone();
    match tls.filter(|_| matches!(peer, Peer::Ip(_))) {
        None => {
            let conn = conn(Vec::new());
            let handler = |head, body| pipeline::handle(worker, &conn, head, body);
            if let Some(stream) = entered.serve(stream, leaving, handler).await {
                stream.reset_on_close();
            }
        }
        Some(acceptor) => {
            // A stop does not cut it short: behind it comes a request.
            match Box::pin(timeout(HANDSHAKE, acceptor.accept(stream))).await {
                Ok(Ok(stream)) => {
                    let conn = conn(tls::names_of(stream.get_ref().1));
                    let handler = |head, body| pipeline::handle(worker, &conn, head, body);
                    let serving = entered.serve(stream, leaving, handler);
                    if let Some(stream) = Box::pin(serving).await {
                        stream.get_ref().0.reset_on_close();
                    }
                }
                Ok(Err(error)) => {
                    tracing::debug!(%peer, %error, "TLS handshake with a client failed");
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::drain;

    #[test]
    fn a_listener_that_ends_before_a_stop_counts_as_stuck() {
        let (control, drain) = drain::drain();
        let stuck = StuckWorkers::default();
        let open = |address: &str| OpenListener {
            address: address.to_owned(),
            drain: drain.clone(),
            stuck: stuck.clone(),
        };
        drop(open("127.0.0.1:8080"));
        control.advance(Phase::Closing);
        drop(open("127.0.0.1:8081"));
        let names: Vec<_> = stuck.list().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["127.0.0.1:8080"]);
    }
}
