//! `facade device policy`

use clap::Args;

use super::CliError;
use super::client::Client;
use super::output::{Output, table};
use crate::api::types::{Policy as Held, PolicyChange};

/// Say when and how fast a device, or the devices of a group, may download and apply; without anything to say, show it.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    facade device policy pump-7 --download-window \"22:00-05:00 Europe/Berlin\" --rate-limit 2MiB/s\n  \
    facade device policy --group pumps --apply-window \"Sat,Sun 01:00-04:00 local\" --metered no\n  \
    facade device policy pump-7 --deadline 3d\n  \
    facade device policy pump-7 --rate-limit none\n\n\
    A window without a zone is in UTC; `local` is the time zone of the device. What is said of a device goes before\n\
    what is said of its groups. A device also keeps to what its own settings say.\n\n\
    A device goes on trying to download until the deadline, counted from when it heard of the deployment; after it, the\n\
    device says that it gave up, and waits for another deployment or a longer deadline. Without one it never gives up.")]
pub(super) struct Policy {
    /// The device
    #[arg(conflicts_with = "group")]
    id: Option<String>,
    /// The devices of this group, now and later
    #[arg(long)]
    group: Option<String>,
    /// When to download
    #[arg(long, value_name = "[DAYS ]HH:MM-HH:MM[ ZONE]|none")]
    download_window: Option<String>,
    /// When to apply what was downloaded
    #[arg(long, value_name = "[DAYS ]HH:MM-HH:MM[ ZONE]|none")]
    apply_window: Option<String>,
    /// How fast to download
    #[arg(long, value_name = "RATE|none")]
    rate_limit: Option<String>,
    /// Whether to download over links that are paid by volume
    #[arg(long, value_name = "yes|no|none")]
    metered: Option<String>,
    /// How long a deployment may take to download
    #[arg(long, value_name = "TIME|none")]
    deadline: Option<String>,
}

impl Policy {
    pub(super) async fn run(self, client: &Client, output: &mut Output) -> Result<(), CliError> {
        let says =
            [&self.download_window, &self.apply_window, &self.rate_limit, &self.metered, &self.deadline];
        if says.into_iter().all(Option::is_none) {
            let mut held: Vec<Held> = client.all("/api/v1/policies").await?;
            held.retain(|held| self.id.is_none() || held.device == self.id);
            held.retain(|held| self.group.is_none() || held.group == self.group);
            output.result(&held, |held| list(held));
            return Ok(());
        }
        let change = PolicyChange {
            device: self.id,
            group: self.group,
            download_window: self.download_window,
            apply_window: self.apply_window,
            rate_limit: self.rate_limit,
            metered: self.metered,
            deadline: self.deadline,
        };
        let held: Held = client.post("/api/v1/policies", &change).await?;
        output.result(&held, |held| list(std::slice::from_ref(held)));
        Ok(())
    }
}

fn list(held: &[Held]) -> String {
    if held.is_empty() {
        return "nothing is restricted (facade device policy --help)".to_owned();
    }
    let rows = held.iter().map(|held| {
        let whom = match (&held.device, &held.group) {
            (Some(device), _) => format!("device {device}"),
            (None, Some(group)) => format!("group {group}"),
            (None, None) => String::new(),
        };
        let or_any = |text: &Option<String>| text.clone().unwrap_or_else(|| "any".to_owned());
        [
            whom,
            or_any(&held.download_window),
            or_any(&held.apply_window),
            or_any(&held.rate_limit),
            or_any(&held.metered),
            or_any(&held.deadline),
        ]
    });
    table(["for", "downloads", "applies", "at most", "metered links", "deadline"], rows)
}
