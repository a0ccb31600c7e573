//! What the concurrent core is built on. `make race` puts the model checker's parts in the place of the real ones, so
//! that it decides at each of them who goes on; what of it is Tokio's stays: it works under any executor.

#[cfg(not(all(test, feature = "models")))]
mod real {
    pub(crate) use std::sync::{Mutex, MutexGuard};

    #[cfg(feature = "embedded")]
    pub(crate) use std::sync::Condvar;

    /// Runs `future` in a task of its own.
    #[cfg(any(feature = "http-client", feature = "redis", feature = "postgres"))]
    pub(crate) fn spawn(future: impl Future<Output = ()> + Send + 'static) {
        drop(tokio::spawn(future));
    }
}

#[cfg(test)]
#[cfg(feature = "models")]
#[expect(clippy::unnecessary_wraps, reason = "the real ones can be poisoned")]
mod real {
    use shuttle::sync::atomic::{AtomicBool, Ordering};
    use std::{
        ops::{Deref, DerefMut},
        sync::{LockResult, PoisonError},
        time::Duration,
    };

    /// The checker decides before each of its own operations who goes on. What follows an unlock is often one of
    /// Tokio's, so there is a decision after it too.
    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);

    pub(crate) struct MutexGuard<'a, T>(Option<shuttle::sync::MutexGuard<'a, T>>);

    #[derive(Debug, Default)]
    pub(crate) struct Condvar(shuttle::sync::Condvar);

    impl<T> Mutex<T> {
        pub(crate) fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
            Ok(MutexGuard(Some(self.0.lock().unwrap_or_else(PoisonError::into_inner))))
        }
    }

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

    impl Condvar {
        pub(crate) fn new() -> Self {
            Self::default()
        }

        pub(crate) fn notify_one(&self) {
            self.0.notify_one();
        }

        pub(crate) fn notify_all(&self) {
            self.0.notify_all();
        }

        /// Time is never over here: a wake that is lost is a deadlock.
        pub(crate) fn wait_timeout<'a, T>(
            &self,
            mut guard: MutexGuard<'a, T>,
            _: Duration,
        ) -> LockResult<(MutexGuard<'a, T>, ())> {
            let waited = self.0.wait(guard.0.take().unwrap()).unwrap_or_else(PoisonError::into_inner);
            Ok((MutexGuard(Some(waited)), ()))
        }
    }

    pub(crate) fn spawn(future: impl Future<Output = ()> + Send + 'static) {
        drop(shuttle::future::spawn(future));
    }
}

pub(crate) use real::*;

#[cfg(test)]
#[cfg(feature = "models")]
pub(crate) mod check {
    //! How the models are run.

    use shuttle::{
        Config, Runner,
        scheduler::{PctScheduler, RandomScheduler, Scheduler},
    };
    use std::panic::{AssertUnwindSafe, catch_unwind};

    /// Schedules per checker; `make race SCHEDULES=…` sets it.
    fn schedules() -> usize {
        std::env::var("LONGSHORE_SCHEDULES").ok().and_then(|text| text.parse().ok()).unwrap_or(20_000)
    }

    fn run(scheduler: impl Scheduler + 'static, model: fn()) {
        let mut config = Config::new();
        // Debug builds of futures are large.
        config.stack_size = 256 * 1024;
        config.max_steps = shuttle::MaxSteps::FailAfter(20_000);
        Runner::new(scheduler, config).run(model);
    }

    /// No schedule that was tried breaks `model`.
    pub(crate) fn holds(model: fn()) {
        run(RandomScheduler::new(schedules()), model);
        run(PctScheduler::new(3, schedules()), model);
    }

    /// Some schedule breaks `model` in one of the ways that `how` says: that is what makes [`holds`] worth something.
    pub(crate) fn breaks(model: fn(), how: &[&str]) {
        let caught = catch_unwind(AssertUnwindSafe(|| holds(model)));
        let panic = caught.expect_err("no schedule broke the twin: the model sees nothing");
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or_default();
        assert!(how.iter().any(|how| text.contains(how)), "it broke in another way: {text}");
    }

    /// Somewhere between the parts of the model itself.
    pub(crate) fn point() {
        shuttle::thread::yield_now();
    }
}
