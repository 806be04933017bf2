//! What a running serve accepts, and for whom.

pub mod keyring;
mod location;
mod rights;
mod sandbox;
mod server;
mod settings;
pub mod trust;

pub use location::{Locations, PeerPlaces};
pub use rights::{Right, Rights};
pub use server::{Endpoint, Prepared, prepare, serve};
pub use settings::{DEFAULT_PORT, Grant, Location, Settings, SettingsError};
