//! What requests are called in traces.
//!
//! Keeps: nothing.
//! Order: none.
//! Crash: nothing.
//! Knows no tracer. Names are what recorded traces and their readers rely on: one that is given up is not used again.

use super::registry::RegistryRequest;
use super::storage::{StorageControl, StorageRequest};
use super::twin::TwinSay;
use super::volume::{IoCode, VolumeControl, VolumeRequest};

/// Of an operation on a volume.
pub(super) const fn of_io(code: IoCode) -> &'static str {
    match code {
        IoCode::Read => "volume.read",
        IoCode::Write => "volume.write",
        IoCode::Discard => "volume.discard",
        IoCode::WriteZeroes => "volume.write_zeroes",
        IoCode::Flush => "volume.flush",
        IoCode::Extents => "volume.extents",
        IoCode::Resize => "volume.resize",
        IoCode::Changes => "volume.changes",
    }
}

/// Of a request to a volume-router.
pub(super) const fn of_volume(request: &VolumeRequest) -> &'static str {
    match request {
        VolumeRequest::Io(io) => of_io(io.code),
        VolumeRequest::Twin(twin) => match twin.say {
            TwinSay::Attach { .. } => "twin.attach",
            TwinSay::Open { .. } => "twin.open",
            TwinSay::Append { .. } => "twin.append",
            TwinSay::Copy { .. } => "twin.copy",
            TwinSay::Sync { .. } => "twin.sync",
            TwinSay::Release { .. } => "twin.release",
            TwinSay::Detach => "twin.detach",
            TwinSay::Beat => "twin.beat",
        },
        VolumeRequest::Control(control) => of_volume_control(control),
    }
}

const fn of_volume_control(control: &VolumeControl) -> &'static str {
    match control {
        VolumeControl::Open { .. } => "volume.open",
        VolumeControl::OpenChanges { .. } => "volume.open_changes",
        VolumeControl::Close { .. } => "volume.close",
        VolumeControl::Show { .. } => "volume.show",
        VolumeControl::Sync { .. } => "volume.sync",
        VolumeControl::Renamed { .. } => "volume.renamed",
        VolumeControl::Delete { .. } => "volume.delete",
        VolumeControl::TakeOver { .. } => "volume.take_over",
        VolumeControl::TakeSnapshot { .. } => "snapshot.take",
        VolumeControl::ProposeSnapshot { .. } => "snapshot.propose",
        VolumeControl::ConfirmSnapshot { .. } => "snapshot.confirm",
        VolumeControl::WithdrawSnapshot { .. } => "snapshot.withdraw",
        VolumeControl::RemoveSnapshot { .. } => "snapshot.remove",
        VolumeControl::RollBack { .. } => "snapshot.roll_back",
        VolumeControl::ListSnapshots { .. } => "snapshot.list",
        VolumeControl::SetReadOnly { .. } => "volume.set_read_only",
        VolumeControl::Flatten { .. } => "volume.flatten",
        VolumeControl::NodeStatus => "node.status",
        VolumeControl::Events(_) => "node.events",
        VolumeControl::SetHistory { .. } => "volume.set_history",
        VolumeControl::SetDtl { .. } => "volume.set_dtl",
        VolumeControl::Move { .. } => "volume.move",
        VolumeControl::LeaveTwin { .. } => "volume.leave_twin",
        VolumeControl::TakeMoment { .. } => "snapshot.take_moment",
        VolumeControl::SetAccess { .. } => "volume.set_access",
        VolumeControl::WriteBundle(_) => "volume.write_bundle",
    }
}

/// Whether a request to a volume-router is recorded without a cause too: not the data path, and not what is asked again and again to show it.
pub(super) const fn is_volume_control(request: &VolumeRequest) -> bool {
    match request {
        VolumeRequest::Io(_) | VolumeRequest::Twin(_) => false,
        VolumeRequest::Control(control) => !matches!(
            control,
            VolumeControl::Show { .. }
                | VolumeControl::ListSnapshots { .. }
                | VolumeControl::NodeStatus
                | VolumeControl::Events(_)
        ),
    }
}

/// Of a request to a storage-router.
pub(super) const fn of_storage(request: &StorageRequest) -> &'static str {
    match request {
        StorageRequest::Put { .. } => "storage.put",
        StorageRequest::Get { .. } => "storage.get",
        StorageRequest::Control(control) => match control {
            StorageControl::Stat { .. } => "storage.stat",
            StorageControl::Delete { .. } => "storage.delete",
            StorageControl::List { .. } => "storage.list",
            StorageControl::ListVolumes { .. } => "storage.list_volumes",
            StorageControl::NodeStatus => "node.status",
            StorageControl::Events(_) => "node.events",
            StorageControl::AddBackend { .. } => "storage.add_backend",
            StorageControl::CreatePool { .. } => "storage.create_pool",
            StorageControl::PlacePool { .. } => "storage.place_pool",
        },
    }
}

/// Of a request to the registry.
pub(super) const fn of_registry(request: &RegistryRequest) -> &'static str {
    match request {
        RegistryRequest::Get { .. } => "registry.get",
        RegistryRequest::List { .. } => "registry.list",
        RegistryRequest::Commit { .. } => "registry.commit",
        RegistryRequest::Watch { .. } => "registry.watch",
        RegistryRequest::LeaseGrant { .. } => "registry.lease_grant",
        RegistryRequest::LeaseKeepAlive { .. } => "registry.lease_keep_alive",
        RegistryRequest::LeaseRevoke { .. } => "registry.lease_revoke",
    }
}
