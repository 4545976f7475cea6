//! Scrubbing with the help of another volume-router: whatever becomes of it, every byte is there and the accounting holds.

use sconce_inspect::{Options, Store, Verdict, check};
use sconce_runtime::crash::{CRASH_ENV, Point};
use sconce_schemas::wire::volume::ScrubReport;

use crate::client::{Client, Model};
use crate::cluster::{Cluster, block_on, until};
use crate::peer::Peer;
use crate::snapshots::{take, take_over};

const MIB: u64 = 1 << 20;
const SIZE: usize = 4 << 20;
const NEIGHBOUR: &str = "neighbour";
/// Nothing that scrubs do here comes near it.
const PLENTY: &str = "[scrub]\ngrace = \"100ms\"\nbandwidth = \"1TiB\"\noperations = 1000000\n";

/// A cluster whose volume-router asks its neighbour, and a volume of it with a snapshot.
struct Scene {
    cluster: Cluster,
    neighbour: Peer,
    client: Client,
    model: Model,
    kept: Vec<u8>,
}

impl Scene {
    async fn new(settings: &str, environment: &[(&str, &str)]) -> Self {
        let mut cluster = Cluster::new().with_settings(settings);
        let neighbour = Peer::start_with(&cluster, NEIGHBOUR, PLENTY, environment).await;
        cluster.start();
        let registry = cluster.registry().await;
        let volume = cluster.create(&registry, 1, 4 * MIB).await;
        let mut client = Client::open(&cluster, volume).await;
        let mut model = Model::new(SIZE, 71);
        for _ in 0..200 {
            model.change(&mut client).await;
        }
        take(&client, 1, "kept").await.unwrap();
        let kept = model.bytes.clone();
        Self {
            cluster,
            neighbour,
            client,
            model,
            kept,
        }
    }

    async fn report(&self) -> ScrubReport {
        *self.client.show().await.scrub.unwrap()
    }

    /// Changes the volume until its scrubbing is as it is to be.
    async fn change_until(&mut self, what: &str, mut is_so: impl FnMut(&ScrubReport) -> bool) {
        until(what, async || {
            for _ in 0..50 {
                self.model.change(&mut self.client).await;
            }
            self.client.sync().await;
            is_so(&self.report().await).then_some(())
        })
        .await;
    }

    /// Everything is there, read from what is on the back end alone, and the counters are those of a full scan.
    async fn check(mut self) {
        self.client.sync().await;
        self.cluster.kill();
        let store = Store::open(&[self.cluster.path("backend")]).unwrap();
        let options = Options {
            data: true,
            ..Options::default()
        };
        let report = check(&store, &options).await.unwrap();
        assert_eq!(report.verdict, Verdict::Consistent, "{report:#?}");
        std::fs::remove_dir_all(self.cluster.path("buffer")).unwrap();
        self.cluster.start();
        take_over(&mut self.client).await;
        self.model.check(&mut self.client).await;
        let mut reader = Client::open_snapshot(&self.cluster, self.client.volume, "kept")
            .await
            .unwrap();
        let snapshot = Model {
            bytes: self.kept,
            rng: fastrand::Rng::with_seed(1),
        };
        snapshot.check(&mut reader).await;
        assert!(
            self.client.located > 0 && reader.located > 0,
            "read from the back end"
        );
    }
}

fn with(more: &str) -> String {
    format!("{PLENTY}{more}\n")
}

#[test]
fn a_neighbour_writes_all_bundles_and_everything_is_there() {
    block_on(async {
        let mut scene = Scene::new(&with("help = \"always\""), &[]).await;
        scene
            .change_until("ten bundles", |report| report.rewritten >= 10)
            .await;
        let told = scene.report().await;
        assert_eq!(
            (told.helped, told.taken_back, told.failures),
            (told.rewritten, 0, 0),
            "{told:?}"
        );
        assert!(told.won.0 > 0 && told.last_success_us > 0, "{told:?}");
        let written = scene.neighbour.log().matches("is_written=true").count();
        assert!(written as u64 >= told.helped, "{written} of {told:?}");
        scene.check().await;
    });
}

#[test]
fn a_node_with_more_to_do_than_its_budget_allows_asks_its_neighbour() {
    block_on(async {
        let settings = "[scrub]\ngrace = \"100ms\"\noperations = 20\nhelp = \"when-busy\"\n";
        let mut scene = Scene::new(settings, &[]).await;
        scene.change_until("help", |report| report.helped > 0).await;
        assert_eq!(scene.report().await.taken_back, 0);
        scene.check().await;
    });
}

#[test]
fn nobody_is_asked_unless_it_is_set() {
    block_on(async {
        let mut scene = Scene::new("[scrub]\ngrace = \"100ms\"\noperations = 50\n", &[]).await;
        scene
            .change_until("a bundle", |report| report.rewritten > 1)
            .await;
        assert_eq!(scene.report().await.helped, 0);
        assert!(!scene.neighbour.log().contains("a neighbour's bundle"));
    });
}

#[test]
fn a_neighbour_that_dies_over_a_bundle_is_done_without() {
    for point in [Point::BeforeBundlePut, Point::AfterBundlePut] {
        block_on(async {
            let armed = [(CRASH_ENV, point.name())];
            let mut scene = Scene::new(&with("help = \"always\"\nhelp_within = \"10s\""), &armed).await;
            scene
                .change_until("the owner to do it", |report| {
                    report.taken_back > 0 && report.rewritten > 1
                })
                .await;
            // The owner may have lost patience with one that is about to reach the point.
            until("its end", async || scene.neighbour.has_ended().then_some(())).await;
            assert!(
                scene.neighbour.log().contains(point.name()),
                "it died at the point"
            );
            let told = scene.report().await;
            assert_eq!((told.helped, told.failures), (0, 0), "{told:?}");
            scene.check().await;
        });
    }
}

#[test]
fn an_owner_that_dies_over_a_bundle_is_followed_by_one_that_goes_on() {
    for point in [Point::BeforeBundlePut, Point::AfterBundlePut] {
        block_on(async {
            let Scene {
                mut cluster,
                neighbour,
                mut client,
                mut model,
                kept,
            } = Scene::new(PLENTY, &[]).await;
            cluster.kill();
            let mut cluster = cluster.with_env(CRASH_ENV, point.name());
            cluster.start();
            // What is under way when the process ends is sent again: so its end is awaited beside it.
            let ended = std::cell::Cell::new(false);
            let changes = async {
                while !ended.get() {
                    for _ in 0..50 {
                        model.change(&mut client).await;
                    }
                    client.sync().await;
                }
            };
            let watched = async {
                until("the point to be reached", async || {
                    cluster.has_ended().then_some(())
                })
                .await;
                cluster.clear_env();
                cluster.start();
                ended.set(true);
            };
            tokio::join!(changes, watched);
            assert!(cluster.log().contains(point.name()), "it died at the point");
            let mut scene = Scene {
                cluster,
                neighbour,
                client,
                model,
                kept,
            };
            scene
                .change_until("a bundle", |report| report.rewritten > 1)
                .await;
            scene.check().await;
        });
    }
}

#[test]
fn an_answer_that_is_late_by_any_time_changes_nothing() {
    block_on(async {
        let mut scene = Scene::new(&with("help = \"always\"\nhelp_within = \"5s\""), &[]).await;
        scene.change_until("help", |report| report.helped > 0).await;
        let before = scene.report().await;
        scene.neighbour.signal("-STOP");
        let bundles = |log: &str| log.matches("a neighbour's bundle").count();
        let answered = bundles(&scene.neighbour.log());
        scene
            .change_until("the owner to do it", |report| {
                report.taken_back > 0 && report.rewritten > before.helped + 2
            })
            .await;
        let told = scene.report().await;
        assert_eq!(
            (told.taken_back, told.failures),
            (1, 0),
            "asked once, then left alone: {told:?}"
        );
        scene.neighbour.signal("-CONT");
        until("the neighbour to come to it", async || {
            (bundles(&scene.neighbour.log()) > answered).then_some(())
        })
        .await;
        scene
            .change_until("more bundles", |report| report.rewritten > told.rewritten + 2)
            .await;
        scene.check().await;
    });
}
