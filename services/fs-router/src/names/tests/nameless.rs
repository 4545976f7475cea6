//! Files that are open when their name goes.

use sconce_schemas::NodeName;
use sconce_schemas::records::{ROOT_INODE, VolumePhase};

use super::{path, tree, volume};
use crate::names::{Keep, NamesError, NewEntry, Replace};

#[tokio::test]
async fn an_open_file_outlives_its_name_until_its_holder_lets_it_go() {
    let names = tree(1).await;
    let (holder, other): (NodeName, NodeName) = ("fs-1".parse().unwrap(), "fs-11".parse().unwrap());
    let file = names
        .create_volume(&path("/f"), &volume(), NewEntry::FILE, false)
        .await
        .unwrap();
    let is_open = |inode: u64| inode == file.inode;
    let keep = Keep::Open {
        holder: &holder,
        is_open: &is_open,
        is_used: &|_| false,
    };
    let removed = names.unlink(ROOT_INODE, "f", keep).await.unwrap();
    assert!(removed.kept);
    assert!(matches!(
        names.resolve(&path("/f")).await,
        Err(NamesError::NotFound { .. })
    ));
    assert!(matches!(
        names.path_of(file.inode).await,
        Err(NamesError::NotFound { .. })
    ));
    assert_eq!(
        names.volume(file.volume).await.unwrap().phase,
        VolumePhase::Active
    );
    assert_eq!(names.nameless(&other).await.unwrap(), []);
    let nameless = names.nameless(&holder).await.unwrap();
    assert_eq!(
        nameless.iter().map(|file| file.inode).collect::<Vec<_>>(),
        [file.inode]
    );
    let gone = names.remove_nameless(&holder, file.inode).await.unwrap().unwrap();
    assert_eq!((gone.volume, gone.kept), (file.volume, false));
    assert_eq!(
        names.volume(file.volume).await.unwrap().phase,
        VolumePhase::Deleting
    );
    assert_eq!(names.remove_nameless(&holder, file.inode).await.unwrap(), None);
    assert!(matches!(
        names.attributes(file.inode).await,
        Err(NamesError::NotFound { .. })
    ));
}

#[tokio::test]
async fn a_replaced_file_that_is_not_open_is_deleted() {
    let names = tree(1).await;
    let create = async |at| {
        names
            .create_volume(&path(at), &volume(), NewEntry::FILE, false)
            .await
            .unwrap()
    };
    let (old, new) = (create("/old").await, create("/new").await);
    let holder: NodeName = "fs-1".parse().unwrap();
    let keep = Keep::Open {
        holder: &holder,
        is_open: &|inode| inode == new.inode,
        is_used: &|_| false,
    };
    let renamed = names
        .rename((ROOT_INODE, "new"), (ROOT_INODE, "old"), Replace::Yes, keep)
        .await
        .unwrap();
    let replaced = renamed.replaced.unwrap();
    assert_eq!((replaced.inode, replaced.kept), (old.inode, false));
    assert_eq!(
        names.volume(old.volume).await.unwrap().phase,
        VolumePhase::Deleting
    );
    assert_eq!(names.resolve(&path("/old")).await.unwrap().volume, new.volume);
}
