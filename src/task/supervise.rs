use std::{
    any::Any,
    backtrace::Backtrace,
    cell::{Cell, RefCell},
    fmt,
    future::Future,
    panic::{self, AssertUnwindSafe, PanicHookInfo},
    pin::Pin,
    sync::Once,
    task::{Context, Poll},
};

use tokio::task::JoinHandle;

/// What a panic left behind: enough to file it as a defect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Panic {
    /// The task's name.
    pub task: String,
    /// What `panic!` said.
    pub message: String,
    /// File, line and column of the panic, where the hook saw it.
    pub location: Option<String>,
    /// The stack at the panic.
    pub backtrace: String,
}

impl fmt::Display for Panic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} panicked", self.task)?;
        if let Some(location) = &self.location {
            write!(f, " at {location}")?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Why a supervised task gave no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TaskEnd {
    /// A defect. The process goes on; what the task held was dropped by unwinding.
    #[error("{0}")]
    Panicked(Box<Panic>),
    /// It was aborted, or its runtime ended.
    #[error("{task} was ended before it was done")]
    Aborted {
        /// The task's name.
        task: String,
    },
}

/// Spawns `future` as a task whose panic becomes a value with its backtrace. Nothing is printed for such a panic: the
/// caller logs or stores it, once. The task is aborted when the handle is dropped.
///
/// Only what is polled within the task itself is covered; what it spawns must be supervised by itself.
pub fn supervise<T: Send + 'static>(
    name: impl Into<String>,
    future: impl Future<Output = T> + Send + 'static,
) -> Supervised<T> {
    listen_to_panics();
    let task = name.into();
    let guarded = Guarded { task: task.clone(), future: Box::pin(future) };
    Supervised { task, handle: tokio::spawn(guarded) }
}

/// A task under supervision; awaiting it gives its value or how it ended.
#[derive(Debug)]
pub struct Supervised<T> {
    task: String,
    handle: JoinHandle<Result<T, Box<Panic>>>,
}

impl<T> Supervised<T> {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.task
    }

    /// Ends it at its next await.
    pub fn abort(&self) {
        self.handle.abort();
    }

    /// Whether it ended.
    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }
}

impl<T> Future for Supervised<T> {
    type Output = Result<T, TaskEnd>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.handle).poll(cx).map(|joined| match joined {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(panic)) => Err(TaskEnd::Panicked(panic)),
            Err(_) => Err(TaskEnd::Aborted { task: self.task.clone() }),
        })
    }
}

impl<T> Drop for Supervised<T> {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

struct Guarded<F> {
    task: String,
    future: Pin<Box<F>>,
}

impl<F: Future> Future for Guarded<F> {
    type Output = Result<F::Output, Box<Panic>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        // After a panic the future is never polled again, so no broken invariant of it is ever seen.
        let polled = watched(|| panic::catch_unwind(AssertUnwindSafe(|| this.future.as_mut().poll(cx))));
        match polled {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(value)) => Poll::Ready(Ok(value)),
            Err(payload) => {
                let (location, backtrace) = LAST.take().unwrap_or_default();
                Poll::Ready(Err(Box::new(Panic {
                    task: std::mem::take(&mut this.task),
                    message: message_of(payload.as_ref()),
                    location,
                    backtrace,
                })))
            }
        }
    }
}

thread_local! {
    /// Whether a supervised task is being polled on this thread.
    static WATCHED: Cell<bool> = const { Cell::new(false) };
    /// Where the last panic of a supervised task on this thread happened, and the stack.
    static LAST: RefCell<Option<(Option<String>, String)>> = const { RefCell::new(None) };
}

fn watched<T>(poll: impl FnOnce() -> T) -> T {
    let before = WATCHED.replace(true);
    let result = poll();
    WATCHED.set(before);
    result
}

/// Only the hook sees the stack of a panic: when `catch_unwind` returns, it is gone. Panics outside supervised tasks go to
/// the hook that was there before.
fn listen_to_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info: &PanicHookInfo<'_>| {
            if WATCHED.get() {
                let stack = Backtrace::force_capture().to_string();
                LAST.set(Some((info.location().map(ToString::to_string), stack)));
            } else {
                before(info);
            }
        }));
    });
}

fn message_of(payload: &(dyn Any + Send)) -> String {
    if let Some(text) = payload.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text.clone()
    } else {
        "a panic whose payload is no text".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::panic, reason = "it is what is tested")]
    fn deep_inside(number: u32) -> u32 {
        panic!("number {number} is too large")
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_panic_becomes_a_value_with_its_stack() {
        let end = supervise("counting", async {
            tokio::task::yield_now().await;
            deep_inside(7)
        })
        .await
        .unwrap_err();
        let TaskEnd::Panicked(panic) = end else { panic!("{end}") };
        assert_eq!(panic.task, "counting");
        assert_eq!(panic.message, "number 7 is too large");
        assert!(panic.location.as_ref().is_some_and(|l| l.contains("supervise.rs:")), "{panic}");
        assert!(panic.backtrace.contains("deep_inside"), "{}", panic.backtrace);
    }

    #[tokio::test]
    async fn each_task_gets_its_own_panic() {
        let tasks: Vec<_> = (0..20)
            .map(|n| supervise(format!("task {n}"), async move { if n % 2 == 0 { deep_inside(n) } else { n } }))
            .collect();
        for (n, task) in (0..).zip(tasks) {
            match task.await {
                Ok(value) => assert_eq!((value, n % 2), (n, 1)),
                Err(TaskEnd::Panicked(panic)) => {
                    assert_eq!(panic.message, format!("number {n} is too large"));
                    assert_eq!(panic.task, format!("task {n}"));
                }
                Err(other) => panic!("{other}"),
            }
        }
    }

    #[tokio::test]
    async fn an_abort_is_no_panic_and_dropping_aborts() {
        let task = supervise("waiting", std::future::pending::<()>());
        task.abort();
        assert_eq!(task.await, Err(TaskEnd::Aborted { task: "waiting".to_owned() }));

        let (alive, mut ended) = tokio::sync::mpsc::channel::<()>(1);
        let task = supervise("holding", async move {
            let _held = alive;
            std::future::pending::<()>().await;
        });
        drop(task);
        assert_eq!(ended.recv().await, None);
    }
}
