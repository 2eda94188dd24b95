//! Part of the sample lake: the duplicate filter.

pub fn fingerprint() -> Result<(), Error> {
    Ok(())
}
