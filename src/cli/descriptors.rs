//! Open files: the limit of this process, and the number of connections that it leaves room for.
//!
//! INVARIANT(log-has-descriptors): connections, which anybody may open, never take the descriptors that the log, the lake and the store
//! need.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Config;

/// For log, manifest, spare, reserve, side segments, tokens, certificate, lake, signals, event loop and stdio: about three times as many
/// as a busy server has been seen with.
const ALWAYS: u64 = 96;
/// Files that one builder of outputs has open.
const EACH_WORKER: u64 = 4;

/// Raises the limit to what this process may have; the limit from then on, `None` for no limit.
pub fn raise() -> Option<u64> {
    let now = getrlimit(Resource::Nofile);
    if now.current != now.maximum {
        let most = Rlimit { current: now.maximum, maximum: now.maximum };
        // A kernel that has its own bound refuses; the limit stays as it was.
        let _ = setrlimit(Resource::Nofile, most);
    }
    getrlimit(Resource::Nofile).current
}

/// How many connections there may be, and what is kept back for everything else.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Share {
    pub connections: usize,
    pub reserved: u64,
    pub limit: Option<u64>,
}

/// Divides the limit. Where it is small, half is kept back.
pub fn divide(limit: Option<u64>, config: &Config) -> Share {
    let workers = match config.compaction.workers {
        0 => std::thread::available_parallelism().map_or(2, usize::from),
        n => n,
    };
    let puts = (config.storage.puts as u64).saturating_mul(config.storage.parts_in_flight as u64 + 1);
    let wanted = ALWAYS + EACH_WORKER * workers as u64 + puts;
    let reserved = limit.map_or(wanted, |l| wanted.min(l / 2));
    let room = limit.map_or(u64::MAX, |l| l - reserved);
    let connections = config.server.max_connections.min(usize::try_from(room).unwrap_or(usize::MAX)).max(1);
    Share { connections, reserved, limit }
}

/// Says so where fewer connections are possible than asked for.
pub fn warn(share: &Share, config: &Config) {
    if let (Some(limit), true) = (share.limit, share.connections < config.server.max_connections) {
        tracing::warn!(
            limit,
            reserved = share.reserved,
            "server.max_connections = {} does not fit the limit of open files: {} connections are taken; raise the limit (ulimit -n, LimitNOFILE)",
            config.server.max_connections,
            share.connections
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_descriptors_for_the_log() {
        let mut config = Config::default();
        config.compaction.workers = 2;
        for limit in [2, 16, 64, 256, 1024, 4096, 65_536] {
            let s = divide(Some(limit), &config);
            assert!(s.connections as u64 + s.reserved <= limit, "{limit}: {s:?}");
            assert!(s.connections >= 1 && s.reserved >= (limit / 2).min(ALWAYS), "{limit}: {s:?}");
        }
        assert_eq!(divide(Some(65_536), &config).connections, config.server.max_connections);
        assert_eq!(divide(None, &config).connections, config.server.max_connections);
        config.server.max_connections = 7;
        assert_eq!(divide(Some(1024), &config).connections, 7);
    }

    #[test]
    fn limit_is_raised_to_what_is_allowed() {
        assert_eq!(raise(), getrlimit(Resource::Nofile).maximum);
    }
}
