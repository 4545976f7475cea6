//! The metrics: one closed list, in the order in which a page shows them.
//!
//! Keeps: each metric's name, kind, labels, what it says, and which services have it.
//! Order: by service; what all have comes last.
//! Crash: nothing.
//! Knows no numbers. Names are what dashboards and alerts rely on: one that is given up is not used again.

/// What a metric's numbers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, from 0 at the process's (or the owner's) start.
    Counter,
    /// What there is now.
    Gauge,
    /// How many took how long: `_bucket`, `_sum`, `_count`.
    Histogram,
}

impl Kind {
    /// As Prometheus calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// What is known of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct About {
    /// Its name; the unit comes last, and `_total` behind it where it is a counter.
    pub name: &'static str,
    /// What its numbers are.
    pub kind: Kind,
    /// Names of its labels, in order.
    pub labels: &'static [&'static str],
    /// Which service has it; `all`: each.
    pub service: &'static str,
    /// What it says.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($service:literal: { $($metric:ident $kind:ident $name:literal [$($label:literal),*] $help:literal;)* })*) => {
        /// A metric.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Metric {
            $($(#[doc = $help] $metric,)*)*
        }

        impl Metric {
            /// All of them.
            pub const ALL: &[Metric] = &[$($(Metric::$metric,)*)*];

            /// What is known of it.
            #[must_use]
            pub const fn about(self) -> About {
                match self {
                    $($(Metric::$metric => About {
                        name: $name,
                        kind: Kind::$kind,
                        labels: &[$($label),*],
                        service: $service,
                        help: $help,
                    },)*)*
                }
            }
        }
    };
}

metrics! {
    "fs-router": {
        FrontEndSeconds Histogram "sconce_fs_router_operation_seconds" ["front_end", "operation"]
            "From when a client's operation was read to when its answer is ready, waiting for owners that are away included.";
        FrontEndBytes Counter "sconce_fs_router_operation_bytes_total" ["front_end", "operation"]
            "Bytes that operations which were done read, wrote or discarded.";
        FrontEndErrors Counter "sconce_fs_router_operation_errors_total" ["front_end", "operation", "status"]
            "Operations that the client was refused; `damaged`: there was no good copy of the data.";
        RoutedOperations Gauge "sconce_fs_router_operations_under_way" ["thread"]
            "Operations that an IO thread has taken on and not answered; those that wait for an owner stay here.";
    }
    "volume-router": {
        VolumeSeconds Histogram "sconce_volume_router_operation_seconds" ["operation"]
            "From when an operation was taken off the bus to when its answer leaves; of changes, slowing down while the write buffer fills is part of it.";
        VolumeBytes Counter "sconce_volume_router_operation_bytes_total" ["operation"]
            "Bytes that operations which were done brought or had room for.";
        VolumeErrors Counter "sconce_volume_router_operation_errors_total" ["operation", "status"]
            "Operations that were not done; of `reroute` and `retry` the client knows nothing: the fs-router asks again.";
        ShardOperations Gauge "sconce_volume_router_operations_under_way" ["shard"]
            "Operations that a thread has taken in and not answered.";
        ShardOperationsMax Gauge "sconce_volume_router_operations_under_way_max" []
            "As many as each thread takes in; more are told to come again.";
        BufferSize Gauge "sconce_volume_router_buffer_bytes" []
            "Size of the write buffer: the bound of the next three.";
        BufferAllocated Gauge "sconce_volume_router_buffer_allocated_bytes" []
            "What its files take; the other two are among it.";
        BufferUnstored Gauge "sconce_volume_router_buffer_unstored_bytes" []
            "What of the write buffer holds SCOs that are not on the back ends; writes are slowed down from three quarters on.";
        BufferCached Gauge "sconce_volume_router_buffer_cached_bytes" []
            "What of it holds SCOs that are on the back ends too, until there is need of their room.";
        BufferWaiting Gauge "sconce_volume_router_buffer_waiting" []
            "Volumes that wait for room in it: their writes are held.";
        Uploads Histogram "sconce_volume_router_upload_seconds" []
            "Storing a SCO on the back ends, from when it was due; waiting for room, and tries that failed, are part of it.";
        UploadedBytes Counter "sconce_volume_router_upload_bytes_total" []
            "Bytes of SCOs that were stored.";
        UploadErrors Counter "sconce_volume_router_upload_errors_total" []
            "Tries to store a SCO that failed; each is tried again.";
        UploadsUnderWay Gauge "sconce_volume_router_pool_uploads" ["pool"]
            "Requests to storage-routers, for a pool, that hold room.";
        UploadsWaiting Gauge "sconce_volume_router_pool_uploads_waiting" ["pool"]
            "Those that wait for room.";
        UploadsMax Gauge "sconce_volume_router_pool_uploads_max" []
            "As many as hold room for a pool at one time.";
        UploadBytesUnderWay Gauge "sconce_volume_router_pool_upload_bytes" ["pool"]
            "Bytes of requests that hold room.";
        UploadBytesMax Gauge "sconce_volume_router_pool_upload_bytes_max" []
            "As many as hold room for a pool at one time.";
        VolumeInfo Gauge "sconce_volume_info" ["volume", "path"]
            "1 for each volume of the node: joins `volume`, which the other metrics have, with its path.";
        VolumeServing Gauge "sconce_volume_serving" ["volume"]
            "1 while it is served, else 0.";
        VolumeSize Gauge "sconce_volume_size_bytes" ["volume"]
            "Size as the guest sees it.";
        VolumeAllocated Gauge "sconce_volume_allocated_bytes" ["volume"]
            "Clusters that are mapped.";
        VolumeUnstored Gauge "sconce_volume_unstored_bytes" ["volume"]
            "Acknowledged data that is only in the write buffer.";
        VolumeMapMemory Gauge "sconce_volume_map_memory_bytes" ["volume"]
            "Memory that its map takes.";
        VolumeDtl Gauge "sconce_volume_dtl_state" ["volume", "state"]
            "1 for the state that its DTL is in, 0 for the others: `in_sync`, `degraded`, `off`.";
        ScrubDead Gauge "sconce_volume_scrub_dead_bytes" ["volume"]
            "Stored clusters that nothing refers to, by the last pass.";
        ScrubDue Gauge "sconce_volume_scrub_due_bytes" ["volume"]
            "How much of that is to be given back.";
        ScrubWon Counter "sconce_volume_scrub_won_bytes_total" ["volume"]
            "What was given back, since the owner opened the volume.";
        ScrubRewritten Counter "sconce_volume_scrub_rewritten_total" ["volume"]
            "Objects that were written in place of others, likewise.";
        ScrubRemoved Counter "sconce_volume_scrub_removed_total" ["volume"]
            "SCOs that went whole, likewise.";
        ScrubErrors Counter "sconce_volume_scrub_errors_total" ["volume"]
            "Tries that failed, likewise.";
    }
    "storage-router": {
        StorageSeconds Histogram "sconce_storage_router_operation_seconds" ["operation"]
            "From when a request was begun to when its answer leaves.";
        StorageBytes Counter "sconce_storage_router_operation_bytes_total" ["operation"]
            "Bytes of objects that requests which were done brought or asked for.";
        StorageErrors Counter "sconce_storage_router_operation_errors_total" ["operation", "status"]
            "Requests that were not done.";
        StorageUnderWay Gauge "sconce_storage_router_operations_under_way" []
            "Requests that were begun and not answered.";
        BackendSeconds Histogram "sconce_backend_operation_seconds" ["backend", "operation"]
            "What a back end took for an operation; waiting for its share of the room is not part of it.";
        BackendBytes Counter "sconce_backend_operation_bytes_total" ["backend", "operation"]
            "Bytes that operations which did not fail asked for or sent.";
        BackendErrors Counter "sconce_backend_errors_total" ["backend"]
            "Operations that failed, answers that were damaged among them; what is not there, or is there already, is no failure.";
        BackendCapacity Gauge "sconce_backend_capacity_bytes" ["backend"]
            "Space that it can hold, where it knows: a bucket does not.";
        BackendFree Gauge "sconce_backend_free_bytes" ["backend"]
            "Space that is left, likewise.";
        BackendWorks Gauge "sconce_backend_works" ["backend"]
            "1 while it does what it is asked, 0 from an operation that failed to the next that does not.";
        BackendObjectsWritten Counter "sconce_backend_objects_written_total" ["backend"]
            "Objects and fragments that were stored, repaired copies among them.";
        BackendBytesWritten Counter "sconce_backend_written_bytes_total" ["backend"]
            "Bytes that they take there, envelopes and all.";
    }
    "fs-router, storage-router": {
        CacheHits Counter "sconce_cache_hits_total" ["cache"]
            "Pieces given, unharmed. The cache is `clusters` in an fs-router, `objects` in a storage-router.";
        CacheMisses Counter "sconce_cache_misses_total" ["cache"]
            "Pieces asked for and not given.";
        CacheHitBytes Counter "sconce_cache_hit_bytes_total" ["cache"]
            "Bytes given.";
        CacheAdmitted Counter "sconce_cache_admitted_total" ["cache"]
            "Pieces written to the file.";
        CacheAdmittedBytes Counter "sconce_cache_admitted_bytes_total" ["cache"]
            "Bytes written to the file: what the SSD wears by.";
        CacheEvicted Counter "sconce_cache_evicted_total" ["cache"]
            "Pieces that made room for others.";
        CacheSkipped Counter "sconce_cache_skipped_total" ["cache"]
            "Pieces that were not taken: more than 16 MiB waited to be written, or it was off.";
        CacheDamaged Counter "sconce_cache_damaged_total" ["cache"]
            "Pieces dropped because their CRC32C did not hold: an SSD that loses its content.";
        CacheErrors Counter "sconce_cache_errors_total" ["cache"]
            "Calls on the file that failed.";
        CachePieces Gauge "sconce_cache_pieces" ["cache"]
            "Pieces in the file.";
        CacheCapacity Gauge "sconce_cache_capacity_bytes" ["cache"]
            "Bytes that all pieces may take.";
        CacheOff Gauge "sconce_cache_off" ["cache"]
            "1 while an error or a start keeps it from giving or taking.";
    }
    "all": {
        BuildInfo Gauge "sconce_build_info" ["service", "node", "version"]
            "1: who this is.";
        ScrapeIncomplete Gauge "sconce_scrape_incomplete" []
            "1 where a part of the service did not tell its numbers in time: they are not on this page.";
        SpansExported Counter "sconce_spans_exported_total" []
            "Spans that the collector has.";
        SpansDropped Counter "sconce_spans_dropped_total" []
            "Spans that there was no room for, or that the collector would not have.";
        SpansWaiting Gauge "sconce_spans_waiting" []
            "Spans that wait for the collector, 8,192 at most.";
        ProcessCpu Counter "process_cpu_seconds_total" []
            "Processor time of the process, in the system and outside.";
        ProcessResident Gauge "process_resident_memory_bytes" []
            "Memory that it has in RAM.";
        ProcessVirtual Gauge "process_virtual_memory_bytes" []
            "Addresses that it has.";
        ProcessStart Gauge "process_start_time_seconds" []
            "When it started, in seconds since 1970.";
        ProcessDescriptors Gauge "process_open_fds" []
            "Open file descriptors.";
        ProcessDescriptorsMax Gauge "process_max_fds" []
            "As many as it may have.";
        ProcessThreads Gauge "process_threads" []
            "Its threads.";
    }
}
