//! `facade keys sign`: fetch the exact bytes, judge them here, show what they mean, sign them, and hand the signatures in.
//!
//! The server is not believed. Trust starts at the root that lies beside the key; what was signed and seen before lies
//! there too.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Args;
use pki::key::{PublicKey, Signature, SigningKey};
use pki::metadata::publish::message;

use super::{failed, fetch, passphrase, read_json, tell, upload, write_json};
use crate::api::types::{FileSignature, Signatures, SigningRequest};
use crate::cli::CliError;
use crate::cli::client::Client;
use crate::cli::output::Output;
use crate::keyfile;
use crate::publish::review::{Review, Seen, Side, review};
use crate::publish::trust::RootChain;

/// Sign what waits.
#[derive(Args, Debug)]
pub(in crate::cli) struct Sign {
    /// `images`, `director`, or `publisher-NAME` for what waits for a publisher
    #[arg(default_value = "images")]
    repository: String,
    /// Your key file; with --signer, the file with the public key
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// File with the passphrase of the key file
    #[arg(long, env = "FACADE_KEY_PASSPHRASE_FILE", value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Command that signs standard input and prints the signature in hexadecimal: a token, an HSM, a vault
    #[arg(long, value_name = "COMMAND", conflicts_with = "passphrase_file")]
    signer: Option<String>,
    /// A root of the repository that you trust; by default the one beside the key (`images.root.json`)
    #[arg(long, value_name = "FILE")]
    root: Option<PathBuf>,
    /// Sign without being asked
    #[arg(long)]
    yes: bool,
    /// Sign also what takes artifacts away
    #[arg(long)]
    allow_removals: bool,
    /// Sign also what changes keys
    #[arg(long)]
    allow_keys: bool,
    /// Sign a request from this file instead of from the server (facade keys pending --export)
    #[arg(long, value_name = "FILE", requires = "out")]
    request: Option<PathBuf>,
    /// Write the signatures to this file instead of handing them in
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// What signs.
enum Signer {
    File(SigningKey),
    Command { command: String, key: PublicKey },
}

impl Sign {
    pub(super) fn is_local(&self) -> bool {
        self.request.is_some()
    }

    pub(super) fn run_local(self, output: &mut Output) -> Result<(), CliError> {
        let (Some(file), Some(out)) = (&self.request, &self.out) else {
            return Err(CliError::Usage("--request and --out go together".to_owned()));
        };
        let request: SigningRequest = read_json(file)?;
        let signatures = self.sign(&request, output)?;
        write_json(out, &signatures)?;
        output.note(&format!("signed; hand {} in with facade keys upload", out.display()));
        Ok(())
    }

    pub(super) async fn run(self, client: &Client, output: &mut Output) -> Result<(), CliError> {
        let request = fetch(client, &self.repository).await?;
        let signatures = self.sign(&request, output)?;
        if let Some(out) = &self.out {
            return write_json(out, &signatures);
        }
        tell(output, &upload(client, &self.repository, &signatures).await?);
        Ok(())
    }

    fn sign(&self, request: &SigningRequest, output: &mut Output) -> Result<Signatures, CliError> {
        if request.repository != self.repository {
            let (wanted, found) = (&self.repository, &request.repository);
            return Err(CliError::Usage(format!("the request is for {found}, not for {wanted}")));
        }
        let chain = self.trusted_chain(request)?;
        let seen_file = self.beside(&format!("{}.seen.json", self.trusted()));
        let seen: Seen = if seen_file.exists() { read_json(&seen_file)? } else { Seen::default() };
        let sides: Vec<Side<'_>> = request
            .files
            .iter()
            .map(|file| Side { role: &file.role, draft: &file.file, base: file.current.as_deref() })
            .collect();
        let review = review(&chain, &sides, request.targets.as_deref(), &seen)
            .map_err(|error| CliError::Verification(crate::api::problem::chain(&error)))?;
        output.note(&show(request, &review));
        self.demand_expected(&review)?;
        self.demand_consent()?;
        let signatures = self.signatures(request, &review)?;
        // From here on we have signed: whatever becomes of it, an older state shown as current is a lie.
        write_json(&seen_file, &review.seen)?;
        std::fs::write(self.beside(&format!("{}.root.json", self.trusted())), chain.current().bytes())
            .map_err(|error| failed(&seen_file, &error))?;
        Ok(signatures)
    }

    /// The roots from the one that is trusted here to the newest that follows from it.
    fn trusted_chain(&self, request: &SigningRequest) -> Result<RootChain, CliError> {
        let file = self.root.clone().unwrap_or_else(|| self.beside(&format!("{}.root.json", self.trusted())));
        let bytes = std::fs::read(&file).map_err(|error| {
            CliError::Usage(format!(
                "no trusted root: {} cannot be read ({error}); name one with --root (facade init leaves it beside the keys)",
                file.display()
            ))
        })?;
        let refused =
            |error: pki::metadata::MetadataError| CliError::Verification(crate::api::problem::chain(&error));
        let mut chain = RootChain::first(&bytes).map_err(refused)?;
        for root in &request.roots {
            // A file that is not a root at all is refused with the others, when its turn comes.
            let version = RootChain::first(root.as_bytes()).map_or(u64::MAX, |root| root.current().version);
            if version > chain.current().version {
                chain.push(root.as_bytes()).map_err(refused)?;
            }
        }
        Ok(chain)
    }

    fn demand_expected(&self, review: &Review) -> Result<(), CliError> {
        if !review.removed.is_empty() && !self.allow_removals {
            return Err(CliError::Verification(
                "artifacts would go; if that is meant, --allow-removals".to_owned(),
            ));
        }
        if !review.keys.is_empty() && !self.allow_keys {
            return Err(CliError::Verification(
                "keys would change; if that is meant, --allow-keys".to_owned(),
            ));
        }
        Ok(())
    }

    fn demand_consent(&self) -> Result<(), CliError> {
        if self.yes {
            return Ok(());
        }
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Err(CliError::Usage("nobody is there to be asked; --yes signs without".to_owned()));
        }
        // The question goes where the review went.
        let _ = write!(std::io::stderr().lock(), "sign? [yes/no] ");
        let mut answer = String::new();
        stdin.lock().read_line(&mut answer).map_err(|error| CliError::from_error(&error))?;
        if answer.trim() == "yes" { Ok(()) } else { Err(CliError::Failed("not signed".to_owned())) }
    }

    /// A request may hold files of other keys too; only ours are signed.
    fn signatures(&self, request: &SigningRequest, review: &Review) -> Result<Signatures, CliError> {
        let signer = self.signer()?;
        let id = signer.key().id();
        let mut signatures = Vec::new();
        for file in &request.files {
            if !review.signers.get(&file.role).is_some_and(|signers| signers.contains(&id)) {
                continue;
            }
            let message = message(file.file.as_bytes()).map_err(|error| CliError::from_error(&error))?;
            let signature = signer.sign(&message)?;
            signatures.push(FileSignature {
                role: file.role.clone(),
                keyid: signature.keyid.to_string(),
                sig: data_encoding::HEXLOWER.encode(&signature.bytes),
            });
        }
        if signatures.is_empty() {
            return Err(CliError::Failed("your key signs nothing of this request".to_owned()));
        }
        Ok(Signatures { id: request.id.clone(), signatures })
    }

    /// The repository whose root is the start of trust.
    fn trusted(&self) -> &str {
        if self.repository == "director" { "director" } else { "images" }
    }

    fn signer(&self) -> Result<Signer, CliError> {
        if let Some(command) = &self.signer {
            let key: PublicKey = read_json(&self.key)?;
            return Ok(Signer::Command { command: command.clone(), key });
        }
        let Some(file) = &self.passphrase_file else {
            return Err(CliError::Usage(
                "a key file needs --passphrase-file, another key --signer".to_owned(),
            ));
        };
        let key = keyfile::open(&self.key, &passphrase(file)?).map_err(|error| failed(&self.key, &error))?;
        Ok(Signer::File(key))
    }

    fn beside(&self, name: &str) -> PathBuf {
        self.key.parent().unwrap_or(Path::new(".")).join(name)
    }
}

impl Signer {
    fn key(&self) -> &PublicKey {
        match self {
            Self::File(key) => key.public(),
            Self::Command { key, .. } => key,
        }
    }

    fn sign(&self, message: &[u8]) -> Result<Signature, CliError> {
        match self {
            Self::File(key) => Ok(key.sign(message)),
            Self::Command { command, key } => {
                let bytes = run_signer(command, message)?;
                if !key.verifies(message, &bytes) {
                    return Err(CliError::Failed(format!(
                        "{command} did not sign with the key that was named"
                    )));
                }
                Ok(Signature { keyid: key.id(), bytes })
            }
        }
    }
}

fn run_signer(command: &str, message: &[u8]) -> Result<Vec<u8>, CliError> {
    let failed = |cause: String| CliError::Failed(format!("{command}: {cause}"));
    let mut words = command.split_whitespace();
    let mut child = Command::new(words.next().unwrap_or_default())
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(message).map_err(|error| failed(error.to_string()))?;
    }
    let output = child.wait_with_output().map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(output.status.to_string()));
    }
    let text = String::from_utf8_lossy(&output.stdout).trim().to_lowercase();
    data_encoding::HEXLOWER
        .decode(text.as_bytes())
        .map_err(|_| failed("did not print a signature in hexadecimal".to_owned()))
}

/// What would be signed, in words; derived from the bytes, not from what the server says of them.
fn show(request: &SigningRequest, review: &Review) -> String {
    let mut lines = vec![format!("request {} of {}:", request.id, request.repository)];
    lines.extend(review.added.iter().map(|path| format!("  + {path}")));
    lines.extend(review.removed.iter().map(|path| format!("  - {path}")));
    lines.extend(review.keys.iter().map(|line| format!("  ! {line}")));
    lines.push(format!(
        "  {} files, {} of them without a change of content",
        request.files.len(),
        review.renewed
    ));
    lines.extend(review.warnings.iter().map(|line| format!("  warning: {line}")));
    lines.join("\n")
}
