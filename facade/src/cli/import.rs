//! `facade import`

mod manifest_file;
mod variables;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;

use clap::Args;
use pki::oci::Reference;
use serde::Serialize;

use super::CliError;
use super::client::Client;
use super::output::{Output, size, table};
use crate::api::types::{ImportOutcome, ImportReport, ImportRequest, ImportResult};
use manifest_file::{Images, Named};

/// Tags of one request.
const BATCH: usize = 8;

/// Longest file of images that is read.
const MAX_FILE_BYTES: u64 = 64 * 1024 * 1024;

const EXAMPLES: &str = "\
Examples:
  facade import ghcr.io/octo/app v1.4.2 v1.4.3
  facade import nginx 1.27 --pin
  facade import ghcr.io/octo/app sha256:3f2a…
  facade import --from-file compose.yaml --dry-run
  facade import --from-file compose.yaml --set TAG=v1.4.2 --for-group kitchen
  helm template chart | facade import --from-file -

Importing the same again changes nothing. Exit code 3: some were not imported; the others were.";

/// Import tags as signed artifacts.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct Import {
    /// Any docker reference without tag, for example nginx or ghcr.io/owner/app
    #[arg(required_unless_present = "from_file")]
    repository: Option<String>,
    /// The tags, or digests
    #[arg(required_unless_present = "from_file", value_name = "TAG")]
    tags: Vec<String>,
    /// Import every image that a docker compose file or Kubernetes manifests name; - for standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["repository", "tags"])]
    from_file: Option<PathBuf>,
    /// The value of a variable of the compose file
    #[arg(long, value_name = "NAME=VALUE", requires = "from_file")]
    set: Vec<String>,
    /// Look everything up and check it, but sign nothing
    #[arg(long, conflicts_with = "pin")]
    dry_run: bool,
    /// Fetch every byte into the cache now, so that the registry may lose them later
    #[arg(long)]
    pin: bool,
    /// The group they are for: warns of devices that cannot run them, and refuses what none can
    #[arg(long, value_name = "GROUP")]
    for_group: Option<String>,
    /// The device they are for
    #[arg(long, value_name = "ID")]
    for_device: Option<String>,
}

/// What became of one image of a file.
#[derive(Debug, Serialize)]
struct ImageResult {
    /// As the file has it.
    image: String,
    /// Where the file has it.
    places: Vec<String>,
    #[serde(flatten)]
    result: ImportResult,
}

/// What became of the images of a file.
#[derive(Debug, Serialize)]
struct ImageReport {
    results: Vec<ImageResult>,
}

impl Import {
    pub(super) async fn run(self, client: &Client, output: &mut Output) -> Result<(), CliError> {
        if let Some(file) = &self.from_file {
            let images = self.read(file)?;
            return self.run_file(images, client, output).await;
        }
        let repository = self.repository.clone().unwrap_or_default();
        let mut report = ImportReport { results: Vec::new() };
        let outcome = self.import(&repository, &self.tags, client, output, &mut report).await;
        if report.results.is_empty() {
            return outcome;
        }
        // What was done is told even if the server went away before the end.
        output.result(&report, |report| {
            table(["tag", "outcome", "artifact", "size", "platforms"], report.results.iter().map(row))
        });
        for result in &report.results {
            tell(&result.tag, result, output);
        }
        self.end(output);
        outcome?;
        conclude(report.results.iter().map(|result| (result.tag.as_str(), result)), "tag")
    }

    /// The images of a file, repository by repository, each with its own outcome.
    async fn run_file(&self, images: Images, client: &Client, output: &mut Output) -> Result<(), CliError> {
        for note in &images.notes {
            output.note(note);
        }
        let mut results: Vec<Option<ImportResult>> = Vec::new();
        results.resize_with(images.named.len(), || None);
        let mut stopped = Ok(());
        for (repository, wanted) in by_repository(&images.named) {
            let tags: Vec<String> = wanted.iter().map(|(_, tag)| tag.clone()).collect();
            let mut report = ImportReport { results: Vec::new() };
            let outcome = self.import(&repository, &tags, client, output, &mut report).await;
            let mut found = report.results.into_iter();
            let reason = match outcome {
                Ok(()) => String::new(),
                // One repository that is not connected, or not a repository, says nothing about the others.
                Err(CliError::Failed(reason) | CliError::Usage(reason)) => reason,
                Err(error) => {
                    stopped = Err(error);
                    String::new()
                }
            };
            for (place, tag) in wanted {
                let missing = || failed(tag, ImportOutcome::Failed, reason.clone());
                let result = found.next().or_else(|| stopped.is_ok().then(missing));
                if let Some(slot) = results.get_mut(place) {
                    *slot = result;
                }
            }
            if stopped.is_err() {
                break;
            }
        }
        let report =
            ImageReport { results: images.named.into_iter().zip(results).filter_map(joined).collect() };
        if report.results.is_empty() {
            stopped?;
            return Err(CliError::Failed("the file names no image".to_owned()));
        }
        output.result(&report, |report| {
            let rows = report.results.iter().map(|image| {
                let [_, rest @ ..] = row(&image.result);
                let [outcome, what, size, platforms] = rest;
                [image.image.clone(), image.places.join(", "), outcome, what, size, platforms]
            });
            table(["image", "used by", "outcome", "artifact", "size", "platforms"], rows)
        });
        for image in &report.results {
            tell(&image.image, &image.result, output);
        }
        self.end(output);
        stopped?;
        conclude(report.results.iter().map(|image| (image.image.as_str(), &image.result)), "image")
    }

    fn end(&self, output: &mut Output) {
        if self.dry_run {
            output.note("a dry run: nothing was signed");
        }
    }

    fn read(&self, file: &PathBuf) -> Result<Images, CliError> {
        let wrong = |error: String| CliError::Usage(format!("{}: {error}", file.display()));
        let mut values = BTreeMap::new();
        for pair in &self.set {
            let Some((name, value)) = pair.split_once('=').filter(|(name, _)| !name.is_empty()) else {
                return Err(CliError::Usage(format!(
                    "--set {pair:?} is not NAME=VALUE (for example TAG=v1)"
                )));
            };
            values.insert(name.to_owned(), value.to_owned());
        }
        let mut text = String::new();
        let read = if file.as_os_str() == "-" {
            std::io::stdin().take(MAX_FILE_BYTES).read_to_string(&mut text)
        } else {
            std::fs::File::open(file).and_then(|file| file.take(MAX_FILE_BYTES).read_to_string(&mut text))
        };
        read.map_err(|error| wrong(format!("cannot be read: {error}")))?;
        manifest_file::read(&text, &values).map_err(wrong)
    }

    /// Asks for a few tags at a time, so that there is progress to show and no request takes for ever.
    async fn import(
        &self,
        repository: &str,
        tags: &[String],
        client: &Client,
        output: &mut Output,
        report: &mut ImportReport,
    ) -> Result<(), CliError> {
        for batch in tags.chunks(BATCH) {
            output.progress(&format!("{repository}: {} of {}", report.results.len(), tags.len()));
            let request = ImportRequest {
                repository: repository.to_owned(),
                tags: batch.to_vec(),
                pin: self.pin,
                dry_run: self.dry_run,
                for_group: self.for_group.clone(),
                for_device: self.for_device.clone(),
            };
            let answer: Result<ImportReport, CliError> = client.post("/api/v1/imports", &request).await;
            output.progress("");
            report.results.extend(answer?.results);
        }
        Ok(())
    }
}

/// What is wanted of each repository, with its place in the file's list; those that can be asked for.
fn by_repository(images: &[Named]) -> BTreeMap<String, Vec<(usize, String)>> {
    let mut wanted: BTreeMap<String, Vec<(usize, String)>> = BTreeMap::new();
    for (place, named) in images.iter().enumerate() {
        if let Ok(reference) = &named.reference {
            let repository = reference.repository.to_string();
            wanted.entry(repository).or_default().push((place, wanted_of(reference)));
        }
    }
    wanted
}

/// `v1`, `sha256:…` or `v1@sha256:…`; docker takes no tag for `latest`.
fn wanted_of(reference: &Reference) -> String {
    match (&reference.tag, &reference.digest) {
        (None, None) => "latest".to_owned(),
        (Some(tag), None) => tag.to_string(),
        (None, Some(digest)) => digest.to_string(),
        (Some(tag), Some(digest)) => format!("{tag}@{digest}"),
    }
}

/// An image with its outcome; none if it was not asked for any more.
fn joined((named, result): (Named, Option<ImportResult>)) -> Option<ImageResult> {
    let Named { image, places, reference } = named;
    let result = match reference {
        Ok(_) => result?,
        Err(reason) => failed(String::new(), ImportOutcome::Unsupported, reason),
    };
    Some(ImageResult { image, places, result })
}

fn failed(tag: String, outcome: ImportOutcome, reason: String) -> ImportResult {
    ImportResult {
        tag,
        outcome,
        artifact: None,
        moved_from: None,
        platforms: Vec::new(),
        size_bytes: None,
        pinned: false,
        warning: None,
        reason: Some(reason),
    }
}

/// The verdict over all, of which each has been told.
fn conclude<'a>(
    results: impl Iterator<Item = (&'a str, &'a ImportResult)> + Clone,
    what: &str,
) -> Result<(), CliError> {
    // Whatever else the batch brought: bytes that lie are never reported as anything milder.
    let lie = results.clone().find(|(_, result)| result.outcome == ImportOutcome::Mismatch);
    if let Some((name, lie)) = lie {
        let reason = lie.reason.as_deref().unwrap_or_default();
        let what = if lie.artifact.is_some() { "" } else { " was not imported" };
        return Err(CliError::Damaged(format!("{name}{what}: {reason}")));
    }
    let total = results.clone().count();
    let failed = results.filter(|(_, result)| !result.outcome.is_success());
    // Signed all the same, where only pinning failed.
    let signed = failed.clone().filter(|(_, result)| result.artifact.is_some()).count();
    match failed.count() {
        0 => Ok(()),
        failed if failed == total && failed == signed => {
            Err(CliError::Failed("what was imported could not be pinned".to_owned()))
        }
        failed if failed == total => Err(CliError::Failed(format!("no {what} was imported"))),
        failed => Err(CliError::Partly { failed, total }),
    }
}

/// What does not fit in the table.
fn tell(name: &str, result: &ImportResult, output: &mut Output) {
    if let Some(old) = &result.moved_from {
        let new = result.artifact.as_deref().unwrap_or_default();
        output.note(&format!("{name} moved: {old} -> {new}"));
    }
    if let Some(warning) = &result.warning {
        output.note(&format!("warning: {name}: {warning}"));
    }
    if let (Some(reason), Some(_)) = (&result.reason, &result.artifact) {
        output.note(&format!("{name}: {reason}"));
    }
}

fn row(result: &ImportResult) -> [String; 5] {
    let outcome = serde_json::to_value(result.outcome).ok();
    let outcome = outcome.as_ref().and_then(serde_json::Value::as_str).unwrap_or_default();
    let what = result.artifact.clone().or_else(|| result.reason.clone()).unwrap_or_default();
    [
        result.tag.clone(),
        outcome.to_owned(),
        what,
        result.size_bytes.map(size).unwrap_or_default(),
        result.platforms.join(" "),
    ]
}
