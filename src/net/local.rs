//! A thread with a runtime of its own, for work whose tasks share state without locks and atomics.
//!
//! Knows nothing of the work.

use std::{future::Future, io, thread};

use tokio::{
    runtime::{Builder, LocalOptions},
    sync::oneshot,
};

/// Starts a thread that runs one future to its end; the future may call `spawn_local`. Resolves
/// once its runtime stands, to a receiver of the output; that fails if the thread panics.
///
/// # Errors
/// When the thread or its runtime cannot be started.
pub(crate) async fn spawn<W, F>(name: String, work: W) -> io::Result<oneshot::Receiver<F::Output>>
where
    W: FnOnce() -> F + Send + 'static,
    F: Future,
    F::Output: Send + 'static,
{
    let (start, started) = oneshot::channel();
    let (end, ended) = oneshot::channel();
    thread::Builder::new().name(name).spawn(move || {
        // Built here, since a local runtime cannot change its thread.
        let built = Builder::new_current_thread()
            .enable_all()
            .build_local(LocalOptions::default());
        let runtime = match built {
            Ok(runtime) => runtime,
            Err(error) => {
                let _ = start.send(Err(error));
                return;
            }
        };
        let _ = start.send(Ok(()));
        let output = runtime.block_on(async { work().await });
        // Does not wait for blocking calls, such as a look-up in DNS: their result serves nothing.
        runtime.shutdown_background();
        let _ = end.send(output);
    })?;
    started
        .await
        .unwrap_or_else(|_| Err(io::Error::other("a thread panicked at its start")))?;
    Ok(ended)
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use tokio::task::{spawn_local, yield_now};

    use super::*;

    #[tokio::test]
    async fn a_thread_has_its_name_shares_without_locks_and_gives_its_output() {
        let ended = spawn("wxgate-test".to_owned(), || async {
            let shared = Rc::new("of one thread");
            let task = spawn_local({
                let shared = Rc::clone(&shared);
                async move { *shared }
            });
            yield_now().await;
            (
                task.await.unwrap(),
                thread::current().name() == Some("wxgate-test"),
            )
        });
        assert_eq!(ended.await.unwrap().await, Ok(("of one thread", true)));
    }

    #[tokio::test]
    #[allow(clippy::panic)]
    async fn a_panic_is_noticed() {
        let ended = spawn("wxgate-test".to_owned(), || async {
            panic!("as the test wants it")
        });
        assert!(ended.await.unwrap().await.map(|(): ()| ()).is_err());
    }
}
