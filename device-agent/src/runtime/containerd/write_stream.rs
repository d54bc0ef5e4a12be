//! One `Write` stream of containerd's content service.
//!
//! The client that is generated from containerd's protocol wants all data of a message in one `Vec`, and copies it once
//! more to encode it. Here the connection's own buffers go out as they came, one after the other: copies are the larger
//! part of what a pull costs the device's processor.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::vec;

use bytes::Bytes;
use containerd_client::services::v1::{WriteAction, WriteContentRequest, WriteContentResponse};
use futures_util::stream;
use http::uri::PathAndQuery;
use http_body::Frame;
use pki::oci::Descriptor;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::{Status, Streaming};
use tonic_prost::ProstCodec;
use tower::{ServiceExt, service_fn};

use super::super::{Lease, RuntimeError};
use super::connection::{Connection, WORK, under};
use super::ingest::reference;

const METHOD: &str = "/containerd.services.content.v1.Content/Write";
/// `WriteContentRequest.data`.
const DATA_FIELD: u32 = 6;

/// An open stream.
pub(super) struct WriteStream {
    requests: mpsc::Sender<WriteMessage>,
    replies: Streaming<WriteContentResponse>,
}

impl WriteStream {
    /// Opens the stream and asks how much containerd has. The inner error is containerd's refusal.
    pub(super) async fn open(
        connection: &Connection,
        lease: &Lease,
        content: &Descriptor,
    ) -> Result<Result<(Self, u64), Status>, RuntimeError> {
        let (requests, queue) = mpsc::channel(1);
        let question = WriteMessage::new(WriteAction::Stat, content, 0, Vec::new());
        if requests.send(question).await.is_err() {
            return Err(connection.broken("opening a write stream", "the queue is closed"));
        }
        // The library writes the head of the one request and reads the answers; only the body is ours.
        let mut body = Some(Body::new(WriteBody { queue, pieces: Vec::new().into_iter() }));
        let channel = connection.channel().await?;
        let mut client = Grpc::new(service_fn(move |request: http::Request<Body>| {
            channel.clone().oneshot(request.map(|_empty| body.take().unwrap_or_default()))
        }));
        let opening = async {
            let request = under(lease, connection.stream(stream::empty()));
            let codec = ProstCodec::<WriteContentRequest, WriteContentResponse>::default();
            let mut replies =
                client.streaming(request, PathAndQuery::from_static(METHOD), codec).await?.into_inner();
            let reply = replies.message().await?;
            Ok::<_, Status>((replies, reply))
        };
        // Before it answers, containerd hashes what it has of the content.
        match timeout(WORK, opening).await {
            Err(_) => Err(connection.broken("opening a write stream", "no answer in time")),
            Ok(Err(status)) => Ok(Err(status)),
            Ok(Ok((_, None))) => Err(connection.broken("opening a write stream", "it ended at once")),
            Ok(Ok((replies, Some(reply)))) => {
                let offset = u64::try_from(reply.offset).unwrap_or(u64::MAX);
                Ok(Ok((Self { requests, replies }, offset)))
            }
        }
    }

    /// Waits until a message can be sent; nothing if the stream has ended.
    pub(super) async fn ready(&self) -> Option<mpsc::Permit<'_, WriteMessage>> {
        self.requests.reserve().await.ok()
    }

    /// The next answer; nothing at the end.
    pub(super) async fn reply(&mut self) -> Result<Option<WriteContentResponse>, Status> {
        self.replies.message().await
    }
}

/// A `WriteContentRequest` whose data lies in pieces.
pub(super) struct WriteMessage {
    head: WriteContentRequest,
    data: Vec<Bytes>,
}

impl WriteMessage {
    pub(super) fn new(action: WriteAction, content: &Descriptor, offset: u64, data: Vec<Bytes>) -> Self {
        let head = WriteContentRequest {
            action: action.into(),
            r#ref: reference(content.digest),
            // A `Descriptor` holds sizes of 63 bits only.
            total: i64::try_from(content.size).unwrap_or(i64::MAX),
            expected: content.digest.to_string(),
            offset: i64::try_from(offset).unwrap_or(i64::MAX),
            ..WriteContentRequest::default()
        };
        Self { head, data }
    }

    /// What stands before the data on the wire: a message is its fields one after the other, in any order (Protocol
    /// Buffers, "Encoding"), behind a byte for its compression and four for its length (gRPC over HTTP/2).
    fn prefix(&self) -> Bytes {
        let mut head = self.head.encode_to_vec();
        let length: usize = self.data.iter().map(Bytes::len).sum();
        if length > 0 {
            encode_key(DATA_FIELD, WireType::LengthDelimited, &mut head);
            encode_varint(length as u64, &mut head);
        }
        let message_bytes = u32::try_from(head.len() + length).unwrap_or(u32::MAX);
        [&[0], message_bytes.to_be_bytes().as_slice(), &head].concat().into()
    }
}

/// The messages of a stream, on the wire.
struct WriteBody {
    queue: mpsc::Receiver<WriteMessage>,
    pieces: vec::IntoIter<Bytes>,
}

impl http_body::Body for WriteBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(piece) = self.pieces.next() {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        self.queue.poll_recv(context).map(|message| {
            let message = message?;
            let prefix = message.prefix();
            self.pieces = message.data.into_iter();
            Some(Ok(Frame::data(prefix)))
        })
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn what_goes_out_in_pieces_is_the_message_of_containerds_protocol() {
        let descriptor: Descriptor = serde_json::from_value(serde_json::json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": pki::digest::Digest::sha256(b"content"),
            "size": 77_777,
        }))
        .unwrap();
        let pieces = [vec![1; 300], vec![2; 20_000]];
        for data in [&pieces[..], &pieces[..1], &[]] {
            let whole = data.concat();
            let data = data.iter().cloned().map(Bytes::from).collect();
            let message = WriteMessage::new(WriteAction::Write, &descriptor, 500, data);
            let expected = WriteContentRequest { data: whole, ..message.head.clone() };
            let (requests, queue) = mpsc::channel(1);
            requests.send(message).await.unwrap();
            drop(requests);
            let body = WriteBody { queue, pieces: Vec::new().into_iter() };
            let sent = body.collect().await.unwrap().to_bytes();
            assert_eq!(
                (sent[0], sent[1..5].to_vec()),
                (0, u32::try_from(sent.len() - 5).unwrap().to_be_bytes().to_vec())
            );
            assert_eq!(WriteContentRequest::decode(&sent[5..]).unwrap(), expected);
        }
    }
}
