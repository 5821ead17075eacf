//! The routes that show and change tokens. Their shapes are those of Arc, so that its client manages tokens here.

use std::sync::Arc;

use axum::http::HeaderValue;
use axum::http::header::CACHE_CONTROL;
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};

use super::auth::identify;
use super::errors::{self, Failure};
use super::routes::{Call, RouteRow};
use super::{App, Backend};
use crate::auth::{AuthError, Change, NewToken, Permission, Tokens, lifetime};
use crate::error::{Reason, RequestError};

/// Largest body that says something about a token, in bytes.
const MAX_BODY: usize = 64 << 10;

/// What a call does with the token of its path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Deed {
    Show,
    Update,
    Rotate,
    Revoke,
    Delete,
}

/// `GET /api/v1/auth/verify`
pub(super) fn verify<B: Backend>(app: &App<B>, row: &RouteRow, call: &Call) -> Result<Response, Failure> {
    let body = match identify(app, row, call) {
        Ok(Some(token)) => json!({"valid": true, "token_info": token.json(), "permissions": token.permissions}),
        // Without authentication every token will do, and none.
        Ok(None) => json!({"valid": true, "auth_enabled": false, "permissions": Permission::ALL}),
        Err(Failure::Unauthorized(why)) => return Err(Failure::NotVerified(why)),
        Err(other) => return Err(other),
    };
    Ok(private(errors::json(200, &body)))
}

/// `GET /api/v1/auth/tokens`
pub(super) fn list<B: Backend>(app: &App<B>) -> Result<Response, Failure> {
    let all: Vec<Value> = tokens(app)?.list().iter().map(|t| t.json()).collect();
    Ok(private(errors::json(200, &json!({"success": true, "count": all.len(), "tokens": all}))))
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Lifetime {
    Seconds(u64),
    Text(String),
}

impl Lifetime {
    fn us(&self) -> Result<i64, AuthError> {
        match self {
            Self::Seconds(n) => lifetime(&n.to_string()),
            Self::Text(text) => lifetime(text),
        }
    }
}

/// Unknown fields are refused: a misspelt limit would make a token without one.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    name: Option<String>,
    description: Option<String>,
    permissions: Option<Vec<String>>,
    databases: Option<Vec<String>>,
    expires_in: Option<Lifetime>,
}

impl Asked {
    fn permissions(&self) -> Result<Option<Vec<Permission>>, AuthError> {
        self.permissions.as_ref().map(|all| all.iter().map(|p| Permission::parse(p)).collect()).transpose()
    }

    fn lifetime(&self) -> Result<Option<i64>, AuthError> {
        self.expires_in.as_ref().map(Lifetime::us).transpose()
    }
}

async fn asked<B: Backend>(app: &App<B>, call: &mut Call) -> Result<Asked, Failure> {
    let (body, _share) = call.body.read_up_to(app, MAX_BODY).await?;
    serde_json::from_slice(&body).map_err(|e| RequestError::Invalid(format!("the body is not as expected: {e}")).into())
}

/// `POST /api/v1/auth/tokens`
pub(super) async fn create<B: Backend>(app: &App<B>, call: &mut Call) -> Result<Response, Failure> {
    let store = tokens(app)?;
    let asked = asked(app, call).await?;
    let permissions = asked.permissions().map_err(failure)?.unwrap_or_else(|| vec![Permission::Read, Permission::Write]);
    let lifetime_us = asked.lifetime().map_err(failure)?;
    let Some(name) = asked.name else { return Err(RequestError::Invalid("a token needs a name".to_owned()).into()) };
    let new = NewToken { name, description: asked.description, permissions, databases: asked.databases, lifetime_us };
    let (token, secret) = edit(store, move |s| s.create(new)).await?;
    tracing::info!(request_id = %call.id, token = token.id, name = token.name, permissions = ?token.permissions, "a token was created");
    let mut body = token.json();
    body["success"] = true.into();
    body["token"] = secret.reveal().into();
    body["message"] = "this is shown once: keep the token now".into();
    Ok(private(errors::json(201, &body)))
}

/// What stands below `/api/v1/auth/tokens/{id}`.
pub(super) async fn one<B: Backend>(app: &App<B>, call: &mut Call, deed: Deed) -> Result<Response, Failure> {
    let store = tokens(app)?;
    let id = call.head.uri.path().split('/').nth(5).unwrap_or_default();
    let id: u64 = id.parse().map_err(|_| Failure::NoSuch(format!("token {id:?} not found: expected a number")))?;
    let body = match deed {
        Deed::Show => json!({"success": true, "token": store.get(id).map_err(failure)?.json()}),
        Deed::Update => {
            let asked = asked(app, call).await?;
            if asked.databases.is_some() {
                let why = "the databases of a token cannot be changed: create another one".to_owned();
                return Err(RequestError::Invalid(why).into());
            }
            let change = Change {
                permissions: asked.permissions().map_err(failure)?,
                lifetime_us: asked.lifetime().map_err(failure)?,
                name: asked.name,
                description: asked.description,
            };
            let token = edit(store, move |s| s.update(id, change)).await?;
            json!({"success": true, "token": token.json(), "message": "the token was updated"})
        }
        Deed::Rotate => {
            let (token, secret) = edit(store, move |s| s.rotate(id)).await?;
            let message = "this is shown once: keep the token now; the one before is dead";
            json!({"success": true, "id": token.id, "new_token": secret.reveal(), "message": message})
        }
        Deed::Revoke => {
            edit(store, move |s| s.revoke(id)).await?;
            json!({"success": true, "id": id, "message": "the token was revoked"})
        }
        Deed::Delete => {
            edit(store, move |s| s.delete(id)).await?;
            json!({"success": true, "id": id, "message": "the token was deleted"})
        }
    };
    if deed != Deed::Show {
        tracing::info!(request_id = %call.id, token = id, deed = ?deed, "a token was changed");
    }
    Ok(private(errors::json(200, &body)))
}

fn tokens<B: Backend>(app: &App<B>) -> Result<Arc<Tokens>, Failure> {
    app.tokens.clone().ok_or_else(|| Failure::NoSuch("there are no tokens: auth.enabled is false".to_owned()))
}

/// Edits wait for the disk, and maybe for another process.
async fn edit<T: Send + 'static>(
    store: Arc<Tokens>,
    change: impl FnOnce(&Tokens) -> Result<T, AuthError> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(move || change(&store)).await {
        Ok(done) => done.map_err(failure),
        Err(e) => match e.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_cancelled) => Err(RequestError::unavailable(Reason::Shutdown, "the server is stopping").into()),
        },
    }
}

fn failure(e: AuthError) -> Failure {
    match e {
        AuthError::Refused(why) => RequestError::Invalid(why).into(),
        AuthError::NoSuch(_) => Failure::NoSuch(e.to_string()),
        AuthError::Locked { .. } | AuthError::Exposed { .. } | AuthError::Corrupt { .. } => {
            tracing::error!("tokens cannot be changed: {e}");
            RequestError::unavailable(Reason::NotStored, e.to_string()).into()
        }
        AuthError::Io { .. } => {
            tracing::error!("tokens cannot be changed: {e}");
            RequestError::unavailable(Reason::UnknownOutcome, e.to_string()).into()
        }
    }
}

/// Answers that hold a token, or say much about one, are for nobody's cache.
fn private(mut response: Response) -> Response {
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
