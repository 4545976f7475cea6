//! Changing a settings file that `compose/local/settings` wrote, before the service reads it.
//!
//! Keeps: nothing.
//! Order: none.
//! Crash: nothing.
//! Knows TOML, and no service's keys.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use toml::{Table, Value};

/// Sets `key` (`section.key`, as deep as need be) in `<run_dir>/<file>.toml`.
///
/// # Errors
/// The file is missing or no TOML, or the key goes through something that is no table.
pub fn set(run_dir: &Path, file: &str, key: &str, value: impl Into<Value>) -> Result<()> {
    let path = run_dir.join(format!("{file}.toml"));
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let mut root: Table = text.parse()?;
    let (tables, last) = key.rsplit_once('.').unwrap_or(("", key));
    let mut table = &mut root;
    for name in tables.split('.').filter(|name| !name.is_empty()) {
        let inner = table.entry(name).or_insert_with(|| Table::new().into());
        table = inner
            .as_table_mut()
            .with_context(|| format!("{name} in {key} is no table"))?;
    }
    table.insert(last.to_owned(), value.into());
    fs::write(&path, toml::to_string(&root)?)?;
    Ok(())
}
