use super::*;

const GOOD: &str = r#"
[node]
name = "sr-1"
run_dir = "run"
endpoints = ["ipc:///run/sr.sock"]
[registry]
home = "sled"
dir = "run/registry"
listen = "ipc:///run/registry.sock"
[[backends]]
name = "disk-1"
dir = "/disk/1"
[[backends]]
name = "disk-2"
dir = "/disk/2"
[[pools]]
name = "default"
protect = "replica:2"
backends = ["disk-1", "disk-2"]
"#;

fn load(text: &str) -> Result<Settings, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("storage-router.toml");
    std::fs::write(&path, text).unwrap();
    sconce_runtime::settings::load(&path).map_err(|error| error.to_string())
}

#[test]
fn good_settings_are_taken_with_defaults() {
    let settings = load(GOOD).unwrap();
    assert_eq!(settings.endpoint(), "ipc:///run/sr.sock");
    assert_eq!(settings.limits, LimitSettings::default());
    let record = settings.pools[0].record();
    assert_eq!(record.protection, Protection::Replicas(2));
    assert_eq!(record.placement_version, 1);
    assert!(record.backends.iter().all(|entry| entry.weight == 1));
    let limits = "[limits]\nrequests = 10\nbytes = \"96 MiB\"\nbackend_deadline = \"2s\"\n";
    assert_eq!(load(&format!("{GOOD}{limits}")).unwrap().limits.requests, 10);
}

#[test]
fn a_pool_has_a_policy_and_its_keys_are_elsewhere() {
    let policy = "protect = \"replica:2\"\ncompress = \"zstd\"\nencrypt = true\n";
    let keys = "[[keys]]\npool = \"default\"\nid = 7\nfile = \"/keys/7\"\n\
                [[keys]]\npool = \"default\"\nid = 8\nenv = \"SCONCE_KEY\"\n";
    let text = GOOD.replace("protect = \"replica:2\"", policy);
    let settings = load(&format!("{text}{keys}")).unwrap();
    let record = settings.pools[0].record();
    assert_eq!(
        (record.compression, record.encrypted),
        (Some(Compression::Zstd), true)
    );
    assert_eq!(settings.keys[0].source, KeySource::File("/keys/7".into()));
    assert_eq!(
        settings.keys[1].source,
        KeySource::Environment("SCONCE_KEY".to_owned())
    );
    let off = GOOD.replace("protect =", "compress = \"off\"\nprotect =");
    assert_eq!(load(&off).unwrap().pools[0].compression, None);
}

#[test]
fn a_bucket_stands_beside_a_directory() {
    let bucket = "s3 = { bucket = \"vms\", endpoint = \"http://127.0.0.1:9000\" }";
    let one = GOOD.replace("dir = \"/disk/2\"", bucket);
    let settings = load(&one).unwrap();
    assert!(matches!(&settings.backends[1].store, StoreSettings::S3(s3) if s3.bucket == "vms"));
    let two = one.replace("dir = \"/disk/1\"", bucket);
    let error = load(&two).unwrap_err();
    assert!(error.contains("\"vms\"") && error.contains("twice"), "{error}");
    let apart = one.replace(
        "dir = \"/disk/1\"",
        &bucket.replace("bucket", "folder = \"a\", bucket"),
    );
    assert_eq!(load(&apart).unwrap().backends.len(), 2);
}

#[test]
fn the_operating_manuals_example_is_taken() {
    let manual = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/operating/s3.md");
    let manual = std::fs::read_to_string(manual).unwrap();
    let example = manual.lines().filter_map(|line| line.strip_prefix("    "));
    let example = example.collect::<Vec<_>>().join("\n");
    let node = &GOOD[..GOOD.find("[[backends]]").unwrap()];
    let settings = load(&format!("{node}{example}\n")).unwrap();
    let StoreSettings::S3(s3) = &settings.backends[0].store else {
        panic!("{settings:?}")
    };
    assert_eq!(s3.bucket_url(), "https://s3.example.org:9000/vms");
}

#[test]
fn what_is_wrong_is_named_with_what_is_right() {
    for (right, wrong, wanted) in [
        (
            "replica:2",
            "replica:3",
            vec![
                "pool default",
                "\"replica:3\"",
                "takes 3 back ends",
                "backends has 2",
            ],
        ),
        (
            "replica:2",
            "replica:0",
            vec!["pool default: protect", "replica:0", "replica:1 to"],
        ),
        (
            "replica:2",
            "ec:2+1",
            vec!["pool default", "\"ec:2+1\"", "takes 3 back ends"],
        ),
        ("replica:2", "ec:1+1", vec!["ec:1+1", "replica:N or ec:K+M"]),
        ("replica:2", "raid5", vec!["raid5", "replica:N or ec:K+M"]),
        (
            "protect = \"replica:2\"",
            "replicas = 2",
            vec!["replicas", "protect"],
        ),
        (
            "protect =",
            "compress = \"gzip\"\nprotect =",
            vec!["pool default: compress", "gzip", "lz4 or zstd"],
        ),
        (
            "protect =",
            "encrypt = true\nprotect =",
            vec!["pool default", "encrypt = true", "[[keys]]"],
        ),
        (
            "[[pools]]",
            "[[keys]]\npool = \"default\"\nid = 0\nenv = \"K\"\n[[pools]]",
            vec!["key 0 of pool default", "1 or more"],
        ),
        (
            "[[pools]]",
            "[[keys]]\npool = \"default\"\nid = 1\n[[pools]]",
            vec!["key 1 of pool default", "file and env"],
        ),
        (
            "[[pools]]",
            "[[keys]]\npool = \"a\"\nid = 1\nenv = \"K\"\n[[keys]]\npool = \"a\"\nid = 1\nenv = \"L\"\n[[pools]]",
            vec!["key 1 of pool a", "twice"],
        ),
        (
            "\"disk-1\", \"disk-2\"",
            "\"disk-1\", \"disk-3\"",
            vec!["pool default", "disk-3", "[[backends]]"],
        ),
        (
            "\"disk-1\", \"disk-2\"",
            "\"disk-1\", \"disk-1\"",
            vec!["disk-1 twice"],
        ),
        (
            "name = \"disk-2\"",
            "name = \"disk-1\"",
            vec!["disk-1 is there twice"],
        ),
        ("/disk/2", "/disk/1", vec!["/disk/1", "twice"]),
        ("dir = \"/disk/2\"", "", vec!["disk-2 has neither dir nor s3"]),
        (
            "dir = \"/disk/2\"",
            "dir = \"/disk/2\"\ns3 = { bucket = \"vms\" }",
            vec!["disk-2 has dir and s3"],
        ),
        (
            "dir = \"/disk/2\"",
            "s3 = { bucket = \"VMs\" }",
            vec!["bucket = \"VMs\"", "3 to 63"],
        ),
        ("name = \"disk-2\"", "name = \"Disk 2\"", vec!["Disk 2", "a-z"]),
        ("[\"ipc:///run/sr.sock\"]", "[]", vec!["node.endpoints", "one"]),
    ] {
        assert!(GOOD.contains(right), "{right}");
        let error = load(&GOOD.replace(right, wrong)).unwrap_err();
        for part in wanted {
            assert!(error.contains(part), "{part:?} is not in {error}");
        }
    }
    for (limits, wanted) in [
        ("bytes = \"1 MiB\"", "96 MiB to 1 TiB"),
        ("requests = 0", "1 to 1000000"),
        ("backend_deadline = \"10ms\"", "1s or more"),
    ] {
        let error = load(&format!("{GOOD}[limits]\n{limits}\n")).unwrap_err();
        assert!(error.contains(wanted), "{wanted:?} is not in {error}");
    }
    for (wrong, wanted) in [
        ("period = \"10s\"", "1min or more"),
        ("bytes_per_second = \"4 KiB\"", "1 MiB or more"),
        ("speed = 1", "speed"),
    ] {
        let error = load(&format!("{GOOD}[deep_scrub]\n{wrong}\n")).unwrap_err();
        assert!(error.contains(wanted), "{wanted:?} is not in {error}");
    }
    let twice = GOOD[GOOD.find("[[pools]]").unwrap()..].to_owned();
    assert!(
        load(&format!("{GOOD}{twice}"))
            .unwrap_err()
            .contains("default is there twice")
    );
    let none = GOOD[..GOOD.find("[[backends]]").unwrap()].to_owned();
    // Back ends, and pools on them, can be in the registry alone.
    assert_eq!(load(&none).unwrap().backends, []);
}
