//! `facade events`

use std::time::Duration;

use clap::Args;

use super::CliError;
use super::client::{Client, Ended, encode};
use super::output::{Output, line, table};
use crate::api::types::{Event, EventsGone, Page};

/// Between two attempts to follow a server that went away.
const RECONNECT: Duration = Duration::from_secs(2);

/// Say what happened lately, or what happens from now on.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct Events {
    /// Go on saying what happens, one line each, until interrupted
    #[arg(long, short)]
    follow: bool,
    /// Only events after this number
    #[arg(long, value_name = "NUMBER")]
    since: Option<u64>,
    /// Only events of this kind (can be repeated)
    #[arg(long, value_name = "KIND")]
    kind: Vec<String>,
    /// Most events
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
}

const EXAMPLES: &str = "\
Examples:
  facade events
  facade events --kind wrong-content --kind metadata-refused
  facade events --follow --output json | jq .subject

Kinds: device-enrolled, device-renewed, device-quarantined, device-changed, content-refused, metadata-refused,
wrong-content, imported, revoked, assigned, unassigned, rollout, rollout-device, keys, events-lost";

impl Events {
    pub(super) async fn run(self, client: &Client, output: &mut Output) -> Result<(), CliError> {
        let kinds = encode(&self.kind.join(","));
        let mut path = format!("/api/v1/events?limit={}", self.limit);
        if !kinds.is_empty() {
            path = format!("{path}&kind={kinds}");
        }
        if self.follow {
            return follow(client, output, &path, self.since).await;
        }
        if let Some(since) = self.since {
            path = format!("{path}&since={since}");
        }
        let page: Page<Event> = client.get(&path).await?;
        output.result(&page.items, |events| {
            if events.is_empty() {
                return "nothing happened".to_owned();
            }
            let rows = events.iter().map(|event| {
                [
                    event.sequence.to_string(),
                    event.at.clone(),
                    event.kind.clone(),
                    event.subject.clone(),
                    event.detail.clone(),
                ]
            });
            table(["number", "at", "kind", "subject", "what"], rows)
        });
        Ok(())
    }
}

/// Follows; takes up where it was when the server comes back. Ends when nobody reads any more.
async fn follow(
    client: &Client,
    output: &mut Output,
    path: &str,
    since: Option<u64>,
) -> Result<(), CliError> {
    let mut last = since;
    let mut reached = false;
    loop {
        let ended = client
            .follow(path, last, |frame| {
                reached = true;
                if frame.name == "gone" {
                    if let Ok(gone) = serde_json::from_str::<EventsGone>(&frame.data) {
                        output.note(&format!("{} events are missing here", gone.lost));
                    }
                    return true;
                }
                if frame.name == "progress" {
                    return true;
                }
                let Ok(event) = serde_json::from_str::<Event>(&frame.data) else {
                    return true;
                };
                last = Some(event.sequence);
                if output.is_json() { line(&frame.data) } else { line(&told(&event)) }
            })
            .await;
        match ended {
            Ok(Ended::NobodyReads) => return Ok(()),
            Ok(Ended::ByServer) => output.note("the server ended the stream; taking it up again"),
            Err(CliError::Unreachable { cause, .. }) if reached => {
                output.note(&format!("the server is gone ({cause}); trying again"));
            }
            Err(error) => return Err(error),
        }
        tokio::time::sleep(RECONNECT).await;
    }
}

fn told(event: &Event) -> String {
    let text = format!("{}  {}  {}  {}", event.at, event.kind, event.subject, event.detail);
    text.chars().map(|character| if character.is_control() { '\u{fffd}' } else { character }).collect()
}
