//! Which bytes a request asks for (RFC 9110, section 14), as a pure function.

/// Which bytes of a content of known length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Selection {
    /// All of them.
    Whole,
    /// From `start` up to but not including `end`; never empty.
    Part {
        /// The first byte.
        start: u64,
        /// After the last byte.
        end: u64,
    },
    /// None of the bytes asked for exists.
    Unsatisfiable,
}

/// Reads a `Range` header, for content whose entity tag is `etag`.
///
/// What is not one range of bytes counts as absent: a server may ignore `Range`, and several ranges in one answer are
/// how servers are made to send many times what they have (CVE-2011-3192).
pub(super) fn select(range: Option<&str>, if_range: Option<&str>, etag: &str, size_bytes: u64) -> Selection {
    // An unequal validator, which a date always is here, means: all of it, if it has changed.
    if if_range.is_some_and(|validator| validator.trim() != etag) {
        return Selection::Whole;
    }
    range.and_then(|range| parse(range, size_bytes)).unwrap_or(Selection::Whole)
}

fn parse(range: &str, size_bytes: u64) -> Option<Selection> {
    let (unit, set) = range.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") || set.contains(',') {
        return None;
    }
    let (first, last) = set.trim().split_once('-')?;
    let part = match (number(first)?, number(last)?) {
        (None, None) => return None,
        (None, Some(0)) => return Some(Selection::Unsatisfiable),
        (None, Some(suffix)) => (size_bytes.saturating_sub(suffix), size_bytes),
        (Some(start), None) => (start, size_bytes),
        (Some(start), Some(last)) if last < start => return None,
        (Some(start), Some(last)) => (start, last.saturating_add(1).min(size_bytes)),
    };
    match part {
        (start, end) if start < end => Some(Selection::Part { start, end }),
        _ => Some(Selection::Unsatisfiable),
    }
}

/// A number or nothing; anything else is an error. A number too large for us is as good as the largest.
#[expect(clippy::option_option, reason = "absent and malformed are told apart")]
fn number(text: &str) -> Option<Option<u64>> {
    let text = text.trim();
    if text.is_empty() {
        return Some(None);
    }
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| Some(text.parse().unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ETAG: &str = "\"sha256:ab\"";

    fn selected(range: &str) -> Selection {
        select(Some(range), None, ETAG, 100)
    }

    #[test]
    fn reads_every_shape_of_a_single_range() {
        for (range, start, end) in [
            ("bytes=0-0", 0, 1),
            ("bytes=0-", 0, 100),
            ("bytes=10-19", 10, 20),
            ("bytes=10-", 10, 100),
            ("bytes=-10", 90, 100),
            ("bytes=-1000", 0, 100),
            ("bytes=99-", 99, 100),
            ("bytes=90-100", 90, 100),
            ("bytes=90-99999999999999999999999", 90, 100),
            ("Bytes = 1 - 2 ", 1, 3),
        ] {
            assert_eq!(selected(range), Selection::Part { start, end }, "{range}");
        }
    }

    #[test]
    fn refuses_ranges_beyond_the_end() {
        for range in ["bytes=100-", "bytes=100-200", "bytes=-0", "bytes=99999999999999999999-"] {
            assert_eq!(selected(range), Selection::Unsatisfiable, "{range}");
        }
        assert_eq!(select(Some("bytes=0-"), None, ETAG, 0), Selection::Unsatisfiable);
        assert_eq!(select(Some("bytes=-5"), None, ETAG, 0), Selection::Unsatisfiable);
    }

    #[test]
    fn ignores_what_is_not_one_range_of_bytes() {
        for range in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=a-b",
            "bytes=5-4",
            "bytes=0-1,2-3",
            "bytes=0-1,",
            "items=0-1",
            "bytes=+1-2",
            "bytes=1--2",
            "bytes=0x1-2",
            "bytes=\u{665}-",
        ] {
            assert_eq!(selected(range), Selection::Whole, "{range}");
        }
    }

    #[test]
    fn sends_all_of_it_when_if_range_names_something_else() {
        let part = Selection::Part { start: 1, end: 100 };
        assert_eq!(select(Some("bytes=1-"), Some(ETAG), ETAG, 100), part);
        for validator in ["\"sha256:cd\"", "W/\"sha256:ab\"", "Wed, 21 Oct 2015 07:28:00 GMT", ""] {
            assert_eq!(select(Some("bytes=1-"), Some(validator), ETAG, 100), Selection::Whole, "{validator}");
        }
    }
}
