use std::{fs::File, io::Read as _};

use aws_sdk_s3::{
    Client,
    config::{
        BehaviorVersion, Builder, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
        StalledStreamProtectionConfig, retry::RetryConfig, timeout::TimeoutConfig,
    },
};
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode};

use super::Settings;
use crate::{archive::ArchiveError, model::ErrorClass};

/// A client of these settings. Retries throttling, lost connections and the store's own failures, with jitter, as often as
/// the limits say; nothing is read from the environment.
pub(super) fn client(settings: &Settings) -> Result<Client, ArchiveError> {
    let limits = &settings.limits;
    let credentials = Credentials::new(
        &settings.credentials.access_key,
        settings.credentials.secret_key.expose(),
        settings.credentials.session_token.as_ref().map(|token| token.expose().to_owned()),
        None,
        "ccat-xfer",
    );
    let timeouts =
        TimeoutConfig::builder().connect_timeout(limits.connect).operation_attempt_timeout(limits.request).build();
    let retries = RetryConfig::standard()
        .with_max_attempts(limits.tries)
        .with_initial_backoff(limits.backoff.first)
        .with_max_backoff(limits.backoff.limit);
    let config = Builder::new()
        .behavior_version(BehaviorVersion::latest())
        .endpoint_url(&settings.endpoint)
        .region(Region::new(settings.region.clone()))
        .force_path_style(settings.path_style)
        .credentials_provider(credentials)
        .timeout_config(timeouts)
        .retry_config(retries)
        .stalled_stream_protection(StalledStreamProtectionConfig::enabled().grace_period(limits.stall).build())
        // Each upload carries the sum that it was given; what comes back is hashed by us.
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .http_client(
            aws_smithy_http_client::Builder::new()
                .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
                .tls_context(tls(settings)?)
                .build_https(),
        );
    Ok(Client::from_conf(config.build()))
}

fn tls(settings: &Settings) -> Result<TlsContext, ArchiveError> {
    let trust = match &settings.ca_file {
        None => TrustStore::default(),
        Some(path) => {
            let failed = |error| {
                let text = format!("cannot read the CA file {} of the S3 endpoint", path.display());
                ArchiveError::caused(ErrorClass::Configuration, text, &error)
            };
            let mut pem = Vec::new();
            File::open(path).and_then(|file| file.take(MAX_CA_BYTES).read_to_end(&mut pem)).map_err(failed)?;
            // The library panics on what holds no certificate, at the first request.
            usable(&pem).map_err(|why| {
                let text = format!("{} is no CA file: {why}", path.display());
                ArchiveError::new(ErrorClass::Configuration, text)
            })?;
            TrustStore::empty().with_pem_certificate(pem)
        }
    };
    TlsContext::builder().with_trust_store(trust).build().map_err(|error| {
        ArchiveError::caused(ErrorClass::Configuration, "cannot prepare TLS to the S3 endpoint", &error)
    })
}

fn usable(pem: &[u8]) -> Result<(), String> {
    use rustls_pki_types::{CertificateDer, pem::PemObject as _};
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        roots.add(certificate.map_err(|error| error.to_string())?).map_err(|error| error.to_string())?;
    }
    if roots.is_empty() { Err("it holds no certificate".to_owned()) } else { Ok(()) }
}

const MAX_CA_BYTES: u64 = 4 << 20;
