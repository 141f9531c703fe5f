//! Process of wxgate under measurement, alone or under callgrind.

use std::{
    cell::Cell,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use tokio::time::Instant;

use super::plan::Plan;
use crate::{
    Outcome,
    child::{Child, free_port, pinned},
    count::Tool,
    driver::Driver,
    readings,
    world::World,
};

/// Number for unique file names.
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Process under measurement. Ends when dropped.
pub(super) struct Subject {
    pub(super) child: Child,
    pub(super) port: u16,
    pub(super) admin: u16,
    key: Option<&'static str>,
    counted: PathBuf,
    dumps: Cell<u32>,
}

impl Subject {
    /// Starts wxgate, and returns when every account has its token.
    pub(super) fn start(world: &World, plan: &Plan) -> Outcome<Self> {
        Self::start_under(world, plan, None, Child::spawn)
    }

    /// Starts wxgate with its log in a pipe that is not read.
    pub(super) fn start_unread(world: &World, plan: &Plan) -> Outcome<Self> {
        Self::start_under(world, plan, None, |command, _| Child::spawn_unread(command))
    }

    /// Starts wxgate under callgrind, about fifty times slower, for [`Subject::instructions`].
    pub(super) fn counted(world: &World, plan: &Plan) -> Outcome<Self> {
        Self::start_under(world, plan, Some(Tool::Callgrind), Child::spawn)
    }

    fn start_under(
        world: &World,
        plan: &Plan,
        tool: Option<Tool>,
        spawn: fn(&mut Command, &Path) -> Outcome<Child>,
    ) -> Outcome<Self> {
        let (port, admin) = (free_port()?, free_port()?);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let (config, counted) = (
            world.path(&format!("growth-{number}.toml")),
            world.path(&format!("growth-{number}.callgrind")),
        );
        fs::write(&config, plan.text(world, port, admin)).map_err(|error| error.to_string())?;
        let mut command = Command::new(&world.wxgate);
        command.args(["serve", "--config"]).arg(config);
        let command = match tool {
            Some(tool) => tool.around(&command, &counted)?,
            None => command,
        };
        let output = world.path(&format!("growth-{number}.out"));
        let mut child = spawn(&mut pinned(&command, world.proxy_core), &output)?;
        child.listens(admin, Duration::from_secs(120))?;
        child.listens(port, Duration::from_secs(120))?;
        let subject = Self {
            child,
            port,
            admin,
            key: plan.key(),
            counted,
            dumps: Cell::new(0),
        };
        subject.is_ready()?;
        Ok(subject)
    }

    /// Waits until every account has a token.
    fn is_ready(&self) -> Outcome {
        let end = Instant::now() + Duration::from_secs(240);
        loop {
            let asked = Driver::connect(self.admin, None)?.ask("/readyz?all");
            match asked {
                Ok(_) => return Ok(()),
                Err(reason) if Instant::now() > end => {
                    return Err(format!("{reason:.200}; {}", self.child.said()));
                }
                Err(_) => thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    pub(super) fn connect(&self) -> Outcome<Driver> {
        Driver::connect(self.port, self.key)
    }

    pub(super) fn operator(&self) -> Outcome<Driver> {
        Driver::connect(self.admin, None)
    }

    /// Resident memory in KiB.
    pub(super) fn rss(&self) -> u64 {
        readings::rss_kib(self.child.id())
    }

    /// Returns the instructions in user space, of all threads, during `work`.
    pub(super) fn instructions(&self, work: impl FnOnce() -> Outcome) -> Outcome<u64> {
        self.dump()?;
        work()?;
        self.dump()
    }

    /// Returns the instructions since the last dump.
    fn dump(&self) -> Outcome<u64> {
        let said = Command::new("vgdb")
            .arg(format!("--pid={}", self.child.id()))
            .args(["dump", "growth"])
            .output();
        said.map_err(|error| format!("vgdb (it comes with valgrind): {error}"))?;
        self.dumps.set(self.dumps.get() + 1);
        let path = PathBuf::from(format!("{}.{}", self.counted.display(), self.dumps.get()));
        let end = Instant::now() + Duration::from_secs(20);
        while Instant::now() < end {
            let figure = fs::read_to_string(&path)
                .ok()
                .and_then(|text| Tool::Callgrind.read(&text));
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a count"
            )]
            if let Some(figure) = figure {
                return Ok(figure as u64);
            }
            thread::sleep(Duration::from_millis(20));
        }
        Err("callgrind wrote no figure".to_owned())
    }
}
