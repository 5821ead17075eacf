//! What stands between the client of the store and the network: notes every answer for the call it belongs to, and makes the completion
//! of a multipart upload conditional where the store honours that.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use http_body_util::{BodyExt, Limited};
use hyper::header::{AUTHORIZATION, HeaderName, HeaderValue, IF_NONE_MATCH};
use hyper::{Method, StatusCode};
use object_store::ClientOptions;
use object_store::azure::{AzureAuthorizer, AzureCredential, MicrosoftAzure};
use object_store::client::{HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService, ReqwestConnector};

use super::errors::{Seen, note};

/// Bytes of an error's body that are looked at.
const ERROR_BODY: usize = 64 << 10;

/// Signs a request to Azure anew after a header was added.
pub(super) type Resign = Arc<OnceLock<(MicrosoftAzure, String)>>;

/// The header that asks for a completion only where no object has the name.
pub(super) type Condition = (HeaderName, HeaderValue);

/// As S3 and Azure know it.
pub(super) const IF_NOTHING_MATCHES: Condition = (IF_NONE_MATCH, HeaderValue::from_static("*"));
/// As Google knows it.
pub(super) const IF_NO_GENERATION: Condition = (HeaderName::from_static("x-goog-if-generation-match"), HeaderValue::from_static("0"));

/// Makes clients that note their answers.
pub(super) struct Connector {
    pub(super) inner: Arc<dyn HttpConnector>,
    pub(super) condition: Condition,
    /// A multipart upload is completed only where no object has the name: the store was seen to honour that.
    pub(super) conditional: Arc<AtomicBool>,
    pub(super) resign: Option<Resign>,
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").finish_non_exhaustive()
    }
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let (conditional, resign) = (Arc::clone(&self.conditional), self.resign.clone());
        Ok(HttpClient::new(Watched { inner: self.inner.connect(options)?, condition: self.condition.clone(), conditional, resign }))
    }
}

/// The usual connector, or for a store on this machine one that passes by every proxy of the environment.
pub(super) fn connector(endpoint: Option<&str>, timeout: Duration) -> Arc<dyn HttpConnector> {
    let host = endpoint.and_then(|e| e.parse::<hyper::Uri>().ok()).and_then(|u| u.host().map(str::to_owned));
    if host.as_deref().is_some_and(crate::config::is_loopback) {
        Arc::new(Direct { timeout })
    } else {
        Arc::new(ReqwestConnector::default())
    }
}

#[derive(Debug)]
struct Direct {
    timeout: Duration,
}

impl HttpConnector for Direct {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = reqwest::Client::builder().no_proxy().read_timeout(self.timeout).connect_timeout(self.timeout).http1_only().build();
        client.map(HttpClient::new).map_err(|e| object_store::Error::Generic { store: "HTTP client", source: Box::new(e) })
    }
}

#[derive(Debug)]
struct Watched {
    inner: HttpClient,
    condition: Condition,
    conditional: Arc<AtomicBool>,
    resign: Option<Resign>,
}

/// The request that makes an object of the parts of an upload.
fn completes(request: &HttpRequest) -> bool {
    let query = request.uri().query().unwrap_or_default();
    let has = |key: &str| query.split('&').any(|p| p.split('=').next() == Some(key));
    match *request.method() {
        Method::POST => has("uploadId"),
        Method::PUT => query.split('&').any(|p| p == "comp=blocklist"),
        _ => false,
    }
}

/// A removal that is answered with success and an error in the body has not been done: it is made the error that it is, since the abort of an
/// upload is relied upon.
async fn undone(response: HttpResponse) -> HttpResponse {
    if response.status() != StatusCode::OK {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let body = Limited::new(body, ERROR_BODY).collect().await.map(|b| b.to_bytes());
    if body.as_ref().map_or(true, |b| memchr::memmem::find(b, b"<Error").is_some()) {
        parts.status = StatusCode::INTERNAL_SERVER_ERROR;
    }
    HttpResponse::from_parts(parts, body.unwrap_or_default().into())
}

/// Method, scheme and host: a path or a query may hold a secret.
fn asked(request: &HttpRequest) -> String {
    let uri = request.uri();
    let port = uri.port().map(|p| format!(":{p}")).unwrap_or_default();
    format!("{} {}://{}{port}", request.method(), uri.scheme_str().unwrap_or("http"), uri.host().unwrap_or_default())
}

impl Watched {
    async fn make_conditional(&self, request: &mut HttpRequest) -> Result<(), HttpError> {
        // S3 wants only its own headers signed; Azure wants this one signed with the account's key.
        let (name, value) = self.condition.clone();
        request.headers_mut().insert(name, value);
        let Some((store, account)) = self.resign.as_ref().and_then(|r| r.get()) else { return Ok(()) };
        let failed = |e| HttpError::new(HttpErrorKind::Unknown, e);
        let credential = store.credentials().get_credential().await.map_err(failed)?;
        if matches!(&*credential, AzureCredential::AccessKey(_)) {
            request.headers_mut().remove(AUTHORIZATION);
            AzureAuthorizer::new(&credential, account).try_authorize(request).map_err(failed)?;
        }
        Ok(())
    }
}

#[async_trait]
impl HttpService for Watched {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        note(Seen::default());
        if self.conditional.load(Ordering::Relaxed) && completes(&request) {
            self.make_conditional(&mut request).await?;
        }
        let head = request.method() == Method::HEAD;
        let asked = Some(asked(&request));
        let removes = request.method() == Method::DELETE;
        let response = match self.inner.execute(request).await {
            Ok(r) => r,
            Err(e) => {
                note(Seen { network: Some(e.kind()), asked, ..Seen::default() });
                return Err(e);
            }
        };
        let response = if removes { undone(response).await } else { response };
        let status = response.status();
        let mut seen = Seen { status: Some(status.as_u16()), head, asked, ..Seen::default() };
        seen.code = response.headers().get("x-ms-error-code").and_then(|v| v.to_str().ok()).map(str::to_owned);
        if status.is_success() || status == StatusCode::NOT_MODIFIED || head {
            note(seen);
            return Ok(response);
        }
        let (parts, body) = response.into_parts();
        // A body that breaks off or is too long says nothing; the status does.
        let body = Limited::new(body, ERROR_BODY).collect().await.map(|b| b.to_bytes()).unwrap_or_default();
        let text = String::from_utf8_lossy(&body);
        seen.code = element(&text, "Code").or(seen.code);
        seen.message = element(&text, "Message").map(|m| m.lines().next().unwrap_or_default().to_owned());
        note(seen);
        Ok(HttpResponse::from_parts(parts, body.into()))
    }
}

/// The text of the first element of this name.
pub(super) fn element(xml: &str, name: &str) -> Option<String> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let (_, rest) = xml.split_once(&open)?;
    let (text, _) = rest.split_once(&close)?;
    Some(unescape(text))
}

fn unescape(text: &str) -> String {
    let plain = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&apos;", "'"), ("&#34;", "\""), ("&#39;", "'")];
    plain.iter().fold(text.to_owned(), |t, (from, to)| t.replace(from, to)).replace("&amp;", "&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_of_an_answer() {
        let xml = "<?xml version=\"1.0\"?><Error><Code>SlowDown</Code><Message>a &amp;lt; b &lt; &quot;c&quot;</Message></Error>";
        assert_eq!(element(xml, "Code").as_deref(), Some("SlowDown"));
        assert_eq!(element(xml, "Message").as_deref(), Some("a &lt; b < \"c\""));
        assert_eq!(element(xml, "Key"), None);
        assert_eq!(element("<Code>x", "Code"), None);
    }

    #[test]
    fn only_the_completion_of_an_upload_is_made_conditional() {
        let of = |method: Method, uri: &str| {
            let mut r = HttpRequest::new(object_store::client::HttpRequestBody::empty());
            *r.method_mut() = method;
            *r.uri_mut() = uri.parse().unwrap();
            completes(&r)
        };
        assert!(of(Method::POST, "http://h/b/k?uploadId=1"));
        assert!(of(Method::PUT, "http://h/b/k?comp=blocklist"));
        assert!(!of(Method::POST, "http://h/b/k?uploads="));
        assert!(!of(Method::PUT, "http://h/b/k?partNumber=1&uploadId=1"));
        assert!(!of(Method::PUT, "http://h/b/k?comp=block&blockid=1"));
        assert!(!of(Method::DELETE, "http://h/b/k?uploadId=1"));
        assert!(!of(Method::PUT, "http://h/b/k"));
    }
}
