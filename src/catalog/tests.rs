use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::batch::{Bits, Strings, TableBatch};
use crate::format::payload::{PayloadView, encode};

fn column(name: &str, values: Values) -> Column {
    Column { name: name.into(), tag: false, values, validity: None, defines: false }
}

fn batch(columns: Vec<Column>) -> ValidBatch {
    ValidBatch::new("db".into(), vec![TableBatch { table: "t".into(), time: vec![1], columns }]).unwrap()
}

fn int(v: i64) -> ValidBatch {
    batch(vec![column("x", Values::Int64(vec![v]))])
}

fn float(v: f64) -> ValidBatch {
    batch(vec![column("x", Values::Float64(vec![v]))])
}

fn text() -> ValidBatch {
    batch(vec![column("x", Values::Utf8(Strings { lengths: vec![1], bytes: b"a".to_vec() }))])
}

fn catalog() -> Arc<Catalog> {
    Catalog::new(4, 2)
}

fn now(c: &Arc<Catalog>, b: &mut ValidBatch) -> Reservation {
    c.try_resolve(b).unwrap().expect("no wait")
}

#[test]
fn a_definition_takes_effect_with_its_record_and_is_undone_with_it() {
    let c = catalog();
    let mut b = int(1);
    let r = now(&c, &mut b);
    assert!(b.tables()[0].columns[0].defines && r.defines());
    drop(r);
    assert!(c.entries().is_empty());
    let mut t = text();
    now(&c, &mut t).settle(5);
    let e = c.entries();
    assert_eq!((e[0].since, e[0].columns[0].ty), (5, ColumnType::Utf8 as u8));
    assert!(matches!(c.try_resolve(&mut int(1)), Err(RequestError::Invalid(m)) if m.contains("'x' is string") && m.contains("int64")));
    let mut again = text();
    let r = now(&c, &mut again);
    assert!(r.is_empty() && !again.tables()[0].columns[0].defines);
}

#[test]
fn a_conflict_with_a_reservation_alone_waits_for_its_outcome() {
    let c = catalog();
    let held = now(&c, &mut int(1));
    assert!(c.try_resolve(&mut text()).unwrap().is_none());
    let rt = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    rt.block_on(async {
        let c2 = Arc::clone(&c);
        let waiter = tokio::spawn(async move { c2.resolve(&mut text()).await.map(|r| r.settle(9)) });
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(!waiter.is_finished());
        drop(held);
        waiter.await.unwrap().unwrap();
    });
    assert_eq!(c.entries()[0].columns[0].ty, ColumnType::Utf8 as u8);
}

#[test]
fn two_first_writers_of_a_column_both_carry_its_definition() {
    let c = catalog();
    let (mut a, mut b) = (int(1), int(2));
    let (ra, rb) = (now(&c, &mut a), now(&c, &mut b));
    assert!(a.tables()[0].columns[0].defines && b.tables()[0].columns[0].defines);
    drop(ra);
    rb.settle(3);
    assert_eq!(c.entries()[0].columns[0].since, 3);
}

#[test]
fn ints_widen_to_floats_and_wide_ints_hold_the_widening_up() {
    let c = catalog();
    now(&c, &mut int(1)).settle(1);
    let wide_int = (1 << 53) + 1;
    let pin = now(&c, &mut int(wide_int));
    assert!(!pin.defines() && !pin.is_empty());
    assert!(c.try_resolve(&mut float(0.5)).unwrap().is_none(), "a wide int is on its way");
    pin.settle(2);
    let mut f = float(0.5);
    let widening = now(&c, &mut f);
    assert!(f.tables()[0].columns[0].defines);
    assert!(c.try_resolve(&mut int(wide_int)).unwrap().is_none(), "a widening is on its way");
    now(&c, &mut int(7)).settle(3);
    widening.settle(4);
    assert!(matches!(c.try_resolve(&mut int(wide_int)), Err(RequestError::Invalid(m)) if m.contains("exactly")));
    let mut i = int(7);
    assert!(now(&c, &mut i).is_empty());
    assert_eq!(i.tables()[0].columns[0].values, Values::Float64(vec![7.0]));
    assert_eq!(c.widenings("db", "t"), vec![4]);
    let types = |v| c.schema("db", "t", v, 9).iter().map(|c| c.ty).collect::<Vec<_>>();
    assert_eq!((types(0), types(1)), (vec![ColumnType::Int64 as u8], vec![ColumnType::Float64 as u8]));
}

#[test]
fn names_equal_up_to_case_and_bounds_are_refused() {
    let c = catalog();
    now(&c, &mut int(1)).settle(1);
    let named = |n: &str| batch(vec![column(n, Values::Bool(Bits::filled(1, true)))]);
    assert!(matches!(c.try_resolve(&mut named("X")), Err(RequestError::Invalid(m)) if m.contains("up to case")));
    for n in ["a", "b", "c"] {
        now(&c, &mut named(n)).settle(2);
    }
    assert!(matches!(c.try_resolve(&mut named("d")), Err(RequestError::Invalid(m)) if m.contains("max_columns")));
    let other = |t: &str| ValidBatch::new("db".into(), vec![TableBatch { table: t.into(), time: vec![1], columns: vec![] }]).unwrap();
    now(&c, &mut other("u")).settle(3);
    assert!(matches!(c.try_resolve(&mut other("v")), Err(RequestError::Invalid(m)) if m.contains("max_tables")));
}

#[test]
fn the_fold_and_the_checkpoint_give_the_same_catalog() {
    let live = catalog();
    let folded = catalog();
    let mut checkpoint = Vec::new();
    for (seq, mut b) in [(1, int(1)), (2, float(0.5)), (3, batch(vec![column("y", Values::Bool(Bits::filled(1, true)))]))] {
        let r = now(&live, &mut b);
        let e = encode(&b, None, r.defines(), 0, 1 << 20).unwrap();
        r.settle(seq);
        folded.fold(seq, &PayloadView::parse(e.payload()).unwrap()).unwrap();
        checkpoint.extend(live.take_dirty());
    }
    assert_eq!(live.entries(), folded.entries());
    let restored = catalog();
    restored.restore(&checkpoint).unwrap();
    assert_eq!(live.entries(), restored.entries());
    assert!(live.take_dirty().is_empty());
}

/// Recovery folds the records first and the checkpoint, which does not cover them, after.
#[test]
fn a_checkpoint_does_not_undo_a_widening_behind_it() {
    let before = catalog();
    now(&before, &mut int(1)).settle(1);
    let checkpoint = before.take_dirty();
    for records in [&[float(2.5)][..], &[int(3), float(2.5)]] {
        let c = catalog();
        for (s, b) in (5..).zip(records) {
            let mut b = b.clone();
            b.tables_mut()[0].columns[0].defines = true;
            let r = encode(&b, None, true, 0, 1 << 20).unwrap();
            c.fold(s, &PayloadView::parse(r.payload()).unwrap()).unwrap();
        }
        c.restore(&checkpoint).unwrap();
        let e = c.entries();
        let x = &e[0].columns[0];
        let widened = 4 + records.len() as u64;
        assert_eq!((x.ty, x.since, x.widened), (ColumnType::Float64 as u8, 1, Some(widened)));
        assert_eq!(c.schema("db", "t", 0, 9)[0].ty, ColumnType::Int64 as u8, "rows from before it keep their type");
        assert_eq!(c.take_dirty().len(), 1, "the next checkpoint has it");
    }
}

/// Names that differ in case alone: which of them is first is known with its record.
#[test]
fn a_name_that_is_reserved_in_another_case_waits_for_the_outcome() {
    let named = |name: &str| batch(vec![column(name, Values::Int64(vec![1]))]);
    let c = catalog();
    let held = now(&c, &mut named("Host"));
    assert!(c.try_resolve(&mut named("host")).unwrap().is_none());
    drop(held);
    let held = now(&c, &mut named("host"));
    assert!(c.try_resolve(&mut named("HOST")).unwrap().is_none());
    held.settle(1);
    assert!(matches!(c.try_resolve(&mut named("HOST")), Err(RequestError::Invalid(m)) if m.contains("up to case")));
    assert!(now(&c, &mut named("host")).is_empty());
}

#[test]
fn a_checkpoint_of_a_later_version_is_refused_by_the_column() {
    let columns = vec![ColumnEntry { name: "x".into(), ty: 77, tag: false, since: 1, widened: None }];
    let e = TableEntry { database: "db".into(), table: "t".into(), since: 1, columns };
    let why = catalog().restore([&e]).unwrap_err();
    assert!(why.contains("table 't': column 'x' has the unknown type 77"), "{why}");
}

fn limited(max_total_columns: usize, max_name_bytes: usize) -> Arc<Catalog> {
    Catalog::with_limits(Limits { max_columns: 100, max_tables: 100, max_total_columns, max_name_bytes })
}

fn wide_table(table: &str, columns: &[&str]) -> ValidBatch {
    let columns = columns.iter().map(|n| column(n, Values::Bool(Bits::filled(1, true)))).collect();
    ValidBatch::new("db".into(), vec![TableBatch { table: table.into(), time: vec![1], columns }]).unwrap()
}

#[test]
fn columns_of_all_tables_together_are_bounded() {
    let c = limited(3, 1000);
    now(&c, &mut wide_table("t", &["a", "b"])).settle(1);
    let held = now(&c, &mut wide_table("u", &["a"]));
    let why = c.try_resolve(&mut wide_table("v", &["a"])).unwrap_err();
    assert!(why.message().contains("beyond the 3") && why.message().contains("ingest.max_total_columns"), "{why}");
    // What is given up has not been there.
    drop(held);
    assert_eq!(c.room("db", "v").total_columns, 1);
    now(&c, &mut wide_table("v", &["Host"])).settle(2);
    assert_eq!((c.room("db", "v").total_columns, c.entries().len()), (0, 2));
    assert!(now(&c, &mut wide_table("t", &["b"])).is_empty(), "what is there already adds nothing");
    assert!(c.try_resolve(&mut wide_table("t", &["c"])).is_err());
    now(&c, &mut wide_table("w", &[])).settle(3);
}

#[test]
fn name_bytes_of_all_tables_together_are_bounded() {
    let c = limited(100, 10);
    now(&c, &mut wide_table("t", &["aaa", "bbb"])).settle(1);
    let why = c.try_resolve(&mut wide_table("u", &["cccc"])).unwrap_err();
    assert!(why.message().contains("take 5 bytes beyond the 7") && why.message().contains("ingest.max_name_bytes"), "{why}");
    // The same name again takes its bytes again: so often it stands in the checkpoint.
    assert!(c.try_resolve(&mut wide_table("u", &["aaa"])).is_err());
    now(&c, &mut wide_table("u", &["aa"])).settle(2);
    assert_eq!(c.room("db", "x").name_bytes, 0);
}

/// A limit that was lowered holds for what is new; the log opens with all it has.
#[test]
fn replay_is_never_refused_and_what_is_there_stays_usable() {
    let big = limited(100, 1000);
    let mut b = wide_table("t", &["a", "b", "c"]);
    let r = now(&big, &mut b);
    let record = encode(&b, None, r.defines(), 0, 1 << 20).unwrap();
    r.settle(1);
    for restored in [false, true] {
        let small = limited(1, 1);
        if restored {
            small.restore(&big.entries()).unwrap();
        } else {
            small.fold(1, &PayloadView::parse(record.payload()).unwrap()).unwrap();
        }
        assert_eq!(small.entries(), big.entries());
        assert!(now(&small, &mut wide_table("t", &["a", "c"])).is_empty());
        assert!(small.try_resolve(&mut wide_table("t", &["d"])).is_err());
        assert_eq!(small.room("db", "t").total_columns, 0);
    }
}

#[test]
fn tables_share_the_names_of_their_columns() {
    let c = limited(10_000, 1 << 20);
    for i in 0..50 {
        now(&c, &mut wide_table(&format!("t{i}"), &["Host", "value"])).settle(1);
    }
    let inner = crate::wal::shared::lock(&c.inner);
    let mut hosts = inner.databases.values().flat_map(|d| d.values()).filter_map(|t| t.columns.get_key_value("Host"));
    let first = hosts.next().unwrap().0;
    assert!(hosts.all(|(name, _)| Arc::ptr_eq(name, first)));
    let value = inner.databases["db"]["t0"].folded.get_key_value("value").unwrap();
    assert!(Arc::ptr_eq(value.0, value.1), "a name in lower case is one text");
    assert_eq!((inner.totals.columns, inner.totals.tables), (100, 50));
}

/// A request that fails leaves its names behind only for a while.
#[test]
fn names_of_requests_that_failed_are_forgotten() {
    let c = limited(10_000, 1 << 20);
    for i in 0..5000 {
        drop(now(&c, &mut wide_table(&format!("t{i}"), &[&format!("c{i}")])));
    }
    let inner = crate::wal::shared::lock(&c.inner);
    assert!(inner.totals.names() < 2000, "{}", inner.totals.names());
    assert_eq!((inner.totals.columns, inner.totals.tables, inner.totals.name_bytes), (0, 0, 0));
}

#[test]
fn tables_are_listed_in_pages() {
    let c = limited(10_000, 1 << 20);
    for (i, name) in ["b", "a", "d", "c"].iter().enumerate() {
        now(&c, &mut wide_table(name, &["x", "y", "z"][..i])).settle(1);
    }
    let held = now(&c, &mut wide_table("not-yet", &["x"]));
    let page = |offset, limit, columns| {
        let p = c.page(offset, limit, columns);
        assert_eq!((p.total_tables, p.total_columns), (4, 6));
        p.tables.iter().map(|t| t.table.clone()).collect::<String>()
    };
    assert_eq!(page(0, 10, 100), "abcd");
    assert_eq!((page(0, 2, 100), page(2, 2, 100), page(3, 9, 100), page(4, 9, 100)), ("ab".into(), "cd".into(), "d".into(), String::new()));
    // a has one column, b none, c three, d two: a page ends before it has more than it may, and has one table at least.
    assert_eq!((page(0, 10, 2), page(2, 10, 2), page(3, 10, 2)), ("ab".into(), "c".into(), "d".into()));
    drop(held);
}
