//! Names: what a directory shows, what of it is durable, and the operations between the two.

use std::collections::BTreeMap;

/// One name in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    File(u64),
    Dir,
}

#[derive(Clone, Debug)]
pub(super) enum NameOp {
    /// `link` numbers it, for the removal that a rename into another directory leaves behind.
    Link {
        name: String,
        target: Target,
        link: u64,
    },
    /// `after`: it has not happened unless that link has.
    Unlink {
        name: String,
        file: u64,
        after: Option<u64>,
    },
    Move {
        from: String,
        to: String,
        file: u64,
    },
}

#[derive(Debug, Default)]
pub(super) struct Directory {
    pub(super) live: BTreeMap<String, Target>,
    pub(super) durable: BTreeMap<String, Target>,
    pub(super) pending: Vec<NameOp>,
    /// Operations that a failed sync has lost: shown, and not made durable by a later sync of the same process.
    pub(super) forgotten: Vec<NameOp>,
}

impl Directory {
    pub(super) fn apply(names: &mut BTreeMap<String, Target>, op: &NameOp) {
        match op {
            NameOp::Link { name, target, .. } => {
                names.insert(name.clone(), *target);
            }
            NameOp::Unlink { name, file, .. } => {
                if names.get(name) == Some(&Target::File(*file)) {
                    names.remove(name);
                }
            }
            NameOp::Move { from, to, file } => {
                if names.get(from) == Some(&Target::File(*file)) {
                    names.remove(from);
                }
                names.insert(to.clone(), Target::File(*file));
            }
        }
    }
}
