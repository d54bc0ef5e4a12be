//! `WWW-Authenticate`: what a registry asks for, read from however many headers and challenges it sends. ◇
//!
//! The grammar is RFC 9110, section 11: challenges and their parameters are both separated by commas, values may be
//! quoted or not, and a comma or escaped quote may stand inside quotes.

use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;

const MAX_HEADER_BYTES: usize = 8 * 1024;
const MAX_CHALLENGES: usize = 16;
const MAX_PARAMETERS: usize = 32;

/// What a registry asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User name and password.
    Basic,
    /// A token from its token server.
    Bearer(Bearer),
}

/// The parameters of a Bearer challenge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Bearer {
    pub(super) realm: String,
    pub(super) service: Option<String>,
    pub(super) scope: Option<String>,
    pub(super) error: Option<String>,
}

/// The challenges of an answer that we can meet, Bearer before Basic.
pub(super) fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let mut found = Vec::new();
    for value in headers.get_all(WWW_AUTHENTICATE) {
        if let Some(text) = value.to_str().ok().filter(|text| text.len() <= MAX_HEADER_BYTES) {
            found.extend(parse(text).into_iter().filter_map(understood));
        }
    }
    found.truncate(MAX_CHALLENGES);
    found.sort_by_key(|challenge| matches!(challenge, Challenge::Basic));
    found
}

fn understood(raw: Raw) -> Option<Challenge> {
    if raw.scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !raw.scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let mut bearer = Bearer::default();
    for (name, value) in raw.parameters {
        match name.to_ascii_lowercase().as_str() {
            "realm" => bearer.realm = value,
            "service" => bearer.service = Some(value),
            "scope" => bearer.scope = Some(value),
            "error" => bearer.error = Some(value),
            _ => {}
        }
    }
    (!bearer.realm.is_empty()).then_some(Challenge::Bearer(bearer))
}

#[derive(Debug)]
struct Raw {
    scheme: String,
    parameters: Vec<(String, String)>,
}

fn parse(text: &str) -> Vec<Raw> {
    let mut rest = Cursor(text);
    let mut found: Vec<Raw> = Vec::new();
    loop {
        rest.skip(|c| c == ',' || c == ' ' || c == '\t');
        let word = rest.token();
        if word.is_empty() {
            return found;
        }
        rest.skip(|c| c == ' ' || c == '\t');
        // `word =` is a parameter of the challenge before; a bare word starts the next challenge.
        if rest.eat('=') {
            rest.skip(|c| c == ' ' || c == '\t');
            let value = rest.value();
            if let Some(raw) = found.last_mut().filter(|raw| raw.parameters.len() < MAX_PARAMETERS) {
                raw.parameters.push((word.to_owned(), value));
            }
        } else if found.len() < MAX_CHALLENGES {
            found.push(Raw { scheme: word.to_owned(), parameters: Vec::new() });
        } else {
            return found;
        }
    }
}

struct Cursor<'a>(&'a str);

impl<'a> Cursor<'a> {
    fn skip(&mut self, unwanted: impl Fn(char) -> bool) {
        self.0 = self.0.trim_start_matches(unwanted);
    }

    fn eat(&mut self, wanted: char) -> bool {
        match self.0.strip_prefix(wanted) {
            Some(rest) => {
                self.0 = rest;
                true
            }
            None => false,
        }
    }

    /// Everything up to the first character in `ends`.
    fn until(&mut self, ends: &[char]) -> &'a str {
        let (taken, rest) = self.0.split_at(self.0.find(ends).unwrap_or(self.0.len()));
        self.0 = rest;
        taken
    }

    fn token(&mut self) -> &'a str {
        self.until(&[' ', '\t', ',', '=', '"'])
    }

    fn value(&mut self) -> String {
        if !self.eat('"') {
            return self.until(&[',', ' ', '\t', '"']).to_owned();
        }
        let mut value = String::new();
        let mut escaped = false;
        let mut chars = self.0.chars();
        for c in chars.by_ref() {
            match c {
                _ if escaped => {
                    value.push(c);
                    escaped = false;
                }
                '\\' => escaped = true,
                '"' => break,
                _ => value.push(c),
            }
        }
        self.0 = chars.as_str();
        value
    }
}

/// The scope to ask for, given what the registry asks: never more than reading.
///
/// A registry that asks for `push` would make us hold a token that a redirect or a bug could turn against it.
pub(super) fn reading_scope(asked: Option<&str>, default: &str) -> String {
    let words = asked.unwrap_or_default().split_ascii_whitespace();
    let reading: Vec<String> = words.filter_map(reading_word).collect();
    if reading.is_empty() { default.to_owned() } else { reading.join(" ") }
}

fn reading_word(word: &str) -> Option<String> {
    let Some((resource, actions)) = word.rsplit_once(':') else {
        return Some(word.to_owned());
    };
    let kept: Vec<&str> =
        actions.split(',').filter(|action| !matches!(*action, "push" | "delete" | "*")).collect();
    (!kept.is_empty()).then(|| format!("{resource}:{}", kept.join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: &[&str]) -> Vec<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, value.parse().unwrap());
        }
        challenges(&headers)
    }

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer(Bearer {
            realm: realm.into(),
            service: service.map(Into::into),
            scope: scope.map(Into::into),
            error: None,
        })
    }

    #[test]
    fn reads_challenges_as_registries_write_them() {
        let hub = bearer(
            "https://auth.docker.io/token",
            Some("registry.docker.io"),
            Some("repository:library/nginx:pull"),
        );
        for text in [
            r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/nginx:pull""#,
            r#"bearer scope="repository:library/nginx:pull" , service=registry.docker.io, realm="https://auth.docker.io/token""#,
            r#"BEARER Realm = "https://auth.docker.io/token",SERVICE="registry.docker.io",scope=repository:library/nginx:pull"#,
        ] {
            assert_eq!(read(&[text]), vec![hub.clone()], "{text}");
        }
    }

    #[test]
    fn keeps_commas_and_escapes_inside_quotes() {
        assert_eq!(
            read(&[r#"Bearer realm="https://a/t",scope="repository:a/b:pull,push",service="x \"y\", z""#]),
            vec![bearer("https://a/t", Some("x \"y\", z"), Some("repository:a/b:pull,push"))]
        );
    }

    #[test]
    fn reads_several_challenges_and_prefers_the_token() {
        let both = vec![bearer("https://a/t", None, None), Challenge::Basic];
        assert_eq!(read(&[r#"Basic realm="r", Bearer realm="https://a/t""#]), both);
        assert_eq!(read(&[r#"Basic realm="r""#, r#"Bearer realm="https://a/t""#]), both);
        assert_eq!(read(&["Negotiate", "NTLM", "Basic realm=x"]), vec![Challenge::Basic]);
        assert_eq!(read(&["Basic"]), vec![Challenge::Basic]);
    }

    #[test]
    fn survives_nonsense() {
        let many = "Basic ".repeat(5000);
        let open = format!("Bearer realm=\"{}", "x".repeat(100));
        for text in ["", ",,,", "=", "\"\"", "a=b", "Bearer", "Bearer realm=", "\"=\"", "a\"b", &many, &open]
        {
            let _ = read(&[text]);
        }
        assert_eq!(read(&["Bearer realm="]), vec![]);
    }

    #[test]
    fn asks_for_reading_only() {
        for (asked, expected) in [
            (None, "repository:a/b:pull"),
            (Some(""), "repository:a/b:pull"),
            (Some("repository:a/b:pull"), "repository:a/b:pull"),
            (Some("repository:a/b:pull,push"), "repository:a/b:pull"),
            (Some("repository:a/b:*"), "repository:a/b:pull"),
            (Some("repository:a/b:pull,metadata_read"), "repository:a/b:pull,metadata_read"),
            (Some("aws"), "aws"),
            (Some("repository:a/b:pull repository:c:push"), "repository:a/b:pull"),
        ] {
            assert_eq!(reading_scope(asked, "repository:a/b:pull"), expected, "{asked:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics_and_never_loops(text in "[ -~]{0,200}") {
            let _ = parse(&text);
        }

        #[test]
        fn reads_back_what_is_quoted(realm in "[ -~]{1,40}", scope in "[ -~]{0,40}") {
            let quote = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
            let header = format!("Bearer scope={}, realm={}", quote(&scope), quote(&realm));
            proptest::prop_assert_eq!(read(&[&header]), vec![bearer(&realm, None, Some(&scope))]);
        }
    }
}
