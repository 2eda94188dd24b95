//! Part of the sample lake: the parquet scan.

pub fn scan_parquet() -> Result<(), Error> {
    Ok(())
}
