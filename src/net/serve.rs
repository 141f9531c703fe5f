//! A small HTTP server on the current runtime, which must be a local one: for the admin listener,
//! where nothing is hot.
//!
//! The data path has an accept loop of its own, which spreads connections over worker threads.

use std::{convert::Infallible, future::Future, rc::Rc, sync::Arc, time::Duration};

use hyper::{Request, Response, body::Incoming, http::request::Parts};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::{
    connection::{self, ConnectionLimits, Connections},
    drain::{Drain, Phase},
    listen::Listener,
};

/// Connections at a time. Operators, probes and scrapers need a few; each takes a descriptor that
/// the data listeners could use.
pub(crate) const MAX_CONNECTIONS: usize = 64;
/// Deadlines, shorter than those of callers: operators and probes send short requests at once.
const LIMITS: ConnectionLimits = ConnectionLimits {
    first_head: Duration::from_secs(5),
    head: Duration::from_secs(5),
    idle: Duration::from_secs(30),
};

/// Pause between closing a connection to make room and closing another one.
const SHED: Duration = Duration::from_millis(20);

/// Serves until the drain reaches [`Phase::Aborting`]: probes want an answer for as long as
/// requests are in flight. Requests have the [`Peer`](super::address::Peer) among their extensions.
pub(crate) async fn serve<S, F, B>(listener: Listener, drain: Drain, service: S)
where
    S: Fn(Request<Incoming>) -> F + 'static,
    F: Future<Output = Result<Response<B>, Infallible>>,
    B: hyper::body::Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let service = Rc::new(service);
    let connections = Connections::with_limits(LIMITS);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut aborting = drain.clone();
    let mut acceptor = match listener.start() {
        Ok(acceptor) => acceptor,
        Err(error) => return tracing::error!(%error, "a listener cannot be watched"),
    };
    let accepting = async {
        loop {
            let accepted = acceptor.accept().await;
            let place = place(&places, &connections).await;
            let (service, connections, drain) =
                (Rc::clone(&service), connections.clone(), drain.clone());
            let peer = accepted.peer;
            tokio::task::spawn_local(async move {
                let handler = |mut head: Box<Parts>, body| {
                    head.extensions.insert(peer);
                    let answer = service(Request::from_parts(*head, body));
                    async { answer.await.unwrap_or_else(|never| match never {}) }
                };
                connection::serve(
                    accepted.stream,
                    &connections,
                    || drain.is_leaving(),
                    handler,
                )
                .await;
                drop(place);
            });
        }
    };
    let mut leaving = drain.clone();
    let replaced = tokio::select! {
        () = accepting => false,
        () = leaving.replaced() => true,
        () = aborting.reached(Phase::Aborting) => drain.is_replaced(),
    };
    if replaced {
        // The process that goes on answers from here on; connections that were taken may end.
        acceptor.leave();
        aborting.reached(Phase::Aborting).await;
    }
    connections.close_unanswered();
    // Answers under way may end; the caller limits the wait for this function.
    connections.all_gone().await;
}

/// A place for one more connection. Silent ones make room at once: a probe must not wait until they
/// reach their deadline.
async fn place(places: &Arc<Semaphore>, connections: &Connections) -> Option<OwnedSemaphorePermit> {
    if let Ok(place) = Arc::clone(places).try_acquire_owned() {
        return Some(place);
    }
    loop {
        connections.shed();
        if let Ok(place) = timeout(SHED, Arc::clone(places).acquire_owned()).await {
            return place.ok();
        }
    }
}
