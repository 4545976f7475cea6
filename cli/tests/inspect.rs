//! `sconce check` and `sconce inspect` on directories, as a person has them: exit codes, and what they say.

#![expect(
    clippy::unwrap_used,
    reason = "a test ends where something is not as it should be"
)]

use std::path::Path;
use std::process::{Command, Output};

use sconce_schemas::manifest::Manifest;
use sconce_schemas::records::EpochStart;
use sconce_schemas::stored_object::SealedObject;
use sconce_schemas::{Epoch, ManifestSeq, ObjectName, ScoId, VolumeId, VolumeSize};

const VOLUME: VolumeId = VolumeId([7; 16]);

fn sconce(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sconce"));
    command.args(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    String::from_utf8_lossy(&text).into_owned()
}

fn backend(dir: &Path) {
    let identity = "sconce-backend 1 disk-1 00000000000000000000000000000001\n";
    std::fs::write(dir.join("sconce-backend"), identity).unwrap();
}

/// An empty volume's first manifest.
fn put_manifest(dir: &Path) -> ObjectName {
    let manifest = Manifest {
        volume: VOLUME,
        seq: ManifestSeq(1),
        epoch: Epoch(1),
        path: "/vm1/disk.raw".to_owned(),
        pool: "default".to_owned(),
        size: VolumeSize::new(1 << 30).unwrap(),
        lineage: vec![VOLUME],
        epochs: vec![EpochStart {
            epoch: Epoch(1),
            first_sco: ScoId(1),
        }],
        ..Manifest::default()
    };
    let name = ObjectName::Manifest {
        volume: VOLUME,
        seq: manifest.seq,
        epoch: manifest.epoch,
    };
    let path = dir.join(name.to_string());
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let sealed = SealedObject::seal(name, manifest.to_bytes().into()).unwrap();
    std::fs::write(path, sealed.to_stored()).unwrap();
    name
}

#[test]
fn the_exit_code_says_consistent_or_not_or_not_judged() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().to_str().unwrap();
    let output = sconce(&["check", &format!("{at}/nothing")]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("nothing"), "{}", said(&output));
    // A mount point without its disk is no consistent back end.
    let output = sconce(&["check", at]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("not mounted?"), "{}", said(&output));

    backend(dir.path());
    let output = sconce(&["check", at]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let name = put_manifest(dir.path());
    let output = sconce(&["check", at, "--data", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["verdict"], "consistent");
    assert_eq!(report["volumes"][0]["path"], "/vm1/disk.raw");
    let output = sconce(&["check", at, "--volume", "/vm2/disk.raw"]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("/vm1/disk.raw"), "{}", said(&output));

    // Of a newer build: nobody can tell.
    let path = dir.path().join(name.to_string());
    let good = std::fs::read(&path).unwrap();
    let content = good[128..good.len() - 4].to_vec();
    let with_byte = |at: usize, byte: u8| {
        let mut content = content.clone();
        content[at] = byte;
        SealedObject::seal(name, content.into()).unwrap().to_stored()
    };
    std::fs::write(&path, with_byte(4, 2)).unwrap();
    let output = sconce(&["check", at]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("version 2"), "{}", said(&output));

    std::fs::write(&path, with_byte(40, 0xff)).unwrap();
    let output = sconce(&["check", at]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains(&name.to_string()), "{}", said(&output));
    std::fs::write(&path, good).unwrap();
    assert_eq!(sconce(&["check", at]).status.code(), Some(0));
}

#[test]
fn volumes_manifests_and_maps_are_shown_by_name_and_by_file() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().to_str().unwrap();
    backend(dir.path());
    let name = put_manifest(dir.path());
    let file = format!("{at}/{name}");
    for arguments in [
        ["inspect", "volume", "--backend", at].as_slice(),
        &["inspect", "volume", "/vm1/disk.raw", "-b", at],
        &["inspect", "manifest", "/vm1/disk.raw", "-b", at],
        &["inspect", "manifest", &name.to_string(), "-b", at],
        &["inspect", "manifest", &file],
        &["inspect", "map", &VOLUME.to_string(), "-b", at],
    ] {
        let output = sconce(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", said(&output));
        assert!(
            said(&output).contains("/vm1/disk.raw"),
            "{arguments:?}: {}",
            said(&output)
        );
    }
    let json = sconce(&["inspect", "manifest", &file, "--json"]);
    let manifest: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(manifest["epoch"], 1);
    for (arguments, wanted) in [
        (["inspect", "sco", &file].as_slice(), "inspect manifest"),
        (&["inspect", "sco", "/vm1/disk.raw", "-b", at], "no object"),
        (&["inspect", "volume"], "--backend"),
        (
            &["inspect", "map", "/vm1/disk.raw", "-b", at, "--snapshot", "x"],
            "no snapshot \"x\"",
        ),
    ] {
        let output = sconce(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", said(&output));
        assert!(said(&output).contains(wanted), "{arguments:?}: {}", said(&output));
    }
}
