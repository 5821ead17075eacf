//! Credentials that are asked for anew when the store says that they are no good any more.
//!
//! The client renews what has a known end shortly before it. What ends earlier (a revoked session, a clock that was set) would be used
//! until then: here it is forgotten.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use object_store::CredentialProvider;

use super::errors::note_no_credentials;

type Provider<C> = Arc<dyn CredentialProvider<Credential = C>>;

/// Makes a provider that remembers nothing.
type Make<C> = Box<dyn Fn() -> object_store::Result<Provider<C>> + Send + Sync>;

/// Forgets the credentials in use.
pub(super) type Renew = Box<dyn Fn() + Send + Sync>;

pub(super) struct Renewing<C: Send + Sync + 'static> {
    make: Make<C>,
    current: ArcSwap<Provider<C>>,
}

impl<C: Send + Sync + 'static> Renewing<C> {
    /// # Errors
    /// That of `make`.
    pub(super) fn new(make: impl Fn() -> object_store::Result<Provider<C>> + Send + Sync + 'static) -> object_store::Result<Arc<Self>> {
        let current = ArcSwap::from_pointee(make()?);
        Ok(Arc::new(Self { make: Box::new(make), current }))
    }

    /// What cannot be made anew stays as it is.
    pub(super) fn renew(&self) {
        match (self.make)() {
            Ok(p) => self.current.store(Arc::new(p)),
            Err(e) => tracing::warn!(error = %e, "asking for credentials again"),
        }
    }
}

impl<C: Send + Sync + 'static> fmt::Debug for Renewing<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Renewing")
    }
}

#[async_trait]
impl<C: Send + Sync + 'static> CredentialProvider for Renewing<C> {
    type Credential = C;

    async fn get_credential(&self) -> object_store::Result<Arc<C>> {
        let current = Arc::clone(&self.current.load());
        // The requests for them are none to the store: what these show must not be taken for the store's word.
        current.get_credential().await.inspect_err(|_| note_no_credentials())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::StaticCredentialProvider;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn a_renewed_provider_asks_again() {
        let made = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&made);
        let r: Arc<Renewing<u32>> = Renewing::new(move || match count.fetch_add(1, Ordering::Relaxed) {
            2 => Err(object_store::Error::Generic { store: "x", source: "not now".into() }),
            n => Ok(Arc::new(StaticCredentialProvider::new(n))),
        })
        .unwrap();
        let rt = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let get = || *rt.block_on(r.get_credential()).unwrap();
        assert_eq!((get(), get()), (0, 0));
        r.renew();
        assert_eq!(get(), 1);
        r.renew();
        assert_eq!(get(), 1, "one that could not be made leaves the other");
        r.renew();
        assert_eq!(get(), 3);
    }
}
