//! The watchdog: sends a probe through the queue and the runtime of each worker, every second.
//!
//! Runs on the background runtime, which keeps answering `/readyz` while a worker does not run. The
//! cause does not matter: a blocked system call, a lock, a loop without an end, a dead thread.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::worker::WorkerHandle;
use crate::telemetry::workers::StuckWorkers;

/// Pause between two probes of a worker.
const INTERVAL: Duration = Duration::from_secs(1);
/// A worker that has not answered by then is stuck. Nothing that a worker does takes a tenth of it.
const LIMIT: Duration = Duration::from_secs(3);

/// Probes all workers for as long as the future is polled.
pub(super) async fn watch(workers: Arc<[WorkerHandle]>, stuck: StuckWorkers) {
    let watched = workers.iter().enumerate();
    join_all(watched.map(|(index, worker)| watch_one(index, worker, &stuck))).await;
}

async fn watch_one(index: usize, worker: &WorkerHandle, stuck: &StuckWorkers) {
    let name = format!("wxgate-{index}");
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let asked = Instant::now();
        let mut answer = worker.probe();
        let answered = match timeout(LIMIT, &mut answer).await {
            Ok(answered) => answered,
            Err(_) => {
                stuck.insert(&name, asked);
                tracing::error!(
                    worker = name,
                    "a worker thread does not answer: /readyz is 503 until it does; its calls wait"
                );
                // The same probe stays in the queue: another one each second would only pile up.
                answer.await
            }
        };
        if answered.is_err() {
            stuck.insert(&name, asked);
            tracing::error!(
                worker = name,
                "a worker thread has ended: restart wxgate, and report this as a bug"
            );
            return;
        }
        if let Some(stuck_for) = stuck.remove(&name) {
            tracing::warn!(
                worker = name,
                stuck_ms = u64::try_from(stuck_for.as_millis()).unwrap_or(u64::MAX),
                "a worker thread answers again"
            );
        }
    }
}
