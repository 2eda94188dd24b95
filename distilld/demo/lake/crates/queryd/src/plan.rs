//! Part of the sample lake: the query plan.

pub fn plan_query() -> Result<(), Error> {
    Ok(())
}
