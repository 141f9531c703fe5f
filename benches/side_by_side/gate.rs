//! Check of instructions and system calls per request against `limits.toml`, for `scripts/test`:
//! over a single connection, and instructions also with many requests in flight, which cost memory
//! as well.
//!
//! Times have no limits, since they depend on the machine. A tool that is missing or does not work
//! is reported, and is no failure.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{
    Outcome,
    count::{Tool, per_request},
    growth,
    systems::System,
    world::World,
};

/// Content of `limits.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Limits {
    /// Share by which a figure may be above its limit.
    slack: f64,
    wxgate: Limit,
    wxgate_key: Limit,
    wxgate_in_flight: Crowd,
}

/// Limit per GET, with this number of requests in flight to a slow upstream.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Crowd {
    requests: usize,
    instructions: f64,
}

/// Limits per GET.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Limit {
    instructions: f64,
    system_calls: f64,
}

const FILE: &str = "benches/side_by_side/limits.toml";

/// Counts, prints, and fails if a figure is above its limit.
pub(crate) fn run(product: Option<PathBuf>) -> Outcome {
    let text = read(FILE)?;
    let limits: Limits = toml::from_str(&text).map_err(|error| format!("{FILE}: {error}"))?;
    let tools: Vec<Tool> = [Tool::Callgrind, Tool::Strace]
        .into_iter()
        .filter(|tool| works(*tool))
        .collect();
    if tools.is_empty() {
        return Ok(());
    }
    let world = World::new(product)?;
    let mut findings = Findings {
        slack: limits.slack,
        grown: Vec::new(),
    };
    for tool in &tools {
        let what = format!("{} per GET", tool.what());
        // The bare proxy is a part of this program, so its figure is meaningless in a debug build.
        let bare = if cfg!(debug_assertions) {
            None
        } else {
            Some(per_request(&world, System::Bare, *tool)?)
        };
        if let Some(bare) = bare {
            println!("{:<12}{bare:>12.2} {what}, for comparison", "bare");
        }
        for (system, limit) in [
            (System::Wxgate, &limits.wxgate),
            (System::WxgateKey, &limits.wxgate_key),
        ] {
            let figure = per_request(&world, system, *tool)?;
            findings.judge(system.name(), &what, figure, tool.limit(limit));
            if let Some(bare) = bare {
                println!("    {:.2} times the bare proxy", figure / bare);
            }
        }
    }
    if tools.contains(&Tool::Callgrind) {
        let crowd = &limits.wxgate_in_flight;
        let figure = growth::with_in_flight(&world, crowd.requests)?;
        let what = format!("instructions per GET with {} in flight", crowd.requests);
        findings.judge("wxgate", &what, figure, crowd.instructions);
    }
    findings.told()
}

/// Comparisons so far.
struct Findings {
    slack: f64,
    grown: Vec<String>,
}

impl Findings {
    fn judge(&mut self, name: &str, what: &str, figure: f64, limit: f64) {
        let share = figure / limit;
        println!("{name:<12}{figure:>12.2} {what}: {share:.3} of the limit {limit}");
        if share > 1.0 + self.slack {
            self.grown.push(format!(
                "{name} takes {figure:.2} {what}, and {limit} was the limit"
            ));
        } else if share < 1.0 - self.slack {
            println!(
                "    LOWER THE LIMIT in {FILE} to {figure:.2}: it would let this be lost again unnoticed"
            );
        }
    }

    fn told(self) -> Outcome {
        if self.grown.is_empty() {
            return Ok(());
        }
        Err(format!(
            "{}.\nFind out why (valgrind --tool=callgrind, strace -c), or raise the limit in {FILE} \
             and say in the commit what it buys.",
            self.grown.join("\n")
        ))
    }
}

/// True if the tool works; prints the reason otherwise.
fn works(tool: Tool) -> bool {
    let reason = match tool {
        // Limits have been measured on x86-64 only.
        Tool::Callgrind if !cfg!(target_arch = "x86_64") => {
            Some("the limits are those of x86-64".to_owned())
        }
        Tool::Callgrind | Tool::Strace => tool.missing(),
    };
    if let Some(reason) = &reason {
        println!("NOT CHECKED: {} per request: {reason}", tool.what());
    }
    reason.is_none()
}

fn read(name: &str) -> Outcome<String> {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name))
        .map_err(|error| format!("{name}: {error}"))
}

impl Tool {
    fn what(self) -> &'static str {
        match self {
            Self::Callgrind => "instructions",
            Self::Strace => "system calls",
        }
    }

    fn limit(self, limit: &Limit) -> f64 {
        match self {
            Self::Callgrind => limit.instructions,
            Self::Strace => limit.system_calls,
        }
    }
}
