//! `wxgate check`: checks the configuration and, with `--live`, all that it needs to work.
//!
//! Without `--live` nothing leaves the machine.

use std::fmt::Write as _;

use super::{CommandError, doctor, print};
use crate::{
    app::{self, NameLookup, descriptors},
    config::{self, Config},
};

/// Checks a configuration; with `live` the doctor looks at the rest.
pub(super) fn run(config: &Config, live: Option<doctor::Options>) -> Result<(), CommandError> {
    let names = if live.is_some() {
        NameLookup::Resolve
    } else {
        NameLookup::Skip
    };
    app::check_loops(config, names).map_err(|error| CommandError::Config(error.to_string()))?;
    let mut report = String::new();
    if let Some(shortage) = descriptors::shortage(&config.proxy) {
        // Writing to a string cannot fail.
        let _ = writeln!(report, "warning: {shortage}");
    }
    report.push_str(&config::check_text(config));
    report.push('\n');
    let broken = match live {
        Some(options) => doctor::run(config, options, &mut report)?,
        None => 0,
    };
    print(report.as_bytes())?;
    match broken {
        0 => Ok(()),
        1 => Err(CommandError::Running("1 thing is broken".to_owned())),
        count => Err(CommandError::Running(format!("{count} things are broken"))),
    }
}
