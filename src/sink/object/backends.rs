//! From settings to a store: which service, where, with which credentials.
//!
//! Without keys in the configuration the credentials come from the environment or from the machine (instance metadata, container and web
//! identities), and are renewed before they expire.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, Checksum, S3ConditionalPut};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::client::HttpConnector;
use object_store::gcp::{GcpCredential, GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::{BackoffConfig, ClientOptions, RetryConfig, StaticCredentialProvider};

use super::Remote;
use super::http::{Connector, IF_NO_GENERATION, IF_NOTHING_MATCHES, Resign, connector};
use super::renew::{Renew, Renewing};
use super::uploads::{Credentials, Lister};
use crate::config::{CloudVariables, Secret};

/// What is common to the services.
#[derive(Clone, Default)]
pub struct Endpoint {
    /// For one request, to connect and between two reads.
    pub timeout: Duration,
    /// What the client reads from the environment.
    pub env: CloudVariables,
    /// Takes the place of the network, for simulations.
    pub connector: Option<Arc<dyn HttpConnector>>,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

/// S3 and what speaks like it.
#[derive(Clone, Debug, Default)]
pub struct S3Settings {
    pub bucket: String,
    /// Empty: from the environment, else us-east-1.
    pub region: String,
    /// Empty: Amazon's own. `host[:port]`, or with `http://` or `https://` before it.
    pub endpoint: String,
    /// Where the endpoint says neither.
    pub ssl: bool,
    pub path_style: bool,
    /// Both empty: see the module.
    pub access_key: String,
    pub secret_key: Secret,
    /// Bodies carry a checksum that the store compares.
    pub checksums: bool,
}

/// Azure Blob Storage.
#[derive(Clone, Debug, Default)]
pub struct AzureSettings {
    pub account: String,
    pub container: String,
    /// Empty: `https://<account>.blob.core.windows.net`.
    pub endpoint: String,
    /// The emulator's addresses: the account is part of the path.
    pub emulator: bool,
    pub access_key: Secret,
    pub sas_token: Secret,
}

/// Google Cloud Storage.
#[derive(Clone, Debug, Default)]
pub struct GcsSettings {
    pub bucket: String,
    /// Empty: Google's own. With plain http requests are not signed: for a stand-in.
    pub endpoint: String,
    /// Empty: see the module.
    pub service_account_file: PathBuf,
}

fn client_options(timeout: Duration, plain: bool) -> ClientOptions {
    // The whole of a large object may take longer than one request may: each read is bounded here, each call by the sink.
    ClientOptions::new()
        .with_allow_http(plain)
        .with_timeout_disabled()
        .with_read_timeout(timeout)
        .with_connect_timeout(timeout)
        .with_pool_idle_timeout(Duration::from_secs(30))
        .with_pool_max_idle_per_host(64)
}

/// Nothing is repeated below the sink, which knows what may be repeated.
fn no_retries() -> RetryConfig {
    RetryConfig { backoff: BackoffConfig::default(), max_retries: 0, retry_timeout: Duration::from_secs(1) }
}

/// With the scheme, without `/` at the end.
fn with_scheme(endpoint: &str, ssl: bool) -> String {
    let e = endpoint.trim_end_matches('/');
    if e.contains("://") { e.to_owned() } else { format!("{}://{e}", if ssl { "https" } else { "http" }) }
}

fn is_plain(url: &str) -> bool {
    url.starts_with("http://")
}

/// What `from_env` of the library does, with clean values: one with a line break at its end panics there when it becomes a header.
fn s3_of(env: &CloudVariables) -> AmazonS3Builder {
    env.iter().fold(AmazonS3Builder::new(), |b, (name, value)| match name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>() {
        Ok(key) => b.with_config(key, value),
        Err(_) => b,
    })
}

fn azure_of(env: &CloudVariables) -> MicrosoftAzureBuilder {
    let b = env.iter().fold(MicrosoftAzureBuilder::new(), |b, (name, value)| match name.to_ascii_lowercase().parse::<AzureConfigKey>() {
        Ok(key) if name.starts_with("AZURE_") => b.with_config(key, value),
        _ => b,
    });
    match env.get("MSI_ENDPOINT") {
        Some(url) => b.with_msi_endpoint(url.to_owned()),
        None => b,
    }
}

fn google_of(env: &CloudVariables) -> GoogleCloudStorageBuilder {
    let b = match env.get("SERVICE_ACCOUNT") {
        Some(path) => GoogleCloudStorageBuilder::new().with_service_account_path(path),
        None => GoogleCloudStorageBuilder::new(),
    };
    env.iter().fold(b, |b, (name, value)| match name.to_ascii_lowercase().parse::<GoogleConfigKey>() {
        Ok(key) if name.starts_with("GOOGLE_") => b.with_config(key, value),
        _ => b,
    })
}

impl Remote {
    /// # Errors
    /// Text that says which setting does not do.
    pub fn s3(s: &S3Settings, e: &Endpoint) -> Result<Self, String> {
        // Keys of the configuration go with nothing of the environment: a session token there belongs to other keys.
        let own_keys = !s.access_key.is_empty() || !s.secret_key.is_empty();
        let b = if own_keys {
            AmazonS3Builder::new().with_access_key_id(&s.access_key).with_secret_access_key(s.secret_key.reveal())
        } else {
            s3_of(&e.env)
        };
        Self::s3_from(b, own_keys, s, e)
    }

    pub(super) fn s3_from(b: AmazonS3Builder, own_keys: bool, s: &S3Settings, e: &Endpoint) -> Result<Self, String> {
        let mut b = b.with_bucket_name(&s.bucket);
        if !s.region.is_empty() {
            b = b.with_region(&s.region);
        }
        let region = b.get_config_value(&AmazonS3ConfigKey::Region).unwrap_or_else(|| "us-east-1".into());
        let from_env = [AmazonS3ConfigKey::S3Endpoint, AmazonS3ConfigKey::Endpoint].iter().find_map(|k| b.get_config_value(k));
        let given = if s.endpoint.is_empty() { from_env } else { Some(s.endpoint.clone()) };
        let url = given.map_or_else(|| format!("https://s3.{region}.amazonaws.com"), |e| with_scheme(&e, s.ssl));
        // A number has no subdomains.
        let host_is_number = url
            .parse::<hyper::Uri>()
            .is_ok_and(|u| u.host().is_some_and(|h| h.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok()));
        let path_style = s.path_style || host_is_number;
        let bucket_url = if path_style { format!("{url}/{}", s.bucket) } else { url.replacen("://", &format!("://{}.", s.bucket), 1) };
        // Set always, so that what is listed is in the bucket that is written to, whatever the environment says.
        let endpoint = if path_style { url } else { bucket_url.clone() };
        let conditional = Arc::new(AtomicBool::new(false));
        let inner = e.connector.clone().unwrap_or_else(|| connector(Some(&endpoint), e.timeout));
        let watched =
            || Connector { inner: Arc::clone(&inner), condition: IF_NOTHING_MATCHES, conditional: Arc::clone(&conditional), resign: None };
        let options = client_options(e.timeout, is_plain(&endpoint));
        let mut b = b
            .with_config(AmazonS3ConfigKey::S3Endpoint, &endpoint)
            .with_virtual_hosted_style_request(!path_style)
            .with_allow_http(is_plain(&endpoint))
            .with_client_options(options.clone())
            .with_retry(no_retries())
            .with_conditional_put(S3ConditionalPut::ETagMatch)
            // Many stores know the plain request only.
            .with_disable_bulk_delete(true)
            .with_http_connector(watched());
        if s.checksums {
            b = b.with_checksum_algorithm(Checksum::SHA256);
        }
        let failed = |e: object_store::Error| format!("storage.s3_*: {e}");
        let mut renew: Option<Renew> = None;
        if !own_keys {
            let base = b.clone();
            let renewing = Renewing::new(move || Ok(Arc::clone(base.clone().build()?.credentials()))).map_err(failed)?;
            b = b.with_credentials(Arc::clone(&renewing) as _);
            renew = Some(Box::new(move || renewing.renew()));
        }
        let store = Arc::new(b.build().map_err(failed)?);
        let client = watched().connect(&options).map_err(|e| format!("storage.s3_endpoint: {e}"))?;
        let credentials = Credentials::Aws { provider: Arc::clone(store.credentials()), region };
        Ok(Self {
            parts: Arc::clone(&store) as _,
            store,
            lister: Some(Lister { client, url: bucket_url.clone(), credentials }),
            conditional,
            renew,
            description: format!("s3 {bucket_url}"),
        })
    }

    /// # Errors
    /// Text that says which setting does not do.
    pub fn azure(s: &AzureSettings, e: &Endpoint) -> Result<Self, String> {
        let endpoint = match (s.endpoint.as_str(), s.emulator) {
            ("", true) => format!("http://127.0.0.1:10000/{}", s.account),
            ("", false) => format!("https://{}.blob.core.windows.net", s.account),
            (given, true) if !given.trim_end_matches('/').ends_with(&format!("/{}", s.account)) => {
                format!("{}/{}", with_scheme(given, false), s.account)
            }
            (given, emulator) => with_scheme(given, !emulator),
        };
        let conditional = Arc::new(AtomicBool::new(false));
        let resign: Resign = Arc::default();
        let inner = e.connector.clone().unwrap_or_else(|| connector(Some(&endpoint), e.timeout));
        let watched =
            Connector { inner, condition: IF_NOTHING_MATCHES, conditional: Arc::clone(&conditional), resign: Some(Arc::clone(&resign)) };
        // As with S3: the environment may hold another credential, which would go first.
        let own_keys = !s.access_key.is_empty() || !s.sas_token.is_empty();
        let b = if own_keys { MicrosoftAzureBuilder::new() } else { azure_of(&e.env) };
        let mut b = b
            .with_account(&s.account)
            .with_container_name(&s.container)
            .with_endpoint(endpoint.clone())
            .with_client_options(client_options(e.timeout, is_plain(&endpoint)))
            .with_allow_http(is_plain(&endpoint))
            .with_retry(no_retries())
            .with_http_connector(watched);
        if !s.access_key.is_empty() {
            b = b.with_access_key(s.access_key.reveal());
        }
        if !s.sas_token.is_empty() {
            b = b.with_config(AzureConfigKey::SasKey, s.sas_token.reveal());
        }
        let failed = |e: object_store::Error| format!("storage.azure_*: {e}");
        let mut renew: Option<Renew> = None;
        if !own_keys {
            let base = b.clone();
            let renewing = Renewing::new(move || Ok(Arc::clone(base.clone().build()?.credentials()))).map_err(failed)?;
            b = b.with_credentials(Arc::clone(&renewing) as _);
            renew = Some(Box::new(move || renewing.renew()));
        }
        let store = b.build().map_err(failed)?;
        let _ = resign.set((store.clone(), s.account.clone()));
        let store = Arc::new(store);
        let description = format!("azure {endpoint}/{}", s.container);
        // Blocks of no blob belong to its name, not to an upload with an id, and go by themselves after a week.
        Ok(Self { parts: Arc::clone(&store) as _, store, lister: None, conditional, renew, description })
    }

    /// # Errors
    /// Text that says which setting does not do.
    pub fn gcs(s: &GcsSettings, e: &Endpoint) -> Result<Self, String> {
        let endpoint = if s.endpoint.is_empty() { "https://storage.googleapis.com".to_owned() } else { with_scheme(&s.endpoint, true) };
        let conditional = Arc::new(AtomicBool::new(false));
        let inner = e.connector.clone().unwrap_or_else(|| connector(Some(&endpoint), e.timeout));
        let watched =
            || Connector { inner: Arc::clone(&inner), condition: IF_NO_GENERATION, conditional: Arc::clone(&conditional), resign: None };
        let options = client_options(e.timeout, is_plain(&endpoint));
        let own_keys = !s.service_account_file.as_os_str().is_empty();
        let b = if own_keys { GoogleCloudStorageBuilder::new() } else { google_of(&e.env) };
        let mut b =
            b.with_bucket_name(&s.bucket).with_client_options(options.clone()).with_retry(no_retries()).with_http_connector(watched());
        if own_keys {
            b = b.with_service_account_path(s.service_account_file.to_string_lossy());
        }
        if !s.endpoint.is_empty() {
            b = b.with_config(GoogleConfigKey::BaseUrl, &endpoint);
            if is_plain(&endpoint) {
                // Puts ask for a credential even where nothing is to be signed.
                let nobody = StaticCredentialProvider::new(GcpCredential { bearer: String::new() });
                b = b.with_config(GoogleConfigKey::SkipSignature, "true").with_credentials(Arc::new(nobody));
            }
        }
        let failed = |e: object_store::Error| format!("storage.gcs_*: {e}");
        let mut renew: Option<Renew> = None;
        if !is_plain(&endpoint) {
            let base = b.clone();
            let renewing = Renewing::new(move || Ok(Arc::clone(base.clone().build()?.credentials()))).map_err(failed)?;
            b = b.with_credentials(Arc::clone(&renewing) as _);
            renew = Some(Box::new(move || renewing.renew()));
        }
        let store = Arc::new(b.build().map_err(failed)?);
        let client = watched().connect(&options).map_err(|e| format!("storage.gcs_endpoint: {e}"))?;
        let url = format!("{endpoint}/{}", s.bucket);
        let credentials = if is_plain(&endpoint) { Credentials::None } else { Credentials::Google(Arc::clone(store.credentials())) };
        let lister = Some(Lister { client, url: url.clone(), credentials });
        Ok(Self { parts: Arc::clone(&store) as _, store, lister, conditional, renew, description: format!("gcs {url}") })
    }
}
