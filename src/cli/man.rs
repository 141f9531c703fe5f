//! `wxgate man`: manual pages, one for the program and one for each command.

use std::{fs, io, path::Path};

use clap::{Command, CommandFactory as _};
use clap_mangen::Man;

use super::{Cli, CommandError, print};

/// Writes `wxgate.1`, `wxgate-serve.1` and so on into `folder`, or all pages, one behind the other,
/// to standard output.
pub(super) fn run(folder: Option<&Path>) -> Result<(), CommandError> {
    let mut all = Vec::new();
    for (name, page) in pages()? {
        match folder {
            Some(folder) => {
                fs::create_dir_all(folder)?;
                let path = folder.join(format!("{name}.1"));
                fs::write(&path, page).map_err(|error| {
                    CommandError::Running(format!("cannot write {}: {error}", path.display()))
                })?;
            }
            None => all.extend(page),
        }
    }
    print(&all)
}

fn pages() -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut whole = Cli::command();
    // Hands the global arguments down to the commands.
    whole.build();
    let mut pages = vec![page("wxgate".to_owned(), whole.clone())?];
    for command in whole.get_subcommands() {
        if command.get_name() != "help" {
            let name = format!("wxgate-{}", command.get_name());
            pages.push(page(name, command.clone())?);
        }
    }
    Ok(pages)
}

fn page(name: String, command: Command) -> io::Result<(String, Vec<u8>)> {
    let mut page = Vec::new();
    Man::new(command).title(name.clone()).render(&mut page)?;
    Ok((name, page))
}
