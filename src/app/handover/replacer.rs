//! The old process: starts the program on disk, hands everything over, and goes on itself if the
//! new process does not come to serve.

use std::{
    env, io,
    os::{fd::OwnedFd, unix::net::UnixStream as StdUnixStream},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use rustix::process::{Pid, Signal, getppid, kill_process};
use tokio::{
    net::UnixStream,
    sync::Mutex,
    time::{Instant, error::Elapsed, sleep, timeout},
};

use super::{
    change::{Change, ChangeState},
    channel::{self, NewMessage, Offer, OldMessage, VARIABLE, VERSION},
    failure::{ReplaceError, Stage},
    program::Program,
    sockets::{Descriptors, PassedSockets},
};
use crate::app::{reload::RunningParts, service_manager::ServiceManager};

/// Handle that replaces the program. Cheap to clone.
#[derive(Clone)]
pub struct Replacer(Arc<ReplacerParts>);

pub(in crate::app) struct ReplacerParts {
    program: Option<Program>,
    running: Arc<Mutex<RunningParts>>,
    sockets: PassedSockets,
    change: ChangeState,
    manager: ServiceManager,
    limit: Duration,
}

/// The new process.
struct Successor {
    process: Child,
    stream: UnixStream,
    stage: Stage,
}

/// Time in which the new process has to serve.
const LIMIT: Duration = Duration::from_secs(30);
/// Variable that shortens the limit, in milliseconds. For tests.
const LIMIT_VARIABLE: &str = "WXGATE_HANDOVER_LIMIT_MS";
/// Time in which refreshes under way may end before the new process fetches.
const PAUSE: Duration = Duration::from_secs(10);
/// Time in which a process that has closed the channel may end by itself.
const END: Duration = Duration::from_secs(2);
/// Interval of looks at a process that is to end.
const LOOK: Duration = Duration::from_millis(20);

impl Replacer {
    pub(in crate::app) fn new(
        program: Option<Program>,
        running: Arc<Mutex<RunningParts>>,
        sockets: PassedSockets,
        change: ChangeState,
        manager: ServiceManager,
    ) -> Self {
        let shortened = env::var(LIMIT_VARIABLE)
            .ok()
            .and_then(|text| text.parse().ok())
            .map(Duration::from_millis);
        Self(Arc::new(ReplacerParts {
            program,
            running,
            sockets,
            change,
            manager,
            limit: shortened.map_or(LIMIT, |limit| limit.min(LIMIT)),
        }))
    }

    /// Replaces the program, and logs the outcome. After a success this process stops. Reloads wait
    /// meanwhile.
    ///
    /// # Errors
    /// See [`ReplaceError`]; this process goes on then.
    pub async fn replace(&self) -> Result<(), ReplaceError> {
        let replaced = self.0.replace().await;
        match &replaced {
            Ok(()) => tracing::info!(
                "replaced: the new process serves, this one ends its requests in flight"
            ),
            Err(error) => {
                tracing::error!("the program is not replaced, this process goes on: {error}");
            }
        }
        replaced
    }
}

impl ReplacerParts {
    async fn replace(&self) -> Result<(), ReplaceError> {
        if std::process::id() == 1 {
            return Err(ReplaceError::FirstProcess);
        }
        let is_unit = env::var_os("INVOCATION_ID").is_some() && getppid() == Some(Pid::INIT);
        if is_unit && !self.manager.is_there() {
            return Err(ReplaceError::NotNotified);
        }
        self.change
            .step(Change::None, Change::UnderWay)
            .map_err(|found| match found {
                Change::Starting => ReplaceError::Starting,
                Change::UnderWay => ReplaceError::UnderWay,
                _ => ReplaceError::Stopping,
            })?;
        // A reload that goes on ends first; the next one waits.
        let mut running = self.running.lock().await;
        let changed = self.change(&mut running).await;
        if changed.is_ok() {
            running.is_replaced = true;
        } else {
            let _ = self.change.step(Change::UnderWay, Change::None);
        }
        changed
    }

    /// Starts the new process and hands everything over. After a failure that process is gone, and
    /// this one fetches again.
    async fn change(&self, running: &mut RunningParts) -> Result<(), ReplaceError> {
        let program = self.program.as_ref().ok_or(ReplaceError::NoProgram)?;
        let (mut successor, offer) = self.start(program, running).await?;
        let outcome = tokio::select! {
            outcome = timeout(self.limit, self.hand_over(&mut successor, running, offer)) => Some(outcome),
            () = self.change.reached(Change::Stopping) => None,
        };
        let failure = match outcome {
            Some(Ok(Ok(()))) => return Ok(()),
            // Also where the stop shows first as an error of the dialogue.
            Some(outcome) if !self.change.is(Change::Stopping) => {
                self.failure(&mut successor, &program.path, outcome).await
            }
            _ => {
                successor.stop().await;
                ReplaceError::Stopping
            }
        };
        running.refreshers.resume().await;
        // The new process may have written its own number by then.
        running.store.sign();
        Err(failure)
    }

    async fn start(
        &self,
        program: &Program,
        running: &RunningParts,
    ) -> Result<(Successor, Offer), ReplaceError> {
        let not_started = |error| ReplaceError::NotStarted {
            path: program.path.clone(),
            error,
        };
        let descriptors = self
            .sockets
            .descriptors(running.store.lock())
            .map_err(not_started)?
            .ok_or(ReplaceError::Stopping)?;
        tracing::info!(program = %program.path.display(), "replacing this process by the program on disk");
        let offer = Offer {
            listeners: descriptors.listeners.clone(),
            has_lock: descriptors.has_lock(),
            is_usable: running.refreshers.is_any_usable(),
            was_usable: running.was_usable.load(Relaxed),
            records: running.store.export(),
        };
        let command = program.clone();
        // Starting a program blocks.
        let started = tokio::task::spawn_blocking(move || start(&command, &descriptors)).await;
        let (process, stream) = started
            .unwrap_or_else(|_| Err(io::Error::other("starting it broke off")))
            .map_err(not_started)?;
        let successor = Successor {
            process,
            stream: UnixStream::from_std(stream).map_err(not_started)?,
            stage: Stage::Preparing,
        };
        Ok((successor, offer))
    }

    /// Ends the new process, and finds the words for its failure.
    async fn failure(
        &self,
        successor: &mut Successor,
        path: &Path,
        outcome: Result<io::Result<()>, Elapsed>,
    ) -> ReplaceError {
        let path = path.to_owned();
        match outcome {
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                match successor.end(true).await {
                    Ok(status) => ReplaceError::Ended { path, status },
                    Err(error) => ReplaceError::Dialogue { path, error },
                }
            }
            Ok(outcome) => {
                let _ = successor.end(false).await;
                let error = outcome
                    .err()
                    .unwrap_or_else(|| io::Error::other("no error"));
                ReplaceError::Dialogue { path, error }
            }
            Err(_) => {
                let _ = successor.end(false).await;
                ReplaceError::Late {
                    path,
                    limit: self.limit,
                    stage: successor.stage,
                }
            }
        }
    }

    /// Goes through the dialogue until the new process serves.
    async fn hand_over(
        &self,
        successor: &mut Successor,
        running: &mut RunningParts,
        offer: Offer,
    ) -> io::Result<()> {
        successor.say(&OldMessage::Offer(offer)).await?;
        successor.hear(NewMessage::Prepared).await?;
        // A refresh that takes longer does so in vain at worst: the new process fetches another.
        let _ = timeout(PAUSE, running.refreshers.pause()).await;
        successor.stage = Stage::Fetching;
        let records = running.store.export();
        successor.say(&OldMessage::Fetch { records }).await?;
        successor.hear(NewMessage::Ready).await?;
        successor.stage = Stage::Serving;
        successor.say(&OldMessage::Serve).await?;
        successor.hear(NewMessage::Serving).await?;
        self.manager.replaced_by(successor.process.id());
        self.change
            .step(Change::UnderWay, Change::Done)
            .map_err(|_| io::Error::other("wxgate is stopping"))
    }
}

/// Starts the program with one end of a channel as its standard input, and passes the descriptors
/// through the other.
fn start(program: &Program, descriptors: &Descriptors) -> io::Result<(Child, StdUnixStream)> {
    let (ours, theirs) = StdUnixStream::pair()?;
    let process = Command::new(&program.path)
        .args(&program.arguments)
        .env(VARIABLE, VERSION)
        // These speak of this process.
        .env_remove("LISTEN_FDS")
        .env_remove("LISTEN_PID")
        .env_remove("LISTEN_FDNAMES")
        .env_remove("WATCHDOG_PID")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn()?;
    match channel::send_descriptors(&ours, &descriptors.borrowed()) {
        // It has ended already, which shows at the first message.
        Err(error) if has_closed(&error) => {}
        sent => sent?,
    }
    ours.set_nonblocking(true)?;
    Ok((process, ours))
}

/// True if the process has closed the channel, by its end as a rule.
fn has_closed(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

/// Error with one kind for all forms of a closed channel.
fn closed_or(error: io::Error) -> io::Error {
    if has_closed(&error) {
        io::ErrorKind::UnexpectedEof.into()
    } else {
        error
    }
}

impl Successor {
    async fn say(&mut self, message: &OldMessage) -> io::Result<()> {
        let written = channel::write(&mut self.stream, message).await;
        written.map_err(closed_or)
    }

    async fn hear(&mut self, expected: NewMessage) -> io::Result<()> {
        let heard: io::Result<NewMessage> = channel::read(&mut self.stream).await;
        if heard.map_err(closed_or)? == expected {
            Ok(())
        } else {
            Err(io::Error::other("it said something unexpected"))
        }
    }

    /// Ends the process and reaps it. With `by_itself`, it gets a moment to end without a signal,
    /// and its exit status tells more.
    async fn end(&mut self, by_itself: bool) -> io::Result<ExitStatus> {
        let deadline = Instant::now() + if by_itself { END } else { Duration::ZERO };
        while Instant::now() < deadline {
            if let Some(status) = self.process.try_wait()? {
                return Ok(status);
            }
            sleep(LOOK).await;
        }
        self.process.kill()?;
        self.process.wait()
    }

    /// Ends the process because this one stops. If it serves already, it drains too.
    async fn stop(&mut self) {
        if self.stage == Stage::Serving {
            let process = i32::try_from(self.process.id())
                .ok()
                .and_then(Pid::from_raw);
            if let Some(process) = process {
                let _ = kill_process(process, Signal::TERM);
            }
        } else {
            let _ = self.end(false).await;
        }
    }
}
