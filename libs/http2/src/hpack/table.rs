//! The table that the standard lays down (RFC 7541, Appendix A).

use std::sync::LazyLock;

use super::{ENTRY_OVERHEAD, Field};

/// How many fields it has; the first of the other table comes behind.
pub(super) const COUNT: usize = 61;

const FIELDS: [(&str, &str); COUNT] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

static PARSED: LazyLock<Vec<(Field, usize)>> = LazyLock::new(|| {
    let parse = |(name, value): &(&str, &str)| {
        let field = Field::parse(name.as_bytes(), value.as_bytes());
        (field, name.len() + value.len() + ENTRY_OVERHEAD)
    };
    FIELDS.iter().map(parse).collect()
});

/// The field of this number, from 1, and its size.
pub(super) fn get(number: usize) -> Option<&'static (Field, usize)> {
    PARSED.get(number.checked_sub(1)?)
}

/// The first number with this name; 0 where there is none.
pub(super) fn find(name: &str) -> usize {
    match name {
        ":authority" => 1,
        ":method" => 2,
        ":path" => 4,
        ":scheme" => 6,
        ":status" => 8,
        "accept-charset" => 15,
        "accept-encoding" => 16,
        "accept-language" => 17,
        "accept-ranges" => 18,
        "accept" => 19,
        // The rest is in the order of the alphabet.
        other => {
            let rest = &FIELDS[19..];
            let found = rest.binary_search_by(|(name, _)| (*name).cmp(other));
            found.map_or(0, |at| at + 20)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_is_found_where_it_is() {
        for (at, (name, _)) in FIELDS.iter().enumerate() {
            let first = FIELDS.iter().position(|(other, _)| other == name).unwrap();
            assert_eq!(find(name), first + 1, "{name} at {at}");
        }
        for name in ["", "a", "tether-pool", "zz", "grpc-status", ":other"] {
            assert_eq!(find(name), 0, "{name}");
        }
    }
}
