//! A TUF client with the command line that independent test suites drive: `init`, `refresh`, `download`.
//!
//! It decides nothing: `pki::metadata` says what to fetch and what to store, this program carries the bytes. It sends plain
//! GETs over `http://`, follows no redirect and never tries again. Exit code 0 is full success, 1 is everything else.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use clap::{Parser, Subcommand};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use pki::digest::{Digest, Verifier};
use pki::metadata::lookup::TrustedTarget;
use pki::metadata::names::quote;
use pki::metadata::refresh::{Fetched, Refresh, Step, Stored};
use pki::metadata::{Limits, TargetPath, TrustedSet, trusted};
use tempfile::NamedTempFile;
use tokio::net::TcpStream;
use tokio::time::timeout;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// How long a server may say nothing.
const PATIENCE: Duration = Duration::from_secs(30);

/// A TUF client for conformance suites.
#[derive(Debug, Parser)]
struct Arguments {
    /// Where trusted metadata lies.
    #[arg(long)]
    metadata_dir: PathBuf,
    /// Where metadata is served.
    #[arg(long)]
    metadata_url: Option<String>,
    /// A target to download; may be repeated.
    #[arg(long)]
    target_name: Vec<TargetPath>,
    /// Where targets are served.
    #[arg(long)]
    target_base_url: Option<String>,
    /// Where targets are stored.
    #[arg(long)]
    target_dir: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Trusts the given root; makes no request.
    Init {
        /// The root file.
        root: PathBuf,
    },
    /// Brings the top-level metadata up to date.
    Refresh,
    /// Refreshes, then fetches, verifies and stores each target in order.
    Download,
}

fn main() -> ExitCode {
    let outcome = Arguments::try_parse().map_err(Into::into).and_then(|arguments| run(&arguments));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&*error);
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "a command line tool says on standard error why it failed")]
fn report(error: &dyn std::error::Error) {
    eprintln!("tuf-client: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprintln!("  because {error}");
        cause = error.source();
    }
}

fn run(arguments: &Arguments) -> Outcome<()> {
    let disk = Disk { directory: arguments.metadata_dir.clone() };
    if let Verb::Init { root } = &arguments.verb {
        let bytes = fs::read(root)?;
        trusted::first_root(&bytes, &Limits::default())?;
        return Ok(disk.store("root.json", &bytes)?);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let metadata_url = arguments.metadata_url.as_deref().ok_or("--metadata-url is needed")?;
        let client = Client { disk, metadata_url };
        let mut set = client.refresh().await?;
        if matches!(arguments.verb, Verb::Download) {
            let shop = Shop::from(arguments)?;
            for path in &arguments.target_name {
                let target =
                    client.lookup(&mut set, path).await?.ok_or_else(|| format!("no target {path}"))?;
                shop.obtain(&target, set.root().consistent_snapshot).await?;
            }
        }
        Ok(())
    })
}

struct Client<'a> {
    disk: Disk,
    metadata_url: &'a str,
}

impl Client<'_> {
    async fn refresh(&self) -> Outcome<TrustedSet> {
        let mut refresh = Refresh::new(self.disk.load()?, jiff::Timestamp::now(), Limits::default())?;
        loop {
            match refresh.step()? {
                Step::Fetch { file, max_bytes } => refresh.answer(self.fetch(&file, max_bytes).await?),
                Step::Done => return Ok(refresh.into_trusted()?),
                kept @ (Step::Store { .. } | Step::Remove { .. }) => self.disk.perform(kept)?,
            }
        }
    }

    async fn lookup(&self, set: &mut TrustedSet, path: &TargetPath) -> Outcome<Option<TrustedTarget>> {
        let mut lookup = set.lookup(path.clone());
        loop {
            match lookup.step()? {
                Step::Fetch { file, max_bytes } => lookup.answer(self.fetch(&file, max_bytes).await?),
                Step::Done => return Ok(lookup.into_target()?),
                kept @ (Step::Store { .. } | Step::Remove { .. }) => self.disk.perform(kept)?,
            }
        }
    }

    async fn fetch(&self, file: &str, max_bytes: u64) -> Outcome<Fetched> {
        let url = join(self.metadata_url, file);
        let mut bytes = Vec::new();
        // One byte more than allowed is enough to show that there is too much.
        let found = get(&url, max_bytes.saturating_add(1), |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })
        .await?;
        Ok(if found { Fetched::Bytes(bytes) } else { Fetched::Absent })
    }
}

/// The directory of trusted metadata: whole files under non-versioned names, nothing else that ends in `.json`.
struct Disk {
    directory: PathBuf,
}

impl Disk {
    fn load(&self) -> io::Result<Stored> {
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if name.strip_suffix(".json").is_some() {
                let mut bytes = Vec::new();
                File::open(entry.path())?
                    .take(Limits::default().targets_bytes + 1)
                    .read_to_end(&mut bytes)?;
                files.insert(name, bytes);
            }
        }
        let no_root = || io::Error::new(io::ErrorKind::NotFound, "there is no trusted root.json");
        Ok(Stored {
            root: files.remove("root.json").ok_or_else(no_root)?,
            timestamp: files.remove("timestamp.json"),
            snapshot: files.remove("snapshot.json"),
            targets: files.remove("targets.json"),
            delegated: files,
        })
    }

    fn perform(&self, step: Step) -> io::Result<()> {
        match step {
            Step::Store { file, bytes } => self.store(&file, &bytes),
            Step::Remove { file } => self.remove(&file),
            Step::Fetch { .. } | Step::Done => Ok(()),
        }
    }

    fn store(&self, file: &str, bytes: &[u8]) -> io::Result<()> {
        put(&self.directory, file, &mut &*bytes)
    }

    fn remove(&self, file: &str) -> io::Result<()> {
        match fs::remove_file(self.directory.join(file)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => File::open(&self.directory)?.sync_all(),
        }
    }
}

/// Where targets come from and go to.
struct Shop<'a> {
    base_url: &'a str,
    directory: &'a Path,
}

impl<'a> Shop<'a> {
    fn from(arguments: &'a Arguments) -> Outcome<Self> {
        if arguments.target_name.is_empty() {
            return Err("--target-name is needed".into());
        }
        Ok(Self {
            base_url: arguments.target_base_url.as_deref().ok_or("--target-base-url is needed")?,
            directory: arguments.target_dir.as_deref().ok_or("--target-dir is needed")?,
        })
    }

    /// Fetches a target unless the very same bytes are there already.
    async fn obtain(&self, target: &TrustedTarget, consistent: bool) -> Outcome<()> {
        let name = file_name(target.path());
        let mut check = Check::new(target)?;
        if check.clone().accepts_file(&self.directory.join(&name)) {
            return Ok(());
        }
        let url = join(self.base_url, &served_path(target.path(), consistent.then_some(check.prefix)));
        // Unverified bytes stay in an unnamed file, so that nothing is left of them whatever happens.
        let mut unnamed = tempfile::tempfile()?;
        let found = get(&url, target.target().length.saturating_add(1), |piece| {
            check.update(piece)?;
            unnamed.write_all(piece)
        });
        if !found.await? {
            return Err(format!("server has no {url}").into());
        }
        check.finish()?;
        unnamed.rewind()?;
        Ok(put(self.directory, &name, &mut unnamed)?)
    }
}

/// Holds bytes against the length and every hash of a target.
#[derive(Clone)]
struct Check {
    prefix: Digest,
    verifiers: Vec<Verifier>,
}

impl Check {
    fn new(target: &TrustedTarget) -> Outcome<Self> {
        let length = target.target().length;
        let digests: Vec<Digest> = target.target().hashes.digests().collect();
        let prefix = *digests.first().ok_or_else(|| format!("no known hash for {}", target.path()))?;
        let verifiers = digests.into_iter().map(|digest| Verifier::new(digest, length)).collect();
        Ok(Self { prefix, verifiers })
    }

    fn update(&mut self, piece: &[u8]) -> io::Result<()> {
        self.verifiers.iter_mut().try_for_each(|verifier| verifier.update(piece)).map_err(io::Error::other)
    }

    fn finish(self) -> io::Result<()> {
        self.verifiers.into_iter().try_for_each(Verifier::finish).map_err(io::Error::other)
    }

    fn accepts_file(mut self, path: &Path) -> bool {
        let read = || -> io::Result<()> {
            let mut file = File::open(path)?;
            let mut piece = vec![0; 64 << 10];
            loop {
                let length = file.read(&mut piece)?;
                match piece.get(..length) {
                    Some([]) | None => return self.finish(),
                    Some(piece) => self.update(piece)?,
                }
            }
        };
        read().is_ok()
    }
}

/// One file name per target, whatever its path is; a quoted path has no separators and cannot leave the directory.
fn file_name(path: &TargetPath) -> String {
    let quoted = format!("target-{}", quote(path.as_str()));
    if quoted.len() <= 200 {
        return quoted;
    }
    format!("target-{}", Digest::sha256(path.as_str().as_bytes()).hex())
}

/// The path of a target on the wire: the hash goes in front of its last part (TUF 5.7.3).
fn served_path(path: &TargetPath, prefix: Option<Digest>) -> String {
    // A target path is a URL path already (TUF 4.5); only what would end the path in a request line is encoded.
    let mut encoded = String::new();
    for character in path.as_str().chars() {
        match character {
            ' ' | '"' | '<' | '>' | '?' | '#' | '`' | '{' | '}' | '\\' | '^' | '|' => {
                encoded.push_str(&quote(character.encode_utf8(&mut [0; 4])));
            }
            plain => encoded.push(plain),
        }
    }
    let Some(prefix) = prefix else { return encoded };
    match encoded.rsplit_once('/') {
        Some((directory, name)) => format!("{directory}/{}.{name}", prefix.hex()),
        None => format!("{}.{encoded}", prefix.hex()),
    }
}

fn join(base: &str, path: &str) -> String {
    format!("{}/{path}", base.trim_end_matches('/'))
}

/// Writes a whole file or none: temporary name, fsync, rename, fsync of the directory.
fn put(directory: &Path, name: &str, content: &mut dyn Read) -> io::Result<()> {
    let mut file = NamedTempFile::with_prefix_in(".incoming-", directory)?;
    io::copy(content, file.as_file_mut())?;
    file.as_file().sync_all()?;
    file.persist(directory.join(name)).map_err(|error| error.error)?;
    File::open(directory)?.sync_all()
}

/// Sends one GET and hands over at most `max_bytes` of its body; `false` when the server says that there is nothing.
async fn get(url: &str, max_bytes: u64, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> Outcome<bool> {
    let uri: Uri = url.parse()?;
    let authority = uri.authority().ok_or_else(|| format!("{url} names no host"))?.clone();
    if uri.scheme_str() != Some("http") {
        return Err(format!("{url} is not an http:// address").into());
    }
    let address = (authority.host().trim_matches(['[', ']']).to_owned(), authority.port_u16().unwrap_or(80));
    let stream = timeout(PATIENCE, TcpStream::connect(address)).await??;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::get(path).header("host", authority.as_str()).header("connection", "close");
    let request = request.body(Empty::<Bytes>::new())?;
    let exchange = async {
        let response = timeout(PATIENCE, sender.send_request(request)).await??;
        receive(url, response, max_bytes, &mut take).await
    };
    tokio::pin!(exchange, connection);
    tokio::select! {
        biased;
        outcome = &mut exchange => outcome,
        ended = &mut connection => {
            ended?;
            // The connection has ended in good order; what it brought is with the exchange.
            exchange.await
        }
    }
}

async fn receive(
    url: &str,
    response: Response<Incoming>,
    max_bytes: u64,
    take: &mut impl FnMut(&[u8]) -> io::Result<()>,
) -> Outcome<bool> {
    match response.status() {
        StatusCode::OK => {}
        // Object stores that may not be listed say 403 for what is not there.
        StatusCode::NOT_FOUND | StatusCode::FORBIDDEN => return Ok(false),
        status => return Err(format!("server answers {status} for {url}").into()),
    }
    let mut body = response.into_body();
    let mut left = max_bytes;
    while let Some(frame) = timeout(PATIENCE, body.frame()).await? {
        let Ok(data) = frame?.into_data() else { continue };
        let taken = data.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        take(data.get(..taken).unwrap_or_default())?;
        left -= taken as u64;
        if left == 0 {
            break;
        }
    }
    Ok(true)
}
