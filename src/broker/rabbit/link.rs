use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use lapin::{
    AsyncTcpStream, Channel, Connection, ConnectionProperties, ErrorKind,
    protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError},
    tcp::{RustlsConnector, RustlsConnectorConfig},
    uri::AMQPUri,
};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use tokio::{
    sync::Mutex,
    time::{error::Elapsed, timeout},
};

use super::Config;
use crate::{
    broker::{BrokerError, Figures},
    task::Delays,
};

/// One connection that is made again when it is asked for and gone. Nobody calls the broker more often than the backoff
/// allows, however many ask.
#[derive(Debug)]
pub(super) struct Link {
    config: Arc<Config>,
    /// What the broker's operator sees as the connection's name.
    purpose: &'static str,
    figures: Figures,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    current: Option<Arc<Connection>>,
    delays: Delays,
    /// When the last call failed, why, and until when no other is made.
    failed: Option<(Instant, BrokerError)>,
    /// What was told of the present trouble.
    told: Option<BrokerError>,
    closed: bool,
}

impl Link {
    pub(super) fn new(config: Arc<Config>, purpose: &'static str, figures: Figures) -> Self {
        let delays = config.times.backoff.delays();
        Self {
            config,
            purpose,
            figures,
            state: Mutex::new(State { current: None, delays, failed: None, told: None, closed: false }),
        }
    }

    /// The connection, made now if there is none. Within the backoff after a failed call it is the failure of that call.
    pub(super) async fn connection(&self) -> Result<Arc<Connection>, BrokerError> {
        let mut state = self.state.lock().await;
        if state.closed {
            return Err(BrokerError::Closed);
        }
        if let Some(connection) = &state.current
            && connection.status().connected()
        {
            return Ok(Arc::clone(connection));
        }
        state.current = None;
        if let Some((until, error)) = &state.failed
            && Instant::now() < *until
        {
            return Err(error.clone());
        }
        match self.call().await {
            Ok(connection) => {
                self.figures.count_connected();
                state.failed = None;
                if state.delays.failures() > 0 {
                    let failures = state.delays.failures();
                    tracing::info!(purpose = self.purpose, failures, "the broker can be reached again");
                }
                state.delays.reset();
                state.told = None;
                let connection = Arc::new(connection);
                state.current = Some(Arc::clone(&connection));
                Ok(connection)
            }
            Err(error) => {
                self.figures.count_failed();
                let delay = state.delays.next_delay();
                // Once for each kind of trouble, not at each call.
                let purpose = self.purpose;
                if state.told.as_ref() == Some(&error) {
                    tracing::debug!(%error, purpose, delay_ms = delay.as_millis(), "still cannot be reached");
                } else {
                    tracing::warn!(%error, purpose, "the broker cannot be reached; called again until it can");
                    state.told = Some(error.clone());
                }
                state.failed = Some((Instant::now() + delay, error.clone()));
                Err(error)
            }
        }
    }

    /// Gives up a connection that no longer answers; the next to ask gets another.
    pub(super) async fn discard(&self, dead: &Arc<Connection>) {
        let mut state = self.state.lock().await;
        if state.current.as_ref().is_some_and(|current| Arc::ptr_eq(current, dead)) {
            state.current = None;
        }
        drop(state);
        end(dead).await;
    }

    /// After an answer that did not come: gives the connection up unless it answers something else. A single queue may be unable
    /// to answer, and the others on the connection are not to suffer for it.
    pub(super) async fn discard_if_silent(&self, suspect: &Arc<Connection>, limit: Duration) {
        if channel(suspect, limit).await.is_err() {
            self.discard(suspect).await;
        }
    }

    pub(super) async fn close(&self) {
        let mut state = self.state.lock().await;
        state.closed = true;
        if let Some(connection) = state.current.take() {
            end(&connection).await;
        }
    }

    async fn call(&self) -> Result<Connection, BrokerError> {
        let config = &self.config;
        let limit = config.times.connect;
        let address = config.address.to_string();
        let unreachable = |detail: String| BrokerError::Unreachable { address: address.clone(), detail };
        let tls = if config.address.tls() { Some(tls(config).await.map_err(unreachable)?) } else { None };
        let uri = config.address.uri(&config.credentials, config.times.heartbeat_s);
        let name = format!("ccat-xfer {} (process {})", self.purpose, std::process::id());
        let options = ConnectionProperties::default().with_connection_name(name.into());
        let runtime = lapin::runtime::default_runtime().map_err(|e| unreachable(e.to_string()))?;
        let (host, port) = (config.address.host().to_owned(), config.address.port());
        let connecting = Connection::connector(
            uri,
            runtime,
            async move |_: AMQPUri, runtime| {
                let dialed = timeout(limit, async {
                    let found: Vec<_> = tokio::net::lookup_host((host.as_str(), port)).await?.collect();
                    let stream = AsyncTcpStream::connect(&runtime, found).await?;
                    match &tls {
                        Some(tls) => stream.into_rustls(tls, &host).await,
                        None => Ok(stream),
                    }
                });
                Ok(dialed.await.map_err(|_: Elapsed| std::io::Error::from(std::io::ErrorKind::TimedOut))??)
            },
            options,
        );
        match timeout(limit, connecting).await {
            Err(_) => Err(unreachable(format!("no answer within {} s", limit.as_secs_f32()))),
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(match error.kind() {
                ErrorKind::ProtocolError(said)
                    if matches!(
                        said.kind(),
                        AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED)
                            | AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED)
                    ) =>
                {
                    BrokerError::Denied { address: address.clone(), detail: said.get_message().to_string() }
                }
                _ => unreachable(error.to_string()),
            }),
        }
    }
}

/// How the broker's certificate is judged: by the authorities of a file, and then by no others, or by those of the machine.
async fn tls(config: &Config) -> Result<RustlsConnector, String> {
    let trust = match &config.ca_file {
        None => RustlsConnectorConfig::new_with_platform_verifier(),
        Some(path) => {
            let shown = path.display();
            let text = tokio::fs::read(path).await.map_err(|e| format!("cannot read {shown}: {e}"))?;
            let certificates: Vec<_> = CertificateDer::pem_slice_iter(&text)
                .collect::<Result<_, _>>()
                .map_err(|e| format!("{shown} holds no certificates: {e}"))?;
            if certificates.is_empty() {
                return Err(format!("{shown} holds no certificates"));
            }
            RustlsConnectorConfig::default().with_parsable_certificates(certificates)
        }
    };
    trust.connector_with_no_client_auth().map_err(|e| e.to_string())
}

/// Says goodbye, if anybody listens. Awaited, because a connection that outlives its runtime ends in a panic of its thread.
async fn end(connection: &Connection) {
    const GOODBYE: Duration = Duration::from_secs(2);
    let _ = timeout(GOODBYE, connection.close(200, "done".into())).await;
}

/// A new channel.
pub(super) async fn channel(connection: &Connection, limit: Duration) -> Result<Channel, BrokerError> {
    const DOING: &str = "opening a channel";
    in_time(DOING, limit, connection.create_channel()).await?.map_err(|error| explain(DOING, "the channel", &error))
}

/// A broker that accepted the connection may still never answer.
pub(super) async fn in_time<T>(
    operation: &'static str,
    limit: Duration,
    asked: impl Future<Output = T>,
) -> Result<T, BrokerError> {
    timeout(limit, asked).await.map_err(|_| BrokerError::Timeout { operation, after: limit })
}

/// What an error of the client library means. `name` is the queue or exchange in question.
pub(super) fn explain(operation: &'static str, name: &str, error: &lapin::Error) -> BrokerError {
    match error.kind() {
        ErrorKind::ProtocolError(said)
            if matches!(
                said.kind(),
                AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED | AMQPSoftError::RESOURCELOCKED)
            ) =>
        {
            BrokerError::Mismatch { name: name.to_owned(), detail: said.get_message().to_string() }
        }
        _ => BrokerError::Lost { operation, detail: error.to_string() },
    }
}
