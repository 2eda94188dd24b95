//! Part of the sample lake: the rule set.

pub fn check_rule() -> Result<(), Error> {
    Ok(())
}
