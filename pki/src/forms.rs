//! The forms of a type that is read from text: whatever parses it once at the edge, all other places write it the same.
//!
//! `Display` and `FromStr` are the type's own; everything here goes through them, so that there is no second way in
//! around the parser.

/// Serializes types through `Display` and reads them back through `FromStr`.
#[macro_export]
macro_rules! serde_as_text {
    ($($name:ty),+ $(,)?) => {$(
        impl ::serde::Serialize for $name {
            fn serialize<S: ::serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> ::serde::Deserialize<'de> for $name {
            fn deserialize<D: ::serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <String as ::serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(::serde::de::Error::custom)
            }
        }
    )+};
}

/// Shows and serializes types as their text ([`serde_as_text`]).
#[macro_export]
macro_rules! text_forms {
    ($($name:ty),+ $(,)?) => {
        $crate::serde_as_text!($($name),+);
        $(
            impl ::std::fmt::Debug for $name {
                fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                    ::std::fmt::Display::fmt(self, f)
                }
            }
        )+
    };
}

/// Shows and serializes types that wrap their own text ([`text_forms`]).
#[macro_export]
macro_rules! text_newtypes {
    ($($name:ty),+ $(,)?) => {
        $crate::text_forms!($($name),+);
        $(
            impl ::std::fmt::Display for $name {
                fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                    f.write_str(&self.0)
                }
            }
        )+
    };
}
