//! The process's limit of open files: every attempt and every connection is one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files beside connections: the database, its log, standard streams, some room.
const OTHERS: usize = 256;

/// Raises the soft limit to the hard one, as far as the system lets us, and says so when that is less
/// than `connections` need. Shells give 1,024 for the sake of old programs; we are none of them.
pub(super) fn raise_limit(connections: usize) {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::debug!(%error, "the limit of open files cannot be raised");
        }
    }
    let needed = connections.saturating_add(OTHERS);
    let available = getrlimit(Resource::Nofile).current;
    if let Some(available) = available.filter(|available| *available < needed as u64) {
        tracing::warn!(
            available,
            needed,
            "the process may open fewer files than max-in-flight and max-connections may need: \
             raise its limit (ulimit -n, LimitNOFILE), or lower those options"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        raise_limit(1);
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }
}
