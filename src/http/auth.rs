//! Who asks, and whether they may: before the handler, and before a byte of the body is read.
//!
//! [`admit`] is called in one place, for every row of the table of routes, with the row's tier. What it returns goes with the request; a
//! handler that learns which database a request is for asks it again ([`Grant::database`]).
//!
//! INVARIANT(no-route-without-its-tier): a row cannot be made without a tier, and no handler runs before [`admit`] has let it.
//!
//! Nothing here logs a token, a header or a request's target.

use std::borrow::Cow;
use std::sync::Arc;

use axum::http::header::{AUTHORIZATION, HeaderName};
use axum::http::request::Parts;

use super::errors::Failure;
use super::routes::{Call, RouteRow, Tier};
use super::{App, Backend, ops};
use crate::auth::{MAX_TOKEN, Permission, Token};

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// What a request may do.
#[derive(Clone, Debug)]
pub(super) enum Grant {
    /// Nothing has been asked of it: an open route, or one that asks by itself.
    Nothing,
    /// There is no authentication.
    Everything,
    Token(Arc<Token>),
}

impl Grant {
    /// Whether the request may touch the database.
    ///
    /// # Errors
    /// 403 if not.
    pub(super) fn database(&self, name: &str) -> Result<(), Failure> {
        match self {
            Self::Everything => Ok(()),
            Self::Token(token) if token.may_touch(name) => Ok(()),
            Self::Token(token) => Err(Failure::Forbidden(format!("token {} is limited to other databases than {name:?}", token.id))),
            Self::Nothing => Err(Failure::Forbidden("this route touches no database".to_owned())),
        }
    }
}

/// Whether a request may use the route.
///
/// # Errors
/// 401 without a live token, 403 with one that may not.
pub(super) fn admit<B: Backend>(app: &App<B>, row: &RouteRow, call: &Call) -> Result<Grant, Failure> {
    if app.tokens.is_none() {
        return Ok(Grant::Everything);
    }
    let permission = match row.tier {
        Tier::Open | Tier::Itself => return Ok(Grant::Nothing),
        Tier::Read => Permission::Read,
        Tier::Write => Permission::Write,
        Tier::Admin => Permission::Admin,
    };
    // There are tokens, see above; without them nothing is granted here.
    let Some(token) = identify(app, row, call)? else { return Ok(Grant::Nothing) };
    if !token.may(permission) {
        return Err(Failure::Forbidden(format!("token {} lacks the permission {:?}", token.id, permission.word())));
    }
    if permission != Permission::Write && token.databases.is_some() {
        return Err(Failure::Forbidden(format!("token {} is limited to some databases, and this route shows all of them", token.id)));
    }
    Ok(Grant::Token(token))
}

/// Whose request it is; `None` without authentication.
///
/// # Errors
/// 401 without a live token.
pub(super) fn identify<B: Backend>(app: &App<B>, row: &RouteRow, call: &Call) -> Result<Option<Arc<Token>>, Failure> {
    let Some(tokens) = &app.tokens else { return Ok(None) };
    let Some(text) = presented(&call.head) else {
        return Err(Failure::Unauthorized(
            "a token is needed: Authorization: Bearer or Token, the password of Basic, x-api-key, or the parameter p",
        ));
    };
    if text.is_empty() {
        return Err(Failure::Unauthorized("the credentials of Basic cannot be read: expected base64 of USER:TOKEN"));
    }
    let checked = tokens.check(&text).or_else(|denied| match behind_user(&call.head, &text) {
        Some(password) => tokens.check(password),
        None => Err(denied),
    });
    checked.map(Some).map_err(|denied| {
        if let Some(suppressed) = app.refused_tokens.pass(app.started.elapsed()) {
            let peer = call.body.peer().map(|p| p.to_string());
            tracing::warn!(request_id = %call.id, route = row.label.word(), peer, suppressed, "a request was refused: {}", denied.message());
        }
        Failure::Unauthorized(denied.message())
    })
}

/// The token that a request presents; the first of the five ways that is there and not empty.
fn presented(head: &Parts) -> Option<Cow<'_, [u8]>> {
    if let Some(value) = head.headers.get(AUTHORIZATION) {
        let value = value.as_bytes().trim_ascii();
        let at = value.iter().position(|b| *b == b' ').unwrap_or(value.len());
        let (scheme, rest) = value.split_at(at);
        let rest = rest.trim_ascii();
        if scheme.eq_ignore_ascii_case(b"bearer") || scheme.eq_ignore_ascii_case(b"token") {
            if !rest.is_empty() {
                return Some(Cow::Borrowed(rest));
            }
        } else if scheme.eq_ignore_ascii_case(b"basic") {
            match password(rest) {
                Some(password) if password.is_empty() => {}
                Some(password) => return Some(Cow::Owned(password)),
                // What cannot be read is no token that anybody has.
                None => return Some(Cow::Borrowed(b"")),
            }
        }
    }
    if let Some(value) = head.headers.get(X_API_KEY) {
        let value = value.as_bytes().trim_ascii();
        if !value.is_empty() {
            return Some(Cow::Borrowed(value));
        }
    }
    let pairs = ops::query(&head.uri).ok()?;
    pairs.into_iter().find(|(k, v)| k == "p" && !v.is_empty()).map(|(_, v)| Cow::Owned(v.into_bytes()))
}

/// The token of `Authorization: Token USER:TOKEN`, which is how clients of InfluxDB 1.8 send a name and a password to `/api/v2/write`. A token
/// that was preset may have a colon itself, so this is looked at second.
fn behind_user<'t>(head: &Parts, text: &'t [u8]) -> Option<&'t [u8]> {
    let value = head.headers.get(AUTHORIZATION)?.as_bytes().trim_ascii();
    let scheme = value.get(..6)?;
    if !scheme.eq_ignore_ascii_case(b"token ") || !value.ends_with(text) {
        return None;
    }
    let colon = text.iter().position(|b| *b == b':')?;
    text.get(colon + 1..).filter(|t| !t.is_empty())
}

/// The token of a request to an open route, if it presents one that is live. Nothing is refused or logged.
pub(super) fn known<B: Backend>(app: &App<B>, call: &Call) -> Grant {
    let Some(tokens) = &app.tokens else { return Grant::Everything };
    let Some(text) = presented(&call.head) else { return Grant::Nothing };
    let token = tokens.check(&text).ok().or_else(|| tokens.check(behind_user(&call.head, &text)?).ok());
    token.map_or(Grant::Nothing, Grant::Token)
}

/// What stands behind the first colon of Basic credentials.
fn password(encoded: &[u8]) -> Option<Vec<u8>> {
    // A user's name of some length, a colon, and a token.
    if encoded.len() > 4 * (2 * MAX_TOKEN + 1) / 3 + 4 {
        return None;
    }
    let mut plain = unbase64(encoded)?;
    let colon = plain.iter().position(|b| *b == b':')?;
    Some(plain.split_off(colon + 1))
}

/// RFC 4648 section 4, with or without its padding.
fn unbase64(text: &[u8]) -> Option<Vec<u8>> {
    let end = text.iter().rposition(|b| *b != b'=').map_or(0, |at| at + 1);
    let (digits, padding) = text.split_at(end);
    if padding.len() > 2 || (!padding.is_empty() && !text.len().is_multiple_of(4)) {
        return None;
    }
    let mut out = Vec::with_capacity(digits.len() * 3 / 4);
    for chunk in digits.chunks(4) {
        let mut bits = 0u32;
        for b in chunk {
            let digit = match b {
                b'A'..=b'Z' => b - b'A',
                b'a'..=b'z' => b - b'a' + 26,
                b'0'..=b'9' => b - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(digit);
        }
        // One digit alone is less than a byte.
        let bytes = chunk.len().checked_sub(1).filter(|n| *n > 0)?;
        bits <<= 6 * (4 - chunk.len());
        out.extend(bits.to_be_bytes().into_iter().skip(1).take(bytes));
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(headers: &[(&str, &str)], target: &str) -> Option<String> {
        let mut request = axum::http::Request::builder().uri(target);
        for (k, v) in headers {
            request = request.header(*k, *v);
        }
        let (head, ()) = request.body(()).unwrap().into_parts();
        presented(&head).map(|t| String::from_utf8(t.into_owned()).unwrap())
    }

    #[test]
    fn the_five_ways_in_their_order() {
        let all = [("authorization", "Bearer A"), ("x-api-key", "K")];
        assert_eq!(of(&all, "/write?u=x&p=P"), Some("A".into()));
        assert_eq!(of(&[("authorization", "Token T"), ("x-api-key", "K")], "/write?p=P"), Some("T".into()));
        assert_eq!(of(&[("authorization", "Basic dTpwOnE="), ("x-api-key", "K")], "/write?p=P"), Some("p:q".into()), "u:p:q");
        assert_eq!(of(&[("x-api-key", "K")], "/write?p=P"), Some("K".into()));
        assert_eq!(of(&[], "/write?u=user&p=P%20Q&db=x"), Some("P Q".into()));
        assert_eq!(of(&[], "/write"), None);
        for (value, want) in [
            ("bearer  A ", Some("A")),
            ("TOKEN A", Some("A")),
            ("Bearer", None),
            ("Bearer ", None),
            ("Token ", None),
            ("Digest A", None),
            ("A", None),
            ("Basic dTo=", None),
            ("Basic dTpw", Some("p")),
            ("Basic Onp6", Some("zz")),
            ("Basic dTpwcA", Some("pp")),
            ("Basic", Some("")),
            ("Basic !!!!", Some("")),
            ("Basic dQ==", Some("")),
            ("Basic d", Some("")),
        ] {
            assert_eq!(of(&[("authorization", value)], "/write").as_deref(), want, "{value}");
            if want.is_none() {
                assert_eq!(of(&[("authorization", value), ("x-api-key", "K")], "/"), Some("K".into()), "an empty one is none");
            }
        }
        assert_eq!(of(&[("authorization", &format!("Basic {}", "A".repeat(30_000)))], "/"), Some(String::new()));
    }

    #[test]
    fn base64_is_the_standard_one() {
        for (text, want) in
            [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYg==", "foob"), ("Zm9vYmE=", "fooba"), ("Zm9vYmFy", "foobar")]
        {
            assert_eq!(unbase64(text.as_bytes()).as_deref(), Some(want.as_bytes()), "{text}");
            assert_eq!(unbase64(text.trim_end_matches('=').as_bytes()).as_deref(), Some(want.as_bytes()), "{text}");
        }
        assert_eq!(unbase64(b"+/+/"), Some(vec![0xfb, 0xff, 0xbf]));
        for bad in ["Z", "Zg=", "Z===", "Zm9v=", "Zm9=v", "Zm-v", "Zm 9", "===="] {
            assert_eq!(unbase64(bad.as_bytes()), None, "{bad}");
        }
    }
}
