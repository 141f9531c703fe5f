//! Configuration files: the shipped ones load, each broken one gets its exact message, variables override, secrets stay
//! unseen.
//!
//! `tests/data/config/NAME.toml` is one mistake, `NAME.txt` what must be said of it. To write the texts anew after a
//! change of wording, run with `WXGATE_UPDATE_EXPECTED=1` and read the difference.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use wxgate::config::{self, Config, Problems};

const DATA: &str = "tests/data/config";
const PLANTED: &str = "PLANTED-5a1d0c";

type Variables = BTreeMap<String, String>;

fn variables<const N: usize>(pairs: [(&str, &str); N]) -> Variables {
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn shop() -> Variables {
    variables([("SHOP_SECRET", PLANTED)])
}

fn parse(text: &str, environment: &Variables) -> Result<Config, Problems> {
    config::parse(text, Path::new(DATA), "wxgate.toml", environment)
}

fn account(more: &str) -> String {
    format!("[[account]]\nname = \"shop\"\nappid = \"wx1\"\nsecret = {{ env = \"SHOP_SECRET\" }}\n{more}\n")
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
        Ok(config) => config.warnings.iter().map(|warning| format!("warning: {warning}\n")).collect(),
    }
}

fn broken_files() -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(DATA).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
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
        let said = said(config::parse(&text, Path::new(DATA), name, &shop()));
        let expected = file.with_extension("txt");
        if update {
            fs::write(&expected, &said).unwrap();
        }
        let expected = fs::read_to_string(&expected).unwrap_or_else(|_| panic!("{} is missing", expected.display()));
        assert_eq!(said, expected, "{name}");
        assert!(!said.is_empty(), "nothing was found in {name}");
    }
}

#[test]
fn every_message_belongs_to_a_broken_file() {
    for entry in fs::read_dir(DATA).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "txt") {
            assert!(path.with_extension("toml").exists(), "{} has no file", path.display());
        }
    }
}

#[test]
fn the_shipped_files_load_without_a_warning() {
    for file in ["config/wxgate.toml", "config/minimal.toml"] {
        let config = config::load(Some(Path::new(file)), Path::new("."), &shop()).unwrap_or_else(|p| panic!("{p}"));
        assert_eq!(config.warnings, [], "{file}");
        assert_eq!(config.accounts[0].name.as_str(), "shop");
        assert_eq!(config.accounts[0].secret.expose(), PLANTED);
    }
}

#[test]
fn the_shipped_schema_is_the_one_that_the_program_prints() {
    let file = "config/wxgate.schema.json";
    if std::env::var_os("WXGATE_UPDATE_EXPECTED").is_some() {
        fs::write(file, config::schema()).unwrap();
    }
    assert_eq!(fs::read_to_string(file).unwrap(), config::schema(), "run with WXGATE_UPDATE_EXPECTED=1");
}
