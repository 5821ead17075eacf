//! Log lines reach stderr through a thread of their own.
//!
//! INVARIANT(logging-never-blocks): whoever logs puts its line into a queue that is bounded in bytes and goes on. A line for which there
//! is no room, or that stderr does not take (its reader has gone, its disk is full), is dropped and counted; as soon as lines can be written
//! again, one of them says how many were lost. Logging never waits, fails or panics, whatever has become of stderr.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Bytes that may wait for stderr.
const CAPACITY: usize = 4 << 20;
/// What a waiting line takes beside its bytes, about.
const OVERHEAD: usize = 64;
/// Pause before a descriptor that does not take anything at the moment is tried again.
const RETRY: Duration = Duration::from_millis(20);

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// A line has been taken and is not written yet.
    writing: bool,
}

#[derive(Debug)]
struct Inner {
    capacity: usize,
    state: Mutex<State>,
    queued: Condvar,
    written: Condvar,
    dropped: AtomicU64,
    unreported: AtomicU64,
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lose(&self) {
        self.dropped.fetch_add(1, Relaxed);
        self.unreported.fetch_add(1, Relaxed);
    }
}

/// The queue of log lines. Clones are the same queue.
#[derive(Clone, Debug)]
pub struct LogWriter(Arc<Inner>);

/// Where lines go. `WouldBlock` is tried again, any other error loses the line.
trait Output: Send {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;
}

/// Not through the standard library's handle: its lock would be held by a write that hangs, and it takes a closed descriptor for a success.
struct Stderr;

impl Output for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(io::stderr().as_fd(), bytes)?)
    }
}

impl LogWriter {
    fn start(output: impl Output + 'static, capacity: usize) -> Self {
        let inner = Arc::new(Inner {
            capacity,
            state: Mutex::default(),
            queued: Condvar::new(),
            written: Condvar::new(),
            dropped: AtomicU64::new(0),
            unreported: AtomicU64::new(0),
        });
        let queue = Arc::clone(&inner);
        // Without its thread every line is lost and counted.
        let _ = std::thread::Builder::new().name("arc-log".into()).spawn(move || drain(&queue, output));
        Self(inner)
    }

    /// Queues one line, or drops and counts it.
    fn push(&self, line: &[u8]) {
        let mut s = self.0.state();
        if s.bytes + line.len() + OVERHEAD > self.0.capacity {
            drop(s);
            return self.0.lose();
        }
        s.bytes += line.len() + OVERHEAD;
        s.lines.push_back(line.to_vec());
        drop(s);
        self.0.queued.notify_one();
    }

    /// Lines dropped so far.
    fn dropped(&self) -> u64 {
        self.0.dropped.load(Relaxed)
    }

    /// Waits until everything is written, `patience` at most; whether it is.
    fn flush(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        let mut s = self.0.state();
        while s.writing || !s.lines.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            s = self.0.written.wait_timeout(s, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl io::Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn drain(queue: &Inner, mut output: impl Output) {
    // The last line was cut short: what follows begins on a line of its own.
    let mut cut = false;
    loop {
        let line = {
            let mut s = queue.state();
            loop {
                if let Some(line) = s.lines.pop_front() {
                    s.bytes -= line.len() + OVERHEAD;
                    s.writing = true;
                    break line;
                }
                s = queue.queued.wait(s).unwrap_or_else(PoisonError::into_inner);
            }
        };
        let ok = write_line(&mut output, &line, &mut cut);
        if !ok {
            queue.lose();
        }
        let has_room = queue.state().bytes < queue.capacity / 2;
        // Queued before `writing` ends, so that whoever flushes waits for it too.
        if ok && has_room {
            let lost = queue.unreported.swap(0, Relaxed);
            if lost > 0 {
                tracing::warn!(dropped = lost, "log lines were dropped: stderr could not be written, or was not read in time");
            }
        }
        queue.state().writing = false;
        queue.written.notify_all();
    }
}

fn write_line(output: &mut impl Output, line: &[u8], cut: &mut bool) -> bool {
    let begin: &[u8] = if *cut { b"\n" } else { b"" };
    for mut rest in [begin, line] {
        while !rest.is_empty() {
            match output.write(rest) {
                Ok(0) => return false,
                Ok(n) => {
                    rest = rest.get(n..).unwrap_or_default();
                    *cut = !rest.is_empty() || !line.ends_with(b"\n");
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(RETRY),
                Err(_) => return false,
            }
        }
    }
    true
}

static STDERR: OnceLock<LogWriter> = OnceLock::new();

/// The queue before stderr; its thread starts with the first call.
pub fn stderr() -> &'static LogWriter {
    STDERR.get_or_init(|| LogWriter::start(Stderr, CAPACITY))
}

/// Queues a line for stderr if log lines go there through the queue; false if they do not and the caller may write itself.
pub fn say(line: &str) -> bool {
    STDERR.get().is_some_and(|w| {
        w.push(line.as_bytes());
        true
    })
}

/// Lines dropped so far by this process.
pub fn dropped() -> u64 {
    STDERR.get().map_or(0, LogWriter::dropped)
}

/// Before the end of the process: waits until everything is written, `patience` at most.
pub fn finish(patience: Duration) {
    if let Some(w) = STDERR.get() {
        w.flush(patience);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes what the script says: so many bytes, or an error; then everything.
    #[derive(Clone, Default)]
    struct Scripted {
        script: Arc<Mutex<VecDeque<Result<usize, i32>>>>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Output for Scripted {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let n = match self.script.lock().unwrap().pop_front() {
                Some(Ok(n)) => n.min(bytes.len()),
                Some(Err(errno)) => return Err(io::Error::from_raw_os_error(errno)),
                None => bytes.len(),
            };
            self.written.lock().unwrap().extend_from_slice(&bytes[..n]);
            Ok(n)
        }
    }

    fn write(script: &[Result<usize, i32>], lines: &[&str]) -> (String, u64) {
        let out = Scripted::default();
        out.script.lock().unwrap().extend(script);
        let w = LogWriter::start(out.clone(), 1 << 20);
        for l in lines {
            w.push(l.as_bytes());
        }
        assert!(w.flush(Duration::from_secs(20)));
        let text = String::from_utf8(out.written.lock().unwrap().clone()).unwrap();
        (text, w.dropped())
    }

    #[test]
    fn line_that_cannot_be_written_is_dropped_and_counted() {
        assert_eq!(write(&[], &["a\n", "b\n"]), ("a\nb\n".into(), 0));
        assert_eq!(write(&[Err(libc::EAGAIN), Err(libc::EINTR), Ok(1), Err(libc::EAGAIN)], &["ab\n"]), ("ab\n".into(), 0));
        for errno in [libc::EPIPE, libc::ENOSPC, libc::EIO, libc::EBADF] {
            assert_eq!(write(&[Err(errno)], &["a\n", "b\n"]), ("b\n".into(), 1));
        }
        assert_eq!(write(&[Ok(0)], &["a\n", "b\n"]), ("b\n".into(), 1));
    }

    #[test]
    fn line_cut_short_does_not_run_into_the_next() {
        assert_eq!(write(&[Ok(2), Err(libc::ENOSPC)], &["abc\n", "d\n", "e\n"]), ("ab\nd\ne\n".into(), 1));
        assert_eq!(write(&[Ok(2), Err(libc::ENOSPC), Err(libc::ENOSPC)], &["abc\n", "d\n", "e\n"]), ("ab\ne\n".into(), 2));
    }

    struct Stuck;

    impl Output for Stuck {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            loop {
                std::thread::park();
            }
        }
    }

    #[test]
    fn output_that_takes_nothing_holds_up_nobody() {
        let w = LogWriter::start(Stuck, 64 << 10);
        let line = [b'x'; 1000];
        for _ in 0..10_000 {
            w.push(&line);
        }
        assert!(w.dropped() > 9_900, "{}", w.dropped());
        let s = w.0.state();
        assert!(s.bytes <= 64 << 10 && s.lines.len() < 100);
        drop(s);
        let began = Instant::now();
        assert!(!w.flush(Duration::from_millis(50)));
        assert!(began.elapsed() < Duration::from_secs(10));
    }
}
