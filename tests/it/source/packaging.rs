//! The build is an ordinary cargo build: no wrapper, no flags, no file outside the manifest.

use std::{fs, path::Path, process::Command};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Layers of container images, Nix and `cargo chef` copy manifests first and compile dependencies
/// around an empty program.
#[test]
fn a_skeleton_of_manifest_and_lock_file_resolves() {
    let skeleton = tempfile::tempdir().expect("folder");
    let path = |name: &str| skeleton.path().join(name);
    for name in ["Cargo.toml", "Cargo.lock"] {
        fs::copy(Path::new(ROOT).join(name), path(name)).expect(name);
    }
    if let Ok(entries) = fs::read_dir(Path::new(ROOT).join(".cargo")) {
        fs::create_dir(path(".cargo")).expect(".cargo");
        for entry in entries.map(|entry| entry.expect("entry")) {
            fs::copy(entry.path(), path(".cargo").join(entry.file_name())).expect("copy");
        }
    }
    fs::create_dir(path("src")).expect("src");
    fs::write(path("src/main.rs"), "fn main() {}\n").expect("main.rs");
    let resolved = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--offline", "--depth", "1"])
        .current_dir(skeleton.path())
        .output()
        .expect("cargo");
    let said = String::from_utf8_lossy(&resolved.stdout);
    assert!(
        resolved.status.success() && said.contains("hyper v1"),
        "{resolved:?}"
    );
}

/// A toolchain file makes rustup download a compiler, and settings of cargo hold in a checkout but
/// not for `cargo install`.
#[test]
fn nothing_beside_the_manifest_decides_how_the_program_is_compiled() {
    for name in ["rust-toolchain", "rust-toolchain.toml"] {
        assert!(!Path::new(ROOT).join(name).exists(), "{name}");
    }
    let settings = fs::read_to_string(Path::new(ROOT).join(".cargo/config.toml"));
    for key in ["wrapper", "rustflags", "[env]"] {
        assert!(
            !settings.as_ref().is_ok_and(|text| text.contains(key)),
            "{key}"
        );
    }
}
