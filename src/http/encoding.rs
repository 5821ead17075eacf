//! What the head of a request says about its body: how it is encoded, and whether its length is given.

use axum::http::HeaderMap;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, HeaderName, TRANSFER_ENCODING};

use super::errors::Failure;
use crate::batch::shown;

/// Most encodings of one body.
const MAX_LAYERS: usize = 4;
/// Longest part of an unknown encoding's name that an error shows.
const MAX_SHOWN: usize = 64;

/// How a body is encoded and delimited.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct BodyHead {
    /// How often the body is compressed, at most: 0 if nothing is said.
    layers: usize,
    /// The first encoding that is not known here, with its header.
    unknown: Option<(HeaderName, String)>,
    /// More encodings than are undone.
    too_many: bool,
    has_length: bool,
}

impl BodyHead {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let has_length = headers.contains_key(CONTENT_LENGTH) || headers.contains_key(TRANSFER_ENCODING);
        let mut head = Self { layers: 0, unknown: None, too_many: false, has_length };
        for name in [CONTENT_ENCODING, TRANSFER_ENCODING] {
            for value in headers.get_all(&name) {
                for coding in value.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii) {
                    head.add(&name, coding);
                }
            }
        }
        head.too_many = head.layers > MAX_LAYERS;
        head
    }

    fn add(&mut self, name: &HeaderName, coding: &[u8]) {
        let is = |known: &[&str]| known.iter().any(|k| coding.eq_ignore_ascii_case(k.as_bytes()));
        if is(&["", "identity"]) || (*name == TRANSFER_ENCODING && is(&["chunked"])) {
        } else if is(&["gzip", "x-gzip", "zstd"]) {
            self.layers += 1;
        } else if self.unknown.is_none() {
            let coding = coding.get(..MAX_SHOWN).unwrap_or(coding);
            self.unknown = Some((name.clone(), shown(&String::from_utf8_lossy(coding))));
        }
    }

    /// How often a body may have to be inflated. Compression is recognised by the body's first bytes, so one layer is always looked for.
    pub(super) fn layers(&self) -> usize {
        self.layers.clamp(1, MAX_LAYERS)
    }

    /// Whether there is a `Content-Length` or a `Transfer-Encoding`. HTTP/1.1 says that a request without both has no body, but clients that
    /// mean to send one forget them (so did those of HTTP/1.0), and a write must not be lost in silence.
    pub(super) fn has_length(&self) -> bool {
        self.has_length
    }

    /// Why a body of a write is refused, unless its first bytes are those of gzip or zstd.
    pub(super) fn refusal(&self) -> Option<Failure> {
        const ACCEPTED: &str = "expected gzip, x-gzip, zstd or identity";
        if let Some((name, found)) = &self.unknown {
            return Some(Failure::UnsupportedEncoding(format!(
                "{} '{found}' is not supported: {ACCEPTED}; nothing was stored",
                title(name)
            )));
        }
        self.too_many.then(|| {
            let found = self.layers;
            Failure::UnsupportedEncoding(format!(
                "a body compressed {found} times: expected at most {MAX_LAYERS} times; nothing was stored"
            ))
        })
    }

    /// Why a body is refused by a route that inflates nothing.
    pub(super) fn refusal_if_encoded(&self) -> Option<Failure> {
        if let Some((name, found)) = &self.unknown {
            return Some(Failure::UnsupportedEncoding(format!("{} '{found}' is not supported: this route expects identity", title(name))));
        }
        (self.layers > 0)
            .then(|| Failure::UnsupportedEncoding("a compressed body is not supported: this route expects identity".to_owned()))
    }
}

fn title(name: &HeaderName) -> &'static str {
    if *name == TRANSFER_ENCODING { "Transfer-Encoding" } else { "Content-Encoding" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn of(headers: &[(HeaderName, &[u8])]) -> BodyHead {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name.clone(), HeaderValue::from_bytes(value).unwrap());
        }
        BodyHead::of(&map)
    }

    fn encoded(values: &[&[u8]]) -> BodyHead {
        of(&values.iter().map(|v| (CONTENT_ENCODING, *v)).collect::<Vec<_>>())
    }

    #[test]
    fn known_encodings_in_any_case_and_in_lists_are_taken() {
        let cases: &[(&[&[u8]], usize)] = &[
            (&[], 1),
            (&[b""], 1),
            (&[b" , ,identity"], 1),
            (&[b"Identity"], 1),
            (&[b"gzip"], 1),
            (&[b"GZIP"], 1),
            (&[b" x-Gzip\t"], 1),
            (&[b"zstd"], 1),
            (&[b"identity, gzip"], 1),
            (&[b"zstd, gzip"], 2),
            (&[b"zstd ,\tGzip"], 2),
            (&[b"zstd", b"gzip"], 2),
            (&[b"zstd,gzip,gzip", b"gzip"], 4),
        ];
        for (values, layers) in cases {
            let head = encoded(values);
            assert_eq!((head.layers(), head.refusal()), (*layers, None), "{values:?}");
        }
        let chunked = of(&[(TRANSFER_ENCODING, b"gzip, Chunked"), (CONTENT_ENCODING, b"zstd")]);
        assert_eq!((chunked.layers(), chunked.refusal(), chunked.has_length()), (2, None, true));
    }

    #[test]
    fn other_encodings_are_refused_by_name() {
        let cases: &[(&[&[u8]], &str)] = &[
            (&[b"snappy"], "'snappy'"),
            (&[b"deflate"], "'deflate'"),
            (&[b"gzip, br"], "'br'"),
            (&[b"gzip", b"compress"], "'compress'"),
            (&[b"gzip;q=1"], "'gzip;q=1'"),
            (&[b"gzip zstd"], "'gzip zstd'"),
            (&[b"utf-8"], "'utf-8'"),
            (&[b"gzip,gzip,zstd,zstd,gzip"], "5 times"),
        ];
        for (values, says) in cases {
            match encoded(values).refusal() {
                Some(Failure::UnsupportedEncoding(text)) => assert!(text.contains(says), "{text}"),
                other => panic!("{values:?}: {other:?}"),
            }
        }
        let long = vec![b'x'; 5000];
        let Some(Failure::UnsupportedEncoding(text)) = encoded(&[&long]).refusal() else { panic!("taken") };
        assert!(text.len() < 300, "{text}");
        let transfer = of(&[(TRANSFER_ENCODING, b"deflate, chunked")]).refusal();
        assert!(matches!(transfer, Some(Failure::UnsupportedEncoding(t)) if t.contains("Transfer-Encoding 'deflate'")));
        assert!(encoded(&[b"gzip"]).refusal_if_encoded().is_some());
        assert!(encoded(&[b"identity"]).refusal_if_encoded().is_none());
    }
}
