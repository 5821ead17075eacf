//! What a store holds below a name.

use std::collections::BTreeSet;

use object_store::path::Path;

use super::errors::Failed;
use super::{MAX_SMALL, Shared, StoreOp};

impl Shared {
    /// At most `most` names directly below `dir`, sorted.
    pub(super) async fn children(&self, dir: &Path, most: usize) -> Result<Vec<String>, Failed> {
        let listed = self.repeat(StoreOp::List, dir, || self.remote.store.list_with_delimiter(Some(dir))).await?;
        let found = listed.common_prefixes.iter().chain(listed.objects.iter().map(|o| &o.location));
        // Of what is further down only the directory counts.
        let names: BTreeSet<String> = found.filter_map(|p| Some(p.prefix_match(dir)?.next()?.as_ref().to_owned())).collect();
        Ok(names.into_iter().take(most).collect())
    }

    /// A small object whole; None when there is none.
    pub(super) async fn get_small(&self, path: &Path) -> Result<Option<Vec<u8>>, Failed> {
        let mut bytes = Vec::new();
        let read = self.read(path, MAX_SMALL, |b| bytes.extend_from_slice(b)).await?;
        Ok(read.map(|_| bytes))
    }
}
