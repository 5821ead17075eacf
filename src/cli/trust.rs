//! Which certificates `arc healthcheck` and `arc bench` take from a server.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;

/// Which certificates are good.
#[derive(Clone, Debug)]
pub enum Trust {
    Any,
    /// Those in the file, and those that they have signed.
    File(PathBuf),
}

/// The client side of TLS.
///
/// # Errors
/// The file cannot be read, or holds no certificate.
pub fn client_config(trust: &Trust) -> io::Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions().map_err(io::Error::other)?;
    let verifier: Arc<dyn ServerCertVerifier> = match trust {
        Trust::Any => Arc::new(AnyCertificate(provider)),
        Trust::File(path) => Arc::new(FromFile::read(path, provider)?),
    };
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

/// What to do about a certificate that was refused; `None` for other errors.
pub fn explain(e: &io::Error, host: &str) -> Option<String> {
    let Some(Error::InvalidCertificate(why)) = e.get_ref()?.downcast_ref::<Error>() else { return None };
    Some(match why {
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => format!(
            "the server's certificate is not made for {host:?}: ask by a name that stands in its subjectAltName, or make one with that name \
             (openssl req -x509 ... -addext subjectAltName=DNS:localhost,IP:127.0.0.1)"
        ),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "the server's certificate has expired: make another".into(),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the server's certificate is not valid yet: compare the clocks of both machines".into()
        }
        CertificateError::UnknownIssuer => {
            "the server's certificate is neither in the file of --ca nor signed by one that is: give its own file, or that of its issuer"
                .into()
        }
        CertificateError::Other(why) if is_authority(why) => {
            "the server's certificate says of itself that it is an authority (CA:TRUE), and is not in the file of --ca: give its own file"
                .into()
        }
        other => format!("the server's certificate is refused: {other}"),
    })
}

/// An authority's certificate was shown as a server's. The library tells it by the text of another error alone.
fn is_authority(why: &OtherError) -> bool {
    why.to_string().contains("CaUsedAsEndEntity")
}

/// Held against a file. A certificate that stands in the file itself is good although it says of itself that it is an authority, as those of
/// `openssl req -x509` do: the file names this very one.
#[derive(Debug)]
struct FromFile {
    listed: Vec<CertificateDer<'static>>,
    chain: Arc<WebPkiServerVerifier>,
}

impl FromFile {
    fn read(path: &Path, provider: Arc<CryptoProvider>) -> io::Result<Self> {
        let bad = |why: String| io::Error::new(io::ErrorKind::InvalidData, format!("--ca {}: {why}", path.display()));
        let (mut roots, mut listed) = (RootCertStore::empty(), Vec::new());
        for certificate in CertificateDer::pem_file_iter(path).map_err(|e| bad(e.to_string()))? {
            let certificate = certificate.map_err(|e| bad(e.to_string()))?;
            roots.add(certificate.clone()).map_err(|e| bad(e.to_string()))?;
            listed.push(certificate);
        }
        if roots.is_empty() {
            return Err(bad("expected PEM certificates, found none".to_owned()));
        }
        let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().map_err(|e| bad(e.to_string()))?;
        Ok(Self { listed, chain })
    }
}

impl ServerCertVerifier for FromFile {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let judged = self.chain.verify_server_cert(certificate, others, name, ocsp, now);
        match judged {
            // Its times were looked at before what it says of itself; its name was not.
            Err(Error::InvalidCertificate(CertificateError::Other(ref why)))
                if is_authority(why) && self.listed.iter().any(|c| c == certificate) =>
            {
                verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
                Ok(ServerCertVerified::assertion())
            }
            judged => judged,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// Whoever answers is taken for the server; that it has the key of the certificate that it shows is still checked.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
