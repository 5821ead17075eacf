use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Fault, Rates, SimDisk};
use crate::clock::SimClock;
use crate::vfs::{Engine, SyncMode, Vfs};

fn disk(seed: u64) -> SimDisk {
    SimDisk::new(seed, SimClock::new(seed, 0), |p| p.extension().is_some_and(|e| e == "wal"))
}

fn p(name: &str) -> PathBuf {
    Path::new("/d").join(name)
}

/// A durable file of two sectors of `1`, then both written with `2`.
fn half_done(seed: u64) -> (SimDisk, Arc<dyn Vfs>) {
    let d = disk(seed);
    let vfs = d.vfs();
    vfs.create_dir_all(Path::new("/d")).unwrap();
    let f = vfs.create_new(&p("f")).unwrap();
    f.write_all_at(&[&[1; 1024]], 0).unwrap();
    f.sync(SyncMode::Data).unwrap();
    vfs.sync_dir(Path::new("/d")).unwrap();
    f.write_all_at(&[&[2; 1024]], 0).unwrap();
    (d, vfs)
}

#[test]
fn what_is_synced_survives_and_what_is_not_is_old_new_or_garbage_by_sector() {
    let mut seen = BTreeSet::new();
    for seed in 0..300 {
        let (d, _) = half_done(seed);
        d.crash();
        let c = d.content(&p("f")).unwrap();
        assert_eq!(c.len(), 1024);
        let kind = |s: &[u8]| {
            if s.iter().all(|b| *b == 1) {
                'o'
            } else if s.iter().all(|b| *b == 2) {
                'n'
            } else {
                'g'
            }
        };
        seen.insert([kind(&c[..512]), kind(&c[512..])]);
    }
    assert_eq!(seen.len(), 9, "{seen:?}");
    for seed in 0..50 {
        let (d, vfs) = half_done(seed);
        vfs.open(&p("f"), true).unwrap().sync(SyncMode::Full).unwrap();
        d.crash();
        assert_eq!(d.content(&p("f")).unwrap(), [2; 1024]);
    }
}

#[test]
fn a_name_is_there_or_not_until_its_directory_is_synced() {
    let (mut gone, mut there) = (0, 0);
    for seed in 0..100 {
        let d = disk(seed);
        let vfs = d.vfs();
        vfs.create_dir_all(Path::new("/d")).unwrap();
        vfs.create_new(&p("f")).unwrap().sync(SyncMode::Full).unwrap();
        if seed % 2 == 0 {
            vfs.sync_dir(Path::new("/d")).unwrap();
        }
        d.crash();
        let found = d.content(&p("f")).is_some();
        assert!(found || seed % 2 == 1, "synced and gone");
        if seed % 2 == 1 {
            if found { there += 1 } else { gone += 1 }
        }
    }
    assert!(gone > 5 && there > 5, "{gone} {there}");
}

/// The old name, the new one, or both: never none.
#[test]
fn a_rename_into_another_directory_keeps_the_file() {
    let mut seen = BTreeSet::new();
    for seed in 0..200 {
        let d = disk(seed);
        let vfs = d.vfs();
        vfs.create_dir_all(Path::new("/d/pool")).unwrap();
        vfs.create_new(&p("f")).unwrap();
        vfs.sync_dir(Path::new("/d")).unwrap();
        vfs.rename(&p("f"), &p("pool/g")).unwrap();
        if seed % 3 == 0 {
            vfs.sync_dir(Path::new("/d")).unwrap();
        }
        d.crash();
        let names = (d.content(&p("f")).is_some(), d.content(&p("pool/g")).is_some());
        assert!(names.0 || names.1);
        assert!(seed % 3 != 0 || names == (false, true));
        seen.insert(names);
    }
    assert_eq!(seen.len(), 3);
}

#[test]
fn after_a_failed_sync_a_second_one_may_succeed_without_the_data() {
    let mut lost = 0;
    for seed in 0..100 {
        let (d, vfs) = half_done(seed);
        let f = vfs.open(&p("f"), true).unwrap();
        d.script(d.calls() + 1, Fault::Errno(libc::EIO));
        assert!(f.sync(SyncMode::Data).is_err());
        assert_eq!(d.content(&p("f")).unwrap(), [2; 1024], "the page cache still shows it");
        f.sync(SyncMode::Data).unwrap();
        d.crash();
        if d.content(&p("f")).unwrap() != [2; 1024] {
            lost += 1;
        }
    }
    assert!(lost > 10, "{lost}");
}

#[test]
fn a_kill_keeps_what_was_written_and_old_handles_do_nothing() {
    let (d, vfs) = half_done(1);
    let f = vfs.open(&p("f"), true).unwrap();
    let held = vfs.lock(&p("LOCK")).unwrap().unwrap();
    assert!(vfs.lock(&p("LOCK")).unwrap().is_none());
    d.kill();
    assert!(f.write_all_at(&[b"x"], 0).is_err() && vfs.list(Path::new("/d")).is_err());
    assert_eq!(d.content(&p("f")).unwrap(), [2; 1024]);
    assert!(d.vfs().lock(&p("LOCK")).unwrap().is_some(), "the lock died with its process");
    drop(held);
}

#[test]
fn a_scripted_crash_stops_everything_from_that_call_on() {
    for (fault, expected) in [(Fault::CrashBefore, 1), (Fault::CrashAfter, 2)] {
        let (d, vfs) = half_done(3);
        let f = vfs.open(&p("f"), true).unwrap();
        d.script(d.calls() + 1, fault);
        assert!(f.sync(SyncMode::Data).is_err() && d.is_off());
        assert!(f.write_all_at(&[b"later"], 0).is_err());
        let c = d.durable_copy(|_| true).content(&p("f")).unwrap();
        assert_eq!(c, [expected; 1024]);
    }
}

#[test]
#[should_panic(expected = "block-aligned-groups")]
fn writing_a_synced_block_of_a_segment_again_is_caught() {
    let d = disk(1);
    let vfs = d.vfs();
    vfs.create_dir_all(Path::new("/d")).unwrap();
    let f = vfs.create_new(&p("spare.tmp")).unwrap();
    f.allocate(16384).unwrap();
    f.write_all_at(&[b"header"], 0).unwrap();
    f.sync(SyncMode::Full).unwrap();
    f.write_all_at(&[b"other header"], 0).unwrap();
    vfs.rename(&p("spare.tmp"), &p("seg.wal")).unwrap();
    let mut w = f.appender(Engine::Pwrite, SyncMode::Data).unwrap();
    w.write(&[b"group"], 8192).unwrap();
    w.write(&[b"same block, not synced"], 8200).unwrap();
    w.sync().unwrap();
    w.write(&[b"same block"], 8300).unwrap();
}

#[test]
fn a_full_disk_and_random_faults_are_those_that_were_asked_for() {
    let (d, vfs) = half_done(1);
    d.set_capacity(4096);
    let f = vfs.open(&p("f"), true).unwrap();
    assert_eq!(f.allocate(8192).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    vfs.remove(&p("f")).unwrap();
    assert_eq!(d.used(), 0);
    d.set_rates(Rates { name_error: 1000, ..Rates::default() });
    assert!(vfs.create_new(&p("g")).is_err());
    assert_eq!(d.injected().get("error on a name"), Some(&1));
}

#[test]
fn a_directory_whose_sync_failed_is_durable_before_anything_stands_in_it() {
    let d = disk(1);
    // The directory is made, its parent's sync fails; the next start finds it.
    d.script(3, Fault::Errno(libc::EIO));
    assert!(d.vfs().create_dir_all(Path::new("/data/wal")).is_err());
    d.kill();
    d.vfs().create_dir_all(Path::new("/data/wal")).unwrap();
    d.crash();
    assert!(d.vfs().list(Path::new("/data/wal")).is_ok());
}
