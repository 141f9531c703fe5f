//! Configuration: from the file and the environment to the settings of every module.
//!
//! `tree` holds the values with their origins, `raw` the keys of the file and their schema,
//! `resolve` checks them and builds the settings. All problems are reported together, each with its
//! key and line. The modules below this one do not know the file; this module writes, binds and
//! dials nothing.

mod admin_access;
mod environment;
mod leaf;
mod problem;
mod raw;
mod read;
mod resolve;
mod schema;
mod secret;
mod tree;

use std::{
    io::{self, Read as _},
    path::Path,
    sync::Arc,
};

pub(crate) use admin_access::admin_access;
pub use environment::{Environment, ProcessEnvironment};
pub use problem::{Problem, Problems, ValueOrigin};
pub use schema::schema;

use crate::{
    admin, proxy,
    token::{self, AccountSettings, store::StoreSettings},
};
use problem::Report;
use read::{FromNode as _, TreeReader};
use tree::{Node, TableEntry, Value};

/// Whole configuration, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// `[server]`, `[upstream]`, `[replay]` and `default_account`.
    pub proxy: proxy::settings::ProxySettings,
    /// `[admin]`.
    pub admin: admin::settings::AdminSettings,
    /// `[token]`.
    pub token: token::TokenSettings,
    /// `[store]`.
    pub store: StoreSettings,
    /// Every `[[account]]`, at least one, in the order of the file.
    pub accounts: Vec<AccountSettings>,
    /// Warnings, in the order of the file.
    pub warnings: Vec<Problem>,
}

/// File that is used when none is named, if it exists; relative to the current directory.
pub const DEFAULT_FILE: &str = "config/wxgate.toml";

/// Size limit of the file, enough for about 500,000 accounts. A longer file is a device or a log
/// named by mistake.
const MAX_FILE: u64 = 64 << 20;
/// Warning of `check` alone. Every first start would have it, so the log of a start leaves it out.
const PLAIN_TOKENS: &str = "warning: store.encryption_key: not set, so that tokens stand in the \
    store in plain text, for whoever can read it; `openssl rand -base64 32` makes a key";

/// Reads the configuration from `path`. Without a path, reads [`DEFAULT_FILE`] below `current_dir`
/// if that file exists, and else the environment alone.
///
/// # Errors
/// All problems of the configuration.
pub fn load(
    path: Option<&Path>,
    current_dir: &Path,
    environment: &dyn Environment,
) -> Result<Config, Problems> {
    let file = path.unwrap_or(Path::new(DEFAULT_FILE));
    let place = current_dir.join(file);
    match read_file(&place) {
        Ok(text) => {
            let base_dir = place.parent().unwrap_or(current_dir);
            parse(&text, base_dir, &file.display().to_string(), environment)
        }
        Err(error) if path.is_none() && error.kind() == io::ErrorKind::NotFound => {
            without_file(current_dir, environment)
        }
        Err(error) => Err(Problems::one(file, format!("cannot be read: {error}"))),
    }
}

/// Reads a configuration from text. Relative paths begin at `base_dir`; problems call the text
/// `file_name`.
///
/// # Errors
/// All problems of the configuration.
pub fn parse(
    text: &str,
    base_dir: &Path,
    file_name: &str,
    environment: &dyn Environment,
) -> Result<Config, Problems> {
    let name = Arc::from(file_name);
    let mut report = Report::new(ValueOrigin::File {
        name: Arc::clone(&name),
        line: None,
    });
    let Some(root) = Node::from_file(text, &name, &mut report) else {
        return Err(Problems::from(report));
    };
    build(root, base_dir, environment, report)
}

/// Returns the output of `wxgate check` for a configuration without problems: one line per warning,
/// then a summary, without a newline at the end.
pub fn check_text(config: &Config) -> String {
    let accounts: Vec<&str> = config
        .accounts
        .iter()
        .map(|account| account.name.as_str())
        .collect();
    let listen: Vec<String> = config
        .proxy
        .listen
        .iter()
        .map(ToString::to_string)
        .collect();
    let clients: Vec<&str> = config
        .proxy
        .clients
        .iter()
        .map(|client| client.name.as_str())
        .collect();
    let clients = match clients.len() {
        0 => String::new(),
        count => format!("; {count} client(s): {}", clients.join(", ")),
    };
    let mut lines: Vec<String> = config
        .warnings
        .iter()
        .map(|warning| format!("warning: {warning}"))
        .collect();
    if config.store.persists_plain_tokens() {
        lines.push(PLAIN_TOKENS.to_owned());
    }
    lines.push(format!(
        "the configuration is fine: {} account(s): {}{clients}; listening on {}; admin on {}",
        accounts.len(),
        accounts.join(", "),
        listen.join(", "),
        config.admin.listen,
    ));
    lines.join("\n")
}

fn build(
    mut root: Node,
    base_dir: &Path,
    environment: &dyn Environment,
    mut report: Report,
) -> Result<Config, Problems> {
    environment::overlay(&mut root, environment, &mut report);
    environment::warn_of_single_underscores(&root, environment, &mut report);
    let whole = report.whole();
    let raw = raw::File::from_node(
        &root,
        &whole,
        &mut TreeReader {
            report: &mut report,
            base_dir,
        },
    );
    // After a problem with the root too: the environment may have more of them.
    let raw = raw.unwrap_or_default();
    let settings = resolve::resolve(
        raw,
        &mut secret::ConfigResolver {
            report: &mut report,
            environment,
            base_dir,
        },
    );
    let warnings = report.finish()?;
    Ok(Config {
        warnings,
        ..settings
    })
}

/// Builds the configuration of a start without a file: one account from two variables, which belong
/// to no key of the file.
fn without_file(current_dir: &Path, environment: &dyn Environment) -> Result<Config, Problems> {
    const VARIABLES: [&str; 2] = ["WXGATE_APPID", "WXGATE_SECRET"];
    let mut report = Report::new(ValueOrigin::File {
        name: Arc::from("environment"),
        line: None,
    });
    let missing: Vec<&str> = VARIABLES
        .into_iter()
        .filter(|name| environment.get(name).is_none_or(|value| value.is_empty()))
        .collect();
    let mut entries = Vec::new();
    if missing.is_empty() {
        entries.push(entry(
            "account",
            Value::Array(vec![only_account(VARIABLES, environment)]),
            VARIABLES[0],
        ));
    } else {
        let verb = if missing.len() == 1 { "is" } else { "are" };
        let message = format!(
            "{} {verb} not set; without a configuration file, WXGATE_APPID and WXGATE_SECRET give the one account. Set both, \
             or write {DEFAULT_FILE}, or have a look around with `wxgate demo`",
            missing.join(" and "),
        );
        report.problem(&report.whole().child("account"), message);
    }
    let origin = report.whole().origin;
    build(
        Node {
            value: Value::Table(entries),
            origin,
        },
        current_dir,
        environment,
        report,
    )
}

fn only_account([appid, secret]: [&str; 2], environment: &dyn Environment) -> Node {
    let table = vec![
        entry("name", Value::String("default".to_owned()), appid),
        entry(
            "appid",
            Value::Text(environment.get(appid).unwrap_or_default()),
            appid,
        ),
        entry(
            "secret",
            Value::Table(vec![entry("env", Value::String(secret.to_owned()), secret)]),
            secret,
        ),
    ];
    Node {
        value: Value::Table(table),
        origin: ValueOrigin::Variable(Arc::from(appid)),
    }
}

fn entry(key: &str, value: Value, variable: &str) -> TableEntry {
    let origin = ValueOrigin::Variable(Arc::from(variable));
    TableEntry {
        key: key.to_owned(),
        origin: origin.clone(),
        node: Node { value, origin },
    }
}

fn read_file(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?
        .take(MAX_FILE + 1)
        .read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(io::Error::other(
            "it is longer than 64MiB, which no configuration is: name the right file",
        ));
    }
    Ok(text)
}
