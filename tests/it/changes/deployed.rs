//! The files in `deploy`: systemd, kubectl and a parser of YAML take them, they say the same as the
//! program, and the commands of their pages do what the pages say.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
    process::Command,
};

use serde_json::Value;

use crate::support::program::{finish, wxgate};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(path)).expect("it is there")
}

/// The fenced blocks of a page in this language.
fn blocks(page: &str, language: &str) -> Vec<String> {
    let start = format!("```{language}\n");
    page.split(&start)
        .skip(1)
        .filter_map(|rest| rest.split_once("```"))
        .map(|(block, _)| block.to_owned())
        .collect()
}

/// Runs a command line in a folder, and returns what it prints.
#[track_caller]
fn run(folder: &Path, line: &str) -> Vec<u8> {
    let ended = Command::new("sh")
        .args(["-c", line])
        .current_dir(folder)
        .output()
        .expect("a shell");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{line}: {said}");
    ended.stdout
}

/// Where there is no systemd, this says so and passes.
#[test]
fn systemd_takes_the_units() {
    if !Command::new("systemd-analyze")
        .arg("--version")
        .output()
        .is_ok_and(|out| out.status.success())
    {
        eprintln!("skipped: there is no systemd-analyze");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let units = ["wxgate.service", "wxgate.socket"].map(|name| {
        // systemd looks for the program.
        let text = read(&format!("deploy/systemd/{name}"))
            .replace("/usr/local/bin/wxgate", env!("CARGO_BIN_EXE_wxgate"));
        let path = folder.path().join(name);
        fs::write(&path, text).expect("mine");
        path
    });
    let verified = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .args(&units)
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&verified.stderr).into_owned();
    let about_ours: Vec<_> = said
        .lines()
        .filter(|line| line.contains("wxgate"))
        .collect();
    assert!(verified.status.success() && about_ours.is_empty(), "{said}");
}

#[test]
fn the_unit_lets_the_program_be_replaced() {
    let unit = read("deploy/systemd/wxgate.service");
    for line in [
        "Type=notify",
        "NotifyAccess=all",
        "ExecReload=/bin/kill -HUP $MAINPID",
        "RestartPreventExitStatus=78",
    ] {
        assert!(unit.lines().any(|there| there == line), "{line}");
    }
}

#[test]
fn the_page_of_the_units_installs_what_they_name_with_a_configuration_that_is_good() {
    let page = read("deploy/systemd/README.md");
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path();
    for place in ["usr/local/bin", "etc/systemd/system"] {
        fs::create_dir_all(root.join(place)).expect("mine");
    }
    for name in ["wxgate.service", "wxgate.socket"] {
        fs::write(root.join(name), read(&format!("deploy/systemd/{name}"))).expect("mine");
    }
    fs::write(root.join("wxgate"), "a program").expect("mine");
    fs::write(root.join("wxgate.new"), "the next one").expect("mine");
    fs::write(root.join("shop.secret"), "0123456789abcdef0123456789abcdef").expect("mine");
    let config = &blocks(&page, "toml")[0];
    fs::write(root.join("wxgate.toml"), config).expect("mine");

    let here = |line: &str| {
        line.replace(" /usr/", &format!(" {}/usr/", root.display()))
            .replace(" /etc/", &format!(" {}/etc/", root.display()))
    };
    let commands = &blocks(&page, "sh")[0];
    for line in commands.lines().filter(|line| line.starts_with("install")) {
        run(root, &here(line));
    }
    let unit = read("deploy/systemd/wxgate.service");
    for named in [
        "usr/local/bin/wxgate",
        "etc/wxgate/wxgate.toml",
        "etc/wxgate/shop.secret",
    ] {
        assert!(unit.contains(&format!("/{named}")), "{named}");
        assert!(root.join(named).exists(), "{named}");
    }
    let mode = |path: &str| {
        let file = fs::metadata(root.join(path)).expect("it is there");
        file.permissions().mode() & 0o777
    };
    assert_eq!(
        (mode("etc/wxgate/shop.secret"), mode("usr/local/bin/wxgate")),
        (0o600, 0o755)
    );

    // The next version is another file, so that it can come while the first one runs.
    let running = fs::File::open(root.join("usr/local/bin/wxgate")).expect("it is there");
    let (_, upgrade) = page.split_once("| the program | `").expect("a row");
    let (upgrade, _) = upgrade.split_once(" && ").expect("a second command");
    run(root, &here(upgrade));
    let next = fs::metadata(root.join("usr/local/bin/wxgate")).expect("it is there");
    assert_ne!(next.ino(), running.metadata().expect("it is open").ino());

    let secret = root.join("etc/wxgate/shop.secret").display().to_string();
    let config = config.replace("/run/credentials/wxgate.service/shop-secret", &secret);
    let file = root.join("checked.toml");
    fs::write(&file, config).expect("mine");
    let mut check = wxgate(&["check", "--config"]);
    check.arg(&file);
    let ended = finish(check);
    assert_eq!(ended.status, Some(0), "{ended:?}");
}

/// Where there is no kubectl, this says so and passes. Nothing here asks a cluster.
#[test]
fn kubectl_takes_the_manifests_and_the_commands_of_their_page() {
    let has_kubectl = Command::new("kubectl")
        .args(["version", "--client"])
        .output();
    if !has_kubectl.is_ok_and(|out| out.status.success()) {
        eprintln!("skipped: there is no kubectl");
        return;
    }
    let page = read("deploy/kubernetes/README.md");
    let folder = tempfile::tempdir().expect("a folder");
    let block = &blocks(&page, "sh")[0].replace("\\\n", "");
    let line = |start: &str| {
        let found = block.lines().find(|line| line.starts_with(start));
        found.expect("a command").to_owned()
    };
    let create = line("kubectl create secret");
    let files: BTreeSet<_> = create
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("--from-file=")?.split_once('='))
        .collect();
    for (_, file) in &files {
        fs::write(folder.path().join(file), "secret").expect("mine");
    }
    let made = run(folder.path(), &format!("{create} --dry-run=client -o json"));
    let made: Value = serde_json::from_slice(&made).expect("JSON");
    let keys: BTreeSet<_> = made["data"].as_object().expect("secrets").keys().collect();
    let manifests = read("deploy/kubernetes/wxgate.yaml");
    let used: BTreeSet<_> = manifests
        .split("\"/etc/wxgate/secrets/")
        .skip(1)
        .filter_map(|rest| Some(rest.split_once('"')?.0.to_owned()))
        .collect();
    assert_eq!(keys, used.iter().collect());
    // With the types of Kubernetes, which the other test does not know.
    let change = line("kubectl set image");
    let mut documents = manifests.split("\n---\n");
    let deployment = documents.find(|one| one.contains("kind: Deployment"));
    fs::write(
        folder.path().join("deployment.yaml"),
        deployment.expect("one"),
    )
    .expect("mine");
    let local = "--local -f deployment.yaml --dry-run=client -o json";
    let changed = run(folder.path(), &change.replace("deployment/wxgate", local));
    assert!(String::from_utf8_lossy(&changed).contains("\"image\": \"wxgate:0.2.0\""));
}

/// Where Python has no YAML, this says so and passes.
#[test]
fn the_manifests_are_yaml_with_probes_that_exist_and_a_configuration_that_is_good() {
    let script =
        "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))";
    let parsed = Command::new("python3")
        .args(["-c", script])
        .arg(Path::new(ROOT).join("deploy/kubernetes/wxgate.yaml"))
        .output();
    let has_yaml = Command::new("python3").args(["-c", "import yaml"]).output();
    if !has_yaml.is_ok_and(|out| out.status.success()) {
        eprintln!("skipped: python3 has no yaml");
        return;
    }
    let parsed = parsed.expect("it runs");
    assert!(
        parsed.status.success(),
        "{}",
        String::from_utf8_lossy(&parsed.stderr)
    );
    let documents: Vec<Value> = serde_json::from_slice(&parsed.stdout).expect("JSON");
    let kinds: Vec<_> = documents
        .iter()
        .map(|one| one["kind"].as_str().unwrap())
        .collect();
    assert_eq!(
        kinds,
        [
            "ConfigMap",
            "Deployment",
            "Service",
            "Service",
            "PodDisruptionBudget"
        ]
    );

    let container = &documents[1]["spec"]["template"]["spec"]["containers"][0];
    for (probe, path) in [
        ("startupProbe", "/-/livez"),
        ("readinessProbe", "/-/readyz"),
        ("livenessProbe", "/-/livez"),
    ] {
        let get = &container[probe]["httpGet"];
        assert_eq!(
            (get["path"].as_str(), get["port"].as_str()),
            (Some(path), Some("http"))
        );
    }
    assert_eq!(container["ports"][0]["containerPort"], 8080);

    let folder = tempfile::tempdir().expect("a folder");
    let secrets = folder.path().join("secrets");
    fs::create_dir(&secrets).expect("mine");
    for (name, value) in [
        ("shop-secret", "0123456789abcdef0123456789abcdef"),
        ("crm-key", "a-key-that-nobody-guesses-0123456789"),
        ("admin-key", "another-key-that-nobody-guesses-0123"),
        ("redis-url", "redis://valkey:6379"),
        ("store-key", &"0".repeat(64)),
    ] {
        fs::write(secrets.join(name), value).expect("mine");
    }
    let config = documents[0]["data"]["wxgate.toml"].as_str().expect("text");
    let config = config.replace("/etc/wxgate/secrets", &secrets.display().to_string());
    let file = folder.path().join("wxgate.toml");
    fs::write(&file, config).expect("mine");
    let mut check = wxgate(&["check", "--config"]);
    check.arg(&file);
    let ended = finish(check);
    assert_eq!(ended.status, Some(0), "{ended:?}");
}
