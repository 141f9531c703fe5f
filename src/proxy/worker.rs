//! Worker threads, which serve connections, and the assignment of connections to them.
//!
//! Each worker has a local runtime and upstream connections of its own. The first worker also
//! accepts, and fills the workers in order: at low load everything stays on one thread and one warm
//! pool, at high load the workers share evenly.

use std::{
    io,
    rc::Rc,
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
    bulkhead::{ClientCount, PeerCount},
    client_conn::ClientConn,
    pipeline,
    worker_state::Worker,
};
use crate::{
    net::{
        address::Peer,
        connection::{Connections, CutReason},
        drain::{Drain, Phase},
        handshake,
        listen::{Accepted, Acceptor, DetachedConnection, Listener},
        local, tls,
    },
    telemetry::workers::StuckWorkers,
};

/// Connections that a worker gets before the next worker gets its first.
const FILL_STEP: usize = 16;
/// Interval at which a worker writes its log and looks at its idle connections.
const HOUSEKEEPING: Duration = Duration::from_millis(200);
/// Time in which handshakes under way may reach the queue of a listener that is about to close. A
/// round trip between callers and wxgate takes a fraction of it.
const HANDSHAKES_SETTLE: Duration = Duration::from_millis(100);
/// Pause before the queue is asked again when it could not be read.
const QUEUE_RETRY: Duration = Duration::from_millis(100);

/// Handle to a worker, for other threads.
#[derive(Debug)]
pub(super) struct WorkerHandle {
    messages: mpsc::UnboundedSender<WorkerMessage>,
    open: Arc<OpenConnections>,
}

/// Count of a worker's connections, from the moment they are assigned. Raised by the first worker,
/// lowered by their own.
#[derive(Debug, Default)]
struct OpenConnections {
    count: AtomicUsize,
    emptied: Notify,
}

/// Message to a worker.
#[derive(Debug)]
enum WorkerMessage {
    Serve(DetachedConnection, ConnectionSlot),
    Accept(Listener, Arc<[WorkerHandle]>, Arc<Semaphore>),
    Probe(oneshot::Sender<()>),
}

/// Receiver of the number of requests that a worker cut; fails if its thread panicked.
pub(super) type WorkerEnd = oneshot::Receiver<usize>;

/// A place among the open connections of a worker, of the process and of an address.
#[derive(Debug)]
pub(super) struct ConnectionSlot {
    of_peer: PeerCount,
    of_worker: WorkerConnection,
}

#[derive(Debug)]
struct WorkerConnection {
    open: Arc<OpenConnections>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for WorkerConnection {
    fn drop(&mut self) {
        if self.open.count.fetch_sub(1, Relaxed) == 1 {
            self.open.emptied.notify_waiters();
        }
    }
}

impl OpenConnections {
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
///
/// # Errors
/// When the thread or its runtime cannot be started.
pub(super) async fn spawn(
    index: usize,
    proxy: Arc<Proxy>,
    drain: Drain,
) -> io::Result<(WorkerHandle, WorkerEnd)> {
    let (messages, incoming) = mpsc::unbounded_channel();
    let open = Arc::new(OpenConnections::default());
    let counted = Arc::clone(&open);
    let ended = local::spawn(format!("wxgate-{index}"), move || {
        serve(proxy, drain, incoming, counted)
    })
    .await?;
    Ok((WorkerHandle { messages, open }, ended))
}

/// Has the first of the workers take connections for all of them, until the drain reaches
/// [`Phase::Closing`].
pub(super) fn start(
    listeners: Vec<Listener>,
    workers: &Arc<[WorkerHandle]>,
    limit: &Arc<Semaphore>,
) {
    let Some(first) = workers.first() else { return };
    for listener in listeners {
        let _ = first.messages.send(WorkerMessage::Accept(
            listener,
            Arc::clone(workers),
            Arc::clone(limit),
        ));
    }
}

/// Context of the connections of a worker.
#[derive(Clone)]
struct ConnectionService {
    worker: Rc<Worker>,
    connections: Connections,
}

impl ConnectionService {
    fn begin(&self, accepted: Accepted, slot: ConnectionSlot) {
        tokio::task::spawn_local(connection(self.clone(), accepted, slot));
    }
}

/// A listener whose connections are taken. Dropped before a stop, it counts as stuck.
struct ListenerGuard {
    address: String,
    drain: Drain,
    stuck: StuckWorkers,
}

impl Drop for ListenerGuard {
    fn drop(&mut self) {
        if self.drain.phase() < Phase::Closing {
            self.stuck.insert(&self.address, Instant::now());
        }
    }
}

/// Assigns connections to workers, on the first worker.
struct Distributor {
    workers: Arc<[WorkerHandle]>,
    limit: Arc<Semaphore>,
    service: ConnectionService,
}

/// Takes connections until the drain closes the listener, then those that the kernel holds.
async fn accept(
    listener: Listener,
    workers: Arc<[WorkerHandle]>,
    limit: Arc<Semaphore>,
    service: ConnectionService,
) {
    let _open = ListenerGuard {
        address: listener.address().to_string(),
        drain: service.worker.drain.clone(),
        stuck: service.worker.proxy.health.workers.clone(),
    };
    let mut acceptor = match listener.start() {
        Ok(acceptor) => acceptor,
        Err(error) => return tracing::error!(%error, "a listener cannot be watched"),
    };
    let mut drain = service.worker.drain.clone();
    let distributor = Distributor {
        workers,
        limit,
        service,
    };
    tokio::select! {
        () = distributor.accept(&mut acceptor) => {}
        () = drain.reached(Phase::Closing) => {}
    }
    if acceptor.is_the_managers() || drain.is_replaced() {
        // Another process takes what is in the queue, now or once it is started.
        return acceptor.leave();
    }
    acceptor.close_entrance();
    let _ = timeout(HANDSHAKES_SETTLE, distributor.accept(&mut acceptor)).await;
    let emptied = async {
        match acceptor.stop() {
            Ok(listener) => distributor.empty(&listener).await,
            Err(error) => tracing::error!(%error, "the queue of a listener cannot be emptied"),
        }
    };
    tokio::select! {
        () = emptied => {}
        () = drain.reached(Phase::Aborting) => {}
    }
}

impl Distributor {
    /// Takes connections for ever. Being dropped loses none.
    async fn accept(&self, acceptor: &mut Acceptor) {
        loop {
            // Beyond max_connections the kernel's backlog holds them until one ends.
            let Ok(permit) = Arc::clone(&self.limit).acquire_owned().await else {
                return;
            };
            let accepted = acceptor.accept().await;
            self.assign(accepted, permit);
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
                Ok(Some(detached)) => match detached.watch() {
                    Ok(accepted) => self.assign(accepted, permit),
                    Err(error) => tracing::error!(%error, "a connection is dropped"),
                },
                Err(error) => {
                    tracing::debug!(%error, "the queue of a listener cannot be read");
                    tokio::time::sleep(QUEUE_RETRY).await;
                }
            }
        }
    }

    fn assign(&self, accepted: Accepted, permit: OwnedSemaphorePermit) {
        let fullness =
            |(_, worker): &(usize, &WorkerHandle)| worker.open.count.load(Relaxed) / FILL_STEP;
        let Some((index, worker)) = self.workers.iter().enumerate().min_by_key(fullness) else {
            return;
        };
        let Some(of_peer) = self.service.worker.proxy.admit(accepted.peer) else {
            return;
        };
        worker.open.count.fetch_add(1, Relaxed);
        let of_worker = WorkerConnection {
            open: Arc::clone(&worker.open),
            _permit: permit,
        };
        let slot = ConnectionSlot { of_peer, of_worker };
        if index == 0 {
            self.service.begin(accepted, slot);
        } else if let Err(error) = worker.take(accepted, slot) {
            tracing::error!(%error, "a connection is dropped");
        }
    }
}

impl WorkerHandle {
    fn take(&self, accepted: Accepted, slot: ConnectionSlot) -> io::Result<()> {
        let detached = accepted.detach()?;
        self.messages
            .send(WorkerMessage::Serve(detached, slot))
            .map_err(|_| io::Error::other("a worker thread has ended"))
    }

    /// Asks the worker for a sign of life. An error comes back where the thread has ended.
    pub(super) fn probe(&self) -> oneshot::Receiver<()> {
        let (answer, answered) = oneshot::channel();
        let _ = self.messages.send(WorkerMessage::Probe(answer));
        answered
    }
}

/// Runs a worker to its end. Returns how many requests were cut.
async fn serve(
    proxy: Arc<Proxy>,
    mut drain: Drain,
    mut incoming: mpsc::UnboundedReceiver<WorkerMessage>,
    open: Arc<OpenConnections>,
) -> usize {
    let worker = Rc::new(Worker::new(proxy, drain.clone()));
    let connections = Connections::default();
    let service = ConnectionService {
        worker: Rc::clone(&worker),
        connections: connections.clone(),
    };
    let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
    let mut closing = drain.clone();
    let closing_idle = closing.reached(Phase::ClosingIdle);
    tokio::pin!(closing_idle);
    let mut told = false;
    // All handles are gone, so that no message will come.
    let mut is_last = false;
    let cut = loop {
        tokio::select! {
            next = incoming.recv(), if !is_last => match next {
                Some(WorkerMessage::Serve(detached, slot)) => match detached.watch() {
                    Ok(accepted) => service.begin(accepted, slot),
                    Err(error) => tracing::warn!(%error, "an accepted connection could not be watched"),
                },
                Some(WorkerMessage::Accept(listener, workers, limit)) => {
                    tokio::task::spawn_local(accept(listener, workers, limit, service.clone()));
                }
                // Answered by a task, as a request would be.
                Some(WorkerMessage::Probe(answer)) => {
                    tokio::task::spawn_local(async move { answer.send(()) });
                }
                None => is_last = true,
            },
            _ = housekeeping.tick() => {
                worker.run_housekeeping();
                connections.set_min_rate(worker.proxy.config.load().min_rate);
            }
            () = &mut closing_idle, if !told => {
                told = true;
                connections.close_idle();
            }
            () = open.empty(), if is_last => break 0,
            () = drain.reached(Phase::Aborting) => break connections.answering(),
        }
    };
    worker.run_housekeeping();
    cut
}

impl Proxy {
    /// Counts a connection of this address, unless it has too many.
    fn admit(&self, peer: Peer) -> Option<PeerCount> {
        let config = self.config.load();
        let admitted = self.peers.enter(peer, config.max_connections_per_client);
        if admitted.is_none() {
            self.metrics.connection_ended("max_connections_per_client");
            self.peers.warn(peer, config.load.seconds());
        }
        admitted
    }
}

async fn connection(service: ConnectionService, accepted: Accepted, slot: ConnectionSlot) {
    let ConnectionService {
        worker,
        connections,
    } = &service;
    let Accepted { stream, peer } = accepted;
    let ConnectionSlot {
        of_peer,
        of_worker: _of_worker,
    } = slot;
    let entered = connections.enter();
    let leaving = || worker.drain.is_leaving();
    let conn = |cert_names| {
        Rc::new(ClientConn {
            peer,
            peer_text: peer.to_string(),
            cert_names,
            last_key: LastKey::default(),
            state: entered.state(),
            of_peer,
            of_client: ClientCount::default(),
        })
    };
    let tls = worker.proxy.config.load().tls.clone();
    match tls.filter(|_| matches!(peer, Peer::Ip(_))) {
        None => {
            let conn = conn(Vec::new());
            let handler = |head, body| pipeline::handle(worker, &conn, head, body);
            if let Some(stream) = entered.serve(stream, leaving, handler).await {
                stream.reset_on_close();
            }
        }
        Some(acceptor) => {
            // A stop does not cut a handshake short: a request follows.
            match Box::pin(handshake::accept(&acceptor, stream)).await {
                Ok(stream) => {
                    let conn = conn(tls::names_of(stream.get_ref().1));
                    let handler = |head, body| pipeline::handle(worker, &conn, head, body);
                    let serving = entered.serve(stream, leaving, handler);
                    if let Some(stream) = Box::pin(serving).await {
                        stream.get_ref().0.reset_on_close();
                    }
                }
                Err(Some(failure)) => worker.proxy.refusals.handshake(peer, failure),
                Err(None) => {}
            }
        }
    }
    if let Some(malformed) = entered.state().malformed() {
        worker.proxy.refusals.request(peer, malformed);
    }
    if let Some(cut) = entered
        .state()
        .cut()
        .filter(|cut| *cut != CutReason::Silent)
    {
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
        let open = |address: &str| ListenerGuard {
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
