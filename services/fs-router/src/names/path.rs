//! Keeps: the rules of paths and names in a pool's tree.
//! Order, crash: nothing; paths are values.
//! Knows no registry.

use std::fmt;
use std::str::FromStr;

use sconce_schemas::DecodeError;
use sconce_schemas::log_record::check_snapshot_name;

/// Most components of a path: bounds the walk from the root to a file, and the registry commit that moves a directory.
pub const DEPTH_MAX: usize = 64;

/// Most bytes of one component, as in every file system that a guest's tools know.
pub const NAME_BYTES_MAX: usize = 255;

/// Why a path or a name is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It does not start at the root.
    #[error("path {path:?} is not absolute: write it as {:?}", format!("/{path}"))]
    Relative {
        /// What was given.
        path: String,
    },
    /// Two slashes in a row, or one at the end.
    #[error("path {path:?} has an empty component: remove the '/' at its end or the doubled one")]
    Empty {
        /// What was given.
        path: String,
    },
    /// `.` or `..`.
    #[error("name {name:?} is reserved: a path in a pool is written without '.' and '..'")]
    Dots {
        /// The component.
        name: String,
    },
    /// Longer than [`NAME_BYTES_MAX`].
    #[error("name {name:?} has {} bytes; at most {NAME_BYTES_MAX} fit", name.len())]
    Long {
        /// The component.
        name: String,
    },
    /// A character that names cannot have.
    #[error("name {name:?} has {found:?}, which {why}")]
    Character {
        /// The component.
        name: String,
        /// The character.
        found: char,
        /// Why not.
        why: &'static str,
    },
    /// Not UTF-8.
    #[error("name {name:?} is not UTF-8")]
    NotUtf8 {
        /// The name as far as it can be shown.
        name: String,
    },
    /// More than [`DEPTH_MAX`] components.
    #[error("path {path:?} has {depth} components; at most {DEPTH_MAX} fit")]
    Deep {
        /// What was given.
        path: String,
        /// Its components.
        depth: usize,
    },
    /// A path without a snapshot's name, where one is needed.
    #[error("path {path:?} names no snapshot: write it as {:?}", format!("{path}@NAME"))]
    NoSnapshot {
        /// What was given.
        path: String,
    },
    /// A snapshot's name that is none.
    #[error("path {path:?}: {cause}")]
    Snapshot {
        /// What was given.
        path: String,
        /// What is wrong.
        cause: DecodeError,
    },
    /// The root, where a name is needed.
    #[error("path \"/\" is the root directory, which has no name to create, move or remove")]
    Root,
}

/// Checks one component of a path.
///
/// # Errors
/// Empty, `.`, `..`, longer than 255 bytes, or with `/`, `@` or a NUL.
pub fn check_name(name: &str) -> Result<(), PathError> {
    let named = || name.to_owned();
    let character = |found, why| PathError::Character {
        name: named(),
        found,
        why,
    };
    match name {
        "" => return Err(PathError::Empty { path: named() }),
        "." | ".." => return Err(PathError::Dots { name: named() }),
        _ if name.len() > NAME_BYTES_MAX => return Err(PathError::Long { name: named() }),
        _ => {}
    }
    match name.chars().find(|c| matches!(c, '/' | '\0' | '@')) {
        Some('/') => Err(character('/', "separates names")),
        Some('\0') => Err(character('\0', "no name can hold")),
        Some(found) => Err(character(found, "is kept for snapshots (disk.raw@monday)")),
        None => Ok(()),
    }
}

/// An absolute path in a pool's tree that keeps the rules: `/vm1/disk.raw`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolPath(String);

impl PoolPath {
    /// The root directory.
    #[must_use]
    pub fn root() -> Self {
        Self("/".to_owned())
    }

    /// The path as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its components, the topmost first; none for the root.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('/').filter(|component| !component.is_empty())
    }

    /// The directory that it is in, and its name there.
    ///
    /// # Errors
    /// The root has none.
    pub fn split(&self) -> Result<(PoolPath, &str), PathError> {
        match self.0.rsplit_once('/') {
            Some((_, "")) | None => Err(PathError::Root),
            Some(("", name)) => Ok((Self::root(), name)),
            Some((parent, name)) => Ok((Self(parent.to_owned()), name)),
        }
    }

    /// The path of `name` in this directory. The depth is not checked here: it was when the name was made.
    ///
    /// # Errors
    /// As [`check_name`].
    pub fn join(&self, name: &str) -> Result<PoolPath, PathError> {
        check_name(name)?;
        let slash = if self.0.len() == 1 { "" } else { "/" };
        Ok(Self(format!("{}{slash}{name}", self.0)))
    }
}

/// A snapshot's path: `/vm1/disk.raw@monday`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotPath {
    /// The volume.
    pub volume: PoolPath,
    /// The snapshot's name.
    pub name: String,
}

impl fmt::Display for SnapshotPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.volume, self.name)
    }
}

impl FromStr for SnapshotPath {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, PathError> {
        let Some((volume, name)) = text.rsplit_once('@') else {
            return Err(PathError::NoSnapshot {
                path: text.to_owned(),
            });
        };
        check_snapshot_name(name).map_err(|cause| PathError::Snapshot {
            path: text.to_owned(),
            cause,
        })?;
        Ok(Self {
            volume: volume.parse()?,
            name: name.to_owned(),
        })
    }
}

impl fmt::Display for PoolPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for PoolPath {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, PathError> {
        let path = || text.to_owned();
        let Some(below) = text.strip_prefix('/') else {
            return Err(PathError::Relative { path: path() });
        };
        if below.is_empty() {
            return Ok(Self::root());
        }
        let mut depth = 0;
        for name in below.split('/') {
            check_name(name).map_err(|error| match error {
                PathError::Empty { .. } => PathError::Empty { path: path() },
                error => error,
            })?;
            depth += 1;
        }
        if depth > DEPTH_MAX {
            return Err(PathError::Deep { path: path(), depth });
        }
        Ok(Self(path()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_keeps_the_rules_is_itself_and_splits() {
        let path: PoolPath = "/vm1/disk.raw".parse().unwrap();
        assert_eq!(path.as_str(), "/vm1/disk.raw");
        assert_eq!(path.components().collect::<Vec<_>>(), ["vm1", "disk.raw"]);
        let (parent, name) = path.split().unwrap();
        assert_eq!((parent.as_str(), name), ("/vm1", "disk.raw"));
        assert_eq!(parent.join(name).unwrap(), path);
        let (root, name) = parent.split().unwrap();
        assert_eq!((root.clone(), name), (PoolPath::root(), "vm1"));
        assert_eq!(root.split(), Err(PathError::Root));
        assert_eq!(root.components().count(), 0);
    }

    #[test]
    fn each_broken_rule_has_its_error() {
        let error = |text: &str| text.parse::<PoolPath>().unwrap_err();
        assert!(matches!(error("vm1"), PathError::Relative { .. }));
        assert!(matches!(error(""), PathError::Relative { .. }));
        assert!(matches!(error("/vm1/"), PathError::Empty { .. }));
        assert!(matches!(error("//vm1"), PathError::Empty { .. }));
        assert!(matches!(error("/a/../b"), PathError::Dots { .. }));
        assert!(matches!(error("/./b"), PathError::Dots { .. }));
        assert!(matches!(error("/a\0b"), PathError::Character { found: '\0', .. }));
        assert!(matches!(
            error("/disk@monday"),
            PathError::Character { found: '@', .. }
        ));
        assert!(matches!(
            error(&format!("/{}", "x".repeat(256))),
            PathError::Long { .. }
        ));
        assert!(matches!(
            error(&"/d".repeat(65)),
            PathError::Deep { depth: 65, .. }
        ));
        assert!("/d".repeat(64).parse::<PoolPath>().is_ok());
        assert!(format!("/{}", "x".repeat(255)).parse::<PoolPath>().is_ok());
    }
}
