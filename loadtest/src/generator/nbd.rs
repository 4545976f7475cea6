//! A client of an NBD server with as many requests under way as it is given, which outlives the server.
//!
//! Keeps: requests without an answer, whole: they are sent again on the next connection, as a guest's client does.
//! Order: requests leave in the order of the calls, after a new connection too; answers are taken as they come.
//! Crash: a server that does not come back within [`GONE`] fails what waits for it.
//! Knows fixed newstyle and simple replies, which every NBD server must serve.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::{BufMut as _, Bytes, BytesMut};
use sconce_fs_router::nbd::protocol::handshake::greeting;
use sconce_fs_router::nbd::protocol::request::Request;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// A server that is away for longer is gone.
const GONE: Duration = Duration::from_secs(60);
const RETRY_EACH: Duration = Duration::from_millis(20);
const READ_AHEAD: usize = 256 << 10;
const REPLY_MAGIC: u32 = 0x6744_6698;
const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Fixed newstyle, no zeroes behind the handshake.
const CLIENT_FLAGS: u32 = 3;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_TEXT_MAX: u32 = 65_536;
const CMD_READ: u16 = 0;
const CMD_WRITE: u16 = 1;
const CMD_FLUSH: u16 = 3;

/// A connection to an export, again and again.
#[derive(Debug)]
pub(crate) struct Nbd {
    shared: Rc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Shared {
    next: Cell<u64>,
    waiting: RefCell<BTreeMap<u64, Waiting>>,
    outgoing: RefCell<BytesMut>,
    is_outgoing: Notify,
    connections: Cell<u32>,
    gone: RefCell<Option<String>>,
}

#[derive(Debug)]
struct Waiting {
    /// The request as it is sent.
    header: [u8; 28],
    data: Bytes,
    /// Bytes that the answer carries.
    length: usize,
    answer: oneshot::Sender<Result<Bytes>>,
}

impl Waiting {
    fn put(&self, out: &mut BytesMut) {
        out.put_slice(&self.header);
        out.put_slice(&self.data);
    }
}

impl Drop for Nbd {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Nbd {
    /// Connects. In a `LocalSet`.
    ///
    /// # Errors
    /// The server is not there, or refuses the export.
    pub(crate) async fn connect(socket: &Path, export: &str) -> Result<Nbd> {
        let shared = Rc::new(Shared::default());
        let stream = open(socket, export).await?;
        let (socket, export) = (socket.to_owned(), export.to_owned());
        let task = tokio::task::spawn_local(serve(Rc::clone(&shared), stream, socket, export));
        Ok(Nbd { shared, task })
    }

    /// How often a connection was lost and another one made.
    pub(crate) fn reconnects(&self) -> u32 {
        self.shared.connections.get()
    }

    pub(crate) async fn read(&self, offset: u64, length: usize) -> Result<Bytes> {
        self.ask(CMD_READ, offset, length, Bytes::new()).await
    }

    pub(crate) async fn write(&self, offset: u64, data: Bytes) -> Result<()> {
        let length = data.len();
        self.ask(CMD_WRITE, offset, length, data).await.map(drop)
    }

    pub(crate) async fn flush(&self) -> Result<()> {
        self.ask(CMD_FLUSH, 0, 0, Bytes::new()).await.map(drop)
    }

    async fn ask(&self, kind: u16, offset: u64, length: usize, data: Bytes) -> Result<Bytes> {
        let shared = &self.shared;
        if let Some(gone) = &*shared.gone.borrow() {
            bail!("{gone}");
        }
        let cookie = shared.next.replace(shared.next.get() + 1);
        let request = Request {
            flags: 0,
            kind,
            cookie,
            offset,
            length: u32::try_from(length)?,
        };
        let (answer, answered) = oneshot::channel();
        let waiting = Waiting {
            header: request.header(),
            data,
            length: if kind == CMD_READ { length } else { 0 },
            answer,
        };
        waiting.put(&mut shared.outgoing.borrow_mut());
        shared.waiting.borrow_mut().insert(cookie, waiting);
        shared.is_outgoing.notify_one();
        answered.await.context("the connection's task is over")?
    }
}

/// Serves requests over one connection after the other.
async fn serve(shared: Rc<Shared>, mut stream: UnixStream, socket: PathBuf, export: String) {
    loop {
        let (from, to) = stream.into_split();
        let lost = tokio::select! {
            lost = take(&shared, from) => lost,
            lost = send(&shared, to) => lost,
        };
        let error = lost.err().map_or_else(String::new, |error| format!("{error:#}"));
        let by = Instant::now() + GONE;
        stream = loop {
            match open(&socket, &export).await {
                Ok(stream) => break stream,
                Err(why) if Instant::now() >= by => {
                    let gone = format!(
                        "the NBD server is gone ({error}), and did not come back in {GONE:?}: {why:#}"
                    );
                    for (_, waiting) in std::mem::take(&mut *shared.waiting.borrow_mut()) {
                        // Who does not wait any more need not know.
                        let _ = waiting.answer.send(Err(anyhow::anyhow!("{gone}")));
                    }
                    *shared.gone.borrow_mut() = Some(gone);
                    return;
                }
                Err(_) => tokio::time::sleep(RETRY_EACH).await,
            }
        };
        shared.connections.set(shared.connections.get() + 1);
        let mut outgoing = shared.outgoing.borrow_mut();
        outgoing.clear();
        for waiting in shared.waiting.borrow().values() {
            waiting.put(&mut outgoing);
        }
        shared.is_outgoing.notify_one();
    }
}

async fn send(shared: &Shared, mut to: OwnedWriteHalf) -> Result<()> {
    loop {
        let outgoing = shared.outgoing.take();
        match outgoing.is_empty() {
            true => shared.is_outgoing.notified().await,
            false => to.write_all(&outgoing).await?,
        }
    }
}

async fn take(shared: &Shared, from: OwnedReadHalf) -> Result<()> {
    let mut from = BufReader::with_capacity(READ_AHEAD, from);
    loop {
        let (magic, error, cookie) = (
            from.read_u32().await?,
            from.read_u32().await?,
            from.read_u64().await?,
        );
        ensure!(
            magic == REPLY_MAGIC,
            "the server answers with {magic:#x}, which is no simple reply"
        );
        let length = match shared.waiting.borrow().get(&cookie) {
            Some(waiting) if error == 0 => waiting.length,
            Some(_) => 0,
            None => bail!("the server answers request {cookie}, which was not asked"),
        };
        let mut data = BytesMut::zeroed(length);
        from.read_exact(&mut data).await?;
        // Only now: cut off in the middle it is asked again.
        let Some(waiting) = shared.waiting.borrow_mut().remove(&cookie) else {
            continue;
        };
        let answer = match error {
            0 => Ok(data.freeze()),
            error => Err(anyhow::anyhow!("the server answered with error {error}")),
        };
        let _ = waiting.answer.send(answer);
    }
}

/// Connects and negotiates.
async fn open(socket: &Path, export: &str) -> Result<UnixStream> {
    let mut stream = UnixStream::connect(socket)
        .await
        .with_context(|| format!("NBD socket {}", socket.display()))?;
    let mut hello = [0; 18];
    stream.read_exact(&mut hello).await?;
    // The flags behind it are each server's own.
    ensure!(
        hello[..16] == greeting()[..16],
        "no NBD server: it greets with {hello:02x?}"
    );
    let name = u32::try_from(export.len())?;
    let mut go = BytesMut::new();
    go.put_u32(CLIENT_FLAGS);
    go.put_slice(OPTION_MAGIC);
    go.put_u32(OPT_GO);
    go.put_u32(name + 6);
    go.put_u32(name);
    go.put_slice(export.as_bytes());
    go.put_u16(0);
    stream.write_all(&go).await?;
    loop {
        let magic = stream.read_u64().await?;
        ensure!(magic == OPTION_REPLY_MAGIC, "no option reply: {magic:#x}");
        let (_, kind, length) = (
            stream.read_u32().await?,
            stream.read_u32().await?,
            stream.read_u32().await?,
        );
        ensure!(
            length <= REP_TEXT_MAX,
            "an option reply of {length} bytes; right would be {REP_TEXT_MAX} at most"
        );
        let mut body = vec![0; usize::try_from(length)?];
        stream.read_exact(&mut body).await?;
        match kind {
            REP_ACK => return Ok(stream),
            REP_INFO => {}
            refused => bail!(
                "export {export} is refused with {refused:#x}: {}",
                String::from_utf8_lossy(&body)
            ),
        }
    }
}
