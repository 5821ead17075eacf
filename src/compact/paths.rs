//! Which directory a table has whose name looks like a file's.
//!
//! Version 0.1.0 gave every table the directory of [`escape_table`]. A table that has files there keeps it; others get the one of
//! [`table_directory`]. Most names have the same by both. The choice is made with a plan, whose outputs have their names in the
//! manifest, so every attempt finds the same.
//!
//! INVARIANT(one-directory-a-table): the manifest is asked first, then the lake, new directory before old: a table that has got
//! files under its new directory stays there, whichever log they are from.

use hashbrown::HashMap;

use super::builder::Trouble;
use super::name::table_directory;
use crate::batch::escape_table;
use crate::format::manifest::Plan;
use crate::sink::Sink;

/// The directories found by this process.
#[derive(Debug, Default)]
pub(super) struct TablePaths(HashMap<(Box<str>, Box<str>), String>);

impl TablePaths {
    /// The directory for new files of the table. `plans`: those that the manifest knows, newest first.
    ///
    /// # Errors
    /// The store cannot say whether it has files of the table.
    pub(super) fn directory<'p>(
        &mut self,
        sink: &dyn Sink,
        plans: impl Iterator<Item = &'p Plan>,
        database: &str,
        table: &str,
    ) -> Result<String, Trouble> {
        let (new, old) = (table_directory(table), escape_table(table));
        if new == old {
            return Ok(new);
        }
        let key = (Box::from(database), Box::from(table));
        if let Some(found) = self.0.get(&key) {
            return Ok(found.clone());
        }
        let found = find(sink, plans, database, new, old)?;
        self.0.insert(key, found.clone());
        Ok(found)
    }
}

fn find<'p>(sink: &dyn Sink, plans: impl Iterator<Item = &'p Plan>, database: &str, new: String, old: String) -> Result<String, Trouble> {
    let below = |directory: &str| format!("{database}/{directory}/");
    let (below_new, below_old) = (below(&new), below(&old));
    // Outputs that wait for the store have no files yet.
    for name in plans.flat_map(|p| &p.outputs).map(|o| &o.name) {
        if name.starts_with(&below_new) {
            return Ok(new);
        }
        if name.starts_with(&below_old) {
            return Ok(old);
        }
    }
    let holds = |directory: &str| sink.holds_any(directory.trim_end_matches('/'));
    Ok(if holds(&below_new)? || !holds(&below_old)? { new } else { old })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::manifest::{PlanOutput, PlanWriter};
    use crate::sink::SimStore;
    use crate::sink::sim::Fault;

    fn plan(names: &[&str]) -> Plan {
        let output = |name: &&str| PlanOutput { schema: 0, hour: 0, first_sequence: 1, last_sequence: 1, rows: 1, name: (*name).into() };
        let (version, compression, layout) = (String::new(), String::new(), String::new());
        Plan {
            plan: 1,
            first_sequence: 1,
            last_sequence: 1,
            inputs: vec![],
            writer: PlanWriter { version, compression, level: 1, row_group_rows: 1, row_group_bytes: None, layout, encoding: None },
            schemas: vec![],
            outputs: names.iter().map(output).collect(),
        }
    }

    #[test]
    fn manifest_then_lake_decide_which_directory_a_table_has() {
        let old = plan(&["db/cpu/x.parquet", "db/cpu.parquet/x.parquet"]);
        let new = plan(&["other/cpu.parquet/x.parquet", "db/cpu%2Eparquet/x.parquet"]);
        let find = |store: &SimStore, plans: &[&Plan]| {
            TablePaths::default().directory(store, plans.iter().copied(), "db", "cpu.parquet").map_err(|e| format!("{e:?}"))
        };
        let (no, yes) = ("cpu.parquet".to_owned(), "cpu%2Eparquet".to_owned());
        let store = SimStore::new();
        assert_eq!(find(&store, &[]), Ok(yes.clone()));
        // What was planned and is not in the lake yet, newest first.
        assert_eq!(find(&store, &[&old]), Ok(no.clone()));
        assert_eq!(find(&store, &[&new, &old]), Ok(yes.clone()));
        // Files of any log.
        store.insert("db/cpu.parquet/a.parquet", b"a");
        assert_eq!(find(&store, &[]), Ok(no.clone()));
        assert_eq!(find(&store, &[&new]), Ok(yes.clone()));
        store.insert("db/cpu%2Eparquet/b.parquet", b"b");
        assert_eq!(find(&store, &[]), Ok(yes.clone()));
        // A store that does not answer is waited for, but for names that no file has.
        store.set_faults(|_| Some(Fault::Fails(libc::ETIMEDOUT)));
        assert!(find(&store, &[]).unwrap_err().contains("Retry"));
        assert_eq!(find(&store, &[&old]), Ok(no));
        let mut paths = TablePaths::default();
        assert_eq!(paths.directory(&store, std::iter::empty(), "db", "cpu.load").ok(), Some("cpu.load".to_owned()));
        // What was found once is not asked again.
        store.clear_faults();
        assert_eq!(paths.directory(&store, std::iter::empty(), "db", "cpu.parquet").ok(), Some(yes.clone()));
        store.set_faults(|_| Some(Fault::Fails(libc::ETIMEDOUT)));
        assert_eq!(paths.directory(&store, std::iter::empty(), "db", "cpu.parquet").ok(), Some(yes));
    }
}
