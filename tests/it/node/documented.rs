//! Commands and configurations that pages show, run as they stand there.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::TempDir;

use crate::support::program::{Ended, Program, address, finish, wxgate};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Variables that the configurations of the recipes name, with values of the right form.
const SECRETS: [(&str, &str); 7] = [
    ("SHOP_SECRET", "00000000000000000000000000000000"),
    ("NEWS_SECRET", "11111111111111111111111111111111"),
    ("OA_SECRET", "2222222222222222222222222222222222222222222"),
    ("CRM_KEY", "0123456789abcdef01"),
    ("HR_KEY", "0123456789abcdef02"),
    ("WEB_KEY", "0123456789abcdef03"),
    ("REDIS_URL", "redis://127.0.0.1:6379/0"),
];

/// Returns the blocks of code of a page up to the line that begins with `end`: language and text.
fn blocks(page: &str, end: &str) -> Vec<(String, String)> {
    let text = fs::read_to_string(Path::new(ROOT).join(page)).expect(page);
    let (mut blocks, mut open) = (Vec::new(), None);
    for line in text.lines() {
        if !end.is_empty() && line.starts_with(end) {
            break;
        }
        match (line.trim_start().strip_prefix("```"), open.as_mut()) {
            (Some(language), None) => open = Some((language.to_owned(), String::new())),
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, Some((_, text))) => {
                text.push_str(line);
                text.push('\n');
            }
            (None, None) => {}
        }
    }
    blocks
}

/// Reader of the quick start, who types what the page says.
struct Reader {
    folder: TempDir,
    /// What the page had exported.
    variables: Vec<(String, String)>,
    /// Programs that run in terminals of their own.
    running: Vec<Program>,
    /// Addresses on the page, and where the programs listen here.
    addresses: Vec<(&'static str, String)>,
}

impl Reader {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        symlink(env!("CARGO_BIN_EXE_wxgate"), folder.path().join("wxgate")).expect("a link");
        // An answer with a status of 400 or more fails the command.
        let settings = "fail\nsilent\nshow-error\nmax-time = 60\n";
        fs::write(folder.path().join(".curlrc"), settings).expect("written");
        Self {
            folder,
            variables: Vec::new(),
            running: Vec::new(),
            addresses: Vec::new(),
        }
    }

    /// The text with the addresses of this run in the place of those on the page.
    fn here(&self, text: &str) -> String {
        self.addresses
            .iter()
            .fold(text.to_owned(), |text, (page, here)| {
                text.replace(page, here)
            })
    }

    fn at(&mut self, page: &'static str, here: String) {
        self.addresses.retain(|(known, _)| *known != page);
        self.addresses.push((page, here));
    }

    fn environment(&self) -> Vec<(String, String)> {
        let mut environment = self.variables.clone();
        for listener in ["WXGATE_SERVER__LISTEN", "WXGATE_ADMIN__LISTEN"] {
            environment.push((listener.to_owned(), "127.0.0.1:0".to_owned()));
        }
        environment
    }

    /// Starts a program that stays up.
    fn start(&mut self, line: &str) {
        let arguments = line
            .replace("127.0.0.1:9090", "127.0.0.1:0")
            .split_whitespace()
            .skip(1)
            .map(str::to_owned)
            .collect::<Vec<_>>();
        let mut command = wxgate(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        command
            .current_dir(self.folder.path())
            .envs(self.environment());
        let program = Program::start(&mut command);
        match arguments.first().map(String::as_str) {
            Some("demo") => {
                let proxy = address(&program.printed("wxgate proxy"));
                program.printed("Ctrl-C ends it");
                self.at("127.0.0.1:8080", proxy.to_string());
            }
            Some("sandbox") => {
                // The page has the reader end the demo first.
                self.running.clear();
                let sandbox = address(&program.printed("listening on"));
                self.at("127.0.0.1:9090", sandbox.to_string());
            }
            _ => {
                self.at("127.0.0.1:8080", program.proxy().to_string());
                self.at("127.0.0.1:8081", program.admin().to_string());
            }
        }
        self.running.push(program);
    }

    /// Runs a command to its end.
    fn run(&self, line: &str) -> Ended {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut command = Command::new("sh");
        command
            .args(["-c", &self.here(line)])
            .current_dir(self.folder.path())
            .env_clear()
            .env("PATH", path)
            .env("HOME", self.folder.path())
            .envs(self.environment())
            .stdin(Stdio::null());
        let ended = finish(command);
        assert_eq!(ended.status, Some(0), "{line}: {ended:?}");
        ended
    }

    /// Does what a line says, and returns what a command printed.
    fn follow(&mut self, line: &str) -> Option<String> {
        let stays_up = ["demo", "sandbox", "serve"]
            .iter()
            .any(|name| line.starts_with(&format!("./wxgate {name}")));
        if let Some((name, value)) = line
            .strip_prefix("export ")
            .and_then(|set| set.split_once('='))
        {
            self.variables.push((name.to_owned(), value.to_owned()));
            None
        } else if stays_up {
            self.start(line);
            None
        } else {
            Some(self.run(line).stdout)
        }
    }
}

#[test]
fn the_commands_of_the_quick_start_do_what_it_says() {
    for page in ["docs/quick-start.md", "docs/zh/quick-start.md"] {
        let mut reader = Reader::new();
        let (mut commands, mut attempts) = (0, Vec::new());
        // The third section needs an account at WeChat.
        for (language, text) in blocks(page, "## 3.") {
            match language.as_str() {
                "toml" => {
                    let file = reader.folder.path().join("wxgate.toml");
                    fs::write(file, reader.here(&text)).expect("written");
                }
                "sh" => {
                    for line in text.lines() {
                        commands += 1;
                        let printed = reader.follow(line).unwrap_or_default();
                        attempts.extend(
                            printed
                                .lines()
                                .filter_map(|line| line.strip_prefix("x-wxgate-attempts: "))
                                .map(|value| value.trim().to_owned()),
                        );
                    }
                }
                _ => {}
            }
        }
        assert_eq!(commands, 12, "{page}");
        assert_eq!(attempts, ["1", "2"], "{page}: the token was renewed");
    }
}

#[test]
fn the_configurations_of_the_recipes_are_accepted() {
    for page in ["docs/recipes.md", "docs/zh/recipes.md"] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file: PathBuf = folder.path().join("wxgate.toml");
        let mut count = 0;
        for (language, text) in blocks(page, "") {
            if language != "toml" {
                continue;
            }
            count += 1;
            fs::write(&file, &text).expect("written");
            let mut command = wxgate(&["check", "--config"]);
            command.arg(&file).envs(SECRETS);
            let ended = finish(command);
            assert_eq!(ended.status, Some(0), "{page}:\n{text}\n{ended:?}");
        }
        assert!(count >= 8, "{page}: only {count} configurations");
    }
}
