//! Reads a stream of server-sent events.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, StatusCode};

use super::{Client, problem};
use crate::api::problem::chain;
use crate::cli::CliError;

/// A server that says nothing for this long is gone; it gives a sign of life every 15 seconds.
const SILENCE: Duration = Duration::from_mins(1);
/// Longest frame in bytes.
const MAX_FRAME_BYTES: usize = 1024 * 1024;

/// One event of a stream.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::cli) struct Frame {
    /// Its `event`.
    pub(in crate::cli) name: String,
    /// Its `data`.
    pub(in crate::cli) data: String,
}

/// Why a stream is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Ended {
    /// The server ended it.
    ByServer,
    /// Whoever takes the events wants no more.
    NobodyReads,
}

impl Client {
    /// Hands over what happens after the event `last`, until `take` says that it is enough.
    pub(in crate::cli) async fn follow(
        &self,
        path: &str,
        last: Option<u64>,
        mut take: impl FnMut(Frame) -> bool,
    ) -> Result<Ended, CliError> {
        let mut request = self.request(&Method::GET, path)?.header("accept", "text/event-stream");
        if let Some(last) = last {
            request = request.header("last-event-id", last.to_string());
        }
        let request = request.body(Full::new(Bytes::new())).map_err(|error| CliError::from_error(&error))?;
        let quiet = |_| self.unreachable(format!("nothing came for {} seconds", SILENCE.as_secs()));
        let response = tokio::time::timeout(SILENCE, self.http.request(request)).await.map_err(quiet)?;
        let response = response.map_err(|error| self.unreachable(chain(&error)))?;
        let status = response.status();
        let mut body = response.into_body();
        if status != StatusCode::OK {
            let bytes = body.collect().await.map_err(|error| self.unreachable(chain(&error)))?.to_bytes();
            return Err(problem(&self.server, status, &bytes));
        }
        let mut frames = Frames::default();
        loop {
            let piece = tokio::time::timeout(SILENCE, body.frame()).await.map_err(quiet)?;
            let Some(piece) = piece else {
                return Ok(Ended::ByServer);
            };
            let piece = piece.map_err(|error| self.unreachable(chain(&error)))?;
            let Some(bytes) = piece.data_ref() else {
                continue;
            };
            for frame in frames.feed(bytes)? {
                if !take(frame) {
                    return Ok(Ended::NobodyReads);
                }
            }
        }
    }
}

/// Frames out of the pieces in which they come.
#[derive(Default)]
struct Frames {
    line: Vec<u8>,
    frame: Frame,
}

impl Frames {
    fn feed(&mut self, bytes: &[u8]) -> Result<Vec<Frame>, CliError> {
        let mut whole = Vec::new();
        for byte in bytes {
            if *byte != b'\n' {
                self.line.push(*byte);
                if self.line.len() + self.frame.data.len() > MAX_FRAME_BYTES {
                    return Err(CliError::Failed(format!(
                        "the server sent an event of more than {MAX_FRAME_BYTES} bytes"
                    )));
                }
                continue;
            }
            let line = String::from_utf8_lossy(&self.line).into_owned();
            self.line.clear();
            whole.extend(self.end_of_line(line.trim_end_matches('\r')));
        }
        Ok(whole)
    }

    fn end_of_line(&mut self, line: &str) -> Option<Frame> {
        if line.is_empty() {
            let frame = std::mem::take(&mut self.frame);
            return Some(frame).filter(|frame| !frame.data.is_empty());
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.frame.name),
            "data" => {
                if !self.frame.data.is_empty() {
                    self.frame.data.push('\n');
                }
                self.frame.data.push_str(value);
            }
            // Comments, numbers and times to wait change nothing here.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_whole_however_they_are_cut() {
        let text = b": following\nretry: 2000\n\nid: 7\nevent: assigned\ndata: {\"a\":1}\n\n: nothing new\n\ndata: x\r\ndata: y\r\n\r\n";
        for piece in 1..text.len() {
            let mut frames = Frames::default();
            let found: Vec<Frame> =
                text.chunks(piece).flat_map(|bytes| frames.feed(bytes).unwrap()).collect();
            assert_eq!(found.len(), 2, "in pieces of {piece}");
            assert_eq!((found[0].name.as_str(), found[0].data.as_str()), ("assigned", "{\"a\":1}"));
            assert_eq!(found[1].data, "x\ny");
        }
    }

    #[test]
    fn a_frame_without_end_is_refused() {
        assert!(Frames::default().feed(&vec![b'x'; MAX_FRAME_BYTES + 1]).is_err());
    }
}
