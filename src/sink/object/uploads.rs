//! Uploads in parts: begun, fed, completed, aborted, and the forgotten ones found.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use http_body_util::{BodyExt, Limited};
use hyper::header::{AUTHORIZATION, HeaderValue};
use object_store::PutPayload;
use object_store::aws::{AwsAuthorizer, AwsCredentialProvider};
use object_store::client::{HttpClient, HttpRequest, HttpRequestBody};
use object_store::gcp::GcpCredentialProvider;
use object_store::multipart::PartId;
use object_store::path::Path;

use super::super::Swept;
use super::errors::{Class, Failed};
use super::http::element;
use super::{COMPLETION, Doomed, Shared, lock};
use crate::metrics::StoreOp;

/// Pages of the list of uploads that are read, of up to 1,000 each.
const MOST_PAGES: usize = 1000;
/// Bytes of one page.
const PAGE_BYTES: usize = 16 << 20;
/// Uploads that a sweep may be refused to abort before it ends.
const MOST_REFUSED: u64 = 100;

/// Who may ask.
pub(super) enum Credentials {
    Aws { provider: AwsCredentialProvider, region: String },
    Google(GcpCredentialProvider),
    None,
}

/// Lists uploads under way, which `object_store` cannot.
pub(super) struct Lister {
    pub(super) client: HttpClient,
    /// Of the bucket, without `/` at its end.
    pub(super) url: String,
    pub(super) credentials: Credentials,
}

/// An upload that the store knows of.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Open {
    key: String,
    upload: String,
}

#[derive(Debug, Default)]
struct Page {
    uploads: Vec<Open>,
    /// Key and upload after which the next page begins.
    next: Option<(String, String)>,
}

/// Percent-encodes as the signature of S3 wants it.
fn encoded(text: &str) -> String {
    use std::fmt::Write as _;
    text.bytes().fold(String::new(), |mut s, b| {
        if b.is_ascii_alphanumeric() || b"-._~".contains(&b) {
            s.push(b as char);
        } else {
            let _ = write!(s, "%{b:02X}");
        }
        s
    })
}

fn parse_page(xml: &str) -> Option<Page> {
    if !xml.contains("<ListMultipartUploadsResult") {
        return None;
    }
    let mut page = Page::default();
    for piece in xml.split("<Upload>").skip(1) {
        let piece = piece.split("</Upload>").next()?;
        // One that cannot be read is none of ours.
        if let (Some(key), Some(upload)) = (element(piece, "Key"), element(piece, "UploadId")) {
            page.uploads.push(Open { key, upload });
        }
    }
    if element(xml, "IsTruncated").as_deref() == Some("true") {
        page.next = Some((element(xml, "NextKeyMarker")?, element(xml, "NextUploadIdMarker").unwrap_or_default()));
    }
    Some(page)
}

impl Lister {
    async fn page(&self, prefix: &str, after: Option<&(String, String)>) -> object_store::Result<Page> {
        let generic = |e: Box<dyn std::error::Error + Send + Sync>| object_store::Error::Generic { store: "multipart uploads", source: e };
        // In the order of their names, as the signature wants them.
        let mut query = String::new();
        if let Some((key, upload)) = after {
            query += &format!("key-marker={}&", encoded(key));
            query += &format!("prefix={}&", encoded(prefix));
            query += &format!("upload-id-marker={}&", encoded(upload));
        } else {
            query += &format!("prefix={}&", encoded(prefix));
        }
        query += "uploads=";
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.uri_mut() = format!("{}?{query}", self.url).parse().map_err(|e: hyper::http::uri::InvalidUri| generic(e.into()))?;
        match &self.credentials {
            Credentials::Aws { provider, region } => {
                let c = provider.get_credential().await?;
                AwsAuthorizer::new(&c, "s3", region).try_authorize(&mut request, None)?;
            }
            Credentials::Google(provider) => {
                let c = provider.get_credential().await?;
                let bearer = HeaderValue::from_str(&format!("Bearer {}", c.bearer)).map_err(|e| generic(e.into()))?;
                request.headers_mut().insert(AUTHORIZATION, bearer);
            }
            Credentials::None => {}
        }
        let response = self.client.execute(request).await.map_err(|e| generic(e.into()))?;
        let status = response.status();
        if !status.is_success() {
            return Err(generic(format!("answer {status}").into()));
        }
        let body = Limited::new(response.into_body(), PAGE_BYTES).collect().await.map_err(generic)?.to_bytes();
        parse_page(&String::from_utf8_lossy(&body)).ok_or_else(|| generic("not a list of uploads".into()))
    }
}

impl Shared {
    pub(super) async fn begin_upload(&self, path: &Path) -> Result<String, Failed> {
        // Not repeated: each try may leave an upload behind.
        self.once(StoreOp::Begin, path, self.settings.timeout, self.remote.parts.create_multipart(path)).await
    }

    pub(super) async fn put_part(&self, path: &Path, id: &str, n: usize, bytes: PutPayload) -> Result<PartId, Failed> {
        let id = id.to_owned();
        self.repeat(StoreOp::Part, path, || self.remote.parts.put_part(path, &id, n, bytes.clone())).await
    }

    pub(super) async fn complete_upload(&self, path: &Path, id: &str, parts: Vec<PartId>) -> Result<(), Failed> {
        let id = id.to_owned();
        let limit = self.settings.timeout.saturating_mul(COMPLETION);
        self.once(StoreOp::Complete, path, limit, self.remote.parts.complete_multipart(path, &id, parts)).await.map(|_| ())
    }

    /// After success the upload can never be completed any more.
    pub(super) async fn abort_upload(&self, path: &Path, id: &str) -> Result<(), Failed> {
        let id = id.to_owned();
        match self.repeat(StoreOp::Abort, path, || self.remote.parts.abort_multipart(path, &id)).await {
            Err(f) if !matches!(f.class, Class::NoUpload | Class::Missing) => Err(f),
            r => {
                if r.is_ok() {
                    self.metrics.store_uploads_aborted_total.increment(1);
                }
                Ok(())
            }
        }
    }

    pub(super) fn begun(&self, id: &str) {
        let mut live = lock(&self.live);
        live.insert(id.to_owned());
        self.metrics.store_uploads.set(live.len() as f64);
    }

    pub(super) fn ended(&self, id: &str) {
        let mut live = lock(&self.live);
        live.remove(id);
        self.metrics.store_uploads.set(live.len() as f64);
    }

    /// The upload is given up: aborted soon, and in any case before its name is staged again.
    pub(super) fn doom(self: &Arc<Self>, name: &str, upload: Option<String>) {
        if let Some(id) = &upload {
            self.ended(id);
        }
        lock(&self.doomed).insert(Doomed { name: name.to_owned(), upload });
        let me = Arc::clone(self);
        self.driver.spawn(async move {
            let _ = me.reap(None).await;
        });
    }

    /// Aborts what was given up.
    ///
    /// INVARIANT(abort-before-retry): `name` is not staged again before every earlier upload for it has been aborted: a completion that
    /// was given up and comes late then finds no upload, and cannot replace what a later attempt has published. Where no completion can
    /// replace anything, and for an upload that nobody has the id of, nothing waits for the abort: what stays only takes room.
    ///
    /// With no name it goes through all of them, and fails for none.
    pub(super) async fn reap(&self, name: Option<&str>) -> Result<(), Failed> {
        let all: Vec<Doomed> = lock(&self.doomed).iter().filter(|d| name.is_none_or(|n| d.name == n)).cloned().collect();
        let conditional = self.remote.conditional.load(Ordering::Relaxed);
        for d in all {
            let Ok(path) = self.path(&d.name) else { continue };
            let done = match &d.upload {
                Some(id) => self.abort_upload(&path, id).await,
                None if name.is_some() => continue,
                None => match self.abort_unknown(&d.name, &path).await {
                    Ok(false) => continue,
                    r => r.map(|_| ()),
                },
            };
            match done {
                Ok(()) => {}
                Err(f) if conditional || d.upload.is_none() => {
                    let lasting = f.is_lasting();
                    tracing::warn!(error = %super::SinkError::from(f), "an upload cannot be aborted, and stays");
                    // What is refused for good is left to the sweep of the next start.
                    if !lasting {
                        continue;
                    }
                }
                Err(_) if name.is_none() => continue,
                Err(f) if f.is_lasting() => {
                    let text = format!("an earlier upload has to be aborted first, which the store refuses (s3:AbortMultipartUpload): {f}");
                    return Err(Failed::new(Class::Refused, self.context(StoreOp::Abort, &path), text));
                }
                Err(f) => return Err(f),
            }
            lock(&self.doomed).remove(&d);
        }
        Ok(())
    }

    /// Aborts uploads for the name that nobody knows; false while one is being begun.
    async fn abort_unknown(&self, name: &str, path: &Path) -> Result<bool, Failed> {
        let Some(lister) = &self.remote.lister else { return Ok(true) };
        let page = self.repeat(StoreOp::List, path, || lister.page(path.as_ref(), None)).await?;
        // After the list: what was begun later is not on it.
        if lock(&self.beginning).contains(name) {
            return Ok(false);
        }
        for open in page.uploads.into_iter().filter(|o| o.key == path.as_ref()) {
            if !lock(&self.live).contains(&open.upload) {
                self.abort_upload(path, &open.upload).await?;
            }
        }
        Ok(true)
    }

    /// Aborts the uploads of this log that this process does not know.
    pub(super) async fn sweep(&self) -> Result<Swept, Failed> {
        let Some(lister) = &self.remote.lister else { return Ok(Swept { removed: 0, complete: true }) };
        let root = Path::from(self.settings.prefix.as_str());
        let prefix = if self.settings.prefix.is_empty() { String::new() } else { format!("{}/", self.settings.prefix) };
        let mine = self.log.to_string();
        let probes = format!("{prefix}_arc/{mine}/");
        let mut swept = Swept { removed: 0, complete: true };
        let mut after = None;
        let conditional = self.remote.conditional.load(Ordering::Relaxed);
        let mut refused = 0;
        for _ in 0..MOST_PAGES {
            let page = match self.repeat(StoreOp::List, &root, || lister.page(&prefix, after.as_ref())).await {
                Ok(p) => p,
                Err(f) if f.class == Class::Denied && !conditional => {
                    let text = format!(
                        "this store completes uploads by overwriting, so those of earlier runs have to be found and aborted before anything is \
                         shipped; it refuses to list them (s3:ListBucketMultipartUploads): {f}"
                    );
                    return Err(Failed::new(Class::Denied, self.context(StoreOp::List, &root), text));
                }
                Err(f) if matches!(f.class, Class::Refused | Class::Denied) => {
                    tracing::warn!(error = %super::SinkError::from(f), "unfinished uploads cannot be listed: a lifecycle rule of the bucket should abort them");
                    return Ok(Swept { complete: false, ..swept });
                }
                Err(f) => return Err(f),
            };
            for open in page.uploads {
                let file = open.key.rsplit('/').next().unwrap_or_default();
                if !(file.starts_with(&mine) || open.key.starts_with(&probes)) || lock(&self.live).contains(&open.upload) {
                    continue;
                }
                let Ok(path) = Path::parse(&open.key) else { continue };
                match self.abort_upload(&path, &open.upload).await {
                    Ok(()) => swept.removed += 1,
                    Err(f) if conditional && f.is_lasting() && refused < MOST_REFUSED => {
                        refused += 1;
                        swept.complete = false;
                        tracing::warn!(error = %super::SinkError::from(f), "an upload of an earlier run cannot be aborted, and stays");
                    }
                    Err(f) => return Err(f),
                }
            }
            match page.next {
                Some(n) => after = Some(n),
                None => return Ok(swept),
            }
        }
        Ok(Swept { complete: false, ..swept })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_uploads() {
        let xml = "<?xml version=\"1.0\"?><ListMultipartUploadsResult xmlns=\"x\"><Bucket>b</Bucket><NextKeyMarker>k2</NextKeyMarker>\
                   <NextUploadIdMarker>u2</NextUploadIdMarker><IsTruncated>true</IsTruncated><Upload><Key>a/k&amp;1</Key><UploadId>u1</UploadId>\
                   </Upload><Upload><Key>k2</Key><UploadId>u2</UploadId></Upload></ListMultipartUploadsResult>";
        let page = parse_page(xml).unwrap();
        let open = |k: &str, u: &str| Open { key: k.into(), upload: u.into() };
        assert_eq!(page.uploads, [open("a/k&1", "u1"), open("k2", "u2")]);
        assert_eq!(page.next, Some(("k2".into(), "u2".into())));
        let end = "<ListMultipartUploadsResult><IsTruncated>false</IsTruncated></ListMultipartUploadsResult>";
        assert!(parse_page(end).unwrap().next.is_none());
        assert!(parse_page("<Error><Code>InternalError</Code></Error>").is_none(), "200 with an error in its body is no empty list");
        assert!(parse_page("").is_none());
        let odd = "<ListMultipartUploadsResult><Upload><UploadId>u</UploadId></Upload><Upload><Key>k</Key><UploadId>u</UploadId></Upload></ListMultipartUploadsResult>";
        assert_eq!(parse_page(odd).unwrap().uploads, [open("k", "u")]);
        assert_eq!(encoded("a/b=c d"), "a%2Fb%3Dc%20d");
    }
}
