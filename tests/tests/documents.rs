//! What is shipped beside the programs: documentation whose links lead somewhere, a unit that systemd takes.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use sconce_tests::{checkout, client};

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

/// systemd tells of keys that it does not know, and of values that it cannot take.
#[test]
fn systemd_takes_the_unit() -> Result<()> {
    let unit = fs::read_to_string(checkout().join("compose/systemd/sconce@.service"))?;
    ensure!(unit.contains("ExecStart=/usr/bin/%i "), "{unit}");
    let dir = tempfile::tempdir()?;
    // The services are not installed here.
    fs::write(
        dir.path().join("sconce@.service"),
        unit.replace("/usr/bin/%i", "/bin/true"),
    )?;
    for service in ["storage-router", "volume-router", "fs-router"] {
        let unit = dir.path().join(format!("sconce@{service}.service"));
        let mut verify = client::command("systemd-analyze", Duration::from_secs(60));
        let output = client::output(verify.arg("verify").arg(unit))?;
        let told = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success() && told.is_empty(), "{service}: {told}");
    }
    Ok(())
}
