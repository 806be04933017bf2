//! `GET /health` and `GET /metrics` over HTTP/1.
//!
//! `/health` answers 200 while every loop is fresh and 503 with the same JSON when one is stale. `/metrics` answers in the format of
//! [`metrics`]. Everything else is 404 or 405.
//!
//! **Who may ask.** On loopback everybody on the machine, unless a token is set. On any other address a token is required: without one
//! [`Server::bind`] refuses. The token comes as `Authorization: Bearer TOKEN` and is compared in constant time. There is no
//! TLS here: across networks that others read, put a proxy with TLS in front of a loopback listener.
//!
//! **Bounds.** 32 connections, one request each, 16 KiB of header, 5 s to send it, 10 s in all. A body is not read.

use std::{convert::Infallible, io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    health::Health,
    metrics::{self, Metrics},
};
use crate::secret::{Secret, SecretError};

const MAX_CONNECTIONS: usize = 32;
const MAX_HEADER_BYTES: usize = 16 << 10;
const MAX_HEADERS: usize = 64;
const HEADER_LIMIT: Duration = Duration::from_secs(5);
const CONNECTION_LIMIT: Duration = Duration::from_secs(10);
/// Shorter tokens can be guessed.
const MIN_TOKEN_BYTES: usize = 16;

/// Where to listen, and who may ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Address and port; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// File with the token that every request must bear. May be absent on loopback only.
    pub token_file: Option<PathBuf>,
}

/// A bound listener.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    answers: Arc<Answers>,
}

impl Server {
    /// Binds. Must be called within a runtime.
    ///
    /// # Errors
    /// The address is open to others and there is no token, the token cannot be used, or the address cannot be bound.
    pub async fn bind(config: &Config, health: Health, metrics: Metrics) -> Result<Self, HttpError> {
        let token = match &config.token_file {
            Some(path) => {
                let token = Secret::from_file(path)?;
                if token.expose().len() < MIN_TOKEN_BYTES {
                    return Err(HttpError::WeakToken { path: path.clone() });
                }
                Some(token)
            }
            None if config.listen.ip().to_canonical().is_loopback() => None,
            None => return Err(HttpError::OpenToOthers { address: config.listen }),
        };
        let bind = |source| HttpError::Bind { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;
        Ok(Self { listener, address, answers: Arc::new(Answers { health, metrics, token }) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `cancel`. Requests under way are dropped then.
    pub async fn serve(self, cancel: CancellationToken) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            // A place before the call: callers beyond the limit wait in the kernel's queue, not in our memory.
            let place = tokio::select! {
                () = cancel.cancelled() => break,
                place = Arc::clone(&places).acquire_owned() => place,
            };
            let Ok(place) = place else { break };
            let accepted = tokio::select! {
                () = cancel.cancelled() => break,
                accepted = self.listener.accept() => accepted,
            };
            while connections.try_join_next().is_some() {}
            match accepted {
                Ok((stream, _)) => {
                    let answers = Arc::clone(&self.answers);
                    connections.spawn(async move {
                        let _place = place;
                        let service = service_fn(move |request| {
                            let response = answers.answer(&request);
                            async move { Ok::<_, Infallible>(response) }
                        });
                        let connection = http1::Builder::new()
                            .timer(TokioTimer::new())
                            .header_read_timeout(HEADER_LIMIT)
                            .max_buf_size(MAX_HEADER_BYTES)
                            .max_headers(MAX_HEADERS)
                            .keep_alive(false)
                            .serve_connection(TokioIo::new(stream), service);
                        match timeout(CONNECTION_LIMIT, connection).await {
                            Ok(Ok(())) => {}
                            Ok(Err(error)) => tracing::debug!(%error, "a request for health or metrics failed"),
                            Err(_) => tracing::debug!("a request for health or metrics took too long"),
                        }
                    });
                }
                Err(error) => {
                    // Out of descriptors, or the caller left already; neither gets better by spinning.
                    tracing::warn!(%error, "a call for health or metrics could not be taken");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

#[derive(Debug)]
struct Answers {
    health: Health,
    metrics: Metrics,
    token: Option<Secret>,
}

impl Answers {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if !self.may(request.headers().get(AUTHORIZATION)) {
            let mut response = text(StatusCode::UNAUTHORIZED, "a bearer token is needed\n");
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            return response;
        }
        let path = request.uri().path();
        if !matches!(path, "/health" | "/metrics") {
            return text(StatusCode::NOT_FOUND, "there are /health and /metrics\n");
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        if path == "/health" { self.health() } else { self.metrics() }
    }

    fn may(&self, offered: Option<&HeaderValue>) -> bool {
        let Some(token) = &self.token else { return true };
        let offered = offered.and_then(|value| value.as_bytes().split_at_checked("Bearer ".len()));
        offered.is_some_and(|(scheme, rest)| scheme.eq_ignore_ascii_case(b"Bearer ") && token.matches(rest))
    }

    fn health(&self) -> Response<Full<Bytes>> {
        let report = self.health.report();
        let status = if report.healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        match serde_json::to_vec(&report) {
            Ok(json) => respond(status, "application/json", json),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error}\n")),
        }
    }

    fn metrics(&self) -> Response<Full<Bytes>> {
        match self.metrics.render() {
            Ok(figures) => respond(StatusCode::OK, metrics::CONTENT_TYPE, figures.into_bytes()),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error}\n")),
        }
    }
}

fn text(status: StatusCode, body: &str) -> Response<Full<Bytes>> {
    respond(status, "text/plain; charset=utf-8", body.as_bytes().to_vec())
}

fn respond(status: StatusCode, kind: &'static str, body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Why health and metrics are not served.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Others could ask, and nothing would stop them.
    #[error(
        "{address} is open to other machines: listen on 127.0.0.1, or name a token file that every request must bear"
    )]
    OpenToOthers {
        /// Where it was to listen.
        address: SocketAddr,
    },
    /// The token file cannot be used.
    #[error("the token for health and metrics: {0}")]
    Token(#[from] SecretError),
    /// The token can be guessed.
    #[error("the token in {} is shorter than {MIN_TOKEN_BYTES} characters; make one with: openssl rand -hex 32", .path.display())]
    WeakToken {
        /// The file.
        path: PathBuf,
    },
    /// The system refused the address.
    #[error("cannot listen on {address} for health and metrics: {source}")]
    Bind {
        /// Where it was to listen.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

#[cfg(test)]
mod tests;
