//! Command line: parses arguments, sets the log up and runs the command.
//!
//! Exit status: 0 success, 1 failure while running, 2 bad usage, 78 bad configuration; `status` has
//! one more of its own. Each command has a file; the service is built in `app`.

mod admin_client;
mod check;
mod demo;
mod doctor;
mod health;
mod log;
mod man;
mod reload;
mod sandbox;
mod serve;
mod status;
mod token;

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{CommandFactory as _, Parser, Subcommand};
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::{admin_client::AdminArguments, log::LogAtExit};
use crate::{
    app::Loader,
    base::AccountName,
    config::{self, Config, ProcessEnvironment},
    net::address::ListenAddr,
    telemetry::{format::Format, logging, output::Output},
};

/// A reverse proxy that gives WeChat's server API its access_token.
///
/// Internal services call it without credentials; it adds the cached token, notices when WeChat
/// refuses it, fetches a new one once for everybody, and sends the request once more.
#[derive(Debug, Parser)]
#[command(name = "wxgate", version = env!("WXGATE_VERSION"), max_term_width = 100)]
pub(crate) struct Cli {
    /// Format of log lines
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text", value_parser = ["text", "json"], env = "WXGATE_LOG_FORMAT")]
    log_format: String,
    #[command(subcommand)]
    command: CliCommand,
}

#[derive(Debug, Subcommand)]
enum CliCommand {
    /// Run the proxy
    ///
    /// Without --config, config/wxgate.toml is read if it exists; with no file at all, WXGATE_APPID
    /// and WXGATE_SECRET name one account and everything else has its default.
    Serve(ConfigFile),
    /// Read the configuration and print every problem with its place
    Check {
        #[command(flatten)]
        file: ConfigFile,
        /// Also look at everything that calls need: for each account DNS, egress proxy, TCP, TLS,
        /// clock, a token and a harmless call with it; the store; the listeners
        ///
        /// Exit status 1 if something is broken. Harmless beside a running wxgate.
        #[arg(long)]
        live: bool,
        /// With --live: fetch a token for accounts with token = "classic" too, which ends the token
        /// that a running wxgate has
        #[arg(long, requires = "live")]
        fetch: bool,
    },
    /// Try wxgate on this machine: a fake WeChat, the proxy and a few calls, no account and no
    /// internet needed
    Demo {
        /// End after the sample calls; exit status 0 only if all went well
        #[arg(long)]
        once: bool,
    },
    /// Run the fake WeChat alone, to test your own services with it
    Sandbox(sandbox::Arguments),
    /// Ask a running wxgate how its accounts are
    ///
    /// Exit status: 0 all are well, 1 an account needs attention, 3 no account has a usable token, or
    /// no wxgate answers. Needs the admin key only, no AppSecret.
    Status(AdminArguments),
    /// Ask a running wxgate how an account's token is
    ///
    /// Needs the admin key only, no AppSecret; the token itself is never shown.
    Token {
        /// Name of the account
        account: String,
        /// Have a new token fetched
        #[arg(long)]
        refresh: bool,
        #[command(flatten)]
        admin: AdminArguments,
    },
    /// Have a running wxgate load its configuration again
    ///
    /// A bad configuration changes nothing; its problems are printed.
    Reload(AdminArguments),
    /// Look once whether a wxgate runs, for images and units
    ///
    /// Asks /livez of the admin listener. Exit status 0 if it is fine, else 1. Needs no key.
    Health {
        /// Ask /readyz instead: whether it should get traffic
        #[arg(long)]
        ready: bool,
        #[command(flatten)]
        admin: AdminArguments,
    },
    /// Print the JSON Schema of the configuration file
    Schema,
    /// Print shell completions
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual pages, or write one per command into a folder
    Man {
        /// Folder for wxgate.1, wxgate-serve.1 and so on
        #[arg(value_name = "FOLDER")]
        folder: Option<PathBuf>,
    },
}

#[derive(Debug, clap::Args)]
struct ConfigFile {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Failure of a command, with the text for standard error. The variant decides the exit status.
#[derive(Debug)]
pub(crate) enum CommandError {
    Running(String),
    Usage(String),
    Config(String),
    /// With an exit status of the command's own.
    Exit {
        message: String,
        status: u8,
    },
}

/// Exit status for a bad configuration (`EX_CONFIG` of sysexits.h).
const EXIT_CONFIG: u8 = 78;

impl Cli {
    fn format(&self) -> Format {
        if self.log_format == "json" {
            Format::Json
        } else {
            Format::Text
        }
    }
}

impl CliCommand {
    /// True for commands that run until a signal, possibly under a supervisor.
    fn is_service(&self) -> bool {
        matches!(self, Self::Serve(_) | Self::Demo { .. } | Self::Sandbox(_))
    }
}

impl From<io::Error> for CommandError {
    fn from(error: io::Error) -> Self {
        Self::Running(error.to_string())
    }
}

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let log = match LogAtExit::start(&cli) {
        Ok(log) => log,
        Err(error) => {
            let _ = writeln!(io::stderr(), "the log cannot be started: {error}");
            return ExitCode::FAILURE;
        }
    };
    log.install_panic_hook();
    match run(cli, &log.output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let (message, status) = match failure {
                CommandError::Running(message) => (message, 1),
                CommandError::Usage(message) => (message, 2),
                CommandError::Config(message) => (message, EXIT_CONFIG),
                CommandError::Exit { message, status } => (message, status),
            };
            // If standard error is closed, the exit status alone reports the failure.
            log.output.write_lines(format!("{message}\n").as_bytes());
            ExitCode::from(status)
        }
    }
}

fn run(cli: Cli, output: &Output) -> Result<(), CommandError> {
    let format = cli.format();
    let log = |default: &str| {
        // The default comes first: a level by itself in WXGATE_LOG overrides it, and a directive
        // for one module leaves it in force for the others.
        let wanted = std::env::var("WXGATE_LOG")
            .ok()
            .filter(|text| !text.is_empty());
        let directives = wanted.map_or_else(
            || default.to_owned(),
            |wanted| format!("{default},{wanted}"),
        );
        logging::init(format, Some(&directives), output.clone()).map_err(CommandError::Usage)
    };
    match cli.command {
        CliCommand::Serve(file) => {
            log("info")?;
            serve::run(&file, format, output)
        }
        CliCommand::Check { file, live, fetch } => {
            // Of what fails, the doctor speaks itself.
            log(if live { "off" } else { "warn" })?;
            check::run(&file.load()?, live.then_some(doctor::Options { fetch }))
        }
        CliCommand::Demo { once } => {
            log("error")?;
            demo::run(once)
        }
        CliCommand::Sandbox(arguments) => {
            log("info")?;
            sandbox::run(arguments)
        }
        CliCommand::Status(admin) => {
            log("warn")?;
            status::run(&admin)
        }
        CliCommand::Token {
            account,
            refresh,
            admin,
        } => {
            log("warn")?;
            let Some(account) = AccountName::new(&account) else {
                return Err(CommandError::Usage(format!(
                    "{account:?} is not the name of an account"
                )));
            };
            token::run(&admin, &account, refresh)
        }
        CliCommand::Reload(admin) => {
            log("warn")?;
            reload::run(&admin)
        }
        CliCommand::Health { ready, admin } => {
            log("warn")?;
            health::run(&admin, ready)
        }
        CliCommand::Schema => print(config::schema().as_bytes()),
        CliCommand::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "wxgate", &mut script);
            print(&script)
        }
        CliCommand::Man { folder } => man::run(folder.as_deref()),
    }
}

impl ConfigFile {
    fn load(&self) -> Result<Config, CommandError> {
        self.loader()?().map_err(|problems| CommandError::Config(problems.to_string()))
    }

    /// Name of the file that is read, for messages.
    fn shown(&self) -> String {
        match &self.config {
            Some(file) => file.display().to_string(),
            None if Path::new(config::DEFAULT_FILE).exists() => config::DEFAULT_FILE.to_owned(),
            None => "none".to_owned(),
        }
    }

    /// Returns a function that loads the configuration. If the default file exists now, the
    /// function requires it from then on, so that a reload never falls back to the environment
    /// alone.
    fn loader(&self) -> Result<Loader, CommandError> {
        let here = std::env::current_dir()?;
        let default = || {
            here.join(config::DEFAULT_FILE)
                .exists()
                .then(|| PathBuf::from(config::DEFAULT_FILE))
        };
        let file = self.config.clone().or_else(default);
        Ok(Box::new(move || {
            config::load(file.as_deref(), &here, &ProcessEnvironment)
        }))
    }
}

/// Writes to standard output. A closed pipe (`| head`) is no failure.
pub(crate) fn print(text: &[u8]) -> Result<(), CommandError> {
    match io::stdout().lock().write_all(text) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

/// Builds the runtime for all work besides requests.
pub(crate) fn background_runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        // Refreshes and the admin listener need little; the cores are for the workers.
        .worker_threads(2)
        .thread_name("wxgate-bg")
        .enable_all()
        .build()
}

/// Handlers of SIGTERM and SIGINT. Signals are recorded from the construction on.
pub(crate) struct StopSignals {
    term: Signal,
    int: Signal,
}

impl StopSignals {
    /// Installs the handlers.
    ///
    /// # Errors
    /// If the system refuses.
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next signal that was not reported yet.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

/// Reads an argument of the form `host:port` or `unix:/path`.
pub(crate) fn listen_address(text: &str) -> Result<ListenAddr, String> {
    text.parse().map_err(|error: &str| error.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
