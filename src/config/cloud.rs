//! Variables of the clouds' own that the store's client reads: credentials, regions, endpoints.
//!
//! A file or a shell adds a line break to a value easily, and an empty variable is how many systems say "not set". So values are trimmed,
//! empty ones count as not set, and what still holds a control character is refused by name: no header takes it.

use std::ffi::OsString;

use super::keys::{Backend, Config};
use super::value::Secret;
use super::{ConfigError, Origin};

/// Names and values, clean. They hold secrets, so that none is shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CloudVariables(Vec<(String, Secret)>);

/// Of one cloud: what its names begin with, and other names that its client reads.
type Names = (&'static str, &'static [&'static str]);

/// Those that the client reads by itself, so that nothing can be trimmed: they are only checked.
const READ_BY_CLIENT: &[&str] = &["MSI_SECRET", "GCE_METADATA_HOST", "GCE_METADATA_ROOT", "GCE_METADATA_IP"];

fn names(config: &Config) -> Option<Names> {
    let s = &config.storage;
    // Keys of the configuration go with nothing of the environment.
    match s.backend {
        Backend::S3 if s.s3_access_key.is_empty() => Some(("AWS_", &[])),
        Backend::Azure if s.azure_access_key.is_empty() && s.azure_sas_token.is_empty() => {
            Some(("AZURE_", &["MSI_ENDPOINT", "MSI_SECRET"]))
        }
        Backend::Gcs if s.gcs_service_account_file.as_os_str().is_empty() => {
            Some(("GOOGLE_", &["SERVICE_ACCOUNT", "GCE_METADATA_HOST", "GCE_METADATA_ROOT", "GCE_METADATA_IP"]))
        }
        _ => None,
    }
}

impl CloudVariables {
    /// Takes what the store of the configuration would read.
    ///
    /// # Errors
    /// A value holds a control character; names the variable and not the value.
    pub(super) fn read(config: &Config, env: &[(OsString, OsString)]) -> Result<Self, ConfigError> {
        let mut out = Vec::new();
        let Some((prefix, others)) = names(config) else { return Ok(Self(out)) };
        for (name, value) in env {
            let Some(name) = name.to_str().filter(|n| n.starts_with(prefix) || others.contains(n)) else { continue };
            let by_client = READ_BY_CLIENT.contains(&name);
            let value = value.to_str().map(|v| if by_client { v } else { v.trim() });
            match value {
                Some("") => {}
                Some(v) if !v.chars().any(char::is_control) => {
                    if !by_client {
                        out.push((name.to_owned(), Secret::new(v)));
                    }
                }
                _ => {
                    return Err(ConfigError::Value {
                        key: name.to_owned(),
                        place: Origin::Env(name.to_owned()).place(),
                        expected: "UTF-8 text without control characters".into(),
                        found: "a line break or another control character, or bytes that are not UTF-8; set it again, or unset it".into(),
                    });
                }
            }
        }
        Ok(Self(out))
    }

    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(n, v)| (n.as_str(), v.reveal()))
    }

    /// The value of one variable.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(n, _)| *n == name).map(|(_, v)| v)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(backend: Backend, env: &[(&str, &str)]) -> Result<Vec<(String, String)>, String> {
        let mut config = Config::default();
        config.storage.backend = backend;
        let env: Vec<(OsString, OsString)> = env.iter().map(|(k, v)| (k.into(), v.into())).collect();
        let read = CloudVariables::read(&config, &env).map_err(|e| e.to_string())?;
        Ok(read.iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect())
    }

    fn pairs(of: &[(&str, &str)]) -> Vec<(String, String)> {
        of.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn cloud_variable_is_trimmed_and_an_empty_one_is_unset() {
        let env = [("AWS_ACCESS_KEY_ID", "k\n"), ("AWS_REGION", ""), ("AWS_SESSION_TOKEN", " \t"), ("AZURE_CLIENT_ID", "x"), ("HOME", "/")];
        assert_eq!(read(Backend::S3, &env).unwrap(), pairs(&[("AWS_ACCESS_KEY_ID", "k")]));
        assert_eq!(read(Backend::Azure, &env).unwrap(), pairs(&[("AZURE_CLIENT_ID", "x")]));
        assert_eq!(read(Backend::Gcs, &[("SERVICE_ACCOUNT", "/k\r\n")]).unwrap(), pairs(&[("SERVICE_ACCOUNT", "/k")]));
        assert!(read(Backend::Local, &[("AWS_REGION", "a\nb")]).unwrap().is_empty());
    }

    #[test]
    fn cloud_variable_with_a_control_character_is_refused_by_name() {
        for (backend, name) in [
            (Backend::S3, "AWS_SECRET_ACCESS_KEY"),
            (Backend::Azure, "AZURE_STORAGE_ACCOUNT_KEY"),
            (Backend::Azure, "MSI_SECRET"),
            (Backend::Gcs, "GOOGLE_SERVICE_ACCOUNT"),
            (Backend::Gcs, "GCE_METADATA_HOST"),
        ] {
            let e = read(backend, &[(name, "sec\nret")]).unwrap_err();
            assert!(e.contains(name) && !e.contains("sec"), "{e}");
        }
        assert!(read(Backend::Azure, &[("MSI_SECRET", "s\n")]).is_err(), "the client reads it as it is");
    }
}
