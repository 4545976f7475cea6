//! Keeps: changes of mode, owner and times.
//! Order, crash: as every change of the tree.
//! Knows no permissions: who may change what is the front end's to say.

use sconce_schemas::records::InodeRecord;

use super::changes::{Changes, Plan};
use super::{Names, NamesError};

/// What of an inode's attributes changes; `None` stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SetAttributes {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Last change of the content, in nanoseconds since 1970.
    pub mtime_ns: Option<i64>,
}

impl Names {
    /// Changes an inode's attributes and answers all of them.
    ///
    /// # Errors
    /// It does not exist; the registry is unreachable.
    pub async fn set_attributes(&self, inode: u64, set: SetAttributes) -> Result<InodeRecord, NamesError> {
        let at = || format!("inode {inode:016x}");
        self.change(at, async |_| {
            let mut seen = self.inode(inode).await?;
            let record = &mut seen.record;
            record.mode = set.mode.map_or(record.mode, |mode| mode & 0o7777);
            record.uid = set.uid.unwrap_or(record.uid);
            record.gid = set.gid.unwrap_or(record.gid);
            record.mtime_ns = set.mtime_ns.unwrap_or(record.mtime_ns);
            record.ctime_ns = self.now_ns();
            let mut changes = Changes::default();
            changes.replace(&seen);
            Ok(Plan {
                changes,
                outcome: seen.record,
            })
        })
        .await
    }
}
