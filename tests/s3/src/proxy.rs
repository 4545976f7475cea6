//! The proxy: takes connections, and lets a request through to the server or makes it go wrong.
//!
//! Keeps: nothing.
//! Order: the requests of a connection one after the other.
//! Crash: connections end.
//! Knows the server as one call.

use std::convert::Infallible;
use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, DATE, HeaderValue, TRANSFER_ENCODING};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use s3s::service::S3Service;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use crate::faults::{Drawn, State, is_conditional, is_list};
use crate::metadata;

/// An answer, which may break off.
struct Answer {
    left: Option<Bytes>,
    whole: u64,
    breaks_off: bool,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match self.left.take() {
            Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            None if self.breaks_off => Poll::Ready(Some(Err(reset()))),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_none() && !self.breaks_off
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.whole)
    }
}

fn reset() -> io::Error {
    io::Error::other("reset on purpose")
}

/// Serves until it is dropped.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    service: S3Service,
    state: Arc<State>,
) -> io::Result<Infallible> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        state.connected();
        tokio::spawn(connection(
            stream,
            tls.clone(),
            service.clone(),
            Arc::clone(&state),
        ));
    }
}

/// One connection. It ends with its first fault, and then with a reset: the other side must not see an orderly end.
async fn connection(stream: TcpStream, tls: Option<TlsAcceptor>, service: S3Service, state: Arc<State>) {
    // Without it each answer of more than one packet waits 40 ms for an acknowledgement.
    let _ = stream.set_nodelay(true);
    let Ok(socket) = rustix::io::dup(&stream) else {
        return;
    };
    let answer = service_fn(|request| answer(request, &service, &state));
    let server = hyper::server::conn::http1::Builder::new();
    let served = match tls {
        None => server.serve_connection(TokioIo::new(stream), answer).await,
        Some(tls) => match tls.accept(stream).await {
            Ok(stream) => server.serve_connection(TokioIo::new(stream), answer).await,
            // A client that does not trust the certificate.
            Err(_) => return,
        },
    };
    if served.is_err() {
        end_with_a_reset(&socket);
    }
}

fn end_with_a_reset(socket: &OwnedFd) {
    // Where it fails the connection ends in order, which is a fault as well.
    let _ = rustix::net::sockopt::set_socket_linger(socket, Some(Duration::ZERO));
}

async fn answer(
    request: Request<Incoming>,
    service: &S3Service,
    state: &State,
) -> io::Result<Response<Answer>> {
    let (faults, drawn) = state.draw(&request);
    let is_put = matches!(*request.method(), Method::PUT | Method::POST);
    let _under_way = is_put.then(|| state.put_begins());
    while *request.method() == Method::PUT && state.puts_wait() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let delay = match *request.method() {
        Method::PUT | Method::POST => faults.put_delay,
        Method::GET => faults.get_delay,
        _ => Duration::ZERO,
    };
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    match drawn {
        Drawn::Hang => std::future::pending().await,
        Drawn::ResetRequest => {
            let (_, mut body) = request.into_parts();
            let _ = body.frame().await;
            return Err(reset());
        }
        Drawn::Refuse(status, code) => {
            // The body first, as servers do: who is still sending would see a reset in place of the answer.
            let _ = request.into_body().collect().await;
            return Ok(refusal(status, code));
        }
        Drawn::Nothing | Drawn::ResetAnswer | Drawn::LoseAnswer => {}
    }
    if let Some((status, text)) = metadata::answer(&request) {
        return Ok(plain(status, text.into(), false));
    }
    let response = match state.stale_list(&request) {
        Some(before) => before,
        None => asked(request, faults.overwrites, service, state).await?,
    };
    match drawn {
        Drawn::LoseAnswer => Err(reset()),
        _ => Ok(whole_or_half(response, drawn == Drawn::ResetAnswer)),
    }
}

/// What the server says.
async fn asked(
    request: Request<Incoming>,
    overwrites: bool,
    service: &S3Service,
    state: &State,
) -> io::Result<(hyper::http::response::Parts, Bytes)> {
    let list = is_list(&request).then(|| request.uri().to_string());
    let completes = request.method() == Method::POST
        && request
            .uri()
            .query()
            .is_some_and(|query| query.contains("uploadId="));
    if overwrites && is_conditional(&request) {
        let host = request.headers().get("host").and_then(|host| host.to_str().ok());
        state.forget(host.unwrap_or_default(), request.uri().path());
    }
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let request = Request::from_parts(head, s3s::Body::from(body));
    let response = service
        .call(request)
        .await
        .map_err(|error| io::Error::other(format!("{error:?}")))?;
    let (mut head, body) = response.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    head.headers.remove(TRANSFER_ENCODING);
    if let Some(uri) = list {
        state.listed(uri, &head, &body);
    }
    if completes && head.status.is_success() {
        state.completed();
    }
    Ok((head, body))
}

fn whole_or_half(
    (mut head, body): (hyper::http::response::Parts, Bytes),
    breaks_off: bool,
) -> Response<Answer> {
    let whole = body.len() as u64;
    // What a HEAD or a 304 says of a length is of a body that it does not have.
    if whole > 0 {
        head.headers.insert(CONTENT_LENGTH, HeaderValue::from(whole));
    }
    let left = if breaks_off {
        body.slice(..body.len() / 2)
    } else {
        body
    };
    Response::from_parts(
        head,
        Answer {
            left: Some(left).filter(|left| !left.is_empty()),
            whole,
            breaks_off,
        },
    )
}

fn refusal(status: StatusCode, code: &str) -> Response<Answer> {
    let text =
        format!("<Error><Code>{code}</Code><Message>on purpose</Message><Region>eu-9</Region></Error>");
    plain(status, text.into(), true)
}

fn plain(status: StatusCode, body: Bytes, is_xml: bool) -> Response<Answer> {
    let mut response = Response::new(Answer {
        whole: body.len() as u64,
        left: Some(body),
        breaks_off: false,
    });
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(DATE, HeaderValue::from_static("Mon, 01 Jan 2035 00:00:00 GMT"));
    if is_xml {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    }
    response
}

/// A certificate for `localhost` and the buckets' names below it, and what speaks TLS with it.
pub(crate) fn tls(buckets: &[&str]) -> io::Result<(String, TlsAcceptor)> {
    let mut names = vec!["localhost".to_owned()];
    names.extend(buckets.iter().map(|bucket| format!("{bucket}.localhost")));
    let made = rcgen::generate_simple_self_signed(names).map_err(io::Error::other)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder
                .with_no_client_auth()
                .with_single_cert(vec![made.cert.der().clone()], key)
        })
        .map_err(io::Error::other)?;
    Ok((made.cert.pem(), TlsAcceptor::from(Arc::new(config))))
}
