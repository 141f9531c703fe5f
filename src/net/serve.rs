//! A small HTTP server on the current runtime: for the admin listener, where nothing is hot.
//!
//! The data path has an accept loop of its own, which spreads connections over worker threads.

use std::{convert::Infallible, future::Future, sync::Arc};

use hyper::{Request, Response, body::Incoming, http::request::Parts};

use super::{
    connection::{self, Connections},
    drain::{Drain, Phase},
    listen::Listener,
};

/// Serves until the drain reaches [`Phase::Aborting`]: probes want an answer for as long as
/// requests are in flight.
pub async fn serve<S, F, B>(listener: Listener, drain: Drain, service: S)
where
    S: Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    F: Future<Output = Result<Response<B>, Infallible>> + Send,
    B: hyper::body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let service = Arc::new(service);
    let connections = Connections::default();
    let mut aborting = drain.clone();
    let acceptor = match listener.start() {
        Ok(acceptor) => acceptor,
        Err(error) => return tracing::error!(%error, "a listener cannot be watched"),
    };
    let accepting = async {
        loop {
            let accepted = acceptor.accept().await;
            let (service, connections, drain) =
                (Arc::clone(&service), connections.clone(), drain.clone());
            tokio::spawn(async move {
                let handler = |head: Box<Parts>, body| {
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
            });
        }
    };
    tokio::select! {
        () = accepting => {}
        () = aborting.reached(Phase::Aborting) => {}
    }
    connections.close_gracefully();
    // What is being answered now gets a moment; the caller decides how long it waits for us.
    connections.all_gone().await;
}
