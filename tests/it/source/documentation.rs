//! Links of the documentation: the files and headings that its pages point at exist.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    path::{Component, Path, PathBuf},
};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Page without its blocks of code.
struct Page {
    text: String,
    /// Anchors of its headings, as GitHub makes them.
    anchors: HashSet<String>,
}

impl Page {
    fn read(path: &Path) -> Self {
        let (mut text, mut anchors, mut in_code) = (String::new(), HashSet::new(), false);
        for line in fs::read_to_string(path).expect("a page").lines() {
            let is_fence = line.trim_start().starts_with("```");
            in_code ^= is_fence;
            if !in_code && !is_fence {
                if line.starts_with('#') {
                    anchors.insert(anchor(line.trim_start_matches('#').trim()));
                }
                text.push_str(line);
            }
            // An empty line for each line of code, so that line numbers stay.
            text.push('\n');
        }
        Self { text, anchors }
    }

    /// Returns the links to other places of the repository, with their lines.
    fn links(&self) -> Vec<(usize, &str)> {
        let mut links = Vec::new();
        for (number, line) in self.text.lines().enumerate() {
            for behind in line.split("](").skip(1) {
                let target = behind.split(')').next().unwrap_or_default();
                if !target.contains("://") {
                    links.push((number + 1, target));
                }
            }
        }
        links
    }
}

fn anchor(heading: &str) -> String {
    let is_kept = |c: &char| c.is_alphanumeric() || matches!(c, '-' | '_' | ' ');
    let kept = heading.chars().filter(is_kept).collect::<String>();
    kept.to_lowercase().replace(' ', "-")
}

/// Resolves `target` against the folder of a page.
fn resolved(page: &Path, target: &str) -> PathBuf {
    let mut path = page.parent().expect("a folder").to_owned();
    for part in Path::new(target).components() {
        match part {
            Component::ParentDir => {
                path.pop();
            }
            other => path.push(other),
        }
    }
    path
}

/// All pages outside of what builds and tests leave behind.
fn pages() -> BTreeMap<PathBuf, Page> {
    let mut pages = BTreeMap::new();
    let mut folders = vec![PathBuf::from(ROOT)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().and_then(|name| name.to_str());
            if name.is_none_or(|name| name.starts_with('.') || name == "target") {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "md") {
                let page = Page::read(&path);
                pages.insert(path, page);
            }
        }
    }
    pages
}

#[test]
fn every_link_leads_somewhere() {
    let pages = pages();
    let (mut count, mut dead) = (0, Vec::new());
    for (path, page) in &pages {
        for (line, target) in page.links() {
            count += 1;
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let file = match file {
                "" => path.clone(),
                file => resolved(path, file),
            };
            let has_anchor = anchor.is_empty()
                || pages
                    .get(&file)
                    .is_some_and(|page| page.anchors.contains(anchor));
            if !file.exists() || !has_anchor {
                dead.push(format!("{}:{line}: {target}", path.display()));
            }
        }
    }
    assert!(dead.is_empty(), "{}", dead.join("\n"));
    assert!(count > 100, "only {count} links were found");
}
