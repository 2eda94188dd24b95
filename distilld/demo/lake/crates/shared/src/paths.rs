//! Part of the sample lake: the partition layout.

pub fn partition_path() -> Result<(), Error> {
    Ok(())
}
