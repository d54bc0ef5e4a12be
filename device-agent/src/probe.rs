//! Whether what was applied works: a program that succeeds, a page that is served, a port that is open.
//!
//! It is asked again and again until it says yes or its time is over. The time runs by a clock that nobody sets: a board
//! whose NTP comes up meanwhile must not go back because of it.

use std::time::Duration;

use http::Uri;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::program::{Program, ProgramError};

/// What is asked, and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// What.
    pub question: Question,
    /// By when it must have said yes.
    pub within: Duration,
    /// How long between two tries.
    pub interval: Duration,
    /// How long one try may take.
    pub timeout: Duration,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// Does this program succeed?
    Program(Program),
    /// Does this page answer with 200 to 399?
    Http(Uri),
    /// Is this port open?
    Tcp(String),
    /// Nothing: what could be handed over counts as working.
    Nothing,
}

/// Why the answer is no.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// Not within its time.
    #[error("the probe did not succeed within {} s", .within.as_secs())]
    Unhealthy {
        /// How long it had.
        within: Duration,
        /// What the last try came to.
        #[source]
        last: Refusal,
    },
}

/// What one try came to.
#[derive(Debug, Error)]
pub enum Refusal {
    /// The program failed.
    #[error(transparent)]
    Program(ProgramError),
    /// Nobody answers there.
    #[error("{0} does not answer")]
    Connect(String, #[source] std::io::Error),
    /// What answers does not speak HTTP.
    #[error("{0} does not answer in HTTP")]
    Http(String, #[source] hyper::Error),
    /// The page says no.
    #[error("{0} answers {1}")]
    Status(String, http::StatusCode),
    /// The question cannot be put.
    #[error("{0} cannot be asked for")]
    Request(String),
    /// No answer in time.
    #[error("{what} gave no answer in {} s", .limit.as_secs())]
    Silent {
        /// What was asked.
        what: String,
        /// How long it had.
        limit: Duration,
    },
}

impl Probe {
    /// Returns when the answer is yes, or its time is over. At least one try is made.
    pub async fn until_healthy(&self) -> Result<(), ProbeError> {
        let end = Instant::now() + self.within;
        loop {
            let Err(last) = self.ask().await else {
                return Ok(());
            };
            if Instant::now() + self.interval >= end {
                return Err(ProbeError::Unhealthy { within: self.within, last });
            }
            tracing::debug!(error = crate::error_chain(&last), "not healthy yet");
            sleep(self.interval).await;
        }
    }

    async fn ask(&self) -> Result<(), Refusal> {
        let silent = |what: &str| Refusal::Silent { what: what.to_owned(), limit: self.timeout };
        match &self.question {
            Question::Nothing => Ok(()),
            Question::Program(program) => program.run(&[], self.timeout).await.map_err(Refusal::Program),
            Question::Tcp(address) => {
                timeout(self.timeout, connect(address)).await.map_err(|_| silent(address))?.map(drop)
            }
            Question::Http(uri) => {
                let text = uri.to_string();
                timeout(self.timeout, get(uri, &text)).await.map_err(|_| silent(&text))?
            }
        }
    }
}

async fn connect(address: &str) -> Result<TcpStream, Refusal> {
    TcpStream::connect(address).await.map_err(|source| Refusal::Connect(address.to_owned(), source))
}

async fn get(uri: &Uri, text: &str) -> Result<(), Refusal> {
    let unaskable = || Refusal::Request(text.to_owned());
    let authority = uri.authority().ok_or_else(unaskable)?;
    let address = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80));
    let stream = connect(&address).await?;
    let failed = |source| Refusal::Http(text.to_owned(), source);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let request = http::Request::get(path).header(http::header::HOST, authority.as_str());
    let request = request.body(Empty::<bytes::Bytes>::new()).map_err(|_| unaskable())?;
    let mut answer = std::pin::pin!(sender.send_request(request));
    let answered = tokio::select! {
        answer = &mut answer => answer,
        // The answer may have come with the end of the connection.
        _ = connection => answer.await,
    };
    let status = answered.map_err(failed)?.status();
    if status.is_success() || status.is_redirection() {
        Ok(())
    } else {
        Err(Refusal::Status(text.to_owned(), status))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    fn probe(question: Question) -> Probe {
        Probe {
            question,
            within: Duration::from_millis(600),
            interval: Duration::from_millis(20),
            timeout: Duration::from_millis(200),
        }
    }

    /// Serves these answers, one per connection, and then none.
    async fn serve(answers: &'static [&'static str]) -> (String, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        #[expect(clippy::disallowed_methods, reason = "a test's own server")]
        let server = tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.read(&mut [0; 1024]).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        (address, server)
    }

    #[tokio::test]
    async fn waits_until_a_page_is_served_well() {
        let (address, _server) = serve(&[
            "HTTP/1.1 503 Starting\r\ncontent-length: 0\r\n\r\n",
            "junk",
            "HTTP/1.1 204 Fine\r\n\r\n",
        ])
        .await;
        let uri = format!("http://{address}/health?deep=1").parse().unwrap();
        probe(Question::Http(uri)).until_healthy().await.unwrap();
    }

    #[tokio::test]
    async fn says_no_with_the_last_answer_when_the_time_is_over() {
        let bad = "HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n";
        let (address, _server) = serve(vec![bad; 100].leak()).await;
        let uri = format!("http://{address}/").parse().unwrap();
        let error = probe(Question::Http(uri)).until_healthy().await.unwrap_err();
        assert!(crate::error_chain(&error).contains("answers 500"), "{}", crate::error_chain(&error));
        let error = probe(Question::Tcp("127.0.0.1:1".into())).until_healthy().await.unwrap_err();
        assert!(crate::error_chain(&error).contains("127.0.0.1:1 does not answer"));
    }

    #[tokio::test]
    async fn a_listener_that_says_nothing_is_open_but_serves_no_page() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        probe(Question::Tcp(address.clone())).until_healthy().await.unwrap();
        let uri = format!("http://{address}/").parse().unwrap();
        let error = probe(Question::Http(uri)).until_healthy().await.unwrap_err();
        assert!(crate::error_chain(&error).contains("no answer"), "{}", crate::error_chain(&error));
    }

    #[tokio::test]
    async fn asks_a_program_until_it_succeeds() {
        let directory = tempfile::tempdir().unwrap();
        let script =
            format!("echo x >>{0}/tries; test $(wc -l <{0}/tries) -ge 3", directory.path().display());
        let program = Program::new(["/bin/sh", "-c", &script].map(str::to_owned).to_vec()).unwrap();
        probe(Question::Program(program)).until_healthy().await.unwrap();
    }
}
