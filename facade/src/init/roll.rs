//! Another CA in the place of the one in use, without losing a device.
//!
//! The old root vouches for the new one, so a device that knows only the old one goes on trusting the facade, for as
//! long as that root lasts and whether or not it was awake meanwhile; what it should trust from now on it learns from
//! signed metadata (the anchors are a target of the images repository). Everything is prepared beside `ca/` and takes
//! its place in one exchange.

use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use pki::x509::{Authority, Fingerprint, IssueError, Issued, PrivateKey, pem};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::files::{Files, failed, sync_directory};
use super::{ISSUING, InitError, ROOT, ROOT_KEY, load};

const NEXT: &str = "ca.next";
/// A device that slept through more changes than this has to be enrolled again; TLS libraries stop at six steps.
const MAX_LINKS: usize = 3;

/// What was done.
#[derive(Clone, Debug)]
pub struct Rolled {
    /// The new root.
    pub root: Fingerprint,
    /// Where the former CA is now, with its keys.
    pub former: PathBuf,
}

/// Makes a new CA, which the present one vouches for.
pub fn roll(data_dir: &Path, now: Timestamp) -> Result<Rolled, InitError> {
    let files = Files::create(data_dir)?;
    if files.find(ROOT_KEY)?.is_none() {
        let reason = "the present root has to vouch for the next one; bring its key back for this";
        return Err(InitError::unusable(&files.path(ROOT_KEY), reason));
    }
    let root_key = load::private_key(&files, ROOT_KEY)?;
    let roots = load::certificates(&files, ROOT)?;
    let issuing = load::certificates(&files, ISSUING)?;
    let former_root = load::certificate(&files, ROOT)?;
    let next = Next::make(&former_root, &root_key, now).map_err(|error| InitError::generate("ca", error))?;
    let directory = files.path(NEXT);
    if directory.exists() {
        fs::remove_dir_all(&directory).map_err(|source| failed("remove", &directory, source))?;
    }
    let put = |name: &str, text: &str| files.replace(&format!("{NEXT}/{name}"), text.as_bytes());
    put("root.key", &next.root_key.to_pem())?;
    put("root.pem", &bundle(&[&next.root.der], &roots))?;
    put("issuing.key", &next.issuing_key.to_pem())?;
    put("issuing.pem", &bundle(&[&next.issuing.der], &issuing))?;
    let links: Vec<_> = load::links(&files)?.into_iter().take(MAX_LINKS - 1).collect();
    put("links.pem", &bundle(&[&next.link.der], &links))?;
    let former = files.path(&format!("ca.former-{}", Fingerprint::of(&former_root)));
    exchange(&directory, &files.path("ca"), &former, data_dir)?;
    Ok(Rolled {
        root: Fingerprint::of(&next.root.der),
        former,
    })
}

/// Forgets the former roots: devices that are awake trust them no longer. What they vouched for stays, for devices that
/// still sleep.
pub fn retire(data_dir: &Path) -> Result<usize, InitError> {
    let files = Files::create(data_dir)?;
    let roots = load::certificates(&files, ROOT)?;
    let current = load::certificate(&files, ROOT)?;
    files.replace(ROOT, pem::certificate(&current).as_bytes())?;
    Ok(roots.len().saturating_sub(1))
}

struct Next {
    root_key: PrivateKey,
    root: Issued,
    issuing_key: PrivateKey,
    issuing: Issued,
    link: Issued,
}

impl Next {
    fn make(former_root: &[u8], former_key: &PrivateKey, now: Timestamp) -> Result<Self, IssueError> {
        let root_key = PrivateKey::generate().map_err(IssueError::Key)?;
        let issuing_key = PrivateKey::generate().map_err(IssueError::Key)?;
        let root = Authority::new_root(&root_key, now)?;
        let issuing = Authority::new_issuing(&root.der, &root_key, &issuing_key, now)?;
        let link = Authority::link(former_root, former_key, &root.der, &root_key, now)?;
        Ok(Self {
            root_key,
            root,
            issuing_key,
            issuing,
            link,
        })
    }
}

fn bundle(first: &[&Vec<u8>], then: &[Vec<u8>]) -> String {
    first
        .iter()
        .copied()
        .chain(then)
        .map(|der| pem::certificate(der))
        .collect()
}

/// A crash before this leaves the old CA, one after it the new one; there is no moment with neither.
fn exchange(next: &Path, current: &Path, former: &Path, parent: &Path) -> Result<(), InitError> {
    renameat_with(CWD, next, CWD, current, RenameFlags::EXCHANGE)
        .map_err(|errno| failed("exchange", current, errno.into()))?;
    sync_directory(parent)?;
    fs::rename(next, former).map_err(|source| failed("put aside", former, source))?;
    sync_directory(parent)
}
