//! Part of the sample lake: the trial journal.

pub fn run_trial() -> Result<(), Error> {
    Ok(())
}
