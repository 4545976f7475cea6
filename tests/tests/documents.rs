//! The documentation's links lead somewhere.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use sconce_tests::checkout;

fn documents(dir: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            documents(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
    Ok(())
}

#[test]
fn every_relative_link_names_a_file() -> Result<()> {
    let mut found = vec![checkout().join("README.md")];
    documents(&checkout().join("docs"), &mut found)?;
    let mut broken = Vec::new();
    for document in &found {
        let text = fs::read_to_string(document)?;
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap_or_default();
            let elsewhere = target.is_empty() || target.contains("://") || target.contains(' ');
            let beside = document.parent().unwrap_or(document).join(target);
            if !elsewhere && !beside.exists() {
                broken.push(format!("{}: {link}", document.display()));
            }
        }
    }
    ensure!(
        broken.is_empty(),
        "links that lead nowhere:\n{}",
        broken.join("\n")
    );
    Ok(())
}
