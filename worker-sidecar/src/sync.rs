//! What the concurrent core is built on. `make race` puts the model checker's parts in the place of the real ones, so
//! that it decides at each of them who goes on, and whether time is over; Tokio's channels stay: they work under any
//! executor.

pub(crate) use real::*;

#[cfg(not(all(test, feature = "models")))]
mod real {
    pub(crate) use crate::health::lock;
    pub(crate) use std::sync::Mutex;
    pub(crate) use tokio::time::{sleep, sleep_until, timeout};

    /// Runs `future` in a task of its own.
    pub(crate) fn spawn(future: impl Future<Output = ()> + Send + 'static) {
        drop(tokio::spawn(future));
    }
}

#[cfg(test)]
#[cfg(feature = "models")]
mod real {
    use futures::future::{Either, select};
    use shuttle::{
        future::yield_now,
        rand::Rng,
        sync::atomic::{AtomicBool, Ordering},
    };
    use std::{
        cell::Cell,
        ops::{Deref, DerefMut},
        pin::pin,
        sync::PoisonError,
        time::Duration,
    };
    use tokio::time::Instant;

    /// The checker decides before each of its own operations who goes on. What follows an unlock is often one of
    /// Tokio's, so there is a decision after it too.
    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);

    pub(crate) struct MutexGuard<'a, T>(Option<shuttle::sync::MutexGuard<'a, T>>);

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            self.0.as_ref().unwrap()
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.0.as_mut().unwrap()
        }
    }

    impl<T> Drop for MutexGuard<'_, T> {
        fn drop(&mut self) {
            if self.0.take().is_some() && !std::thread::panicking() {
                AtomicBool::new(false).load(Ordering::SeqCst);
            }
        }
    }

    thread_local! {
        static SLEEPS: Cell<usize> = const { Cell::new(0) };
    }

    /// How often somebody slept since [`forget_sleeps`].
    pub(crate) fn sleeps() -> usize {
        SLEEPS.get()
    }

    pub(crate) fn forget_sleeps() {
        SLEEPS.set(0);
    }

    pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        MutexGuard(Some(mutex.0.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    pub(crate) fn spawn(future: impl Future<Output = ()> + Send + 'static) {
        drop(shuttle::future::spawn(future));
    }

    /// Any time may be over after any number of steps of others.
    pub(crate) async fn sleep(_: Duration) {
        SLEEPS.set(SLEEPS.get() + 1);
        pass().await;
    }

    pub(crate) async fn sleep_until(_: Instant) {
        pass().await;
    }

    async fn pass() {
        for _ in 0..shuttle::rand::thread_rng().gen_range(1..4) {
            yield_now().await;
        }
    }

    #[derive(Debug)]
    pub(crate) struct Elapsed;

    /// Time is over early, or never: then whoever hangs is found.
    pub(crate) async fn timeout<F: Future>(_: Duration, future: F) -> Result<F::Output, Elapsed> {
        let ends = shuttle::rand::thread_rng().gen_bool(0.1);
        let end = pin!(async move {
            pass().await;
            if !ends {
                std::future::pending::<()>().await;
            }
        });
        match select(pin!(future), end).await {
            Either::Left((answer, _)) => Ok(answer),
            Either::Right(_) => Err(Elapsed),
        }
    }
}
