//! `arc token create|list|rotate|revoke`: the file of tokens, with or without a running server.
//!
//! A server takes over what was done here within about a second. Exit codes beyond the common ones: 1 there is no such token, or it
//! cannot be as asked; 78 the file may be read by others, or is damaged.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::access::exit_code;
use super::{EXIT_FAILURE, Global, plain_table, print};
use crate::auth::{AuthError, NewToken, Permission, Secret, Token, Tokens, lifetime};
use crate::clock::SystemClock;

#[derive(Subcommand, Debug)]
pub enum TokenCommand {
    /// Make a token and print it: this once
    Create(Create),
    /// List tokens; never their texts, which are kept nowhere
    List {
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Give a token another text and print it; the old one ends at once
    Rotate(One),
    /// End a token
    Revoke {
        #[command(flatten)]
        one: One,
        /// Also remove its entry
        #[arg(long)]
        delete: bool,
    },
}

#[derive(Args, Debug)]
pub struct Create {
    /// Name of the token, no other token's
    name: String,
    /// What it may do: read, write, admin, separated by commas
    #[arg(long, value_delimiter = ',', default_value = "write", value_name = "LIST")]
    permissions: Vec<String>,
    /// Databases it is limited to, separated by commas; without this, all
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    databases: Option<Vec<String>>,
    /// How long it lives: 90s, 15m, 24h, 30d, 2w, 1y; without this, for ever
    #[arg(long, value_name = "SPAN")]
    expires_in: Option<String>,
    /// What it is for
    #[arg(long)]
    description: Option<String>,
    /// Make the file of tokens if there is none
    #[arg(long)]
    new: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
pub struct One {
    /// Id or name of the token
    token: String,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// Runs `arc token`.
pub fn run(global: &Global, command: TokenCommand) -> ExitCode {
    let (config, origins, _) = match global.load() {
        Ok(loaded) => loaded,
        Err(e) => return global.refuse(&e),
    };
    let file = &config.auth.token_file;
    // Beside a service this is mostly the file of another configuration, whose tokens no server would know.
    if matches!(file.try_exists(), Ok(false)) && !matches!(&command, TokenCommand::Create(c) if c.new) {
        let place = origins.get("auth.token_file").map_or_else(String::new, |o| format!(" ({})", o.place()));
        let hint = if matches!(command, TokenCommand::Create(_)) { "; --new makes it" } else { "" };
        let shown = std::path::absolute(file).unwrap_or_else(|_| file.clone());
        global.error(format!(
            "auth.token_file = {}{place}: there is no such file: give the server's configuration with --config{hint}",
            shown.display()
        ));
        return ExitCode::from(EXIT_FAILURE);
    }
    let done = Tokens::open(&config.auth.token_file, SystemClock::shared(), false).and_then(|tokens| {
        if !config.auth.enabled {
            global.warn("auth.enabled is false in this configuration: a server with it asks for no token");
        }
        act(global, &tokens, command)
    });
    match done {
        Ok(text) => print(&text),
        Err(e) => {
            global.error(&e);
            ExitCode::from(exit_code(&e))
        }
    }
}

fn act(global: &Global, tokens: &Tokens, command: TokenCommand) -> Result<String, AuthError> {
    match command {
        TokenCommand::Create(c) => {
            let permissions: Result<Vec<Permission>, AuthError> = c.permissions.iter().map(|p| Permission::parse(p)).collect();
            let new = NewToken {
                name: c.name,
                description: c.description,
                permissions: permissions?,
                databases: c.databases,
                lifetime_us: c.expires_in.as_deref().map(lifetime).transpose()?,
            };
            let (token, secret) = tokens.create(new)?;
            Ok(shown(global, &token, &secret, c.json))
        }
        TokenCommand::List { json } => Ok(list(tokens, json)),
        TokenCommand::Rotate(one) => {
            let (token, secret) = tokens.rotate(find(tokens, &one.token)?)?;
            Ok(shown(global, &token, &secret, one.json))
        }
        TokenCommand::Revoke { one, delete } => {
            let id = find(tokens, &one.token)?;
            let state = if delete {
                tokens.delete(id)?;
                "deleted"
            } else {
                tokens.revoke(id)?;
                "revoked"
            };
            Ok(if one.json { format!("{}\n", json!({"id": id, "state": state})) } else { format!("token {id} is {state}\n") })
        }
    }
}

/// A name goes before an id: a token may be called 7.
fn find(tokens: &Tokens, word: &str) -> Result<u64, AuthError> {
    let all = tokens.list();
    let by_name = all.iter().find(|t| t.name == word);
    by_name.or_else(|| all.iter().find(|t| t.id.to_string() == word)).map(|t| t.id).ok_or_else(|| AuthError::NoSuch(word.to_owned()))
}

/// The text alone goes to stdout, so that a script can take it.
fn shown(global: &Global, token: &Token, secret: &Secret, json: bool) -> String {
    if json {
        let mut v = token.json();
        v["token"] = secret.reveal().into();
        return format!("{v}\n");
    }
    global.note(format!("token {} ({}), shown this once:", token.id, token.name));
    format!("{}\n", secret.reveal())
}

fn list(tokens: &Tokens, as_json: bool) -> String {
    let (all, now) = (tokens.list(), tokens.now_us());
    if as_json {
        let all: Vec<Value> = all
            .iter()
            .map(|t| {
                let mut v = t.json();
                v["state"] = t.state(now).into();
                v
            })
            .collect();
        return format!("{}\n", json!({"file": tokens.path().display().to_string(), "tokens": all}));
    }
    if all.is_empty() {
        return format!("no tokens in {}\n", tokens.path().display());
    }
    let mut table = plain_table(&["ID", "NAME", "STATE", "PERMISSIONS", "DATABASES", "CREATED", "EXPIRES", "ROTATED", "DESCRIPTION"]);
    // Minutes are enough for people.
    let time = |us: i64| crate::auth::iso(us).get(..16).unwrap_or_default().replace('T', " ");
    for t in &all {
        let permissions: Vec<&str> = t.permissions.iter().map(|p| p.word()).collect();
        table.add_row([
            t.id.to_string(),
            t.name.clone(),
            t.state(now).to_owned(),
            permissions.join(","),
            t.databases.as_ref().map_or_else(|| "all".to_owned(), |d| d.join(",")),
            time(t.created_us),
            t.expires_us.map_or_else(|| "never".to_owned(), time),
            t.rotated_us.map_or_else(String::new, time),
            t.description.clone().unwrap_or_default(),
        ]);
    }
    format!("{table}\n")
}
