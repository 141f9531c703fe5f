//! Configuration files: the shipped ones load, each broken one gets its exact message, variables
//! override, secrets stay unseen.
//!
//! `tests/data/config/NAME.toml` is one mistake, `NAME.txt` what must be said of it. To write the
//! texts anew after a change of wording, run with `WXGATE_UPDATE_EXPECTED=1` and read the
//! difference.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "here a panic is the report, in helpers too"
)]

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use wxgate::{
    config::{self, Config, Problems},
    internals::token::store::{StoreLocation, StoreSettings},
};

const DATA: &str = "tests/data/config";
const PLANTED: &str = "5a1d0c5a1d0c5a1d0c5a1d0c5a1d0c5a";
const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

type Variables = BTreeMap<String, String>;

fn variables<const N: usize>(pairs: [(&str, &str); N]) -> Variables {
    pairs
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn shop() -> Variables {
    variables([("SHOP_SECRET", PLANTED)])
}

fn parse(text: &str, environment: &Variables) -> Result<Config, Problems> {
    config::parse(text, Path::new(DATA), "wxgate.toml", environment)
}

fn account(more: &str) -> String {
    format!(
        "[[account]]\nname = \"shop\"\nappid = \"wx00000000000000a1\"\nsecret = {{ env = \"SHOP_SECRET\" }}\n{more}\n"
    )
}

#[track_caller]
fn refused(result: Result<Config, Problems>) -> String {
    match result {
        Ok(_) => panic!("the configuration was taken"),
        Err(problems) => problems.to_string(),
    }
}

// What is said of a file: its problems, or else its warnings.
fn said(result: Result<Config, Problems>) -> String {
    match result {
        Err(problems) => format!("{problems}\n"),
        Ok(config) => {
            let warnings: Vec<String> = config
                .warnings
                .iter()
                .map(|warning| format!("warning: {warning}\n"))
                .collect();
            warnings.concat()
        }
    }
}

fn broken_files() -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(DATA)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "toml")
    });
    files.sort();
    files
}

#[test]
fn every_broken_file_gets_its_exact_message() {
    let update = std::env::var_os("WXGATE_UPDATE_EXPECTED").is_some();
    let files = broken_files();
    assert!(files.len() >= 30, "only {} broken files", files.len());
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let name = file.file_name().unwrap().to_str().unwrap();
        if !cfg!(feature = "sql") && name.starts_with("store_sql") {
            continue;
        }
        let said = said(config::parse(&text, Path::new(DATA), name, &shop()));
        let expected = file.with_extension("txt");
        if update {
            fs::write(&expected, &said).unwrap();
        }
        let expected = fs::read_to_string(&expected)
            .unwrap_or_else(|_| panic!("{} is missing", expected.display()));
        assert_eq!(said, expected, "{name}");
        assert!(!said.is_empty(), "nothing was found in {name}");
    }
}

#[cfg(not(feature = "sql"))]
#[test]
fn a_build_without_databases_says_how_to_get_one_with_them() {
    let problems = refused(parse(
        &format!("[store]\nkind = \"sql\"\n{}", account("")),
        &shop(),
    ));
    assert_eq!(
        problems,
        "wxgate.toml:2: store.kind: this wxgate was built without databases: build it with cargo build --release \
         --features sql, or use \"file\", \"redis\" or \"memory\""
    );
}

#[test]
fn every_message_belongs_to_a_broken_file() {
    for entry in fs::read_dir(DATA).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "txt") {
            assert!(
                path.with_extension("toml").exists(),
                "{} has no file",
                path.display()
            );
        }
    }
}

#[test]
fn the_shipped_files_load_without_a_warning() {
    for file in ["config/wxgate.toml", "config/minimal.toml"] {
        let config = config::load(Some(Path::new(file)), Path::new("."), &shop())
            .unwrap_or_else(|p| panic!("{p}"));
        assert_eq!(config.warnings, [], "{file}");
        assert_eq!(config.accounts[0].name.as_str(), "shop");
        assert_eq!(
            config.accounts[0].secret.as_ref().unwrap().expose(),
            PLANTED
        );
    }
}

#[test]
fn the_long_file_shows_the_defaults() {
    let load = |file| {
        let mut config = config::load(Some(Path::new(file)), Path::new("."), &shop()).unwrap();
        config.warnings.clear();
        // Matters beside clients, which neither file has.
        config.proxy.allow_is_set = true;
        format!("{config:#?}")
    };
    assert_eq!(load("config/wxgate.toml"), load("config/minimal.toml"));
}

// The long file with every key that it shows, also those behind `# `.
fn everything() -> String {
    let shown = fs::read_to_string("config/wxgate.toml").unwrap();
    let lines = shown.lines().map(|line| match line.strip_prefix("# ") {
        Some(key) if key.starts_with("[[") || key.split(" = ").next().is_some_and(is_key) => key,
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn is_key(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
}

#[test]
fn the_long_file_shows_every_key() {
    let file: toml::Table = everything().parse().unwrap();
    let schema: serde_json::Value = serde_json::from_str(&config::schema()).unwrap();
    let keys = |schema: &serde_json::Value| -> Vec<String> {
        schema["properties"]
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect()
    };
    for table in keys(&schema) {
        let shown = match &file[&table] {
            toml::Value::Table(shown) => shown,
            toml::Value::Array(several) => several[0].as_table().unwrap(),
            _ => continue,
        };
        let definition = table[..1].to_uppercase() + &table[1..];
        for key in keys(&schema["definitions"][definition]) {
            assert!(shown.contains_key(&key), "{table}.{key} is not shown");
        }
    }
    let problems = refused(parse(&everything(), &shop()));
    assert!(
        !problems.contains("unknown") && !problems.contains("expected"),
        "{problems}"
    );
}

#[test]
fn the_shipped_schema_is_the_one_that_the_program_prints() {
    let file = "config/wxgate.schema.json";
    if std::env::var_os("WXGATE_UPDATE_EXPECTED").is_some() {
        fs::write(file, config::schema()).unwrap();
    }
    assert_eq!(
        fs::read_to_string(file).unwrap(),
        config::schema(),
        "run with WXGATE_UPDATE_EXPECTED=1"
    );
}

#[test]
fn a_variable_wins_over_the_file() {
    let file = format!(
        "{}[server]\nlisten = [\"127.0.0.1:1\"]\nworkers = \"wrong\"\n",
        account("")
    );
    let mut environment = shop();
    environment.extend(variables([
        ("WXGATE_DEFAULT_ACCOUNT", "shop"),
        ("WXGATE_SERVER__LISTEN", "0.0.0.0:80, unix:/run/wxgate.sock"),
        ("WXGATE_SERVER__WORKERS", "3"),
        ("WXGATE_SERVER__ALLOW", "[\"10.0.0.0/8\", \"loopback\"]"),
        ("WXGATE_SERVER__ERROR_STYLE", "wechat"),
        ("WXGATE_REPLAY__DISK", "0"),
        ("WXGATE_UPSTREAM__PROXY", "http://user:word@egress:3128"),
        (
            "WXGATE_UPSTREAM__RESOLVE",
            "{ \"API.weixin.qq.com\" = [\"203.0.113.7\"] }",
        ),
        ("WXGATE_STORE__KIND", "memory"),
    ]));
    let config = parse(&file, &environment).unwrap();
    let listen: Vec<String> = config
        .proxy
        .listen
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(listen, ["0.0.0.0:80", "unix:/run/wxgate.sock"]);
    assert_eq!((config.proxy.workers, config.proxy.replay.disk), (3, 0));
    assert!(config.proxy.allow.reaches_beyond_loopback());
    assert_eq!(
        config.proxy.error_style,
        wxgate::internals::proxy::settings::ErrorStyle::Wechat
    );
    assert_eq!(
        config
            .proxy
            .default_account
            .as_ref()
            .map(wxgate::internals::base::AccountName::as_str),
        Some("shop")
    );
    assert_eq!(
        config
            .proxy
            .upstream
            .egress
            .proxy
            .unwrap()
            .credentials
            .unwrap()
            .expose(),
        "user:word"
    );
    assert!(
        config
            .proxy
            .upstream
            .egress
            .resolve
            .contains_key("api.weixin.qq.com")
    );
    assert_eq!(config.store, StoreSettings::MEMORY);
    assert_eq!(config.warnings, []);
}

#[test]
fn a_wrong_variable_is_named() {
    let mut environment = shop();
    environment.extend(variables([
        ("WXGATE_ACCOUNT__NAME", "shop"),
        ("WXGATE_ADMIN__HOSTS", "a.internal,b internal"),
        ("WXGATE_CLIENT__KEY", "{ env = \"SHOP_SECRET\" }"),
        ("WXGATE_SERVER__LISEN", "127.0.0.1:80"),
        ("WXGATE_SERVER__MAX_CONNECTIONS", "99999999999999999999"),
        ("WXGATE_SERVER__TLS", "{ cert = \"a\" }"),
        ("WXGATE_SERVER__TLS__KEY", "b"),
        ("WXGATE_SERVER__WORKERS", "many"),
        ("WXGATE_TOKEN", "PLANTED-5a1d0c"),
        ("WXGATE_TOKEN__WAIT", "1 week"),
    ]));
    let expected = "\
environment variable WXGATE_ACCOUNT__NAME: account.name: accounts and clients cannot be set from the environment: write them into the file
environment variable WXGATE_CLIENT__KEY: client.key: accounts and clients cannot be set from the environment: write them into the file
environment variable WXGATE_SERVER__TLS__KEY: server.tls.key: set either the table as a whole or its keys, not both
environment variable WXGATE_SERVER__LISEN: server.lisen: unknown key; did you mean \"listen\"?
environment variable WXGATE_SERVER__WORKERS: server.workers: expected a whole number
environment variable WXGATE_SERVER__MAX_CONNECTIONS: server.max_connections: the number is too large
environment variable WXGATE_ADMIN__HOSTS: admin.hosts[1]: expected a host name such as \"shop.wx.internal\", without scheme, port or path
environment variable WXGATE_TOKEN__WAIT: token.wait: unknown unit; use one of ms, s, m, h, d";
    assert_eq!(refused(parse(&account(""), &environment)), expected);
}

#[test]
fn variables_of_other_use_are_left_alone() {
    let mut environment = shop();
    for name in [
        "LOG",
        "APPID",
        "SECRET",
        "ADMIN_KEY",
        "STORE_KEY",
        "CONFIG",
        "ANYTHING_ELSE",
        "",
    ] {
        environment.insert(format!("WXGATE_{name}"), "x".to_owned());
    }
    environment.insert("OTHER__NAME".to_owned(), "x".to_owned());
    assert_eq!(parse(&account(""), &environment).unwrap().warnings, []);
}

#[test]
fn a_secret_from_the_environment_replaces_whatever_form_the_file_has() {
    let file = format!(
        "{}[admin]\nlisten = \"0.0.0.0:1\"\nkey = {{ file = \"missing.secret\" }}\n",
        account("")
    );
    for (name, value, key) in [
        ("WXGATE_ADMIN__KEY__ENV", "SHOP_SECRET", PLANTED),
        (
            "WXGATE_ADMIN__KEY__FILE",
            "shop.secret",
            "PLANTED-from-file",
        ),
        ("WXGATE_ADMIN__KEY__VALUE", "{odd", "{odd"),
        ("WXGATE_ADMIN__KEY", "{ env = \"SHOP_SECRET\" }", PLANTED),
    ] {
        let mut environment = shop();
        environment.insert(name.to_owned(), value.to_owned());
        let config =
            parse(&file, &environment).unwrap_or_else(|problems| panic!("{name}: {problems}"));
        assert_eq!(config.admin.key.unwrap().expose(), key, "{name}");
        assert_eq!(config.warnings, [], "{name}");
    }
}

#[test]
fn without_a_file_two_variables_make_an_account() {
    let folder = tempfile::tempdir().unwrap();
    let environment = variables([
        ("WXGATE_APPID", "wx00000000000000a1"),
        ("WXGATE_SECRET", PLANTED),
        ("WXGATE_SERVER__WORKERS", "2"),
    ]);
    let config = config::load(None, folder.path(), &environment).unwrap();
    let account = &config.accounts[0];
    assert_eq!(
        (
            account.name.as_str(),
            account.appid.as_str(),
            account.secret.as_ref().unwrap().expose()
        ),
        ("default", "wx00000000000000a1", PLANTED)
    );
    assert_eq!((config.accounts.len(), config.proxy.workers), (1, 2));
    assert_eq!(
        config.store,
        StoreSettings {
            location: StoreLocation::File(folder.path().join("wxgate-state")),
            keys: None
        }
    );
    assert_eq!(config.warnings, []);
}

#[test]
fn without_a_file_and_the_two_variables_the_ways_out_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let none = refused(config::load(None, folder.path(), &Variables::new()));
    assert_eq!(
        none,
        "environment: account: WXGATE_APPID and WXGATE_SECRET are not set; without a configuration file, WXGATE_APPID \
         and WXGATE_SECRET give the one account. Set both, or write config/wxgate.toml, or have a look around with \
         `wxgate demo`"
    );
    let half = variables([
        ("WXGATE_APPID", "wx00000000000000a1"),
        ("WXGATE_SECRET", ""),
        ("WXGATE_SERVER__WORKERS", "-1"),
    ]);
    let half = refused(config::load(None, folder.path(), &half));
    assert!(
        half.starts_with("environment: account: WXGATE_SECRET is not set;"),
        "{half}"
    );
    assert!(half.contains("WXGATE_SERVER__WORKERS"), "{half}");
    let odd = variables([("WXGATE_APPID", "wx 1"), ("WXGATE_SECRET", "s")]);
    let odd = refused(config::load(None, folder.path(), &odd));
    assert!(
        odd.starts_with("environment variable WXGATE_APPID: account[0].appid: expected"),
        "{odd}"
    );
}

#[test]
fn the_default_file_is_found_and_its_paths_start_from_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let config_dir = folder.path().join("config");
    fs::create_dir(&config_dir).unwrap();
    fs::write(config_dir.join("shop.secret"), "from-file\n").unwrap();
    let file = "[server]\nlisten = [\"unix:gate.sock\"]\n[store]\npath = \"state\"\n[[account]]\nname = \"shop\"\n\
                appid = \"wx00000000000000a1\"\nsecret = { file = \"shop.secret\" }\n";
    fs::write(config_dir.join("wxgate.toml"), file).unwrap();
    let config = config::load(None, folder.path(), &Variables::new()).unwrap();
    assert_eq!(
        config.accounts[0].secret.as_ref().unwrap().expose(),
        "from-file"
    );
    assert_eq!(
        config.store,
        StoreSettings {
            location: StoreLocation::File(config_dir.join("state")),
            keys: None
        }
    );
    assert_eq!(
        config.proxy.listen[0].to_string(),
        format!("unix:{}", config_dir.join("gate.sock").display())
    );
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("long.toml"), "#".repeat((64 << 20) + 1)).unwrap();
    fs::write(folder.path().join("latin1.toml"), b"# \xe9\n").unwrap();
    let said = |name: &str| refused(config::load(Some(Path::new(name)), folder.path(), &shop()));
    assert_eq!(
        said("none.toml"),
        "none.toml: cannot be read: No such file or directory (os error 2)"
    );
    assert_eq!(
        said("long.toml"),
        "long.toml: cannot be read: it is longer than 64MiB, which no configuration is: name the right file"
    );
    assert!(said("latin1.toml").starts_with("latin1.toml: cannot be read: "));
}

/// Time that this thread has spent on a processor, in nanoseconds: other tests do not count.
fn processor_time() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

/// As many accounts as clients; each client has a key and names one account.
fn many(count: usize) -> String {
    let mut text = String::new();
    for n in 0..count {
        let _ = write!(
            text,
            "[[account]]\nname = \"a{n}\"\nappid = \"wx{n:016x}\"\nsecret = {{ value = \"{n:032x}\" }}\n\
             api = [\"https://h{n}.example\"]\n\
             [[client]]\nname = \"c{n}\"\nkey = {{ value = \"key-of-client-{n:08}\" }}\naccounts = [\"a{n}\"]\n"
        );
    }
    text
}

/// Reading takes time in proportion to the file: eight times the accounts and clients must not take
/// much more than eight times as long, where pairwise work would take sixty-four times.
#[test]
fn eight_thousand_accounts_and_clients_are_read_in_linear_time() {
    let cost = |count: usize| {
        let text = many(count);
        let round = || {
            let begun = processor_time();
            let config = parse(&text, &Variables::new()).unwrap();
            assert_eq!(
                (config.accounts.len(), config.proxy.clients.len()),
                (count, count)
            );
            processor_time() - begun
        };
        (0..3).map(|_| round()).min().unwrap()
    };
    let (small, large) = (cost(1000), cost(8000));
    assert!(
        large < 24 * small,
        "{small} ns for 1000, {large} ns for 8000"
    );
}

/// The same where every section has a mistake.
#[test]
fn thousands_of_mistakes_are_told_in_linear_time() {
    let cost = |count: usize| {
        let text = many(count)
            .replace("secret", "# ")
            .replace("accounts = [\"a", "accounts = [\"b");
        let round = || {
            let begun = processor_time();
            let Problems(problems) = parse(&text, &Variables::new()).unwrap_err();
            assert!(problems.len() >= count);
            processor_time() - begun
        };
        (0..3).map(|_| round()).min().unwrap()
    };
    let (small, large) = (cost(500), cost(4000));
    assert!(
        large < 24 * small,
        "{small} ns for 500, {large} ns for 4000"
    );
}

/// `check` and a start read files of this size; no more than ten names stand in a message.
#[test]
fn a_file_of_several_megabytes_is_read_and_its_messages_stay_short() {
    let folder = tempfile::tempdir().unwrap();
    let text = format!("default_account = \"none\"\n{}", many(8000));
    assert!(text.len() > 1 << 20);
    fs::write(folder.path().join("many.toml"), text).unwrap();
    let said = refused(config::load(
        Some(Path::new("many.toml")),
        folder.path(),
        &shop(),
    ));
    assert_eq!(
        said,
        "many.toml:1: default_account: no account has this name; there is: a0, a1, a2, a3, a4, a5, a6, a7, a8, a9 and 7990 \
         more"
    );
}

#[test]
fn tls_files_are_tried_when_the_file_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    fs::write(folder.path().join("cert.pem"), made.cert.pem()).unwrap();
    fs::write(
        folder.path().join("key.pem"),
        made.signing_key.serialize_pem(),
    )
    .unwrap();
    let file = format!(
        "{}[server.tls]\ncert = \"cert.pem\"\nkey = \"key.pem\"\nclient_ca = \"cert.pem\"\n[upstream]\nca_file = \"cert.pem\"\n",
        account("")
    );
    let config = config::parse(&file, folder.path(), "wxgate.toml", &shop()).unwrap();
    assert_eq!(
        config.proxy.tls.unwrap().client_ca,
        Some(folder.path().join("cert.pem"))
    );
    assert_eq!(
        config.proxy.upstream.egress.ca_file,
        Some(folder.path().join("cert.pem"))
    );
    fs::write(folder.path().join("key.pem"), "nothing").unwrap();
    let problems = refused(config::parse(&file, folder.path(), "wxgate.toml", &shop()));
    assert!(
        problems.starts_with("wxgate.toml:6: server.tls: cannot be used: "),
        "{problems}"
    );
}

#[test]
fn accounts_get_what_they_say() {
    let file = account(
        "token = \"classic\"\napi = [\"https://api2.weixin.qq.com\", \"http://127.0.0.1:9\"]\nhosts = [\"Shop.WX.internal\"]",
    );
    let config = parse(&file, &shop()).unwrap();
    let account = &config.accounts[0];
    assert_eq!(
        account.kind(),
        wxgate::internals::token::ProviderKind::Classic
    );
    assert_eq!(account.hosts, ["shop.wx.internal"]);
    let api: Vec<String> = account.api.iter().map(ToString::to_string).collect();
    assert_eq!(api, ["https://api2.weixin.qq.com", "http://127.0.0.1:9"]);
    let default = parse(&self::account(""), &shop()).unwrap();
    assert_eq!(
        default.accounts[0].api[0].to_string(),
        "https://api.weixin.qq.com"
    );
    assert_eq!(
        default.accounts[0].kind(),
        wxgate::internals::token::ProviderKind::Stable
    );
}

#[test]
fn a_good_configuration_is_summed_up() {
    let config = parse(
        &account("").replace("{ env = \"SHOP_SECRET\" }", "{ value = \"s\" }"),
        &shop(),
    )
    .unwrap();
    let text = config::check_text(&config);
    assert!(
        text.starts_with(
            "warning: wxgate.toml:4: account[0].secret.value: the secret stands in the file"
        ),
        "{text}"
    );
    assert!(
        text.ends_with("1 account(s): shop; listening on 127.0.0.1:8080; admin on 127.0.0.1:8081"),
        "{text}"
    );
}

#[test]
fn tokens_that_would_lie_open_are_named_by_check_in_one_line() {
    #[cfg(feature = "sql")]
    const SQL: &str = "kind = \"sql\"\nurl = { env = \"URL\" }";
    let said = |store: &str, url: &str, key: &str| {
        let config = parse(
            &format!("[store]\n{store}\n{key}\n{}", account("")),
            &variables([("SHOP_SECRET", PLANTED), ("KEY", KEY), ("URL", url)]),
        )
        .unwrap();
        assert_eq!(config.warnings, [], "no start complains about it");
        let text = config::check_text(&config);
        text.lines()
            .filter(|line| line.starts_with("warning: store.encryption_key: not set"))
            .count()
    };
    assert_eq!(said("kind = \"memory\"", "", ""), 0);
    for (store, url) in [
        ("", ""),
        ("kind = \"file\"", ""),
        (
            "kind = \"redis\"\nurl = { env = \"URL\" }",
            "redis://localhost",
        ),
        #[cfg(feature = "sql")]
        (SQL, "sqlite://tokens.db"),
        #[cfg(feature = "sql")]
        (SQL, "postgres://u@localhost/wx"),
        #[cfg(feature = "sql")]
        (SQL, "mysql://u@localhost/wx"),
    ] {
        let keyed = said(store, url, "encryption_key = { env = \"KEY\" }");
        assert_eq!((said(store, url, ""), keyed), (1, 0), "{store} {url}");
    }
}

#[test]
fn the_keys_of_the_store_are_taken_in_the_order_of_the_list() {
    let keys = |value: &str| {
        let text = format!(
            "[store]\nencryption_key = {{ env = \"KEY\" }}\n{}",
            account("")
        );
        let variables = variables([("SHOP_SECRET", PLANTED), ("KEY", value)]);
        parse(&text, &variables).unwrap().store.keys.unwrap()
    };
    let other = "ab".repeat(32);
    assert_eq!(keys(KEY), keys(KEY.trim_end_matches('=')));
    assert_ne!(
        keys(&format!("{KEY},{other}")),
        keys(&format!("{other},{KEY}"))
    );
    assert_eq!(
        format!("{:?}", keys(KEY)).matches("KeyId").count(),
        1,
        "nothing but the id is shown"
    );
    assert!(!format!("{:?}", keys(&other)).contains("abab"));
}

#[test]
fn no_value_of_the_file_is_ever_said() {
    let everything = everything();
    let lines: Vec<&str> = everything.lines().collect();
    let mut planted = 0;
    for (index, line) in lines.iter().enumerate() {
        let Some((key, _)) = line.split_once(" = ").filter(|(key, _)| is_key(key)) else {
            continue;
        };
        for form in [
            "\"X\"",
            "[\"X\"]",
            "{ env = \"X\" }",
            "{ value = \"X\" }",
            "{ from = \"X\" }",
            "X",
            "\"X",
        ] {
            // Paths and the names of accounts are no secrets, and an operator must see which is
            // meant.
            if matches!(key, "ca_file" | "name") {
                continue;
            }
            let value = form.replace('X', PLANTED);
            let changed = format!("{key} = {value}");
            let mut text = lines.clone();
            text[index] = &changed;
            let (environment, text) = (shop(), text.join("\n"));
            let said = match parse(&text, &environment) {
                Err(problems) => format!("{problems} {problems:?}"),
                Ok(config) => format!("{} {config:?}", config::check_text(&config)),
            };
            assert!(!said.contains(PLANTED), "{changed}: {said}");
            planted += 1;
        }
    }
    assert!(planted > 200, "only {planted} values were planted");
}

mod property {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_text_panics_the_reader(text in "(?s).{0,300}") {
            let _ = said(parse(&text, &shop()));
        }

        #[test]
        fn no_damage_panics_the_reader(from in 0_usize..6000, cut in 0_usize..200, inserted in "[\\[\\]{}=\"'.,\n#a-z0-9 ]{0,20}") {
            let mut text: Vec<char> = everything().chars().collect();
            let from = from.min(text.len());
            let until = (from + cut).min(text.len());
            text.splice(from..until, inserted.chars());
            let text: String = text.into_iter().collect();
            let _ = said(parse(&text, &shop()));
        }

        #[test]
        fn no_variable_panics_the_reader(name in "[A-Z_]{0,20}", value in "(?s).{0,60}") {
            let mut environment = shop();
            for table in ["SERVER", "ADMIN", "STORE", "UPSTREAM"] {
                environment.insert(format!("WXGATE_{table}__{name}"), value.clone());
            }
            environment.insert("WXGATE_UPSTREAM__RESOLVE".to_owned(), value.clone());
            environment.insert("WXGATE_SERVER__ALLOW".to_owned(), value);
            let _ = said(parse(&account(""), &environment));
        }
    }
}
