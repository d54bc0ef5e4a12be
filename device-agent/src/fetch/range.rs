//! What an answer to a request for the rest of a content really gives.
//!
//! Pure. Peers are known to answer with shifted bytes and wrong offsets; whatever does not say exactly which bytes come
//! is refused before one of them is taken.

use http::{HeaderMap, StatusCode, header};

/// What to do with the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Given {
    /// The body starts at our offset after this many bytes are thrown away.
    Skip(u64),
    /// There is nothing at our offset: what we have is not the beginning of this content.
    StartOver,
    /// The content is not there.
    Absent,
    /// The answer contradicts what was promised.
    Nonsense(&'static str),
}

/// Reads the head of an answer to a request for `size_bytes` bytes from `offset` on.
pub(super) fn given(status: StatusCode, headers: &HeaderMap, offset: u64, size_bytes: u64) -> Given {
    let length = content_length(headers);
    match status {
        StatusCode::OK => match length {
            Some(length) if length != size_bytes => {
                Given::Nonsense("its length is not the one that the signed document promises")
            }
            // A server that knows no ranges: read up to where we are.
            _ => Given::Skip(offset),
        },
        StatusCode::PARTIAL_CONTENT => {
            let Some((first, last, total)) = content_range(headers) else {
                return Given::Nonsense("206 without a readable Content-Range");
            };
            if first != offset || last.checked_add(1) != Some(size_bytes) {
                return Given::Nonsense("206 with other bytes than were asked for");
            }
            if total.is_some_and(|total| total != size_bytes) {
                return Given::Nonsense("206 of a content of another length");
            }
            if length.is_some_and(|length| length != size_bytes - offset) {
                return Given::Nonsense("206 whose length contradicts its range");
            }
            Given::Skip(0)
        }
        StatusCode::RANGE_NOT_SATISFIABLE if offset > 0 => Given::StartOver,
        StatusCode::NOT_FOUND => Given::Absent,
        _ => Given::Nonsense("an unexpected status"),
    }
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// `bytes FIRST-LAST/TOTAL` (RFC 9110, 14.4); the total may be `*`.
fn content_range(headers: &HeaderMap) -> Option<(u64, u64, Option<u64>)> {
    let text = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let total = match total {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    Some((first.parse().ok()?, last.parse().ok()?, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(status: u16, length: Option<&str>, range: Option<&str>) -> Given {
        let mut headers = HeaderMap::new();
        if let Some(length) = length {
            headers.insert(header::CONTENT_LENGTH, length.parse().unwrap());
        }
        if let Some(range) = range {
            headers.insert(header::CONTENT_RANGE, range.parse().unwrap());
        }
        given(StatusCode::from_u16(status).unwrap(), &headers, 40, 100)
    }

    #[test]
    fn takes_the_rest_or_throws_away_what_it_has() {
        assert_eq!(head(206, Some("60"), Some("bytes 40-99/100")), Given::Skip(0));
        assert_eq!(head(206, None, Some("bytes 40-99/*")), Given::Skip(0));
        assert_eq!(head(200, Some("100"), None), Given::Skip(40));
        assert_eq!(head(200, None, None), Given::Skip(40));
        assert_eq!(head(416, None, Some("bytes */30")), Given::StartOver);
        assert_eq!(head(404, None, None), Given::Absent);
    }

    #[test]
    fn rejects_ranges_other_than_the_one_asked_for() {
        for range in [
            "bytes 0-99/100",
            "bytes 41-99/100",
            "bytes 40-98/100",
            "bytes 40-99/101",
            "bytes 40-18446744073709551615/100",
            "40-99/100",
            "bytes 40-99",
            "bytes a-b/c",
            "bytes -40-99/100",
        ] {
            assert!(matches!(head(206, None, Some(range)), Given::Nonsense(_)), "{range}");
        }
        assert!(matches!(head(206, None, None), Given::Nonsense(_)));
        assert!(matches!(head(206, Some("61"), Some("bytes 40-99/100")), Given::Nonsense(_)));
    }

    #[test]
    fn rejects_lengths_that_the_signed_document_does_not_promise() {
        assert!(matches!(head(200, Some("101"), None), Given::Nonsense(_)));
        assert!(matches!(head(200, Some("99999999999"), None), Given::Nonsense(_)));
    }
}
