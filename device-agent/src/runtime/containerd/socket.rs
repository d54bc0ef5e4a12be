//! containerd's socket, with what is written to it gathered.
//!
//! HTTP/2 sends content in frames of 16 KiB (containerd offers no larger ones) and asks for each to go out at once. A
//! system call for each, and a containerd that is woken for each, cost more than the content does; so that what one turn of
//! the connection writes leaves together, a flush waits for the connection's next turn, which it brings about itself.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

/// What leaves together, at most.
const MAX_WAITING_BYTES: usize = 128 * 1024;

/// A connection to containerd.
pub(super) struct Socket<S = UnixStream> {
    stream: S,
    waiting: Vec<u8>,
    /// How much of that has left.
    sent: usize,
    /// containerd takes no more; the stream wakes the connection when it does.
    blocked: bool,
}

impl Socket {
    /// Connects.
    pub(super) async fn connect(path: &Path) -> io::Result<Self> {
        Ok(Self::new(UnixStream::connect(path).await?))
    }
}

impl<S: AsyncWrite + Unpin> Socket<S> {
    fn new(stream: S) -> Self {
        Self { stream, waiting: Vec::new(), sent: 0, blocked: false }
    }

    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.waiting.get(self.sent..).filter(|rest| !rest.is_empty()) {
            let written = Pin::new(&mut self.stream).poll_write(context, rest);
            self.blocked = written.is_pending();
            let count = ready!(written)?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += count;
        }
        self.waiting.clear();
        self.sent = 0;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Socket<S> {
    /// A connection reads first whenever it has its turn: what it wrote in its last one goes out here.
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(sent) = self.poll_send(context) {
            sent?;
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Socket<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.waiting.len() >= MAX_WAITING_BYTES {
            ready!(self.poll_send(context))?;
        }
        let count = bytes.len().min(MAX_WAITING_BYTES - self.waiting.len());
        self.waiting.extend_from_slice(bytes.get(..count).unwrap_or_default());
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Not where containerd takes no more: the connection would turn and turn until its card is done.
        if !self.waiting.is_empty() && !self.blocked {
            context.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(context))?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn what_is_flushed_goes_out_with_the_next_read_and_not_before() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 20);
        let mut socket = Socket::new(ours);
        for _ in 0..3 {
            socket.write_all(b"frame").await.unwrap();
            socket.flush().await.unwrap();
        }
        assert_eq!(socket.waiting.len(), 15);
        theirs.write_all(b"answer").await.unwrap();
        let mut answer = [0; 6];
        socket.read_exact(&mut answer).await.unwrap();
        let mut frames = [0; 15];
        theirs.read_exact(&mut frames).await.unwrap();
        assert_eq!((&frames, &answer), (b"frameframeframe", b"answer"));
        assert!(socket.waiting.is_empty());
    }

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_containerd_that_takes_no_more_is_waited_for_without_turning() {
        let (ours, _theirs) = tokio::io::duplex(10);
        let mut socket = Socket::new(ours);
        let counted = Arc::new(Wakes::default());
        let waker = Waker::from(Arc::clone(&counted));
        let mut context = Context::from_waker(&waker);
        let mut room = [0; 8];
        assert!(Pin::new(&mut socket).poll_write(&mut context, &[0; 100]).is_ready());
        assert!(Pin::new(&mut socket).poll_flush(&mut context).is_ready());
        assert_eq!(counted.0.load(Ordering::Relaxed), 1);
        for _ in 0..3 {
            assert!(Pin::new(&mut socket).poll_read(&mut context, &mut ReadBuf::new(&mut room)).is_pending());
            assert!(Pin::new(&mut socket).poll_flush(&mut context).is_ready());
        }
        assert_eq!((counted.0.load(Ordering::Relaxed), socket.sent), (1, 10));
    }

    #[tokio::test]
    async fn more_than_fits_goes_out_whole_and_in_order_through_a_narrow_pipe() {
        let (ours, mut theirs) = tokio::io::duplex(1000);
        let mut socket = Socket::new(ours);
        let bytes: Vec<u8> = (0..300_000_u32).map(|number| number.to_le_bytes()[0]).collect();
        let mut received = Vec::new();
        let writing = async {
            socket.write_all(&bytes).await.unwrap();
            socket.shutdown().await.unwrap();
        };
        tokio::join!(writing, async { theirs.read_to_end(&mut received).await.unwrap() });
        assert!(received == bytes);
    }
}
