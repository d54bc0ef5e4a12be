//! What every backend of [`Blobs`] must do, as one suite that each backend's tests run.

use pki::digest::Digest;

use super::Blobs;

/// Stores content.
pub(crate) async fn put(blobs: &dyn Blobs, bytes: &[u8]) {
    let mut staging = blobs.stage(Digest::sha256(bytes), bytes.len() as u64).await.unwrap();
    staging.append(bytes).unwrap();
    blobs.commit(staging.finish().unwrap()).await.unwrap();
}

/// Reads content whole.
pub(crate) async fn get(blobs: &dyn Blobs, bytes: &[u8]) -> Option<Vec<u8>> {
    let content = blobs.open(Digest::sha256(bytes)).await.unwrap()?;
    let length = usize::try_from(content.len_bytes().unwrap()).unwrap();
    let (buffer, count) = content.read_at(0, vec![0; length]).await.unwrap();
    assert_eq!(count, length);
    Some(buffer)
}

/// Runs the whole suite on an empty backend.
pub(crate) async fn run(blobs: &dyn Blobs) {
    stores_and_deletes(blobs).await;
    never_commits_what_differs(blobs).await;
    readers_keep_what_they_opened(blobs).await;
}

async fn stores_and_deletes(blobs: &dyn Blobs) {
    assert_eq!(get(blobs, b"one").await, None);
    put(blobs, b"one").await;
    put(blobs, b"one").await;
    put(blobs, b"").await;
    assert_eq!(get(blobs, b"one").await.as_deref(), Some(b"one".as_slice()));
    assert_eq!(get(blobs, b"").await.as_deref(), Some(b"".as_slice()));
    let mut sizes: Vec<_> = blobs.list().await.unwrap().iter().map(|held| held.size_bytes).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [0, 3]);
    assert!(blobs.delete(Digest::sha256(b"one")).await.unwrap());
    assert!(!blobs.delete(Digest::sha256(b"one")).await.unwrap());
    assert!(blobs.delete(Digest::sha256(b"")).await.unwrap());
    assert_eq!(blobs.list().await.unwrap(), []);
    assert!(blobs.free_bytes().await.unwrap() > 0);
}

async fn never_commits_what_differs(blobs: &dyn Blobs) {
    let digest = Digest::sha256(b"right");
    let mut staging = blobs.stage(digest, 5).await.unwrap();
    staging.append(b"wro").unwrap();
    assert!(staging.finish().is_err());
    assert!(staging.append(b"nger").is_err());
    staging.append(b"ng").unwrap();
    assert!(staging.finish().is_err());
    assert_eq!(blobs.open(digest).await.unwrap().map(|_| ()), None);
    staging.restart().unwrap();
    staging.append(b"right").unwrap();
    blobs.commit(staging.finish().unwrap()).await.unwrap();
    assert_eq!(get(blobs, b"right").await.as_deref(), Some(b"right".as_slice()));
    blobs.delete(digest).await.unwrap();
}

async fn readers_keep_what_they_opened(blobs: &dyn Blobs) {
    let digest = Digest::sha256(b"0123456789");
    let mut staging = blobs.stage(digest, 10).await.unwrap();
    let tail = staging.content();
    staging.append(b"01234").unwrap();
    assert_eq!(tail.read_at(3, vec![0; 4]).await.unwrap(), (b"34\0\0".to_vec(), 2));
    staging.append(b"56789").unwrap();
    blobs.commit(staging.finish().unwrap()).await.unwrap();
    assert_eq!(tail.read_at(6, vec![0; 4]).await.unwrap(), (b"6789".to_vec(), 4));
    let opened = blobs.open(digest).await.unwrap().unwrap();
    blobs.delete(digest).await.unwrap();
    assert_eq!(opened.read_at(0, vec![0; 2]).await.unwrap(), (b"01".to_vec(), 2));
    assert_eq!(blobs.list_partial().await.unwrap(), []);
}
