//! What every place for images must do, whatever it is made of.

use bytes::Bytes;
use device_agent::runtime::{Image, Ingest, Lease, Runtime, RuntimeError};
use pki::digest::Digest;
use pki::oci::Descriptor;

use crate::sample::Sample;

/// A place under test, seen from outside.
pub(crate) trait Place {
    /// Another client of the place.
    fn runtime(&self) -> Box<dyn Runtime>;
    /// Has the place collect what nothing holds.
    fn collect(&self);
    /// All that is in it, as text.
    fn inventory(&self) -> String;
    /// How many leases and half-written contents are in it.
    fn leftovers(&self) -> usize;
    /// Damages a content.
    fn flip_a_byte_of(&self, digest: Digest);
}

/// Makes a test of each function of this file, for one place.
macro_rules! every_place_passes {
    ($place:expr) => {
        every_place_passes! { $place =>
            a_dropped_write_goes_on_where_it_stopped,
            content_in_single_bytes_arrives_whole,
            rejects_bytes_that_are_not_those_of_the_digest_and_keeps_none,
            rejects_a_second_writer_of_the_same_content_as_busy,
            leftovers_of_earlier_attempts_are_cleaned_and_wanted_ones_kept,
            content_of_a_running_delivery_is_not_collected_and_afterwards_it_is,
            a_single_manifest_comes_in_and_again_and_changes_nothing,
            an_index_inside_an_index_holds_what_is_below_it,
            removing_an_image_frees_it_and_leaves_the_other,
            damage_is_found_and_can_be_repaired,
            rejects_an_image_with_a_content_missing,
            images_with_layers_in_common_come_in_side_by_side,
            rejects_to_promote_what_was_not_imported,
            rejects_to_read_a_layer_at_once,
        }
    };
    ($place:expr => $($story:ident),* $(,)?) => {$(
        #[tokio::test]
        async fn $story() {
            crate::suite::$story(&$place).await;
        }
    )*};
}
pub(crate) use every_place_passes;

pub(crate) async fn ingest(runtime: &dyn Runtime, lease: &Lease, content: &Descriptor, bytes: &[u8]) {
    let mut ingest = runtime.begin(lease, content).await.unwrap();
    write_from_offset(&mut *ingest, bytes).await.unwrap();
    ingest.commit().await.unwrap();
}

pub(crate) async fn write_from_offset(ingest: &mut dyn Ingest, bytes: &[u8]) -> Result<(), RuntimeError> {
    let offset = usize::try_from(ingest.offset()).unwrap();
    for piece in bytes[offset..].chunks(16 * 1024) {
        ingest.write(Bytes::copy_from_slice(piece)).await?;
    }
    Ok(())
}

/// Brings a sample all the way in.
pub(crate) async fn deliver(runtime: &dyn Runtime, sample: &Sample) -> Image {
    let lease = runtime.open(&sample.artifact).await.unwrap();
    for (content, bytes) in &sample.contents {
        if !runtime.hold(&lease, content).await.unwrap() {
            ingest(runtime, &lease, content, bytes).await;
        }
    }
    let image = load(runtime, sample).await;
    runtime.import(&lease, &image).await.unwrap();
    runtime.promote(&sample.artifact).await.unwrap();
    runtime.close(&lease).await.unwrap();
    image
}

pub(crate) async fn load(runtime: &dyn Runtime, sample: &Sample) -> Image {
    Image::load(runtime, &sample.artifact, &sample.root, &sample.platform).await.unwrap()
}

pub(crate) async fn a_dropped_write_goes_on_where_it_stopped(place: &dyn Place) {
    let sample = Sample::random(9_000_000);
    let (content, bytes) = &sample.contents[0];
    let first = place.runtime();
    let lease = first.open(&sample.artifact).await.unwrap();
    let mut ingest = first.begin(&lease, content).await.unwrap();
    for piece in bytes[..5_000_000].chunks(10_000) {
        ingest.write(Bytes::copy_from_slice(piece)).await.unwrap();
    }
    drop((ingest, first));

    let second = place.runtime();
    let lease = second.open(&sample.artifact).await.unwrap();
    place.collect();
    let mut ingest = second.begin(&lease, content).await.unwrap();
    assert!(ingest.offset() >= 5_000_000 - (1 << 20) && ingest.offset() <= 5_000_000, "{}", ingest.offset());
    write_from_offset(&mut *ingest, bytes).await.unwrap();
    ingest.flush().await.unwrap();
    assert_eq!(ingest.offset(), content.size);
    ingest.commit().await.unwrap();
    assert!(second.hold(&lease, content).await.unwrap());
}

/// Each byte may hold on to a whole buffer of the connection: they are not gathered for long.
pub(crate) async fn content_in_single_bytes_arrives_whole(place: &dyn Place) {
    let sample = Sample::random(1000);
    let (content, bytes) = &sample.contents[0];
    let runtime = place.runtime();
    let lease = runtime.open(&sample.artifact).await.unwrap();
    let mut ingest = runtime.begin(&lease, content).await.unwrap();
    for byte in bytes.chunks(1) {
        ingest.write(Bytes::copy_from_slice(byte)).await.unwrap();
    }
    assert_eq!(ingest.offset(), content.size);
    ingest.commit().await.unwrap();
    assert!(runtime.hold(&lease, content).await.unwrap());
}

pub(crate) async fn rejects_bytes_that_are_not_those_of_the_digest_and_keeps_none(place: &dyn Place) {
    let runtime = place.runtime();
    let sample = Sample::random(3_000_000);
    let (content, bytes) = &sample.contents[0];
    let lease = runtime.open(&sample.artifact).await.unwrap();
    let mut wrong = bytes.clone();
    wrong[1_500_000] ^= 1;

    let mut ingest = runtime.begin(&lease, content).await.unwrap();
    write_from_offset(&mut *ingest, &wrong).await.unwrap();
    let error = ingest.commit().await.unwrap_err();
    assert!(matches!(error, RuntimeError::Corrupt { .. }), "{error:?}");
    assert!(!runtime.hold(&lease, content).await.unwrap());
    let mut ingest = runtime.begin(&lease, content).await.unwrap();
    assert_eq!(ingest.offset(), 0);
    let error = write_from_offset(&mut *ingest, &[bytes.as_slice(), b"x"].concat()).await.unwrap_err();
    assert!(matches!(error, RuntimeError::Corrupt { .. }), "{error:?}");
    ingest.abort().await.unwrap();

    let mut ingest = runtime.begin(&lease, content).await.unwrap();
    assert_eq!(ingest.offset(), 0);
    write_from_offset(&mut *ingest, &bytes[..2_000_000]).await.unwrap();
    let error = ingest.commit().await.unwrap_err();
    assert!(matches!(error, RuntimeError::Corrupt { .. }), "{error:?}");
    assert_eq!(runtime.begin(&lease, content).await.unwrap().offset(), 0);
}

pub(crate) async fn rejects_a_second_writer_of_the_same_content_as_busy(place: &dyn Place) {
    let runtime = place.runtime();
    let sample = Sample::random(1000);
    let (content, bytes) = &sample.contents[0];
    let lease = runtime.open(&sample.artifact).await.unwrap();
    let mut first = runtime.begin(&lease, content).await.unwrap();
    let second = place.runtime();
    let error = second.begin(&lease, content).await.err().unwrap();
    assert!(matches!(error, RuntimeError::Busy { .. }) && error.is_transient(), "{error:?}");
    write_from_offset(&mut *first, bytes).await.unwrap();
    first.commit().await.unwrap();
    let there = second.begin(&lease, content).await.unwrap();
    assert_eq!(there.offset(), content.size);
    there.commit().await.unwrap();
}

pub(crate) async fn leftovers_of_earlier_attempts_are_cleaned_and_wanted_ones_kept(place: &dyn Place) {
    let runtime = place.runtime();
    let (wanted, stale) = (Sample::random(2_000_000), Sample::random(2_000_001));
    for sample in [&wanted, &stale] {
        let (content, bytes) = &sample.contents[0];
        let lease = runtime.open(&sample.artifact).await.unwrap();
        let mut ingest = runtime.begin(&lease, content).await.unwrap();
        write_from_offset(&mut *ingest, &bytes[..1_000_000]).await.unwrap();
        ingest.flush().await.unwrap();
    }
    let cleaned = runtime.clean(std::slice::from_ref(&wanted.artifact)).await.unwrap();
    assert_eq!((cleaned.leases, cleaned.ingests), (1, 1));
    place.collect();
    let (content, _) = &wanted.contents[0];
    let lease = runtime.open(&wanted.artifact).await.unwrap();
    assert_eq!(runtime.begin(&lease, content).await.unwrap().offset(), 1_000_000);
    assert_eq!(runtime.clean(&[]).await.unwrap().leases, 1);
    assert_eq!(place.leftovers(), 0);
}

pub(crate) async fn content_of_a_running_delivery_is_not_collected_and_afterwards_it_is(place: &dyn Place) {
    let runtime = place.runtime();
    let sample = Sample::single("held");
    let lease = runtime.open(&sample.artifact).await.unwrap();
    for (content, bytes) in &sample.contents {
        ingest(&*runtime, &lease, content, bytes).await;
        place.collect();
    }
    for (content, _) in &sample.contents {
        assert!(runtime.hold(&lease, content).await.unwrap());
    }
    runtime.close(&lease).await.unwrap();
    place.collect();
    assert_eq!(place.inventory(), "");
}

pub(crate) async fn a_single_manifest_comes_in_and_again_and_changes_nothing(place: &dyn Place) {
    let runtime = place.runtime();
    let sample = Sample::single("once");
    deliver(&*runtime, &sample).await;
    let before = place.inventory();
    deliver(&*runtime, &sample).await;
    place.collect();
    assert_eq!(place.inventory(), before);
}

pub(crate) async fn an_index_inside_an_index_holds_what_is_below_it(place: &dyn Place) {
    let runtime = place.runtime();
    let sample = Sample::with_nested_index("far below");
    let image = deliver(&*runtime, &sample).await;
    assert_eq!(image.below.len(), 2);
    place.collect();
    assert!(runtime.verify(&image).await.unwrap().is_sound());
    runtime.remove(&sample.artifact).await.unwrap();
    place.collect();
    assert_eq!(place.inventory(), "");
}

pub(crate) async fn removing_an_image_frees_it_and_leaves_the_other(place: &dyn Place) {
    let runtime = place.runtime();
    let (old, new) = (Sample::single("old"), Sample::single("new"));
    deliver(&*runtime, &old).await;
    let kept = deliver(&*runtime, &new).await;
    let mut handed = runtime.images().await.unwrap();
    handed.sort_by_key(|handed| handed.current);
    let of = |sample: &Sample, current| (sample.artifact.clone(), current);
    let found: Vec<_> = handed.into_iter().map(|handed| (handed.artifact, handed.current)).collect();
    assert_eq!(found, [of(&old, false), of(&new, true)]);

    runtime.remove(&old.artifact).await.unwrap();
    assert!(runtime.verify(&kept).await.unwrap().is_sound());
    assert!(!place.inventory().contains(&old.root.digest.to_string()));
    runtime.remove(&new.artifact).await.unwrap();
    place.collect();
    assert_eq!(place.inventory(), "");
}

pub(crate) async fn damage_is_found_and_can_be_repaired(place: &dyn Place) {
    let runtime = place.runtime();
    let sample = Sample::single("damage");
    let image = deliver(&*runtime, &sample).await;
    let layer = image.layers[0].digest;
    place.flip_a_byte_of(layer);
    let verification = runtime.verify(&image).await.unwrap();
    assert_eq!(verification.damaged, [layer]);
    assert_eq!(verification.missing, Vec::<Digest>::new());

    runtime.discard(layer).await.unwrap();
    assert_eq!(runtime.verify(&image).await.unwrap().missing, [layer]);
    deliver(&*runtime, &sample).await;
    assert!(runtime.verify(&image).await.unwrap().is_sound());
}

pub(crate) async fn rejects_an_image_with_a_content_missing(place: &dyn Place) {
    let runtime = place.runtime();
    let sample = Sample::single("missing");
    let lease = runtime.open(&sample.artifact).await.unwrap();
    for (content, bytes) in &sample.contents {
        if content.media_type.as_str().contains("gzip") {
            continue;
        }
        ingest(&*runtime, &lease, content, bytes).await;
    }
    let image = load(&*runtime, &sample).await;
    let error = runtime.import(&lease, &image).await.unwrap_err();
    assert!(matches!(error, RuntimeError::Missing { .. }), "{error:?}");
    assert_eq!(runtime.images().await.unwrap(), []);
}

pub(crate) async fn images_with_layers_in_common_come_in_side_by_side(place: &dyn Place) {
    let runtime = place.runtime();
    let samples = [Sample::single("left"), Sample::single("right")];
    let mut leases = Vec::new();
    for sample in &samples {
        let lease = runtime.open(&sample.artifact).await.unwrap();
        for (content, bytes) in &sample.contents {
            ingest(&*runtime, &lease, content, bytes).await;
        }
        leases.push(lease);
    }
    let images = [load(&*runtime, &samples[0]).await, load(&*runtime, &samples[1]).await];
    let (left, right) =
        tokio::join!(runtime.import(&leases[0], &images[0]), runtime.import(&leases[1], &images[1]));
    left.unwrap();
    right.unwrap();
    assert_eq!(runtime.images().await.unwrap().len(), 2);
    for (lease, image) in leases.iter().zip(&images) {
        runtime.close(lease).await.unwrap();
        assert!(runtime.verify(image).await.unwrap().is_sound());
    }
}

pub(crate) async fn rejects_to_promote_what_was_not_imported(place: &dyn Place) {
    let error = place.runtime().promote(&Sample::random(10).artifact).await.unwrap_err();
    assert!(matches!(error, RuntimeError::Unknown { .. }), "{error:?}");
}

pub(crate) async fn rejects_to_read_a_layer_at_once(place: &dyn Place) {
    let sample = Sample::random(5 << 20);
    let error = place.runtime().read(&sample.root).await.unwrap_err();
    assert!(matches!(error, RuntimeError::TooLarge { .. }), "{error:?}");
}
