//! Warnings of a request name its id, so that they can be found from its answer and its access line.

use std::{fs, path::Path};

/// Where a request is at hand.
const FOLDERS: [&str; 2] = ["src/proxy/pipeline", "src/proxy/spool"];

#[test]
fn a_warning_of_the_pipeline_names_the_id_of_the_request() {
    let mut seen = 0;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = FOLDERS.map(|folder| fs::read_dir(root.join(folder)).expect("a folder"));
    for entry in files.into_iter().flatten() {
        let path = entry.expect("an entry").path();
        let text = fs::read_to_string(&path).expect("source");
        let parts = ["tracing::warn!(", "tracing::error!("];
        for behind in parts.iter().flat_map(|start| text.split(start).skip(1)) {
            let fields = behind.split(");").next().unwrap_or_default();
            let has_id =
                fields.contains("id = ") || fields.contains(" id,") || fields.starts_with("id,");
            assert!(has_id, "{}: {fields}", path.display());
            seen += 1;
        }
    }
    assert!(seen > 8, "only {seen} warnings were found");
}
