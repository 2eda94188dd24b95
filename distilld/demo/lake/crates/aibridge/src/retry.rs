//! Part of the sample lake: the fallback ladder.

pub fn with_fallback() -> Result<(), Error> {
    Ok(())
}
