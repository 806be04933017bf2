//! What a running serve accepts, and for whom.
