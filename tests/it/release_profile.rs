//! With what a release is compiled: `scripts/rustc`, asked by a stand-in for cargo and answered by one for rustc.
//!
//! That the profile makes a difference is for `side_by_side gate` to say.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(name)).expect(name)
}

/// What the wrapper makes of a call, in a tree with this profile and with a compiler that says this of itself.
fn wrapped(profile: Option<&str>, version: &str, arguments: &[&str], wanted: Option<&str>) -> Output {
    // A space, as folders may have.
    let tree = tempfile::Builder::new().prefix("a tree ").tempdir().expect("folder");
    let path = |name: &str| tree.path().join(name);
    for folder in ["scripts", "profile"] {
        fs::create_dir(path(folder)).expect(folder);
    }
    fs::copy(Path::new(ROOT).join("scripts/rustc"), path("scripts/rustc")).expect("wrapper");
    if let Some(compiler) = profile {
        fs::write(path("profile/rustc"), compiler).expect("profile/rustc");
        fs::write(path("profile/wxgate.profdata"), "").expect("profile");
    }
    let mut command = Command::new("sh");
    command.arg(path("scripts/rustc")).arg(Path::new(ROOT).join("tests/data/rustc")).args(arguments);
    command.env("VERSION", version).env_remove("WXGATE_PGO");
    if let Some(wanted) = wanted {
        command.env("WXGATE_PGO", wanted);
    }
    command.output().expect("sh")
}

fn passed_on(output: &Output) -> Vec<&str> {
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    str::from_utf8(&output.stdout).expect("text").lines().collect()
}

#[test]
fn what_is_compiled_for_a_release_gets_the_profile_of_its_compiler() {
    for level in ["opt-level=3", "opt-level=s"] {
        let output = wrapped(Some("one"), "one", &["--cfg", "a b", "-C", level], None);
        let arguments = passed_on(&output);
        assert_eq!(arguments[..4], ["--cfg", "a b", "-C", level]);
        assert!(
            arguments[4].starts_with("-Cprofile-use=") && arguments[4].ends_with("/wxgate.profdata"),
            "{arguments:?}"
        );
    }
}

/// What is compiled, of which compiler the profile is, with which compiler, the arguments, and `WXGATE_PGO`.
type Case = (&'static str, Option<&'static str>, &'static str, &'static [&'static str], Option<&'static str>);

#[test]
fn everything_else_is_compiled_as_asked() {
    let cases: [Case; 7] = [
        ("another compiler", Some("one"), "two", &["-C", "opt-level=3"], None),
        ("no profile", None, "one", &["-C", "opt-level=3"], None),
        ("a test", Some("one"), "one", &["--test", "-C", "opt-level=1"], None),
        ("a build script", Some("one"), "one", &["--crate-name", "build_script_build"], None),
        ("off", Some("one"), "one", &["-C", "opt-level=3"], Some("off")),
        ("coverage", Some("one"), "one", &["-C", "opt-level=3", "-Cinstrument-coverage"], None),
        ("another profile", Some("one"), "one", &["-C", "opt-level=3", "-Cprofile-generate=x"], None),
    ];
    for (what, profile, version, arguments, wanted) in cases {
        let output = wrapped(profile, version, arguments, wanted);
        assert_eq!(passed_on(&output), arguments, "{what}");
    }
}

#[test]
fn objects_that_count_are_made_in_a_folder_of_their_own() {
    let into = |folder| ["-C", "opt-level=3", "--out-dir", folder];
    let output = wrapped(Some("one"), "one", &into("/a b/target/profile/release/deps"), Some("generate"));
    let arguments = passed_on(&output);
    assert!(
        arguments[4].starts_with("-Cprofile-generate=") && arguments[4].ends_with("/target/profile/raw"),
        "{arguments:?}"
    );
    for (folder, wanted) in [("/a/target/release/deps", "generate"), ("/a/target/profile/release/deps", "yes")] {
        let output = wrapped(Some("one"), "one", &into(folder), Some(wanted));
        assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
        assert!(str::from_utf8(&output.stderr).expect("text").starts_with("WXGATE_PGO"), "{output:?}");
    }
}

#[test]
fn all_that_scripts_profile_writes_speaks_of_the_same_profile() {
    let sum = Command::new("cksum").arg(Path::new(ROOT).join("profile/wxgate.profdata")).output().expect("cksum");
    let sum = String::from_utf8(sum.stdout).expect("text");
    let sum = sum.split_whitespace().next().expect("a sum");
    assert!(read(".cargo/config.toml").contains(&format!("wxgate_profile=\"{sum}\"")), "{sum}");
    let compiler = read("profile/rustc");
    let version = compiler.split_whitespace().nth(1).expect("a version");
    assert!(read("Dockerfile").contains(&format!("FROM rust:{version}-")), "{version}");
}
