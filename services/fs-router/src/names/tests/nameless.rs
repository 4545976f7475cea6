//! Files that are open when their name goes.

use std::time::Duration;

use sconce_schemas::NodeName;
use sconce_schemas::records::{ROOT_INODE, VolumePhase, keys};
use sconce_schemas::wire::Role;
use tokio::time::Instant;

use super::{node, path, put, tree, volume};
use crate::nameless::{Nameless, NamelessSettings};
use crate::names::{Keep, NamelessFile, Names, NamesError, NewEntry, Replace, Resolved};

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

/// A file that was removed while `holder` had it open.
async fn open_without_a_name(names: &Names, at: &str, holder: &NodeName) -> Resolved {
    let file = names
        .create_volume(&path(at), &volume(), NewEntry::FILE, false)
        .await
        .unwrap();
    let keep = Keep::Open {
        holder,
        is_open: &|_| true,
        is_used: &|_| false,
    };
    names.unlink(ROOT_INODE, &at[1..], keep).await.unwrap();
    file
}

#[tokio::test]
async fn a_lost_fs_routers_nameless_files_are_removed_by_another() {
    let names = tree(1).await;
    let [lost, living, this]: [NodeName; 3] = ["fs-1", "fs-11", "fs-2"].map(|name| name.parse().unwrap());
    for runs in [&living, &this] {
        put(
            names.registry(),
            keys::node(runs),
            &node(runs.as_str(), Role::FsRouter),
        )
        .await;
    }
    let gone = open_without_a_name(&names, "/gone", &lost).await;
    let open = open_without_a_name(&names, "/open", &living).await;
    let own = open_without_a_name(&names, "/own", &this).await;
    let settings = NamelessSettings::default();
    let mut looker = Nameless::new(names.clone(), this.clone(), true, settings);
    let (start, after) = (Instant::now(), settings.adopt_after.duration());
    let short = Duration::from_millis(1);
    assert_eq!(looker.look(start).await.unwrap(), [], "it may be restarting");
    assert_eq!(looker.look(start + after - short).await.unwrap(), []);

    // It was back meanwhile: it is counted anew.
    put(names.registry(), keys::node(&lost), &node("fs-1", Role::FsRouter)).await;
    assert_eq!(looker.look(start + after).await.unwrap(), []);
    let leave = sconce_schemas::wire::registry::Change::delete(keys::node(&lost), None);
    names.registry().commit(vec![leave]).await.unwrap();
    let again = start + after + after;
    assert_eq!(looker.look(again).await.unwrap(), []);
    assert_eq!(looker.look(again + after).await.unwrap(), [gone.volume]);
    assert_eq!(
        names.volume(gone.volume).await.unwrap().phase,
        VolumePhase::Deleting
    );

    let still = |file: &Resolved, holder: &NodeName| NamelessFile {
        holder: holder.clone(),
        inode: file.inode,
        volume: file.volume,
    };
    let left = names.all_nameless().await.unwrap();
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(left.contains(&still(&open, &living)) && left.contains(&still(&own, &this)));

    // Started again without a mount, it has nothing open that it could come back for.
    let mut looker = Nameless::new(names.clone(), this, false, settings);
    assert_eq!(looker.look(start).await.unwrap(), [own.volume]);
}
