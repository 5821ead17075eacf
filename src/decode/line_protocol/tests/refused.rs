//! What is refused, and that it costs nothing but itself.

use std::fmt::Write as _;

use super::*;
use crate::limits::MAX_COLUMNS;

/// A line and a part of what is said of it.
const BAD: &[(&str, &str)] = &[
    (",t=x v=1", "missing measurement"),
    ("m", "missing fields"),
    ("m ", "missing fields"),
    ("m,t=x", "missing fields"),
    ("m,t=x ", "missing fields"),
    ("m\\ v=1", "missing fields"),
    ("m,", "missing tag key"),
    ("m, v=1", "missing tag key"),
    ("m,=x v=1", "missing tag key"),
    ("m,,t=x v=1", "missing tag key"),
    ("m,t v=1", "missing tag value"),
    ("m,t,u=x v=1", "missing tag value"),
    ("m,t= v=1", "missing tag value"),
    ("m,t=,u=x v=1", "missing tag value"),
    ("m,t==x v=1", "missing tag value"),
    ("m,t=x,u= v=1", "missing tag value"),
    ("m,t=x, v=1", "missing tag key"),
    ("m,t=x=y v=1", "invalid tag"),
    ("m,t=x,t=y v=1", "tag 't' is given twice"),
    ("m v", "missing field value"),
    ("m v ", "missing field value"),
    ("m v=", "missing field value"),
    ("m v= 1", "missing field value"),
    ("m v=,w=1", "missing field value"),
    ("m v=1,", "missing field key"),
    ("m v=1, w=2", "missing field key"),
    ("m v=1,,w=2", "missing field key"),
    ("m =1", "missing field key"),
    ("m v=1,=2", "missing field key"),
    ("m v w=1", "missing field value"),
    ("m v,w=1", "missing field value"),
    ("m 1", "missing field value"),
    ("m v=1.5i", "invalid field value"),
    ("m v=12abc", "invalid field value"),
    ("m v=1.2.3", "invalid field value"),
    ("m v=1e", "invalid field value"),
    ("m v=e5", "invalid field value"),
    ("m v=0x10", "invalid field value"),
    ("m v=1_000", "invalid field value"),
    ("m v=-", "invalid field value"),
    ("m v=.", "invalid field value"),
    ("m v=+1", "invalid field value"),
    ("m v=+1i", "invalid field value"),
    ("m v=-i", "invalid field value"),
    ("m v=i", "invalid field value"),
    ("m v=u", "invalid field value"),
    ("m v=-1u", "invalid field value"),
    ("m v=1ii", "invalid field value"),
    ("m v=1iu", "invalid field value"),
    ("m v=tRUE", "invalid field value"),
    ("m v=yes", "invalid field value"),
    ("m v=truee", "invalid field value"),
    ("m v='x'", "invalid field value"),
    ("m v=1\t2", "invalid field value"),
    ("m v=9223372036854775808i", "outside the range of int64"),
    ("m v=-9223372036854775809i", "outside the range of int64"),
    ("m v=9223372036854775808u", "over 9223372036854775807"),
    ("m v=99999999999999999999u", "over 9223372036854775807"),
    ("m v=NaN", "expected a finite float64"),
    ("m v=nan", "expected a finite float64"),
    ("m v=inf", "expected a finite float64"),
    ("m v=+Inf", "expected a finite float64"),
    ("m v=-inf", "expected a finite float64"),
    ("m v=infinity", "expected a finite float64"),
    ("m v=1e999", "expected a finite float64"),
    ("m v=-1e999", "expected a finite float64"),
    ("m v=1.8e308", "expected a finite float64"),
    ("m v=1 x", "bad timestamp"),
    ("m v=1 1.5", "bad timestamp"),
    ("m v=1 1e3", "bad timestamp"),
    ("m v=1 +1", "bad timestamp"),
    ("m v=1 -", "bad timestamp"),
    ("m v=1 1i", "bad timestamp"),
    ("m v=1 1 1", "bad timestamp"),
    ("m v=1 1,w=2", "bad timestamp"),
    ("m v=1 w=2", "bad timestamp"),
    ("m v=1 9223372036854775808", "bad timestamp"),
    ("m v=1 -9223372036854775809", "bad timestamp"),
    ("m v=1 \u{661}", "bad timestamp"),
    ("m v=\"x", "unterminated string"),
    ("m v=\"x\\\"", "unterminated string"),
    ("m v=\"x\\\\\\\"", "unterminated string"),
    ("m v=\"x\"y", "invalid string"),
    ("m v=\"x\"\"y\"", "invalid string"),
    ("m v=\"x\"i", "invalid string"),
    ("m time=1", "'time' is the time stamp column"),
    ("m v=1,time=1i 5", "'time' is the time stamp column"),
    ("m,time=x v=1", "'time' is the time stamp column"),
    ("m TIME=1", "'time' is the time stamp column"),
    ("m v=1,V=2", "differ in case only"),
    ("m,T=x t=2", "differ in case only"),
    ("m,a=x a=1,a_value=2", "'a_value' is given twice"),
    ("m,a=x a_value=1,a=2", "'a' is given twice"),
    ("m,a=x,a_value=y a=2", "'a' is given twice"),
    ("m date=1,date_value=2", "is given twice"),
    ("m,host=a,path=C:\\ free=1i 1", "a name or a tag value cannot end in a backslash"),
    ("m,path=C:\\,host=a free=1i 1", "goes on behind the comma"),
    ("m,path=C:\\ free", "goes on behind the space"),
    ("C:\\ free=1i", "goes on behind the space"),
    ("m,a\\=b v=1", "goes on behind the '='"),
    ("m v\\=1", "goes on behind the '='"),
    ("m v=\"C:\\\" 1", "a backslash at its end is written twice"),
    ("\u{200b}cpu v=1", "invisible character U+200B"),
    ("cpu\u{feff} v=1", "invisible character U+FEFF"),
    ("m,t\u{2060}=x v=1", "invisible character U+2060"),
    ("m \u{ad}v=1", "invisible character U+00AD"),
    ("m \u{202e}v=1", "invisible character U+202E"),
    ("m\\  v=1", "white space at the beginning or the end"),
    ("m,\\ t=x v=1", "white space at the beginning or the end"),
    ("m v\u{a0}=1", "white space at the beginning or the end"),
    ("m\u{7} v=1", "control characters"),
    ("m a\u{7}=1", "control characters"),
    ("m,a\tb=1 v=1", "control characters"),
    (". v=1", "'.' and '..'"),
    (".. v=1", "'.' and '..'"),
];

/// What the value of a tag is told by names the escape, and offers none for the '='.
#[test]
fn a_backslash_before_a_space_is_said_to_escape_it() {
    let lines = read("mem,host=a,path=C:\\ free=1i 1");
    let (_, message) = messages(&lines)[0];
    assert!(message.contains("'path'") && message.contains("'C:\\ free' goes on behind the space, which the backslash"), "{message}");
    assert!(!message.contains("write '\\='"), "{message}");
}

#[test]
fn names_in_messages_stand_as_they_are() {
    let lines = read("°C v=1,v=x");
    assert!(messages(&lines)[0].1.contains("'v='"), "{:?}", messages(&lines));
    let lines = read("m °C=1i\nm °C=t\n温度 v=1,V=2\nm a\u{feff}\u{7}=1");
    let told = messages(&lines);
    assert!(told[0].1.contains("\"°C\"") && told[1].1.contains("'温度'"), "{told:?}");
    assert!(told[2].1.contains("'a\\u{feff}\\u{7}'"), "{told:?}");
}

/// The first line that is refused says what the body looks like.
#[test]
fn other_formats_are_named_once() {
    let utf16: Vec<u8> = "cpu v=1 1\ncpu v=2 2\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (body, what) in [
        (utf16.clone(), "looks like UTF-16"),
        ([&[0xff, 0xfe][..], &utf16].concat(), "looks like UTF-16"),
        (b"\x82\xa1m\xa3cpu\xa7columns\x81\xa1v\x91\x01".to_vec(), "which /api/v1/write/msgpack takes"),
        (b"{\"m\": \"cpu\"}\n{\"m\": \"cpu\"}".to_vec(), "looks like JSON"),
        (b"<html>\n<body>".to_vec(), "looks like XML"),
    ] {
        let lines = read(&body);
        assert!(lines.tables.is_empty());
        let told = messages(&lines);
        assert!(told[0].1.contains(what), "{told:?}");
        assert!(told.iter().skip(1).all(|(_, m)| !m.contains("looks like")), "{told:?}");
    }
    assert!(!messages(&read("cpu v=x"))[0].1.contains("looks like"));
}

struct Full(usize, usize);

impl Known for Full {
    fn room(&self, table: &str) -> Room {
        Room { known: table == "old", columns: 10, tables: 10, total_columns: self.0, name_bytes: self.1 }
    }

    fn look(&self, table: &str, column: &str) -> Look {
        if (table, column) == ("old", "v") { Look::Typed(ColumnType::Float64) } else { Look::New { reserved: false } }
    }
}

#[test]
fn columns_and_name_bytes_of_all_tables_are_bounded_line_by_line() {
    let body = b"old v=1 1000\nold a=1 2000\nnew b=1 3000\nnew c=1 4000\nnew b=2 5000\nold d=1 6000";
    let lines = read_with(body, &options(Precision::Nanos), &Full(2, 1000));
    assert_eq!(rows(&lines), ["old v=1.0 1", "old a=1.0 2", "new b=1.0 3", "new b=2.0 5"]);
    let told = messages(&lines);
    assert_eq!(told.iter().map(|(l, _)| *l).collect::<Vec<_>>(), [4, 6]);
    assert!(told.iter().all(|(_, m)| m.contains("ingest.max_total_columns")), "{told:?}");
    // "a", "new" and "b" have five bytes.
    let lines = read_with(body, &options(Precision::Nanos), &Full(100, 5));
    let told = messages(&lines);
    assert_eq!(told.iter().map(|(l, _)| *l).collect::<Vec<_>>(), [4, 6]);
    assert!(told.iter().all(|(_, m)| m.contains("ingest.max_name_bytes")), "{told:?}");
    let lines = read_with(body, &options(Precision::Nanos), &Full(0, 0));
    assert_eq!(lines.tables.iter().map(TableBatch::rows).sum::<usize>(), 1);
}

/// Rows, values and types around a bad line are as without it, whatever line it is.
#[test]
fn bad_lines_leave_no_trace() {
    let before = "cpu,host=a u=1i,s=\"x\" 1000\n";
    let after = "m w=1.5 3000\ncpu,host=b u=2i,s=\"y\" 4000";
    let long = [
        format!("{} v=1", "m".repeat(129)),
        format!("m {}=1", "v".repeat(257)),
        format!("m,{}=x v=1", "t".repeat(257)),
        format!("m {}", (0..101).map(|i| format!("v{i}=1")).collect::<Vec<_>>().join(",")),
    ];
    let all =
        BAD.iter().copied().chain(long.iter().zip(["128 bytes", "256 bytes", "256 bytes", "max_columns"]).map(|(l, m)| (l.as_str(), m)));
    for (line, says) in all {
        let alone = read(line);
        assert_eq!((alone.tables.len(), alone.report.lines, alone.report.bad), (0, 1, 1), "{line:?}");
        let (number, message) = messages(&alone)[0];
        assert!(number == 1 && message.contains(says), "{line:?}: {message}");
        assert!(!message.chars().any(char::is_control), "{line:?}: {message}");
        for end in ["\n", "\r\n"] {
            let lines = read(format!("{before}{line}{end}{after}"));
            assert_eq!(lines.tables, read(format!("{before}{after}")).tables, "{line:?}");
            assert_eq!((lines.report.lines, lines.report.bad, messages(&lines)[0].0), (4, 1, 2), "{line:?}");
            assert_eq!(lines.report.details[0].original.trim_end_matches("..."), &line[..line.len().min(256)]);
        }
        // Twice, and as the last line.
        let lines = read(format!("{before}{line}\n{after}\n{line}\n{line}"));
        assert_eq!((lines.tables, lines.report.bad), (read(format!("{before}{after}")).tables, 3), "{line:?}");
    }
}

/// The first good line for a column makes its type; the bad ones before and behind do not.
#[test]
fn bad_lines_define_nothing() {
    let lines = read(
        "m v=\"x\",w= 1\nm v=1,time=2\nm v=1i,w=1 1000\nm v=t 2000\nm v=\"y\" 3000\nm w=2,v=2i 4000\nm x=1,v=\"z\"\nm x=\"fine\" 5000",
    );
    assert_eq!(rows(&lines), ["m v=1i w=1.0 1", "m v=2i w=2.0 4", "m x=\"fine\" 5"]);
    let told = messages(&lines);
    assert_eq!(told.iter().map(|(l, _)| *l).collect::<Vec<_>>(), [1, 2, 4, 5, 7]);
    assert_eq!(told[2].1, "field type conflict: input field \"v\" on measurement \"m\" is type bool, already exists as type int64");
    assert_eq!(lines.report.conflicts, 3);
    // A table that only bad lines name is not there, and takes no room.
    let mut o = options(Precision::Nanos);
    o.bounds.max_tables = 1;
    let lines = read_with(b"a v=x\nb v=\nc v=1 1000\nd v=1\nc v=2 2000", &o, &Empty);
    assert_eq!(rows(&lines), ["c v=1.0 1", "c v=2.0 2"]);
    assert!(messages(&lines)[2].1.contains("ingest.max_tables"));
}

/// What stands in a string is never taken for a line, though the line around it is bad.
#[test]
fn text_in_strings_is_no_line() {
    for (body, bad_lines, want) in [
        ("m text=\"a\nevil v=1\n\",x=NaN 1000\nm v=1 2000", vec![1], vec!["m v=1.0 2"]),
        ("m text=\"a\nevil v=1\n\" nonsense\nm v=1 2000", vec![1], vec!["m v=1.0 2"]),
        ("m text=\"a\nevil v=1\n\",b=\"\nevil v=2\n\",time=1\nm v=1 2000", vec![1], vec!["m v=1.0 2"]),
        ("m f=x,text=\"a\nevil v=1\nb\" 1000\nm v=1 2000", vec![1], vec!["m v=1.0 2"]),
        ("m,t= text=\"a\nevil v=1\nb\" 1000\nm v=1 2000", vec![1], vec!["m v=1.0 2"]),
        (",t=x\\ y f=1,text=\"a\\\"\nevil v=1\nb\",g=\"\nevil v=2\" 1000\nm v=1 2000", vec![1], vec!["m v=1.0 2"]),
        ("m text=\"a\nevil v=1\nb\",\nm v=1 2000", vec![1], vec!["m v=1.0 2"]),
    ] {
        let lines = read(body);
        assert_eq!(rows(&lines), want, "{body:?}");
        assert_eq!(messages(&lines).iter().map(|(l, _)| *l).collect::<Vec<_>>(), bad_lines, "{body:?}");
        assert_eq!(lines.report.lines as usize, bad_lines.len() + want.len());
    }
    // Lines are counted through strings.
    let lines = read("m t=\"\n\n\" 1000\nbad\nm t=\"\n\",x= 5\nbad\n");
    assert_eq!(messages(&lines).iter().map(|(l, _)| *l).collect::<Vec<_>>(), [4, 5, 7]);
}

/// A quote too few or too many does not take the lines behind along.
#[test]
fn quotes_that_do_not_pair_end_with_their_line() {
    for (body, bad_lines, want) in [
        ("m v=1 1000\nm v=\"x\nm v=2 2000\nm v=3 3000", vec![2], vec!["m v=1.0 1", "m v=2.0 2", "m v=3.0 3"]),
        ("m s=\"x\nm s=\"y\" 2000\nm s=\"z\" 3000", vec![1], vec!["m s=\"y\" 2", "m s=\"z\" 3"]),
        ("m s=\"x\nm s=\"y\nm s=\"z\" 3000\nm s=\"w", vec![1, 2, 4], vec!["m s=\"z\" 3"]),
        ("m f=x,s=\"a\nm s=\"b\" 2000\nm f=x,s=\"\nm s=\"c\" 4000", vec![1, 3], vec!["m s=\"b\" 2", "m s=\"c\" 4"]),
        ("m,t=\"a f=x\nm,t=\"b f=1 2000", vec![1], vec!["m #t=\"\\\"b\" f=1.0 2"]),
        ("m s=\"x\"\" 1000\nm s=\"y\" 2000", vec![1], vec!["m s=\"y\" 2"]),
        // A backslash escapes what it escapes in a line that can be read, and nothing else.
        ("m a\\\\=\"x 1\nm s=\" y\" 2000", vec![1], vec!["m s=\" y\" 2"]),
        ("m,t=a\\\\ b=\"x 1\nm s=\" y\" 2000", vec![1], vec!["m s=\" y\" 2"]),
    ] {
        let lines = read(body);
        assert_eq!(rows(&lines), want, "{body:?}");
        assert_eq!(messages(&lines).iter().map(|(l, _)| *l).collect::<Vec<_>>(), bad_lines, "{body:?}");
    }
}

/// A column takes far more memory than the bytes that name it.
#[test]
fn columns_count_as_the_memory_they_take() {
    let options = options(Precision::Nanos);
    // 2,000 columns in 20 tables: 4 MB of memory.
    let mut body = String::new();
    for table in 0..20 {
        write!(body, "t{table} ").unwrap();
        (0..100).for_each(|column| write!(body, "c{column}=\"\",").unwrap());
        body.pop();
        body.push('\n');
    }
    assert_eq!(decode(body.as_bytes(), &options, &Empty).map(|l| l.tables.len()), Ok(20));
    let small = LineOptions { bounds: Bounds { max_bytes: 256 << 10, ..options.bounds }, ..options };
    let refused = decode(body.as_bytes(), &small, &Empty).unwrap_err();
    assert!(matches!(&refused, RequestError::TooLarge(m) if m.contains("columns so far")), "{refused:?}");
    // The columns of one table are free, and so are those that exist.
    let small = LineOptions { bounds: Bounds { max_bytes: 1024, ..options.bounds }, ..options };
    let one = body.lines().next().unwrap();
    assert!(decode(format!("{one}\n{one}").as_bytes(), &small, &Empty).is_ok());
}

/// An empty database that counts the tables it is asked for.
struct Counting(std::cell::Cell<usize>);

impl Known for Counting {
    fn room(&self, table: &str) -> Room {
        self.0.set(self.0.get() + 1);
        Empty.room(table)
    }

    fn look(&self, table: &str, column: &str) -> Look {
        Empty.look(table, column)
    }
}

#[test]
fn more_tables_than_partitions_are_refused_at_the_first_of_them() {
    let options = options(Precision::Nanos);
    let body: String = (0..10_000).fold(String::new(), |b, i| b + &format!("t{i} f=1\n"));
    let bounds = Bounds { max_tables: 10_000, max_partitions: 5, ..options.bounds };
    let known = Counting(std::cell::Cell::new(0));
    let refused = decode(body.as_bytes(), &LineOptions { bounds, ..options }, &known).unwrap_err();
    assert!(matches!(&refused, RequestError::TooLarge(m) if m.contains("more than 5 pairs")), "{refused:?}");
    assert_eq!(known.0.get(), 6, "what comes after the sixth table is not read");
}

/// Repeated keys make no columns, and yet each takes a place while its line is read.
#[test]
fn a_line_has_no_more_cells_than_a_table_has_columns() {
    let line = |n: usize| format!("m {}b=2 1000\nm c=3 2000", "a=1,".repeat(n));
    assert_eq!(rows(&read(line(MAX_COLUMNS - 1))), ["m a=1.0 b=2.0 1", "m c=3.0 2"]);
    let lines = read(line(MAX_COLUMNS));
    assert_eq!(rows(&lines), ["m c=3.0 2"]);
    assert!(messages(&lines)[0].1.contains("at most 16384"), "{:?}", messages(&lines)[0].1);
}

/// Every line opens strings that reach far: were each read to its end again, this would take hours.
#[test]
fn unpaired_quotes_cost_no_more_than_reading_twice() {
    for unit in ["m a=\"\nm a=\",b=\",\n", "m a=\"", "m a=\"\n", "m a=\"x\",b=\"\\\"\n", "m a=\"\",b=\"\",\n\"=1\n"] {
        for tail in ["", "\"", "x", "\"x"] {
            let body = format!("{}{tail}", unit.repeat(200_000 / unit.len()));
            let started = std::time::Instant::now();
            let _ = decode(body.as_bytes(), &options(Precision::Nanos), &Empty);
            let took = started.elapsed();
            assert!(took.as_secs() < 20, "{unit:?} {tail:?}: {took:?}");
        }
    }
}

#[test]
fn invalid_utf8_is_an_error_of_its_line() {
    let bodies: [&[u8]; 5] = [
        b"m v=1 1000\nm s=\"\xff\" 5\nm v=2 2000",
        b"m v=1 1000\nm,t=\xc3 v=1\nm v=2 2000",
        b"m v=1 1000\nm\xf0\x9f v=1\nm v=2 2000",
        b"m v=1 1000\nm v\xff=1\nm v=2 2000",
        b"m v=1 1000\nm v=1 \xff\nm v=2 2000",
    ];
    for body in bodies {
        let lines = read(body);
        assert_eq!(rows(&lines), ["m v=1.0 1", "m v=2.0 2"]);
        assert_eq!(messages(&lines)[0].0, 2, "{:?}", messages(&lines));
    }
    assert!(messages(&read(bodies[0]))[0].1.contains("not valid UTF-8: byte 6"));
    let lines = read(b"# \xff\nm v=1 1000");
    assert_eq!((rows(&lines), lines.report.bad), (vec!["m v=1.0 1".to_owned()], 0), "nobody reads comments");
}

#[test]
fn times_outside_the_years_1_to_9999() {
    use Precision::*;
    for (precision, stamp) in [
        (Seconds, "253402300800"),
        (Seconds, "-62135596801"),
        (Seconds, "9223372036854775807"),
        (Millis, "253402300800000"),
        (Millis, "-9223372036854775808"),
        (Micros, "253402300800000000"),
        (Minutes, "4223371680"),
        (Minutes, "9223372036854775807"),
        (Hours, "70389528"),
        (Hours, "-9223372036854775808"),
    ] {
        let lines = read_with(format!("m v=1 {stamp}\nm v=2 0").as_bytes(), &options(precision), &Empty);
        assert_eq!(rows(&lines), ["m v=2.0 0"]);
        assert!(messages(&lines)[0].1.contains("outside the years 0001 to 9999"), "{precision:?} {stamp}: {:?}", messages(&lines));
    }
}

#[test]
fn bounds_of_the_whole_request_are_413() {
    let small = |change: fn(&mut Bounds)| {
        let mut o = options(Precision::Seconds);
        change(&mut o.bounds);
        o
    };
    let hours: String = (0..9).map(|h| format!("m v=1 {}\n", h * 3600)).collect();
    let sparse: String = (0..90).map(|i| format!("m v{i}=1 {i}\n")).collect();
    for (o, body, says) in [
        (small(|b| b.max_partitions = 8), &hours, "ingest.max_partitions"),
        (small(|b| b.max_bytes = 20_000), &sparse, "leave out"),
        (small(|b| b.max_bytes = 30), &hours, "values"),
    ] {
        match decode(body.as_bytes(), &o, &Empty) {
            Err(RequestError::TooLarge(m)) => assert!(m.contains(says), "{m}"),
            other => panic!("{says}: {other:?}"),
        }
    }
}

/// Answers stay small, whatever is sent.
#[test]
fn reports_are_bounded() {
    let body = format!("{}\n", "é".repeat(1000)).repeat(5000);
    let report = read(&body).report;
    assert_eq!((report.lines, report.bad), (5000, 5000));
    assert!((50..=100).contains(&report.details.len()), "{}", report.details.len());
    assert!(report.details.iter().all(|d| d.original.len() <= 259 && d.original.ends_with("é...")));
    let report = read("x\n".repeat(5000)).report;
    assert_eq!((report.bad, report.details.len(), report.details[99].line), (5000, 100, 100));
}
