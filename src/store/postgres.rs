//! What is PostgreSQL's alone: how a server is reached.

use std::{net::IpAddr, str::FromStr as _, time::Duration};

use sqlx::{
    Connection as _, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions, PgSslMode},
};

use super::{
    error::StoreError,
    sql::{in_time, was_silent_lately},
};

/// Name of the schema that holds everything.
pub(super) const SCHEMA: &str = "ccat_xfer";

/// Shorter than a statement may take, so that its error is the one that is told.
const ACQUIRE: Duration = Duration::from_secs(10);
const CONNECTIONS: u32 = 8;
const STATEMENTS: usize = 500;
/// For a connection whose statement was given up, before it is given up too.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);

/// Connects. The password may stand in the address, or in what libpq reads (PGPASSWORD, a pass file).
pub(super) async fn open(url: &str) -> Result<PgPool, StoreError> {
    let options = options(url)?;
    let pool = PgPoolOptions::new().max_connections(CONNECTIONS).acquire_timeout(ACQUIRE);
    // Each connection gives a sign of life when it comes back. One that died since costs an error, and a retry.
    let pool = pool.test_before_acquire(false);
    // The pool asks each connection that comes back for a sign of life, and has no limit of its own for that.
    let pool = pool.after_release(|connection, _| {
        Box::pin(async move {
            if !was_silent_lately() {
                return Ok(true);
            }
            match tokio::time::timeout(SIGN_OF_LIFE, connection.ping()).await {
                Ok(answer) => answer.map(|()| true),
                Err(_) => Err(sqlx::Error::PoolTimedOut),
            }
        })
    });
    in_time(pool.connect_with(options)).await
}

fn options(url: &str) -> Result<PgConnectOptions, StoreError> {
    // The text of the error would show the address, and a password with it.
    let options = PgConnectOptions::from_str(url)
        .map_err(|_| StoreError::Address("the address of the database is not postgres://USER@HOST/DATABASE".into()))?;
    let local = options.get_socket().is_some()
        || options.get_host().starts_with('/')
        || options.get_host() == "localhost"
        || options.get_host().parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    let options = if local {
        options
    } else {
        match options.get_ssl_mode() {
            // What is said unless something is said: a server that offers no TLS would be taken.
            PgSslMode::Prefer => options.ssl_mode(PgSslMode::VerifyFull),
            PgSslMode::VerifyFull | PgSslMode::VerifyCa => options,
            _ => {
                return Err(StoreError::Address(format!(
                    "{} is not this machine: sslmode must be verify-full or verify-ca",
                    options.get_host()
                )));
            }
        }
    };
    // Texts differ with the length of their lists.
    let options = options.statement_cache_capacity(STATEMENTS);
    Ok(options.application_name("ccat-xfer").options([
        // Every statement is meant to walk an index. A young table has no statistics, and would be read whole.
        ("enable_seqscan", "off"),
        // Nor is any meant to join or gather more rows than it was asked for.
        ("enable_hashjoin", "off"),
        ("enable_mergejoin", "off"),
        ("enable_bitmapscan", "off"),
        ("enable_material", "off"),
        // Statements come again and again with the same plan, and none is worth compiling.
        ("plan_cache_mode", "force_generic_plan"),
        ("jit", "off"),
        ("search_path", SCHEMA),
        // As long as anybody here waits for an answer; what goes on longer only holds locks.
        ("statement_timeout", "12s"),
        // A stopped process must not hold row locks for ever.
        ("idle_in_transaction_session_timeout", "60s"),
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_machine_is_reached_by_verified_tls_only() {
        let mode = |url: &str| options(url).map(|o| format!("{:?}", o.get_ssl_mode())).map_err(|e| e.to_string());
        assert_eq!(mode("postgres://u@db.example/x").unwrap(), "VerifyFull");
        assert_eq!(mode("postgres://u@db.example/x?sslmode=verify-ca").unwrap(), "VerifyCa");
        assert!(mode("postgres://u@db.example/x?sslmode=disable").is_err());
        assert!(mode("postgres://u@db.example/x?sslmode=require").is_err());
        assert_eq!(mode("postgres://u@127.0.0.1/x").unwrap(), "Prefer");
        let error = mode("postgres://u:secret@[/x").unwrap_err();
        assert!(!error.contains("secret"), "{error}");
    }
}
