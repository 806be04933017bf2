use std::{
    fmt,
    future::Future,
    ops::{Deref, DerefMut},
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
};

use bytes::Bytes;
use memmap2::MmapMut;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Alignment of every buffer, and the largest block size for which `O_DIRECT` may use one.
pub const PAGE_BYTES: usize = 4096;

/// A fixed number of buffers of one size. Clones share the buffers.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

struct Inner {
    bytes_each: usize,
    permits: Arc<Semaphore>,
    // At most as many blocks as there are permits; one is made when a permit finds none at home.
    free: Mutex<Vec<Block>>,
}

impl Pool {
    /// A pool of `buffers` buffers of `bytes_each` bytes. The kernel gives the memory when it is first touched.
    pub fn new(buffers: usize, bytes_each: usize) -> Self {
        let permits = Arc::new(Semaphore::new(buffers));
        Self { inner: Arc::new(Inner { bytes_each, permits, free: Mutex::default() }) }
    }

    /// Waits for a buffer. Waiters are served in order; a dropped future leaves the queue.
    pub async fn acquire(&self) -> Buffer {
        let permit = Arc::clone(&self.inner.permits).acquire_owned().await;
        self.buffer(permit.expect("invariant: the pool never closes its semaphore"))
    }

    /// Waits for a buffer on a thread that may block.
    pub fn acquire_blocking(&self) -> Buffer {
        block_on(self.acquire())
    }

    /// A buffer, if one is free now and nobody waits for it.
    pub fn try_acquire(&self) -> Option<Buffer> {
        Arc::clone(&self.inner.permits).try_acquire_owned().ok().map(|permit| self.buffer(permit))
    }

    /// How many buffers are free.
    pub fn available(&self) -> usize {
        self.inner.permits.available_permits()
    }

    /// Bytes that each buffer can hold.
    pub fn bytes_each(&self) -> usize {
        self.inner.bytes_each
    }

    /// Gives the memory of all free buffers back to the system. They are made anew when they are asked for.
    pub fn trim(&self) {
        let free = std::mem::take(&mut *self.inner.free.lock().unwrap_or_else(PoisonError::into_inner));
        drop(free);
    }

    fn buffer(&self, permit: OwnedSemaphorePermit) -> Buffer {
        let block = self.inner.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let block = block.unwrap_or_else(|| Block::new(self.inner.bytes_each));
        Buffer { block: Some(block), len: 0, home: Some((Arc::clone(&self.inner), permit)) }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("bytes_each", &self.inner.bytes_each)
            .field("available", &self.available())
            .finish_non_exhaustive()
    }
}

/// Page-aligned bytes of which the first `len` are in use. Old contents are not cleared when a buffer is reused.
pub struct Buffer {
    // Taken by `drop` alone.
    block: Option<Block>,
    len: usize,
    home: Option<(Arc<Inner>, OwnedSemaphorePermit)>,
}

impl Buffer {
    /// A buffer that belongs to no pool, for work that happens once.
    pub fn detached(bytes: usize) -> Self {
        Self { block: Some(Block::new(bytes)), len: 0, home: None }
    }

    /// How many bytes the buffer can hold.
    pub fn capacity(&self) -> usize {
        self.block.as_ref().map_or(0, |block| block.bytes().len())
    }

    /// Says how many bytes are in use.
    ///
    /// # Panics
    ///
    /// If `len` exceeds the capacity: the caller checks what comes from a peer before it takes a buffer.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity(), "a buffer of {} bytes cannot hold {len}", self.capacity());
        self.len = len;
    }

    /// Lends the bytes in use; the buffer goes home when the last clone is dropped.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.block.as_ref().map_or(&[], |block| &block.bytes()[..self.len])
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.block.as_mut().map_or(&mut [], |block| &mut block.bytes_mut()[..self.len])
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let (Some(block), Some((home, permit))) = (self.block.take(), self.home.take()) {
            home.free.lock().unwrap_or_else(PoisonError::into_inner).push(block);
            drop(permit);
        }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").field("len", &self.len).field("capacity", &self.capacity()).finish_non_exhaustive()
    }
}

/// Zeroed, page-aligned bytes. Mapped, so that giving one up gives its memory back to the system at once.
enum Block {
    Mapped(MmapMut),
    // Where the system refuses a mapping: merely unaligned.
    Heap(Vec<u8>),
}

impl Block {
    fn new(len: usize) -> Self {
        // A mapping of no bytes is an error.
        MmapMut::map_anon(len.max(1)).map_or_else(|_| Self::Heap(vec![0; len]), Self::Mapped)
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Heap(bytes) => bytes,
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Heap(bytes) => bytes,
        }
    }
}

/// Drives a future on this thread.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Each comes home when its last clone is dropped, and no earlier.
    #[test]
    fn buffers_are_aligned_bounded_and_come_home() {
        let pool = Pool::new(2, 10_000);
        let mut a = pool.try_acquire().unwrap();
        let b = pool.try_acquire().unwrap();
        assert!(pool.try_acquire().is_none());
        a.set_len(10_000);
        assert_eq!(a.as_ptr().align_offset(PAGE_BYTES), 0);
        a[9_999] = 7;
        let frozen = a.freeze();
        let clone = frozen.slice(9_999..);
        drop(frozen);
        assert_eq!(pool.available(), 0);
        assert_eq!(clone[0], 7);
        drop(clone);
        assert_eq!(pool.available(), 1);
        drop(b);
        assert_eq!(pool.available(), 2);
        drop((pool.acquire_blocking(), pool.acquire_blocking()));
    }

    #[test]
    fn an_empty_pool_makes_takers_wait() {
        let pool = Pool::new(1, 16);
        let held = pool.acquire_blocking();
        let taker = thread::spawn({
            let pool = pool.clone();
            move || drop(pool.acquire_blocking())
        });
        thread::sleep(Duration::from_millis(20));
        assert!(!taker.is_finished());
        drop(held);
        taker.join().unwrap();
        assert_eq!(pool.available(), 1);
    }

    #[test]
    fn a_detached_buffer_belongs_to_no_pool() {
        let mut b = Buffer::detached(4096);
        b.set_len(4096);
        assert_eq!((b.len(), b.as_ptr().align_offset(PAGE_BYTES)), (4096, 0));
    }
}
