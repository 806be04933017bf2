use std::{error::Error, fmt};

use aws_sdk_s3::{
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
};

use crate::{
    archive::{ArchiveError, failure},
    chunk::plain_text,
    disk::DiskError,
    model::ErrorClass,
};

/// What a store refused, or why it was not reached: enough to decide, and to tell.
#[derive(Debug)]
pub(super) struct Refused {
    /// HTTP status, 0 where no answer came.
    pub(super) status: u16,
    /// S3's word for it, empty where there is none.
    pub(super) code: String,
    error: ArchiveError,
}

impl Refused {
    /// Of a request that did `doing` to `object`, both for messages.
    pub(super) fn new<E>(doing: &str, object: impl fmt::Display, error: &SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        let code = error.code().unwrap_or_default().to_owned();
        let status = error.raw_response().map_or(0, |response| response.status().as_u16());
        let (class, advice) = match error {
            SdkError::ServiceError(_) => judge(status, &code),
            SdkError::TimeoutError(_) => (ErrorClass::Network, "no answer came within the time limit"),
            SdkError::DispatchFailure(failure) => match failure.as_connector_error() {
                Some(cause) if cause.is_user() => (ErrorClass::Configuration, "the request could not be made"),
                Some(cause) if says(cause, "certificate") => (
                    ErrorClass::Authentication,
                    "its certificate is not accepted; name the authority that vouches for it as ca_file",
                ),
                _ => (ErrorClass::Network, "the endpoint cannot be reached"),
            },
            SdkError::ResponseError(_) if status == 0 || status < 300 => {
                (ErrorClass::Network, "the answer is none of S3's")
            }
            SdkError::ResponseError(_) => judge(status, &code),
            _ => (ErrorClass::Configuration, "the request could not be made"),
        };
        let said = plain_text(error.message().unwrap_or_default().as_bytes());
        let said = said.chars().take(MAX_SAID_CHARS).collect::<String>();
        let told = match (code.as_str(), said.as_str()) {
            ("", "") if status == 0 => String::new(),
            ("", "") => format!(" (HTTP {status})"),
            (code, "") => format!(" (HTTP {status}, {})", plain_text(code.as_bytes())),
            (code, said) => format!(" (HTTP {status}, {}: {said})", plain_text(code.as_bytes())),
        };
        let text = format!("cannot {doing} {object}: {advice}{told}");
        // A service's error says nothing behind its code and message; others name what the system said.
        let error = match error {
            SdkError::ServiceError(_) => ArchiveError::new(class, text),
            other => other
                .source()
                .map_or_else(|| ArchiveError::new(class, &*text), |cause| ArchiveError::caused(class, &*text, cause)),
        };
        Self { status, code, error }
    }

    /// Something lies there already.
    pub(super) fn is_taken(&self) -> bool {
        self.status == 412 || self.code == "PreconditionFailed"
    }

    /// There is no such object: the store says so in its own word. A bucket that is missing is another matter.
    pub(super) fn is_missing(&self) -> bool {
        self.status == 404 && self.code == "NoSuchKey"
    }

    /// A 404 without S3's word for it. The answer to a HEAD has none, and that of a proxy that does not reach its store.
    pub(super) fn is_bare_missing(&self) -> bool {
        self.status == 404 && matches!(self.code.as_str(), "" | "NotFound")
    }

    /// There is no such upload: somebody completed or removed it.
    pub(super) fn is_no_upload(&self) -> bool {
        self.code == "NoSuchUpload"
    }

    /// The asked range begins behind the object's end.
    pub(super) fn is_past_end(&self) -> bool {
        self.status == 416
    }

    /// The store is there and fails on this request.
    pub(super) fn is_its_own_fault(&self) -> bool {
        self.status == 500
    }
}

impl From<Refused> for ArchiveError {
    fn from(refused: Refused) -> Self {
        refused.error
    }
}

/// The one place where what stores say becomes a class. The first row that fits holds.
///
/// | code | status | class |
/// |---|---|---|
/// | clock skew, expired request | | configuration |
/// | keys, signatures, tokens, rights | 401, 403 | authentication |
/// | bucket, region, storage class, names | 301, 307, 404, 405, 501 | configuration |
/// | quota, storage full | 507 | no_space |
/// | a digest or part that does not fit | | corrupt_in_flight |
/// | slow down, too many requests, a conflict with another request | 409, 429, 500, 503 | remote_busy |
/// | timeouts of gateways; a 404 in no words of S3's | 404, 408, 502, 504 | network |
/// | anything else | | configuration |
fn judge(status: u16, code: &str) -> (ErrorClass, &'static str) {
    let skew = "its clock and ours differ; set both by NTP";
    let keys = "it does not accept our credentials, or they have no right to this; renew them or their rights";
    match (code, status) {
        ("RequestTimeTooSkewed" | "RequestExpired" | "RequestInTheFuture", _) => (ErrorClass::Configuration, skew),
        ("RequestTimeout" | "RequestTimeoutException", _) => (ErrorClass::Network, "it waited too long for our bytes"),
        ("NoSuchBucket" | "InvalidBucketName", _) => {
            (ErrorClass::Configuration, "there is no such bucket; make it, or correct the settings")
        }
        ("AuthorizationHeaderMalformed" | "PermanentRedirect" | "IllegalLocationConstraintException", _) => {
            (ErrorClass::Configuration, "the bucket is of another region or endpoint; correct the settings")
        }
        ("InvalidStorageClass", _) => (ErrorClass::Configuration, "it does not know the storage class"),
        ("InvalidObjectState", _) => {
            (ErrorClass::Configuration, "the object was moved to a class that must be restored before it is read")
        }
        ("InvalidRequest" | "InvalidArgument" | "NotImplemented", _) => (
            ErrorClass::Configuration,
            "it does not know something we ask for; try checksum = \"content_md5\", no object lock, no storage class",
        ),
        ("NoSuchKey", _) => (ErrorClass::MissingSource, "it is not there"),
        ("QuotaExceeded" | "InsufficientStorage" | "StorageFull" | "XMinioStorageFull" | "TooMuchData", _)
        | (_, 507) => (ErrorClass::NoSpace, "no space or quota is left"),
        (
            "BadDigest"
            | "InvalidDigest"
            | "InvalidPart"
            | "InvalidPartOrder"
            | "XAmzContentSHA256Mismatch"
            | "XAmzContentChecksumMismatch"
            | "IncompleteBody",
            _,
        ) => (ErrorClass::CorruptInFlight, "other bytes arrived than were sent"),
        (
            "SlowDown" | "ServiceUnavailable" | "OperationAborted" | "ConditionalRequestConflict" | "InternalError",
            _,
        )
        | (_, 409 | 429 | 500 | 503) => (ErrorClass::RemoteBusy, "it takes no more now"),
        (
            "AccessDenied"
            | "InvalidAccessKeyId"
            | "SignatureDoesNotMatch"
            | "ExpiredToken"
            | "InvalidToken"
            | "InvalidSecurity"
            | "TokenRefreshRequired"
            | "AccountProblem",
            _,
        )
        | (_, 401 | 403) => (ErrorClass::Authentication, keys),
        (_, 408 | 502 | 504) => (ErrorClass::Network, "a gateway before it gave up"),
        ("NoSuchUpload", _) => (ErrorClass::RemoteBusy, "somebody removed the upload; the next attempt begins anew"),
        ("" | "NotFound", 404) => {
            (ErrorClass::Network, "no S3 store says so; see what stands before it, and whether the endpoint is S3's")
        }
        (_, 404) => (ErrorClass::Configuration, "the endpoint knows no such place; is it S3's?"),
        (_, 301 | 302 | 307 | 308) => (ErrorClass::Configuration, "it sends us elsewhere; correct endpoint and region"),
        _ => (ErrorClass::Configuration, "it refuses"),
    }
}

fn says(error: &dyn Error, word: &str) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.to_string().to_ascii_lowercase().contains(word) {
            return true;
        }
        next = error.source();
    }
    false
}

/// A file of a package that cannot be read.
pub(super) fn of_source(error: &DiskError) -> ArchiveError {
    failure::of_source("cannot read the package that is to be archived", error)
}

/// A file that is made of what an archive holds.
pub(super) fn of_copy(error: &DiskError) -> ArchiveError {
    failure::of_disk("cannot write what is copied out of the archive", error)
}

pub(super) fn cancelled() -> ArchiveError {
    failure::cancelled("what the store acknowledged is kept for the next attempt")
}

pub(super) fn bug(text: impl Into<String>) -> ArchiveError {
    ArchiveError::new(ErrorClass::Bug, text)
}

/// Of what a store says for a human; enough for any, and no page of HTML.
const MAX_SAID_CHARS: usize = 300;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stores_say_decides_about_the_next_attempt() {
        for (code, status, class) in [
            ("SlowDown", 503, ErrorClass::RemoteBusy),
            ("", 503, ErrorClass::RemoteBusy),
            ("TooManyRequests", 429, ErrorClass::RemoteBusy),
            ("InternalError", 500, ErrorClass::RemoteBusy),
            ("InvalidAccessKeyId", 403, ErrorClass::Authentication),
            ("SignatureDoesNotMatch", 403, ErrorClass::Authentication),
            ("ExpiredToken", 400, ErrorClass::Authentication),
            ("", 403, ErrorClass::Authentication),
            ("RequestTimeTooSkewed", 403, ErrorClass::Configuration),
            ("NoSuchBucket", 404, ErrorClass::Configuration),
            ("", 404, ErrorClass::Network),
            ("NotFound", 404, ErrorClass::Network),
            ("NoSuchUpload", 404, ErrorClass::RemoteBusy),
            ("NoSuchKey", 404, ErrorClass::MissingSource),
            ("QuotaExceeded", 403, ErrorClass::NoSpace),
            ("", 507, ErrorClass::NoSpace),
            ("BadDigest", 400, ErrorClass::CorruptInFlight),
            ("RequestTimeout", 400, ErrorClass::Network),
            ("", 502, ErrorClass::Network),
            ("SomethingNew", 400, ErrorClass::Configuration),
        ] {
            assert_eq!(judge(status, code).0, class, "{code} {status}");
        }
    }
}
