//! Uploads in parts, listings in pages and from before, delays, and an idle back end.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use sconce_schemas::ObjectName;
use sconce_schemas::object::ObjectKind;
use sconce_storage_router::checked::Checked;
use sconce_storage_router::workers::Workers;
use sconce_storage_router::{Backend as _, BackendError};
use sconce_test_s3::Faults;

use super::{DEADLINE, Site, passing};
use crate::suite::{content, object, sco, volume};

fn checked(backend: sconce_storage_router::s3::S3Backend) -> Checked {
    Checked::new(
        std::sync::Arc::new(backend),
        Workers::bounded(4, 1 << 30),
        DEADLINE,
    )
}

/// Three parts of 8 MiB, the last one not full.
const LARGE: usize = (20 << 20) + 5;

#[tokio::test]
async fn a_large_object_goes_in_parts_and_is_never_overwritten() {
    let site = Site::new();
    let backend = checked(site.attached("").await);
    let before = site.server.counts();
    backend.put(&object(1, 1, LARGE)).await.unwrap();
    let after = site.server.counts();
    assert_eq!(after.completions - before.completions, 1);
    assert_eq!(after.puts - before.puts, 5, "begin, three parts, complete");
    backend
        .put(&object(1, 1, LARGE))
        .await
        .expect("the same again succeeds");
    assert_eq!(backend.put(&object(1, 2, LARGE)).await, Err(BackendError::Exists));
    for (offset, length) in [
        (0, LARGE),
        ((8 << 20) - 5000, 10_000),
        (LARGE - 3, 100),
        (LARGE + 9, 1),
    ] {
        let end = (offset + length).min(LARGE);
        let due = content(1, LARGE).slice(offset.min(end)..end);
        assert_eq!(backend.get(sco(1), offset as u64, length as u64).await, Ok(due));
    }
    backend.replace(&object(1, 3, LARGE)).await.unwrap();
    assert_eq!(
        backend.get(sco(1), 0, 100).await,
        Ok(content(3, LARGE).slice(..100))
    );
}

#[tokio::test]
async fn what_came_while_parts_were_on_their_way_is_not_overwritten() {
    let site = Site::new();
    let backend = checked(site.attached("").await);
    site.server.set(Faults {
        puts_wait: true,
        ..Faults::default()
    });
    let before = site.server.counts().puts;
    let large = object(1, 1, LARGE);
    let other = object(1, 2, 100);
    let come = async {
        // The upload was begun, so the look is over; the parts wait.
        while site.server.counts().puts < before + 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let file = site.server.path(&format!("vms/{}", sco(1)));
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, other.to_stored()).unwrap();
        site.server.set(Faults::default());
    };
    let (put, ()) = tokio::join!(backend.put(&large), come);
    assert_eq!(put, Err(BackendError::Exists));
    assert_eq!(backend.get(sco(1), 0, u64::MAX).await, Ok(content(2, 100)));
}

#[tokio::test]
async fn parts_that_break_are_sent_again_and_leave_one_whole_object() {
    let site = Site::new();
    let backend = checked(site.attached("").await);
    site.server.set(passing());
    let names = async |id| {
        for _ in 0..50 {
            match backend.put(&object(id, id, LARGE)).await {
                Err(BackendError::Unavailable { .. }) => {}
                done => return done,
            }
        }
        panic!("the back end never came back");
    };
    for id in 1..5 {
        names(id).await.unwrap();
    }
    site.server.set(Faults::default());
    for id in 1..5 {
        assert_eq!(backend.get(sco(id), 0, u64::MAX).await, Ok(content(id, LARGE)));
    }
}

#[tokio::test]
async fn a_listing_goes_on_where_a_page_ended_and_leaves_out_what_is_not_ours() {
    let site = Site::new();
    let backend = site.attached("folder = \"f\"").await;
    backend.put_new(object(0, 1, 10)).await.unwrap();
    let folder = site.server.path(&format!("vms/f/{}/sco", volume(1)));
    let count = 2500_u64;
    for id in 1..count {
        let leaf = sco(id).to_string();
        std::fs::write(folder.join(leaf.rsplit('/').next().unwrap()), b"x").unwrap();
    }
    for foreign in ["0000", "notes.txt", "000000000001.00000002"] {
        std::fs::write(folder.join(foreign), b"x").unwrap();
    }
    let before = site.server.counts().lists;
    let all = backend
        .list(volume(1), ObjectKind::Sco, None, 100_000)
        .await
        .unwrap();
    assert_eq!(all, (0..count).map(sco).collect::<Vec<ObjectName>>());
    assert_eq!(site.server.counts().lists - before, 3, "pages of 1000");
    let some = backend
        .list(volume(1), ObjectKind::Sco, Some(sco(1700)), 1100)
        .await
        .unwrap();
    assert_eq!(some, (1701..count).map(sco).collect::<Vec<_>>());
    assert_eq!(backend.list_volumes(None, 10).await, Ok(vec![volume(1)]));
}

#[tokio::test]
async fn a_listing_from_before_harms_nothing_else() {
    let site = Site::new();
    let backend = checked(site.attached("").await);
    let list = async || backend.list(volume(1), ObjectKind::Sco, None, 10).await.unwrap();
    backend.put(&object(1, 1, 10)).await.unwrap();
    assert_eq!(list().await, [sco(1)]);
    site.server.set(Faults {
        stale_lists: true,
        ..Faults::default()
    });
    backend.put(&object(2, 2, 10)).await.unwrap();
    backend.delete(sco(1)).await.unwrap();
    assert_eq!(list().await, [sco(1)], "as it was");
    // What counts is the key: a listing decides nothing about an object.
    assert_eq!(backend.get(sco(1), 0, 10).await, Err(BackendError::NotFound));
    assert_eq!(backend.get(sco(2), 0, 10).await, Ok(content(2, 10)));
    assert_eq!(backend.put(&object(2, 3, 10)).await, Err(BackendError::Exists));
    backend.put(&object(1, 4, 10)).await.unwrap();
    backend.delete(sco(1)).await.unwrap();
    backend.delete(sco(1)).await.unwrap();
    site.server.set(Faults::default());
    assert_eq!(list().await, [sco(2)]);
}

#[tokio::test]
async fn slow_puts_go_side_by_side() {
    let site = Site::new();
    let backend = site.attached("").await;
    let delay = Duration::from_millis(20);
    site.server.set(Faults {
        put_delay: delay,
        ..Faults::default()
    });
    let count = 200;
    for put in join_all((0..count).map(|id| backend.put_new(object(id, id, 4096)))).await {
        put.unwrap();
    }
    let at_once = site.server.counts().puts_at_once;
    assert!((2..=64).contains(&at_once), "{at_once} at once");
}

#[tokio::test]
async fn an_idle_back_end_asks_nothing() {
    let site = Site::new();
    let backend = site.attached("").await;
    backend.put_new(object(1, 1, 10)).await.unwrap();
    let before = site.server.counts();
    // How full it is is asked often, by whoever shows it.
    for _ in 0..10 {
        backend.space().await.unwrap();
    }
    assert_eq!(site.server.counts(), before);
    // One request for each thing that is asked of it, over one connection.
    for id in 2..12 {
        backend.put_new(object(id, 1, 10)).await.unwrap();
        assert_eq!(backend.read(sco(id), 0, 10).await.unwrap().bytes.len(), 10);
    }
    let after = site.server.counts();
    assert_eq!(after.requests - before.requests, 20);
    assert_eq!(after.connections, before.connections);
    let nothing = Bytes::new();
    let empty = backend.read(sco(1), 1 << 20, 10).await.unwrap();
    assert_eq!((empty.bytes, empty.stored_len), (nothing, 142));
}
