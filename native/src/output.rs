//! Bytes that wait to be sent on one stream, beyond what congestion and flow control let quiche take now.
//!
//! Knows a stream's number and quiche's `stream_send`. Knows no HTTP. Bodies are kept as the Python objects that they came in.

use std::collections::VecDeque;

use pyo3::pybacked::PyBackedBytes;

/// A piece of what is to be sent.
pub enum Chunk {
    Owned(Vec<u8>),
    Shared(PyBackedBytes),
}

impl Chunk {
    /// Its bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Chunk::Owned(bytes) => bytes,
            Chunk::Shared(bytes) => bytes,
        }
    }

    /// How many they are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// There are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.as_slice().is_empty()
    }
}

/// The queue of one stream.
#[derive(Default)]
pub struct Output {
    chunks: VecDeque<Chunk>,
    /// Bytes of the first chunk that were taken already.
    taken: usize,
    bytes: usize,
    /// The stream ends after the last chunk, and quiche does not know it yet.
    end: bool,
}

impl Output {
    /// Bytes that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Nothing waits, not even the end.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0 && !self.end
    }

    /// Append a chunk.
    pub fn push(&mut self, chunk: Chunk) {
        if !chunk.is_empty() {
            self.bytes += chunk.len();
            self.chunks.push_back(chunk);
        }
    }

    /// Nothing comes after what was pushed.
    pub fn finish(&mut self) {
        self.end = true;
    }

    /// Hand over at most about `most` bytes; true where some were, or the end was.
    ///
    /// # Errors
    /// Those of a stream that takes nothing any more: stopped by the client, reset or gone.
    pub fn write(&mut self, quic: &mut quiche::Connection, stream: u64, most: usize) -> quiche::Result<bool> {
        let mut written = 0;
        while let Some(chunk) = self.chunks.front() {
            let last = self.chunks.len() == 1 && self.end;
            let rest = &chunk.as_slice()[self.taken..];
            let count = match quic.stream_send(stream, rest, last) {
                Ok(count) => count,
                Err(quiche::Error::Done) => return Ok(written > 0),
                Err(error) => return Err(error),
            };
            written += count;
            self.bytes -= count;
            if count < rest.len() {
                self.taken += count;
                return Ok(written > 0);
            }
            self.taken = 0;
            self.chunks.pop_front();
            if last {
                self.end = false;
                return Ok(true);
            }
            if written >= most {
                return Ok(true);
            }
        }
        if self.end {
            match quic.stream_send(stream, b"", true) {
                Ok(_) => self.end = false,
                Err(quiche::Error::Done) => return Ok(written > 0),
                Err(error) => return Err(error),
            }
            return Ok(true);
        }
        Ok(written > 0)
    }
}
