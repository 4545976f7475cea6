//! What every back end must do, whatever its kind: the same calls, the same answers.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use sconce_runtime::Chance;
use sconce_schemas::object::ObjectKind;
use sconce_schemas::stored_object::SealedObject;
use sconce_schemas::{CheckpointId, Epoch, ManifestSeq, ObjectName, ScoId, VolumeId};
use sconce_storage_router::checked::Checked;
use sconce_storage_router::workers::Workers;
use sconce_storage_router::{Backend, BackendError};

pub(crate) fn volume(id: u128) -> VolumeId {
    VolumeId::from_u128(id)
}

pub(crate) fn sco(id: u64) -> ObjectName {
    ObjectName::Sco {
        volume: volume(1),
        id: ScoId(id),
        epoch: Epoch(2),
        version: 0,
    }
}

pub(crate) fn content(seed: u64, len: usize) -> Bytes {
    let mut bytes = vec![0; len];
    Chance::seeded(seed).fill(&mut bytes);
    bytes.into()
}

pub(crate) fn object(id: u64, seed: u64, len: usize) -> SealedObject {
    SealedObject::seal(sco(id), content(seed, len)).unwrap()
}

/// Fails where a back end does not conform. Faults that pass are asked again.
pub(crate) async fn conforms(backend: Arc<dyn Backend>) {
    let checked = Checked::new(
        Arc::clone(&backend),
        Workers::bounded(4, 1 << 30),
        Duration::from_secs(20),
    );
    puts_and_ranges(&checked).await;
    put_if_absent(&checked, &*backend).await;
    many_puts_of_one_object(&checked).await;
    listing(&checked).await;
    deleting(&checked).await;
}

async fn again<T>(mut ask: impl AsyncFnMut() -> Result<T, BackendError>) -> Result<T, BackendError> {
    for _ in 0..1000 {
        match ask().await {
            Err(BackendError::Unavailable { .. } | BackendError::Full) => {}
            answer => return answer,
        }
    }
    panic!("the back end never came back");
}

async fn put(checked: &Checked, object: &SealedObject) -> Result<(), BackendError> {
    again(async || checked.put(object).await).await
}

async fn get(checked: &Checked, name: ObjectName, offset: u64, length: u64) -> Result<Bytes, BackendError> {
    again(async || checked.get(name, offset, length).await).await
}

async fn puts_and_ranges(checked: &Checked) {
    assert_eq!(get(checked, sco(1), 0, 10).await, Err(BackendError::NotFound));
    assert_eq!(
        again(async || checked.stat(sco(1)).await).await,
        Err(BackendError::NotFound)
    );
    for (id, len) in [
        (10, 0),
        (11, 1),
        (12, 4095),
        (13, 4096),
        (14, 4097),
        (15, 1 << 20),
        (16, (6 << 20) + 77),
    ] {
        let data = content(id, len);
        put(checked, &object(id, id, len)).await.unwrap();
        assert_eq!(again(async || checked.stat(sco(id)).await).await, Ok(len as u64));
        assert_eq!(get(checked, sco(id), 0, u64::MAX).await, Ok(data.clone()));
        for (offset, length) in [
            (0, 0),
            (0, 1),
            (4095, 2),
            (4096, 4096),
            (5000, 70_000),
            (1 << 40, 5),
            (u64::MAX, 9),
        ] {
            let from = usize::try_from(offset).unwrap().min(len);
            let to = usize::try_from(u64::saturating_add(offset, length))
                .unwrap()
                .min(len);
            assert_eq!(
                get(checked, sco(id), offset, length).await,
                Ok(data.slice(from..to)),
                "{len} {offset}+{length}"
            );
        }
    }
}

async fn put_if_absent(checked: &Checked, backend: &dyn Backend) {
    let first = object(20, 1, 50_000);
    put(checked, &first).await.unwrap();
    put(checked, &first)
        .await
        .expect("the same object again succeeds");
    for other in [object(20, 2, 50_000), object(20, 1, 49_999), object(20, 1, 0)] {
        assert_eq!(put(checked, &other).await, Err(BackendError::Exists));
    }
    assert_eq!(
        get(checked, sco(20), 0, 50_000).await,
        Ok(content(1, 50_000)),
        "nothing was overwritten"
    );
    again(async || backend.replace(object(20, 2, 9)).await)
        .await
        .unwrap();
    assert_eq!(
        get(checked, sco(20), 0, 50_000).await,
        Ok(content(2, 9)),
        "a repair replaces"
    );
}

async fn many_puts_of_one_object(checked: &Checked) {
    let seeds = [5, 6, 5, 6, 5, 6, 5, 6];
    let puts = join_all(seeds.map(async |seed| (seed, put(checked, &object(30, seed, 20_000)).await))).await;
    let stored = get(checked, sco(30), 0, u64::MAX).await.unwrap();
    for (seed, done) in puts {
        let is_stored = stored == content(seed, 20_000);
        assert_eq!(
            done,
            if is_stored {
                Ok(())
            } else {
                Err(BackendError::Exists)
            },
            "one content wins"
        );
    }
}

async fn listing(checked: &Checked) {
    let list =
        async |kind, after, limit| again(async || checked.list(volume(5), kind, after, limit).await).await;
    assert_eq!(list(ObjectKind::Sco, None, 10).await, Ok(vec![]));
    let name = |id, epoch, version| ObjectName::Sco {
        volume: volume(5),
        id: ScoId(id),
        epoch: Epoch(epoch),
        version,
    };
    let scos = [
        name(1, 1, 0),
        name(2, 1, 0),
        name(2, 1, 7),
        name(2, 3, 0),
        name(16, 3, 0),
        name(0x1_0000, 3, 1),
    ];
    let map = ObjectName::Map {
        volume: volume(5),
        id: CheckpointId(1),
        epoch: Epoch(1),
    };
    let manifest = ObjectName::Manifest {
        volume: volume(7),
        seq: ManifestSeq(1),
        epoch: Epoch(1),
    };
    for name in scos.iter().rev().chain([&map, &manifest]) {
        put(
            checked,
            &SealedObject::seal(*name, Bytes::from_static(b"x")).unwrap(),
        )
        .await
        .unwrap();
    }
    assert_eq!(list(ObjectKind::Sco, None, 100).await, Ok(scos.to_vec()));
    assert_eq!(list(ObjectKind::Map, None, 100).await, Ok(vec![map]));
    assert_eq!(list(ObjectKind::Manifest, None, 100).await, Ok(vec![]));
    for limit in 1..=scos.len() {
        let mut paged = Vec::new();
        loop {
            let page = list(ObjectKind::Sco, paged.last().copied(), limit).await.unwrap();
            let is_last = page.len() < limit;
            paged.extend(page);
            if is_last {
                break;
            }
        }
        assert_eq!(paged, scos, "in pages of {limit}");
    }
    let volumes = async |after, limit| again(async || checked.list_volumes(after, limit).await).await;
    assert_eq!(
        volumes(None, 100).await,
        Ok(vec![volume(1), volume(5), volume(7)])
    );
    assert_eq!(volumes(Some(volume(1)), 1).await, Ok(vec![volume(5)]));
    assert_eq!(volumes(Some(volume(7)), 1).await, Ok(vec![]));
}

async fn deleting(checked: &Checked) {
    let delete = async |name| again(async || checked.delete(name).await).await;
    assert_eq!(delete(sco(99)).await, Ok(()), "what is not there is no error");
    let manifest = ObjectName::Manifest {
        volume: volume(7),
        seq: ManifestSeq(1),
        epoch: Epoch(1),
    };
    for _ in 0..2 {
        delete(manifest).await.unwrap();
        assert_eq!(get(checked, manifest, 0, 1).await, Err(BackendError::NotFound));
        let volumes = again(async || checked.list_volumes(None, 100).await)
            .await
            .unwrap();
        assert_eq!(
            volumes,
            [volume(1), volume(5)],
            "a volume without objects is not listed"
        );
        put(
            checked,
            &SealedObject::seal(manifest, Bytes::from_static(b"x")).unwrap(),
        )
        .await
        .unwrap();
    }
}
