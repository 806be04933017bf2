//! Files beneath a root.
