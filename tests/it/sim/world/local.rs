//! A local lake on the simulated disk, in place of the simulated store.

use std::collections::BTreeMap;

use arc_ingest::compact::worker::plan_object;
use arc_ingest::sink::LocalSink;

use super::checks::{durable_manifest, file_name, is_announced, sha256};
use super::*;

pub const LAKE: &str = "/lake";
/// Where the lake's path leads to while it is unmounted.
const BELOW: &str = "/below";

impl World {
    /// The lake is a directory of the simulated disk.
    pub fn on_a_local_lake(&mut self) {
        self.local = true;
    }

    pub(super) fn local_sink(&self, log: LogId) -> Result<Arc<dyn Sink>, String> {
        let sink = LocalSink::open_on(&*self.disk.vfs(), Path::new(LAKE), log).map_err(|e| e.to_string())?;
        Ok(Arc::new(sink))
    }

    /// What is visible in the lake or the store.
    pub fn objects(&self) -> BTreeMap<String, Arc<[u8]>> {
        if !self.local {
            return self.store.objects();
        }
        let visible = |n: &String| !n.split('/').any(|p| p.starts_with('.'));
        self.disk.tree(Path::new(LAKE)).into_iter().filter(|(n, _)| visible(n)).map(|(n, b)| (n, b.into())).collect()
    }

    /// The lake is unmounted by force or mounted again.
    pub(super) fn disturb_lake(&mut self) {
        if self.local && self.random.chance(self.unmounts) {
            let away = self.random.chance(500);
            self.mount(!away);
            self.unmounted += u64::from(away);
        }
    }

    pub(super) fn mount(&self, there: bool) {
        self.disk.lead(Path::new(LAKE), if there { None } else { Some(Path::new(BELOW)) });
    }

    /// Looked at whenever a file of the lake has come, and after each crash (`always`): what is new was announced; what the durable manifest
    /// calls committed is whole in what a power cut would leave, and the plan's object with it; nothing went below the mount point.
    pub(super) fn check_lake(&mut self, always: bool) -> Result<(), String> {
        if !self.local || self.disk.is_off() {
            return Ok(());
        }
        let objects = self.objects();
        let new: Vec<&String> = objects.keys().filter(|n| !self.seen.contains(*n)).collect();
        if new.is_empty() && !always {
            return Ok(());
        }
        let loaded = durable_manifest(&self.disk)?;
        // A manifest that was written anew meanwhile has no intents of what is committed.
        let committed: BTreeMap<&str, &str> = loaded
            .iter()
            .flat_map(|l| l.state.plans.values())
            .flat_map(|p| p.commits.iter().filter_map(|(n, f)| Some((p.plan.outputs.get(*n as usize)?.name.as_str(), f.sha256.as_str()))))
            .collect();
        for name in new.iter().filter(|n| committed.get(n.as_str()).is_none_or(|c| **c != sha256(&objects[**n]))) {
            is_announced(&self.disk, &|n| objects.contains_key(n), name, &objects[*name])?;
        }
        self.seen = objects.keys().cloned().collect();
        let strays = self.disk.tree(Path::new(BELOW));
        if !strays.is_empty() {
            return Err(format!("files went below the mount point of the lake: {:?}", strays.keys()));
        }
        let Some(loaded) = loaded else { return Ok(()) };
        let left = self.disk.durable_copy(|p| files::parse_segment(&file_name(p)).is_none());
        let left = |name: &str| left.content(&Path::new(LAKE).join(name));
        for p in loaded.state.plans.values().filter(|p| !p.commits.is_empty()) {
            let object = plan_object(loaded.header.log, p.plan.plan);
            if left(&object).is_none() {
                return Err(format!("plan {} has commits, and a power cut would leave no {object}", p.plan.plan));
            }
            for (n, f) in p.commits.iter().filter(|(_, f)| f.length > 0) {
                let Some(name) = p.plan.outputs.get(*n as usize).map(|o| &o.name) else { continue };
                let Some(bytes) = left(name) else { return Err(format!("{name} is committed, and a power cut would leave nothing of it")) };
                if bytes.len() as u64 != f.length || sha256(&bytes) != f.sha256 {
                    return Err(format!("{name} is committed with {} bytes, a power cut would leave {} others", f.length, bytes.len()));
                }
            }
        }
        Ok(())
    }

    /// A directory sync of the lake has failed: this process publishes nothing any more (INVARIANT(lake-sync-is-final)).
    pub(super) fn lake_is_spoiled(&self, shared: &Shared) -> bool {
        self.local && shared.last_error().is_some_and(|e| e.contains("an earlier sync failed"))
    }
}
