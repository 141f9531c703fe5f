//! Circles between files: files that import each other, directly or over others.
//!
//! A module and the modules below it are one thing in several files, so they may know each other.
//! A path counts for the file that it names, not for the one that a re-export leads to.

use std::collections::HashSet;

use super::{File, assert_none, crate_files, scan::Import};

/// Import of one file's item in another file.
#[derive(Clone, Copy)]
struct Edge<'f> {
    from: &'f File,
    to: &'f File,
    import: &'f Import,
}

fn edges(files: &[File]) -> Vec<Edge<'_>> {
    let mut edges = Vec::new();
    for from in files {
        for import in &from.scan.imports {
            let named = files
                .iter()
                .filter(|file| import.path.starts_with(&file.module))
                .max_by_key(|file| file.module.len());
            if let Some(to) = named
                && !to.module.starts_with(&from.module)
                && !from.module.starts_with(&to.module)
            {
                edges.push(Edge { from, to, import });
            }
        }
    }
    edges
}

/// Names each import that is part of a circle, or leads from one circle to another.
fn circles(files: &[File]) -> Vec<String> {
    let mut edges = edges(files);
    loop {
        let before = edges.len();
        let importing: HashSet<&str> = edges.iter().map(|edge| edge.from.name.as_str()).collect();
        let imported: HashSet<&str> = edges.iter().map(|edge| edge.to.name.as_str()).collect();
        // A file that imports nothing, or that nothing imports, is in no circle.
        edges.retain(|edge| {
            importing.contains(edge.to.name.as_str()) && imported.contains(edge.from.name.as_str())
        });
        if edges.len() == before {
            break;
        }
    }
    let problem = |edge: &Edge<'_>| {
        let rule = format!(
            "`{}` closes a circle of files with src/{}: move what both need to where both may look",
            File::written(edge.import),
            edge.to.name
        );
        edge.from.says(edge.import.line, &rule)
    };
    edges.iter().map(problem).collect()
}

#[test]
fn no_files_import_each_other() {
    let files = crate_files();
    assert!(
        edges(&files).len() > files.len(),
        "the imports are not even seen"
    );
    assert_none(&circles(&files));
}

#[test]
fn a_circle_is_found_over_other_files_too() {
    let found = |sources: &[(&str, &str)]| {
        let files: Vec<File> = sources
            .iter()
            .map(|(name, source)| File::new(name, source))
            .collect();
        circles(&files).len()
    };
    let direct = [
        ("net/a.rs", "use super::b::B;"),
        ("net/b.rs", "use crate::net::a;"),
    ];
    assert_eq!(found(&direct), 2);
    let over_another = [
        ("net/a.rs", "use super::b::B;"),
        ("net/b.rs", "use super::c;"),
        ("net/c/mod.rs", "use crate::net::a::A;"),
        ("net/lower.rs", ""),
        ("net/upper.rs", "use super::{a::A, lower};"),
    ];
    assert_eq!(found(&over_another), 3);
    let parent_and_child = [
        ("net/a/mod.rs", "use self::b::B; use super::c::C;"),
        ("net/a/b.rs", "use super::A; use super::super::c::C;"),
        ("net/c.rs", "#[cfg(test)] mod tests { use crate::net::a; }"),
    ];
    assert_eq!(found(&parent_and_child), 0);
}
