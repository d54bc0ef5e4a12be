//! `facade rollout …`

use std::fmt::Write as _;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::CliError;
use super::client::{Client, encode};
use super::output::{Output, fields, size, table};
use crate::api::types::{
    AbortRequest, Concern, Rollout, RolloutDevice, RolloutPreview, RolloutRequest, UpstreamNeed, Wave,
};

/// Verbs on rollouts.
#[derive(Subcommand, Debug)]
pub(super) enum Verb {
    /// Make a rollout, without starting it
    Create(Create),
    /// Say what a rollout would do if it were started now
    Preview {
        /// The rollout
        name: String,
    },
    /// List the rollouts
    List,
    /// Show a rollout, its waves and its history
    Show {
        /// The rollout
        name: String,
    },
    /// List the devices of a rollout, and how they fare
    Devices {
        /// The rollout
        name: String,
        /// Only those in this state: pending, waiting, downloading, verifying, applying, healthy, rolled-back, failed
        #[arg(long)]
        state: Option<String>,
    },
    /// Choose the devices and begin the first wave
    Start {
        /// The rollout
        name: String,
    },
    /// Let the next wave begin
    Approve {
        /// The rollout
        name: String,
    },
    /// Hold a rollout: no further wave begins
    Pause {
        /// The rollout
        name: String,
    },
    /// Let a rollout that was paused or halted go on; failures so far no longer count
    Resume {
        /// The rollout
        name: String,
    },
    /// End a rollout
    Abort(Abort),
    /// Forget a rollout that is not running; what it has assigned stays
    Delete {
        /// The rollout
        name: String,
    },
}

#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
struct Ending {
    /// Devices keep what they have been assigned
    #[arg(long)]
    keep: bool,
    /// Devices get back what they had before
    #[arg(long)]
    revert: bool,
}

#[derive(Args, Debug)]
pub(super) struct Abort {
    /// The rollout
    name: String,
    #[command(flatten)]
    ending: Ending,
}

/// Which waves wait for approval.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Approve {
    /// Each but the first
    Each,
    /// The second, once the first has been looked at
    First,
    /// None
    None,
}

#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct Create {
    /// Its name
    name: String,
    /// Artifacts: `REPOSITORY@sha256:…`, or an unambiguous prefix of the digest
    #[arg(required = true)]
    artifacts: Vec<String>,
    /// Which devices: all, group=berlin,arch=arm64, stage in (canary,test), !retired…
    #[arg(long, value_name = "SELECTOR")]
    to: String,
    /// How many devices have been reached when each wave is over; the last is 100%
    #[arg(long, default_value = "1,10%,50%,100%", value_name = "WAVES")]
    waves: String,
    /// Which waves wait for approval
    #[arg(long, value_enum, default_value_t = Approve::None)]
    approve: Approve,
    /// Share of a wave's devices that must be healthy for the next one to begin
    #[arg(long, default_value = "95%", value_parser = percent, value_name = "PERCENT")]
    success: u8,
    /// Judge a wave once so many of its devices are healthy or failed [default: judge all of them]
    #[arg(long, value_name = "NUMBER")]
    min_sample: Option<u32>,
    /// Halt at more failures than this: a number, or a share of all devices
    #[arg(long, value_name = "NUMBER|PERCENT")]
    failure_budget: Option<String>,
    /// How long a wave must have succeeded before the next one begins [default: not at all]
    #[arg(long, value_parser = super::device::parse_ttl, value_name = "TIME")]
    soak: Option<Duration>,
    /// Halt if a wave has not succeeded so long after it began
    #[arg(long, value_parser = super::device::parse_ttl, value_name = "TIME")]
    deadline: Option<Duration>,
    /// Say what it would do, and make nothing
    #[arg(long, conflicts_with = "start")]
    dry_run: bool,
    /// Start it at once
    #[arg(long)]
    start: bool,
}

const EXAMPLES: &str = "\
Examples:
  facade rollout create app-1.4 ghcr.io/octo/app@sha256:3f2a… --to group=berlin --dry-run
  facade rollout create app-1.4 3f2a --to 'group=berlin,arch=arm64' --waves 1,10%,100% --soak 10m --failure-budget 2%
  facade rollout create app-1.4 3f2a --to all --approve first --deadline 24h --start";

fn percent(text: &str) -> Result<u8, String> {
    let number: u8 =
        text.trim_end_matches('%').parse().map_err(|_| "expected a share such as 95%".to_owned())?;
    if (1..=100).contains(&number) { Ok(number) } else { Err("expected 1% to 100%".to_owned()) }
}

fn path(name: &str) -> String {
    format!("/api/v1/rollouts/{}", encode(name))
}

impl Verb {
    pub(super) async fn run(self, client: &Client, output: &mut Output) -> Result<(), CliError> {
        match self {
            Self::Create(create) => return create.run(client, output).await,
            Self::Preview { name } => {
                let preview: RolloutPreview = client.get(&format!("{}/preview", path(&name))).await?;
                output.result(&preview, told_preview);
            }
            Self::List => {
                let rollouts: Vec<Rollout> = client.all("/api/v1/rollouts").await?;
                output.result(&rollouts, |rollouts| list(rollouts));
            }
            Self::Show { name } => {
                let rollout: Rollout = client.get(&path(&name)).await?;
                output.result(&rollout, show);
            }
            Self::Devices { name, state } => {
                let query = state.map(|state| format!("?state={}", encode(&state))).unwrap_or_default();
                let devices: Vec<RolloutDevice> =
                    client.all(&format!("{}/devices{query}", path(&name))).await?;
                output.result(&devices, |devices| {
                    table(["device", "wave", "state", "since", "why"], devices.iter().map(device_row))
                });
            }
            Self::Start { name } => change(client, output, &name, "start", &()).await?,
            Self::Approve { name } => change(client, output, &name, "approve", &()).await?,
            Self::Pause { name } => change(client, output, &name, "pause", &()).await?,
            Self::Resume { name } => change(client, output, &name, "resume", &()).await?,
            Self::Abort(Abort { name, ending }) => {
                let devices = if ending.revert { "revert" } else { "keep" };
                let request = AbortRequest { devices: devices.to_owned() };
                change(client, output, &name, "abort", &request).await?;
            }
            Self::Delete { name } => {
                let rollout: Rollout = client.delete(&path(&name)).await?;
                output.result(&rollout, |rollout| format!("deleted {}", rollout.name));
            }
        }
        Ok(())
    }
}

async fn change(
    client: &Client,
    output: &mut Output,
    name: &str,
    verb: &str,
    body: &impl serde::Serialize,
) -> Result<(), CliError> {
    let rollout: Rollout = client.post(&format!("{}/{verb}", path(name)), body).await?;
    output.result(&rollout, |rollout| format!("rollout {} is {}", rollout.name, rollout.state));
    Ok(())
}

fn seconds(time: Duration) -> u32 {
    u32::try_from(time.as_secs()).unwrap_or(u32::MAX)
}

impl Create {
    async fn run(self, client: &Client, output: &mut Output) -> Result<(), CliError> {
        let approve = match self.approve {
            Approve::Each => "each",
            Approve::First => "first",
            Approve::None => "none",
        };
        let request = RolloutRequest {
            name: self.name.clone(),
            artifacts: self.artifacts,
            to: self.to,
            waves: self.waves,
            approve: approve.to_owned(),
            success_percent: self.success,
            min_sample: self.min_sample,
            failure_budget: self.failure_budget,
            soak_seconds: self.soak.map_or(0, seconds),
            deadline_seconds: self.deadline.map(seconds),
        };
        if self.dry_run {
            let preview: RolloutPreview = client.post("/api/v1/rollouts/preview", &request).await?;
            output.result(&preview, told_preview);
            return Ok(());
        }
        let rollout: Rollout = client.post("/api/v1/rollouts", &request).await?;
        if self.start {
            return change(client, output, &rollout.name, "start", &()).await;
        }
        output.result(&rollout, |rollout| format!("made rollout {}", rollout.name));
        let name = &self.name;
        output.note(&format!(
            "see what it would do: facade rollout preview {name}; start it: facade rollout start {name}"
        ));
        Ok(())
    }
}

fn device_row(device: &RolloutDevice) -> [String; 5] {
    let state = match (device.done_bytes, device.total_bytes) {
        (Some(done), Some(total)) => format!("{} {} of {}", device.state, size(done), size(total)),
        _ => device.state.clone(),
    };
    let state = if device.excused { format!("{state} (excused)") } else { state };
    let why = device.why.clone().unwrap_or_default();
    [device.device.clone(), device.wave.to_string(), state, device.since.clone(), why]
}

fn states(wave: &std::collections::BTreeMap<String, u64>) -> String {
    let states: Vec<String> = wave.iter().map(|(state, count)| format!("{count} {state}")).collect();
    states.join(", ")
}

fn list(rollouts: &[Rollout]) -> String {
    if rollouts.is_empty() {
        return "there is no rollout (facade rollout create NAME ARTIFACT --to group=GROUP)".to_owned();
    }
    let rows = rollouts.iter().map(|rollout| {
        [
            rollout.name.clone(),
            rollout.state.clone(),
            rollout.to.clone(),
            rollout.devices.to_string(),
            states(&rollout.states),
            rollout.created_at.clone(),
        ]
    });
    table(["rollout", "state", "to", "devices", "how they fare", "created"], rows)
}

fn show(rollout: &Rollout) -> String {
    let head = fields([
        ("rollout", rollout.name.clone()),
        ("state", rollout.state.clone()),
        ("waits for", rollout.waits_for.clone().unwrap_or_default()),
        ("sends", rollout.artifacts.join(" ")),
        ("to", rollout.to.clone()),
        ("waves", rollout.plan.clone()),
        ("approval", rollout.approve.clone()),
        ("success", format!("{}%", rollout.success_percent)),
        ("minimum sample", rollout.min_sample.map(|sample| sample.to_string()).unwrap_or_default()),
        ("failure budget", rollout.failure_budget.clone().unwrap_or_default()),
        ("soak", format!("{} s", rollout.soak_seconds)),
        ("deadline", rollout.deadline_seconds.map(|deadline| format!("{deadline} s")).unwrap_or_default()),
        ("devices", rollout.devices.to_string()),
        ("how they fare", states(&rollout.states)),
    ]);
    let wave = |wave: &Wave| {
        [wave.number.to_string(), wave.stage.clone(), wave.devices.to_string(), states(&wave.states)]
    };
    let mut text = head;
    if !rollout.waves.is_empty() {
        let waves = table(["wave", "stage", "devices", "how they fare"], rollout.waves.iter().map(wave));
        // Writing to a string does not fail.
        let _ = write!(text, "\n\n{waves}");
    }
    let history = rollout.history.iter().map(|step| [step.at.clone(), step.what.clone()]);
    let _ = write!(text, "\n\n{}", table(["at", "what"], history));
    text
}

fn told_preview(preview: &RolloutPreview) -> String {
    let waves: Vec<String> = preview.waves.iter().map(ToString::to_string).collect();
    let mut text = fields([
        ("devices", preview.devices.to_string()),
        ("in waves of", waves.join(", ")),
        ("first wave", preview.first_wave.join(" ")),
        ("have it already", preview.up_to_date.to_string()),
        ("at most per device", size(preview.bytes_per_device)),
        ("cannot start", preview.obstacle.clone().unwrap_or_default()),
    ]);
    let concerns = [
        ("left out, not active", &preview.left_out),
        ("no image for their platform", &preview.no_platform),
        ("platform not known yet", &preview.unknown_platform),
        ("perhaps not enough free space", &preview.low_disk),
    ];
    for (title, concern) in concerns {
        text.push_str(&told_concern(title, concern));
    }
    let rows = preview.upstream.iter().map(upstream_row);
    let heading = ["registry", "requests to make", "bytes to fetch", "cached already", "requests left"];
    let _ = write!(text, "\n\n{}", table(heading, rows));
    text
}

fn told_concern(title: &str, concern: &Concern) -> String {
    if concern.count == 0 {
        return String::new();
    }
    let mut text = format!("\n{title}: {}", concern.count);
    for example in &concern.examples {
        let example: String = example.chars().filter(|character| !character.is_control()).collect();
        let _ = write!(text, "\n  {example}");
    }
    text
}

fn upstream_row(need: &UpstreamNeed) -> [String; 5] {
    let budget = match (need.budget, need.suffices) {
        (Some(budget), Some(false)) => format!("{budget}: not enough"),
        (Some(budget), _) => budget.to_string(),
        (None, _) => "it does not say".to_owned(),
    };
    [need.host.clone(), need.requests.to_string(), size(need.bytes), size(need.cached_bytes), budget]
}
