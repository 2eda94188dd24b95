//! Part of the sample lake: the route table.

pub fn route() -> Result<(), Error> {
    Ok(())
}
