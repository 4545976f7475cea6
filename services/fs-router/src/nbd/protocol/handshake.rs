//! The handshake: the greeting, the client's options, the replies to them.
//!
//! Keeps: nothing; bytes and values.
//! Order: an option is taken only when all of it is there.
//! Crash: nothing.
//! Knows no sockets and no exports; a malformed option is a value that says what is wrong with it.

use super::{BLOCK_PREFERRED, Export, PAYLOAD_MAX, Violation, u16_at, u32_at, u64_at};

const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;

/// Longest data of an option: an export name and some metadata queries.
pub const OPTION_MAX: u32 = 16 << 10;
/// Longest string of the protocol.
const STRING_MAX: usize = 4096;
const OPTION_HEADER: usize = 16;

const OPT_EXPORT_NAME: u32 = 1;
const OPT_ABORT: u32 = 2;
const OPT_LIST: u32 = 3;
const OPT_INFO: u32 = 6;
const OPT_GO: u32 = 7;
const OPT_STRUCTURED_REPLY: u32 = 8;
const OPT_LIST_META_CONTEXT: u32 = 9;
const OPT_SET_META_CONTEXT: u32 = 10;

const INFO_EXPORT: u16 = 0;
const INFO_NAME: u16 = 1;
const INFO_BLOCK_SIZE: u16 = 3;

/// What the server says first.
#[must_use]
pub fn greeting() -> [u8; 18] {
    let mut bytes = [0; 18];
    bytes[..8].copy_from_slice(&NBDMAGIC.to_be_bytes());
    bytes[8..16].copy_from_slice(&IHAVEOPT.to_be_bytes());
    bytes[16..].copy_from_slice(&(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
    bytes
}

/// What the client answers to the greeting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientFlags {
    /// It wants no padding after the answer to `EXPORT_NAME`.
    pub no_zeroes: bool,
}

/// Takes the client's flags off the front: the flags and how many bytes they took; `None` while bytes are missing.
///
/// # Errors
/// Not fixed newstyle, or unknown flags.
pub fn take_client_flags(bytes: &[u8]) -> Result<Option<(ClientFlags, usize)>, Violation> {
    if bytes.len() < 4 {
        return Ok(None);
    }
    let found = u32_at(bytes, 0);
    let known = u32::from(FIXED_NEWSTYLE | NO_ZEROES);
    if found & !known != 0 || found & u32::from(FIXED_NEWSTYLE) == 0 {
        return Err(Violation::ClientFlags { found });
    }
    let no_zeroes = found & u32::from(NO_ZEROES) != 0;
    Ok(Some((ClientFlags { no_zeroes }, 4)))
}

/// An option of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientOption {
    /// Use this export, and begin: there is no way to refuse but to hang up.
    ExportName(String),
    /// The client goes.
    Abort,
    /// Which exports are there?
    List,
    /// What of this export?
    Info(ExportQuery),
    /// Use this export, and begin.
    Go(ExportQuery),
    /// Structured replies from here on.
    StructuredReply,
    /// Which metadata contexts are there?
    ListMetaContext(ContextQuery),
    /// Use these metadata contexts.
    SetMetaContext(ContextQuery),
    /// An option that this server does not have.
    Unknown,
    /// A known option with data that is not right. For people: why.
    Malformed(&'static str),
}

/// The data of `INFO` and `GO`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportQuery {
    /// The export's name.
    pub name: String,
    /// The client asked for the name, and keeps to the block sizes.
    pub wants: Vec<u16>,
}

/// The data of `LIST_META_CONTEXT` and `SET_META_CONTEXT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContextQuery {
    /// The export's name.
    pub name: String,
    /// What is asked for: contexts, or in a listing also `NAMESPACE:`.
    pub queries: Vec<String>,
}

/// Takes an option off the front: its number, itself, and how many bytes it took; `None` while bytes are missing.
///
/// # Errors
/// It is no option, or longer than any needs to be.
pub fn take_option(bytes: &[u8]) -> Result<Option<(u32, ClientOption, usize)>, Violation> {
    if bytes.len() < OPTION_HEADER {
        return Ok(None);
    }
    let found = u64_at(bytes, 0);
    if found != IHAVEOPT {
        return Err(Violation::Magic {
            what: "an option",
            found,
            expected: IHAVEOPT,
        });
    }
    let (option, length) = (u32_at(bytes, 8), u32_at(bytes, 12));
    if length > OPTION_MAX {
        return Err(Violation::LongOption {
            option,
            length,
            max: OPTION_MAX,
        });
    }
    let end = OPTION_HEADER + length as usize;
    let Some(data) = bytes.get(OPTION_HEADER..end) else {
        return Ok(None);
    };
    let parsed = parse_option(option, data).unwrap_or_else(ClientOption::Malformed);
    Ok(Some((option, parsed, end)))
}

fn parse_option(option: u32, data: &[u8]) -> Result<ClientOption, &'static str> {
    let without_data = |option| match data {
        [] => Ok(option),
        _ => Err("this option has no data"),
    };
    match option {
        OPT_EXPORT_NAME => Ok(ClientOption::ExportName(text(data)?)),
        // Its data, if any, is of no interest: the client goes.
        OPT_ABORT => Ok(ClientOption::Abort),
        OPT_LIST => without_data(ClientOption::List),
        OPT_INFO => Ok(ClientOption::Info(export_query(data)?)),
        OPT_GO => Ok(ClientOption::Go(export_query(data)?)),
        OPT_STRUCTURED_REPLY => without_data(ClientOption::StructuredReply),
        OPT_LIST_META_CONTEXT => Ok(ClientOption::ListMetaContext(context_query(data)?)),
        OPT_SET_META_CONTEXT => Ok(ClientOption::SetMetaContext(context_query(data)?)),
        _ => Ok(ClientOption::Unknown),
    }
}

fn text(bytes: &[u8]) -> Result<String, &'static str> {
    if bytes.len() > STRING_MAX {
        return Err("a string is longer than 4096 bytes");
    }
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text.to_owned()),
        _ => Err("a string is not UTF-8, or has a zero byte"),
    }
}

/// Takes a 32-bit length and that many bytes of text.
fn take_text(data: &mut &[u8]) -> Result<String, &'static str> {
    const SHORT: &str = "the data ends before a string does";
    let length = take_u32(data).ok_or(SHORT)? as usize;
    let (bytes, rest) = data.split_at_checked(length).ok_or(SHORT)?;
    *data = rest;
    text(bytes)
}

fn take_u32(data: &mut &[u8]) -> Option<u32> {
    let (bytes, rest) = data.split_first_chunk::<4>()?;
    *data = rest;
    Some(u32::from_be_bytes(*bytes))
}

fn export_query(mut data: &[u8]) -> Result<ExportQuery, &'static str> {
    let name = take_text(&mut data)?;
    let count = usize::from(u16_at(data, 0));
    if data.len() != 2 + count * 2 {
        return Err("the number of information requests does not fit the data's length");
    }
    let wants = (0..count).map(|index| u16_at(data, 2 + index * 2)).collect();
    Ok(ExportQuery { name, wants })
}

fn context_query(mut data: &[u8]) -> Result<ContextQuery, &'static str> {
    let name = take_text(&mut data)?;
    let count = take_u32(&mut data).ok_or("the data ends before the number of queries")?;
    // Each takes at least its length's four bytes, so a count that lies ends early.
    let queries = (0..count)
        .map(|_| take_text(&mut data))
        .collect::<Result<Vec<String>, _>>()?;
    if !data.is_empty() {
        return Err("bytes follow the last query");
    }
    Ok(ContextQuery { name, queries })
}

impl ExportQuery {
    /// Whether the client keeps to the block sizes that it is told.
    #[must_use]
    pub fn keeps_block_size(&self) -> bool {
        self.wants.contains(&INFO_BLOCK_SIZE)
    }
}

/// Kinds of replies to options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum OptionReply {
    /// Done.
    Ack = 1,
    /// An export of a listing.
    Server = 2,
    /// A piece of information.
    Info = 3,
    /// A metadata context.
    MetaContext = 4,
    /// Not known here.
    ErrUnsupported = (1 << 31) + 1,
    /// Wrong data.
    ErrInvalid = (1 << 31) + 3,
    /// No such export.
    ErrUnknown = (1 << 31) + 6,
    /// The server stops, or cannot serve the export now.
    ErrShutdown = (1 << 31) + 7,
    /// More than is taken.
    ErrTooBig = (1 << 31) + 9,
}

/// Appends a reply to an option.
pub fn put_reply(out: &mut Vec<u8>, option: u32, kind: OptionReply, data: &[u8]) {
    out.extend_from_slice(&REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&(kind as u32).to_be_bytes());
    out.extend_from_slice(&u32::try_from(data.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(data);
}

/// Appends an error with a text for people.
pub fn put_error(out: &mut Vec<u8>, option: u32, kind: OptionReply, text: &str) {
    let cut = text.floor_char_boundary(STRING_MAX);
    put_reply(out, option, kind, &text.as_bytes()[..cut]);
}

/// Appends an export of a listing.
pub fn put_listed(out: &mut Vec<u8>, name: &str) {
    let mut data = u32::try_from(name.len())
        .unwrap_or(u32::MAX)
        .to_be_bytes()
        .to_vec();
    data.extend_from_slice(name.as_bytes());
    put_reply(out, OPT_LIST, OptionReply::Server, &data);
}

/// Appends what `INFO` and `GO` tell of an export, and the acknowledgement.
pub fn put_export(out: &mut Vec<u8>, option: u32, query: &ExportQuery, export: Export, structured: bool) {
    let mut data = INFO_EXPORT.to_be_bytes().to_vec();
    data.extend_from_slice(&export.size.to_be_bytes());
    data.extend_from_slice(&export.flags(structured).to_be_bytes());
    put_reply(out, option, OptionReply::Info, &data);
    // Told even to those who did not ask: they need not keep to it, so that the minimum is then 1.
    let minimum = if query.keeps_block_size() {
        export.block_minimum()
    } else {
        1
    };
    let mut data = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
    for size in [minimum, BLOCK_PREFERRED, PAYLOAD_MAX] {
        data.extend_from_slice(&size.to_be_bytes());
    }
    put_reply(out, option, OptionReply::Info, &data);
    if query.wants.contains(&INFO_NAME) {
        let mut data = INFO_NAME.to_be_bytes().to_vec();
        data.extend_from_slice(query.name.as_bytes());
        put_reply(out, option, OptionReply::Info, &data);
    }
    put_reply(out, option, OptionReply::Ack, &[]);
}

/// Appends the answer to `EXPORT_NAME`.
pub fn put_export_name(out: &mut Vec<u8>, export: Export, no_zeroes: bool) {
    out.extend_from_slice(&export.size.to_be_bytes());
    out.extend_from_slice(&export.flags(false).to_be_bytes());
    if !no_zeroes {
        out.extend_from_slice(&[0; 124]);
    }
}

/// Appends a metadata context; a listing gives it no id.
pub fn put_context(out: &mut Vec<u8>, option: u32, id: u32, name: &str) {
    let mut data = id.to_be_bytes().to_vec();
    data.extend_from_slice(name.as_bytes());
    put_reply(out, option, OptionReply::MetaContext, &data);
}
