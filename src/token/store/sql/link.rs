//! Stays connected to the database: one connection on which it looks and listens, and a few that
//! calls take turns with.
//!
//! Whatever is wrong with the first, all are dropped and made anew after a pause; meanwhile calls
//! fail at once.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sqlx::{
    Row as _,
    postgres::{PgListener, PgPoolOptions},
};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, watch},
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};

use super::{
    address::{Settings, Target},
    dialect::Statements,
    fault,
    line::{CALL, Found, Line},
    schema,
};
use crate::{
    base::backoff::Backoff,
    token::store::{ServerFault, bell::Bell},
};

/// The database as calls see it. Dropping it ends all connections.
pub(super) struct Link {
    shared: Arc<Shared>,
    turns: Arc<Semaphore>,
    task: JoinHandle<()>,
}

/// A connection for one call. It serves the next call only if this one says that all is well.
pub(super) struct Lent {
    pub(super) line: Line,
    /// Of how many times all connections were made anew.
    round: u64,
    shared: Arc<Shared>,
    _turn: OwnedSemaphorePermit,
}

struct Shared {
    settings: Settings,
    ca_file: Option<PathBuf>,
    statements: Arc<Statements>,
    bell: Arc<Bell>,
    state: watch::Sender<State>,
    idle: Mutex<Idle>,
    doubt: Notify,
}

#[derive(Default)]
struct Idle {
    round: u64,
    lines: Vec<Line>,
}

#[derive(Clone, Copy)]
enum State {
    /// The first attempt is under way.
    Opening,
    Up,
    Down(ServerFault),
}

/// What is watched while all is well.
enum Watch {
    Listening(Box<PgListener>),
    /// With what was changed last.
    Looking(Box<Line>, Vec<Found>),
}

/// Connections for calls.
const MOST: usize = 3;
/// A call waits so long for its turn, or for the first attempt to connect.
const TURN: Duration = Duration::from_secs(1);
const PAUSE: Backoff = Backoff {
    min: Duration::from_millis(100),
    max: Duration::from_secs(1),
};
/// A connection that lasted so long was good.
const PROVEN: Duration = Duration::from_secs(3);
/// Between two looks whether the database still answers, has its tables, and what it takes.
const LOOK: Duration = Duration::from_secs(1);

/// Where names of changed records are told.
pub(super) fn channel(prefix: &str) -> String {
    format!("{prefix}changes")
}

impl Link {
    /// Begins to connect, on the current runtime.
    pub(super) fn start(
        settings: &Settings,
        ca_file: Option<PathBuf>,
        statements: Arc<Statements>,
        bell: Arc<Bell>,
    ) -> Self {
        let shared = Arc::new(Shared {
            settings: settings.clone(),
            ca_file,
            statements,
            bell,
            state: watch::Sender::new(State::Opening),
            idle: Mutex::default(),
            doubt: Notify::new(),
        });
        let keeper = Arc::clone(&shared);
        Self {
            shared,
            turns: Arc::new(Semaphore::new(MOST)),
            task: tokio::spawn(async move { keeper.run().await }),
        }
    }

    /// A connection for one call, or what is wrong.
    pub(super) async fn lend(&self) -> Result<Lent, ServerFault> {
        let mut state = self.shared.state.subscribe();
        let turn = async {
            down(
                *state
                    .wait_for(|state| !matches!(state, State::Opening))
                    .await
                    .map_err(|_| ServerFault::Broken)?,
            )?;
            tokio::select! {
                turn = Arc::clone(&self.turns).acquire_owned() => turn.map_err(|_| ServerFault::Broken),
                changed = state.wait_for(|state| matches!(state, State::Down(_))) => {
                    down(*changed.map_err(|_| ServerFault::Broken)?)?;
                    Err(ServerFault::Broken)
                }
            }
        };
        let turn = timeout(TURN, turn)
            .await
            .unwrap_or(Err(ServerFault::Timeout))?;
        let (round, idle) = {
            let mut idle = self.shared.idle();
            (idle.round, idle.lines.pop())
        };
        let line = match idle {
            Some(line) => line,
            None => Line::open(&self.shared.target()?).await?,
        };
        Ok(Lent {
            line,
            round,
            shared: Arc::clone(&self.shared),
            _turn: turn,
        })
    }

    /// Whether there is a connection.
    pub(super) fn is_up(&self) -> bool {
        matches!(*self.shared.state.borrow(), State::Up)
    }

    /// A call failed; it may be time to look.
    pub(super) fn doubt(&self) {
        self.shared.doubt.notify_one();
    }
}

fn down(state: State) -> Result<(), ServerFault> {
    if let State::Down(fault) = state {
        Err(fault)
    } else {
        Ok(())
    }
}

impl Lent {
    /// The connection is as good as before.
    pub(super) fn give_back(self) {
        let mut idle = self.shared.idle();
        if idle.round == self.round {
            idle.lines.push(self.line);
        }
    }
}

impl Shared {
    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn target(&self) -> Result<Target, ServerFault> {
        self.settings
            .target(self.ca_file.as_deref())
            .map_err(|_| ServerFault::Unreachable)
    }

    fn forget(&self) {
        let mut idle = self.idle();
        idle.round += 1;
        idle.lines.clear();
    }

    async fn run(&self) {
        let mut failures = 0_u32;
        let mut said = None;
        loop {
            let fault = match self.open().await {
                Ok(watch) => {
                    if said.take().is_some() {
                        tracing::info!("the shared token store is there again");
                    }
                    let since = Instant::now();
                    self.state.send_replace(State::Up);
                    // Whatever happened meanwhile was not told.
                    self.bell.ring_all();
                    let fault = self.hold(watch).await;
                    failures = if since.elapsed() < PROVEN {
                        failures.saturating_add(1)
                    } else {
                        1
                    };
                    fault
                }
                Err(fault) => {
                    failures = failures.saturating_add(1);
                    fault
                }
            };
            self.state.send_replace(State::Down(fault));
            self.forget();
            if said.replace(fault) != Some(fault) {
                tracing::warn!("the shared token store is gone, going on from memory: {fault}");
            }
            sleep(PAUSE.jittered(
                failures,
                getrandom::u32().map_or(0.5, |n| f64::from(n) / f64::from(u32::MAX)),
            ))
            .await;
        }
    }

    /// Connects for the first call and for looking, and makes sure of the tables.
    async fn open(&self) -> Result<Watch, ServerFault> {
        let target = self.target()?;
        let mut line = Line::open(&target).await?;
        timeout(CALL * 3, schema::ready(&mut line, &self.statements))
            .await
            .unwrap_or(Err(ServerFault::Timeout))?;
        let watch = match &target {
            Target::Postgres(_) => Watch::Listening(Box::new(self.listen(&target).await?)),
            Target::Sqlite(_) | Target::Mysql(_) => {
                Watch::Looking(Box::new(Line::open(&target).await?), Vec::new())
            }
        };
        self.idle().lines.push(line);
        Ok(watch)
    }

    async fn listen(&self, target: &Target) -> Result<PgListener, ServerFault> {
        let Target::Postgres(options) = target else {
            return Err(ServerFault::Statement);
        };
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .test_before_acquire(false)
            .acquire_timeout(CALL)
            .connect_lazy_with((**options).clone());
        let listening = async {
            let mut listener = PgListener::connect_with(&pool).await?;
            listener.eager_reconnect(false);
            listener.listen(&channel(self.settings.prefix())).await?;
            Ok(listener)
        };
        let listening = timeout(CALL * 2, listening)
            .await
            .unwrap_or(Err(sqlx::Error::PoolTimedOut));
        listening.map_err(|error| fault::of_connecting(&error))
    }

    /// Passes changes on until something is wrong.
    async fn hold(&self, mut watch: Watch) -> ServerFault {
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                told = watch.told() => match told {
                    Ok(name) => {
                        self.bell.ring(&name);
                        continue;
                    }
                    Err(fault) => return fault,
                },
                () = self.doubt.notified() => {}
                _ = ticks.tick() => {}
            }
            let looked = timeout(CALL, watch.look(&self.statements, &self.bell))
                .await
                .unwrap_or(Err(ServerFault::Timeout));
            if let Err(fault) = looked {
                return fault;
            }
        }
    }
}

impl Watch {
    /// The next record that is said to have changed; never, where nobody says so.
    async fn told(&mut self) -> Result<String, ServerFault> {
        match self {
            Self::Listening(listener) => match listener.try_recv().await {
                Ok(Some(message)) => Ok(message.payload().to_owned()),
                Ok(None) => Err(ServerFault::Broken),
                Err(error) => Err(fault::of(&error)),
            },
            Self::Looking(..) => std::future::pending().await,
        }
    }

    /// Whether the database still answers and has its tables. Where it tells nobody, what has
    /// changed is found so.
    async fn look(&mut self, statements: &Statements, bell: &Bell) -> Result<(), ServerFault> {
        match self {
            Self::Listening(listener) => {
                let asked =
                    sqlx::query(sqlx::AssertSqlSafe(statements.version.clone())).persistent(false);
                let row = asked
                    .fetch_optional(&mut **listener)
                    .await
                    .map_err(|error| fault::of(&error))?;
                schema::is_known(row.and_then(|row| row.try_get(0).ok()))
            }
            Self::Looking(line, last) => {
                schema::check(line, statements).await?;
                let changed = line.all(&statements.changed, &[]).await?;
                for found in changed.iter().filter(|found| !last.contains(found)) {
                    let name = String::from_utf8_lossy(&found.bytes);
                    bell.ring(name.strip_suffix(".token").unwrap_or(&name));
                }
                *last = changed;
                Ok(())
            }
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}
