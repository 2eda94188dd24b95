//! Part of the sample lake: the prompt budget.

pub fn trim_context() -> Result<(), Error> {
    Ok(())
}
