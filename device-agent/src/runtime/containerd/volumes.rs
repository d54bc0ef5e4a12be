//! The file systems under containerd, as far as this process can see them: how much room they have, and that what was
//! written is on the disk.

use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::super::{Cause, RuntimeError, Space};

/// Where containerd keeps its files, as it says itself.
#[derive(Clone, Debug, Default)]
pub(super) struct Volumes {
    pub(super) content: Option<PathBuf>,
    pub(super) snapshots: Option<PathBuf>,
}

impl Volumes {
    pub(super) fn space(&self) -> Space {
        let [content, snapshots] =
            [&self.content, &self.snapshots].map(|path| path.as_deref().and_then(free));
        Space {
            content_free_bytes: content.map(|volume| volume.free_bytes),
            unpacked_free_bytes: snapshots.map(|volume| volume.free_bytes),
            shared: content.map(|volume| volume.id) == snapshots.map(|volume| volume.id),
        }
    }

    /// Returns when everything containerd wrote is on the disk.
    pub(super) async fn sync(&self) -> Result<(), RuntimeError> {
        let volumes = self.clone();
        let done = tokio::task::spawn_blocking(move || volumes.sync_now()).await;
        done.map_err(|_| Cause::Protocol("the sync was interrupted"))
            .and_then(|synced| synced.map_err(Cause::File))
            .map_err(|source| RuntimeError::Failed {
                address: "the kernel".to_owned(),
                action: "to sync the disks of containerd".to_owned(),
                source,
            })
    }

    fn sync_now(&self) -> std::io::Result<()> {
        let directory = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = |path: &Option<PathBuf>| {
            let path = path.as_deref()?;
            rustix::fs::open(path, directory, Mode::empty()).ok()
        };
        let (Some(content), Some(snapshots)) = (open(&self.content), open(&self.snapshots)) else {
            // Out of sight: then all disks.
            rustix::fs::sync();
            return Ok(());
        };
        rustix::fs::syncfs(&content)?;
        rustix::fs::syncfs(&snapshots)?;
        Ok(())
    }
}

#[derive(Clone, Copy)]
struct Volume {
    id: u64,
    free_bytes: u64,
}

fn free(path: &Path) -> Option<Volume> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(Volume { id: stat.f_fsid, free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize) })
}
