//! Holds the floors of the house: who may import whom, no files in a circle, which stages of the
//! proxy know each other, and which files may reveal a secret. The tables below are the rules; ARCHITECTURE.md gives the
//! reasons.
//!
//! The source is read as text, so the test sees what is written, not what macros make of it.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "here a panic is the report, in helpers too"
)]

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use scan::{Import, Scan, scan};

mod circles;
mod scan;

/// Each module and what it may import, lowest floor first.
const FLOORS: &[(&str, &[&str])] = &[
    ("base", &[]),
    ("telemetry", &["base"]),
    ("wechat", &["base"]),
    ("net", &["base"]),
    ("token", &["base", "telemetry", "wechat", "net"]),
    // The second, independent statement of WeChat's protocol: it must not share a constant with the
    // first.
    ("sandbox", &["base", "net"]),
    ("service", &["base", "telemetry", "wechat", "net", "token"]),
    (
        "proxy",
        &["base", "telemetry", "wechat", "net", "token", "service"],
    ),
    (
        "admin",
        &["base", "telemetry", "wechat", "net", "token", "service"],
    ),
    (
        "config",
        &[
            "base",
            "telemetry",
            "wechat",
            "net",
            "token",
            "service",
            "proxy",
            "admin",
        ],
    ),
    (
        "app",
        &[
            "base",
            "telemetry",
            "wechat",
            "net",
            "token",
            "service",
            "proxy",
            "admin",
            "config",
        ],
    ),
    (
        "cli",
        &[
            "base",
            "telemetry",
            "wechat",
            "net",
            "token",
            "sandbox",
            "service",
            "proxy",
            "admin",
            "config",
            "app",
        ],
    ),
    // Re-exports for tests and benchmarks, which no module of the product may use.
    (
        "internals",
        &[
            "base",
            "telemetry",
            "wechat",
            "net",
            "token",
            "service",
            "proxy",
        ],
    ),
    ("main", &["base", "config", "app", "cli"]),
];

/// The stages of a request, as files of `proxy`.
const STAGES: &[&str] = &[
    "route",
    "answer",
    "access",
    "body",
    "inject",
    "headers",
    "inspect",
    "retry",
    "upstream",
    "access_log",
];

/// The files of `proxy` that know the order of the stages, or make what several of them use; each of
/// the others may know one stage besides itself.
const CONDUCTORS: &[&str] = &[
    "mod",
    "pipeline",
    "runtime_config",
    "worker",
    "worker_state",
];

/// The files that may give a secret as text, outside their tests.
const REVEALERS: &[&str] = &[
    // Compares in constant time.
    "base/secret.rs",
    // Token and AppSecret into the search for them in answers.
    "base/secret_finder.rs",
    // The admin key, on its way to the admin listener.
    "cli/admin_client.rs",
    // A client's key into its digest.
    "config/resolve/client.rs",
    // An AppSecret, whose form is judged.
    "config/resolve/form.rs",
    // Keys of API signing into their parser.
    "config/resolve/signing.rs",
    // Proxy-Authorization on the way out.
    "net/egress.rs",
    // The token, or the AppSecret of a login code exchange, into the query of one call.
    "proxy/pipeline/api_call.rs",
    // The token into the query of a signed call.
    "proxy/pipeline/signed.rs",
    // The real token or a ticket, to a caller that may have it.
    "service/answer.rs",
    // The ticket into the hash that signs a page.
    "service/jssdk.rs",
    // The AppSecret into the key of phantom tokens.
    "service/phantom.rs",
    // The AppSecret into a token call.
    "token/phantom_keys/mod.rs",
    "token/phantom_keys/record.rs",
    "token/source/classic.rs",
    "token/source/stable.rs",
    "token/source/wecom.rs",
    // The token into a call for a ticket.
    "token/source/ticket.rs",
    // The token into a probe.
    "token/source/endpoint.rs",
    // Address, password and key of another server, the rejected token to another wxgate.
    "token/source/external/http.rs",
    "token/source/external/redis.rs",
    // Address and password of the shared store.
    "token/store/redis/address.rs",
    // The token into the store.
    "token/store/codec.rs",
    // The key of the store into the cipher.
    "token/store/seal.rs",
    // User and password of the database.
    "token/store/sql/address.rs",
    // Percent-encodes a token once, for all calls.
    "token/value.rs",
];

/// The files and folders whose data a single thread owns: a worker, or that of the admin listener.
const LOCAL: &[&str] = &[
    "net/connection/",
    "net/serve.rs",
    "proxy/access/last_key.rs",
    "proxy/access_log.rs",
    "proxy/body.rs",
    "proxy/client_conn.rs",
    "proxy/spool/files.rs",
    "proxy/upstream/",
    "proxy/worker_state.rs",
];

/// The exceptions in [`LOCAL`].
const SHARED_BY_WORKERS: &[&str] = &[
    "proxy/upstream/health.rs",
    // `Wake` demands `Sync`.
    "proxy/upstream/idle_watch.rs",
    "proxy/upstream/origins.rs",
];

/// A file below `src`.
struct File {
    /// Relative to `src`, with `/`.
    name: String,
    /// `["net", "address"]`; empty for `lib.rs`, `["main"]` for `main.rs`.
    module: Vec<String>,
    scan: Scan,
}

impl File {
    fn new(name: &str, source: &str) -> Self {
        let mut module: Vec<String> = name
            .trim_end_matches(".rs")
            .split('/')
            .map(str::to_owned)
            .collect();
        if matches!(module.last().map(String::as_str), Some("mod" | "lib")) {
            module.pop();
        }
        let scan = scan(source, &module, name == "main.rs");
        Self {
            name: name.to_owned(),
            module,
            scan,
        }
    }

    fn floor(&self) -> &str {
        self.module.first().map_or("lib", String::as_str)
    }

    fn says(&self, line: usize, what: &str) -> String {
        format!("src/{}:{line}: {what}", self.name)
    }

    fn written(import: &Import) -> String {
        import
            .path
            .iter()
            .fold(String::from("crate"), |mut text, segment| {
                let _ = write!(text, "::{segment}");
                text
            })
    }
}

fn forbidden_edges(file: &File) -> Vec<String> {
    let allowed = FLOORS
        .iter()
        .find(|(name, _)| *name == file.floor())
        .map(|(_, allowed)| *allowed);
    let Some(allowed) = allowed else {
        let listed = if file.floor() == "lib" {
            Vec::new()
        } else {
            vec![file.says(1, "has no floor in FLOORS")]
        };
        return listed;
    };
    let is_fine = |import: &&Import| {
        import
            .path
            .first()
            .is_some_and(|target| target == file.floor() || allowed.contains(&target.as_str()))
    };
    let problem = |import: &Import| {
        let may = if allowed.is_empty() {
            "nothing".to_owned()
        } else {
            allowed.join(", ")
        };
        file.says(
            import.line,
            &format!(
                "`{}`: {} may import {may}",
                File::written(import),
                file.floor()
            ),
        )
    };
    file.scan
        .imports
        .iter()
        .filter(|import| !is_fine(import))
        .map(problem)
        .collect()
}

fn stages_that_know_too_much(file: &File) -> Option<String> {
    let own = file.module.get(1).map_or("mod", String::as_str);
    if file.floor() != "proxy" || CONDUCTORS.contains(&own) {
        return None;
    }
    let target = |import: &Import| match import.path.as_slice() {
        [floor, stage, ..]
            if floor == "proxy" && stage != own && STAGES.contains(&stage.as_str()) =>
        {
            Some(stage.clone())
        }
        _ => None,
    };
    let known: BTreeSet<String> = file.scan.imports.iter().filter_map(target).collect();
    let names = || {
        known
            .iter()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join(", ")
    };
    (known.len() > 1).then(|| {
        file.says(
            1,
            &format!(
                "imports {}: only the pipeline knows several stages",
                names()
            ),
        )
    })
}

fn unlisted_reveals(file: &File, listed: &[&str]) -> Vec<String> {
    let rule = "reveals a secret: ARCHITECTURE.md lists the places that may reveal a secret";
    let stale = "is listed as revealing a secret and does not: take it off the list";
    match (
        listed.contains(&file.name.as_str()),
        file.scan.reveals.as_slice(),
    ) {
        (true, []) => vec![file.says(1, stale)],
        (true, _) => Vec::new(),
        (false, lines) => lines.iter().map(|line| file.says(*line, rule)).collect(),
    }
}

fn needless_sharing(file: &File) -> Vec<String> {
    let name = file.name.as_str();
    let is_local = LOCAL.iter().any(|local| name.starts_with(local));
    if !is_local || SHARED_BY_WORKERS.contains(&name) {
        return Vec::new();
    }
    let rule = "a lock, an atomic or a task that is `Send`, for data of one thread: use `Cell`, \
                `RefCell` and `spawn_local`";
    file.scan
        .shares
        .iter()
        .map(|line| file.says(*line, rule))
        .collect()
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs")
            && !is_for_tests(&path)
        {
            found.push(path);
        }
    }
}

// What stands in a file of its own instead of a `#[cfg(test)] mod tests { … }`.
fn is_for_tests(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == "tests.rs")
        || path
            .ancestors()
            .skip(1)
            .take(2)
            .any(|folder| folder.ends_with("tests"))
}

fn crate_files() -> Vec<File> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    sources(&root, &mut paths);
    paths.sort();
    let read = |path: &PathBuf| {
        let name = path
            .strip_prefix(&root)
            .unwrap()
            .to_str()
            .unwrap()
            .replace('\\', "/");
        File::new(&name, &fs::read_to_string(path).unwrap())
    };
    paths.iter().map(read).collect()
}

#[track_caller]
fn assert_none(problems: &[String]) {
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

#[test]
fn imports_go_downwards_only() {
    let files = crate_files();
    assert_none(&files.iter().flat_map(forbidden_edges).collect::<Vec<_>>());
    let seen = files.iter().any(|file| {
        file.floor() == "config"
            && file
                .scan
                .imports
                .iter()
                .any(|import| import.path.first().is_some_and(|t| t == "token"))
    });
    assert!(
        seen,
        "the scanner does not even see that config imports token"
    );
}

#[test]
fn only_the_pipeline_knows_several_stages() {
    assert_none(
        &crate_files()
            .iter()
            .filter_map(stages_that_know_too_much)
            .collect::<Vec<_>>(),
    );
}

#[test]
fn secrets_are_revealed_in_listed_files_only() {
    let files = crate_files();
    assert_none(
        &files
            .iter()
            .flat_map(|file| unlisted_reveals(file, REVEALERS))
            .collect::<Vec<_>>(),
    );
    for listed in REVEALERS {
        assert!(
            files.iter().any(|file| file.name == *listed),
            "{listed} is listed and does not exist"
        );
    }
}

#[test]
fn what_one_thread_owns_takes_no_lock() {
    let files = crate_files();
    assert_none(&files.iter().flat_map(needless_sharing).collect::<Vec<_>>());
    for local in LOCAL.iter().chain(SHARED_BY_WORKERS) {
        assert!(
            files.iter().any(|file| file.name.starts_with(local)),
            "{local} is listed and does not exist"
        );
    }
}

#[test]
fn every_kind_of_needless_sharing_is_found() {
    let found = |name, source| needless_sharing(&File::new(name, source)).len();
    for source in [
        "use std::sync::Mutex;",
        "struct Open { count: AtomicU64 }",
        "fn f() { tokio::spawn(async {}); }",
    ] {
        assert_eq!(found("proxy/body.rs", source), 1, "{source}");
        assert_eq!(found("proxy/runtime_config.rs", source), 0, "{source}");
    }
    assert_eq!(
        found("proxy/body.rs", "fn f() { tokio::task::spawn_local(g()); }"),
        0
    );
}

#[test]
fn the_table_has_no_way_up() {
    for (floor, (name, allowed)) in FLOORS.iter().enumerate() {
        for target in *allowed {
            let below = FLOORS[..floor].iter().any(|(lower, _)| lower == target);
            assert!(below, "{name} may import {target}, which is not below it");
        }
    }
}

#[test]
fn a_forbidden_edge_is_found_in_every_spelling() {
    for spelling in [
        "use crate::proxy;",
        "use crate::proxy::settings::Settings;",
        "pub(crate) use crate::proxy::{self};",
        "use crate::{base::Secret, proxy::settings};",
        "use crate::{\n    base::{AccountName as Name, Secret},\n    proxy,\n};",
        "use crate::{base::Secret as S, proxy as p};",
        "use super::super::proxy::settings;",
        "use super::super::{base, proxy};",
        "use super::{super::proxy::settings, listen};",
        "fn f() -> crate::proxy::Answer { todo() }",
        "fn f() { crate :: proxy :: run(\"text\") }",
        "fn f(x: &'static str) -> char { let _ = crate::proxy::f::<'_>(x); '\"' }",
        "macro_rules! m { () => { $crate::proxy::f() } }",
        "fn f() { let a = '\"'; } use crate::proxy; fn g() { let b = '\"'; }",
        "#[cfg(test)] mod tests { fn f() { {} } } use crate::proxy;",
        "#[cfg(test)] use crate::base; use crate::proxy;",
        "/* a /* nested */ comment */ use crate::proxy;",
        "const A: &str = r#\"\"//\"#; use crate::proxy;",
        "const A: &str = \"\\\"\"; use crate::proxy; // \"",
    ] {
        let problems = forbidden_edges(&File::new("net/address.rs", spelling));
        let [problem] = problems.as_slice() else {
            panic!("{spelling}: {problems:?}")
        };
        assert!(problem.contains("`crate::proxy"), "{problem}");
        assert!(problem.ends_with("net may import base"), "{problem}");
    }
}

#[test]
fn a_spelling_that_would_hide_an_edge_is_refused() {
    for spelling in [
        "use crate as other;",
        "use crate::*;",
        "use crate::{self as other};",
        "use super::super::*;",
    ] {
        assert_eq!(
            forbidden_edges(&File::new("net/address.rs", spelling)).len(),
            1,
            "{spelling}"
        );
    }
}

#[test]
fn what_is_no_import_is_no_edge() {
    for spelling in [
        "// use crate::proxy;",
        "/// See [`crate::proxy`].",
        "//! crate::proxy",
        "/* use crate::proxy; */",
        "const A: &str = \"crate::proxy\";",
        "const A: &str = \"a\n // \\\" crate::proxy\";",
        "const A: &[u8] = br##\"\"# crate::proxy\"##;",
        "#[cfg(test)]\nmod tests {\n    use crate::proxy;\n    fn f() { if true {} }\n}",
        "#[cfg(test)]\nuse crate::proxy;",
        "pub(crate) fn f() {} pub(super) fn g() {}",
        "use super::proxy;",
        "use other::crate_proxy::proxy;",
        "use crate::net::proxy; use crate::base::{proxy, Secret};",
    ] {
        assert_none(&forbidden_edges(&File::new("net/address.rs", spelling)));
    }
}

#[test]
fn an_edge_is_named_with_file_line_and_import() {
    let source = "//! A module.\n\nuse crate::{\n    base::Secret,\n    token::{Kind, store::Settings},\n};\n";
    let problems = forbidden_edges(&File::new("wechat/api.rs", source));
    assert_eq!(
        problems,
        [
            "src/wechat/api.rs:5: `crate::token::Kind`: wechat may import base",
            "src/wechat/api.rs:5: `crate::token::store::Settings`: wechat may import base",
        ]
    );
}

#[test]
fn the_sandbox_may_not_look_at_what_is_known_about_wechat() {
    assert_eq!(
        forbidden_edges(&File::new(
            "sandbox/mod.rs",
            "use crate::wechat::codes::STALE;"
        ))
        .len(),
        1
    );
    assert_none(&forbidden_edges(&File::new(
        "sandbox/mod.rs",
        "use crate::{base::Secret, net::drain};",
    )));
}

#[test]
fn the_binary_is_held_too_and_a_module_without_a_floor_is_refused() {
    assert_eq!(
        forbidden_edges(&File::new("main.rs", "fn main() { wxgate::proxy::run() }")).len(),
        1
    );
    assert_none(&forbidden_edges(&File::new(
        "main.rs",
        "fn main() { wxgate::cli::run() }",
    )));
    assert_eq!(forbidden_edges(&File::new("util.rs", "")).len(), 1);
    assert_eq!(
        forbidden_edges(&File::new("base/mod.rs", "use crate::util::f;")).len(),
        1
    );
}

#[test]
fn a_stage_may_know_one_other_stage() {
    let known = |name, source| stages_that_know_too_much(&File::new(name, source)).is_some();
    assert!(!known(
        "proxy/inject.rs",
        "use super::access::{Admitted, Right}; use super::error::Error;"
    ));
    assert!(known(
        "proxy/inject.rs",
        "use super::{access::Admitted, route::Route};"
    ));
    assert!(known(
        "proxy/retry.rs",
        "use super::inspect::Verdict; fn f() { crate::proxy::body::copy() }"
    ));
    assert!(known(
        "proxy/body/spool.rs",
        "use super::super::{inject, retry};"
    ));
    assert!(!known(
        "proxy/pipeline/api_call.rs",
        "use crate::proxy::{access, body, inject};"
    ));
}

#[test]
fn every_way_to_reveal_a_secret_is_found() {
    let found = |source| unlisted_reveals(&File::new("admin/api.rs", source), &[]).len();
    assert_eq!(found("fn f(s: &Secret) -> &str { s.expose() }"), 1);
    assert_eq!(
        found("fn f(s: &Secret) -> &str {\n    s\n        .expose()\n}"),
        1
    );
    assert_eq!(
        found("fn f(s: Option<&Secret>) { s.map(Secret::expose) }"),
        1
    );
    assert_eq!(found("fn f(t: &Token) -> &str { t.query_value() }"), 1);
    assert_eq!(
        found("// s.expose()\nfn expose() {}\n#[cfg(test)]\nmod tests { fn f() { s.expose() } }"),
        0
    );
    let listed =
        |source| unlisted_reveals(&File::new("admin/api.rs", source), &["admin/api.rs"]).len();
    assert_eq!(listed("fn f(s: &Secret) -> &str { s.expose() }"), 0);
    assert_eq!(listed(""), 1);
}
