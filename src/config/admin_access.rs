//! `[admin]` alone, for commands that ask a running wxgate: neither AppSecrets nor any other part of
//! the file is looked at.

use std::{io, path::Path, sync::Arc};

use super::{
    DEFAULT_FILE, Environment, Problems, ValueOrigin, environment,
    problem::Report,
    raw,
    read::{FromNode as _, TreeReader},
    read_file,
    secret::ConfigResolver,
    tree::{Node, Value},
};
use crate::{admin::settings::AdminSettings, base::Secret, net::address::ListenAddr};

/// Address and key of the admin listener of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AdminAccess {
    pub(crate) listen: ListenAddr,
    /// `None` without a key, or if none was asked for.
    pub(crate) key: Option<Secret>,
}

/// Reads `admin.listen`, and `admin.key` if `with_key`, from `path`, from [`DEFAULT_FILE`] if it
/// exists, and from the environment.
///
/// # Errors
/// The problems of these keys, or of the file as a whole.
pub(crate) fn admin_access(
    path: Option<&Path>,
    current_dir: &Path,
    environment: &dyn Environment,
    with_key: bool,
) -> Result<AdminAccess, Problems> {
    let file = path.unwrap_or(Path::new(DEFAULT_FILE));
    let place = current_dir.join(file);
    let text = match read_file(&place) {
        Ok(text) => text,
        Err(error) if path.is_none() && error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(Problems::one(file, format!("cannot be read: {error}"))),
    };
    let name: Arc<str> = file.display().to_string().into();
    let mut report = Report::new(ValueOrigin::File {
        name: Arc::clone(&name),
        line: None,
    });
    let Some(mut root) = Node::from_file(&text, &name, &mut report) else {
        return Err(Problems::from(report));
    };
    // Mistakes elsewhere are no reason not to ask a wxgate that runs with what it read before.
    let mut ignored = Report::new(report.whole().origin);
    environment::overlay(&mut root, environment, &mut ignored);
    if let Value::Table(entries) = &mut root.value {
        entries.retain(|entry| entry.key == "admin");
    }
    let whole = report.whole();
    let base_dir = place.parent().unwrap_or(current_dir);
    let mut reader = TreeReader {
        report: &mut report,
        base_dir,
    };
    let admin = raw::File::from_node(&root, &whole, &mut reader)
        .and_then(|file| file.admin)
        .map(|at| at.value)
        .unwrap_or_default();
    let mut resolver = ConfigResolver {
        report: &mut report,
        environment,
        base_dir,
    };
    let key = admin
        .key
        .filter(|_| with_key)
        .and_then(|form| resolver.secret(&form));
    report.finish()?;
    Ok(AdminAccess {
        listen: admin
            .listen
            .map_or_else(|| AdminSettings::default().listen, |at| at.value),
        key,
    })
}
