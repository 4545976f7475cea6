//! What a request to an S3 server came to where it did not succeed, and what a person would have to change.
//!
//! Keeps: the one table from S3's error codes to what the rest of the back end acts on.
//! Order: none.
//! Crash: nothing; faults are values.
//! Knows no secrets: of an answer only its code and its message are taken, never what the server echoes of a signature.

use std::error::Error;
use std::fmt::Write as _;

use hyper::header::{DATE, HeaderMap};
use hyper::{Method, StatusCode, Uri};

use crate::backend::BackendError;

/// What a failed request means to whoever sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// There is no such key.
    NoSuchKey,
    /// `If-None-Match` found something.
    Exists,
    /// The object ends before the range.
    Range,
    /// The server does not know what was asked.
    NotImplemented,
    /// The multipart upload was completed or aborted before.
    NoSuchUpload,
    /// It may work next time.
    Passing,
    /// No space is left, or a quota is used up.
    Full,
    /// A person has to change something.
    Denied,
}

/// A request that did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub(super) struct Fault {
    pub(super) kind: Kind,
    /// Names the request, the bucket, the endpoint, what the answer was and, where that is known, what would be right.
    pub(super) what: String,
}

/// Where requests go, for what is told of them.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) endpoint: String,
    pub(super) bucket: String,
    pub(super) region: String,
    /// Virtual-hosted style: the bucket is in the host name and not in the path.
    pub(super) is_virtual_hosted: bool,
}

/// Characters of a server's message that are told.
const MESSAGE_CHARS_MAX: usize = 200;

impl Fault {
    pub(super) fn new(kind: Kind, what: String) -> Self {
        Self { kind, what }
    }

    /// A fault that was met before an answer came: no connection, no TLS, a reset.
    pub(super) fn without_answer(request: &str, error: &(dyn Error + 'static)) -> Self {
        let mut what = format!("{request}: {error}");
        let (mut source, mut is_untrusted) = (error.source(), false);
        while let Some(error) = source {
            // Writing into a String cannot fail.
            let _ = write!(what, ": {error}");
            is_untrusted |= is_of_certificate(error);
            source = error.source();
        }
        if is_untrusted {
            what.push_str(
                "; right would be a `ca` in the settings that holds who signed the server's certificate",
            );
        }
        Self::new(Kind::Passing, what)
    }

    /// What the client library says, which carries the fault that our transport found; without one it is the library
    /// that could not read an answer.
    pub(super) fn of(error: &object_store::Error) -> Self {
        let mut next: Option<&(dyn Error + 'static)> = Some(error);
        while let Some(error) = next {
            if let Some(fault) = error.downcast_ref::<Self>() {
                return fault.clone();
            }
            next = error.source();
        }
        Self::new(Kind::Passing, error.to_string())
    }

    pub(super) fn is_passing(&self) -> bool {
        self.kind == Kind::Passing
    }

    /// Whether it says something of the bucket, or of the way to it.
    pub(super) fn is_of_bucket(&self) -> bool {
        matches!(self.kind, Kind::Passing | Kind::Denied)
    }
}

impl From<Fault> for BackendError {
    fn from(fault: Fault) -> Self {
        let why = fault.what;
        match fault.kind {
            Kind::NoSuchKey => Self::NotFound,
            Kind::Exists => Self::Exists,
            Kind::Full => Self::Full,
            Kind::Denied | Kind::NotImplemented => Self::Denied { why },
            Kind::Passing | Kind::Range | Kind::NoSuchUpload => Self::Unavailable { why },
        }
    }
}

impl Place {
    /// `PUT <key> in bucket "b" at http://s3:9000`, of a request as it is sent.
    pub(super) fn told(&self, method: &Method, uri: &Uri) -> String {
        let path = uri.path().trim_start_matches('/');
        let key = match path.strip_prefix(&self.bucket) {
            Some(key) if !self.is_virtual_hosted => key.trim_start_matches('/'),
            _ => path,
        };
        let what = if key.is_empty() {
            "the list of objects"
        } else {
            key
        };
        format!("{method} {what} in bucket {:?} at {}", self.bucket, self.endpoint)
    }

    /// What an answer other than a success means. `access_key` signed the request.
    pub(super) fn judge(
        &self,
        request: &str,
        access_key: &str,
        status: StatusCode,
        headers: &HeaderMap,
        body: &str,
    ) -> Fault {
        let code = element(body, "Code").unwrap_or_default();
        let message = element(body, "Message").unwrap_or_default();
        let kind = kind(&code, status);
        let mut what = format!("{request}: {}", status.as_u16());
        for (before, text, after) in [(" ", &code, ""), (" (", &message, ")")] {
            if !text.is_empty() {
                let _ = write!(what, "{before}{text}{after}");
            }
        }
        if let Some(right) = self.right(&code, status, access_key, headers, body) {
            let _ = write!(what, "; {right}");
        }
        Fault::new(kind, what)
    }

    fn right(
        &self,
        code: &str,
        status: StatusCode,
        access_key: &str,
        headers: &HeaderMap,
        body: &str,
    ) -> Option<String> {
        let header = |name: &str| headers.get(name)?.to_str().ok().map(str::to_owned);
        match code {
            "NoSuchBucket" => Some(format!(
                "right would be a `bucket` that is there, not {:?}",
                self.bucket
            )),
            "InvalidAccessKeyId" | "NotSignedUp" => Some(format!(
                "right would be an access key that this server knows, not {access_key:?}"
            )),
            "SignatureDoesNotMatch" => Some(format!(
                "right would be the secret key that belongs to access key {access_key:?}"
            )),
            "ExpiredToken" | "InvalidToken" => {
                Some("right would be a session token that is still valid".to_owned())
            }
            "RequestTimeTooSkewed" | "RequestExpired" => {
                let theirs = header(DATE.as_str()).unwrap_or_else(|| "another time".to_owned());
                Some(format!(
                    "this machine's clock differs from the server's, which says {theirs}; right would be clocks that \
                     agree (NTP)"
                ))
            }
            "AuthorizationHeaderMalformed" | "PermanentRedirect" | "TemporaryRedirect" => {
                let theirs = header("x-amz-bucket-region")
                    .or_else(|| element(body, "Region"))
                    .map_or_else(|| "the bucket's".to_owned(), |region| format!("{region:?}"));
                Some(format!("right would be region = {theirs}, not {:?}", self.region))
            }
            _ if status.is_redirection() => Some(format!(
                "right would be the endpoint and the region of the bucket, not {:?} and {:?}",
                self.endpoint, self.region
            )),
            "AccessDenied" | "" if matches!(status, StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED) => {
                Some(format!(
                    "right would be a policy that lets access key {access_key:?} list the bucket, and get, put and \
                     delete its objects"
                ))
            }
            _ => None,
        }
    }
}

/// Whether TLS does not trust the server's certificate. An IO error names what it holds as no source.
fn is_of_certificate(error: &(dyn Error + 'static)) -> bool {
    if let Some(error) = error.downcast_ref::<std::io::Error>() {
        return error.get_ref().is_some_and(|inner| is_of_certificate(inner));
    }
    matches!(error.downcast_ref(), Some(rustls::Error::InvalidCertificate(_)))
}

fn kind(code: &str, status: StatusCode) -> Kind {
    match code {
        "NoSuchKey" => Kind::NoSuchKey,
        "NoSuchUpload" => Kind::NoSuchUpload,
        "PreconditionFailed" => Kind::Exists,
        "InvalidRange" => Kind::Range,
        "NotImplemented" => Kind::NotImplemented,
        "QuotaExceeded" | "InsufficientStorage" | "StorageFull" | "XMinioStorageFull" => Kind::Full,
        // Two writers of one key at once, and a body that did not come in time.
        "ConditionalRequestConflict" | "OperationAborted" | "RequestTimeout" => Kind::Passing,
        "SlowDown" | "ServiceUnavailable" | "InternalError" | "Throttling" | "ThrottlingException" => {
            Kind::Passing
        }
        "NoSuchBucket" => Kind::Denied,
        _ => match status {
            StatusCode::NOT_FOUND => Kind::NoSuchKey,
            StatusCode::PRECONDITION_FAILED => Kind::Exists,
            StatusCode::RANGE_NOT_SATISFIABLE => Kind::Range,
            StatusCode::NOT_IMPLEMENTED => Kind::NotImplemented,
            StatusCode::INSUFFICIENT_STORAGE => Kind::Full,
            StatusCode::CONFLICT | StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
                Kind::Passing
            }
            _ if status.is_server_error() => Kind::Passing,
            _ => Kind::Denied,
        },
    }
}

/// The text of the first element of this name, cut to what is told of it. S3's error documents are flat and their
/// codes plain; a message's entities are left as they are.
fn element(body: &str, name: &str) -> Option<String> {
    let (_, rest) = body.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    Some(text.trim().chars().take(MESSAGE_CHARS_MAX).map(plain).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place {
            endpoint: "http://s3:9000".to_owned(),
            bucket: "vms".to_owned(),
            region: "eu-1".to_owned(),
            is_virtual_hosted: false,
        }
    }

    fn judged(status: u16, headers: &[(&'static str, &str)], body: &str) -> Fault {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        let request = place().told(&Method::PUT, &"/vms/a/b".parse().unwrap());
        place().judge(
            &request,
            "AKID",
            StatusCode::from_u16(status).unwrap(),
            &map,
            body,
        )
    }

    #[test]
    fn each_answer_names_the_request_and_what_would_be_right() {
        let error = |code: &str| format!("<Error><Code>{code}</Code><Message>no\nwonder</Message></Error>");
        for (status, code, headers, kind, wanted) in [
            (
                404,
                "NoSuchBucket",
                vec![],
                Kind::Denied,
                "`bucket` that is there, not \"vms\"",
            ),
            (404, "NoSuchKey", vec![], Kind::NoSuchKey, "NoSuchKey"),
            (
                403,
                "InvalidAccessKeyId",
                vec![],
                Kind::Denied,
                "knows, not \"AKID\"",
            ),
            (
                403,
                "SignatureDoesNotMatch",
                vec![],
                Kind::Denied,
                "belongs to access key \"AKID\"",
            ),
            (
                403,
                "AccessDenied",
                vec![],
                Kind::Denied,
                "a policy that lets access key \"AKID\"",
            ),
            (
                403,
                "RequestTimeTooSkewed",
                vec![("date", "Mon, 01 Jan 2035 00:00:00 GMT")],
                Kind::Denied,
                "clock differs from the server's, which says Mon, 01 Jan 2035",
            ),
            (
                301,
                "PermanentRedirect",
                vec![("x-amz-bucket-region", "us-2")],
                Kind::Denied,
                "region = \"us-2\", not \"eu-1\"",
            ),
            (503, "SlowDown", vec![], Kind::Passing, "503 SlowDown (no wonder)"),
            (409, "ConditionalRequestConflict", vec![], Kind::Passing, "409"),
            (412, "PreconditionFailed", vec![], Kind::Exists, "412"),
            (416, "InvalidRange", vec![], Kind::Range, "416"),
            (403, "QuotaExceeded", vec![], Kind::Full, "QuotaExceeded"),
            (501, "NotImplemented", vec![], Kind::NotImplemented, "501"),
        ] {
            let fault = judged(status, &headers, &error(code));
            assert_eq!(fault.kind, kind, "{code}");
            for part in [wanted, "PUT a/b in bucket \"vms\" at http://s3:9000"] {
                assert!(fault.what.contains(part), "{part:?} is not in {}", fault.what);
            }
        }
    }

    #[test]
    fn an_answer_without_a_body_is_judged_by_its_status() {
        for (status, kind) in [
            (404, Kind::NoSuchKey),
            (412, Kind::Exists),
            (416, Kind::Range),
            (429, Kind::Passing),
            (500, Kind::Passing),
            (504, Kind::Passing),
            (507, Kind::Full),
            (403, Kind::Denied),
            (400, Kind::Denied),
            (301, Kind::Denied),
        ] {
            assert_eq!(judged(status, &[], "").kind, kind, "{status}");
            assert_eq!(
                judged(status, &[], "<html>a load balancer").kind,
                kind,
                "{status}"
            );
        }
    }

    #[test]
    fn what_a_server_echoes_of_a_signature_is_not_told() {
        let body = "<Error><Code>SignatureDoesNotMatch</Code><Message>m</Message>\
                    <StringToSign>secret things</StringToSign></Error>";
        assert!(!judged(403, &[], body).what.contains("secret things"));
        let endless = format!("<Message>{}</Message>", "x".repeat(100_000));
        assert!(judged(500, &[], &endless).what.len() < 400);
    }
}
