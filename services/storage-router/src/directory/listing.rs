//! What a back end's directory holds, in sorted pages.
//!
//! Keeps: at most one page of names in memory, however many files there are.
//! Order: names sort as `ObjectName` and `VolumeId` do, which is how their text sorts.
//! Crash: nothing; a listing that runs beside puts and deletes shows each of them or not.
//! Knows no content: only names. Whatever is not named like an object is left out.

use std::collections::BinaryHeap;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use sconce_schemas::object::ObjectKind;
use sconce_schemas::{ObjectName, VolumeId};

use super::root::{Root, failed};
use crate::backend::BackendError;

const KINDS: [ObjectKind; 3] = [ObjectKind::Sco, ObjectKind::Map, ObjectKind::Manifest];

pub(super) fn objects(
    root: &Root,
    volume: VolumeId,
    kind: ObjectKind,
    after: Option<ObjectName>,
    limit: usize,
) -> Result<Vec<ObjectName>, BackendError> {
    let folder = root.ready()?.join(volume.to_string()).join(kind.as_str());
    let parse =
        |leaf: &str| object(volume, kind, leaf).filter(|name| after.is_none_or(|after| *name > after));
    let names = first_sorted(&folder, limit, parse).map_err(failed("list", &folder))?;
    if names.is_empty() {
        root.look_again()?;
    }
    Ok(names)
}

pub(super) fn volumes(
    root: &Root,
    mut after: Option<VolumeId>,
    limit: usize,
) -> Result<Vec<VolumeId>, BackendError> {
    let dir = root.ready()?;
    root.look_again()?;
    let mut found = Vec::new();
    while found.len() < limit {
        let parse = |name: &str| {
            name.parse()
                .ok()
                .filter(|id| after.is_none_or(|after| *id > after))
        };
        let page = first_sorted(dir, limit, parse).map_err(failed("list", dir))?;
        let is_last = page.len() < limit;
        after = page.last().copied().or(after);
        for volume in page {
            let has_any = KINDS.into_iter().try_fold(false, |any, kind| {
                Ok(any || has_objects(&dir.join(volume.to_string()).join(kind.as_str()), volume, kind)?)
            });
            if has_any.map_err(failed("list", dir))? {
                found.push(volume);
            }
        }
        if is_last {
            break;
        }
    }
    found.truncate(limit);
    Ok(found)
}

fn object(volume: VolumeId, kind: ObjectKind, leaf: &str) -> Option<ObjectName> {
    format!("{volume}/{}/{leaf}", kind.as_str()).parse().ok()
}

fn has_objects(folder: &Path, volume: VolumeId, kind: ObjectKind) -> io::Result<bool> {
    let mut any = false;
    each_name(folder, |leaf| {
        any = object(volume, kind, leaf).is_some();
        !any
    })?;
    Ok(any)
}

/// The `limit` smallest of what `parse` takes from the names in a directory.
fn first_sorted<T: Ord>(dir: &Path, limit: usize, parse: impl Fn(&str) -> Option<T>) -> io::Result<Vec<T>> {
    let mut smallest = BinaryHeap::with_capacity(limit.saturating_add(1).min(1024));
    each_name(dir, |name| {
        if let Some(parsed) = parse(name)
            && (smallest.len() < limit || smallest.peek().is_some_and(|largest| parsed < *largest))
        {
            smallest.push(parsed);
            if smallest.len() > limit {
                smallest.pop();
            }
        }
        true
    })?;
    Ok(smallest.into_sorted_vec())
}

/// Calls `see` with each name, until it says that it has seen enough. A directory that is not there has none.
fn each_name(dir: &Path, mut see: impl FnMut(&str) -> bool) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        if entry?.file_name().to_str().is_some_and(|name| !see(name)) {
            break;
        }
    }
    Ok(())
}
