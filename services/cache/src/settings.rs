//! The section `[cache]` of a service's settings.
//!
//! Keeps: what a person may type.
//! Order: none.
//! Crash: nothing.
//! Knows no service.

use std::path::PathBuf;

use sconce_runtime::settings::ByteSize;
use serde::{Deserialize, Deserializer, de};

/// Bytes of the smallest cache: below it, what is kept of it beside the pieces would be most of it.
pub const SIZE_MIN: u64 = 1 << 20;

/// Where a cache is and how large.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheSettings {
    /// A directory on an SSD, the service's own. All in it may be deleted at any time.
    pub directory: PathBuf,
    /// Bytes that its file may take, at least [`SIZE_MIN`].
    #[serde(deserialize_with = "large_enough")]
    pub size: ByteSize,
}

fn large_enough<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ByteSize, D::Error> {
    let size = ByteSize::deserialize(deserializer)?;
    if size.bytes() >= SIZE_MIN {
        return Ok(size);
    }
    let text = format!("a cache of {size}; right would be 1 MiB or more, or no section [cache] for none");
    Err(de::Error::custom(text))
}
