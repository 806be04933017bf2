//! Links between machines.
