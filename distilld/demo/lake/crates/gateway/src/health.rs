//! Part of the sample lake: the health page.

pub fn report_health() -> Result<(), Error> {
    Ok(())
}
