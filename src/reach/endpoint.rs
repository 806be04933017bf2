//! A running endpoint: `xfer://HOST[:PORT]/LOCATION/PATH`.

use std::{net::SocketAddr, sync::Arc};

use tokio::task::JoinSet;

use super::{
    Credentials, Reached,
    dialer::{Target, connect, join, maintain, tcp_connections},
};
use crate::{
    engine::{FailureClass, JobError, LinkError, Options, Session, TransportChoice, class_of},
    net::{DialOptions, Transport},
};

/// The addresses of a host.
///
/// # Errors
/// Network: the name has none.
pub async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, JobError> {
    let failure =
        |why: String| JobError::new(FailureClass::Network, format!("the name {host:?} has no address: {why}"));
    let found: Vec<_> = tokio::net::lookup_host((host, port)).await.map_err(|e| failure(e.to_string()))?.collect();
    if found.is_empty() { Err(failure("none found".to_owned())) } else { Ok(found) }
}

/// Calls the endpoint and opens the session there.
pub(super) async fn reach(
    session: &Arc<Session>,
    host: &str,
    port: u16,
    credentials: &Credentials,
    options: &Options,
) -> Result<Reached, JobError> {
    if options.transport == TransportChoice::Ssh {
        return Err(JobError::new(FailureClass::Usage, "--transport ssh needs a HOST:PATH, not an xfer:// address"));
    }
    let addresses = resolve(host, port).await?;
    let dial = DialOptions {
        tuning: super::ssh::tuning(options),
        ..DialOptions::new(credentials.identity.clone(), Arc::clone(&credentials.policy))
    };
    let target = Target { addresses, options: dial };
    let (link, why) = connect(&target, options.transport).await?;
    let transport = link.info.transport;
    // Whoever answered keeps being called; other addresses of the name may be other machines.
    let target = match link.info.remote {
        Some(address) => Target { addresses: vec![address], ..target },
        None => target,
    };
    session.choose(why, super::ssh::controller(&link, options));
    join(link, session, true, true).await.map_err(|e| link_failure(&e))?;
    let wanted = options.streams.and_then(|n| usize::try_from(n.get()).ok()).unwrap_or_else(tcp_connections);
    let mut tasks = JoinSet::new();
    let choice = options.transport;
    let wanted = if transport == Transport::Tcp { wanted } else { 1 };
    tasks.spawn(maintain(Arc::clone(session), target, choice, transport, wanted));
    Ok(Reached { tasks, ssh: None })
}

pub(super) fn link_failure(error: &LinkError) -> JobError {
    match error {
        LinkError::Net(error) => super::net_failure(error),
        LinkError::Refused { class, text } => JobError::new(class_of(*class), text.clone()),
        LinkError::Proof => JobError::new(FailureClass::Identity, error.to_string()),
        _ => JobError::new(FailureClass::Network, error.to_string()),
    }
}
