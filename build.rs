//! Build script: composes the text of `wxgate --version`, such as
//! `0.1.0 (commit 0123456789ab, features: sql, pgo)`.
//!
//! A tree from `cargo package` has no `.git`; cargo leaves the commit in `.cargo_vcs_info.json`.
//! Without either the commit is told as `unknown`, and nothing fails.

use std::{fs, path::Path, process::Command};

/// Digits of a commit hash that `--version` shows.
const SHORT: usize = 12;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let commit = from_git()
        .or_else(from_package)
        .filter(|commit| commit.len() >= SHORT && commit.bytes().all(|b| b.is_ascii_hexdigit()));
    let commit = commit
        .as_deref()
        .map_or("unknown", |commit| &commit[..SHORT]);
    let sql = std::env::var_os("CARGO_FEATURE_SQL").is_some();
    let features = if sql { "sql" } else { "none" };
    // Set by scripts/release for the build that uses the profile.
    println!("cargo::rerun-if-env-changed=WXGATE_BUILD_PGO");
    let pgo = std::env::var_os("WXGATE_BUILD_PGO").map_or("", |_| ", pgo");
    let version = std::env::var("CARGO_PKG_VERSION").unwrap_or_default();
    println!(
        "cargo::rustc-env=WXGATE_VERSION={version} (commit {commit}, features: {features}{pgo})"
    );
}

/// Commit that git has checked out here. A tree inside another repository has none of its own.
fn from_git() -> Option<String> {
    if !Path::new(".git").exists() {
        return None;
    }
    // A commit changes one of the two files that git names here; cargo looks at their times.
    for name in [
        "HEAD",
        &git(&["symbolic-ref", "-q", "HEAD"]).unwrap_or_default(),
    ] {
        if let Some(path) = git(&["rev-parse", "--git-path", name])
            && Path::new(&path).exists()
        {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    git(&["rev-parse", "HEAD"])
}

/// Commit that `cargo package` wrote into the archive.
fn from_package() -> Option<String> {
    println!("cargo::rerun-if-changed=.cargo_vcs_info.json");
    let text = fs::read_to_string(".cargo_vcs_info.json").ok()?;
    let (_, rest) = text.split_once("\"sha1\": \"")?;
    rest.split('"').next().map(str::to_owned)
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let text = text.trim();
    (output.status.success() && !text.is_empty()).then(|| text.to_owned())
}
