//! Request bodies, built once and patched in place.
//!
//! A template is a complete body in which every `time` and `id` has a fixed width (MessagePack: a nine-byte uint64; line protocol: digits with
//! leading zeros), so that giving a request its own values overwrites bytes and moves none. The shape of a row is that of the usual metrics load: time in
//! milliseconds, three strings, three floats; plus `id`, by which `arc bench verify` finds the row again.

use super::{Encoding, Format};
use std::io;
use std::io::Write as _;

/// Different templates for each table, so that the server does not see one body again and again.
const VARIANTS: usize = 4;
const REGIONS: [&str; 3] = ["us-east", "us-west", "eu-central"];
const ENVS: [&str; 3] = ["prod", "staging", "dev"];

/// A body whose times and ids wait to be filled in.
#[derive(Clone, Debug)]
pub struct Template {
    bytes: Vec<u8>,
    /// Offsets of the eight value bytes of each row's time and id.
    times: Vec<usize>,
    ids: Vec<usize>,
    /// Values are decimal digits.
    digits: bool,
    /// Tables that the rows go to.
    pub tables: Vec<String>,
}

/// Digits of a time in milliseconds, up to the year 2286, and of an id.
const TIME_DIGITS: usize = 13;
const ID_DIGITS: usize = 18;

impl Template {
    /// Appends the body to `out`: row `i` has the id `first_id + i`, and the times are the `rows` milliseconds up to `now_ms`.
    pub fn render(&self, first_id: u64, now_ms: u64, out: &mut Vec<u8>) {
        let base = out.len();
        out.extend_from_slice(&self.bytes);
        let Some(body) = out.get_mut(base..) else { return };
        let first_ms = now_ms.saturating_sub(self.times.len() as u64);
        if self.digits {
            patch_digits(body, &self.times, TIME_DIGITS, first_ms);
            patch_digits(body, &self.ids, ID_DIGITS, first_id);
        } else {
            patch(body, &self.times, first_ms);
            patch(body, &self.ids, first_id);
        }
    }

    /// Bytes of each body.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }
}

fn patch(body: &mut [u8], offsets: &[usize], first: u64) {
    for (value, at) in (first..).zip(offsets) {
        if let Some(slot) = body.get_mut(*at..*at + 8) {
            slot.copy_from_slice(&value.to_be_bytes());
        }
    }
}

fn patch_digits(body: &mut [u8], offsets: &[usize], width: usize, first: u64) {
    for (mut value, at) in (first..).zip(offsets) {
        for digit in body.get_mut(*at..*at + width).into_iter().flatten().rev() {
            *digit = b'0' + (value % 10) as u8;
            value /= 10;
        }
    }
}

/// Every template of a run.
#[derive(Debug)]
pub struct Templates {
    all: Vec<Template>,
}

impl Templates {
    /// A few bodies for each table, or for all of them together with [`Format::Batch`].
    pub fn build(format: Format, rows: usize, tables: usize) -> Self {
        let names: Vec<String> = (0..tables).map(|i| format!("bench_{i}")).collect();
        let mut rng = Rng(0x9e37_79b9_7f4a_7c15);
        let mut all = Vec::new();
        for _ in 0..VARIANTS {
            if format == Format::Batch {
                all.push(batch(&names, rows, &mut rng));
                continue;
            }
            for name in &names {
                let mut w = Writer::default();
                match format {
                    Format::Columnar | Format::Batch => w.columnar(name, rows, &mut rng),
                    Format::Row => w.rows(name, rows, &mut rng),
                    Format::Line => w.lines(name, rows, &mut rng),
                }
                all.push(w.finish(vec![name.clone()]));
            }
        }
        Self { all }
    }

    /// The template of the `n`th request: the tables take turns.
    pub fn pick(&self, n: u64) -> Option<&Template> {
        self.all.get(usize::try_from(n % (self.all.len().max(1) as u64)).unwrap_or(0))
    }
}

fn batch(names: &[String], rows: usize, rng: &mut Rng) -> Template {
    // As even as it goes; a table that would get no row is left out.
    let share = |i: usize| rows / names.len() + usize::from(i < rows % names.len());
    let used: Vec<(usize, &String)> = names.iter().enumerate().filter(|(i, _)| share(*i) > 0).collect();
    let mut w = Writer::default();
    w.map(1);
    w.text("batch");
    w.array(used.len());
    for (i, name) in &used {
        w.columnar(name, share(*i), rng);
    }
    w.finish(used.iter().map(|(_, n)| (*n).clone()).collect())
}

/// xorshift64*: the same bodies in every run.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// From 0 to 100, with all the digits that a measured value has.
    fn percent(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64 * 100.0
    }

    fn host(&mut self) -> String {
        format!("server{:03}", self.next() % 1000 + 1)
    }

    fn pick<'a>(&mut self, of: &[&'a str; 3]) -> &'a str {
        match self.next() % 3 {
            0 => of[0],
            1 => of[1],
            _ => of[2],
        }
    }
}

#[derive(Default)]
struct Writer {
    bytes: Vec<u8>,
    times: Vec<usize>,
    ids: Vec<usize>,
    digits: bool,
}

impl Writer {
    fn finish(self, tables: Vec<String>) -> Template {
        Template { bytes: self.bytes, times: self.times, ids: self.ids, digits: self.digits, tables }
    }

    fn map(&mut self, n: usize) {
        self.sized(n, 0x80, 0xde, 0xdf);
    }

    fn array(&mut self, n: usize) {
        self.sized(n, 0x90, 0xdc, 0xdd);
    }

    fn sized(&mut self, n: usize, fix: u8, two: u8, four: u8) {
        let n = u32::try_from(n).unwrap_or(u32::MAX);
        match (u8::try_from(n), u16::try_from(n)) {
            (Ok(n), _) if n < 16 => self.bytes.push(fix | n),
            (_, Ok(n)) => {
                self.bytes.push(two);
                self.bytes.extend_from_slice(&n.to_be_bytes());
            }
            _ => {
                self.bytes.push(four);
                self.bytes.extend_from_slice(&n.to_be_bytes());
            }
        }
    }

    /// At most 255 bytes: names and values of our own.
    fn text(&mut self, s: &str) {
        let n = u8::try_from(s.len()).unwrap_or(u8::MAX);
        if n < 32 {
            self.bytes.push(0xa0 | n);
        } else {
            self.bytes.extend_from_slice(&[0xd9, n]);
        }
        self.bytes.extend(s.bytes().take(usize::from(n)));
    }

    fn float(&mut self, v: f64) {
        self.bytes.push(0xcb);
        self.bytes.extend_from_slice(&v.to_be_bytes());
    }

    fn slot(&mut self) -> usize {
        self.bytes.push(0xcf);
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 8]);
        at
    }

    fn time(&mut self) {
        let at = self.slot();
        self.times.push(at);
    }

    fn id(&mut self) {
        let at = self.slot();
        self.ids.push(at);
    }

    fn columnar(&mut self, table: &str, rows: usize, rng: &mut Rng) {
        self.map(2);
        self.text("m");
        self.text(table);
        self.text("columns");
        self.map(8);
        self.text("time");
        self.array(rows);
        (0..rows).for_each(|_| self.time());
        self.text("id");
        self.array(rows);
        (0..rows).for_each(|_| self.id());
        self.text("host");
        self.array(rows);
        (0..rows).for_each(|_| self.text(&rng.host()));
        for (name, words) in [("region", &REGIONS), ("env", &ENVS)] {
            self.text(name);
            self.array(rows);
            (0..rows).for_each(|_| self.text(rng.pick(words)));
        }
        for name in ["usage_idle", "usage_user", "usage_system"] {
            self.text(name);
            self.array(rows);
            (0..rows).for_each(|_| self.float(rng.percent()));
        }
    }

    fn lines(&mut self, table: &str, rows: usize, rng: &mut Rng) {
        self.digits = true;
        for _ in 0..rows {
            let (host, region, env) = (rng.host(), rng.pick(&REGIONS), rng.pick(&ENVS));
            self.bytes.extend_from_slice(format!("{table},host={host},region={region},env={env} id=").as_bytes());
            self.ids.push(self.bytes.len());
            self.bytes.extend_from_slice(&[b'0'; ID_DIGITS]);
            let [idle, user, system] = [rng.percent(), rng.percent(), rng.percent()];
            self.bytes.extend_from_slice(format!("i,usage_idle={idle},usage_user={user},usage_system={system} ").as_bytes());
            self.times.push(self.bytes.len());
            self.bytes.extend_from_slice(&[b'0'; TIME_DIGITS]);
            self.bytes.push(b'\n');
        }
    }

    fn rows(&mut self, table: &str, rows: usize, rng: &mut Rng) {
        self.array(rows);
        for _ in 0..rows {
            self.map(5);
            self.text("m");
            self.text(table);
            self.text("t");
            self.time();
            self.text("h");
            self.text(&rng.host());
            self.text("fields");
            self.map(4);
            self.text("id");
            self.id();
            for name in ["usage_idle", "usage_user", "usage_system"] {
                self.text(name);
                self.float(rng.percent());
            }
            self.text("tags");
            self.map(2);
            self.text("region");
            self.text(rng.pick(&REGIONS));
            self.text("env");
            self.text(rng.pick(&ENVS));
        }
    }
}

/// Compresses bodies for one connection.
pub struct Encoder {
    encoding: Encoding,
    zstd: Option<zstd::bulk::Compressor<'static>>,
}

impl Encoder {
    /// # Errors
    /// The compressor cannot be set up.
    pub fn new(encoding: Encoding) -> io::Result<Self> {
        let zstd = if encoding == Encoding::Zstd { Some(zstd::bulk::Compressor::new(1)?) } else { None };
        Ok(Self { encoding, zstd })
    }

    /// The body as it goes over the wire, if that is not the body itself.
    ///
    /// # Errors
    /// The compressor fails.
    pub fn encode(&mut self, body: &[u8]) -> io::Result<Option<Vec<u8>>> {
        match (self.encoding, &mut self.zstd) {
            (Encoding::Gzip, _) => {
                let out = Vec::with_capacity(body.len() / 2);
                let mut gz = flate2::write::GzEncoder::new(out, flate2::Compression::fast());
                gz.write_all(body)?;
                Ok(Some(gz.finish()?))
            }
            (Encoding::Zstd, Some(z)) => Ok(Some(z.compress(body)?)),
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn decode(t: &Template, first: u64) -> Value {
        let mut out = b"head".to_vec();
        t.render(first, 1_767_225_600_000, &mut out);
        assert_eq!(out.len(), 4 + t.size());
        rmp_serde::from_slice(&out[4..]).unwrap()
    }

    fn numbers(v: &Value) -> Vec<u64> {
        v.as_array().unwrap().iter().map(|v| v.as_u64().unwrap()).collect()
    }

    fn check_columns(item: &Value, table: &str, ids: std::ops::Range<u64>) {
        assert_eq!(item["m"], table);
        let columns = item["columns"].as_object().unwrap();
        assert_eq!(columns.len(), 8);
        assert!(columns.values().all(|c| c.as_array().unwrap().len() as u64 == ids.end - ids.start));
        assert_eq!(numbers(&columns["id"]), ids.collect::<Vec<_>>());
        assert!(columns["usage_idle"][0].is_f64() && columns["host"][0].as_str().unwrap().starts_with("server"));
    }

    #[test]
    fn columnar_bodies() {
        let t = Templates::build(Format::Columnar, 1000, 3);
        for n in 0..12 {
            let v = decode(t.pick(n).unwrap(), 70_000 * n);
            check_columns(&v, &format!("bench_{}", n % 3), 70_000 * n..70_000 * n + 1000);
            let times = numbers(&v["columns"]["time"]);
            assert!(times.windows(2).all(|w| w[0] + 1 == w[1]), "distinct and ascending");
            assert_eq!(times[999], 1_767_225_599_999);
        }
        assert_ne!(decode(t.pick(0).unwrap(), 1), decode(t.pick(3).unwrap(), 1), "values differ between variants");
        assert_eq!(t.pick(0).unwrap().tables, ["bench_0"]);
    }

    #[test]
    fn row_bodies() {
        let t = Templates::build(Format::Row, 20, 2);
        let v = decode(t.pick(1).unwrap(), 5);
        let items = v.as_array().unwrap();
        assert_eq!(items.len(), 20);
        for (i, item) in items.iter().enumerate() {
            assert_eq!(item["m"], "bench_1");
            assert_eq!(item["fields"]["id"], 5 + i as u64);
            assert_eq!(item["t"], 1_767_225_599_980u64 + i as u64);
            assert!(item["h"].is_string() && item["tags"]["region"].is_string() && item["fields"]["usage_user"].is_f64());
        }
    }

    #[test]
    fn lines() {
        let t = Templates::build(Format::Line, 20, 2);
        let mut out = Vec::new();
        t.pick(1).unwrap().render(5, 1_767_225_600_000, &mut out);
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.lines().count(), 20);
        for (i, line) in text.lines().enumerate() {
            assert!(line.starts_with("bench_1,host=server") && line.contains(&format!(" id={:018}i,usage_idle=", 5 + i)), "{line}");
            assert!(line.ends_with(&format!(" {}", 1_767_225_599_980u64 + i as u64)), "{line}");
        }
    }

    #[test]
    fn batches_spread_their_rows() {
        let t = Templates::build(Format::Batch, 10, 3);
        let v = decode(t.pick(0).unwrap(), 100);
        let items = v["batch"].as_array().unwrap();
        check_columns(&items[0], "bench_0", 100..104);
        check_columns(&items[1], "bench_1", 104..107);
        check_columns(&items[2], "bench_2", 107..110);
        let t = Templates::build(Format::Batch, 2, 3);
        assert_eq!(t.pick(0).unwrap().tables, ["bench_0", "bench_1"]);
        assert_eq!(decode(t.pick(0).unwrap(), 1)["batch"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn large_bodies_use_wide_lengths() {
        let t = Templates::build(Format::Columnar, 70_000, 1);
        check_columns(&decode(t.pick(0).unwrap(), 0), "bench_0", 0..70_000);
    }

    #[test]
    fn encodings_inflate_to_the_body() {
        use std::io::Read as _;
        let body = b"abcabcabcabcabcabcabcabc".repeat(100);
        assert!(Encoder::new(Encoding::None).unwrap().encode(&body).unwrap().is_none());
        let gz = Encoder::new(Encoding::Gzip).unwrap().encode(&body).unwrap().unwrap();
        let mut out = Vec::new();
        flate2::read::GzDecoder::new(&gz[..]).read_to_end(&mut out).unwrap();
        assert_eq!(out, body);
        let z = Encoder::new(Encoding::Zstd).unwrap().encode(&body).unwrap().unwrap();
        assert_eq!(zstd::bulk::decompress(&z, 1 << 20).unwrap(), body);
    }
}
