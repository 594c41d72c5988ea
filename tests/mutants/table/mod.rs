//! The faults. Each is one that somebody could make, or that the protocol was made to withstand.

mod cache;
mod destination;
mod link;
mod replay;
mod ring;
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

/// All of them: those of the protocol, its source first, then those of the ring and the link.
pub(crate) fn mutants() -> Vec<&'static Mutant> {
    let tables = [
        source::MUTANTS,
        cache::MUTANTS,
        replay::MUTANTS,
        destination::MUTANTS,
        ring::MUTANTS,
        link::MUTANTS,
    ];
    tables.into_iter().flatten().collect()
}
