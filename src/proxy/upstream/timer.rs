//! A deadline for each exchange without a timer for each exchange.
//!
//! Setting a timer and taking it back costs more than looking at a clock, and nearly every answer
//! comes long before its deadline. So each connection keeps one timer, which is set anew only when
//! it has run out, or would run out too late. It knows nothing of what is waited for.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::time::{Instant, Sleep, sleep_until};

/// Timer of a connection, made at its first wait.
#[derive(Debug, Default)]
pub(super) struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    /// Output of the work, or `None` when the deadline comes first.
    pub(super) async fn within<W: Future + Unpin>(
        &mut self,
        deadline: Instant,
        mut work: W,
    ) -> Option<W::Output> {
        poll_fn(|cx| match Pin::new(&mut work).poll(cx) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending => self.poll_passed(cx, deadline).map(|()| None),
        })
        .await
    }

    /// Ready once the deadline has passed.
    pub(super) fn poll_passed(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let sleep = self
            .0
            .get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        }
        loop {
            ready!(sleep.as_mut().poll(cx));
            if sleep.deadline() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::{pending, ready},
        pin::pin,
        time::Duration,
    };

    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_deadline_is_kept_to_whatever_the_one_before_was() {
        let mut timer = Timer::default();
        for (seconds, pause) in [
            (30, 1),
            (30, 20),
            (30, 29),
            (5, 0),
            (60, 31),
            (1, 0),
            (10, 0),
        ] {
            sleep(Duration::from_secs(pause)).await;
            let began = Instant::now();
            assert_eq!(
                timer
                    .within(began + Duration::from_secs(seconds), ready(7))
                    .await,
                Some(7)
            );
            let slow = pin!(sleep(Duration::from_millis(seconds * 1000 - 100)));
            assert_eq!(
                timer
                    .within(began + Duration::from_secs(seconds), slow)
                    .await,
                Some(())
            );
            assert_eq!(
                timer
                    .within(began + Duration::from_secs(seconds), pending::<()>())
                    .await,
                None
            );
            let late = began.elapsed().saturating_sub(Duration::from_secs(seconds));
            assert!(
                late < Duration::from_millis(2),
                "{late:?} late for {seconds} s"
            );
        }
    }
}
