//! Loading the configuration again while wxgate runs.
//!
//! All that can fail is done before anything changes: a configuration that cannot be used changes
//! nothing. What it takes to have one in force stands in `proxy`, `admin` and `keepers`; here is
//! only the order.

use std::{net::SocketAddr, pin::Pin, sync::Arc};

use tokio::{runtime::Handle, sync::Mutex};

use super::{
    keepers::Keepers,
    loops::{self, Names},
    restart,
};
use crate::{
    admin::{self, Reloaded},
    config::{Config, Problems},
    proxy,
};

/// Reads the configuration from where it was read at the start. May block.
pub type Loader = Box<dyn Fn() -> Result<Config, Problems> + Send + Sync>;

/// Has the configuration loaded again. Cheap to clone.
#[derive(Clone)]
pub struct Reloader(Arc<Inner>);

struct Inner {
    load: Loader,
    running: Arc<Mutex<Running>>,
    /// The runtime of the token refreshers. A reload starts some, and may be asked for on another
    /// runtime, which can end earlier.
    background: Handle,
}

/// What is in force, and the hands that change it.
pub(super) struct Running {
    pub(super) started: Config,
    /// Where the data listeners stand.
    pub(super) own: Vec<SocketAddr>,
    pub(super) keepers: Keepers,
    pub(super) proxy: proxy::Control,
    pub(super) admin: admin::Control,
}

impl Reloader {
    /// Must be called inside the runtime for background work.
    pub(super) fn new(load: Loader, running: Arc<Mutex<Running>>) -> Self {
        Self(Arc::new(Inner {
            load,
            running,
            background: Handle::current(),
        }))
    }

    /// Loads the configuration and puts it into force, or says everything that is wrong with it and
    /// changes nothing. One reload goes on at a time, and goes on to its end when the caller does
    /// not wait for it. The outcome is logged.
    pub async fn reload(&self) -> Reloaded {
        let inner = Arc::clone(&self.0);
        let reloading = self.0.background.spawn(async move {
            let mut running = Arc::clone(&inner.running).lock_owned().await;
            let outcome = tokio::task::spawn_blocking(move || running.follow((inner.load)())).await;
            let outcome = outcome.unwrap_or_else(|_| broken());
            note(&outcome);
            outcome
        });
        reloading.await.unwrap_or_else(|_| broken())
    }

    /// The same for the admin listener.
    pub(super) fn handler(&self) -> admin::Reload {
        let reloader = self.clone();
        Arc::new(move || {
            let reloader = reloader.clone();
            Box::pin(async move { reloader.reload().await })
                as Pin<Box<dyn Future<Output = Reloaded> + Send>>
        })
    }
}

impl Running {
    fn follow(&mut self, loaded: Result<Config, Problems>) -> Reloaded {
        let config = match loaded {
            Ok(config) => config,
            Err(problems) => {
                return Reloaded::Refused {
                    problems: problems.0.iter().map(ToString::to_string).collect(),
                };
            }
        };
        let plan = match self.proxy.plan(&config.proxy, &config.accounts) {
            Ok(plan) => plan,
            Err(error) => {
                return Reloaded::Refused {
                    problems: vec![error.to_string()],
                };
            }
        };
        // By the way out that is in force: a new one needs a restart, which looks again.
        let egress = &self.started.proxy.upstream.egress;
        if let Err(error) = loops::check(&config.accounts, egress, &self.own, Names::Ask) {
            return Reloaded::Refused {
                problems: vec![error.to_string()],
            };
        }
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        let (changes, leaving) = self.keepers.follow(&config);
        self.proxy.switch(
            plan,
            self.keepers
                .running()
                .iter()
                .map(|(_, keeper)| keeper.clone()),
        );
        self.admin.switch(&config.admin, self.keepers.by_name());
        self.keepers.dismiss(leaving);
        tracing::info!(
            added = changes.added.join(","),
            changed = changes.changed.join(","),
            removed = changes.removed.join(","),
            "the configuration was loaded again and is in force"
        );
        Reloaded::Done {
            accounts: config
                .accounts
                .iter()
                .map(|account| account.name.clone())
                .collect(),
            restart_needed: restart::needed(&self.started, &config),
        }
    }
}

/// After a panic, whose text stands in the log.
fn broken() -> Reloaded {
    Reloaded::Refused {
        problems: vec!["the reload broke off: report this as a bug of wxgate".to_owned()],
    }
}

fn note(outcome: &Reloaded) {
    match outcome {
        Reloaded::Done { restart_needed, .. } => {
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
        path::Path,
        sync::{
            Mutex as StdMutex,
            atomic::{AtomicUsize, Ordering::SeqCst},
            mpsc,
        },
    };

    use super::*;
    use crate::{app::App, base::AccountName, config, net::local};

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

    fn done(names: &[&str]) -> Reloaded {
        let accounts = names
            .iter()
            .map(|name| AccountName::new(name).unwrap())
            .collect();
        Reloaded::Done {
            accounts,
            restart_needed: Vec::new(),
        }
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
        // The second one has begun, so the first one is over although nobody waited for it.
        go.send(&["b", "c"]).unwrap();
        assert_eq!(next.await.unwrap(), done(&["b", "c"]));
        let running = reloader.0.running.lock().await;
        assert_eq!(running.keepers.running().len(), 2);
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
        assert_eq!(ended.await.unwrap().await.unwrap(), done(&["b"]));
        let refresher = {
            let running = reloader.0.running.lock().await;
            running.keepers.running()[0].1.token.clone()
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
            reloader.0.running.lock().await.keepers.running()[0]
                .0
                .name
                .as_str(),
            "a"
        );
        assert_eq!(reloader.reload().await, done(&["b"]));
    }
}
