//! Output of the figures, as tables for people and as JSON for programs.

use std::{collections::BTreeMap, fs, path::Path};

use serde::Serialize;

use super::{
    Outcome,
    compare::Turn,
    readings,
    statistics::{least, median, most},
    systems::Running,
    workload::Workload,
};

/// All figures of a run.
#[derive(Serialize)]
pub(crate) struct Report {
    machine: String,
    /// Names in the order of the tables; ratios are to the first.
    systems: Vec<&'static str>,
    rss_idle_kib: BTreeMap<&'static str, u64>,
    tables: Vec<Table>,
    idle_kib_per_connection: BTreeMap<&'static str, Option<f64>>,
}

/// Figures of one workload over a number of connections. A turn that was discarded is `None`.
#[derive(Serialize)]
pub(crate) struct Table {
    workload: Workload,
    connections: usize,
    turns: BTreeMap<&'static str, Vec<Option<Turn>>>,
}

/// Selection of a figure of a turn.
type Figure = fn(&Turn) -> f64;

impl Report {
    pub(crate) fn new(systems: &[Running]) -> Self {
        let rss =
            |running: &Running| (running.system.name(), readings::rss_kib(running.child.id()));
        Self {
            machine: readings::machine(),
            systems: systems
                .iter()
                .map(|running| running.system.name())
                .collect(),
            rss_idle_kib: systems.iter().map(rss).collect(),
            tables: Vec::new(),
            idle_kib_per_connection: BTreeMap::new(),
        }
    }

    /// Prints a table and adds it to the report.
    pub(crate) fn add(&mut self, table: Table) {
        table.print(&self.systems);
        self.tables.push(table);
    }

    /// Prints the memory of idle connections and adds it to the report.
    pub(crate) fn add_idle(&mut self, count: u32, each: Vec<(&'static str, Outcome<f64>)>) {
        println!(
            "## memory: at the start, and growth per idle client connection ({count} of them)\n"
        );
        for (name, kib) in each {
            #[allow(clippy::cast_precision_loss, reason = "KiB")]
            let start = self
                .rss_idle_kib
                .get(name)
                .map_or(f64::NAN, |kib| *kib as f64 / 1024.0);
            match &kib {
                Ok(kib) => println!("{name:<12}{start:>7.1} MiB {kib:>7.2} KiB"),
                Err(reason) => println!("{name:<12}{start:>7.1} MiB  failed: {reason}"),
            }
            self.idle_kib_per_connection.insert(name, kib.ok());
        }
    }
}

impl Table {
    pub(crate) fn new(
        workload: Workload,
        connections: usize,
        turns: BTreeMap<&'static str, Vec<Option<Turn>>>,
    ) -> Self {
        Self {
            workload,
            connections,
            turns,
        }
    }

    fn figures(&self, system: &str, figure: Figure) -> Vec<f64> {
        self.turns
            .get(system)
            .into_iter()
            .flatten()
            .flatten()
            .map(figure)
            .collect()
    }

    /// Returns median, minimum and maximum of the ratios over the rounds in which both turns went
    /// well.
    fn ratios(&self, system: &str, first: &str, figure: Figure) -> [f64; 3] {
        let (Some(own), Some(theirs)) = (self.turns.get(system), self.turns.get(first)) else {
            return [f64::NAN; 3];
        };
        let ratio = |(own, theirs): (&Option<Turn>, &Option<Turn>)| {
            Some(figure(own.as_ref()?) / figure(theirs.as_ref()?))
        };
        let ratios: Vec<f64> = own.iter().zip(theirs).filter_map(ratio).collect();
        if ratios.is_empty() {
            [f64::NAN; 3]
        } else {
            [median(&ratios), least(&ratios), most(&ratios)]
        }
    }

    fn print(&self, systems: &[&'static str]) {
        let Some(first) = systems.first() else { return };
        println!(
            "## {}, {} connections\n",
            self.workload.name(),
            self.connections
        );
        println!(
            "{:<12}{:>8} {:<18}{:>8} {:>7} {:>5} {:<18}{:>8}{:>8}{:>8} {:<12}{:>7}{:>7}{:>6}",
            "system",
            "req/s",
            " ratio",
            "cpu us",
            "best",
            "+-%",
            " ratio",
            "p50 us",
            "p99",
            "p99.9",
            " p99 ratio",
            "RSS",
            "alien",
            "turns"
        );
        for system in systems
            .iter()
            .filter(|system| self.turns.contains_key(*system))
        {
            self.print_row(system, first);
        }
        println!();
    }

    fn print_row(&self, system: &str, first: &str) {
        let of = |figure: Figure| self.figures(system, figure);
        let spread =
            |[median, least, most]: [f64; 3]| format!(" {median:.2} ({least:.2}-{most:.2})");
        let cpu = of(|turn| turn.cpu);
        let turns = self.turns.get(system).map_or(0, Vec::len);
        if cpu.is_empty() {
            println!("{system:<12}no turn of {turns} without errors");
            return;
        }
        println!(
            "{system:<12}{:>8.0} {:<18}{:>8.1} {:>7.1} {:>5.0} {:<18}{:>8.0}{:>8.0}{:>8.0} {:<12.2}{:>7.1}{:>6.0}%{:>6}",
            median(&of(|turn| turn.per_second)),
            spread(self.ratios(system, first, |turn| turn.per_second)),
            median(&cpu),
            least(&cpu),
            (most(&cpu) - least(&cpu)) / median(&cpu) * 100.0,
            spread(self.ratios(system, first, |turn| turn.cpu)),
            median(&of(|turn| turn.tally.p50.into())),
            median(&of(|turn| turn.tally.p99.into())),
            median(&of(|turn| turn.tally.p999.into())),
            self.ratios(system, first, |turn| turn.tally.p99.into())[0],
            median(&of(rss_mib)),
            median(&of(|turn| turn.alien * 100.0)),
            format!("{}/{turns}", cpu.len()),
        );
    }
}

#[allow(clippy::cast_precision_loss, reason = "KiB")]
fn rss_mib(turn: &Turn) -> f64 {
    turn.rss_kib as f64 / 1024.0
}

/// Writes the report to a file as JSON.
pub(crate) fn write(path: &Path, report: &Report) -> Outcome {
    let text = serde_json::to_string_pretty(report).map_err(|error| error.to_string())?;
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}
