//! Inspection of the back end: what a volume-router left is consistent, and whatever is damaged then is named.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;
use sconce_inspect::report::ProblemKind;
use sconce_inspect::show::{self, ExtentView};
use sconce_inspect::{Options, Report, Store, Verdict, check};
use sconce_schemas::manifest::Manifest;
use sconce_schemas::object::ObjectKind;
use sconce_schemas::records::Origin;
use sconce_schemas::stored_object::{SealedObject, Span};
use sconce_schemas::{CLUSTER_LEN, ObjectName, ScoSize, Slot, SnapshotId, VolumeId};

use crate::client::{Client, Model};
use crate::cluster::{Cluster, block_on, until};
use crate::snapshots::{remove, roll_back, take};

const MIB: u64 = 1 << 20;
const SIZE: usize = 2 << 20;

async fn checked(backend: &Path, data: bool, claims_max: Option<usize>) -> Report {
    let store = Store::open(&[backend.to_owned()]).unwrap();
    let options = Options {
        data,
        claims_max,
        ..Options::default()
    };
    check(&store, &options).await.unwrap()
}

fn told(report: &Report) -> Vec<&str> {
    let problems = report.volumes.iter().flat_map(|volume| &volume.problems);
    problems.map(|problem| problem.text.as_str()).collect()
}

fn orphans(report: &Report) -> BTreeSet<&str> {
    let orphans = report.volumes.iter().flat_map(|volume| &volume.orphans);
    orphans.map(|orphan| orphan.object.as_str()).collect()
}

/// Everything below a directory: path, length, times, content.
fn all_of(dir: &Path) -> Vec<(PathBuf, u64, SystemTime, u32)> {
    let (mut found, mut dirs) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let (path, meta) = {
                let entry = entry.unwrap();
                (entry.path(), entry.metadata().unwrap())
            };
            let content = if meta.is_dir() {
                dirs.push(path.clone());
                0
            } else {
                sconce_schemas::crc::crc32c(&std::fs::read(&path).unwrap())
            };
            found.push((path, meta.len(), meta.modified().unwrap(), content));
        }
    }
    found.sort();
    found
}

fn name_of(backend: &Path, file: &Path) -> Option<ObjectName> {
    file.strip_prefix(backend).ok()?.to_str()?.parse().ok()
}

/// Object files, by name.
fn objects(cluster: &Cluster) -> Vec<(ObjectName, PathBuf)> {
    let backend = cluster.path("backend");
    let files = cluster.files("backend");
    let named = files.into_iter().map(|file| (name_of(&backend, &file), file));
    named.filter_map(|(name, file)| Some((name?, file))).collect()
}

/// A volume with snapshots, rollbacks and removals, a clone with its own, and SCOs that were scrubbed; stopped.
async fn history() -> (Cluster, VolumeId, VolumeId) {
    let mut cluster = Cluster::new().with_settings("[scrub]\ngrace = \"100ms\"\nbandwidth = \"1GiB\"\n");
    cluster.start();
    let registry = cluster.registry().await;
    let volume = cluster.create(&registry, 1, 2 * MIB).await;
    let mut client = Client::open(&cluster, volume).await;
    let mut model = Model::new(SIZE, 51);
    for round in 0..4 {
        for _ in 0..40 {
            model.change(&mut client).await;
        }
        take(&client, round + 1, &format!("snapshot-{round}"))
            .await
            .unwrap();
        client.sync().await;
    }
    roll_back(&client, "snapshot-1", 10, Some("before"))
        .await
        .unwrap();
    remove(&client, "snapshot-2").await.unwrap();
    let origin = Origin {
        volume,
        snapshot: SnapshotId(1),
    };
    let clone = cluster.clone_of(&registry, 1, origin, 2 * MIB).await;
    let mut other = Client::open(&cluster, clone).await;
    for round in 0..10 {
        for _ in 0..40 {
            model.change(&mut client).await;
            model.change(&mut other).await;
        }
        if round == 1 {
            take(&other, 1, "own").await.unwrap();
        }
        client.sync().await;
        other.sync().await;
    }
    let is_scrubbed =
        |(name, _): &(ObjectName, PathBuf)| matches!(name, ObjectName::Sco { version: 1.., .. });
    until("something is scrubbed", async || {
        objects(&cluster).iter().any(is_scrubbed).then_some(())
    })
    .await;
    client.sync().await;
    other.sync().await;
    assert_eq!(cluster.stop(), Some(0));
    // It may still be storing and deleting what it was asked to before the volume-router stopped.
    cluster.stop_storage();
    (cluster, volume, clone)
}

#[test]
fn what_was_left_in_order_is_consistent_and_looking_changes_nothing() {
    block_on(async {
        let (cluster, volume, clone) = history().await;
        let backend = cluster.path("backend");
        let before = all_of(&backend);
        let report = checked(&backend, true, None).await;
        assert_eq!(report.verdict, Verdict::Consistent, "{:#?}", told(&report));
        let [parent, child] = &report.volumes[..] else {
            panic!("{:?}", report.volumes)
        };
        assert_eq!((&parent.id, &child.id), (&volume.to_string(), &clone.to_string()));
        assert_eq!(child.ancestors, [volume.to_string()]);
        assert!(parent.snapshots >= 4 && child.snapshots == 1, "{report:?}");
        assert!(parent.clusters_read > 0 && child.clusters_read > 0);
        // What scrubs did last is in no manifest yet, or waits to be deleted; nothing else is too many.
        let orphans = report.volumes.iter().flat_map(|volume| &volume.orphans);
        let of_sco: Vec<_> = orphans.filter(|orphan| orphan.object.contains("/sco/")).collect();
        let whys = ["waits to be deleted", "no manifest names", "no SCO is in it"];
        let is_scrubs = |why: &str| whys.iter().any(|known| why.contains(known));
        assert!(of_sco.iter().all(|orphan| is_scrubs(orphan.why)), "{of_sco:?}");

        // However little memory it takes, it finds the same; without data too.
        assert_eq!(checked(&backend, true, Some(500)).await, report);
        assert_eq!(checked(&backend, false, None).await.verdict, Verdict::Consistent);
        let store = Store::open(std::slice::from_ref(&backend)).unwrap();
        let only = Options {
            volumes: vec![volume],
            data: true,
            claims_max: None,
        };
        let alone = check(&store, &only).await.unwrap();
        assert_eq!(&alone.volumes[..], &report.volumes[..1]);

        // Everything can be shown.
        let subject = show::find(&store, "/disk-1").await.unwrap();
        assert_eq!(subject.id, volume);
        let manifest = show::manifest(&store, &subject, None).await.unwrap();
        assert!(
            manifest
                .snapshots
                .iter()
                .any(|snapshot| snapshot.name == "snapshot-0")
        );
        for snapshot in [None, Some("snapshot-0")] {
            let map = show::map(&store, &subject, snapshot, 0..u64::MAX).await.unwrap();
            let bytes: u64 = map.extents.iter().map(|extent| extent.length).sum();
            assert!(map.problems.is_empty() && bytes > 0, "{map:?}");
        }
        for (name, _) in objects(&cluster) {
            let subject = show::find(&store, &name.volume().to_string()).await.unwrap();
            match name.kind() {
                ObjectKind::Sco => {
                    let sco = show::sco(&store, &subject, name).await.unwrap();
                    assert!(
                        sco.log_problem.is_none() && sco.bad == 0 && sco.kept > 0,
                        "{sco:?}"
                    );
                }
                ObjectKind::Map => {
                    let checkpoint = show::checkpoint(&store, &subject, name).await.unwrap();
                    assert!(checkpoint.nodes.iter().all(|node| node.problem.is_none()));
                }
                ObjectKind::Manifest => {
                    show::manifest(&store, &subject, Some(name)).await.unwrap();
                }
            }
        }
        assert!(all_of(&backend) == before, "the back end is not as it was");
    });
}

#[test]
fn what_a_crash_leaves_is_consistent() {
    block_on(async {
        let mut cluster = Cluster::started();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, 2 * MIB).await;
        let mut client = Client::open(&cluster, volume).await;
        let mut model = Model::new(SIZE, 52);
        for round in 0..3 {
            for _ in 0..60 {
                model.change(&mut client).await;
            }
            client.sync().await;
            take(&client, round + 1, &format!("snapshot-{round}"))
                .await
                .unwrap();
            for _ in 0..30 {
                model.change(&mut client).await;
            }
            cluster.kill();
            let report = checked(&cluster.path("backend"), true, None).await;
            assert_eq!(report.verdict, Verdict::Consistent, "{:#?}", told(&report));
            cluster.start();
            model.check(&mut client).await;
        }
    });
}

/// Puts other content in an object's place, with an envelope that holds.
fn reseal(file: &Path, name: ObjectName, change: impl FnOnce(&mut Vec<u8>)) {
    let mut content = content_of(file, name).to_vec();
    change(&mut content);
    let sealed = SealedObject::seal(name, content.into()).unwrap();
    std::fs::write(file, sealed.to_stored()).unwrap();
}

fn content_of(file: &Path, name: ObjectName) -> Bytes {
    let stored = Bytes::from(std::fs::read(file).unwrap());
    let span = Span::holding(0, u64::MAX);
    span.open(name, stored.len() as u64, stored).unwrap()
}

/// A check of a damaged back end says so, and names the object.
async fn is_named(cluster: &Cluster, name: ObjectName, what: &str) -> Report {
    let report = checked(&cluster.path("backend"), true, None).await;
    let wanted = name.to_string();
    let mut problems = report.volumes.iter().flat_map(|volume| &volume.problems);
    let named = problems.any(|problem| problem.object.as_ref() == Some(&wanted));
    assert!(
        report.verdict != Verdict::Consistent && named,
        "{what} {name}: {:?}, {:#?}",
        report.verdict,
        told(&report)
    );
    report
}

#[test]
fn whatever_byte_of_an_object_is_damaged_the_object_is_named() {
    block_on(async {
        let (cluster, ..) = history().await;
        let report = checked(&cluster.path("backend"), true, None).await;
        let dead = orphans(&report);
        let mut living = objects(&cluster);
        living.retain(|(name, _)| !dead.contains(name.to_string().as_str()));
        let mut random = fastrand::Rng::with_seed(53);
        for kind in [ObjectKind::Manifest, ObjectKind::Map, ObjectKind::Sco] {
            let of_kind: Vec<_> = living.iter().filter(|(name, _)| name.kind() == kind).collect();
            for round in 0..12 {
                let (name, file) = of_kind[random.usize(0..of_kind.len())];
                let good = std::fs::read(file).unwrap();
                let mut bad = good.clone();
                match round {
                    0 => bad.clear(),
                    1 => bad.truncate(random.usize(1..good.len())),
                    2 => bad.push(0),
                    3 => bad[..128].fill(0),
                    _ => {
                        let at = random.usize(0..good.len());
                        bad[at] ^= 1 << random.u8(0..8);
                    }
                }
                std::fs::write(file, bad).unwrap();
                is_named(&cluster, *name, "damaged").await;
                std::fs::write(file, good).unwrap();
            }
            let (name, file) = of_kind[random.usize(0..of_kind.len())];
            let aside = cluster.path("aside");
            std::fs::rename(file, &aside).unwrap();
            if kind == ObjectKind::Manifest {
                // Recovery would take the one before, and so does a check.
                checked(&cluster.path("backend"), true, None).await;
            } else {
                is_named(&cluster, *name, "lost").await;
            }
            std::fs::rename(&aside, file).unwrap();
        }
        let again = checked(&cluster.path("backend"), true, None).await;
        assert_eq!(again, report, "all is as it was");
    });
}

/// A change of a manifest, and what a check says of it.
type Wrong = (&'static str, fn(&mut Manifest));

/// What lies below an envelope that holds is judged by its own CRCs, and by the map's.
#[test]
fn damage_below_the_envelope_is_found_and_never_ends_the_check() {
    block_on(async {
        let (cluster, volume, _) = history().await;
        let backend = cluster.path("backend");
        let good = checked(&backend, true, None).await;
        let mut random = fastrand::Rng::with_seed(54);
        let all = objects(&cluster);
        for round in 0..40 {
            let (name, file) = &all[random.usize(0..all.len())];
            let before = std::fs::read(file).unwrap();
            reseal(file, *name, |content| {
                for _ in 0..1 + round % 3 {
                    let at = random.usize(0..content.len());
                    content[at] = random.u8(..);
                }
            });
            // It may have hit what nothing refers to.
            checked(&backend, true, None).await;
            let store = Store::open(std::slice::from_ref(&backend)).unwrap();
            let subject = show::find(&store, &name.volume().to_string()).await.unwrap();
            let shown = match name.kind() {
                ObjectKind::Sco => show::sco(&store, &subject, *name).await.map(drop),
                ObjectKind::Map => show::checkpoint(&store, &subject, *name).await.map(drop),
                ObjectKind::Manifest => show::manifest(&store, &subject, Some(*name)).await.map(drop),
            };
            if let Err(error) = shown {
                assert!(error.to_string().contains(&name.to_string()), "{error}");
            }
            std::fs::write(file, before).unwrap();
        }

        // A live cluster: the problem says which.
        let store = Store::open(std::slice::from_ref(&backend)).unwrap();
        let subject = show::find(&store, &volume.to_string()).await.unwrap();
        let map = show::map(&store, &subject, None, 0..u64::MAX).await.unwrap();
        let data: Vec<&ExtentView> = map
            .extents
            .iter()
            .filter(|extent| extent.kind == "data")
            .collect();
        let written = |extent: &&&ExtentView| {
            let sco = extent.sco.unwrap();
            all.iter().any(|(name, _)| matches!(name, ObjectName::Sco { volume: of, id, version: 0, .. } if *of == volume && id.0 == sco))
        };
        // The newest: of the others a bundle may have what is live, and nothing refers to the SCO any more.
        let newest = data.iter().filter(written).max_by_key(|extent| extent.sco);
        let extent = newest.unwrap();
        let is_its = |(name, _): &&(ObjectName, PathBuf)| matches!(name, ObjectName::Sco { volume: of, id, version: 0, .. } if *of == volume && Some(id.0) == extent.sco);
        let (name, file) = all.iter().find(is_its).unwrap();
        let before = std::fs::read(file).unwrap();
        let at = ScoSize::new(256).unwrap().slot_offset(Slot(extent.slot.unwrap()));
        reseal(file, *name, |content| {
            content[usize::try_from(at).unwrap() + CLUSTER_LEN - 1] ^= 1
        });
        let report = is_named(&cluster, *name, "a live cluster of").await;
        let mut problems = report.volumes.iter().flat_map(|volume| &volume.problems);
        let found = problems.any(|problem| {
            problem.kind == ProblemKind::Damaged
                && problem.slot == extent.slot
                && problem.address == Some(extent.address)
                && problem.text.contains("/disk-1")
        });
        assert!(found, "{:#?}", told(&report));
        let without_data = checked(&backend, false, None).await;
        assert_eq!(
            without_data.verdict,
            Verdict::Consistent,
            "{:#?}",
            told(&without_data)
        );
        std::fs::write(file, before).unwrap();

        // Counters, lineage and roots of a manifest that is well-formed and wrong.
        let mut manifests = all
            .iter()
            .filter(|(name, _)| name.kind() == ObjectKind::Manifest && name.volume() == volume);
        let (name, file) = manifests.next_back().unwrap();
        let before = std::fs::read(file).unwrap();
        let wrongs: [Wrong; 7] = [
            ("counts", |manifest| manifest.allocated_clusters += 1),
            ("tree height", |manifest| manifest.snapshots[0].map.height = 200),
            ("snapshot", |manifest| {
                manifest.snapshots[0].allocated_clusters += 1
            }),
            ("lineage", |manifest| manifest.lineage.clear()),
            ("SCO table", |manifest| manifest.scos.node = None),
            ("map", |manifest| manifest.map = manifest.scos),
            ("ascend", |manifest| {
                let first = manifest.epochs[0];
                manifest.epochs.push(first);
            }),
        ];
        for (said, wrong) in wrongs {
            reseal(file, *name, |content| {
                let mut manifest = Manifest::from_bytes(content).unwrap();
                wrong(&mut manifest);
                *content = manifest.to_bytes();
            });
            let report = checked(&backend, true, Some(200)).await;
            let text = told(&report).join("\n");
            assert!(
                report.verdict == Verdict::Inconsistent && text.contains(said),
                "{said}: {text}"
            );
            std::fs::write(file, &before).unwrap();
        }
        assert_eq!(checked(&backend, true, None).await, good);
    });
}
