//! Each way to be wrong has its own error, which names the thing.

use sconce_schemas::records::{ROOT_INODE, keys};
use sconce_schemas::wire::Role;
use sconce_schemas::wire::registry::Change;

use super::{node, path, pool, put, tree, volume};
use crate::names::{DEPTH_MAX, NamesError, NewEntry, NewVolume, SetAttributes};

#[tokio::test]
async fn errors_name_the_path() {
    let names = tree(1).await;
    names
        .create_volume(&path("/vm1/disk.raw"), &volume(), NewEntry::FILE, true)
        .await
        .unwrap();
    let create = async |at: &str| {
        let made = names
            .create_volume(&path(at), &volume(), NewEntry::FILE, false)
            .await;
        made.unwrap_err().to_string()
    };
    assert_eq!(create("/vm1/disk.raw").await, "/vm1/disk.raw exists already");
    assert_eq!(create("/vm2/disk.raw").await, "/vm2 does not exist");
    assert_eq!(
        create("/vm1/disk.raw/x").await,
        "/vm1/disk.raw is a file, not a directory"
    );
    let resolve = async |at: &str| names.resolve(&path(at)).await.unwrap_err().to_string();
    assert_eq!(resolve("/vm1").await, "/vm1 is a directory, not a file");
    assert_eq!(resolve("/vm1/none").await, "/vm1/none does not exist");
    assert_eq!(resolve("/").await, "/ is a directory, not a file");
    let remove = names.remove_file(&path("/vm1/none")).await.unwrap_err();
    assert_eq!(remove.to_string(), "/vm1/none does not exist");
}

#[tokio::test]
async fn pools_are_chosen_and_those_that_exist_are_told() {
    let names = tree(1).await;
    let of = |pool: Option<&str>| NewVolume {
        pool: pool.map(str::to_owned),
        ..volume()
    };
    let create = async |at: &str, pool: Option<&str>| {
        let made = names
            .create_volume(&path(at), &of(pool), NewEntry::FILE, false)
            .await?;
        Ok::<_, NamesError>(names.volume(made.volume).await?.pool)
    };
    assert_eq!(create("/a", None).await.unwrap(), "default");
    put(names.registry(), keys::pool("fast"), &pool("fast")).await;
    assert_eq!(create("/b", None).await.unwrap(), "default");
    assert_eq!(create("/c", Some("fast")).await.unwrap(), "fast");
    let error = create("/d", Some("slow")).await.unwrap_err().to_string();
    assert_eq!(
        error,
        "there is no storage pool slow; the pools are: default, fast"
    );
}

#[tokio::test]
async fn the_running_volume_router_with_the_fewest_volumes_owns_the_next() {
    let names = tree(1).await;
    for n in 0..3 {
        names
            .create_volume(&path(&format!("/{n}")), &volume(), NewEntry::FILE, false)
            .await
            .unwrap();
    }
    put(
        names.registry(),
        keys::node(&"vr-2".parse().unwrap()),
        &node("vr-2", Role::VolumeRouter),
    )
    .await;
    put(
        names.registry(),
        keys::node(&"sr-1".parse().unwrap()),
        &node("sr-1", Role::StorageRouter),
    )
    .await;
    let mut owners = Vec::new();
    for n in 3..8 {
        let at = path(&format!("/{n}"));
        let made = names
            .create_volume(&at, &volume(), NewEntry::FILE, false)
            .await
            .unwrap();
        owners.push(names.volume(made.volume).await.unwrap().owner.to_string());
    }
    assert_eq!(owners, ["vr-2", "vr-2", "vr-2", "vr-1", "vr-2"]);
    let wanted = NewVolume {
        owner: Some("vr-9".parse().unwrap()),
        ..volume()
    };
    let error = names
        .create_volume(&path("/9"), &wanted, NewEntry::FILE, false)
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "volume-router vr-9 is not running; those that are: vr-1, vr-2"
    );
}

#[tokio::test]
async fn a_damaged_record_of_one_volume_keeps_no_other_from_an_owner() {
    let names = tree(1).await;
    let vr_2 = keys::node(&"vr-2".parse().unwrap());
    put(names.registry(), vr_2, &node("vr-2", Role::VolumeRouter)).await;
    let create = async |at: &str| {
        let made = names
            .create_volume(&path(at), &volume(), NewEntry::FILE, false)
            .await
            .unwrap();
        (
            made.volume,
            names.volume(made.volume).await.unwrap().owner.to_string(),
        )
    };
    let (first, owner) = create("/1").await;
    assert_eq!(owner, "vr-1");
    let damaged = Change {
        key: keys::volume(first),
        expected: None,
        value: Some(b"no record".to_vec()),
        lease: None,
    };
    names.registry().commit(vec![damaged]).await.unwrap();
    // Its owner is not known any more, and it counts for nobody.
    assert_eq!(create("/2").await.1, "vr-1");
    assert_eq!(create("/3").await.1, "vr-2");
}

#[tokio::test]
async fn directories_have_a_deepest_level() {
    let names = tree(1).await;
    let deepest = path(&"/d".repeat(DEPTH_MAX));
    let inode = names.make_directories(&deepest).await.unwrap();
    assert_eq!(names.path_of(inode).await.unwrap(), deepest);
    let error = names
        .make_directory(inode, "e", NewEntry::DIRECTORY)
        .await
        .unwrap_err();
    assert!(matches!(error, NamesError::Deep { .. }), "{error}");
}

#[tokio::test]
async fn attributes_are_those_that_were_set_and_change_with_the_entries() {
    let names = tree(1).await;
    let set = SetAttributes {
        mode: Some(0o100_640),
        uid: Some(5),
        gid: None,
        mtime_ns: Some(-7),
    };
    let made = names
        .create_volume(&path("/f"), &volume(), NewEntry::FILE, false)
        .await
        .unwrap();
    let told = names.set_attributes(made.inode, set).await.unwrap();
    assert_eq!((told.mode, told.uid, told.gid, told.mtime_ns), (0o640, 5, 0, -7));
    assert_eq!(names.attributes(made.inode).await.unwrap(), told);
    let root = names
        .set_attributes(
            ROOT_INODE,
            SetAttributes {
                uid: Some(9),
                ..Default::default()
            },
        )
        .await;
    assert_eq!(root.unwrap().uid, 9);
    let before = names.set_attributes(
        ROOT_INODE,
        SetAttributes {
            mtime_ns: Some(0),
            ..Default::default()
        },
    );
    assert_eq!(before.await.unwrap().mtime_ns, 0);
    names.remove_file(&path("/f")).await.unwrap();
    let root = names.attributes(ROOT_INODE).await.unwrap();
    assert!(root.mtime_ns > 0 && root.uid == 9);
}

#[tokio::test]
async fn a_damaged_record_is_told_by_its_key() {
    let names = tree(1).await;
    let garbage = Change {
        key: keys::name(ROOT_INODE, "f"),
        expected: None,
        value: Some(vec![0xc1]),
        lease: None,
    };
    names.registry().commit(vec![garbage]).await.unwrap();
    let error = names.resolve(&path("/f")).await.unwrap_err();
    assert!(
        error.to_string().contains("name/0000000000000001/f is damaged"),
        "{error}"
    );
}
