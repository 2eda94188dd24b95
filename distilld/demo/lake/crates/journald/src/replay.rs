//! Part of the sample lake: the replay cursor.

pub fn replay_from() -> Result<(), Error> {
    Ok(())
}
