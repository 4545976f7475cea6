//! What the tests of several commands are made of.

use sconce_schemas::records::VolumeRecord;
use sconce_schemas::{NodeName, ScoSize, VolumeId, VolumeSize};

pub(crate) fn name(text: &str) -> NodeName {
    text.parse().expect("a name")
}

/// A volume as it was created.
pub(crate) fn volume(number: u8, owner: &str) -> VolumeRecord {
    VolumeRecord::unowned(
        VolumeId([number; 16]),
        VolumeSize::default(),
        ScoSize::default(),
        "default".to_owned(),
        name(owner),
    )
}
