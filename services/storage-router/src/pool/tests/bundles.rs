//! What a pool promises of SCOs whose remains lie in bundles: whoever knows a SCO only as it was written reads it.

use sconce_schemas::bundle::{BUNDLE_FROM, BundleIndex, KeptCluster, Member};
use sconce_schemas::{ClusterAddress, ScoSize, Slot};

use super::*;

const FRONT: u64 = 8192;

fn object(id: u64, version: u16) -> ObjectName {
    ObjectName::Sco {
        volume: VolumeId::from_u128(0xabc),
        id: ScoId(id),
        epoch: Epoch(1 + id / 100),
        version,
    }
}

fn cluster(id: u64, slot: u16) -> Bytes {
    content(id * 100 + u64::from(slot), 4096)
}

fn member(id: u64, slots: &[u16]) -> Member {
    let size = ScoSize::new(64).unwrap();
    Member {
        sco: ScoId(id),
        epoch: Epoch(1 + id / 100),
        size,
        length: size.file_len(),
        kept: slots
            .iter()
            .map(|slot| KeptCluster {
                slot: Slot(*slot),
                address: ClusterAddress(7),
                crc: 0,
            })
            .collect(),
    }
}

/// Puts a bundle, named after the last of its SCOs.
async fn put_bundle(pool: &Arc<Pool>, version: u16, members: &[(u64, &[u16])]) -> ObjectName {
    let index = BundleIndex {
        volume: VolumeId::from_u128(0xabc),
        members: members.iter().map(|(id, slots)| member(*id, slots)).collect(),
    };
    let clusters: Vec<Bytes> = members
        .iter()
        .flat_map(|(id, slots)| slots.iter().map(|slot| cluster(*id, *slot)))
        .collect();
    let bytes = index.pack(clusters.iter().map(|cluster| &cluster[..])).unwrap();
    let name = object(members.last().unwrap().0, BUNDLE_FROM + version);
    pool.put(name, bytes.clone()).await.unwrap();
    assert_eq!(
        pool.get(name, 0, 1 << 20).await.unwrap(),
        bytes,
        "as it is stored"
    );
    name
}

async fn reads(pool: &Arc<Pool>, id: u64, slots: &[u16]) {
    assert_eq!(pool.stat(object(id, 0)).await.unwrap(), FRONT + 64 * 4096);
    for slot in slots {
        let read = pool
            .get(object(id, 0), FRONT + u64::from(*slot) * 4096, 4096)
            .await;
        assert_eq!(read.unwrap(), cluster(id, *slot), "SCO {id} slot {slot}");
    }
    let all = pool.get(object(id, 0), FRONT, 64 * 4096).await.unwrap();
    for slot in 0..64_u16 {
        let at = usize::from(slot) * 4096;
        let expected = match slots.contains(&slot) {
            true => cluster(id, slot),
            false => Bytes::from_static(&[0; 4096]),
        };
        assert_eq!(all.slice(at..at + 4096), expected, "SCO {id} slot {slot}");
    }
}

#[tokio::test]
async fn a_sco_is_found_in_whichever_bundle_it_is() {
    let setup = setup(2, 2);
    let pool = &setup.pool;
    // An epoch ends between them.
    let first = put_bundle(pool, 0, &[(98, &[1, 5]), (99, &[0]), (100, &[2, 3, 63])]).await;
    let second = put_bundle(pool, 0, &[(103, &[9]), (105, &[1, 2])]).await;
    for _ in 0..2 {
        reads(pool, 98, &[1, 5]).await;
        reads(pool, 100, &[2, 3, 63]).await;
        reads(pool, 103, &[9]).await;
        pool.versions.clear();
    }
    // One that a crash left between the SCO and its bundle, and one that lost its last SCO.
    put_bundle(pool, 7, &[(98, &[1, 5])]).await;
    let merged = put_bundle(pool, 1, &[(98, &[5]), (100, &[3]), (103, &[9]), (105, &[2])]).await;
    pool.delete(first).await.unwrap();
    pool.delete(second).await.unwrap();
    pool.delete(object(98, BUNDLE_FROM + 7)).await.unwrap();
    reads(pool, 98, &[5]).await;
    reads(pool, 100, &[3]).await;
    reads(pool, 103, &[9]).await;
    put_bundle(pool, 1, &[(98, &[5]), (100, &[3])]).await;
    pool.delete(merged).await.unwrap();
    reads(pool, 100, &[3]).await;
    for gone in [99, 103, 105] {
        let refusal = pool.get(object(gone, 0), 0, 10).await.unwrap_err();
        assert_eq!(
            (refusal.remedy, refusal.code),
            (Remedy::Reject, RefusalCode::NotFound)
        );
        assert!(refusal.text.contains(&object(gone, 0).to_string()), "{refusal}");
    }
}

#[tokio::test]
async fn a_bundle_behind_many_others_is_found_and_a_damaged_one_is_told() {
    let setup = setup(2, 2);
    let pool = &setup.pool;
    put_bundle(pool, 0, &[(1, &[1]), (5000, &[1])]).await;
    for id in 2..20 {
        put_bundle(pool, 0, &[(id, &[1])]).await;
    }
    reads(pool, 1, &[1]).await;
    pool.versions.clear();
    setup.faulty[0].set(ABSENT);
    reads(pool, 1, &[1]).await;
    setup.faulty[0].set(NONE);
    pool.versions.clear();
    let name = object(5000, BUNDLE_FROM);
    for backend in 0..2 {
        let mut stored = setup.memory[backend].stored(name).unwrap().to_vec();
        stored[200] ^= 1;
        setup.memory[backend].damage(name, stored.into());
    }
    let refusal = pool.get(object(1, 0), 0, 10).await.unwrap_err();
    assert_eq!(refusal.remedy, Remedy::Damaged, "{refusal}");
    assert!(refusal.text.contains(&name.to_string()), "{refusal}");
}

#[tokio::test]
async fn what_is_no_bundle_is_not_stored_as_one() {
    let setup = setup(2, 2);
    let refusal = setup
        .pool
        .put(object(1, BUNDLE_FROM), content(1, 9000))
        .await
        .unwrap_err();
    assert_eq!(
        (refusal.remedy, refusal.code),
        (Remedy::Reject, RefusalCode::Invalid)
    );
    assert_eq!(setup.copies(object(1, BUNDLE_FROM)), Vec::<usize>::new());
}
