//! The real server in a directory of its own, and a small HTTP client.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The binary under test: the one built with the tests, or what `ARC_TEST_BINARY` names (a release build, a broken one).
pub fn arc() -> std::ffi::OsString {
    std::env::var_os("ARC_TEST_BINARY").unwrap_or_else(|| env!("CARGO_BIN_EXE_arc").into())
}

/// Where an instrumented build leaves its counts (`just coverage`).
pub fn profile() -> Option<(&'static str, std::ffi::OsString)> {
    std::env::var_os("LLVM_PROFILE_FILE").map(|v| ("LLVM_PROFILE_FILE", v))
}

/// Long enough for a loaded machine; nothing waits this long when all is well.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// An answer.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(k, _)| k.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self}"))
    }

    pub fn sequence(&self) -> Option<u64> {
        self.header("x-arc-sequence").map(|v| v.parse().unwrap())
    }
}

impl std::fmt::Display for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?} {}", self.status, self.headers, String::from_utf8_lossy(&self.body))
    }
}

/// A kept-alive connection.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    pub fn connect(addr: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&addr, Duration::from_secs(5))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sends a request and reads the whole answer; an error means that none came.
    pub fn call(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<Reply> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n", body.len());
        for (k, v) in headers {
            head.push_str(&format!("{k}: {v}\r\n"));
        }
        head.push_str("\r\n");
        let sent = self.send(&[head.as_bytes(), body].concat());
        // A refusal may come before the body is through.
        self.receive(method == "HEAD").map_err(|e| sent.err().unwrap_or(e))
    }

    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    pub fn receive(&mut self, head_only: bool) -> io::Result<Reply> {
        let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let line = self.line()?;
        let status = line.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(|| bad(&line))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            let (k, v) = line.split_once(':').ok_or_else(|| bad(&line))?;
            headers.push((k.to_owned(), v.trim().to_owned()));
        }
        let mut reply = Reply { status, headers, body: Vec::new() };
        if let Some(n) = reply.header("content-length").filter(|_| !head_only) {
            reply.body = vec![0; n.parse().map_err(|_| bad(n))?];
            self.stream.read_exact(&mut reply.body)?;
        }
        Ok(reply)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 || !line.ends_with('\n') {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }
}

/// A directory for a log and a lake. Gone when dropped.
#[derive(Debug)]
pub struct Place {
    dir: tempfile::TempDir,
}

/// Settings of every server here; what a test gives comes after them.
const SMALL: &[&str] = &[
    "server.port=0",
    "wal.segment_size=64KB",
    "wal.max_size=64MB",
    "server.max_payload_size=4MB",
    "ingest.max_inflated_size=4MB",
    "ingest.max_record_size=4MB",
    "wal.reserve=64KB",
    "wal.pool=2",
    // Wherever the tests keep their files.
    "wal.allow_volatile=true",
    "compaction.trigger_size=16MB",
    "compaction.workers=2",
    "log.format=text",
];

impl Place {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn lake(&self) -> PathBuf {
        self.path().join("data/lake")
    }

    pub fn wal(&self) -> PathBuf {
        self.path().join("data/wal")
    }

    /// Starts a server here and waits until it is ready.
    pub fn start(&self, sets: &[&str]) -> Server {
        let mut s = self.launch(sets);
        s.wait_ready();
        s
    }

    /// Starts a server here and waits for its banner only.
    pub fn launch(&self, sets: &[&str]) -> Server {
        self.launch_with(sets, &[])
    }

    /// The same, with variables in the server's environment.
    pub fn launch_with(&self, sets: &[&str], env: &[(&str, &str)]) -> Server {
        Server::launch(self.path(), sets, env).unwrap_or_else(|(status, log)| panic!("no banner, {status}: {log}"))
    }

    /// Starts a server by a shell script that ends in `exec "$@"`, and waits until it is ready.
    pub fn start_by(&self, script: &str, sets: &[&str]) -> Server {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script, "sh"]).arg(arc());
        self.start_command(command, sets, None)
    }

    /// Starts a server whose stderr is not the log file of the test, and waits until it is ready.
    pub fn start_with_stderr(&self, stderr: Stdio, sets: &[&str]) -> Server {
        self.start_command(Command::new(arc()), sets, Some(stderr))
    }

    fn start_command(&self, command: Command, sets: &[&str], stderr: Option<Stdio>) -> Server {
        let started = Server::launch_command(command, self.path(), sets, &[], stderr);
        let mut s = started.unwrap_or_else(|(status, log)| panic!("no banner, {status}: {log}"));
        s.wait_ready();
        s
    }

    /// Runs a server that is expected to end by itself: its exit code and what it said.
    pub fn run_to_end(&self, sets: &[&str]) -> (Option<i32>, String) {
        self.run_to_end_with(sets, &[])
    }

    /// The same, with variables in the server's environment.
    pub fn run_to_end_with(&self, sets: &[&str], env: &[(&str, &str)]) -> (Option<i32>, String) {
        match Server::launch(self.path(), sets, env) {
            Err((status, log)) => (status.code(), log),
            Ok(mut s) => {
                let status = s.wait_end(PATIENCE);
                (status.code(), s.log())
            }
        }
    }
}

/// A running server; killed when dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    pub addr: SocketAddr,
    log: PathBuf,
    // Kept open so that the server can always write to it.
    stdout: BufReader<ChildStdout>,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

impl Server {
    fn launch(dir: &Path, sets: &[&str], env: &[(&str, &str)]) -> Result<Self, (ExitStatus, String)> {
        Self::launch_command(Command::new(arc()), dir, sets, env, None)
    }

    fn launch_command(
        mut command: Command,
        dir: &Path,
        sets: &[&str],
        env: &[(&str, &str)],
        stderr: Option<Stdio>,
    ) -> Result<Self, (ExitStatus, String)> {
        let log = dir.join(format!("stderr-{}.log", NEXT.fetch_add(1, Ordering::Relaxed)));
        let file = File::create(&log).unwrap();
        command.arg("serve").current_dir(dir).env_clear().envs(profile()).envs(env.iter().copied()).stdin(Stdio::null());
        for set in SMALL.iter().chain(sets) {
            command.args(["--set", set]);
        }
        let mut child = command.stdout(Stdio::piped()).stderr(stderr.unwrap_or_else(|| file.into())).spawn().unwrap();
        // With it goes what the command holds of a descriptor that is not ours to keep.
        drop(command);
        let stdout = BufReader::new(child.stdout.take().unwrap());
        // From here on it is ended whatever happens.
        let mut server = Self { child, addr: ([127, 0, 0, 1], 0).into(), log, stdout };
        let mut line = String::new();
        while server.stdout.read_line(&mut line).unwrap() > 0 {
            if let Some((_, url)) = line.split_once("listening")
                && let Some(addr) = url.trim().strip_prefix("http://")
            {
                server.addr = addr.parse().unwrap();
                return Ok(server);
            }
            line.clear();
        }
        let status = server.wait_end(PATIENCE);
        Err((status, server.log()))
    }

    /// What the server has said on stderr.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    pub fn wait_ready(&mut self) {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Ok(r) = Client::connect(self.addr).and_then(|mut c| c.call("GET", "/ready", &[], b""))
                && r.status == 200
            {
                return;
            }
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the server ended, {status}: {}", self.log());
            }
            assert!(Instant::now() < until, "not ready: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn try_call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<Reply> {
        Client::connect(self.addr)?.call(method, path, headers, body)
    }

    pub fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        self.try_call(method, path, headers, body).unwrap_or_else(|e| panic!("{method} {path}: {e}: {}", self.log()))
    }

    pub fn get(&self, path: &str) -> Reply {
        self.call("GET", path, &[], b"")
    }

    /// A MessagePack write.
    pub fn write(&self, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        self.call("POST", "/api/v1/write/msgpack", headers, body)
    }

    /// A MessagePack write that must be stored; its sequence.
    pub fn store(&self, body: &[u8]) -> u64 {
        self.store_with(&[], body)
    }

    pub fn store_with(&self, headers: &[(&str, &str)], body: &[u8]) -> u64 {
        let r = self.write(headers, body);
        assert!(r.status == 204 && r.body.is_empty(), "{r}");
        r.sequence().unwrap_or_else(|| panic!("nothing stored: {r}"))
    }

    /// Flushes; the answer's body.
    pub fn flush(&self) -> Value {
        let r = self.call("POST", "/api/v1/flush", &[], b"");
        assert_eq!(r.status, 200, "{r}: {}", self.log());
        r.json()
    }

    pub fn status(&self) -> Value {
        self.get("/api/v1/status").json()
    }

    pub fn watermark(&self, name: &str) -> u64 {
        self.status()["watermarks"][name].as_u64().unwrap()
    }

    /// Sets how many files the server may have open, and returns what held before. The hard limit stays.
    pub fn limit_files(&self, soft: Option<u64>) -> Option<u64> {
        use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
        // Raised by the server to the hard limit, which is also this process's.
        let maximum = getrlimit(Resource::Nofile).maximum;
        prlimit(Some(Pid::from_child(&self.child)), Resource::Nofile, Rlimit { current: soft, maximum }).unwrap().current
    }

    #[cfg(target_os = "linux")]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL; the process is gone afterwards.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    /// SIGTERM; must end with 0.
    pub fn stop(mut self) {
        self.terminate();
        let status = self.wait_end(PATIENCE);
        assert_eq!(status.code(), Some(0), "{}", self.log());
    }

    /// Waits for the end; kills and panics after `patience`.
    pub fn wait_end(&mut self, patience: Duration) -> ExitStatus {
        let until = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            if Instant::now() > until {
                self.kill();
                panic!("the server did not end within {patience:?}: {}", self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Looks again and again until it holds; panics after [`PATIENCE`].
pub fn until<T>(what: &str, mut f: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(x) = f() {
            return x;
        }
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Copies a directory and what is in it.
pub fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for e in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(e.file_name());
        if e.file_type().unwrap().is_dir() {
            copy_dir(&e.path(), &target);
        } else {
            std::fs::copy(e.path(), target).unwrap();
        }
    }
}
