//! `supervise --socket PATH [--lock FILE] [--log FILE] [--events FILE] [--exits FILE] -- COMMAND [ARGUMENT…]`
//!
//! Keeps: one service running, and the descriptors that it stored.
//! Order: a service that was killed or handed over starts again at once; one that fails at its start waits longer each
//! time.
//! Crash: a supervisor that dies takes its service along (SIGTERM), and with it all that it holds.
//! Knows nothing of what the service does: to the service it is systemd's descriptor store (sd_notify(3)).

mod events;
mod log;
mod pace;
mod service;
mod store;

use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Parser;

use events::Events;
use log::Log;
use service::Service;

/// Keeps one service running, and holds the descriptors that are to outlive its processes.
///
/// SIGTERM and SIGINT stop the service and then this; SIGUSR2 lets the service hand over to a new process of itself.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The socket at which the service stores descriptors ($NOTIFY_SOCKET of it).
    #[arg(long)]
    socket: PathBuf,
    /// Locked while this runs: of several with the same one, the first stays and the others end at once.
    #[arg(long)]
    lock: Option<PathBuf>,
    /// Where the service's output goes; left out: where this one's goes.
    #[arg(long)]
    log: Option<PathBuf>,
    /// Where it is told how the service ended; left out: standard error.
    #[arg(long)]
    events: Option<PathBuf>,
    /// Holds how often in a row the service ended as soon as it was started; absent while that is never.
    #[arg(long)]
    exits: Option<PathBuf>,
    /// The service.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let Locked::Yes(_lock) = locked(arguments.lock.as_deref())? else {
        return Ok(());
    };
    let socket = arguments.socket;
    let told = || format!("socket {}", socket.display());
    let listening = store::bind(&socket).with_context(told)?;
    let service = Service {
        command: arguments.command,
        log: arguments.log.map(Log::new),
        socket: socket.clone(),
    };
    let events = Events::new(&service.name(), arguments.events, arguments.exits);
    // On this thread alone: the service is told to end when the thread that started it does.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let kept = runtime.block_on(service::keep(&service, listening, &events));
    events.exits(0);
    let removed = std::fs::remove_file(&socket);
    kept?;
    removed.with_context(told)
}

enum Locked {
    /// For as long as the file is open, where there is one.
    Yes(Option<File>),
    /// Another supervisor has it.
    ByAnother,
}

fn locked(path: Option<&Path>) -> anyhow::Result<Locked> {
    let Some(path) = path else {
        return Ok(Locked::Yes(None));
    };
    let told = || format!("lock {}", path.display());
    let opened = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path);
    let file = opened.with_context(told)?;
    match file.try_lock() {
        Ok(()) => Ok(Locked::Yes(Some(file))),
        Err(TryLockError::WouldBlock) => Ok(Locked::ByAnother),
        Err(TryLockError::Error(error)) => Err(error).with_context(told),
    }
}
