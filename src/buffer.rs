//! Fields of type [`bytes::Bytes`] that travel as an [`Array`] does: written once, and read where they
//! were put, without a copy.
//!
//! The implementation of serde's traits that comes with `Bytes` copies them, in and out of the value that
//! they are part of.
//!
//! ```
//! #[derive(serde::Serialize, serde::Deserialize)]
//! struct Image {
//!     width: u32,
//!     #[serde(with = "outray::buffer")]
//!     pixels: bytes::Bytes,
//! }
//! ```

use crate::Array;
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// For `#[serde(with = "outray::buffer")]`.
///
/// # Errors
/// The serializer's.
pub fn serialize<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    Array::from(bytes.clone()).serialize(serializer)
}

/// For `#[serde(with = "outray::buffer")]`.
///
/// # Errors
/// The deserializer's.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
    Array::<u8>::deserialize(deserializer).map(Bytes::from)
}
