//! Metrics of real processes: what is on their pages is the closed list, and says what was done.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use sconce_tests::cluster::{Cluster, SOON, Service};
use sconce_tests::metrics::Metrics;
use sconce_tests::nbd::{Ask, Nbd};
use sconce_tests::{edit, wait};
use sconce_tracing::metrics::Metric;

const DISK: &str = "/vm1/disk.raw";
const BLOCK: u32 = 4096;
const WRITES: u64 = 20;

/// A cluster all of whose services tell their metrics, front end first.
fn start() -> Result<(Cluster, [Metrics; 3])> {
    let mut all = Vec::new();
    let cluster = Cluster::start_with(|run| {
        for (service, cache) in [("fs-router", "clusters"), ("storage-router", "objects")] {
            edit::set(
                run,
                service,
                "cache.directory",
                run.join(cache).display().to_string(),
            )?;
            edit::set(run, service, "cache.size", "64 MiB")?;
        }
        for service in Service::ALL {
            all.push(Metrics::switch_on(run, service)?);
        }
        Ok(())
    })?;
    let all = all.try_into().ok().context("three services")?;
    Ok((cluster, all))
}

#[test]
fn the_services_pages_are_the_closed_list_and_count_what_was_done() -> Result<()> {
    let (cluster, services) = start()?;
    cluster.create(DISK, "64M")?;
    let mut disk = Nbd::connect(&cluster.nbd_socket(), DISK, SOON)?;
    for number in 0..WRITES {
        let data = [7; BLOCK as usize];
        disk.ask(Ask::Write, number * u64::from(BLOCK), BLOCK, &data)?;
    }
    disk.ask(Ask::Flush, 0, 0, &[])?;
    disk.ask(Ask::Read, 0, 2 * BLOCK, &[])?;
    cluster.sconce(["volume", "sync", DISK])?;

    let mut told = BTreeSet::new();
    for (service, metrics) in Service::ALL.iter().zip(services) {
        for (name, kind) in metrics.read()?.families {
            let known = Metric::ALL.iter().map(|metric| metric.about());
            let about = known.clone().find(|about| about.name == name);
            let about = about.with_context(|| format!("{name} of {service:?} is not in the list"))?;
            ensure!(about.kind.name() == kind, "{name} is told as a {kind}");
            ensure!(
                about.service == "all" || about.service.contains(service.name()),
                "{name} is of {}, and told by {service:?}",
                about.service
            );
            told.insert(name);
        }
    }
    let all: BTreeSet<String> = Metric::ALL
        .iter()
        .map(|metric| metric.about().name.to_owned())
        .collect();
    let untold: Vec<&String> = all.difference(&told).collect();
    ensure!(untold.is_empty(), "nobody tells {untold:?}");

    let [front, owner, storage] = services;
    let bytes = WRITES as f64 * f64::from(BLOCK);
    let volume = cluster.show(DISK)?["id"].as_str().context("an id")?.to_owned();
    let labelled = |name: &str, more: &str| format!("{name}{{volume=\"{volume}\"{more}}}");
    for (metrics, name, wanted) in [
        (front, "sconce_fs_router_operation_seconds_count{front_end=\"nbd\",operation=\"write\"}".to_owned(), WRITES as f64),
        (front, "sconce_fs_router_operation_bytes_total{front_end=\"nbd\",operation=\"write\"}".to_owned(), bytes),
        (front, "sconce_fs_router_operation_bytes_total{front_end=\"nbd\",operation=\"read\"}".to_owned(), 8192.0),
        (front, "sconce_fs_router_operation_seconds_count{front_end=\"nbd\",operation=\"flush\"}".to_owned(), 1.0),
        (front, "sconce_fs_router_operation_errors_total{front_end=\"nbd\",operation=\"write\",status=\"reject\"}".to_owned(), 0.0),
        (owner, "sconce_volume_router_operation_seconds_count{operation=\"write\"}".to_owned(), WRITES as f64),
        (owner, "sconce_volume_router_operation_bytes_total{operation=\"write\"}".to_owned(), bytes),
        (owner, "sconce_volume_router_operation_bytes_total{operation=\"read\"}".to_owned(), 8192.0),
        (owner, labelled("sconce_volume_unstored_bytes", ""), 0.0),
        (owner, labelled("sconce_volume_allocated_bytes", ""), bytes),
        (owner, labelled("sconce_volume_serving", ""), 1.0),
        (owner, labelled("sconce_volume_dtl_state", ",state=\"off\""), 1.0),
        (owner, labelled("sconce_volume_dtl_state", ",state=\"in_sync\""), 0.0),
        (owner, labelled("sconce_volume_info", &format!(",path=\"{DISK}\"")), 1.0),
        (owner, "sconce_volume_router_buffer_bytes".to_owned(), f64::from(1 << 30) * 4.0),
        (owner, "sconce_volume_router_upload_errors_total".to_owned(), 0.0),
        (storage, "sconce_backend_works{backend=\"local\"}".to_owned(), 1.0),
        (storage, "sconce_backend_errors_total{backend=\"local\"}".to_owned(), 0.0),
    ] {
        let is_right = || Ok((metrics.number(&name) == Some(wanted)).then_some(()));
        wait::until(&format!("{name} to be {wanted}"), SOON, is_right)
            .with_context(|| format!("it is {:?}", metrics.number(&name)))?;
    }
    for (metrics, name, least) in [
        (owner, "sconce_volume_router_upload_seconds_count", 1.0),
        (owner, "sconce_volume_router_upload_bytes_total", bytes),
        (
            storage,
            "sconce_storage_router_operation_seconds_count{operation=\"put\"}",
            2.0,
        ),
        (
            storage,
            "sconce_storage_router_operation_bytes_total{operation=\"put\"}",
            bytes,
        ),
        (
            storage,
            "sconce_backend_operation_seconds_count{backend=\"local\",operation=\"put\"}",
            2.0,
        ),
        (
            storage,
            "sconce_backend_operation_bytes_total{backend=\"local\",operation=\"put\"}",
            bytes,
        ),
        (
            storage,
            "sconce_backend_written_bytes_total{backend=\"local\"}",
            bytes,
        ),
        (storage, "sconce_backend_capacity_bytes{backend=\"local\"}", 1.0),
    ] {
        let is_right = || {
            let found = metrics.number(name);
            Ok(found.is_some_and(|found| found >= least).then_some(()))
        };
        wait::until(&format!("{name} to be {least} or more"), SOON, is_right)
            .with_context(|| format!("it is {:?}", metrics.number(name)))?;
    }
    drop(disk);
    cluster.finish()
}

#[test]
fn operations_that_wait_for_their_owner_are_under_way_and_their_time_counts() -> Result<()> {
    let (cluster, [front, ..]) = start()?;
    cluster.create(DISK, "64M")?;
    let mut disk = Nbd::connect(&cluster.nbd_socket(), DISK, SOON)?;
    disk.ask(Ask::Read, 0, BLOCK, &[])?;
    let under_way = || -> Result<f64> {
        let numbers = front.read()?.numbers;
        let of_threads = numbers
            .iter()
            .filter(|(name, _)| name.starts_with("sconce_fs_router_operations_under_way{"));
        Ok(of_threads.map(|(_, number)| number).sum())
    };
    let are = |count: f64| move || Ok((under_way()? == count).then_some(()));
    wait::until("nothing to be under way", SOON, are(0.0))?;
    cluster.signal(Service::VolumeRouter, "STOP")?;
    for number in 0..3 {
        disk.send(Ask::Read, number * u64::from(BLOCK), BLOCK, &[])?;
    }
    let held = wait::until("three reads to be under way", SOON, are(3.0));
    cluster.signal(Service::VolumeRouter, "CONT")?;
    held?;
    for _ in 0..3 {
        disk.receive()?;
    }
    wait::until("nothing to be under way any more", SOON, are(0.0))?;
    let counted = "sconce_fs_router_operation_seconds_count{front_end=\"nbd\",operation=\"read\"}";
    let is_counted = || Ok((front.number(counted) == Some(4.0)).then_some(()));
    wait::until("four reads to be counted", SOON, is_counted)?;
    drop(disk);
    cluster.finish()
}
