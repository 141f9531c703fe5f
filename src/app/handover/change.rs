//! Progress of a replacement, which a stop of the process takes part in.

use tokio::sync::watch;

/// Progress of a replacement, shared with the stop of the process. Cheap to clone.
#[derive(Clone)]
pub(in crate::app) struct ChangeState(watch::Sender<Change>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::app) enum Change {
    /// The process does not serve yet; in its place the one does that it replaces, if any.
    Starting,
    /// The process serves, and nothing changes.
    None,
    /// A new process was started, or is about to be.
    UnderWay,
    /// The new process serves.
    Done,
    /// The process stops.
    Stopping,
}

impl Default for ChangeState {
    fn default() -> Self {
        Self(watch::Sender::new(Change::Starting))
    }
}

impl ChangeState {
    /// Moves on, if the state is `from`.
    pub(super) fn step(&self, from: Change, to: Change) -> Result<(), Change> {
        let mut found = from;
        let stepped = self.0.send_if_modified(|state| {
            found = *state;
            let fits = found == from;
            if fits {
                *state = to;
            }
            fits
        });
        if stepped { Ok(()) } else { Err(found) }
    }

    pub(super) fn is(&self, state: Change) -> bool {
        *self.0.borrow() == state
    }

    /// Lets replacements begin.
    pub(in crate::app) fn serving(&self) {
        let _ = self.step(Change::Starting, Change::None);
    }

    /// Begins a stop, unless another process serves already. Returns false then.
    pub(in crate::app) fn stop(&self) -> bool {
        self.0.send_if_modified(|state| {
            let stops = *state != Change::Done;
            if stops {
                *state = Change::Stopping;
            }
            stops
        })
    }

    /// Returns once the state is reached.
    pub(in crate::app) async fn reached(&self, state: Change) {
        let reached = self
            .0
            .subscribe()
            .wait_for(|now| *now == state)
            .await
            .is_ok();
        if !reached {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_replaced_before_it_serves_nor_twice_nor_during_a_stop() {
        let state = ChangeState::default();
        let begin = || state.step(Change::None, Change::UnderWay);
        assert_eq!(begin(), Err(Change::Starting));
        state.serving();
        assert_eq!(begin(), Ok(()));
        assert_eq!(begin(), Err(Change::UnderWay));
        let late = state.clone();
        assert!(state.stop());
        assert_eq!(
            late.step(Change::UnderWay, Change::Done),
            Err(Change::Stopping)
        );
        assert_eq!(begin(), Err(Change::Stopping));
        state.serving();
        assert!(state.is(Change::Stopping));
    }

    #[test]
    fn a_process_that_was_replaced_does_not_stop_the_service() {
        let state = ChangeState::default();
        state.serving();
        state.step(Change::None, Change::UnderWay).unwrap();
        state.step(Change::UnderWay, Change::Done).unwrap();
        assert!(!state.stop());
        assert!(state.is(Change::Done));
    }
}
