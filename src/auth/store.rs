//! The tokens in force, and edits of them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use subtle::ConstantTimeEq as _;

use super::file::{self, Contents, Stamp};
use super::{
    AuthError, Change, Hash, MAX_TOKEN, MAX_TOKENS, NewToken, Permission, Secret, Token, check_databases, check_description, check_name,
    check_permissions,
};
use crate::clock::SharedClock;

/// How long an admin token has to live yet so that it counts as one that is left.
const ADMIN_LEFT_US: i64 = 3_600_000_000;

/// Why a token that was presented is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Denied {
    Unknown,
    Expired,
    Revoked,
}

impl Denied {
    pub fn message(self) -> &'static str {
        match self {
            Self::Unknown => "the token is not known here",
            Self::Expired => "the token has expired",
            Self::Revoked => "the token has been revoked",
        }
    }
}

#[derive(Debug, Default)]
struct Table {
    /// In the order of the file.
    tokens: Vec<Arc<Token>>,
    /// By the first eight bytes of the hash, which nobody can choose.
    by_hash: HashMap<u64, Vec<Arc<Token>>>,
}

fn prefix(hash: &Hash) -> u64 {
    hash.0.first_chunk().map_or(0, |b| u64::from_le_bytes(*b))
}

impl Table {
    fn of(contents: Contents) -> Self {
        let tokens: Vec<Arc<Token>> = contents.tokens.into_iter().map(Arc::new).collect();
        let mut by_hash: HashMap<u64, Vec<Arc<Token>>> = HashMap::with_capacity(tokens.len());
        for t in &tokens {
            by_hash.entry(prefix(&t.sha256)).or_default().push(Arc::clone(t));
        }
        Self { tokens, by_hash }
    }
}

/// The tokens of one file.
#[derive(Debug)]
pub struct Tokens {
    path: PathBuf,
    clock: SharedClock,
    table: ArcSwap<Table>,
    /// What the table was made of. Held while the table is replaced, so that what was read before an edit cannot come after it.
    stamp: Mutex<Stamp>,
    keep_admin: bool,
}

impl Tokens {
    /// Reads the file; one that is missing holds no tokens. With `keep_admin` edits that would leave no live admin token are refused.
    ///
    /// # Errors
    /// [`AuthError`], naming the file.
    pub fn open(path: &Path, clock: SharedClock, keep_admin: bool) -> Result<Self, AuthError> {
        let (contents, stamp) = file::read(path)?.unwrap_or_default();
        let table = ArcSwap::from_pointee(Table::of(contents));
        Ok(Self { path: path.to_path_buf(), clock, table, stamp: Mutex::new(stamp), keep_admin })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn now_us(&self) -> i64 {
        self.clock.wall_us()
    }

    /// The token of this text, if it is live now.
    ///
    /// # Errors
    /// Why it is not.
    pub fn check(&self, text: &[u8]) -> Result<Arc<Token>, Denied> {
        if text.len() > MAX_TOKEN {
            return Err(Denied::Unknown);
        }
        let hash = Hash::of(text);
        let table = self.table.load();
        let same = table.by_hash.get(&prefix(&hash)).into_iter().flatten();
        let found = same.into_iter().find(|t| bool::from(t.sha256.0.ct_eq(&hash.0))).ok_or(Denied::Unknown)?;
        if found.revoked_us.is_some() {
            return Err(Denied::Revoked);
        }
        if found.expired(self.clock.wall_us()) {
            return Err(Denied::Expired);
        }
        Ok(Arc::clone(found))
    }

    /// Every token, also those that are dead.
    pub fn list(&self) -> Vec<Arc<Token>> {
        self.table.load().tokens.clone()
    }

    /// The token of that id.
    ///
    /// # Errors
    /// [`AuthError::NoSuch`].
    pub fn get(&self, id: u64) -> Result<Arc<Token>, AuthError> {
        self.table.load().tokens.iter().find(|t| t.id == id).cloned().ok_or_else(|| AuthError::NoSuch(id.to_string()))
    }

    /// Tokens that are live now.
    pub fn live(&self) -> usize {
        let now = self.clock.wall_us();
        self.table.load().tokens.iter().filter(|t| t.live(now)).count()
    }

    /// Whether anybody could manage tokens now.
    pub fn has_admin(&self) -> bool {
        has_admin(self.table.load().tokens.iter().map(|t| &**t), self.clock.wall_us())
    }

    fn stamp(&self) -> MutexGuard<'_, Stamp> {
        self.stamp.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what the file says, if it is another than before; true then.
    ///
    /// # Errors
    /// [`AuthError`]; the tokens stay as they were, also when the file is gone.
    pub fn refresh(&self) -> Result<bool, AuthError> {
        let mut stamp = self.stamp();
        if Stamp::now(&self.path)? == *stamp {
            return Ok(false);
        }
        self.take_over(&mut stamp)?;
        Ok(true)
    }

    /// Takes over what the file says; the number of its tokens.
    ///
    /// # Errors
    /// As [`Self::refresh`].
    pub fn reload(&self) -> Result<usize, AuthError> {
        let mut stamp = self.stamp();
        self.take_over(&mut stamp)
    }

    fn take_over(&self, stamp: &mut Stamp) -> Result<usize, AuthError> {
        let (contents, now) = self.read(stamp)?;
        let n = contents.tokens.len();
        self.table.store(Arc::new(Table::of(contents)));
        *stamp = now;
        Ok(n)
    }

    /// What the file says; none is an error if there was one.
    fn read(&self, stamp: &Stamp) -> Result<(Contents, Stamp), AuthError> {
        match file::read(&self.path)? {
            Some(read) => Ok(read),
            None if stamp.is_missing() => Ok(Default::default()),
            None => {
                let source = std::io::ErrorKind::NotFound.into();
                Err(AuthError::Io { path: self.path.clone(), what: "is gone; the tokens it had stay in force", source })
            }
        }
    }

    fn edit<T>(&self, change: impl FnOnce(&mut Contents, i64) -> Result<T, AuthError>) -> Result<T, AuthError> {
        let mut stamp = self.stamp();
        let lock = file::lock(&self.path)?;
        let mut contents = self.read(&stamp)?.0;
        let now = self.clock.wall_us();
        // An admin that is about to expire is as good as none.
        let soon = now.saturating_add(ADMIN_LEFT_US);
        let had_admin = has_admin(contents.tokens.iter(), soon);
        let out = change(&mut contents, now)?;
        if self.keep_admin && had_admin && !has_admin(contents.tokens.iter(), soon) {
            return Err(AuthError::Refused(
                "this would leave no admin token that lives for an hour more; create another one first, or use `arc token` on the server's machine".to_owned(),
            ));
        }
        *stamp = file::write(&self.path, &contents, &lock)?;
        self.table.store(Arc::new(Table::of(contents)));
        Ok(out)
    }

    /// Makes a token.
    ///
    /// # Errors
    /// [`AuthError::Refused`] if it cannot be as asked, or the file's errors.
    pub fn create(&self, new: NewToken) -> Result<(Token, Secret), AuthError> {
        let secret = Secret::make(&*self.clock);
        self.edit(|contents, now| add(contents, now, new, &secret)).map(|token| (token, secret))
    }

    /// The first start: if there is no file, makes an admin token, with the text `preset` if there is one. `None` if there was a file.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn bootstrap(&self, preset: Option<Secret>) -> Result<Option<Secret>, AuthError> {
        if !self.stamp().is_missing() {
            return Ok(None);
        }
        let secret = preset.unwrap_or_else(|| Secret::make(&*self.clock));
        let new = NewToken {
            name: "bootstrap".to_owned(),
            description: Some("made by the first start".to_owned()),
            permissions: vec![Permission::Admin],
            databases: None,
            lifetime_us: None,
        };
        let made = self.edit(|contents, now| {
            // Somebody may have been quicker.
            if contents.next_id == 1 { add(contents, now, new, &secret).map(|_| true) } else { Ok(false) }
        })?;
        Ok(made.then_some(secret))
    }

    /// Gives a token another text; the old one is no token from now on.
    ///
    /// # Errors
    /// [`AuthError::NoSuch`], [`AuthError::Refused`] for one that is revoked or expired, or the file's errors.
    pub fn rotate(&self, id: u64) -> Result<(Token, Secret), AuthError> {
        let secret = Secret::make(&*self.clock);
        let token = self.edit(|contents, now| {
            let token = find(contents, id)?;
            if !token.live(now) {
                return Err(AuthError::Refused(format!("token {id} is {}; create another one", token.state(now))));
            }
            token.sha256 = Hash::of(secret.reveal().as_bytes());
            token.rotated_us = Some(now);
            Ok(token.clone())
        })?;
        Ok((token, secret))
    }

    /// Ends a token and keeps its entry; one that is revoked stays as it is.
    ///
    /// # Errors
    /// [`AuthError::NoSuch`], or the file's errors.
    pub fn revoke(&self, id: u64) -> Result<Token, AuthError> {
        self.edit(|contents, now| {
            let token = find(contents, id)?;
            token.revoked_us.get_or_insert(now);
            Ok(token.clone())
        })
    }

    /// Ends a token and removes its entry.
    ///
    /// # Errors
    /// [`AuthError::NoSuch`], or the file's errors.
    pub fn delete(&self, id: u64) -> Result<(), AuthError> {
        self.edit(|contents, _| {
            find(contents, id)?;
            contents.tokens.retain(|t| t.id != id);
            Ok(())
        })
    }

    /// Changes what is said about a token; its text stays.
    ///
    /// # Errors
    /// [`AuthError::NoSuch`], [`AuthError::Refused`], or the file's errors.
    pub fn update(&self, id: u64, change: Change) -> Result<Token, AuthError> {
        self.edit(|contents, now| {
            if let Some(name) = &change.name {
                check_name(name)?;
                taken(contents, name, id)?;
            }
            let token = find(contents, id)?;
            if let Some(text) = &change.description {
                check_description(text)?;
            }
            let permissions = change.permissions.as_deref().map_or_else(|| Ok(token.permissions.clone()), check_permissions)?;
            check_databases(token.databases.as_deref(), &permissions)?;
            token.permissions = permissions;
            if let Some(name) = change.name {
                token.name = name;
            }
            token.description = change.description.or(token.description.take());
            if let Some(us) = change.lifetime_us {
                token.expires_us = Some(now.saturating_add(us));
            }
            Ok(token.clone())
        })
    }
}

fn has_admin<'a>(mut all: impl Iterator<Item = &'a Token>, now: i64) -> bool {
    all.any(|t| t.live(now) && t.may(Permission::Admin))
}

fn find(contents: &mut Contents, id: u64) -> Result<&mut Token, AuthError> {
    contents.tokens.iter_mut().find(|t| t.id == id).ok_or_else(|| AuthError::NoSuch(id.to_string()))
}

fn taken(contents: &Contents, name: &str, but: u64) -> Result<(), AuthError> {
    match contents.tokens.iter().find(|t| t.name == name && t.id != but) {
        Some(t) => Err(AuthError::Refused(format!("token {} has the name {name:?} already; choose another, or delete it", t.id))),
        None => Ok(()),
    }
}

fn add(contents: &mut Contents, now: i64, new: NewToken, secret: &Secret) -> Result<Token, AuthError> {
    check_name(&new.name)?;
    new.description.as_deref().map_or(Ok(()), check_description)?;
    let permissions = check_permissions(&new.permissions)?;
    check_databases(new.databases.as_deref(), &permissions)?;
    taken(contents, &new.name, 0)?;
    if contents.tokens.len() >= MAX_TOKENS {
        return Err(AuthError::Refused(format!("there are {MAX_TOKENS} tokens already; delete some")));
    }
    let token = Token {
        id: contents.next_id,
        name: new.name,
        description: new.description.filter(|d| !d.is_empty()),
        sha256: Hash::of(secret.reveal().as_bytes()),
        permissions,
        databases: new.databases,
        created_us: now,
        expires_us: new.lifetime_us.map(|us| now.saturating_add(us)),
        rotated_us: None,
        revoked_us: None,
    };
    contents.next_id += 1;
    contents.tokens.push(token.clone());
    Ok(token)
}
