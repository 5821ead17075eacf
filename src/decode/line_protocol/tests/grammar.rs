//! What can be read.

use super::*;

/// A line and the row that it becomes; without a time stamp the time of receipt.
#[test]
fn lines_and_their_rows() {
    for (line, want) in [
        ("m v=1", "m v=1.0"),
        ("m v=1i", "m v=1i"),
        ("m v=-1i", "m v=-1i"),
        ("m v=007i", "m v=7i"),
        ("m v=1u", "m v=1i"),
        ("m v=9223372036854775807i", "m v=9223372036854775807i"),
        ("m v=-9223372036854775808i", "m v=-9223372036854775808i"),
        ("m v=9223372036854775807u", "m v=9223372036854775807i"),
        ("m v=00000000000000000000000000000001i", "m v=1i"),
        ("m v=0", "m v=0.0"),
        ("m v=-0", "m v=-0.0"),
        ("m v=1.5", "m v=1.5"),
        ("m v=-1.5e3", "m v=-1500.0"),
        ("m v=1e+2", "m v=100.0"),
        ("m v=1E-2", "m v=0.01"),
        ("m v=.5", "m v=0.5"),
        ("m v=-.5", "m v=-0.5"),
        ("m v=5.", "m v=5.0"),
        ("m v=123456789012345", "m v=123456789012345.0"),
        ("m v=1234567890123456789", "m v=1.2345678901234568e18"),
        ("m v=12345678901234567890123", "m v=1.2345678901234568e22"),
        ("m v=0.1000000000000000055511151231257827", "m v=0.1"),
        ("m v=1.7976931348623157e308", "m v=1.7976931348623157e308"),
        ("m v=5e-324", "m v=5e-324"),
        ("m v=1e-999", "m v=0.0"),
        ("m a=t,b=T,c=true,d=True,e=TRUE", "m a=true b=true c=true d=true e=true"),
        ("m a=f,b=F,c=false,d=False,e=FALSE", "m a=false b=false c=false d=false e=false"),
        ("m v=\"\"", "m v=\"\""),
        ("m v=\"a b,c=d\"", "m v=\"a b,c=d\""),
        ("m v=\"say \\\"hi\\\"\"", "m v=\"say \\\"hi\\\"\""),
        ("m v=\"C:\\\\x\\y\"", "m v=\"C:\\\\x\\\\y\""),
        ("m v=\"ends in a backslash\\\\\"", "m v=\"ends in a backslash\\\\\""),
        ("m v=\"\\n is no newline\"", "m v=\"\\\\n is no newline\""),
        ("m v=\"two\nlines\"", "m v=\"two\\nlines\""),
        ("m v=\"# no comment\"", "m v=\"# no comment\""),
        ("m,t=x v=1", "m #t=\"x\" v=1.0"),
        ("m,b=y,a=x v=1", "m #a=\"x\" #b=\"y\" v=1.0"),
        ("m,t=1i v=1", "m #t=\"1i\" v=1.0"),
        ("m,t=\"quoted\" v=1", "m #t=\"\\\"quoted\\\"\" v=1.0"),
        ("m,t=a\\ b\\,c\\=d v=1", "m #t=\"a b,c=d\" v=1.0"),
        ("m,t=a\\b v=1", "m #t=\"a\\\\b\" v=1.0"),
        ("m,t=a\\\\b v=1", "m #t=\"a\\\\\\\\b\" v=1.0"),
        ("m,t=a\\\\\\ b v=1", "m #t=\"a\\\\\\\\ b\" v=1.0"),
        ("m,a\\ b\\,c\\=d=x v=1", "m #a b,c=d=\"x\" v=1.0"),
        ("m a\\ b\\,c\\=d=1", "m a b,c=d=1.0"),
        ("a\\ b\\,c,t=x v=1", "a b,c #t=\"x\" v=1.0"),
        ("a=b,t=x v=1", "a=b #t=\"x\" v=1.0"),
        ("a\\=b v=1", "a\\=b v=1.0"),
        ("a\\b v=1", "a\\b v=1.0"),
        ("\"m\" \"v\"=1", "\"m\" \"v\"=1.0"),
        ("métrique,tâg=é ключ=\"значение 😀\"", "métrique #tâg=\"é\" ключ=\"значение 😀\""),
        ("cpu.load/x v=1", "cpu.load/x v=1.0"),
        ("  m  v=1  ", "m v=1.0"),
        ("\tm v=1", "m v=1.0"),
        ("m,t=x   v=1", "m #t=\"x\" v=1.0"),
        ("m v=1,v=2", "m v=2.0"),
        ("m v=1,w=5,v=\"x\"", "m v=\"x\" w=5.0"),
        ("m v=1,v=2i,v=t", "m v=true"),
        ("m,v=x v=1", "m #v=\"x\" v_value=1.0"),
        ("m,v=x v=1,v=2", "m #v=\"x\" v_value=2.0"),
        ("m date=1,hour=2,Date\\ x=3", "m Date x=3.0 date_value=1.0 hour_value=2.0"),
        ("m,date=x v=1", "m #date_value=\"x\" v=1.0"),
        ("m,date=x date=1", "m #date_value=\"x\" date_value_value=1.0"),
        ("m,_x=1 _y=1", "m #_x=\"1\" _y=1.0"),
        ("m v=1\r", "m v=1.0"),
    ] {
        let lines = read(line);
        assert_eq!(rows(&lines), [format!("{want} {NOW}")], "{line:?}");
        assert_eq!(lines.report, Report { lines: 1, ..Report::default() }, "{line:?}");
        // The same with a time stamp, with a newline, twice, and between others.
        let stamped = line.trim_end_matches(['\r', ' ']);
        for end in ["", "\n", "\r\n", "  \n"] {
            let body = format!("{stamped} 1234567{end}");
            assert_eq!(rows(&read(&body)), [format!("{want} 1234")], "{body:?}");
        }
        let many = format!("{stamped} 1000\n{stamped} 2000\r\n{stamped} 3000\n\n{stamped} 4000");
        assert_eq!(rows(&read(&many)), [1, 2, 3, 4].map(|t| format!("{want} {t}")), "{line:?}");
        let between = format!("other a=1 5000\n{stamped} 1000\nother,x=y a=2 6000\n{stamped} 2000");
        let all = rows(&read(&between));
        assert_eq!(all.len(), 4);
        assert_eq!((all[2].as_str(), all[3].as_str()), (format!("{want} 1").as_str(), format!("{want} 2").as_str()), "{line:?}");
    }
}

#[test]
fn what_is_not_a_line() {
    for body in ["", "\n", "\r\n", "  \n\t\n", "# v=1", "#\n  # x\n#\r\n", "\n\n\n", "\r"] {
        let lines = read(body);
        let comments = body.matches('#').count() as u64;
        assert_eq!((lines.tables.len(), lines.report), (0, Report { comments, ..Report::default() }), "{body:?}");
    }
    let lines = read("#c\nm v=1 1000\n \n#c v=\"\nm v=2 2000\r\n\r\n  # x\nm v=3 3000");
    assert_eq!(rows(&lines), ["m v=1.0 1", "m v=2.0 2", "m v=3.0 3"]);
    assert_eq!((lines.report.lines, lines.report.comments), (3, 3));
}

#[test]
fn times_in_every_precision() {
    use Precision::*;
    for (precision, stamp, want) in [
        (Nanos, "1999", 1i64),
        (Nanos, "-1", -1),
        (Nanos, "9223372036854775807", 9_223_372_036_854_775),
        (Nanos, "-9223372036854775808", -9_223_372_036_854_776),
        (Nanos, "0", 0),
        (Nanos, "-0", 0),
        (Nanos, "0000000000000000000000000001000", 1),
        (Micros, "1767225600123456", 1_767_225_600_123_456),
        (Millis, "1767225600123", 1_767_225_600_123_000),
        (Seconds, "1767225600", 1_767_225_600_000_000),
        (Seconds, "253402300799", 253_402_300_799_000_000),
        (Seconds, "-62135596800", -62_135_596_800_000_000),
        (Minutes, "29453760", 1_767_225_600_000_000),
        (Hours, "490896", 1_767_225_600_000_000),
        (Auto, "4999999999", 4_999_999_999_000_000),
        (Auto, "5000000000", 5_000_000_000_000),
        (Auto, "4999999999999", 4_999_999_999_999_000),
        (Auto, "5000000000000", 5_000_000_000_000),
        (Auto, "4999999999999999", 4_999_999_999_999_999),
        (Auto, "5000000000000000", 5_000_000_000_000),
        (Auto, "-4999999999", -4_999_999_999_000_000),
    ] {
        // The year 2128 and later is fine, but one request holds no more than so many hours.
        let lines = read_with(format!("m v=1 {stamp}").as_bytes(), &options(precision), &Empty);
        assert_eq!(rows(&lines), [format!("m v=1.0 {want}")], "{precision:?} {stamp}");
    }
    // Magnitude is judged line by line.
    let lines = read_with(b"m v=1 1767225600\nm v=1 1767225600000000000", &options(Auto), &Empty);
    assert_eq!(lines.tables[0].time, [1_767_225_600_000_000; 2]);
}

#[test]
fn rows_that_leave_columns_out_have_nulls() {
    let lines = read("m,a=x v=1 1000\nm w=2i 2000\nm,b=y v=3,w=4i 3000\nm,a=z u=t 4000");
    assert_eq!(rows(&lines), ["m #a=\"x\" v=1.0 1", "m w=2i 2", "m #b=\"y\" v=3.0 w=4i 3", "m #a=\"z\" u=true 4"]);
    let tags: Vec<&str> = lines.tables[0].columns.iter().filter(|c| c.tag).map(|c| c.name.as_str()).collect();
    assert_eq!(tags, ["a", "b"]);
}

#[test]
fn integers_and_floats_mix_where_nothing_is_lost() {
    let lines = read("m v=1i 1000\nm v=2.5 2000\nm v=3i 3000");
    assert_eq!(rows(&lines), ["m v=1.0 1", "m v=2.5 2", "m v=3.0 3"]);
    let lines = read("m v=1.5 1000\nm v=9007199254740993i 2000\nm v=4i 3000");
    assert_eq!(rows(&lines), ["m v=1.5 1", "m v=4.0 3"]);
    assert_eq!((messages(&lines)[0].0, lines.report.conflicts), (2, 1));
    // The later line is the one that does not fit.
    let lines = read("m v=9007199254740993i 1000\nm v=1.5 2000\nm v=4i 3000");
    assert_eq!(rows(&lines), ["m v=9007199254740993i 1", "m v=4i 3"]);
    assert!(messages(&lines)[0].1.contains("float64 cannot represent"), "{:?}", messages(&lines));
}

/// A tag in one line, a field in another: one column, if the types allow.
#[test]
fn one_name_for_tag_and_field_of_different_lines() {
    let lines = read("m,a=x v=1 1000\nm a=\"y\" 2000\nm a=3 3000");
    assert_eq!(rows(&lines), ["m #a=\"x\" v=1.0 1", "m #a=\"y\" 2"]);
    assert_eq!(lines.report.conflicts, 1);
}

struct Typed(Option<ColumnType>);

impl Known for Typed {
    fn room(&self, table: &str) -> Room {
        Room {
            known: table == "old",
            columns: if table == "old" { 1 } else { 2 },
            tables: 1,
            total_columns: usize::MAX,
            name_bytes: usize::MAX,
        }
    }

    fn look(&self, table: &str, column: &str) -> Look {
        match (table, column, self.0) {
            ("old", "v", Some(ty)) => Look::Typed(ty),
            ("old", "V", Some(_)) => Look::Folded("v".into()),
            ("old", "r", _) => Look::New { reserved: true },
            _ => Look::New { reserved: false },
        }
    }
}

#[test]
fn what_the_database_holds_decides() {
    use ColumnType::*;
    let body = b"old v=1i 1000\nold v=\"x\" 2000\nold v=1.5 3000\nold v=t 4000\nold v=9007199254740993i 5000";
    for (ty, want, refused) in [
        (Int64, vec!["old v=1.0 1", "old v=1.5 3"], vec![2, 4, 5]),
        (Float64, vec!["old v=1.0 1", "old v=1.5 3"], vec![2, 4, 5]),
        (Utf8, vec!["old v=\"x\" 2"], vec![1, 3, 4, 5]),
        (Bool, vec!["old v=true 4"], vec![1, 2, 3, 5]),
        (Binary, vec![], vec![1, 2, 3, 4, 5]),
    ] {
        let lines = read_with(body, &options(Precision::Nanos), &Typed(Some(ty)));
        assert_eq!(rows(&lines), want, "{ty}");
        assert_eq!(messages(&lines).iter().map(|(l, _)| *l).collect::<Vec<_>>(), refused, "{ty}");
        assert!(lines.report.only_conflicts());
    }
    let known = Typed(Some(Float64));
    let lines = read_with(
        b"old V=1\nold a=1 1000\nold b=1\nold r=1 2000\nold v=1 3000\nnew a=1 4000\nnewer a=1\nnew b=1,c=2",
        &options(Precision::Nanos),
        &known,
    );
    assert_eq!(rows(&lines), ["old a=1.0 1", "old r=1.0 2", "old v=1.0 3", "new a=1.0 4"]);
    let told = messages(&lines);
    assert_eq!(told.iter().map(|(l, _)| *l).collect::<Vec<_>>(), [1, 3, 7, 8]);
    assert!(told[0].1.contains("case") && told[1].1.contains("ingest.max_columns") && told[2].1.contains("ingest.max_tables"), "{told:?}");
    assert_eq!(lines.report.conflicts, 0);
}

/// Lines whose keys repeat, in every order, with every type: the short cut is compared with the long way in `read`.
#[test]
fn shapes_that_alternate() {
    let shapes = [
        "cpu,host=h{},region=eu usage={},idle={}i",
        "cpu,host=h{} usage={},idle={}i",
        "mem,host=h{} used={},text=\"t{}\"",
        "mem,host=h{} used={},text=\"new\nline{}\"",
        "disk,host=h{} free={},ok={}",
        "disk free={},ok={},n={}",
    ];
    let mut body = String::new();
    for i in 0..400usize {
        let mut n = i;
        let shape = shapes[(i * i + i / 7) % shapes.len()];
        for part in shape.split_inclusive("{}") {
            let value = if part.ends_with("ok={}") { ["t", "false"][i % 2].to_owned() } else { (n % 10).to_string() };
            body.push_str(&part.replace("{}", &value));
            n /= 3;
        }
        body.push_str(&format!(" {}\n", i * 1000));
    }
    let lines = read(&body);
    assert_eq!(lines.report, Report { lines: 400, ..Report::default() });
    assert_eq!(lines.tables.iter().map(TableBatch::rows).sum::<usize>(), 400);
}

#[test]
fn byte_order_marks_before_lines_are_skipped() {
    let lines = read("\u{feff}cpu v=1 1000\n\u{feff}# comment\n \u{feff}\u{feff} cpu v=2 2000\n\u{feff}\ncpu v=3 3000\n\u{feff}");
    assert_eq!(rows(&lines), ["cpu v=1.0 1", "cpu v=2.0 2", "cpu v=3.0 3"]);
    assert_eq!((lines.report.lines, lines.report.bad, lines.report.comments), (3, 0, 1));
    // Line numbers count what is skipped.
    assert_eq!(messages(&read("\u{feff}cpu v=1\n\u{feff}cpu v=x"))[0].0, 2);
    // In a string it is text.
    assert_eq!(rows(&read("m s=\"\u{feff}a\n\u{feff}b\" 1000")), ["m s=\"\\u{feff}a\\n\\u{feff}b\" 1"]);
}

#[test]
fn a_backslash_before_a_hash_makes_a_name_of_it() {
    let lines = read(
        "\\#/0.1L,id=pm25 v=12 1000\n#/0.1L,id=pm25 v=13 2000\n  \\#/0.1L,id=pm25 v=14 3000\n\\#x\\ y v=1 4000\nm\\#n v=1 5000\n\\\\#m v=1 6000",
    );
    let want = ["#/0.1L #id=\"pm25\" v=12.0 1", "#/0.1L #id=\"pm25\" v=14.0 3", "#x y v=1.0 4", "m\\#n v=1.0 5", "\\\\#m v=1.0 6"];
    assert_eq!(rows(&lines), want);
    assert_eq!((lines.report.lines, lines.report.comments), (5, 1));
    assert_eq!(messages(&read("\\#"))[0].1, "missing fields: expected a space and at least one field, found the end of the line");
}

#[test]
fn unsigned_integers_above_int64_need_a_float_column_or_are_saturated() {
    let exact = "9223372036854775808u";
    let body =
        format!("m v=1.5 1000\nm v={exact} 2000\nm v=18446744073709551615u 3000\nm w={exact},x=1 4000\nm v=1i 5000\nm w={exact},w=1i 6000");
    let lines = read(&body);
    assert_eq!(rows(&lines), ["m v=1.5 1", "m v=9.223372036854776e18 2", "m v=1.0 5", "m w=1i 6"]);
    let told = messages(&lines);
    assert_eq!(told.iter().map(|(l, _)| *l).collect::<Vec<_>>(), [3, 4]);
    assert!(told[0].1.contains("float64, which cannot represent 18446744073709551615"), "{told:?}");
    assert!(told[1].1.contains("field 'w' is 9223372036854775808u") && told[1].1.contains("ingest.large_unsigned"), "{told:?}");
    assert_eq!(lines.report.conflicts, 1);
    let saturate = LineOptions { large_unsigned: LargeUnsigned::Saturate, ..options(Precision::Nanos) };
    let lines = read_with(body.as_bytes(), &saturate, &Empty);
    let want = [
        "m v=1.5 1",
        "m v=9.223372036854776e18 2",
        "m v=9.223372036854776e18 3",
        "m w=9223372036854775807i x=1.0 4",
        "m v=1.0 5",
        "m w=1i 6",
    ];
    assert_eq!(rows(&lines), want);
    assert_eq!((lines.report.bad, lines.report.saturated), (0, 2));
}
