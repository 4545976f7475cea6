//! The volume's record in the registry: claimed, kept up to date and released by compare-and-swap.
//!
//! Keeps: nothing; the registry does.
//! Order: a record is judged anew after every conflict; an epoch is raised before anything is written in it.
//! Crash: a claim that was not followed by anything leaves an epoch without SCOs, which does no harm.
//! Knows no engine.

mod access;
#[cfg(test)]
mod tests;

use sconce_registry::record::decode;
use sconce_registry::{Change, CommitError, Entry, Registry, RegistryError, Revision};
use sconce_runtime::Clock;
use sconce_schemas::records::{
    Buffer, CloneRecord, DtlMode, DtlState, EpochStart, LastMove, ManifestRef, MoveWhy, Moving, NodeRecord,
    Record as _, VolumePhase, VolumeRecord, keys,
};
use sconce_schemas::wire::{Refusal, RefusalCode};
use sconce_schemas::{Epoch, NodeName, ScoId, VolumeId, VolumeSize};

use crate::background::Tried;

pub(crate) use access::{Claimed, change_access, release_access, take_access};

/// Who claims, and what for.
#[derive(Debug, Clone)]
pub(crate) struct Claimant {
    /// This node.
    pub(crate) node: NodeName,
    /// Its write buffer.
    pub(crate) buffer: Buffer,
    /// An operator accepts the loss of what another buffer holds, or takes the volume from another owner.
    pub(crate) takeover: Option<TakeOver>,
    /// The newest ownership when all of this was decided.
    pub(crate) judged: Epoch,
    /// The ownership whose owner was seen to be gone: its twin here may be gone on from, that of no other.
    pub(crate) orphan: Option<Epoch>,
    /// Epochs that are known to be used, whatever the record says: the newest in the write buffer and on the back
    /// ends. A registry that was restored from an older state must not give one out again.
    pub(crate) epochs_used: Epoch,
    /// Write buffers of the record, as it names them, whose machines were seen to be booted anew since. They stay so: a boot does not come
    /// back.
    pub(crate) lost_power: Vec<Buffer>,
}

/// An operator's or the pool's wish to have the volume here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TakeOver {
    /// Accept the loss of what is not on the back ends.
    pub(crate) force: bool,
    /// It is the pool's: the owner is gone, and the twin is here.
    pub(crate) orphaned: bool,
    /// The ownership that it is about, once the record was read.
    about: Option<Epoch>,
}

impl TakeOver {
    pub(crate) const fn asked(force: bool) -> Self {
        Self {
            force,
            orphaned: false,
            about: None,
        }
    }

    pub(crate) const fn orphaned() -> Self {
        Self {
            orphaned: true,
            ..Self::asked(false)
        }
    }

    /// Whether it is about what the record says. It outlives tries that fail, but is about no ownership that came meanwhile at another
    /// node: what that acknowledged nobody has given up.
    pub(crate) fn is_about(&mut self, record: &VolumeRecord, node: &NodeName) -> bool {
        let is_same = self
            .about
            .is_none_or(|epoch| epoch == record.epoch || record.owner == *node);
        self.about = Some(record.epoch);
        is_same
    }

    /// Whether the record was ever read since it was asked for.
    pub(crate) const fn is_judged(&self) -> bool {
        self.about.is_some()
    }
}

/// Why a record could not be changed.
#[derive(Debug)]
pub(crate) enum RecordError {
    /// The volume is not this node's (any more), or waits for its owner: what to answer.
    Refused(Refusal),
    /// The registry cannot be used now.
    Unavailable(String),
}

impl From<RegistryError> for RecordError {
    /// A record that cannot be read says nothing of who owns the volume: as long as it is damaged nobody can claim it.
    fn from(error: RegistryError) -> Self {
        RecordError::Unavailable(error.to_string())
    }
}

/// A change of the record is tried until the registry can be used.
impl<T> From<Result<T, RecordError>> for Tried<Result<T, Refusal>, String> {
    fn from(noted: Result<T, RecordError>) -> Self {
        match noted {
            Ok(noted) => Tried::Over(Ok(noted)),
            Err(RecordError::Refused(refusal)) => Tried::Over(Err(refusal)),
            Err(RecordError::Unavailable(cause)) => Tried::Again(cause),
        }
    }
}

/// What to answer.
pub(crate) fn refusal_of(error: RecordError) -> Refusal {
    match error {
        RecordError::Refused(refusal) => refusal,
        RecordError::Unavailable(text) => Refusal::retry(RefusalCode::Unavailable, text),
    }
}

/// Reads a volume's record.
pub(crate) async fn read(
    registry: &Registry,
    volume: VolumeId,
) -> Result<(VolumeRecord, Revision), RecordError> {
    let found = registry.get_record::<VolumeRecord>(&keys::volume(volume)).await?;
    found.ok_or_else(|| RecordError::Refused(not_found(volume)))
}

/// What to answer where there is no record.
pub(crate) fn not_found(volume: VolumeId) -> Refusal {
    Refusal::reject(RefusalCode::NotFound, format!("volume {volume} does not exist"))
}

/// Whether the claimant may own the volume, before it asks for it.
///
/// # Errors
/// What to answer instead; the text for an operator says what would be lost and the command that accepts it.
pub(crate) fn may_claim(record: &VolumeRecord, claimant: &Claimant, path: &str) -> Result<(), Refusal> {
    if record.phase == VolumePhase::Deleting {
        return Err(Refusal::reject(
            RefusalCode::NotFound,
            format!("volume {path} is being deleted"),
        ));
    }
    if record.owner != claimant.node && claimant.takeover.is_none() {
        return Err(not_owner(record, path));
    }
    let force = claimant.takeover.is_some_and(|takeover| takeover.force);
    let has_twin = relies_on_twin(record, &claimant.node, &claimant.buffer.id)
        && claimant.orphan.is_none_or(|orphan| orphan == record.epoch);
    match &record.buffer {
        Some(buffer) if *buffer != claimant.buffer.id && !force && !has_twin => Err(Refusal::retry(
            RefusalCode::WaitsForOwner,
            format!(
                "volume {path} may have acknowledged writes that are only in the write buffer {buffer} of {} \
                 (this one is {} of {}): writes since manifest {} would be lost. {} Bring that buffer back, or accept \
                 the loss with: sconce volume takeover {path} --force",
                record.owner,
                claimant.buffer.id,
                claimant.node,
                record
                    .manifest
                    .map_or_else(|| "none".to_owned(), |m| m.seq.to_string()),
                twin_told(record, path),
            ),
        )),
        _ if force => Ok(()),
        _ => match waits_for(record, claimant) {
            Some(other) => Err(lost_power(record, claimant, &other, path)),
            None => Ok(()),
        },
    }
}

/// Whether this write buffer is one that the record names, but its machine was booted anew since, so that it may lack what was acknowledged and
/// not flushed.
fn may_lack(record: &VolumeRecord, buffer: &Buffer) -> bool {
    record.relied().any(|named| buffer.lost_power_since(&named))
}

/// The other write buffer that the claimant's waits for: this one may lack what that has. Where both may, either goes on with what was flushed.
fn waits_for(record: &VolumeRecord, claimant: &Claimant) -> Option<Buffer> {
    let may_have_more =
        |other: &Buffer| other.id != claimant.buffer.id && !claimant.lost_power.contains(other);
    record
        .relied()
        .find(may_have_more)
        .filter(|_| may_lack(record, &claimant.buffer))
}

fn lost_power(record: &VolumeRecord, claimant: &Claimant, other: &Buffer, path: &str) -> Refusal {
    let Claimant { node, buffer, .. } = claimant;
    let of_host = record
        .dtl_host
        .as_ref()
        .filter(|_| record.dtl_buffer.as_ref() == Some(&other.id));
    let whose = of_host.map_or_else(String::new, |host| format!(" of {host}"));
    Refusal::retry(
        RefusalCode::WaitsForOwner,
        format!(
            "the machine of {node} was booted anew, so that its write buffer {} may lack writes to volume {path} that were acknowledged \
             and not flushed. The write buffer {}{whose} has all of them: its node takes the volume over by itself once it is in the \
             registry. Bring it back, or accept the loss of what was not flushed with: sconce volume takeover {path} --to {node} --force",
            buffer.id, other.id,
        ),
    )
}

/// Of the write buffers that the record names, those whose machines were booted anew since. Asks only where it matters to this buffer's node: nodes
/// are read after the record, and announce themselves before they begin an ownership that a record names.
pub(crate) async fn seen_to_lose_power(
    registry: &Registry,
    record: &VolumeRecord,
    buffer: &Buffer,
) -> Result<Vec<Buffer>, RegistryError> {
    if !may_lack(record, buffer) {
        return Ok(Vec::new());
    }
    let nodes = registry.nodes().await?;
    let announced = || nodes.iter().filter_map(|node| node.buffer.as_ref());
    let has_lost = |named: &Buffer| announced().any(|now| now.lost_power_since(named));
    Ok(record.relied().filter(has_lost).collect())
}

/// Whether the owner's node is in the registry and may go on with the volume: its write buffer is one that the record names, and has all that
/// was acknowledged. One that does not say may, and so may one whose record is damaged: it runs.
pub(crate) fn can_go_on(record: &VolumeRecord, owner: Option<&Entry>) -> bool {
    let Some(owner) = owner else { return false };
    match decode::<NodeRecord>(owner) {
        Ok(NodeRecord {
            buffer: Some(buffer), ..
        }) => record.relied().any(|named| buffer.has_all_of(&named)),
        _ => true,
    }
}

/// What an operator has to know of the twin of a volume that waits for its owner.
fn twin_told(record: &VolumeRecord, path: &str) -> String {
    match (record.dtl_state, &record.dtl_host, &record.dtl_buffer) {
        (DtlState::InSync, Some(host), Some(buffer)) => format!(
            "Its twin in the write buffer {buffer} of {host} has all of them: {host} takes the volume over by itself once {} is \
             gone from the registry, or with: sconce volume takeover {path} --to {host}.",
            record.owner
        ),
        (DtlState::InSync, ..) => "Its record says that a twin has all of them, but not where.".to_owned(),
        (DtlState::Degraded, ..) => "It had no twin that has all of them (degraded).".to_owned(),
        (DtlState::Off, ..) => "It has no twin (off).".to_owned(),
    }
}

/// Where the volume is.
pub(crate) fn not_owner(record: &VolumeRecord, path: &str) -> Refusal {
    Refusal::reroute(
        RefusalCode::NotOwner,
        format!("volume {path} is owned by {}", record.owner),
    )
}

/// Why a volume with a twin here is not taken over from an owner that is there.
pub(crate) fn owner_is_there(record: &VolumeRecord, path: &str) -> Refusal {
    Refusal::retry(
        RefusalCode::WaitsForOwner,
        format!(
            "volume {path} is served by {}, which is in the registry: its twin here is taken over once {} is gone from there. \
             Stop {}, or take the volume from it with: sconce volume takeover {path} --force",
            record.owner, record.owner, record.owner
        ),
    )
}

/// What was decided was about another ownership: what this one acknowledges nobody has given up.
fn claimed_meanwhile(record: &VolumeRecord, claimant: &Claimant, path: &str) -> Refusal {
    Refusal::retry(
        RefusalCode::Conflict,
        format!(
            "volume {path} was taken over by {} (epoch {}) while {} was about to, by what epoch {} left: {} has it now",
            record.owner, record.epoch, claimant.node, claimant.judged, record.owner
        ),
    )
}

/// Whether the record says that the twin in this write buffer of this node has every acknowledged write.
pub(crate) fn relies_on_twin(record: &VolumeRecord, node: &NodeName, buffer: &str) -> bool {
    record.dtl_state == DtlState::InSync
        && record.dtl_host.as_ref() == Some(node)
        && record.dtl_buffer.as_deref() == Some(buffer)
}

/// Whether SCOs of such an epoch in a write buffer that the record does not rely on are of a twin that was given up: on from the
/// place where it was, the volume was written without it, and a SCO may have ended there in the middle.
pub(crate) fn is_given_up_twin(record: &VolumeRecord, buffer: &str, epoch: Epoch) -> bool {
    let elsewhere = record.buffer.as_deref().is_some_and(|named| named != buffer);
    record.may_have_twins() && elsewhere && epoch <= record.epoch
}

/// Whether what a write buffer holds of another node's volume is of a twin that nobody relies on. `newest`: the newest epoch in the
/// buffer.
pub(crate) fn leaves_no_twin(record: &VolumeRecord, node: &NodeName, buffer: &str, newest: Epoch) -> bool {
    record.owner != *node && is_given_up_twin(record, buffer, newest) && relies_elsewhere(record, buffer)
}

/// Whether the record relies on a twin in another write buffer than this one: it cannot rely on this one any more, unless a stream begins
/// here anew. A record that relies on none may be about to rely on this one: what its owner has sent is on its way.
pub(crate) fn relies_elsewhere(record: &VolumeRecord, buffer: &str) -> bool {
    record.dtl_state == DtlState::InSync && record.dtl_buffer.as_deref().is_some_and(|named| named != buffer)
}

/// Whether the record proves that what a write buffer holds of the volume is needed no more: the volume is being
/// deleted, or a later ownership than any that the buffer has seen went on in another buffer, and no twin here is relied on or may be about
/// to be. Anything less may be a registry that was restored, lost or put right by hand, and what is held here the only copy. `newest`: the newest
/// epoch in the buffer.
pub(crate) fn leaves_nothing(record: &VolumeRecord, buffer: &str, newest: Epoch) -> bool {
    let elsewhere = record.buffer.as_deref().is_some_and(|named| named != buffer);
    // Copies that a twin has of earlier ownerships' SCOs look like what such an ownership left.
    let is_over =
        elsewhere && record.epoch > newest && (wants_none(record) || relies_elsewhere(record, buffer));
    record.phase == VolumePhase::Deleting || is_over
}

/// Whether there is no twin to rely on and none is wanted: none can be relied on before one attaches anew.
pub(crate) fn wants_none(record: &VolumeRecord) -> bool {
    record.dtl_mode == DtlMode::None && record.dtl_state != DtlState::InSync
}

/// Raises the epoch and names this node. The buffer stays as it was until recovery has taken over what it says: a
/// claim that a crash cut short is then begun again with the same knowledge. Gives the record as it is from here on.
pub(crate) async fn claim(
    registry: &Registry,
    volume: VolumeId,
    claimant: &Claimant,
    path: &str,
    clock: &Clock,
) -> Result<VolumeRecord, RecordError> {
    change(registry, volume, |record| {
        if record.epoch != claimant.judged && record.owner != claimant.node {
            return Err(claimed_meanwhile(record, claimant, path));
        }
        may_claim(record, claimant, path)?;
        record.epoch = record.epoch.max(claimant.epochs_used).next();
        record.epoch_since_us = Some(clock.unix_micros());
        record.owner = claimant.node.clone();
        Ok(Changed::Yes)
    })
    .await
}

/// Notes where the ownership's SCOs begin and in which buffer, and that nobody relies on a twin any more: before the first of them is
/// opened. `earlier`: the
/// ownerships before it, of which an old record may know less than recovery does.
pub(crate) async fn begin_epoch(
    registry: &Registry,
    volume: VolumeId,
    own: &Ownership,
    buffer: &Buffer,
    (earlier, first_sco): (&[EpochStart], ScoId),
    clock: &Clock,
) -> Result<VolumeRecord, RecordError> {
    let epoch = own.epoch;
    change_own(registry, volume, own, move |record| {
        record.epochs = earlier.to_vec();
        // An ownership that wrote nothing leaves no trace.
        record.epochs.retain(|earlier| earlier.first_sco < first_sco);
        record.epochs.push(EpochStart { epoch, first_sco });
        record.buffer = Some(buffer.id.clone());
        record.buffer_boot.clone_from(&buffer.boot);
        // A move ends with the ownership that it began in, wherever this one is.
        if let Some(moving) = record.moving.take() {
            record.set_dtl_mode(moving.mode);
            if moving.to == own.node {
                record.last_move = Some(LastMove {
                    from: moving.from,
                    to: moving.to,
                    at_us: clock.unix_micros(),
                    why: moving.why,
                });
            }
        }
        // It has no twin yet.
        without_twin(record, clock);
        Changed::Yes
    })
    .await
}

/// Names the newest manifest, and the size that the volume has by now.
pub(crate) async fn note_manifest(
    registry: &Registry,
    volume: VolumeId,
    own: &Ownership,
    manifest: ManifestRef,
    size: impl Fn() -> VolumeSize,
) -> Result<(), RecordError> {
    change_own(registry, volume, own, move |record| {
        let newer = record
            .manifest
            .is_none_or(|known| (known.epoch, known.seq) < (manifest.epoch, manifest.seq));
        if newer {
            record.manifest = Some(manifest);
            record.size = Some(size());
        }
        Changed::when(newer)
    })
    .await
    .map(drop)
}

/// Notes the size that the volume has by now, for whoever asks while its owner does not answer.
pub(crate) async fn note_size(
    registry: &Registry,
    volume: VolumeId,
    own: &Ownership,
    size: impl Fn() -> VolumeSize,
) -> Result<(), RecordError> {
    change_own(registry, volume, own, move |record| {
        // Read anew for each try: a job that a conflict held up must not write an older size over a newer one.
        let size = Some(size());
        Changed::when(std::mem::replace(&mut record.size, size) != size)
    })
    .await
    .map(drop)
}

/// All that was acknowledged is on the back ends, and nothing is acknowledged any more: whoever comes next needs no
/// buffer. Whoever calls this sees to both.
pub(crate) async fn release(
    registry: &Registry,
    volume: VolumeId,
    own: &Ownership,
    clock: &Clock,
) -> Result<(), RecordError> {
    change_own(registry, volume, own, |record| {
        let had_buffer = record.buffer.take().is_some();
        record.buffer_boot = None;
        let moved = record.moving.take();
        if let Some(moving) = &moved {
            record.set_dtl_mode(moving.mode);
        }
        let had_twin = without_twin(record, clock);
        Changed::when(had_buffer || had_twin || moved.is_some())
    })
    .await
    .map(drop)
}

/// The volume, a clone, needs nothing of its parent any more: neither its record says that it does, nor one below its
/// parent, in one commit. Whether there was anything to be done.
pub(crate) async fn drop_origin(
    registry: &Registry,
    volume: VolumeId,
    own: &Ownership,
) -> Result<bool, RecordError> {
    let key = keys::volume(volume);
    loop {
        let (mut record, revision) = read(registry, volume).await?;
        own.holds(&record).map_err(RecordError::Refused)?;
        let Some(origin) = record.origin.take() else {
            return Ok(false);
        };
        let mut changes = vec![Change::put(key.clone(), Some(revision), record.to_bytes())];
        let below_parent = keys::clone(origin.volume, volume);
        if let Some((_, revision)) = registry.get_record::<CloneRecord>(&below_parent).await? {
            changes.push(Change::delete(below_parent, Some(revision)));
        }
        match registry.commit(changes).await {
            Ok(_) => return Ok(true),
            Err(error) => retry_or(error)?,
        }
    }
}

/// An ownership: what a change of the record has to find.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ownership {
    /// This node.
    pub(crate) node: NodeName,
    /// The number of its ownership.
    pub(crate) epoch: Epoch,
}

impl Ownership {
    /// Whether the record still says so.
    pub(crate) fn holds(&self, record: &VolumeRecord) -> Result<(), Refusal> {
        if record.owner == self.node && record.epoch == self.epoch {
            return Ok(());
        }
        Err(Refusal::reroute(
            RefusalCode::NotOwner,
            format!(
                "{} owns volume {} in epoch {} now; {} had epoch {}",
                record.owner, record.id, record.epoch, self.node, self.epoch
            ),
        ))
    }
}

enum Changed {
    Yes,
    No,
}

impl Changed {
    const fn when(changed: bool) -> Self {
        if changed { Changed::Yes } else { Changed::No }
    }
}

async fn change_own(
    registry: &Registry,
    volume: VolumeId,
    own: &Ownership,
    mut edit: impl FnMut(&mut VolumeRecord) -> Changed,
) -> Result<VolumeRecord, RecordError> {
    change(registry, volume, |record| {
        own.holds(record)?;
        Ok(edit(record))
    })
    .await
}

/// Reads, edits and commits, again after every conflict.
async fn change(
    registry: &Registry,
    volume: VolumeId,
    mut edit: impl FnMut(&mut VolumeRecord) -> Result<Changed, Refusal>,
) -> Result<VolumeRecord, RecordError> {
    let key = keys::volume(volume);
    loop {
        let (mut record, revision) = read(registry, volume).await?;
        if let Changed::No = edit(&mut record).map_err(RecordError::Refused)? {
            return Ok(record);
        }
        match registry.put_record(&key, Some(revision), &record, None).await {
            Ok(_) => return Ok(record),
            Err(error) => retry_or(error)?,
        }
    }
}

/// Whether to read again and decide anew.
pub(super) fn retry_or(error: CommitError) -> Result<(), RecordError> {
    match error {
        // What came of an unknown commit shows when the record is read again.
        CommitError::Conflict { .. } | CommitError::Unknown { .. } => Ok(()),
        other => Err(RecordError::Unavailable(other.to_string())),
    }
}

/// The twin has every acknowledged write: it may go on where this ownership ends.
pub(crate) async fn note_in_sync(
    registry: &Registry,
    volume: VolumeId,
    own: &Ownership,
    host: &NodeName,
    buffer: &Buffer,
    clock: &Clock,
) -> Result<(), RecordError> {
    change(registry, volume, |record| {
        own.holds(record)?;
        if record.dtl_mode == DtlMode::None {
            // Its host may be giving up what nobody wants.
            let text = format!("volume {volume} wants no twin any more");
            return Err(Refusal::retry(RefusalCode::Conflict, text));
        }
        if relies_on_twin(record, host, &buffer.id) && record.dtl_boot == buffer.boot {
            return Ok(Changed::No);
        }
        set_state(record, DtlState::InSync, clock);
        record.dtl_host = Some(host.clone());
        record.dtl_buffer = Some(buffer.id.clone());
        record.dtl_boot.clone_from(&buffer.boot);
        Ok(Changed::Yes)
    })
    .await
    .map(drop)
}

/// There is no twin to rely on; gives what the record says of it.
pub(crate) async fn note_degraded(
    registry: &Registry,
    volume: VolumeId,
    own: &Ownership,
    clock: &Clock,
) -> Result<DtlState, RecordError> {
    change_own(registry, volume, own, |record| {
        without_twin(record, clock);
        // Also where it says so: a commit that says otherwise, whose outcome is unknown, may still be on its way. It cannot succeed
        // after this one.
        Changed::Yes
    })
    .await
    .map(|record| record.dtl_state)
}

/// What the twin is waited for, from now on; gives what the record says of the twin by that, where it said something else before. A move
/// that goes on meanwhile changes nothing of that any more.
pub(crate) async fn set_dtl_mode(
    registry: &Registry,
    volume: VolumeId,
    own: &Ownership,
    mode: DtlMode,
    clock: &Clock,
) -> Result<Option<DtlState>, RecordError> {
    let mut is_other = false;
    let record = change_own(registry, volume, own, |record| {
        let of_move = record
            .moving
            .as_mut()
            .map(|moving| std::mem::replace(&mut moving.mode, mode));
        let had_state = record.dtl_state;
        let is_changed = waited_for(record, mode, clock);
        is_other = had_state != record.dtl_state;
        Changed::when(is_changed || of_move.is_some_and(|before| before != mode))
    })
    .await?;
    Ok(is_other.then_some(record.dtl_state))
}

/// The volume is about to be moved. Gives how its twin is waited for meanwhile.
pub(crate) async fn begin_move(
    registry: &Registry,
    volume: VolumeId,
    own: &Ownership,
    (to, why): (&NodeName, MoveWhy),
    clock: &Clock,
) -> Result<DtlMode, RecordError> {
    let record = change_own(registry, volume, own, |record| {
        // Of a move that was not ended: its mode is what was asked for.
        let mode = record
            .moving
            .as_ref()
            .map_or(record.dtl_mode, |moving| moving.mode);
        record.moving = Some(Moving {
            from: own.node.clone(),
            to: to.clone(),
            mode,
            why,
        });
        // Where it wants no twin it has one for the time of the move.
        if record.dtl_mode == DtlMode::None {
            waited_for(record, DtlMode::Sync, clock);
        }
        Changed::Yes
    })
    .await?;
    Ok(record.dtl_mode)
}

/// The volume stays: its twin is waited for as before. Gives how.
pub(crate) async fn end_move(
    registry: &Registry,
    volume: VolumeId,
    own: &Ownership,
    clock: &Clock,
) -> Result<DtlMode, RecordError> {
    let record = change_own(registry, volume, own, |record| {
        if let Some(moving) = record.moving.take() {
            waited_for(record, moving.mode, clock);
        }
        // Also where it says so: as in `note_degraded`, that of a move's beginning may still be on its way.
        Changed::Yes
    })
    .await?;
    Ok(record.dtl_mode)
}

/// How the twin is waited for, by what the record says: nothing that was asked for before and is still on its way changes that any more.
pub(crate) async fn settle_dtl_mode(
    registry: &Registry,
    volume: VolumeId,
    own: &Ownership,
) -> Result<DtlMode, RecordError> {
    let record = change_own(registry, volume, own, |_| Changed::Yes).await?;
    Ok(record.dtl_mode)
}

/// The owner acknowledges nothing any more, and the twin's host is the owner from here on: it goes on from the twin, in an ownership of
/// its own. Until that begins the record names this write buffer too.
pub(crate) async fn hand_over(
    registry: &Registry,
    volume: VolumeId,
    own: &Ownership,
    (to, buffer): (&NodeName, &str),
) -> Result<(), RecordError> {
    change(registry, volume, |record| {
        // One whose outcome was not known; the next owner may have claimed its own epoch by now.
        if record.owner == *to && record.epoch >= own.epoch {
            return Ok(Changed::No);
        }
        own.holds(record)?;
        if record.phase == VolumePhase::Deleting {
            return Err(Refusal::reject(
                RefusalCode::NotFound,
                format!("volume {volume} is being deleted"),
            ));
        }
        if !relies_on_twin(record, to, buffer) {
            let text = format!("the record of volume {volume} does not rely on the twin at {to} any more");
            return Err(Refusal::retry(RefusalCode::Conflict, text));
        }
        record.owner = to.clone();
        Ok(Changed::Yes)
    })
    .await
    .map(drop)
}

/// Sets what the twin is waited for; whether that changes anything.
fn waited_for(record: &mut VolumeRecord, mode: DtlMode, clock: &Clock) -> bool {
    let before = (record.dtl_mode, record.dtl_state);
    record.set_dtl_mode(mode);
    // A twin that is relied on is so until the owner has given it up.
    if record.dtl_state != DtlState::InSync {
        without_twin(record, clock);
    }
    before != (record.dtl_mode, record.dtl_state)
}

/// Nobody relies on a twin; whether the record said otherwise.
fn without_twin(record: &mut VolumeRecord, clock: &Clock) -> bool {
    let state = record.dtl_mode.without_twin();
    let before = (record.dtl_state, record.dtl_host.take(), record.dtl_buffer.take());
    record.dtl_boot = None;
    set_state(record, state, clock);
    before != (state, None, None)
}

fn set_state(record: &mut VolumeRecord, state: DtlState, clock: &Clock) {
    // Also where it was so before anybody wrote down since when: later than it is, and better than nothing.
    if record.dtl_state != state || record.dtl_since_us.is_none() {
        record.dtl_since_us = Some(clock.unix_micros());
    }
    record.dtl_state = state;
}
