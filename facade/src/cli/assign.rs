//! `facade assign`, `facade unassign`, `facade assignments`

use clap::Args;

use super::CliError;
use super::client::{Client, filtered};
use super::output::{Output, table};
use crate::api::types::{Assignment, AssignmentReport, AssignmentRequest};

#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
struct Target {
    /// The device
    #[arg(long, value_name = "ID")]
    device: Option<String>,
    /// The group
    #[arg(long)]
    group: Option<String>,
}

/// Say what a device or group should have.
#[derive(Args, Debug)]
pub(super) struct Assign {
    /// Artifacts: `REPOSITORY@sha256:…`, or an unambiguous prefix of the digest
    #[arg(required = true)]
    artifacts: Vec<String>,
    #[command(flatten)]
    target: Target,
}

/// Take an assignment back.
#[derive(Args, Debug)]
pub(super) struct Unassign {
    /// Artifacts: `REPOSITORY@sha256:…`, or an unambiguous prefix of the digest
    #[arg(required = true)]
    artifacts: Vec<String>,
    #[command(flatten)]
    target: Target,
}

/// List what is assigned.
#[derive(Args, Debug)]
#[group(multiple = false)]
pub(super) struct List {
    /// Only the assignments of this artifact
    #[arg(long)]
    artifact: Option<String>,
    /// Only what is assigned to this device itself, without what its groups have
    #[arg(long, value_name = "ID")]
    device: Option<String>,
    /// Only what is assigned to this group
    #[arg(long)]
    group: Option<String>,
}

impl Assign {
    pub(super) async fn run(self, client: &Client, output: &mut Output) -> Result<(), CliError> {
        send(client, output, "/api/v1/assignments", "assigned", self.artifacts, self.target).await
    }
}

impl Unassign {
    pub(super) async fn run(self, client: &Client, output: &mut Output) -> Result<(), CliError> {
        send(client, output, "/api/v1/assignments/remove", "unassigned", self.artifacts, self.target).await
    }
}

async fn send(
    client: &Client,
    output: &mut Output,
    path: &str,
    done: &str,
    artifacts: Vec<String>,
    target: Target,
) -> Result<(), CliError> {
    let request = AssignmentRequest { artifacts, device: target.device, group: target.group };
    let report: AssignmentReport = client.post(path, &request).await?;
    for warning in &report.warnings {
        output.note(&format!("warning: {warning}"));
    }
    output.result(&report, |report| {
        let mut lines: Vec<String> =
            report.assignments.iter().map(|assignment| line(done, assignment)).collect();
        lines.push(match report.devices {
            1 => "1 device changes when it next asks".to_owned(),
            devices => format!("{devices} devices change when they next ask"),
        });
        lines.join("\n")
    });
    Ok(())
}

fn line(done: &str, assignment: &Assignment) -> String {
    let (kind, name) = target(assignment);
    let replaces = assignment.replaces.as_ref().map(|old| format!(" (replaces {old})")).unwrap_or_default();
    format!("{done} {} {kind} {name}{replaces}", assignment.artifact)
}

fn target(assignment: &Assignment) -> (&'static str, &str) {
    match (&assignment.device, &assignment.group) {
        (Some(device), _) => ("device", device),
        (None, Some(group)) => ("group", group),
        (None, None) => ("", ""),
    }
}

impl List {
    pub(super) async fn run(self, client: &Client, output: &mut Output) -> Result<(), CliError> {
        let filters = [("artifact", self.artifact), ("device", self.device), ("group", self.group)];
        let assignments: Vec<Assignment> = client.all(&filtered("/api/v1/assignments", filters)).await?;
        output.result(&assignments, |assignments| {
            if assignments.is_empty() {
                return "nothing is assigned (facade assign ARTIFACT --group GROUP)".to_owned();
            }
            let rows = assignments.iter().map(|assignment| {
                let (kind, name) = target(assignment);
                [
                    kind.to_owned(),
                    name.to_owned(),
                    assignment.artifact.clone(),
                    assignment.assigned_at.clone(),
                    assignment.assigned_by.clone(),
                ]
            });
            table(["", "target", "artifact", "assigned", "by"], rows)
        });
        Ok(())
    }
}
