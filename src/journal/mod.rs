//! Part files and the resume journal.
