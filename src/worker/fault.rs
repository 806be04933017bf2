//! Attempts that fail on purpose.
//!
//! In a build for use this passes attempts through and compiles to nothing. With the feature `faults` the environment
//! variable `CCAT_XFER_FAULT_ATTEMPTS` (`30%,SEED`) has that share of all attempts fail, by every class of error. Which one
//! fails, how and when is drawn from seed, work and attempt alone, so that a test can say where each row must end.
//! `CCAT_XFER_PANIC` names the path of a package at whose beginning the worker's task panics. With
//! `CCAT_XFER_FAULT_READ_BACK=off` no archive is read back, and each is believed: what tests find then is what reading back
//! is there for.

#[cfg(not(feature = "faults"))]
pub(super) use passing::{around, is_read_back_off, package_begins};
#[cfg(feature = "faults")]
pub use planted::{Moment, Plan, Planted};
#[cfg(feature = "faults")]
pub(super) use planted::{around, is_read_back_off, package_begins};

#[cfg(not(feature = "faults"))]
mod passing {
    use tokio_util::sync::CancellationToken;

    use crate::{
        store::Claim,
        worker::{Attempt, Meter},
    };

    /// Runs an attempt.
    #[inline(always)]
    pub(in crate::worker) async fn around<F: Future<Output = Attempt>>(
        _: &Claim,
        _: &Meter,
        cancel: &CancellationToken,
        attempt: impl FnOnce(CancellationToken) -> F,
    ) -> Attempt {
        attempt(cancel.clone()).await
    }

    #[inline(always)]
    pub(in crate::worker) const fn package_begins(_: &[u8]) {}

    #[inline(always)]
    pub(in crate::worker) const fn is_read_back_off() -> bool {
        false
    }
}

#[cfg(feature = "faults")]
mod planted {
    use std::{os::unix::ffi::OsStrExt as _, sync::OnceLock, time::Duration};

    use tokio_util::sync::CancellationToken;

    use crate::{
        model::{ErrorClass, Work},
        store::Claim,
        worker::{Attempt, Failure, Meter},
    };

    /// Which attempts fail.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Plan {
        percent: u64,
        seed: u64,
    }

    /// When an attempt fails.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Moment {
        /// Before it has begun.
        Before,
        /// As soon as bytes are verified at the destination; behind the end, if there were none.
        Midway,
        /// When everything is there, and published.
        After,
    }

    /// How an attempt fails.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Planted {
        /// The error's class. `bug` is a panic, `lost_worker` the end of the whole process.
        pub class: ErrorClass,
        /// When it comes.
        pub moment: Moment,
    }

    impl Plan {
        /// Reads `PERCENT%,SEED`.
        pub fn parse(text: &str) -> Option<Self> {
            let (percent, seed) = text.split_once("%,")?;
            Some(Self { percent: percent.parse().ok()?, seed: seed.parse().ok()? })
        }

        /// How this attempt fails, if it does.
        pub fn draw(&self, work: Work, attempt: u64) -> Option<Planted> {
            let mut hasher = blake3::Hasher::new_derive_key("ccat-xfer 2026 attempts that fail on purpose");
            hasher.update(&self.seed.to_le_bytes()).update(work.table().as_bytes());
            hasher.update(&work.number().to_le_bytes()).update(&attempt.to_le_bytes());
            let hash = hasher.finalize();
            // One byte each would favour some of a hundred; two are even enough.
            let word = |n: usize| u64::from(u16::from_le_bytes([hash.as_bytes()[n], hash.as_bytes()[n + 1]]));
            let pick = |n: usize, len: usize| usize::try_from(word(n)).unwrap_or(0) % len;
            (word(0) % 100 < self.percent).then(|| Planted {
                class: ErrorClass::ALL[pick(2, ErrorClass::ALL.len())],
                moment: [Moment::Before, Moment::Midway, Moment::After][pick(4, 3)],
            })
        }

        fn of_process() -> Option<Self> {
            static PLAN: OnceLock<Option<Plan>> = OnceLock::new();
            *PLAN.get_or_init(|| Self::parse(&std::env::var("CCAT_XFER_FAULT_ATTEMPTS").ok()?))
        }
    }

    impl Planted {
        fn strike(self, mut attempt: Attempt) -> Attempt {
            let text = format!("a planted {} ({:?})", self.class, self.moment);
            match self.class {
                ErrorClass::Bug => panic!("{text}"),
                ErrorClass::LostWorker => {
                    tracing::error!("{text}");
                    std::process::abort()
                }
                class => {
                    attempt.log.push(text.clone());
                    attempt.failure = Some(Failure::new(class, text));
                    attempt
                }
            }
        }
    }

    /// Runs an attempt, unless and until it has to fail.
    pub(in crate::worker) async fn around<F: Future<Output = Attempt>>(
        claim: &Claim,
        meter: &Meter,
        cancel: &CancellationToken,
        attempt: impl FnOnce(CancellationToken) -> F,
    ) -> Attempt {
        let drawn = Plan::of_process().and_then(|plan| plan.draw(claim.work, claim.attempt));
        let Some(planted) = drawn else { return attempt(cancel.clone()).await };
        match planted.moment {
            Moment::Before => planted.strike(Attempt::default()),
            Moment::Midway => {
                let part = cancel.child_token();
                let running = attempt(part.clone());
                tokio::pin!(running);
                let begun = async {
                    while meter.bytes() == 0 {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                };
                tokio::select! {
                    done = &mut running => return planted.strike(done),
                    () = begun => part.cancel(),
                }
                planted.strike(running.await)
            }
            Moment::After => planted.strike(attempt(cancel.clone()).await),
        }
    }

    /// Panics at a planted package.
    pub(in crate::worker) fn package_begins(path: &[u8]) {
        if std::env::var_os("CCAT_XFER_PANIC").is_some_and(|planted| planted.as_bytes() == path) {
            panic!("planted at {}", String::from_utf8_lossy(path));
        }
    }

    /// Whether archives are believed without a look.
    pub(in crate::worker) fn is_read_back_off() -> bool {
        std::env::var_os("CCAT_XFER_FAULT_READ_BACK").is_some_and(|word| word == "off")
    }

    #[cfg(test)]
    mod tests {
        use super::*;
        use crate::model::TransferId;

        #[test]
        fn the_draw_is_the_same_everywhere_and_knows_every_class() {
            let plan = Plan::parse("30%,7").unwrap();
            let of = |attempt| plan.draw(Work::Transfer(TransferId::new(1)), attempt);
            assert_eq!(of(3), of(3));
            let drawn: Vec<_> = (0..10_000).filter_map(of).collect();
            assert!((2_700..3_300).contains(&drawn.len()), "{}", drawn.len());
            for class in ErrorClass::ALL {
                assert!(drawn.iter().filter(|d| d.class == *class).count() > 100, "{class}");
            }
            for moment in [Moment::Before, Moment::Midway, Moment::After] {
                assert!(drawn.iter().any(|d| d.moment == moment));
            }
            assert_eq!(Plan::parse("30,7"), None);
            assert_eq!(Plan::parse("0%,7").unwrap().draw(Work::Transfer(TransferId::new(1)), 1), None);
        }
    }
}
