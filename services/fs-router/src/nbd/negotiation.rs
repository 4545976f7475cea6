//! The handshake of a connection: from the greeting to an export, or to the end.
//!
//! Keeps: what the client has chosen so far.
//! Order: options are answered in the order in which they came.
//! Crash: nothing is opened that a dropped connection does not close.
//! Knows no owner: it asks the router to open a volume, and waits.

use std::future::poll_fn;
use std::io;
use std::time::Duration;

use bytes::BytesMut;
use sconce_schemas::VolumeId;
use sconce_schemas::wire::{Refusal, RefusalCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, timeout, timeout_at};

use super::contexts::{self, ContextKind, For, SELECTED_MAX, Selected, Selection};
use super::handover::Record;
use super::protocol::handshake::{self, ClientOption, ContextQuery, ExportQuery, OptionReply};
use super::protocol::request::Agreed;
use super::protocol::{BASE_ALLOCATION_ID, Export, Violation};
use super::stream::Stream;
use crate::in_use::{InUse, Use};
use crate::names::{Names, NamesError, PoolPath, SnapshotPath};
use crate::routing::{FrontEnd, Outcome, Patience, Router, SessionHandle, Token};

/// How long a client may take for its part of the handshake, all of it.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// How long a client that wants an export waits for an owner that runs but does not answer; then it is told why.
pub(super) const OPEN_MAX: Duration = Duration::from_secs(30);
/// How long a client that only asks about an export waits for its owner; then the registry has to do.
const INFO_MAX: Duration = Duration::from_secs(2);
/// For this long after its start, owners that do not run are waited for: when a whole pool starts, its fs-router is
/// often there first, and so are the clients that connect again.
pub(super) const START_GRACE: Duration = Duration::from_secs(5);
/// Pause before an owner that may be starting is asked again.
pub(super) const PAUSE: Duration = Duration::from_millis(100);
/// Most exports of a listing.
const LISTED_MAX: usize = 10_000;
/// Most options of a handshake: enough for every use, too few to keep a thread busy.
const OPTIONS_MAX: usize = 64;

/// A handshake that led to an export.
pub(super) struct Chosen {
    pub(super) agreed: Agreed,
    pub(super) front_end: FrontEnd,
    pub(super) session: SessionHandle,
    /// The metadata contexts that were selected.
    pub(super) contexts: Vec<Selected>,
    pub(super) in_use: Use,
    /// What the client sent behind it.
    pub(super) rest: BytesMut,
    pub(super) name: String,
}

/// A handshake that led nowhere.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failed {
    /// The client aborted, or had only questions.
    #[error("the client went before it chose an export")]
    Aborted,
    /// The client took too long.
    #[error("the client did not finish its handshake within {} s", HANDSHAKE_MAX.as_secs())]
    Slow,
    /// The client sent option after option.
    #[error("the client sent more than {OPTIONS_MAX} options")]
    Options,
    /// The export that the client chose in the old way cannot be had.
    #[error("export {name:?}: {why}")]
    Export {
        /// Its name.
        name: String,
        /// Why not.
        why: String,
    },
    /// The client does not keep to the protocol.
    #[error("the client broke the protocol: {0}")]
    Protocol(#[from] Violation),
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(#[from] io::Error),
}

/// Where exports come from.
#[derive(Clone)]
pub(super) struct Exports {
    pub(super) names: Names,
    pub(super) router: Router,
    pub(super) in_use: InUse,
}

/// What an export name names.
pub(super) struct Named {
    pub(super) path: PoolPath,
    pub(super) volume: VolumeId,
    /// The snapshot's name.
    pub(super) snapshot: Option<String>,
}

struct Opened {
    export: Export,
    front_end: FrontEnd,
    session: SessionHandle,
    contexts: Vec<Selected>,
    in_use: Use,
}

/// What an export is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// To be used.
    Go,
    /// To be told of its size.
    Info,
}

pub(super) struct Negotiation<'a> {
    stream: &'a mut Stream,
    exports: Exports,
    buffer: BytesMut,
    deadline: Instant,
    structured: bool,
    /// The metadata contexts that were selected.
    selection: Selection,
}

impl<'a> Negotiation<'a> {
    pub(super) fn new(stream: &'a mut Stream, exports: Exports) -> Self {
        Self {
            stream,
            exports,
            buffer: BytesMut::new(),
            deadline: Instant::now() + HANDSHAKE_MAX,
            structured: false,
            selection: Selection::default(),
        }
    }

    pub(super) async fn run(mut self) -> Result<Chosen, Failed> {
        self.write(&handshake::greeting()).await?;
        let flags = self.take(handshake::take_client_flags).await?;
        for _ in 0..OPTIONS_MAX {
            let (number, option) = self
                .take(|bytes| {
                    let taken = handshake::take_option(bytes)?;
                    Ok(taken.map(|(number, option, length)| ((number, option), length)))
                })
                .await?;
            let mut out = Vec::new();
            let chosen = match option {
                ClientOption::ExportName(name) => {
                    let opened = match self.open(&name).await {
                        Ok(opened) => opened,
                        Err(why) => return Err(Failed::Export { name, why: why.text }),
                    };
                    handshake::put_export_name(&mut out, opened.export, flags.no_zeroes);
                    Some((name, opened))
                }
                ClientOption::Go(query) => self
                    .export(number, &query, &mut out)
                    .await
                    .map(|o| (query.name, o)),
                ClientOption::Info(query) => {
                    self.describe(number, &query, &mut out).await;
                    None
                }
                ClientOption::Abort => {
                    handshake::put_reply(&mut out, number, OptionReply::Ack, &[]);
                    self.write(&out).await?;
                    return Err(Failed::Aborted);
                }
                other => {
                    self.answer(number, other, &mut out).await;
                    None
                }
            };
            self.write(&out).await?;
            if let Some((name, opened)) = chosen {
                return Ok(self.choose(name, opened));
            }
        }
        Err(Failed::Options)
    }

    fn choose(self, name: String, opened: Opened) -> Chosen {
        let agreed = Agreed {
            export: opened.export,
            structured: self.structured,
            contexts: !opened.contexts.is_empty(),
        };
        Chosen {
            agreed,
            front_end: opened.front_end,
            session: opened.session,
            contexts: opened.contexts,
            in_use: opened.in_use,
            rest: self.buffer,
            name,
        }
    }

    /// Takes something off what the client sends, reading until it is whole.
    async fn take<T>(
        &mut self,
        parse: impl Fn(&[u8]) -> Result<Option<(T, usize)>, Violation>,
    ) -> Result<T, Failed> {
        loop {
            if let Some((taken, length)) = parse(&self.buffer)? {
                let _ = self.buffer.split_to(length);
                return Ok(taken);
            }
            let reading = self.stream.read_buf(&mut self.buffer);
            match timeout_at(self.deadline, reading).await {
                Ok(Ok(0)) => return Err(Failed::Aborted),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => return Err(Failed::Slow),
            }
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), Failed> {
        match timeout_at(self.deadline, self.stream.write_all(bytes)).await {
            Ok(written) => Ok(written?),
            Err(_) => Err(Failed::Slow),
        }
    }

    /// Answers what chooses no export.
    async fn answer(&mut self, number: u32, option: ClientOption, out: &mut Vec<u8>) {
        match option {
            ClientOption::List => self.list(number, out).await,
            ClientOption::StructuredReply => {
                self.structured = true;
                handshake::put_reply(out, number, OptionReply::Ack, &[]);
            }
            ClientOption::ListMetaContext(query) => {
                self.contexts(number, &query, For::List, out).await;
            }
            ClientOption::SetMetaContext(query) => {
                self.selection = Selection::default();
                if !self.structured {
                    let text = "negotiate structured replies before metadata contexts";
                    return handshake::put_error(out, number, OptionReply::ErrInvalid, text);
                }
                if let Some(selection) = self.contexts(number, &query, For::Use, out).await {
                    self.selection = selection;
                }
            }
            ClientOption::Malformed(why) => handshake::put_error(out, number, OptionReply::ErrInvalid, why),
            _ => {
                let text = format!("option {number} is not known here");
                handshake::put_error(out, number, OptionReply::ErrUnsupported, &text);
            }
        }
    }

    async fn list(&mut self, number: u32, out: &mut Vec<u8>) {
        let started = Instant::now();
        let files = self.exports.names.files(&PoolPath::root(), LISTED_MAX).await;
        self.deadline += started.elapsed();
        match files {
            Ok(files) => {
                files
                    .iter()
                    .for_each(|file| handshake::put_listed(out, file.path.as_str()));
                handshake::put_reply(out, number, OptionReply::Ack, &[]);
            }
            Err(error) => handshake::put_error(out, number, OptionReply::ErrShutdown, &error.to_string()),
        }
    }

    /// Names the contexts that a query selects, if the export exists.
    async fn contexts(
        &mut self,
        number: u32,
        query: &ContextQuery,
        what: For,
        out: &mut Vec<u8>,
    ) -> Option<Selection> {
        let started = Instant::now();
        let selected = self.exports.contexts(query, what).await;
        self.deadline += started.elapsed();
        match selected {
            Ok(selection) if what == For::Use && selection.len() > SELECTED_MAX => {
                let text = format!(
                    "{} metadata contexts are selected; at most {SELECTED_MAX} are right",
                    selection.len()
                );
                handshake::put_error(out, number, OptionReply::ErrTooBig, &text);
                None
            }
            Ok(selection) => {
                for (id, name) in selection.named() {
                    let id = if what == For::Use { id } else { 0 };
                    handshake::put_context(out, number, id, &name);
                }
                handshake::put_reply(out, number, OptionReply::Ack, &[]);
                Some(selection)
            }
            Err(why) => {
                handshake::put_error(out, number, why.reply, &why.text);
                None
            }
        }
    }

    async fn export(&mut self, number: u32, query: &ExportQuery, out: &mut Vec<u8>) -> Option<Opened> {
        match self.open(&query.name).await {
            Ok(opened) => {
                handshake::put_export(out, number, query, opened.export, self.structured);
                Some(opened)
            }
            Err(why) => {
                handshake::put_error(out, number, why.reply, &why.text);
                None
            }
        }
    }

    /// Opens an export. What that takes is not the client's time.
    async fn open(&mut self, name: &str) -> Result<Opened, NoExport> {
        let started = Instant::now();
        let opened = match self.exports.open(name, Purpose::Go).await {
            Ok(opened) if self.selection.export == name => {
                self.exports.with_contexts(name, opened, &self.selection).await
            }
            opened => opened,
        };
        self.deadline += started.elapsed();
        opened
    }

    async fn describe(&mut self, number: u32, query: &ExportQuery, out: &mut Vec<u8>) {
        let started = Instant::now();
        let described = self.exports.describe(&query.name).await;
        self.deadline += started.elapsed();
        match described {
            Ok(export) => handshake::put_export(out, number, query, export, self.structured),
            Err(why) => handshake::put_error(out, number, why.reply, &why.text),
        }
    }
}

/// Why there is no such export, or not now.
pub(super) struct NoExport {
    pub(super) reply: OptionReply,
    pub(super) text: String,
}

impl From<NamesError> for NoExport {
    fn from(error: NamesError) -> Self {
        let reply = match error {
            NamesError::Unavailable { .. } | NamesError::Busy { .. } => OptionReply::ErrShutdown,
            _ => OptionReply::ErrUnknown,
        };
        let text = error.to_string();
        Self { reply, text }
    }
}

impl From<Refusal> for NoExport {
    fn from(refusal: Refusal) -> Self {
        Self {
            reply: OptionReply::ErrUnknown,
            text: refusal.text,
        }
    }
}

impl Exports {
    /// What an export name names: a path of the pool, with or without the slash in front, and perhaps `@` and a
    /// snapshot of it. No file has an `@` in its name.
    pub(super) async fn resolve(&self, name: &str) -> Result<Named, NoExport> {
        let absolute = if name.starts_with('/') {
            name.to_owned()
        } else {
            format!("/{name}")
        };
        let (path, snapshot) = if absolute.contains('@') {
            let path: SnapshotPath = absolute.parse().map_err(NamesError::from)?;
            (path.volume, Some(path.name))
        } else {
            (absolute.parse().map_err(NamesError::from)?, None)
        };
        let volume = self.names.resolve(&path).await?.volume;
        Ok(Named {
            path,
            volume,
            snapshot,
        })
    }

    /// What is known of an export: from its owner if that answers soon, else what the registry was told last.
    async fn describe(&self, name: &str) -> Result<Export, NoExport> {
        match self.open(name, Purpose::Info).await {
            Ok(opened) => Ok(opened.export),
            Err(why) if why.reply == OptionReply::ErrShutdown => {
                let named = self.resolve(name).await?;
                if named.snapshot.is_some() {
                    // Only the owner knows whether there is such a snapshot.
                    return Err(why);
                }
                let record = self.names.volume(named.volume).await?;
                Ok(Export {
                    size: record.known_size().bytes(),
                    // Only the owner knows; a client that goes on is told then.
                    read_only: false,
                })
            }
            Err(why) => Err(why),
        }
    }

    async fn open(&self, name: &str, purpose: Purpose) -> Result<Opened, NoExport> {
        let Named {
            path,
            volume,
            snapshot,
        } = self.resolve(name).await?;
        let in_use = self.in_use.enter(volume);
        let front_end = self.router.attach();
        let is_snapshot = snapshot.is_some();
        let session = match snapshot {
            Some(snapshot) => front_end.snapshot_session(volume, snapshot, None),
            None => front_end.session(volume),
        };
        let opening = async {
            // What the client's last connection left behind must not overtake what it sends on this one.
            self.router.orphans().settled(volume).await;
            loop {
                match self.ask(&front_end, &session).await {
                    Some(Outcome::Refused(refusal))
                        if refusal.code == RefusalCode::WaitsForOwner
                            && purpose == Purpose::Go
                            && self.router.age() < START_GRACE =>
                    {
                        tokio::time::sleep(PAUSE).await;
                    }
                    outcome => return outcome,
                }
            }
        };
        let patience = match purpose {
            Purpose::Go => OPEN_MAX,
            Purpose::Info => INFO_MAX,
        };
        match timeout(patience, opening).await {
            Ok(Some(Outcome::Opened(opened))) => Ok(Opened {
                export: Export {
                    size: opened.size.bytes(),
                    read_only: opened.read_only,
                },
                front_end,
                session,
                contexts: Vec::new(),
                in_use,
            }),
            Ok(Some(Outcome::Refused(refusal))) if refusal.code == RefusalCode::WaitsForOwner => {
                Err(not_served(name, &refusal.text))
            }
            Ok(Some(Outcome::Refused(refusal))) if is_snapshot && refusal.code == RefusalCode::NotFound => {
                let text = &refusal.text;
                Err(NoExport {
                    reply: OptionReply::ErrUnknown,
                    text: format!("{name}: {text}; `sconce snapshot list {path}` shows those that there are"),
                })
            }
            Ok(Some(Outcome::Refused(refusal))) => Err(refusal.into()),
            Ok(_) => Err(NoExport {
                reply: OptionReply::ErrUnknown,
                text: "the owner did not open the volume (a bug)".to_owned(),
            }),
            Err(_) => {
                let trouble = session.trouble();
                Err(not_served(
                    name,
                    trouble.as_deref().unwrap_or("its owner does not answer"),
                ))
            }
        }
    }

    /// Opens what the selected contexts need.
    async fn with_contexts(
        &self,
        name: &str,
        mut opened: Opened,
        selection: &Selection,
    ) -> Result<Opened, NoExport> {
        if selection.allocation {
            opened.contexts.push(Selected {
                id: BASE_ALLOCATION_ID,
                kind: ContextKind::Allocation,
            });
        }
        if selection.changes.is_empty() {
            return Ok(opened);
        }
        let named = self.resolve(name).await?;
        for (at, snapshot) in selection.changes.iter().enumerate() {
            let session = opened
                .front_end
                .view_session(named.volume, contexts::view(&named, snapshot));
            // Now, so that it stays on the snapshot that has the name now.
            match timeout(OPEN_MAX, self.ask(&opened.front_end, &session)).await {
                Ok(Some(Outcome::Opened(_))) => {}
                Ok(Some(Outcome::Refused(refusal))) => return Err(refusal.into()),
                _ => {
                    let trouble = session.trouble();
                    let why = trouble.as_deref().unwrap_or("its owner does not answer");
                    return Err(not_served(name, why));
                }
            }
            opened.contexts.push(Selected {
                id: contexts::id_of(at),
                kind: ContextKind::Changes(session),
            });
        }
        Ok(opened)
    }

    /// Goes on with what a client has agreed on with another process. Nobody is asked: the volume's owner is, by the
    /// client's next request.
    pub(super) fn go_on(&self, record: Record, unread: &[u8]) -> Chosen {
        let front_end = self.router.attach();
        let volume = record.volume;
        let agreed = record.agreed();
        let session = match record.view {
            Some(view) => front_end.view_session(volume, view),
            None => front_end.session(volume),
        };
        let contexts = record.contexts.into_iter().map(|context| Selected {
            id: context.id,
            kind: match context.view {
                Some(view) => ContextKind::Changes(front_end.view_session(volume, view)),
                None => ContextKind::Allocation,
            },
        });
        Chosen {
            agreed,
            contexts: contexts.collect(),
            in_use: self.in_use.enter(volume),
            front_end,
            session,
            rest: BytesMut::from(unread),
            name: record.export,
        }
    }

    async fn ask(&self, front_end: &FrontEnd, session: &SessionHandle) -> Option<Outcome> {
        front_end.open(session, Token(0), Patience::WhileServed);
        self.router.send();
        let mut completions = Vec::new();
        poll_fn(|cx| front_end.poll(cx, &mut completions)).await;
        completions.pop().map(|completion| completion.outcome)
    }
}

fn not_served(name: &str, why: &str) -> NoExport {
    NoExport {
        reply: OptionReply::ErrShutdown,
        text: format!("{name}: not served now: {why}; try again"),
    }
}
