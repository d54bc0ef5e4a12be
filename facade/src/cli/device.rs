//! `facade device …`

use clap::{Args, Subcommand};

use super::CliError;
use super::client::{Client, encode, filtered};
use super::output::{Output, fields, table};
use super::policy::Policy;
use super::provision::Provision;
use crate::api::types::{
    Device, EnrollmentToken, EnrollmentTokenRequest, GroupSize, LabelRequest, NewEnrollmentToken,
};
use crate::catalog::devices::Standing;

/// Verbs on devices.
#[derive(Subcommand, Debug)]
pub(super) enum Verb {
    /// Make an enrollment token, and print the command that uses it
    Token(Token),
    /// Make one token for each device of a batch, for the factory; prints CSV
    Provision(Provision),
    /// List the enrollment tokens
    Tokens,
    /// Revoke an enrollment token
    RevokeToken {
        /// The token's id
        id: String,
    },
    /// List the devices
    List {
        /// Only those of this group
        #[arg(long)]
        group: Option<String>,
        /// Only those that this selects: group=berlin,arch=arm64; stage in (canary,test); !retired
        #[arg(long, conflicts_with = "group")]
        selector: Option<String>,
        /// Only those with this standing: pending, active, suspended, quarantined or revoked
        #[arg(long)]
        standing: Option<Standing>,
        /// Only those that say that they run this artifact
        #[arg(long, value_name = "ARTIFACT", conflicts_with_all = ["group", "selector", "standing"])]
        running: Option<String>,
    },
    /// Show one device
    Show {
        /// The device's id
        id: String,
    },
    /// Let a device that waits for approval have its certificate
    Approve {
        /// The device's id
        id: String,
    },
    /// Revoke a device for good: its certificate is refused at once
    Revoke {
        /// The device's id
        id: String,
    },
    /// Refuse a device until it is restored
    Suspend {
        /// The device's id
        id: String,
    },
    /// Take a device back that was suspended or is in quarantine
    Restore {
        /// The device's id
        id: String,
    },
    /// Say when and how fast a device, or a group, may download and apply
    Policy(Policy),
    /// Set labels of a device (stage=canary), and take others away (stage-)
    Label {
        /// The device's id
        id: String,
        /// Labels to set, as NAME=VALUE, and to take away, as NAME-
        #[arg(required = true, value_name = "NAME=VALUE|NAME-")]
        labels: Vec<String>,
    },
    /// List the groups that have devices
    Groups,
    /// Put devices in groups
    #[command(subcommand)]
    Group(GroupVerb),
    /// Forget a device
    Delete {
        /// The device's id
        id: String,
    },
}

#[derive(Subcommand, Debug)]
pub(super) enum GroupVerb {
    /// Put a device in a group
    Add {
        /// The device's id
        id: String,
        /// The group
        group: String,
    },
    /// Take a device out of a group
    Remove {
        /// The device's id
        id: String,
        /// The group
        group: String,
    },
}

impl GroupVerb {
    async fn run(self, client: &Client, output: &mut Output) -> Result<(), CliError> {
        let at = |id: &str, group: &str| format!("{}/groups/{}", path(id), encode(group));
        let device: Device = match self {
            Self::Add { id, group } => client.put(&at(&id, &group)).await?,
            Self::Remove { id, group } => client.delete(&at(&id, &group)).await?,
        };
        output.result(&device, |device| format!("{} is in: {}", device.id, device.groups.join(" ")));
        Ok(())
    }
}

#[derive(Args, Debug)]
pub(super) struct Token {
    /// The device that enrolls with it [default: the facade chooses an id]
    #[arg(long, value_name = "ID")]
    device: Option<String>,
    /// The group its devices are in
    #[arg(long)]
    group: Option<String>,
    /// How long it is valid
    #[arg(long, default_value = "1h", value_parser = parse_ttl)]
    ttl: std::time::Duration,
    /// How many devices can enroll with it
    #[arg(long, default_value_t = 1)]
    uses: u32,
    /// Let each device wait until an operator approves it (facade device approve)
    #[arg(long)]
    approve: bool,
}

pub(super) fn parse_ttl(text: &str) -> Result<std::time::Duration, String> {
    crate::config::duration(text)
}

impl Verb {
    pub(super) async fn run(self, client: &Client, output: &mut Output) -> Result<(), CliError> {
        match self {
            Self::Token(token) => token.run(client, output).await?,
            Self::Provision(provision) => provision.run(client, output).await?,
            Self::Tokens => {
                let tokens: Vec<EnrollmentToken> = client.all("/api/v1/enrollment-tokens").await?;
                output.result(&tokens, |tokens| {
                    table(["id", "state", "for", "uses left", "expires"], tokens.iter().map(token_row))
                });
            }
            Self::RevokeToken { id } => {
                let path = format!("/api/v1/enrollment-tokens/{}", encode(&id));
                let token: EnrollmentToken = client.delete(&path).await?;
                output.result(&token, |token| format!("revoked token {}", token.id));
            }
            Self::List { group, selector, standing, running } => {
                let standing = standing.map(|standing| standing.to_string());
                let filters =
                    [("group", group), ("selector", selector), ("standing", standing), ("running", running)];
                let path = filtered("/api/v1/devices", filters);
                let narrowed = path.contains('?');
                let devices: Vec<Device> = client.all(&path).await?;
                output.result(&devices, |devices| match devices.as_slice() {
                    [] if narrowed => "no such device (facade device list)".to_owned(),
                    devices => list(devices),
                });
            }
            Self::Show { id } => {
                let device: Device = client.get(&path(&id)).await?;
                output.result(&device, show);
            }
            Self::Approve { id } => change(client, output, &id, "approve").await?,
            Self::Revoke { id } => change(client, output, &id, "revoke").await?,
            Self::Suspend { id } => change(client, output, &id, "suspend").await?,
            Self::Restore { id } => change(client, output, &id, "restore").await?,
            Self::Policy(policy) => policy.run(client, output).await?,
            Self::Group(verb) => verb.run(client, output).await?,
            Self::Label { id, labels } => label(client, output, &id, &labels).await?,
            Self::Groups => {
                let groups: Vec<GroupSize> = client.all("/api/v1/groups").await?;
                output.result(&groups, |groups| {
                    let rows = groups.iter().map(|group| [group.name.clone(), group.devices.to_string()]);
                    table(["group", "devices"], rows)
                });
            }
            Self::Delete { id } => {
                let device: Device = client.delete(&path(&id)).await?;
                output.result(&device, |device| format!("deleted {}", device.id));
            }
        }
        Ok(())
    }
}

async fn label(client: &Client, output: &mut Output, id: &str, labels: &[String]) -> Result<(), CliError> {
    let mut request = LabelRequest::default();
    for label in labels {
        match (label.split_once('='), label.strip_suffix('-')) {
            (Some((name, value)), _) => {
                request.set.insert(name.to_owned(), value.to_owned());
            }
            (None, Some(name)) => request.remove.push(name.to_owned()),
            (None, None) => {
                return Err(CliError::Usage(format!(
                    "{label:?} is neither NAME=VALUE, a label to set, nor NAME-, one to take away"
                )));
            }
        }
    }
    let device: Device = client.post(&format!("{}/labels", path(id)), &request).await?;
    output.result(&device, |device| format!("{} has labels: {}", device.id, labelled(device)));
    Ok(())
}

fn labelled(device: &Device) -> String {
    device.labels.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
}

fn path(id: &str) -> String {
    format!("/api/v1/devices/{}", encode(id))
}

async fn change(client: &Client, output: &mut Output, id: &str, verb: &str) -> Result<(), CliError> {
    let device: Device = client.post(&format!("{}/{verb}", path(id)), &()).await?;
    output.result(&device, |device| format!("{} is {}", device.id, device.standing));
    Ok(())
}

impl Token {
    async fn run(self, client: &Client, output: &mut Output) -> Result<(), CliError> {
        let request = EnrollmentTokenRequest {
            device: self.device,
            group: self.group,
            ttl_seconds: self.ttl.as_secs(),
            uses: self.uses,
            approve: self.approve,
        };
        let token: NewEnrollmentToken = client.post("/api/v1/enrollment-tokens", &request).await?;
        output.result(&token, |token| token.command.clone());
        let uses = if token.uses == 1 { "1 device".to_owned() } else { format!("{} devices", token.uses) };
        output.note(&format!("valid until {}, for {uses}; shown only now", token.expires_at));
        Ok(())
    }
}

fn token_row(token: &EnrollmentToken) -> [String; 5] {
    let target = match (&token.device, &token.group) {
        (Some(device), _) => format!("device {device}"),
        (None, Some(group)) => format!("group {group}"),
        (None, None) => String::new(),
    };
    let state =
        if token.approve { format!("{}, each to be approved", token.state) } else { token.state.clone() };
    [token.id.clone(), state, target, token.uses_left.to_string(), token.expires_at.clone()]
}

fn list(devices: &[Device]) -> String {
    if devices.is_empty() {
        return "no device is enrolled (facade device token)".to_owned();
    }
    let rows = devices.iter().map(|device| {
        [
            device.id.clone(),
            device.standing.clone(),
            device.groups.join(" "),
            summary(device),
            device.last_seen_at.clone().unwrap_or_else(|| "never".to_owned()),
        ]
    });
    table(["device", "standing", "groups", "content", "last seen"], rows)
}

fn summary(device: &Device) -> String {
    if let Some(refusal) = device.refused.first() {
        return format!("refused {}: {}", refusal.what, refusal.code);
    }
    if let Some(failed) = device.rolled_back.iter().find(|failed| device.wanted.contains(&failed.what)) {
        return format!("rolled back {}: {}", failed.what, failed.code);
    }
    let missing = device.wanted.iter().filter(|wanted| !device.running.contains(wanted)).count();
    match (device.wanted.len(), missing) {
        (0, _) => "nothing assigned".to_owned(),
        (wanted, 0) => format!("up to date ({wanted})"),
        (wanted, missing) => format!("{missing} of {wanted} to come"),
    }
}

fn show(device: &Device) -> String {
    let head = fields([
        ("device", device.id.clone()),
        ("standing", device.standing.clone()),
        ("because", device.reason.clone().unwrap_or_default()),
        ("groups", device.groups.join(" ")),
        ("labels", labelled(device)),
        ("platform", device.platform.clone().unwrap_or_default()),
        ("agent", device.agent_version.clone().unwrap_or_default()),
        ("enrolled", device.enrolled_at.clone()),
        ("last seen", device.last_seen_at.clone().unwrap_or_default()),
        ("certificate until", device.certificate_not_after.clone().unwrap_or_default()),
        ("doing", device.state.clone().unwrap_or_default()),
        ("waiting for", device.waiting.clone().unwrap_or_default()),
    ]);
    let mut artifacts: Vec<[String; 2]> = Vec::new();
    for wanted in &device.wanted {
        let state = if device.running.contains(wanted) { "has" } else { "to come" };
        artifacts.push([state.to_owned(), wanted.clone()]);
    }
    for running in device.running.iter().filter(|running| !device.wanted.contains(running)) {
        artifacts.push(["has, not assigned".to_owned(), running.clone()]);
    }
    for refusal in &device.refused {
        artifacts
            .push([format!("refused: {}", refusal.code), format!("{}: {}", refusal.what, refusal.reason)]);
    }
    for failed in &device.rolled_back {
        artifacts
            .push([format!("rolled back: {}", failed.code), format!("{}: {}", failed.what, failed.reason)]);
    }
    format!("{head}\n\n{}", table(["state", "artifact"], artifacts))
}
