//! Part of the sample lake: the refresh queue.

pub fn refresh_stale() -> Result<(), Error> {
    Ok(())
}
