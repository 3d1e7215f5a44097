//! What an error of etcd means for the call that got it. Pure.

use std::error::Error as StdError;

use etcd_client::Error;
use tonic::Code;

/// What no other member would answer differently. A token that ran out is no such refusal.
const REFUSALS: &[Code] = &[
    Code::InvalidArgument,
    Code::NotFound,
    Code::AlreadyExists,
    Code::PermissionDenied,
    Code::FailedPrecondition,
    Code::OutOfRange,
    Code::Unimplemented,
    Code::Unauthenticated,
];

/// A quota that is used up is used up everywhere; every other exhausted resource is one member's.
const NO_SPACE: &str = "database space exceeded";

/// Says that our token ran out, or that passwords or roles were changed since it was given out.
const OLD_TOKEN: &[&str] = &["revision of auth store is old", "invalid auth token"];

/// What to do after a member gave no answer to a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Ask another member. It may have been carried out all the same.
    Elsewhere,
    /// Ask again with a new token.
    NewToken,
    /// No member will do it.
    Refused,
}

pub(super) fn judge(error: &Error) -> Verdict {
    let Error::GRpcStatus(status) = error else {
        return match error {
            Error::InvalidArgs(_) | Error::InvalidUri(_) | Error::InvalidMetadataValue(_) => {
                Verdict::Refused
            }
            _ => Verdict::Elsewhere,
        };
    };
    let says = |text: &&str| status.message().contains(text);
    if OLD_TOKEN.iter().any(says) {
        Verdict::NewToken
    } else if says(&NO_SPACE) || REFUSALS.contains(&status.code()) {
        Verdict::Refused
    } else {
        Verdict::Elsewhere
    }
}

/// An error of etcd in one line, with what to do about it where that is known.
pub(super) fn words(error: &Error) -> String {
    let mut text = match error {
        Error::GRpcStatus(status) => status.message().to_owned(),
        other => other.to_string(),
    };
    let status: Option<&dyn StdError> = match error {
        Error::GRpcStatus(status) => status.source(),
        Error::TransportError(error) => error.source(),
        _ => None,
    };
    let mut cause = status;
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    for (mark, fix) in FIXES {
        if text.contains(mark) {
            text = format!("{text}; {fix}");
        }
    }
    text
}

const WRONG_CA: &str =
    "`ca` in the store's URL is not the authority that signed this member's certificate";

const NO_TLS: &str = "where this member does not speak TLS, leave `ca` out of the store's URL";

const FIXES: &[(&str, &str)] = &[
    (
        "permission denied",
        "grant the user reading and writing of every key under the store's prefix",
    ),
    (
        "invalid user ID or password",
        "check `user` and the password in the file or variable that the store's URL names",
    ),
    (
        "user name is empty",
        "this cluster wants to know who we are; add `user` and `password_file` to the store's URL",
    ),
    (
        "authentication is not enabled",
        "leave `user` out of the store's URL, or run `etcdctl auth enable`",
    ),
    (
        NO_SPACE,
        "compact and defragment etcd, then run `etcdctl alarm disarm`",
    ),
    (
        "too many operations",
        "start etcd with a larger `--max-txn-ops`",
    ),
    ("UnknownIssuer", WRONG_CA),
    ("BadSignature", WRONG_CA),
    (
        "NotValidForName",
        "this member's certificate is for another name; write the name that it is for into the store's URL",
    ),
    ("InvalidContentType", NO_TLS),
    ("tls handshake eof", NO_TLS),
];

#[cfg(test)]
mod tests {
    use etcd_client::Error::GRpcStatus;

    use super::*;

    #[test]
    fn only_what_every_member_would_refuse_is_refused() {
        let status = |code, message: &str| GRpcStatus(tonic::Status::new(code, message));
        for (code, message, verdict) in [
            (
                Code::Unavailable,
                "etcdserver: no leader",
                Verdict::Elsewhere,
            ),
            (
                Code::Unavailable,
                "etcdserver: request timed out",
                Verdict::Elsewhere,
            ),
            (Code::Unknown, "transport error", Verdict::Elsewhere),
            (
                Code::Cancelled,
                "operation was canceled",
                Verdict::Elsewhere,
            ),
            (
                Code::ResourceExhausted,
                "etcdserver: too many requests",
                Verdict::Elsewhere,
            ),
            (
                Code::ResourceExhausted,
                "etcdserver: mvcc: database space exceeded",
                Verdict::Refused,
            ),
            (
                Code::PermissionDenied,
                "etcdserver: permission denied",
                Verdict::Refused,
            ),
            (
                Code::InvalidArgument,
                "etcdserver: duplicate key given in txn request",
                Verdict::Refused,
            ),
            (
                Code::InvalidArgument,
                "etcdserver: revision of auth store is old",
                Verdict::NewToken,
            ),
            (
                Code::Unauthenticated,
                "etcdserver: invalid auth token",
                Verdict::NewToken,
            ),
        ] {
            assert_eq!(judge(&status(code, message)), verdict, "{message}");
        }
    }
}
