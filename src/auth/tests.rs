use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::clock::{SharedClock, SimClock};

const NOW: i64 = 1_767_225_600_000_000;

struct Place {
    dir: tempfile::TempDir,
    clock: Arc<SimClock>,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), clock: SimClock::new(1, NOW) }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("a/b/tokens.json")
    }

    fn open(&self, keep_admin: bool) -> Tokens {
        let clock: SharedClock = Arc::clone(&self.clock) as SharedClock;
        Tokens::open(&self.path(), clock, keep_admin).unwrap()
    }

    fn error(&self) -> String {
        Tokens::open(&self.path(), Arc::clone(&self.clock) as SharedClock, true).unwrap_err().to_string()
    }
}

fn new(name: &str, permissions: &[Permission]) -> NewToken {
    NewToken { name: name.into(), description: None, permissions: permissions.to_vec(), databases: None, lifetime_us: None }
}

fn check(t: &Tokens, s: &Secret) -> Result<u64, Denied> {
    t.check(s.reveal().as_bytes()).map(|t| t.id)
}

#[test]
fn the_file_is_closed_to_others_and_holds_no_secret() {
    let place = Place::new();
    let tokens = place.open(true);
    let secret = tokens.bootstrap(None).unwrap().unwrap();
    assert_eq!(secret.reveal().len(), 4 + 64);
    assert!(secret.reveal().starts_with("arc_"));
    let mode = |p: &std::path::Path| std::fs::metadata(p).unwrap().mode() & 0o7777;
    assert_eq!(mode(&place.path()), 0o600);
    assert_eq!(mode(place.path().parent().unwrap()), 0o700);
    assert_eq!(mode(&place.dir.path().join("a")), 0o700);
    let text = std::fs::read_to_string(place.path()).unwrap();
    let digits = &secret.reveal()[4..];
    assert!(!text.contains(digits) && text.contains(&hex(&Sha256::digest(secret.reveal()))), "{text}");
    for shown in [format!("{tokens:?}"), format!("{secret:?}"), tokens.get(1).unwrap().json().to_string()] {
        assert!(!shown.contains(digits), "{shown}");
    }
    assert_eq!(std::fs::read_dir(place.path().parent().unwrap()).unwrap().count(), 1, "no temporary file is left");
    assert_eq!(check(&tokens, &secret), Ok(1));
    assert_eq!(check(&place.open(true), &secret), Ok(1), "after a restart");
    assert_eq!(place.open(true).bootstrap(None).unwrap(), None, "once");
}

#[test]
fn a_preset_token_is_taken_once_and_has_to_be_long() {
    let place = Place::new();
    for bad in ["", "short", &"x".repeat(31), &"x".repeat(257), &format!("{} x", "x".repeat(40)), &format!("{}é", "x".repeat(40))] {
        let e = Secret::preset(bad).unwrap_err().to_string();
        assert!(e.contains("32 to 256") && (bad.len() < 3 || !e.contains(bad)), "{e}");
    }
    let preset = "p".repeat(32);
    let tokens = place.open(true);
    assert_eq!(tokens.bootstrap(Some(Secret::preset(&preset).unwrap())).unwrap().unwrap().reveal(), preset);
    assert!(tokens.check(preset.as_bytes()).unwrap().may(Permission::Admin));
    let other = "q".repeat(32);
    assert_eq!(place.open(true).bootstrap(Some(Secret::preset(&other).unwrap())).unwrap(), None);
    assert_eq!(tokens.check(other.as_bytes()), Err(Denied::Unknown));
}

#[test]
fn a_file_that_others_can_read_is_refused() {
    let place = Place::new();
    place.open(true).bootstrap(None).unwrap();
    for mode in [0o640, 0o604, 0o660, 0o644, 0o601] {
        std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        let e = place.error();
        for part in [&place.path().display().to_string(), &format!("mode {mode:04o}"), "expected 0600", "chmod 600"] {
            assert!(e.contains(part), "{part} is not in {e}");
        }
    }
    for mode in [0o600, 0o400] {
        std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        place.open(true);
    }
    std::fs::set_permissions(place.path().parent().unwrap(), std::fs::Permissions::from_mode(0o770)).unwrap();
    let e = place.open(true).create(new("x", &[Permission::Read])).unwrap_err().to_string();
    assert!(e.contains("mode 0770") && e.contains("chmod go-w"), "{e}");
}

#[test]
fn a_bad_file_is_refused_and_keeps_the_tokens_of_a_running_server() {
    let place = Place::new();
    let tokens = place.open(true);
    let secret = tokens.bootstrap(None).unwrap().unwrap();
    let good = std::fs::read_to_string(place.path()).unwrap();
    let mut bad = vec![
        ("", "tokens in JSON"),
        ("{", "tokens in JSON"),
        ("[]", "tokens in JSON"),
        (r#"{"format":2,"next_id":1,"tokens":[]}"#, "format 2"),
        (r#"{"format":1,"next_id":1,"tokens":[],"more":1}"#, "unknown field"),
    ];
    let edited = [
        (good.replace("\"admin\"", "\"root\""), "another kind of value at line"),
        (good.replace("\"admin\"\n", "\"admin\"\n],\"limit\":["), "unknown field"),
        (good.replace("\"next_id\": 2", "\"next_id\": 1"), "next_id 1"),
        (good.replace("\"sha256\": \"", "\"sha256\": \"0"), "64 hexadecimal"),
        (good.replace("\"permissions\": [\n        \"admin\"\n      ]", "\"permissions\": []"), "read, write, admin"),
        (good.replace("\"permissions\"", "\"databases\":[\"a\"],\"permissions\""), "cannot be limited"),
    ];
    bad.extend(edited.iter().map(|(text, why)| (text.as_str(), *why)));
    for (text, why) in bad {
        assert_ne!(text, good, "{why}");
        std::fs::write(place.path(), text).unwrap();
        let e = place.error();
        assert!(e.contains(why) && e.contains("tokens.json"), "{why} is not in {e}");
        assert!(tokens.refresh().is_err());
        assert!(tokens.refresh().is_err(), "said again until it is mended");
        assert_eq!(check(&tokens, &secret), Ok(1));
        assert!(tokens.create(new("x", &[Permission::Read])).is_err(), "nothing is written over it");
        assert_eq!(std::fs::read_to_string(place.path()).unwrap(), text);
    }
    std::fs::remove_file(place.path()).unwrap();
    assert!(tokens.refresh().unwrap_err().to_string().contains("is gone"));
    assert!(tokens.create(new("x", &[Permission::Read])).unwrap_err().to_string().contains("is gone"), "the others would be lost");
    assert_eq!(check(&tokens, &secret), Ok(1));
    std::fs::create_dir(place.path()).unwrap();
    assert!(place.error().contains("a directory"));
    std::fs::remove_dir(place.path()).unwrap();
    std::fs::write(place.path(), good).unwrap();
    std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o600)).unwrap();
    assert!(tokens.refresh().unwrap());
    assert!(!tokens.refresh().unwrap());
}

#[test]
fn tokens_expire_are_rotated_revoked_and_deleted() {
    let place = Place::new();
    let tokens = place.open(true);
    let admin = tokens.bootstrap(None).unwrap().unwrap();
    let (a, first) = tokens.create(NewToken { lifetime_us: Some(1_000_000), ..new("a", &[Permission::Write]) }).unwrap();
    assert_eq!((a.id, check(&tokens, &first)), (2, Ok(2)));
    place.clock.advance(Duration::from_micros(999_999));
    assert_eq!(check(&tokens, &first), Ok(2));
    place.clock.advance(Duration::from_micros(1));
    assert_eq!(check(&tokens, &first), Err(Denied::Expired), "from its very moment on");
    assert!(tokens.rotate(2).unwrap_err().to_string().contains("expired"));
    tokens.update(2, Change { lifetime_us: Some(60_000_000), ..Change::default() }).unwrap();
    assert_eq!(check(&tokens, &first), Ok(2));

    let (_, second) = tokens.rotate(2).unwrap();
    assert_eq!((check(&tokens, &first), check(&tokens, &second)), (Err(Denied::Unknown), Ok(2)));
    tokens.revoke(2).unwrap();
    assert_eq!(check(&tokens, &second), Err(Denied::Revoked));
    assert!(tokens.rotate(2).unwrap_err().to_string().contains("revoked"));
    assert_eq!(tokens.live(), 1);
    tokens.delete(2).unwrap();
    assert_eq!(check(&tokens, &second), Err(Denied::Unknown));
    assert!(matches!(tokens.delete(2), Err(AuthError::NoSuch(_))));
    assert_eq!(tokens.create(new("a", &[Permission::Read])).unwrap().0.id, 3, "ids are not used again");

    for refused in [tokens.delete(1), tokens.revoke(1).map(|_| ())] {
        assert!(refused.unwrap_err().to_string().contains("no admin token that lives"));
    }
    let brief = Change { lifetime_us: Some(1_000), ..Change::default() };
    assert!(tokens.update(1, brief).unwrap_err().to_string().contains("no admin token that lives"));
    let fewer = Change { permissions: Some(vec![Permission::Read]), ..Change::default() };
    assert!(tokens.update(1, fewer).unwrap_err().to_string().contains("no admin token that lives"));
    assert_eq!(check(&tokens, &admin), Ok(1));
    place.open(false).revoke(1).unwrap();
    assert!(tokens.refresh().unwrap());
    assert_eq!(check(&tokens, &admin), Err(Denied::Revoked));
}

#[test]
fn what_a_token_may_not_be() {
    let place = Place::new();
    let tokens = place.open(true);
    let limited = |databases: &[&str], p: &[Permission]| NewToken {
        databases: Some(databases.iter().map(|d| (*d).to_owned()).collect()),
        ..new("limited", p)
    };
    for (bad, why) in [
        (new("", &[Permission::Read]), "1 to 128"),
        (new("a\nb", &[Permission::Read]), "control"),
        (new(&"x".repeat(129), &[Permission::Read]), "1 to 128"),
        (new("x", &[]), "permissions"),
        (limited(&[], &[Permission::Read]), "1 to 256"),
        (limited(&["no/name"], &[Permission::Read]), "no/name"),
        (limited(&["a"], &[Permission::Admin, Permission::Write]), "cannot be limited"),
    ] {
        let e = tokens.create(bad).unwrap_err().to_string();
        assert!(e.contains(why), "{why} is not in {e}");
    }
    assert!(!place.path().exists(), "nothing was written");
    let (made, _) = tokens.create(limited(&["a", "b"], &[Permission::Write, Permission::Read, Permission::Write])).unwrap();
    assert_eq!(made.permissions, [Permission::Read, Permission::Write]);
    assert!(made.may(Permission::Read) && made.may(Permission::Write) && !made.may(Permission::Admin));
    assert!(made.may_touch("a") && made.may_touch("b") && !made.may_touch("c") && !made.may_touch("A"));
    assert!(tokens.create(limited(&["a"], &[Permission::Read])).unwrap_err().to_string().contains("has the name"));
    let admin = Change { permissions: Some(vec![Permission::Admin]), ..Change::default() };
    assert!(tokens.update(1, admin).unwrap_err().to_string().contains("cannot be limited"));
    for (text, us) in [("1", 1_000_000), ("250ms", 250_000), ("2m", 120_000_000), ("30d", 2_592_000_000_000), ("1y", 31_536_000_000_000)] {
        assert_eq!(lifetime(text).unwrap(), us);
    }
    for bad in ["", "0", "0d", "d", "-1d", "1.5h", "1 d", "101y", "1M", "99999999999999999999", "9223372036854775807w"] {
        assert!(lifetime(bad).is_err(), "{bad}");
    }
    assert_eq!(iso(NOW), "2026-01-01T00:00:00.000000Z");
    assert_eq!(iso(-1), "1969-12-31T23:59:59.999999Z");
}

#[test]
fn edits_of_several_processes_do_not_lose_each_other() {
    let place = Place::new();
    // Stores of their own share no lock but that of the directory, as processes do.
    std::thread::scope(|s| {
        for worker in 0..4 {
            let place = &place;
            s.spawn(move || {
                let tokens = place.open(false);
                for i in 0..10 {
                    let (made, _) = tokens.create(new(&format!("{worker}-{i}"), &[Permission::Read])).unwrap();
                    if i % 2 == 0 {
                        tokens.revoke(made.id).unwrap();
                    }
                }
            });
        }
    });
    let all = place.open(false).list();
    assert_eq!(all.len(), 40);
    assert_eq!(all.iter().filter(|t| t.revoked_us.is_some()).count(), 20);
    assert_eq!(all.iter().map(|t| t.id).collect::<Vec<_>>(), (1..=40).collect::<Vec<_>>());
}

#[test]
fn what_is_no_token_costs_little_and_is_unknown() {
    let place = Place::new();
    let tokens = place.open(true);
    let secret = tokens.bootstrap(None).unwrap().unwrap();
    let mut near = secret.reveal().to_owned();
    near.pop();
    let long = format!("{}{}", secret.reveal(), "x".repeat(MAX_TOKEN));
    for text in ["", "x", near.as_str(), &format!("{} ", secret.reveal()), long.as_str(), &"\u{ff}".repeat(1 << 20)] {
        assert_eq!(tokens.check(text.as_bytes()), Err(Denied::Unknown));
    }
}
