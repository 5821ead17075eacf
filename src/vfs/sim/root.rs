//! [`Root`] on the simulated disk: a lake whose path can be led elsewhere, and whose directories lose what was not synced.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::calls::{SimVfs, errno};
use super::names::{Directory, NameOp, Target};
use super::{Disk, SimDisk};
use crate::vfs::root::{Identity, replaced};
use crate::vfs::{Dir, DirEntry, File, Root, Vfs};

impl Disk {
    /// Where a path leads to.
    fn led(&self, path: &Path) -> PathBuf {
        self.led.get(path).cloned().unwrap_or_else(|| path.to_path_buf())
    }
}

impl SimDisk {
    /// From here on `path` leads to the directory `to`, as after a mount over it, an unmount or the switch of a link; without one, to its
    /// own again. What is open stays open.
    pub fn lead(&self, path: &Path, to: Option<&Path>) {
        let mut d = self.disk();
        let Some(to) = to else {
            d.led.remove(path);
            return;
        };
        let name = to.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
        if !d.directories.contains_key(to) {
            d.directories.insert(to.to_path_buf(), Directory::default());
            if let Some(up) = to.parent().and_then(|p| d.directories.get_mut(p)) {
                up.live.insert(name.clone(), Target::Dir);
                up.durable.insert(name, Target::Dir);
            }
        }
        d.led.insert(path.to_path_buf(), to.to_path_buf());
    }

    /// Every file below the directory `root`, by its relative name.
    pub fn tree(&self, root: &Path) -> BTreeMap<String, Vec<u8>> {
        let d = self.disk();
        let mut out = BTreeMap::new();
        for (dir, names) in d.directories.range(root.to_path_buf()..).take_while(|(p, _)| p.starts_with(root)) {
            for (name, target) in &names.live {
                if let (Target::File(f), Ok(relative)) = (target, dir.join(name).strip_prefix(root))
                    && let Some(f) = d.files.get(f)
                {
                    out.insert(relative.to_string_lossy().into_owned(), f.live.clone());
                }
            }
        }
        out
    }
}

/// An open directory.
#[derive(Debug)]
pub(super) struct SimRoot {
    vfs: SimVfs,
    path: PathBuf,
    /// Which directory it is, whatever the path leads to.
    place: PathBuf,
}

impl SimRoot {
    pub(super) fn open(vfs: &SimVfs, path: &Path) -> io::Result<Self> {
        let place = vfs.disk().led(path);
        vfs.create_dir_all(&place)?;
        Ok(Self { vfs: vfs.clone(), path: path.to_path_buf(), place })
    }

    fn at(&self, dir: &str) -> PathBuf {
        if dir.is_empty() { self.place.clone() } else { self.place.join(dir) }
    }
}

impl Root for SimRoot {
    fn check(&self) -> io::Result<()> {
        let d = self.vfs.disk();
        d.alive(self.vfs.boot)?;
        if d.led(&self.path) == self.place {
            return Ok(());
        }
        let number = |inode| Identity { device: (0, 1), inode };
        Err(replaced(number(1), number(2)))
    }

    fn device(&self) -> io::Result<u64> {
        self.vfs.device(&self.place)
    }

    fn list(&self, dir: &str, most: usize) -> io::Result<(Vec<DirEntry>, bool)> {
        let mut list = self.vfs.list(&self.at(dir))?;
        let all = list.len() <= most;
        list.truncate(most);
        Ok((list, all))
    }

    fn create_dirs(&self, dir: &str) -> io::Result<()> {
        let mut at = self.place.clone();
        for part in dir.split('/').filter(|p| !p.is_empty()) {
            let mut d = self.vfs.disk();
            let up = at.clone();
            at.push(part);
            d.alive(self.vfs.boot)?;
            match d.directory(&up)?.live.get(part) {
                Some(Target::Dir) => continue,
                Some(Target::File(_)) => return Err(errno(libc::ENOTDIR)),
                None => {}
            }
            let go = d.enter(self.vfs.boot, "mkdir", &at, 0)?;
            d.next += 1;
            let link = d.next;
            let p = d.directory(&up)?;
            p.live.insert(part.to_owned(), Target::Dir);
            p.pending.push(NameOp::Link { name: part.to_owned(), target: Target::Dir, link });
            d.directories.insert(at.clone(), Directory::default());
            d.leave(go)?;
        }
        Ok(())
    }

    fn create_new(&self, dir: &str, name: &str) -> io::Result<Arc<dyn File>> {
        self.vfs.create_new(&self.at(dir).join(name))
    }

    fn open(&self, dir: &str, name: &str) -> io::Result<Arc<dyn File>> {
        self.vfs.open(&self.at(dir).join(name), false)
    }

    fn rename_new(&self, dir: &str, from: &str, to: &str) -> io::Result<bool> {
        let (from, to) = (self.at(dir).join(from), self.at(dir).join(to));
        {
            let d = self.vfs.disk();
            d.alive(self.vfs.boot)?;
            if d.find(&to).is_some() {
                return Ok(false);
            }
        }
        self.vfs.rename(&from, &to).map(|()| true)
    }

    fn remove(&self, dir: &str, name: &str) -> io::Result<()> {
        self.vfs.remove(&self.at(dir).join(name))
    }

    fn open_dir(&self, dir: &str) -> io::Result<Box<dyn Dir>> {
        let path = self.at(dir);
        let mut d = self.vfs.disk();
        d.alive(self.vfs.boot)?;
        d.directory(&path)?;
        drop(d);
        Ok(Box::new(SimDir { vfs: self.vfs.clone(), path }))
    }
}

#[derive(Debug)]
struct SimDir {
    vfs: SimVfs,
    path: PathBuf,
}

impl Dir for SimDir {
    /// A failed sync may lose what it was for: later syncs by this process succeed without it (INVARIANT(lake-sync-is-final)).
    fn sync(&self) -> io::Result<()> {
        let synced = self.vfs.sync_dir(&self.path);
        if synced.is_err() {
            let mut d = self.vfs.disk();
            if d.alive(self.vfs.boot).is_ok() && d.random.chance(500) {
                let dir = d.directory(&self.path)?;
                let lost = std::mem::take(&mut dir.pending);
                dir.forgotten.extend(lost);
                d.inject("failed sync of a directory lost names");
            }
        }
        synced
    }
}
