//! Keeps: the queue from the threads that read the kernel's requests to the IO thread that serves them.
//! Order: requests leave in the order in which each thread read them; answers go when they are ready, from the IO
//! thread straight to the kernel.
//! Crash: requests that were taken and not answered come to the next process, where it takes the mount over; otherwise
//! they end with the mount.
//! Knows no registry and no volume: it turns kernel messages into calls of [`Front`], and their answers into replies.

use std::ffi::OsStr;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use fuser::{
    BsdFileFlags, Errno, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use sconce_schemas::CLUSTER_BYTES;
use sconce_schemas::records::InodeKind;
use tokio::sync::mpsc;

use super::attributes::nanoseconds;
use super::data::{Allocate, Seek};
use super::front::{Answer, Front};
use super::handles::is_resent;
use super::virtual_inodes::is_virtual;
use super::volumes::Volumes;
use crate::names::{NAME_BYTES_MAX, NewEntry, Replace, SetAttributes};

/// How long the kernel may rely on a name or on attributes: what another host changes is seen here within this time.
const TTL: Duration = Duration::from_secs(1);
/// Inode numbers are never given out twice, so there is only one generation.
const GENERATION: Generation = Generation(0);
/// Largest write and read of one message. The kernel allows no more (fs.fuse.max_pages_limit = 256 pages).
const MESSAGE_BYTES_MAX: u32 = 1 << 20;
/// Asynchronous requests of all files that the kernel sends before it waits: enough for several disks at depth 32.
const BACKGROUND_MAX: u16 = 512;
/// What a request weighs beside its data.
const REQUEST_BYTES: u32 = 4096;
/// Entries that are offered for one answer to `readdir`; the kernel's buffer rarely takes as many.
const ENTRIES_MAX: usize = 256;
/// Entries that every directory has before its own: itself and the one above.
const DOTS: u64 = 2;

/// How files are opened. No page cache: a volume can be written through NBD or from another host at any time, so
/// pages kept here could be stale, and a hypervisor's memory belongs to its guests. Writes of one file go in parallel:
/// the owner orders what overlaps. Nothing is buffered, so a close has nothing to flush.
fn opened() -> FopenFlags {
    FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES | FopenFlags::FOPEN_NOFLUSH
}

type Served = Pin<Box<dyn Future<Output = ()>>>;

/// A request on its way to the IO thread.
pub(super) struct Queued<V> {
    /// What it weighs, in bytes.
    pub(super) bytes: u32,
    /// Serves and answers it.
    pub(super) serve: Box<dyn FnOnce(Rc<Front<V>>) -> Served + Send>,
}

/// What the threads that read from the kernel are told, and what they learn of it.
#[derive(Debug, Default)]
pub(super) struct Kernel {
    resends: AtomicBool,
    leaving: AtomicBool,
}

impl Kernel {
    /// Whether the kernel can send again what a process was sent and did not answer.
    pub(super) fn resends(&self) -> bool {
        self.resends.load(Ordering::Relaxed)
    }

    /// From here on requests are for the next process.
    pub(super) fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }
}

/// Takes requests from the kernel.
pub(super) struct Bridge<V> {
    queue: mpsc::Sender<Queued<V>>,
    kernel: Arc<Kernel>,
}

impl<V: Volumes> Bridge<V> {
    pub(super) fn new(queue: mpsc::Sender<Queued<V>>, kernel: Arc<Kernel>) -> Self {
        Self { queue, kernel }
    }

    /// Hands a request over; waits while the queue is full. At the end of the IO thread the request is dropped, and
    /// its reply with it answers EIO.
    fn serve<F: Future<Output = ()> + 'static>(
        &self,
        data_len: usize,
        serve: impl FnOnce(Rc<Front<V>>) -> F + Send + 'static,
    ) {
        while self.kernel.leaving.load(Ordering::Relaxed) {
            // The process ends in a moment. The thread keeps the request until then: dropping it would answer it, and
            // what is not answered is sent to the next process.
            std::thread::park();
        }
        let bytes = u32::try_from(data_len)
            .unwrap_or(u32::MAX)
            .saturating_add(REQUEST_BYTES);
        let serve = Box::new(move |front| Box::pin(serve(front)) as Served);
        if self.queue.blocking_send(Queued { bytes, serve }).is_err() {
            tracing::debug!("a file request came after the stop");
        }
    }
}

/// What is to be gone may have gone when the request came for the first time.
fn gone(answer: Answer<()>, request: u64) -> Answer<()> {
    match answer {
        Err(errno) if errno.code() == libc::ENOENT && is_resent(request) => Ok(()),
        answer => answer,
    }
}

fn empty(answer: Answer<()>, reply: ReplyEmpty) {
    match answer {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

fn entry(answer: Answer<fuser::FileAttr>, reply: ReplyEntry) {
    match answer {
        Ok(attributes) => reply.entry(&TTL, &attributes, GENERATION),
        Err(errno) => reply.error(errno),
    }
}

fn attr(answer: Answer<fuser::FileAttr>, reply: ReplyAttr) {
    match answer {
        Ok(attributes) => reply.attr(&TTL, &attributes),
        Err(errno) => reply.error(errno),
    }
}

fn new_entry(request: &Request, mode: u32, umask: u32) -> NewEntry {
    NewEntry {
        mode: mode & !umask & 0o7777,
        uid: request.uid(),
        gid: request.gid(),
    }
}

impl<V: Volumes> Filesystem for Bridge<V> {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let resends = config.capabilities().contains(InitFlags::FUSE_HAS_RESEND);
        self.kernel.resends.store(resends, Ordering::Relaxed);
        let wanted = InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_PARALLEL_DIROPS
            // Without it a program cannot map a file in shared mode, because files are opened without page cache.
            | InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP;
        if let Err(missing) = config.add_capabilities(wanted) {
            tracing::info!(
                ?missing,
                "this kernel's FUSE lacks features; files work, some more slowly"
            );
            let rest = wanted & !missing;
            config
                .add_capabilities(rest)
                .map_err(|_| io::Error::from(io::ErrorKind::Unsupported))?;
        }
        for set in [
            config.set_max_write(MESSAGE_BYTES_MAX).is_ok(),
            config.set_max_background(BACKGROUND_MAX).is_ok(),
        ] {
            if !set {
                tracing::info!("this kernel's FUSE takes smaller requests");
            }
        }
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.to_owned();
        self.serve(0, async move |front| {
            entry(front.lookup(parent.0, &name).await, reply)
        });
    }

    fn forget(&self, _request: &Request, ino: INodeNo, nlookup: u64) {
        // Of inodes that are records nothing is kept for the kernel.
        if is_virtual(ino.0) {
            self.serve(0, async move |front| {
                front.snapshots.inodes.borrow_mut().forget(ino.0, nlookup);
            });
        }
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.serve(0, async move |front| attr(front.attributes(ino.0).await, reply));
    }

    fn setattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = SetAttributes {
            mode,
            uid,
            gid,
            mtime_ns: mtime.map(nanoseconds),
        };
        self.serve(0, async move |front| {
            attr(front.set_attributes(ino.0, set, size).await, reply)
        });
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        if mode & libc::S_IFMT != libc::S_IFREG {
            return reply.error(Errno::EPERM);
        }
        let (name, new) = (name.to_owned(), new_entry(request, mode, umask));
        self.serve(0, async move |front| {
            entry(front.make_file(parent.0, &name, new).await, reply)
        });
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let (name, new) = (name.to_owned(), new_entry(request, mode, umask));
        self.serve(0, async move |front| {
            entry(front.make_directory(parent.0, &name, new).await, reply)
        });
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (name, request) = (name.to_owned(), request.unique().0);
        self.serve(0, async move |front| {
            empty(gone(front.unlink(parent.0, &name).await, request), reply)
        });
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (name, request) = (name.to_owned(), request.unique().0);
        self.serve(0, async move |front| {
            empty(
                gone(front.remove_directory(parent.0, &name).await, request),
                reply,
            );
        });
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let replace = match flags {
            flags if flags.is_empty() => Replace::Yes,
            RenameFlags::RENAME_NOREPLACE => Replace::No,
            _ => return reply.error(Errno::EINVAL),
        };
        let (from, to) = (name.to_owned(), newname.to_owned());
        self.serve(0, async move |front: Rc<Front<V>>| {
            empty(
                front.rename((parent.0, &from), (newparent.0, &to), replace).await,
                reply,
            );
        });
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let request = request.unique().0;
        let writes = flags.0 & libc::O_ACCMODE != libc::O_RDONLY || flags.0 & libc::O_TRUNC != 0;
        self.serve(0, async move |front| {
            match front.open_handle(request, ino.0, writes).await {
                Ok(handle) => reply.opened(FileHandle(handle), opened()),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (name, new) = (name.to_owned(), new_entry(request, mode, umask));
        let (exclusive, request) = (flags & libc::O_EXCL != 0, request.unique().0);
        self.serve(0, async move |front| {
            match front.create(request, parent.0, &name, new, exclusive).await {
                Ok((attributes, handle)) => {
                    reply.created(&TTL, &attributes, GENERATION, FileHandle(handle), opened());
                }
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn read(
        &self,
        _request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let length = usize::try_from(size).unwrap_or(usize::MAX);
        self.serve(length, async move |front| {
            match front.read(ino.0, offset, u64::from(size)).await {
                Ok(data) => reply.data(&data.into_bytes()),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn write(
        &self,
        _request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // The kernel's message buffer is used again for the next request: the one copy of the data on its way.
        let data = Bytes::copy_from_slice(data);
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let durable = flags.0 & libc::O_DSYNC != 0;
        self.serve(data.len(), async move |front| {
            match front.write(ino.0, offset, data, durable).await {
                Ok(()) => reply.written(length),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn flush(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // A close makes no promise, and nothing is buffered here. The kernel does not ask again after this answer.
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.serve(0, async move |front| {
            front.close_handle(fh.0, ino.0).await;
            reply.ok();
        });
    }

    fn fsync(&self, _request: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.serve(0, async move |front| empty(front.sync(ino.0).await, reply));
    }

    fn fsyncdir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        // A change of names is durable in the registry when it is answered.
        reply.ok();
    }

    fn fallocate(
        &self,
        _request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let Some(what) = Allocate::from_mode(mode) else {
            return reply.error(Errno::EOPNOTSUPP);
        };
        self.serve(0, async move |front| {
            empty(front.allocate(ino.0, offset, length, what).await, reply)
        });
    }

    fn lseek(
        &self,
        _request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let what = match whence {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            // The kernel does the others by itself.
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else {
            return reply.error(Errno::ENXIO);
        };
        self.serve(0, async move |front| {
            match front.seek(ino.0, offset, what).await {
                Ok(at) => reply.offset(i64::try_from(at).unwrap_or(i64::MAX)),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn opendir(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.serve(0, async move |front| match front.open_directory(ino.0).await {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
            Err(errno) => reply.error(errno),
        });
    }

    fn readdir(&self, _request: &Request, ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        self.serve(0, async move |front| list(&front, ino.0, fh, offset, reply).await);
    }

    fn releasedir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.serve(0, async move |front| {
            front.close_directory(fh.0);
            reply.ok();
        });
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.serve(0, async move |front| {
            let space = front.volumes.space().await;
            let (blocks, free) = (space.capacity / CLUSTER_BYTES, space.free / CLUSTER_BYTES);
            let block = u32::try_from(CLUSTER_BYTES).unwrap_or(4096);
            let name_max = u32::try_from(NAME_BYTES_MAX).unwrap_or(255);
            reply.statfs(blocks, free, free, 0, 0, block, name_max, block);
        });
    }
}

/// Answers `readdir`: the entries from the place `offset` on, as many as the kernel's buffer takes.
async fn list<V: Volumes>(
    front: &Front<V>,
    inode: u64,
    fh: FileHandle,
    offset: u64,
    mut reply: ReplyDirectory,
) {
    let found = async {
        let entries = front
            .entries(inode, fh.0, offset.saturating_sub(DOTS), ENTRIES_MAX)
            .await?;
        Ok::<_, Errno>((front.parent(inode).await?, entries))
    };
    let (parent, entries) = match found.await {
        Ok(found) => found,
        Err(errno) => return reply.error(errno),
    };
    let dots = [(inode, "."), (parent, "..")].map(|(inode, name)| (inode, FileType::Directory, name));
    let rest = entries.iter().map(|entry| {
        let kind = match entry.kind {
            InodeKind::Directory => FileType::Directory,
            InodeKind::File(_) => FileType::RegularFile,
        };
        (entry.inode, kind, entry.name.as_str())
    });
    let skip = usize::try_from(offset.min(DOTS)).unwrap_or(0);
    let mut place = offset.min(DOTS).max(offset);
    for (inode, kind, name) in dots.into_iter().skip(skip).chain(rest) {
        place += 1;
        if reply.add(INodeNo(inode), place, kind, name) {
            break;
        }
    }
    reply.ok();
}
