//! Work beside the volumes, on a thread of its own: uploads, checkpoints, manifests, loads, deletions.
//!
//! Keeps: jobs under way, within limits of requests and bytes.
//! Order: jobs of one volume end in any order; each tells its volume, which judges with what it knows then.
//! Crash: a job that was not told of is begun again by recovery, or leaves an object that nothing refers to.
//! Knows volumes only by their handles; never blocks one.

mod budget;
mod bundle;
mod checkpoint;
mod erase;
mod flatten;
mod help;
mod load;
mod manifest;
mod neighbours;
mod outage;
mod room;
mod scrub;
mod size;
mod store;
mod stored;
mod sweep;
mod traced;
mod upload;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use actix::{Actor, Addr, Context, Handler, Message};
use bytes::Bytes;
use sconce_bus::{Hello, Network, Protocol};
use sconce_registry::Registry;
use sconce_runtime::{Chance, Clock, Events};
use sconce_schemas::checkpoint::{NodePlace, NodeRecord, NodeRef};
use sconce_schemas::manifest::Manifest;
use sconce_schemas::records::{EpochStart, ManifestRef, VolumeRecord};
use sconce_schemas::wire::scrub::BundleJob;
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_schemas::{ByteLen, Epoch, ObjectName, ScoId, ScoSize, VolumeId};
use sconce_tracing::{Action, OperationIds, Point, Span, SpanKind, Trace};
use sconce_volume::{Extent, Frozen, ScoImage};
use tokio::sync::oneshot;

use crate::actor::Owner;
use crate::device::{Level, LocalCheckpoints, ScoFile};
use crate::owner::erasure::Right;
use crate::settings::{EraseSettings, ScrubSettings, UploadSettings};

use budget::Budget;
use neighbours::Neighbours;
use traced::traced;
use upload::UploadCounts;

pub(crate) use budget::Guests;
pub(crate) use erase::Erasures;
pub(crate) use outage::{Outage, Tried};
pub(crate) use room::{PoolUsage, Room, RoomUsage};
pub(crate) use scrub::ScrubJob;
pub(crate) use store::{Store, StoreError};
pub(crate) use sweep::SweepJob;

/// What the background's thread works with.
pub(crate) struct Components {
    pub(crate) network: Network,
    pub(crate) registry: Registry,
    pub(crate) hello: Hello,
    pub(crate) checkpoints: Arc<LocalCheckpoints>,
    pub(crate) level: Level,
    pub(crate) uploads: UploadSettings,
    pub(crate) scrub: ScrubSettings,
    pub(crate) guests: Guests,
    pub(crate) erase: EraseSettings,
    pub(crate) clock: Clock,
    /// What happens is told here.
    pub(crate) events: Events,
    /// Identity of the write buffer.
    pub(crate) buffer: String,
}

/// What all jobs share.
pub(crate) struct Shared {
    pub(crate) store: Store,
    pub(crate) registry: Registry,
    pub(crate) checkpoints: Arc<LocalCheckpoints>,
    /// Tells how full the write buffer is.
    pub(crate) level: Level,
    pub(crate) room: Room,
    /// How uploads went.
    pub(crate) uploads: Arc<UploadCounts>,
    /// What scrubs, and copies for clones that are flattened, may take.
    pub(crate) scrubs: Budget,
    /// Ids of jobs, for traces.
    pub(crate) operations: RefCell<OperationIds>,
    /// Whether this node scrubs, and helps neighbours to.
    may_scrub: bool,
    /// Volume-routers that may help this one.
    neighbours: Neighbours,
    /// Volumes that are being erased: each only once at a time.
    pub(crate) erasures: Arc<Erasures>,
    pub(crate) erase: EraseSettings,
    pub(crate) clock: Clock,
    /// What happens is told here.
    pub(crate) events: Events,
    /// Identity of the write buffer.
    pub(crate) buffer: String,
}

/// The volume that a job is for, as the back ends name it.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    /// The volume.
    pub(crate) volume: VolumeId,
    /// For messages.
    pub(crate) path: Arc<str>,
    /// Its storage pool.
    pub(crate) pool: Arc<str>,
}

/// A handle on the background's thread.
#[derive(Debug, Clone)]
pub(crate) struct Background {
    actor: Addr<BackgroundActor>,
    usage: Arc<RoomUsage>,
    uploads: Arc<UploadCounts>,
    erasures: Arc<Erasures>,
}

impl Background {
    /// Starts on this thread, which has to be an arbiter's.
    pub(crate) fn start(components: Components) -> Self {
        let Components {
            network,
            registry,
            hello,
            checkpoints,
            level,
            uploads,
            scrub,
            guests,
            erase,
            clock,
            events,
            buffer,
        } = components;
        let erasures = Arc::<Erasures>::default();
        let counts = Arc::<UploadCounts>::default();
        let usage = Arc::new(RoomUsage::new(uploads.parallel, uploads.bytes.bytes()));
        let to_neighbours = Hello {
            protocol: Protocol::Volume,
            ..hello.clone()
        };
        let shared = Shared {
            neighbours: Neighbours::new(network.clone(), registry.clone(), to_neighbours, &scrub),
            may_scrub: scrub.enabled,
            store: Store::new(network, registry.clone(), hello),
            registry,
            checkpoints,
            level,
            room: Room::new(Arc::clone(&usage)),
            uploads: Arc::clone(&counts),
            scrubs: Budget::new(&scrub, guests),
            operations: RefCell::new(OperationIds::starting_at(chance().u64())),
            erasures: Arc::clone(&erasures),
            erase,
            clock,
            events,
            buffer,
        };
        let actor = BackgroundActor {
            shared: Rc::new(shared),
        };
        Self {
            actor: actor.start(),
            usage,
            uploads: counts,
            erasures,
        }
    }

    /// The deleted volumes that are being erased.
    pub(crate) fn erasures(&self) -> &Erasures {
        &self.erasures
    }

    /// How many requests hold room, and how much, for each pool.
    pub(crate) fn usage(&self) -> &RoomUsage {
        &self.usage
    }

    /// How uploads went.
    pub(crate) fn uploads(&self) -> &UploadCounts {
        &self.uploads
    }

    /// Puts a SCO on the back ends, however long that takes; the owner hears `ScoStored`.
    pub(crate) fn upload(&self, owner: Owner, upload: Upload) {
        self.actor.do_send(Job::Upload(owner, upload));
    }

    /// Encodes and stores a checkpoint; the owner hears `CheckpointStored`.
    pub(crate) fn checkpoint(&self, owner: Owner, frozen: Arc<Frozen>) {
        self.actor.do_send(Job::Checkpoint(owner, frozen));
    }

    /// Stores a manifest and names it in the registry; the owner hears `ManifestStored`, or that it is no owner.
    pub(crate) fn manifest(&self, owner: Owner, manifest: Box<Manifest>) {
        self.actor.do_send(Job::Manifest(owner, manifest));
    }

    /// Does what a scrub asks for; the owner hears of it.
    pub(crate) fn scrub(&self, owner: Owner, size: ScoSize, job: ScrubJob, is_urgent: bool) {
        self.actor.do_send(Job::Scrub(owner, size, job, is_urgent));
    }

    /// Writes a bundle for another node's volume, if there is time for that now; gives its length.
    pub(crate) async fn write_bundle(&self, job: BundleJob, index: Bytes) -> Result<ByteLen, Refusal> {
        let (answer, answered) = oneshot::channel();
        self.actor.do_send(Job::Help(Box::new(job), index, answer));
        answered.await.unwrap_or_else(|_| Err(stopping()))
    }

    /// Does what a sweep asks for; the owner hears of it.
    pub(crate) fn sweep(&self, owner: Owner, job: SweepJob) {
        self.actor.do_send(Job::Sweep(owner, job));
    }

    /// Reads what a flattening copies; the owner hears `Copied`.
    pub(crate) fn copy(&self, owner: Owner, size: ScoSize, extents: Vec<Extent>) {
        self.actor.do_send(Job::Copy(owner, size, extents));
    }

    /// Tells the registry that the volume, a clone, needs nothing of its parent.
    pub(crate) fn independent(&self, owner: Owner) {
        self.actor.do_send(Job::Independent(owner));
    }

    /// Tells the registry of the volume's size in a while.
    pub(crate) fn size(&self, owner: Owner) {
        self.actor.do_send(Job::Size(owner));
    }

    /// Gives the space of a volume that is being deleted back, then removes its record, as long as the right to that holds.
    pub(crate) fn erase(&self, subject: Subject, right: Right) {
        self.actor.do_send(Job::Erase(subject, right));
    }

    /// A node, and the nodes that it is a delta on, newest first.
    pub(crate) async fn node(
        &self,
        subject: Subject,
        lineage: Arc<[VolumeId]>,
        place: NodePlace,
        reference: NodeRef,
    ) -> Result<Vec<NodeRecord>, Refusal> {
        let (answer, answered) = oneshot::channel();
        let load = LoadNode {
            subject,
            lineage,
            place,
            reference,
        };
        self.actor.do_send(Job::Node(load, answer));
        answered.await.unwrap_or_else(|_| Err(stopping()))
    }

    /// One cluster of a stored SCO, its CRC checked.
    pub(crate) async fn cluster(
        &self,
        subject: Subject,
        name: ObjectName,
        offset: u64,
        crc: u32,
    ) -> Result<Bytes, Refusal> {
        let (answer, answered) = oneshot::channel();
        let load = LoadCluster {
            subject,
            name,
            offset,
            crc,
        };
        self.actor.do_send(Job::Cluster(load, answer));
        answered.await.unwrap_or_else(|_| Err(stopping()))
    }

    /// The stored copy of a SCO, as far as recovery looks at it; `None` where there is none.
    pub(crate) async fn sco(
        &self,
        subject: Subject,
        sco: ScoId,
        epoch: Epoch,
        length: ByteLen,
    ) -> Result<Option<ScoImage>, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.actor.do_send(Job::Sco(subject, sco, epoch, length, answer));
        answered
            .await
            .unwrap_or_else(|_| Err(StoreError::Unavailable(stopping().text)))
    }

    /// The newest manifest on the back ends that is of the log that a volume's record tells of.
    pub(crate) async fn newest_manifest(
        &self,
        subject: Subject,
        record: &VolumeRecord,
    ) -> Result<Option<Manifest>, StoreError> {
        let (answer, answered) = oneshot::channel();
        let (epochs, named) = (record.epochs.clone(), record.manifest);
        self.actor
            .do_send(Job::NewestManifest(subject, epochs, named, answer));
        answered
            .await
            .unwrap_or_else(|_| Err(StoreError::Unavailable(stopping().text)))
    }

    /// The manifest that a volume's record names, from the back ends.
    pub(crate) async fn recorded_manifest(
        &self,
        subject: Subject,
        recorded: ManifestRef,
    ) -> Result<Manifest, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.actor
            .do_send(Job::RecordedManifest(subject, recorded, answer));
        answered
            .await
            .unwrap_or_else(|_| Err(StoreError::Unavailable(stopping().text)))
    }
}

fn stopping() -> Refusal {
    Refusal::retry(RefusalCode::Unavailable, "the volume-router is stopping")
}

/// A SCO on its way.
#[derive(Debug)]
pub(crate) struct Upload {
    /// The SCO.
    pub(crate) sco: ScoId,
    /// Its epoch.
    pub(crate) epoch: Epoch,
    /// Bytes of its TLog area that are used.
    pub(crate) tlog_len: ByteLen,
    /// Bytes from its start.
    pub(crate) length: ByteLen,
    /// Its file; read when the upload's turn comes.
    pub(crate) file: Arc<ScoFile>,
    /// What storing it belongs to, if an operation in it was recorded in spans.
    pub(crate) recorded: Option<Trace>,
}

/// A node to be loaded.
#[derive(Debug)]
pub(crate) struct LoadNode {
    subject: Subject,
    lineage: Arc<[VolumeId]>,
    place: NodePlace,
    reference: NodeRef,
}

/// A cluster to be loaded.
#[derive(Debug)]
pub(crate) struct LoadCluster {
    subject: Subject,
    name: ObjectName,
    offset: u64,
    crc: u32,
}

type Answer<T, E> = oneshot::Sender<Result<T, E>>;

/// Begins jobs; each runs as a task of this thread.
#[derive(Clone)]
struct BackgroundActor {
    shared: Rc<Shared>,
}

impl Actor for BackgroundActor {
    type Context = Context<Self>;
}

#[derive(Message)]
#[rtype(result = "()")]
enum Job {
    Upload(Owner, Upload),
    Checkpoint(Owner, Arc<Frozen>),
    Manifest(Owner, Box<Manifest>),
    Size(Owner),
    Scrub(Owner, ScoSize, ScrubJob, bool),
    Help(Box<BundleJob>, Bytes, Answer<ByteLen, Refusal>),
    Sweep(Owner, SweepJob),
    Copy(Owner, ScoSize, Vec<Extent>),
    Independent(Owner),
    Erase(Subject, Right),
    Node(LoadNode, Answer<Vec<NodeRecord>, Refusal>),
    Cluster(LoadCluster, Answer<Bytes, Refusal>),
    Sco(
        Subject,
        ScoId,
        Epoch,
        ByteLen,
        Answer<Option<ScoImage>, StoreError>,
    ),
    NewestManifest(
        Subject,
        Vec<EpochStart>,
        Option<ManifestRef>,
        Answer<Option<Manifest>, StoreError>,
    ),
    RecordedManifest(Subject, ManifestRef, Answer<Manifest, StoreError>),
}

impl Handler<Job> for BackgroundActor {
    type Result = ();

    fn handle(&mut self, job: Job, _: &mut Context<Self>) {
        let operation = self.shared.operations.borrow_mut().give();
        // What a job asks of storage-routers is traced under its id.
        actix_rt::spawn(operation.scope(run(Rc::clone(&self.shared), job)));
    }
}

/// Who asked and went away is not answered.
async fn run(shared: Rc<Shared>, job: Job) {
    match job {
        Job::Upload(owner, upload) => {
            let points = (Point::VolumeUploadEntry, Point::VolumeUploadExit);
            let (sco, length) = (upload.sco.0, upload.length.0);
            let done = upload::run(&shared, &owner, &upload);
            let span = match upload.recorded {
                Some(trace) => Span::below(trace, SpanKind::Internal, "volume.upload"),
                None => Span::control("volume.upload"),
            };
            traced(points, span, &owner, (Action::Put, sco, length), done).await;
        }
        Job::Checkpoint(owner, frozen) => {
            let points = (Point::VolumeCheckpointEntry, Point::VolumeCheckpointExit);
            let done = checkpoint::run(&shared, &owner, frozen);
            let span = Span::control("volume.checkpoint");
            traced(points, span, &owner, (Action::Put, 0, 0), done).await;
        }
        Job::Manifest(owner, manifest) => {
            let work = manifest::store(&shared, &owner, &manifest);
            Span::control("volume.manifest").scope(work).await;
        }
        Job::Scrub(owner, size, job, is_urgent) => {
            let points = (Point::VolumeScrubEntry, Point::VolumeScrubExit);
            let done = scrub::run(&shared, &owner, size, job, is_urgent);
            let span = Span::control("volume.scrub");
            traced(points, span, &owner, (Action::Control, 0, 0), done).await;
        }
        Job::Help(job, index, answer) => drop(answer.send(help::run(&shared, *job, &index).await)),
        Job::Sweep(owner, job) => {
            let work = sweep::run(&shared, &owner, job);
            Span::control("volume.sweep").scope(work).await;
        }
        Job::Copy(owner, size, extents) => flatten::copy(&shared, &owner, size, extents).await,
        Job::Independent(owner) => flatten::independent(&shared, &owner).await,
        Job::Size(owner) => size::run(&shared, &owner).await,
        Job::Erase(subject, right) => {
            let work = erase::run(&shared, &subject, &right);
            Span::control("volume.erase").scope(work).await;
        }
        Job::Node(load, answer) => drop(answer.send(load::node(&shared, &load).await)),
        Job::Cluster(load, answer) => drop(answer.send(load::cluster(&shared, &load).await)),
        Job::Sco(subject, sco, epoch, length, answer) => {
            drop(answer.send(load::sco(&shared, &subject, sco, epoch, length).await));
        }
        Job::NewestManifest(subject, epochs, named, answer) => {
            drop(answer.send(manifest::newest(&shared, &subject, &epochs, named).await));
        }
        Job::RecordedManifest(subject, recorded, answer) => {
            drop(answer.send(manifest::recorded(&shared, &subject, recorded).await));
        }
    }
}

/// A source of chance for waits.
fn chance() -> Chance {
    Chance::from_os()
}
