//! Writing what was measured into the documentation.
//!
//! Keeps: nothing.
//! Order: none.
//! Crash: a file that is written into is replaced whole.
//! Knows Markdown's comments, and no figures.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// Replaces what is between `<!-- NAME:begin -->` and `<!-- NAME:end -->` in the file.
pub(crate) fn write_between(path: &Path, name: &str, markdown: &str) -> Result<()> {
    let (begin, end) = (format!("<!-- {name}:begin -->"), format!("<!-- {name}:end -->"));
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let parts = text
        .split_once(&begin)
        .and_then(|(before, rest)| Some((before, rest.split_once(&end)?.1)));
    ensure!(
        parts.is_some(),
        "{} has no lines {begin} and {end}",
        path.display()
    );
    let (before, after) = parts.unwrap_or_default();
    let new = format!("{before}{begin}\n{}\n{end}{after}", markdown.trim_end());
    replace(path, new.as_bytes())
}

/// Replaces a file whole.
pub(crate) fn replace(path: &Path, content: &[u8]) -> Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    fs::write(&beside, content)
        .and_then(|()| fs::rename(&beside, path))
        .with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_its_own_markers_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("benchmarks.md");
        let text = "a\n<!-- x:begin -->\nold\n<!-- x:end -->\nb\n<!-- y:begin -->\nother\n<!-- y:end -->\n";
        fs::write(&path, text).unwrap();
        write_between(&path, "x", "| new |\n\n").unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let wanted =
            "a\n<!-- x:begin -->\n| new |\n<!-- x:end -->\nb\n<!-- y:begin -->\nother\n<!-- y:end -->\n";
        assert_eq!(text, wanted);
        assert!(write_between(&path, "z", "").is_err());
    }
}
