//! Reload of the configuration while wxgate runs.
//!
//! All steps that can fail come before the first change: a configuration that cannot be used
//! changes nothing. The changes themselves are made by `proxy`, `admin` and `refreshers`; here is only
//! their order.

use std::{
    fmt::Display,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Weak, atomic::AtomicBool},
    time::Duration,
};

use tokio::{runtime::Handle, sync::Mutex};

use super::{
    loops::{self, NameLookup},
    open_store::StoreParts,
    refreshers::Refreshers,
    restart,
    service_manager::ServiceManager,
};
use crate::{
    admin::{self, Reloaded},
    base::AccountName,
    config::{Config, Problems},
    proxy,
    telemetry::reloads::ReloadMetrics,
};

/// Function that reads the configuration from the same source as at the start. May block.
pub type Loader = Box<dyn Fn() -> Result<Config, Problems> + Send + Sync>;

/// Time between two reminders of what a reload left to be decided.
const REMINDER: Duration = Duration::from_secs(3600);

/// Handle that reloads the configuration. Cheap to clone.
#[derive(Clone)]
pub struct Reloader(Arc<ReloaderInner>);

struct ReloaderInner {
    load: Loader,
    running: Arc<Mutex<RunningParts>>,
    /// Runtime of the token refreshers. A reload starts some, and may be asked for on another
    /// runtime, which can end earlier.
    background: Handle,
    manager: ServiceManager,
}

/// Configuration in force, and the handles of the parts that a reload changes.
pub(super) struct RunningParts {
    /// Configuration of the start, without the secrets that a reload may replace.
    pub(super) started: Config,
    /// Addresses of the data listeners.
    pub(super) own: Vec<SocketAddr>,
    pub(super) refreshers: Refreshers,
    pub(super) store: StoreParts,
    /// An account had a usable token at some time, as far as a probe has asked.
    pub(super) was_usable: Arc<AtomicBool>,
    /// Another process serves in the place of this one.
    pub(super) is_replaced: bool,
    pub(super) reloads: ReloadMetrics,
    pub(super) proxy: proxy::ProxyControl,
    pub(super) admin: admin::AdminControl,
}

impl Reloader {
    /// Must be called inside the runtime for background work.
    pub(super) fn new(
        load: Loader,
        running: Arc<Mutex<RunningParts>>,
        manager: ServiceManager,
    ) -> Self {
        let background = Handle::current();
        background.spawn(remind(Arc::downgrade(&running)));
        Self(Arc::new(ReloaderInner {
            load,
            running,
            background,
            manager,
        }))
    }

    /// Loads the configuration and puts it into force, or returns all of its problems and changes
    /// nothing. Reloads run one after the other, each to its end, also when the caller does not
    /// wait. Logs the outcome.
    pub async fn reload(&self) -> Reloaded {
        let inner = Arc::clone(&self.0);
        // In a task, so that a caller that hangs up does not cancel a reload halfway.
        let reloading = self.0.background.spawn(async move {
            let mut running = Arc::clone(&inner.running).lock_owned().await;
            if running.is_replaced {
                return refused(&"another process serves in the place of this one: ask that one");
            }
            inner.manager.reloading();
            let manager = inner.manager.clone();
            let metrics = running.reloads.clone();
            // Blocking, since files are read and names looked up. The lock moves along, so that the
            // next reload waits for the end of this one.
            let following = move || {
                let outcome = running.follow((inner.load)());
                running.admin.record_reload(&outcome);
                outcome
            };
            let outcome = tokio::task::spawn_blocking(following).await;
            let outcome = outcome.unwrap_or_else(|_| broken());
            log_outcome(&outcome);
            manager.ready();
            metrics.record(matches!(outcome, Reloaded::Done { .. }));
            outcome
        });
        reloading.await.unwrap_or_else(|_| broken())
    }

    /// Returns [`Reloader::reload`] as a function for the admin listener.
    pub(super) fn handler(&self) -> admin::ReloadHandler {
        let reloader = self.clone();
        Arc::new(move || {
            let reloader = reloader.clone();
            Box::pin(async move { reloader.reload().await })
                as Pin<Box<dyn Future<Output = Reloaded> + Send>>
        })
    }
}

impl RunningParts {
    /// Puts a configuration into force, or changes nothing if it cannot be used.
    fn follow(&mut self, loaded: Result<Config, Problems>) -> Reloaded {
        let config = match loaded {
            Ok(config) => config,
            Err(problems) => {
                return Reloaded::Refused {
                    problems: problems.0.iter().map(ToString::to_string).collect(),
                };
            }
        };
        let prepared = match self.proxy.prepare(&config.proxy, &config.accounts) {
            Ok(prepared) => prepared,
            Err(error) => return refused(&error),
        };
        // With the egress in force: another egress needs a restart, which checks again.
        let egress = &self.started.proxy.upstream.egress;
        if let Err(error) = loops::check(&config.accounts, egress, &self.own, NameLookup::Resolve) {
            return refused(&error);
        }
        // Blocks this thread, which is there for it, and no other. Last of what can fail, since a
        // fetch may end the token before.
        let successors = match Handle::current().block_on(self.refreshers.try_secrets(&config)) {
            Ok(successors) => successors,
            Err(problems) => return Reloaded::Refused { problems },
        };
        // From here on nothing can fail.
        let (changes, leaving) = self.refreshers.follow(&config, successors);
        self.proxy.switch(
            prepared,
            self.refreshers
                .running()
                .iter()
                .map(|(_, refresher)| refresher.clone()),
        );
        let former_only = self.former_only();
        self.admin.switch(
            &config.admin,
            self.refreshers.by_name(),
            former_only.iter().cloned().collect(),
        );
        // Last, since requests ask the old ones until proxy and admin have switched.
        self.refreshers.dismiss(leaving);
        tracing::info!(
            added = changes.added.join(","),
            changed = changes.changed.join(","),
            removed = changes.removed.join(","),
            "the configuration was loaded again and is in force"
        );
        let accounts = config.accounts.iter();
        let warnings = config.warnings.iter().map(ToString::to_string);
        Reloaded::Done {
            accounts: accounts.map(|account| account.name.clone()).collect(),
            restart_needed: restart::needed(&self.started, &config),
            warnings: warnings
                .chain(former_only.into_iter().map(|(_, warning)| warning))
                .collect(),
        }
    }

    /// Returns a warning for each account that calls without a selector go to because of a reload.
    fn former_only(&self) -> Vec<(AccountName, String)> {
        let accounts = self.proxy.former_only_accounts().into_iter();
        accounts
            .map(|account| (account.name.clone(), account.to_string()))
            .collect()
    }
}

/// Repeats the warnings that a reload left, until the parts are dropped.
async fn remind(running: Weak<Mutex<RunningParts>>) {
    loop {
        tokio::time::sleep(REMINDER).await;
        let Some(running) = running.upgrade() else {
            return;
        };
        for (account, warning) in running.lock().await.former_only() {
            tracing::warn!(%account, "{warning}");
        }
    }
}

fn refused(problem: &dyn Display) -> Reloaded {
    Reloaded::Refused {
        problems: vec![problem.to_string()],
    }
}

/// Outcome of a reload that panicked. The text of the panic stands in the log.
fn broken() -> Reloaded {
    Reloaded::Refused {
        problems: vec!["the reload broke off: report this as a bug of wxgate".to_owned()],
    }
}

fn log_outcome(outcome: &Reloaded) {
    match outcome {
        Reloaded::Done {
            restart_needed,
            warnings,
            ..
        } => {
            for warning in warnings {
                tracing::warn!("{warning}");
            }
            for key in restart_needed {
                tracing::warn!(
                    "{key} was changed and keeps its old value until wxgate is restarted"
                );
            }
        }
        Reloaded::Refused { problems } => {
            tracing::error!(
                problems = problems.len(),
                "the configuration cannot be used, the old one stays in force: correct it, then reload again"
            );
            for problem in problems {
                tracing::error!("{problem}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        io,
        path::Path,
        sync::{
            Mutex as StdMutex,
            atomic::{AtomicUsize, Ordering::SeqCst},
            mpsc,
        },
    };

    use super::*;
    use crate::{app::App, config, net::local};

    fn config(names: &[&str]) -> Result<Config, Problems> {
        let account = |name: &&str| {
            format!(
                "[[account]]\nname = \"{name}\"\nappid = \"wx{name:0>16}\"\nsecret = {{ value = \"s\" }}\n\
                 api = [\"http://127.0.0.1:9\"]\n"
            )
        };
        let text = format!(
            "[server]\nlisten = [\"127.0.0.1:0\"]\n[admin]\nlisten = \"127.0.0.1:0\"\n[store]\nkind = \"memory\"\n{}",
            names.iter().map(account).collect::<String>()
        );
        config::parse(
            &text,
            Path::new("/"),
            "test.toml",
            &BTreeMap::<String, String>::new(),
        )
    }

    /// Names of the accounts after a reload, if it was not refused.
    fn loaded(outcome: Reloaded) -> Option<Vec<String>> {
        match outcome {
            Reloaded::Done { accounts, .. } => {
                Some(accounts.iter().map(ToString::to_string).collect())
            }
            Reloaded::Refused { .. } => None,
        }
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[tokio::test]
    async fn a_reload_goes_on_without_its_caller_and_the_next_one_waits_for_it() {
        let (begun, mut beginnings) = tokio::sync::mpsc::unbounded_channel();
        let (go, gate) = mpsc::channel::<&'static [&'static str]>();
        let (gate, inside) = (StdMutex::new(gate), AtomicUsize::new(0));
        let load: Loader = Box::new(move || {
            assert_eq!(inside.fetch_add(1, SeqCst), 0, "one at a time");
            let _ = begun.send(());
            let names = gate.lock().unwrap().recv().unwrap();
            inside.fetch_sub(1, SeqCst);
            config(names)
        });
        let (_app, reloader) = App::build(&config(&["a"]).unwrap(), None)
            .unwrap()
            .reloading(load);
        let impatient = tokio::spawn({
            let reloader = reloader.clone();
            async move { reloader.reload().await }
        });
        beginnings.recv().await.unwrap();
        impatient.abort();
        assert!(impatient.await.unwrap_err().is_cancelled());
        let next = tokio::spawn({
            let reloader = reloader.clone();
            async move { reloader.reload().await }
        });
        go.send(&["a", "b"]).unwrap();
        beginnings.recv().await.unwrap();
        // The second reload has begun, so the first one has ended although nobody waited for it.
        go.send(&["b", "c"]).unwrap();
        assert_eq!(loaded(next.await.unwrap()), Some(names(&["b", "c"])));
        let running = reloader.0.running.lock().await;
        assert_eq!(running.refreshers.running().len(), 2);
    }

    #[tokio::test]
    async fn what_a_reload_starts_outlives_the_runtime_that_asked_for_it() {
        let load: Loader = Box::new(|| config(&["b"]));
        let (_app, reloader) = App::build(&config(&["a"]).unwrap(), None)
            .unwrap()
            .reloading(load);
        let asking = reloader.clone();
        // Ends like the thread of the admin listener in a stop.
        let ended = local::spawn(
            "asking".to_owned(),
            move || async move { asking.reload().await },
        );
        assert_eq!(
            loaded(ended.await.unwrap().await.unwrap()),
            Some(names(&["b"]))
        );
        let refresher = {
            let running = reloader.0.running.lock().await;
            running.refreshers.running()[0].1.token.clone()
        };
        let error = refresher.refresh_now(false).await.unwrap_err();
        assert_ne!(error.label(), "stopped");
    }

    #[tokio::test]
    async fn a_loader_that_panics_leaves_everything_as_it_was_and_the_next_reload_works() {
        let calls = AtomicUsize::new(0);
        let load: Loader = Box::new(move || match calls.fetch_add(1, SeqCst) {
            0 => panic!("as the test wants it"),
            _ => config(&["b"]),
        });
        let (_app, reloader) = App::build(&config(&["a"]).unwrap(), None)
            .unwrap()
            .reloading(load);
        assert!(matches!(reloader.reload().await, Reloaded::Refused { .. }));
        assert_eq!(
            reloader.0.running.lock().await.refreshers.running()[0]
                .0
                .name
                .as_str(),
            "a"
        );
        assert_eq!(loaded(reloader.reload().await), Some(names(&["b"])));
    }

    #[derive(Clone, Default)]
    struct Log(Arc<StdMutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_default_that_only_a_reload_left_is_said_every_hour() {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .finish();
        let _subscribed = tracing::subscriber::set_default(subscriber);
        let reminders = || {
            let lines = String::from_utf8(log.0.lock().unwrap().split_off(0)).unwrap();
            lines.matches("default_account is missing").count()
        };
        let load: Loader = Box::new(|| config(&["a", "b"]));
        let (_app, reloader) = App::build(&config(&["a"]).unwrap(), None)
            .unwrap()
            .reloading(load);
        tokio::time::sleep(REMINDER * 2).await;
        assert_eq!(reminders(), 0);
        assert!(loaded(reloader.reload().await).is_some());
        assert_eq!(reminders(), 1, "by the reload itself");
        tokio::time::sleep(REMINDER * 3 + REMINDER / 2).await;
        assert_eq!(reminders(), 3);
    }
}
