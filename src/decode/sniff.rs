//! What a body is that was sent to the wrong route: for hints in errors, never for decisions.

/// A format that is known by the first bytes of a body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    Json,
    LineProtocol,
    /// Other text.
    Text,
    Xml,
    Utf16,
    MessagePack,
    Protobuf,
    /// Compressed with what no write route takes.
    Compressed(&'static str),
    /// A file of that kind.
    File(&'static str),
}

const BOM: &[u8] = b"\xef\xbb\xbf";
const MAGIC: [(&[u8], Format); 9] = [
    (b"\xff\x06\x00\x00sNaPpY", Format::Compressed("snappy")),
    (b"\xfd7zXZ\x00", Format::Compressed("xz")),
    (b"BZh", Format::Compressed("bzip2")),
    (b"\x04\x22\x4d\x18", Format::Compressed("LZ4")),
    (b"PK\x03\x04", Format::File("a zip archive")),
    (b"PAR1", Format::File("a Parquet file")),
    (b"ARROW1", Format::File("an Arrow file")),
    (b"\x1f\x8b", Format::Compressed("gzip within gzip")),
    (b"\x28\xb5\x2f\xfd", Format::Compressed("zstd within zstd")),
];
/// Bytes that are looked at.
const LOOK: usize = 512;

impl Format {
    /// None when the first bytes say nothing.
    pub fn of(body: &[u8]) -> Option<Self> {
        let body = body.get(..LOOK).unwrap_or(body);
        if utf16(body) {
            return Some(Self::Utf16);
        }
        if let Some((_, format)) = MAGIC.iter().find(|(magic, _)| body.starts_with(magic)) {
            return Some(*format);
        }
        let text = body.strip_prefix(BOM).unwrap_or(body).trim_ascii_start();
        match (body, text) {
            // Map and array markers. No text begins with the first two kinds, and hardly any with the others.
            ([0x80..=0x9f | 0xdc..=0xdf, ..], _) => Some(Self::MessagePack),
            ([0x78, 0x01 | 0x5e | 0x9c | 0xda, ..], _) if !printable(body) => Some(Self::Compressed("zlib (deflate)")),
            (_, [b'{' | b'[', ..]) if printable(text) => Some(Self::Json),
            (_, [b'<', ..]) if printable(text) => Some(Self::Xml),
            _ if !text.is_empty() && printable(text) => Some(text_format(text)),
            // A field of the first number, length-delimited: how remote write and OTLP begin.
            ([0x0a, ..], _) => Some(Self::Protobuf),
            _ => None,
        }
    }

    /// For messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Json => "JSON",
            Self::LineProtocol => "line protocol",
            Self::Text => "text",
            Self::Xml => "XML or HTML",
            Self::Utf16 => "UTF-16",
            Self::MessagePack => "MessagePack",
            Self::Protobuf => "protobuf (Prometheus remote write, OTLP)",
            Self::Compressed(how) => how,
            Self::File(kind) => kind,
        }
    }
}

/// A byte-order mark of UTF-16, or every other byte NUL.
fn utf16(body: &[u8]) -> bool {
    if body.starts_with(b"\xff\xfe") || body.starts_with(b"\xfe\xff") {
        return true;
    }
    let (pairs, _) = body.as_chunks::<2>();
    let every = |is: fn(&[u8; 2]) -> bool| pairs.len() >= 4 && pairs.iter().take(32).all(is);
    every(|[a, b]| *a == 0 && (0x09..0x7f).contains(b)) || every(|[a, b]| *b == 0 && (0x09..0x7f).contains(a))
}

/// Text, of which the last character may be cut.
fn printable(text: &[u8]) -> bool {
    let valid = match std::str::from_utf8(text) {
        Ok(_) => text,
        Err(e) if e.error_len().is_none() => text.get(..e.valid_up_to()).unwrap_or_default(),
        Err(_) => return false,
    };
    !valid.is_empty() && valid.iter().all(|b| *b >= 0x20 && *b != 0x7f || matches!(b, b'\t' | b'\n' | b'\r'))
}

fn text_format(text: &[u8]) -> Format {
    let line = text.split(|b| *b == b'\n').find(|l| !l.starts_with(b"#")).unwrap_or_default();
    let fields = line.iter().position(|b| *b == b' ').and_then(|at| line.get(at..)).unwrap_or_default();
    if fields.contains(&b'=') { Format::LineProtocol } else { Format::Text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_by_their_first_bytes() {
        let utf16: Vec<u8> = "cpu v=1 1".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let turned: Vec<u8> = "cpu v=1 1".encode_utf16().flat_map(u16::to_be_bytes).collect();
        for (body, want) in [
            (&br#"{"m":"cpu","columns":{"v":[1]}}"#[..], Some(Format::Json)),
            (b"\xef\xbb\xbf [{\"m\":1}]", Some(Format::Json)),
            (b"cpu,host=a v=1 1767225600", Some(Format::LineProtocol)),
            (b"# comment\ncpu v=1", Some(Format::LineProtocol)),
            ("température,hôte=é v=1".as_bytes(), Some(Format::LineProtocol)),
            (b"time,host,v\n1,a,2\n", Some(Format::Text)),
            (b"<html>", Some(Format::Xml)),
            (&utf16, Some(Format::Utf16)),
            (&turned, Some(Format::Utf16)),
            (b"\xff\xfec\x00", Some(Format::Utf16)),
            (b"\x81\xa1m\xa1t", Some(Format::MessagePack)),
            (b"\xdc\x00\x10", Some(Format::MessagePack)),
            (b"\x78\x9c\x4b\x04\x00", Some(Format::Compressed("zlib (deflate)"))),
            (b"x^2 is text", Some(Format::Text)),
            (b"PAR1\x15\x04", Some(Format::File("a Parquet file"))),
            (b"\x0a\x12\x0a\x10\x0a\x08__name__", Some(Format::Protobuf)),
            (b"\x01\x02\x03", None),
            (b"", None),
        ] {
            assert_eq!(Format::of(body), want, "{:?}", String::from_utf8_lossy(body));
        }
        let cut = "é".repeat(LOOK);
        assert_eq!(Format::of(&[b"x", cut.as_bytes()].concat()), Some(Format::Text), "cut within a character");
    }
}
