//! TLS: the certificate in force, and handshakes within the limits of a connection.
//!
//! A handshake has the time of the first head: both together may take `header_timeout` from the accept on, and the connection keeps its one
//! slot all the while, so that slow handshakes cost no more than slow heads.
//!
//! The keys of a handshake are a millisecond's work that anybody can ask for. Only half of the cores work on them at a time, so that those who
//! are connected go on beside a flood.
//!
//! A client that speaks no TLS gets no answer: a 400 would make some agents drop their data for ever, because of a setting.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::ready;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls_pki_types::pem::{self, PemObject as _};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout_at;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::conn::ConnState;
use super::{App, Backend};
use crate::metrics::Rejected;

/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{key} {}: cannot be read: {source}", path.display())]
    Unreadable {
        key: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{key} {}: expected {expected}, found {found}", path.display())]
    Bad { key: &'static str, path: PathBuf, expected: &'static str, found: String },
    #[error("server.tls_cert_file {} and server.tls_key_file {}: expected a certificate and its own key: {found}", cert.display(), key.display())]
    NoPair { cert: PathBuf, key: PathBuf, found: String },
}

/// The certificate in force. Connections that are open keep the one they began with.
pub struct Tls {
    cert: PathBuf,
    key: PathBuf,
    config: ArcSwap<ServerConfig>,
    turns: Semaphore,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("cert", &self.cert).field("key", &self.key).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads a chain of certificates and its key, both PEM.
    ///
    /// # Errors
    /// [`TlsError`], naming the file.
    pub fn open(cert: &Path, key: &Path) -> Result<Arc<Self>, TlsError> {
        let config = ArcSwap::from(load(cert, key)?);
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let turns = Semaphore::new((cores / 2).max(1));
        Ok(Arc::new(Self { cert: cert.to_path_buf(), key: key.to_path_buf(), config, turns }))
    }

    /// Reads the files again, for the connections to come.
    ///
    /// # Errors
    /// [`TlsError`]; the certificate stays as it was.
    pub fn reload(&self) -> Result<(), TlsError> {
        self.config.store(load(&self.cert, &self.key)?);
        Ok(())
    }
}

fn read(key: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    let unreadable = |source| TlsError::Unreadable { key, path: path.to_path_buf(), source };
    let meta = std::fs::metadata(path).map_err(unreadable)?;
    if !meta.is_file() || meta.len() > MAX_FILE {
        let found = if meta.is_file() { format!("{} bytes", meta.len()) } else { "a directory, a pipe or a device".to_owned() };
        return Err(TlsError::Bad { key, path: path.to_path_buf(), expected: "a PEM file of at most 1 MiB", found });
    }
    std::fs::read(path).map_err(unreadable)
}

/// Groups for keys are usual, so only what everybody may read, or others may write, is spoken of.
fn warn_if_exposed(key: &Path) {
    let mode = std::fs::metadata(key).map_or(0, |m| m.mode() & 0o7777);
    if mode & 0o026 != 0 {
        tracing::warn!("server.tls_key_file {0}: mode {mode:04o}, expected 0600 or 0640; `chmod 600 {0}` mends it", key.display());
    }
}

/// What is wrong with a PEM file. Its own text quotes the file, and that may be the key.
fn pem_text(e: &pem::Error) -> &'static str {
    match e {
        pem::Error::MissingSectionEnd { .. } => "a BEGIN line without its END line (are the line breaks lost?)",
        pem::Error::IllegalSectionStart { .. } => "a BEGIN line that does not end in -----",
        pem::Error::Base64Decode(_) => "text that is not base64 between BEGIN and END",
        pem::Error::NoItemsFound => "no such section",
        _ => "a section that cannot be read",
    }
}

fn load(cert: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    let name = "server.tls_cert_file";
    let bad = |found: String| TlsError::Bad { key: name, path: cert.to_path_buf(), expected: "PEM with BEGIN CERTIFICATE", found };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(name, cert)?).collect();
    let chain = chain.map_err(|e| bad(pem_text(&e).to_owned()))?;
    if chain.is_empty() {
        return Err(bad("no certificate in it".to_owned()));
    }
    let name = "server.tls_key_file";
    warn_if_exposed(key);
    let private = PrivateKeyDer::from_pem_slice(&read(name, key)?).map_err(|e| TlsError::Bad {
        key: name,
        path: key.to_path_buf(),
        expected: "PEM with BEGIN PRIVATE KEY, not encrypted",
        found: pem_text(&e).to_owned(),
    })?;
    let no_pair = |e: rustls::Error| TlsError::NoPair { cert: cert.to_path_buf(), key: key.to_path_buf(), found: e.to_string() };
    // Named here: what the process has as its default is for others to choose.
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(no_pair)?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(no_pair)?;
    // Clients that speak HTTP/1.0 on purpose say so.
    config.alpn_protocols = vec![b"http/1.1".to_vec(), b"http/1.0".to_vec()];
    Ok(Arc::new(config))
}

/// The encrypted side of a connection; `None` if it did not come to that.
pub(super) async fn handshake<B: Backend>(
    tls: &Tls,
    socket: TcpStream,
    state: &ConnState,
    app: &App<B>,
    drain: &mut watch::Receiver<bool>,
) -> Option<TlsStream<TcpStream>> {
    let accept = in_turns(&tls.turns, TlsAcceptor::from(tls.config.load_full()).accept(socket));
    let done = tokio::select! {
        biased;
        done = timeout_at(state.head_due(), accept) => done,
        // Nothing has been asked yet.
        _ = drain.wait_for(|drain| *drain) => return None,
    };
    let why = match done {
        Ok(Ok(stream)) => return Some(stream),
        Ok(Err(error)) => reason(&error),
        Err(_elapsed) => "it did not end within server.header_timeout".to_owned(),
    };
    app.metrics.reject(Rejected::Handshake);
    if let Some(suppressed) = app.failed_handshakes.pass(app.started.elapsed()) {
        let peer = state.peer().map(|p| p.to_string());
        tracing::warn!(peer, suppressed, "a TLS handshake failed: {why}");
    }
    None
}

/// Each step of `future` has a turn; what waits for the client has none.
async fn in_turns<F: Future>(turns: &Semaphore, future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    let mut next = std::pin::pin!(turns.acquire());
    poll_fn(|cx| {
        let turn = ready!(next.as_mut().poll(cx));
        let step = future.as_mut().poll(cx);
        drop(turn);
        next.set(turns.acquire());
        step
    })
    .await
}

fn reason(error: &io::Error) -> String {
    let tls = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)) => {
            "the client does not speak TLS: is its URL https://?".to_owned()
        }
        Some(other) => other.to_string(),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use std::task::Poll;
    use std::time::Duration;

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn steps_have_turns_and_waiting_takes_none() {
        static AT_WORK: AtomicUsize = AtomicUsize::new(0);
        static MOST: AtomicUsize = AtomicUsize::new(0);
        let turns = Arc::new(Semaphore::new(2));
        // Those that wait for ever hold nobody up.
        let waiting: Vec<_> = (0..8)
            .map(|_| {
                let turns = Arc::clone(&turns);
                tokio::spawn(async move { in_turns(&turns, std::future::pending::<()>()).await })
            })
            .collect();
        let working: Vec<_> = (0..16)
            .map(|_| {
                let turns = Arc::clone(&turns);
                tokio::spawn(async move {
                    let mut steps = 0;
                    let work = poll_fn(|cx| {
                        MOST.fetch_max(AT_WORK.fetch_add(1, SeqCst) + 1, SeqCst);
                        std::thread::sleep(Duration::from_millis(1));
                        AT_WORK.fetch_sub(1, SeqCst);
                        steps += 1;
                        if steps == 5 {
                            return Poll::Ready(steps);
                        }
                        cx.waker().wake_by_ref();
                        Poll::Pending
                    });
                    in_turns(&turns, work).await
                })
            })
            .collect();
        for w in working {
            assert_eq!(w.await.unwrap(), 5);
        }
        assert!((1..=2).contains(&MOST.load(SeqCst)), "{MOST:?}");
        for w in waiting {
            w.abort();
        }
    }

    /// Line breaks get lost where secrets are passed on in variables and YAML.
    #[test]
    fn a_key_that_cannot_be_read_is_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(&cert, made.cert.pem()).unwrap();
        let pem = made.signing_key.serialize_pem();
        let secret: Vec<&str> = pem.lines().filter(|l| !l.starts_with("-----")).collect();
        let one_line = pem.trim().replace('\n', " ");
        for bad in [
            one_line.clone(),
            format!("{one_line}\n"),
            pem.replacen("-----\n", " ", 1),
            pem.replacen('\n', "\n!", 1),
            pem.replace("-----END", "----END"),
        ] {
            std::fs::write(&key, &bad).unwrap();
            for (cert, key) in [(&cert, &key), (&key, &cert), (&key, &key)] {
                let said = load(cert, key).map(|_| ()).unwrap_err().to_string();
                let bytes = secret[0].bytes().take(4).fold(String::new(), |mut b, c| {
                    let _ = write!(b, "{c}, ");
                    b
                });
                assert!(!said.contains(&bytes) && !said.contains(&secret[0][..8]), "{said}");
                assert!(said.contains("PEM"), "{said}");
            }
        }
    }
}
