//! One column of one row group as a finished column chunk.
//!
//! `ArrowWriter` hashes every string again and looks at every value twice for statistics; here the codes that
//! gathering has made go straight into pages, and minimum and maximum of strings come from the dictionary. The
//! `parquet` crate writes page headers, row groups and the footer. Every compression takes this one path, so that
//! its memory is bounded in one place: the column, its finished chunk, and one page twice (see `docs/memory.md`).

use std::io::Write as _;

use arrow::buffer::BooleanBuffer;
use bytes::Bytes;
use parquet::basic::{Compression, Encoding, GzipLevel, PageType, ZstdLevel};
use parquet::column::page::{CompressedPage, Page, PageWriter as _};
use parquet::column::writer::ColumnCloseResult;
use parquet::data_type::ByteArray;
use parquet::errors::ParquetError;
use parquet::file::metadata::{ColumnChunkMetaData, PageEncodingStats};
use parquet::file::statistics::{Statistics, ValueStatistics};
use parquet::file::writer::{SerializedPageWriter, TrackedWrite};
use parquet::schema::types::ColumnDescPtr;

use super::columns::{Column, Values};
use super::encodings::{put_delta, put_hybrid, put_levels, put_plain, put_split, put_strings, width_of};
use super::parquet::{Codecs, Encodings};
use super::strings::StrView;
use crate::format::bytes::Writer as _;

/// Rows of a page: a multiple of eight, so that pages begin at whole bytes of the validity bits. 8 bytes each make 1 MiB.
const PAGE_ROWS: usize = 1 << 17;
/// Bytes after which a page of strings ends.
const PAGE_BYTES: usize = 1 << 20;
/// Longer minima and maxima are left out, both, since readers take the pair or nothing.
const MAX_STATISTIC: usize = 128;
/// Doubles of a chunk that are compressed in two ways to choose one.
const SAMPLE: usize = 8192;
/// Integers whose span needs fewer bits than this are written as deltas.
const DELTA_BITS: u32 = 48;

type Result<T> = std::result::Result<T, ParquetError>;

/// Compresses pages.
enum Codec {
    None,
    Zstd(Box<zstd::bulk::Compressor<'static>>),
    Snappy(Box<snap::raw::Encoder>),
    Lz4,
    Gzip(flate2::Compression),
}

/// Levels from this on would take hundreds of megabytes for a page as large as their window.
const LARGE_WINDOW_LEVEL: i32 = 18;
/// Window of those levels, as a power of two: 4 MiB, more than most pages have.
const WINDOW_LOG: u32 = 22;

impl Codec {
    /// # Errors
    /// A level that zstd does not have.
    fn new(compression: Codecs) -> Result<Self> {
        Ok(match compression {
            Codecs::None => Self::None,
            Codecs::Snappy => Self::Snappy(Box::new(snap::raw::Encoder::new())),
            Codecs::Lz4 => Self::Lz4,
            Codecs::Gzip(level) => Self::Gzip(flate2::Compression::new(level)),
            Codecs::Zstd(level) => {
                let mut z = zstd::bulk::Compressor::new(level)?;
                if level >= LARGE_WINDOW_LEVEL {
                    z.set_parameter(zstd::zstd_safe::CParameter::WindowLog(WINDOW_LOG))?;
                }
                Self::Zstd(Box::new(z))
            }
        })
    }

    fn compress(&mut self, body: &[u8]) -> Result<Vec<u8>> {
        Ok(match self {
            Self::None => body.to_vec(),
            Self::Zstd(z) => z.compress(body)?,
            Self::Snappy(s) => s.compress_vec(body).map_err(|e| ParquetError::External(Box::new(e)))?,
            Self::Lz4 => lz4_flex::block::compress(body),
            Self::Gzip(level) => {
                let mut z = flate2::write::GzEncoder::new(Vec::with_capacity(body.len() / 2), *level);
                z.write_all(body)?;
                z.finish()?
            }
        })
    }
}

/// Turns columns into column chunks, all with one compression and one set of encodings.
pub(super) struct Encoder {
    codec: Codec,
    /// The codec as the file's metadata names it.
    compression: Compression,
    encodings: Encodings,
}

impl Encoder {
    /// # Errors
    /// A level that the codec does not have.
    pub(super) fn new(codec: Codecs, encodings: Encodings) -> Result<Self> {
        let compression = match codec {
            Codecs::None => Compression::UNCOMPRESSED,
            Codecs::Snappy => Compression::SNAPPY,
            Codecs::Lz4 => Compression::LZ4_RAW,
            Codecs::Gzip(level) => Compression::GZIP(GzipLevel::try_new(level)?),
            Codecs::Zstd(level) => Compression::ZSTD(ZstdLevel::try_new(level)?),
        };
        Ok(Self { codec: Codec::new(codec)?, compression, encodings })
    }

    pub(super) fn compression(&self) -> Compression {
        self.compression
    }
}

struct Pages<'c> {
    out: TrackedWrite<Vec<u8>>,
    encoder: &'c mut Encoder,
    uncompressed: usize,
    dictionary_at: Option<u64>,
    data_at: Option<u64>,
    data_pages: i32,
}

impl<'c> Pages<'c> {
    fn new(encoder: &'c mut Encoder) -> Self {
        Self { out: TrackedWrite::new(Vec::new()), encoder, uncompressed: 0, dictionary_at: None, data_at: None, data_pages: 0 }
    }

    fn write(&mut self, body: &[u8], page: impl FnOnce(Bytes) -> Page) -> Result<u64> {
        let buf = Bytes::from(self.encoder.codec.compress(body)?);
        let spec = SerializedPageWriter::new(&mut self.out).write_page(CompressedPage::new(page(buf), body.len()))?;
        self.uncompressed += spec.uncompressed_size;
        Ok(spec.offset)
    }

    fn data(&mut self, body: &[u8], rows: usize, encoding: Encoding) -> Result<()> {
        let at = self.write(body, |buf| Page::DataPage {
            buf,
            num_values: rows as u32,
            encoding,
            def_level_encoding: Encoding::RLE,
            rep_level_encoding: Encoding::RLE,
            statistics: None,
        })?;
        self.data_at.get_or_insert(at);
        self.data_pages += 1;
        Ok(())
    }

    fn dictionary(&mut self, body: &[u8], entries: usize) -> Result<()> {
        let at =
            self.write(body, |buf| Page::DictionaryPage { buf, num_values: entries as u32, encoding: Encoding::PLAIN, is_sorted: false })?;
        self.dictionary_at = Some(at);
        Ok(())
    }
}

/// Encodes a column; the chunk's bytes and what the row group must know of it.
///
/// # Errors
/// What the compressor or the page writer says; writing goes to memory.
pub(super) fn encode(desc: &ColumnDescPtr, column: &Column<'_>, encoder: &mut Encoder) -> Result<(Bytes, ColumnCloseResult)> {
    let compression = encoder.compression;
    let mut pages = Pages::new(encoder);
    let bits = column.validity.as_ref().filter(|v| v.has_false());
    let nullable = desc.max_def_level() > 0;
    let (encoding, statistics) = match &column.values {
        Values::Int64(v) => int64(&mut pages, v, bits, nullable)?,
        Values::Float64(v) => float64(&mut pages, v, bits, nullable)?,
        Values::Bool(v) => boolean(&mut pages, v, bits, nullable)?,
        Values::Strings(StrView::Plain { lengths, starts, bytes }) => {
            plain_strings(&mut pages, &Plain { lengths, starts: *starts, bytes }, bits, nullable)?
        }
        Values::Strings(StrView::Dictionary { codes, starts, bytes }) => dictionary(&mut pages, codes, starts, bytes, bits, nullable)?,
    };
    let Pages { out, uncompressed, dictionary_at, data_at, data_pages, .. } = pages;
    let chunk = Bytes::from(out.into_inner()?);
    let mut encodings = vec![Encoding::RLE, encoding];
    let mut page_stats = vec![PageEncodingStats { page_type: PageType::DATA_PAGE, encoding, count: data_pages }];
    if dictionary_at.is_some() {
        encodings.push(Encoding::PLAIN);
        page_stats.insert(0, PageEncodingStats { page_type: PageType::DICTIONARY_PAGE, encoding: Encoding::PLAIN, count: 1 });
    }
    let metadata = ColumnChunkMetaData::builder(desc.clone())
        .set_compression(compression)
        .set_encodings(encodings)
        .set_page_encoding_stats(page_stats)
        .set_total_compressed_size(chunk.len() as i64)
        .set_total_uncompressed_size(uncompressed as i64)
        .set_num_values(column.rows as i64)
        .set_data_page_offset(data_at.unwrap_or(0) as i64)
        .set_dictionary_page_offset(dictionary_at.map(|o| o as i64))
        .set_statistics(statistics)
        .build()?;
    let close = ColumnCloseResult {
        bytes_written: chunk.len() as u64,
        rows_written: column.rows as u64,
        metadata,
        bloom_filter: None,
        column_index: None,
        offset_index: None,
    };
    Ok((chunk, close))
}

type Encoded = Result<(Encoding, Statistics)>;

fn nulls(rows: usize, bits: Option<&BooleanBuffer>) -> Option<u64> {
    Some(bits.map_or(0, |b| rows - b.count_set_bits()) as u64)
}

/// Calls `f` with the pages' row ranges and a buffer that holds the page's levels already.
fn each_page(
    rows: usize,
    bits: Option<&BooleanBuffer>,
    nullable: bool,
    mut f: impl FnMut(usize, usize, Option<BooleanBuffer>, &mut Vec<u8>) -> Result<()>,
) -> Result<()> {
    let mut body = Vec::new();
    let mut from = 0;
    while from < rows {
        let to = rows.min(from + PAGE_ROWS);
        page(from, to, bits, nullable, &mut body, &mut f)?;
        from = to;
    }
    Ok(())
}

fn page(
    from: usize,
    to: usize,
    bits: Option<&BooleanBuffer>,
    nullable: bool,
    body: &mut Vec<u8>,
    f: &mut impl FnMut(usize, usize, Option<BooleanBuffer>, &mut Vec<u8>) -> Result<()>,
) -> Result<()> {
    body.clear();
    // Bits past the end may be set: readers stop at the page's number of values.
    let valid = bits.map(|b| b.slice(from, to - from)).filter(BooleanBuffer::has_false);
    if nullable {
        let packed = valid.as_ref().map(BooleanBuffer::sliced);
        put_levels(body, to - from, packed.as_deref());
    }
    f(from, to, valid, body)
}

/// The values that are not NULL, `tmp` being used where some are.
fn present<'a, T: Copy>(v: &'a [T], valid: Option<&BooleanBuffer>, tmp: &'a mut Vec<T>) -> &'a [T] {
    match valid {
        None => v,
        Some(b) => {
            tmp.clear();
            tmp.extend(b.set_indices().filter_map(|i| v.get(i)));
            tmp
        }
    }
}

fn int64(pages: &mut Pages<'_>, v: &[i64], bits: Option<&BooleanBuffer>, nullable: bool) -> Encoded {
    let range = match bits {
        None => v.iter().copied().fold(None, widen),
        Some(b) => b.set_indices().filter_map(|i| v.get(i).copied()).fold(None, widen),
    };
    let (min, max) = range.unwrap_or((0, 0));
    let delta = u64::BITS - (max.wrapping_sub(min) as u64).leading_zeros() < DELTA_BITS;
    let encoding = if delta { Encoding::DELTA_BINARY_PACKED } else { Encoding::PLAIN };
    let mut tmp = Vec::new();
    each_page(v.len(), bits, nullable, |from, to, valid, body| {
        let values = present(v.get(from..to).unwrap_or_default(), valid.as_ref(), &mut tmp);
        if delta {
            put_delta(body, values)
        } else {
            put_plain(body, values, i64::to_le_bytes)
        }
        pages.data(body, to - from, encoding)
    })?;
    let s = ValueStatistics::new(range.map(|r| r.0), range.map(|r| r.1), None, nulls(v.len(), bits), false);
    Ok((encoding, Statistics::Int64(s.with_backwards_compatible_min_max(true))))
}

fn widen(range: Option<(i64, i64)>, x: i64) -> Option<(i64, i64)> {
    Some(range.map_or((x, x), |(lo, hi)| (lo.min(x), hi.max(x))))
}

fn float64(pages: &mut Pages<'_>, v: &[f64], bits: Option<&BooleanBuffer>, nullable: bool) -> Encoded {
    let (mut lo, mut hi) = (f64::INFINITY, f64::NEG_INFINITY);
    let (mut any, mut nan) = (false, false);
    let mut tmp = Vec::new();
    let split = match (pages.encoder.encodings, &mut pages.encoder.codec) {
        (Encodings::Compatible, _) | (_, Codec::None) => false,
        (Encodings::Compact, codec) => {
            let n = v.len().min(SAMPLE);
            let valid = bits.map(|b| b.slice(0, n));
            splits_well(codec, present(v.get(..n).unwrap_or_default(), valid.as_ref(), &mut tmp))?
        }
    };
    let encoding = if split { Encoding::BYTE_STREAM_SPLIT } else { Encoding::PLAIN };
    each_page(v.len(), bits, nullable, |from, to, valid, body| {
        let values = present(v.get(from..to).unwrap_or_default(), valid.as_ref(), &mut tmp);
        any |= !values.is_empty();
        for x in values {
            // Both are false for NaN.
            if *x < lo {
                lo = *x;
            }
            if *x > hi {
                hi = *x;
            }
            nan |= x.is_nan();
        }
        if split {
            put_split(body, values)
        } else {
            put_plain(body, values, f64::to_le_bytes)
        }
        pages.data(body, to - from, encoding)
    })?;
    // Zeros of either sign are equal: the bounds must hold for both.
    let lo = if lo == 0.0 { -0.0 } else { lo };
    let hi = if hi == 0.0 { 0.0 } else { hi };
    // Bounds say nothing of NaN, yet readers drop a filter that holds for all values between them (DuckDB does, and
    // then counts the NaN in): a chunk with one has no bounds.
    let bounded = any && !nan;
    let s = ValueStatistics::new(bounded.then_some(lo), bounded.then_some(hi), None, nulls(v.len(), bits), false);
    Ok((encoding, Statistics::Double(s.with_backwards_compatible_min_max(true))))
}

/// True when the bytes of the doubles, regrouped by their place, compress to clearly less than the doubles.
fn splits_well(codec: &mut Codec, sample: &[f64]) -> Result<bool> {
    let mut body = Vec::with_capacity(sample.len() * 8);
    put_plain(&mut body, sample, f64::to_le_bytes);
    let plain = codec.compress(&body)?.len();
    body.clear();
    put_split(&mut body, sample);
    Ok(codec.compress(&body)?.len() < plain / 10 * 9)
}

fn boolean(pages: &mut Pages<'_>, v: &BooleanBuffer, bits: Option<&BooleanBuffer>, nullable: bool) -> Encoded {
    let (mut any_true, mut any_false) = (false, false);
    each_page(v.len(), bits, nullable, |from, to, valid, body| {
        let values = v.slice(from, to - from);
        let values = match valid {
            None => values,
            Some(b) => b.set_indices().map(|i| values.value(i)).collect(),
        };
        any_true |= values.has_true();
        any_false |= values.has_false();
        body.extend_from_slice(values.sliced().as_slice());
        pages.data(body, to - from, Encoding::PLAIN)
    })?;
    let range = (any_true || any_false).then_some((!any_false, any_true));
    let s = ValueStatistics::new(range.map(|r| r.0), range.map(|r| r.1), None, nulls(v.len(), bits), false);
    Ok((Encoding::PLAIN, Statistics::Boolean(s.with_backwards_compatible_min_max(true))))
}

fn string_statistics(range: Option<(&[u8], &[u8])>, nulls: Option<u64>) -> Statistics {
    let range = range.filter(|(lo, hi)| lo.len() <= MAX_STATISTIC && hi.len() <= MAX_STATISTIC);
    let value = |b: &[u8]| ByteArray::from(b.to_vec());
    Statistics::ByteArray(ValueStatistics::new(range.map(|r| value(r.0)), range.map(|r| value(r.1)), None, nulls, false))
}

fn widen_bytes<'a>(range: &mut Option<(&'a [u8], &'a [u8])>, s: &'a [u8]) {
    match range {
        None => *range = Some((s, s)),
        Some((lo, hi)) => {
            if s < *lo {
                *lo = s;
            } else if s > *hi {
                *hi = s;
            }
        }
    }
}

/// The strings of a column that stand end to end: see [`StrView::Plain`].
struct Plain<'a> {
    lengths: &'a [u32],
    starts: Option<&'a [usize]>,
    bytes: &'a [u8],
}

impl Plain<'_> {
    /// Where a page that begins at row `from` ends: at a whole group of eight rows, for the levels, unless one group alone is more than a page.
    /// A page holds a page's bytes and one value more, so that long values are not gathered in memory again.
    fn page_end(&self, from: usize) -> usize {
        let (mut to, mut size) = (from, 0usize);
        while to < self.lengths.len() && size < PAGE_BYTES && to - from < PAGE_ROWS {
            let group = self.lengths.get(to..self.lengths.len().min(to + 8)).unwrap_or_default();
            let bytes = group.iter().map(|l| *l as usize + 4).sum::<usize>();
            let rows = if bytes <= PAGE_BYTES { group.len() } else { 1 };
            size += if rows == 1 { group.first().map_or(0, |l| *l as usize + 4) } else { bytes };
            to += rows;
        }
        to
    }
}

fn plain_strings(pages: &mut Pages<'_>, strings: &Plain<'_>, bits: Option<&BooleanBuffer>, nullable: bool) -> Encoded {
    let Plain { lengths, starts, bytes } = strings;
    let mut range = None;
    let (mut from, mut at) = (0usize, 0usize);
    let mut body = Vec::new();
    while from < lengths.len() {
        let to = strings.page_end(from);
        page(from, to, bits, nullable, &mut body, &mut |from, to, valid, body| {
            for (i, l) in lengths.get(from..to).unwrap_or_default().iter().enumerate() {
                let start = starts.map_or(at, |s| s.get(from + i).copied().unwrap_or(0));
                at += *l as usize;
                // NULL is no value: as "" it would be the least of all.
                if valid.as_ref().is_none_or(|b| b.value(i)) {
                    let s = bytes.get(start..start + *l as usize).unwrap_or_default();
                    widen_bytes(&mut range, s);
                    body.put_u32(*l);
                    body.extend_from_slice(s);
                }
            }
            pages.data(body, to - from, Encoding::PLAIN)
        })?;
        from = to;
    }
    Ok((Encoding::PLAIN, string_statistics(range, nulls(lengths.len(), bits))))
}

fn dictionary(
    pages: &mut Pages<'_>,
    codes: &[u32],
    starts: &[usize],
    bytes: &[u8],
    bits: Option<&BooleanBuffer>,
    nullable: bool,
) -> Encoded {
    let entries = starts.len().saturating_sub(1);
    let lengths: Vec<u32> = starts.windows(2).map(|w| (w[1] - w[0]) as u32).collect();
    let mut range = None;
    for w in starts.windows(2) {
        widen_bytes(&mut range, bytes.get(w[0]..w[1]).unwrap_or_default());
    }
    let mut entry_page = Vec::with_capacity(bytes.len() + 4 * entries);
    put_strings(&mut entry_page, &lengths, bytes);
    pages.dictionary(&entry_page, entries)?;
    drop(entry_page);
    let width = width_of(entries.saturating_sub(1) as u32).max(1);
    let mut tmp = Vec::new();
    each_page(codes.len(), bits, nullable, |from, to, valid, body| {
        body.push(width);
        put_hybrid(body, present(codes.get(from..to).unwrap_or_default(), valid.as_ref(), &mut tmp), width);
        pages.data(body, to - from, Encoding::RLE_DICTIONARY)
    })?;
    Ok((Encoding::RLE_DICTIONARY, string_statistics(range, nulls(codes.len(), bits))))
}
