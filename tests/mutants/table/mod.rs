//! The faults. Each is one that somebody could make, or that the protocol was made to withstand.

mod cache;
mod destination;
mod replay;
mod source;

/// One deliberate fault.
pub(crate) struct Mutant {
    /// What is wrong, in plain words.
    pub(crate) fault: &'static str,
    /// The file in which it is, below `src/`.
    pub(crate) file: &'static str,
    /// What is replaced by what; see [`crate::schema::Edit`].
    pub(crate) edits: &'static [(&'static str, &'static str)],
}

/// All of them, those of the source first.
pub(crate) fn mutants() -> Vec<&'static Mutant> {
    [source::MUTANTS, cache::MUTANTS, replay::MUTANTS, destination::MUTANTS].into_iter().flatten().collect()
}
