//! Locks, condition variables, atomics and timers of what several threads share.
//!
//! They are the standard ones; with the feature `shuttle` they are under the control of a scheduler of tests, which tries many orders
//! of their events (`just shuttle`).

#[cfg(not(feature = "shuttle"))]
pub use std::sync::{Condvar, Mutex, MutexGuard, atomic};
#[cfg(not(feature = "shuttle"))]
pub use tokio::time::sleep;

#[cfg(feature = "shuttle")]
pub use controlled::{Condvar, Mutex, MutexGuard, Sleep, WaitTimeoutResult, sleep};
#[cfg(feature = "shuttle")]
pub use shuttle::sync::atomic;

/// What shuttle lacks: waits that end by time.
#[cfg(feature = "shuttle")]
mod controlled {
    use std::future::Future;
    use std::ops::{Deref, DerefMut};
    use std::pin::Pin;
    use std::sync::{LockResult, PoisonError};
    use std::task::{Context, Poll};
    use std::time::Duration;

    use shuttle::rand::Rng;

    /// A timed wait that is at least this long is there for what nobody foresaw: nothing may depend on its end, so it never ends, and
    /// a lost wake-up is a deadlock. A shorter one is how its thread looks around: it ends at once.
    const BACKSTOP: Duration = Duration::from_secs(1);

    #[derive(Debug, Default)]
    pub struct Mutex<T>(shuttle::sync::Mutex<T>);

    #[derive(Debug)]
    pub struct MutexGuard<'a, T> {
        mutex: &'a Mutex<T>,
        /// None only inside of a wait.
        guard: Option<shuttle::sync::MutexGuard<'a, T>>,
    }

    impl<T> Mutex<T> {
        pub const fn new(value: T) -> Self {
            Self(shuttle::sync::Mutex::new(value))
        }

        /// # Errors
        /// A holder has panicked.
        pub fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
            match self.0.lock() {
                Ok(g) => Ok(MutexGuard { mutex: self, guard: Some(g) }),
                Err(e) => Err(PoisonError::new(MutexGuard { mutex: self, guard: Some(e.into_inner()) })),
            }
        }
    }

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            self.guard.as_ref().expect("held")
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.guard.as_mut().expect("held")
        }
    }

    #[derive(Clone, Copy, Debug)]
    pub struct WaitTimeoutResult(bool);

    impl WaitTimeoutResult {
        pub fn timed_out(&self) -> bool {
            self.0
        }
    }

    #[derive(Debug, Default)]
    pub struct Condvar(shuttle::sync::Condvar);

    impl Condvar {
        pub const fn new() -> Self {
            Self(shuttle::sync::Condvar::new())
        }

        pub fn notify_one(&self) {
            self.0.notify_one();
        }

        pub fn notify_all(&self) {
            self.0.notify_all();
        }

        /// # Errors
        /// A holder of the mutex has panicked.
        pub fn wait_timeout<'a, T>(
            &self,
            mut held: MutexGuard<'a, T>,
            timeout: Duration,
        ) -> LockResult<(MutexGuard<'a, T>, WaitTimeoutResult)> {
            let guard = held.guard.take().expect("held");
            if timeout < BACKSTOP {
                drop(guard);
                shuttle::thread::yield_now();
                held = held.mutex.lock().unwrap_or_else(PoisonError::into_inner);
                return Ok((held, WaitTimeoutResult(true)));
            }
            held.guard = Some(self.0.wait(guard).unwrap_or_else(PoisonError::into_inner));
            Ok((held, WaitTimeoutResult(false)))
        }

        /// # Errors
        /// A holder of the mutex has panicked.
        pub fn wait_timeout_while<'a, T>(
            &self,
            mut held: MutexGuard<'a, T>,
            timeout: Duration,
            mut condition: impl FnMut(&mut T) -> bool,
        ) -> LockResult<(MutexGuard<'a, T>, WaitTimeoutResult)> {
            while condition(&mut held) {
                let over;
                (held, over) = self.wait_timeout(held, timeout)?;
                if over.timed_out() {
                    return Ok((held, over));
                }
            }
            Ok((held, WaitTimeoutResult(false)))
        }
    }

    /// Ends when the scheduler likes, or never.
    #[derive(Debug)]
    pub struct Sleep(Option<u32>);

    pub fn sleep(_: Duration) -> Sleep {
        let mut rng = shuttle::rand::thread_rng();
        Sleep(if rng.gen_bool(0.5) { None } else { Some(rng.gen_range(0..12)) })
    }

    impl Future for Sleep {
        type Output = ();

        fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
            match &mut self.0 {
                None => Poll::Pending,
                Some(0) => Poll::Ready(()),
                Some(n) => {
                    *n -= 1;
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
            }
        }
    }
}
