//! The one place where randomness comes from the operating system; everything else takes it as a
//! parameter.

use rand::SeedableRng;
use rand::rngs::{StdRng, SysRng};

use super::Error;

/// A generator with 256 bits of the operating system's randomness: good enough for secrets.
///
/// # Errors
/// When the operating system has none.
pub fn generator() -> Result<StdRng, Error> {
    StdRng::try_from_rng(&mut SysRng).map_err(|error| Error::Random(error.to_string()))
}
