//! The fields of a form or a query, as they came: names may come more than once.

/// Names and values.
#[derive(Clone, Debug, Default)]
pub(super) struct Fields(Vec<(String, String)>);

impl Fields {
    /// Reads `application/x-www-form-urlencoded`; there is nothing that it could not read.
    pub(super) fn parse(bytes: &[u8]) -> Self {
        Self(form_urlencoded::parse(bytes).into_owned().collect())
    }

    /// The first value of a name, without the blanks around it; empty where there is none.
    pub(super) fn text(&self, name: &str) -> &str {
        let mut found = self.0.iter().filter(|(key, _)| key == name);
        found.next().map_or("", |(_, value)| value.trim())
    }

    /// The same, where nothing was filled in is nothing.
    pub(super) fn filled(&self, name: &str) -> Option<String> {
        Some(self.text(name)).filter(|text| !text.is_empty()).map(str::to_owned)
    }

    /// A value exactly as it was typed: blanks belong to a password.
    pub(super) fn exact(&self, name: &str) -> Option<String> {
        let mut found = self.0.iter().filter(|(key, _)| key == name);
        found.next().map(|(_, value)| value.clone()).filter(|value| !value.is_empty())
    }

    /// Every value of a name.
    pub(super) fn all(&self, name: &str) -> Vec<String> {
        let found = self.0.iter().filter(|(key, _)| key == name);
        found.map(|(_, value)| value.trim().to_owned()).collect()
    }

    /// The first values of these names as a query goes on (`&name=value…`), without those where nothing was filled in.
    pub(super) fn query(&self, names: &[&str]) -> String {
        let mut query = String::new();
        for name in names {
            if let Some(value) = self.filled(name) {
                query = format!("{query}&{name}={}", encoded(&value));
            }
        }
        query
    }

    /// Whether a box is ticked.
    pub(super) fn ticked(&self, name: &str) -> bool {
        !self.text(name).is_empty()
    }

    /// A whole number; what is not one becomes zero, which the API refuses by name.
    pub(super) fn number(&self, name: &str) -> u64 {
        self.text(name).parse().unwrap_or(0)
    }
}

/// The link to the page after this one, with the same filters.
pub(super) fn next_page(next: Option<&String>, filters: &str) -> Option<String> {
    next.map(|next| format!("?after={}{filters}", encoded(next)))
}

/// A text as it stands in an address.
pub(super) fn encoded(text: &str) -> String {
    let encoded: String = form_urlencoded::byte_serialize(text.as_bytes()).collect();
    // A plus is a blank in queries only.
    encoded.replace('+', "%20")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_every_value_of_a_name_and_the_blanks_of_a_password() {
        let fields = Fields::parse(b"tag=v1&tag=v2&name=+x+&password=+p%26+&csrf=");
        assert_eq!(fields.all("tag"), ["v1", "v2"]);
        assert_eq!(fields.text("name"), "x");
        assert_eq!(fields.exact("password").unwrap(), " p& ");
        assert_eq!(fields.filled("csrf"), None);
        assert_eq!(fields.number("name"), 0);
    }

    #[test]
    fn carries_on_what_was_filled_in() {
        let fields = Fields::parse(b"after=a%26b&who=&text=x+y");
        assert_eq!(fields.query(&["who", "text", "after", "since"]), "&text=x%20y&after=a%26b");
    }

    #[test]
    fn encodes_whatever_could_end_a_segment() {
        assert_eq!(encoded("h/r@sha256:a b?#"), "h%2Fr%40sha256%3Aa%20b%3F%23");
    }
}
