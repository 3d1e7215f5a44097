//! Users and groups by name, as the machine knows them.

use std::io;

use nix::unistd::{Gid, Group, Uid, User};
use tether_proto::pool::Template;
use tether_shim_protocol::Credentials;

/// Who a worker of this template runs as; nothing where that is the agent's own user.
///
/// # Errors
/// Names the user or group that does not exist here.
pub(crate) fn resolve(template: &Template) -> io::Result<Option<Credentials>> {
    if template.user.is_empty() && template.group.is_empty() && template.groups.is_empty() {
        return Ok(None);
    }
    let user = match template.user.as_str() {
        "" => User::from_uid(Uid::effective())?,
        name => Some(user(name)?),
    };
    let gid = match (template.group.as_str(), &user) {
        ("", Some(user)) => user.gid,
        ("", None) => Gid::effective(),
        (name, _) => group(name)?,
    };
    let groups = if !template.groups.is_empty() {
        template
            .groups
            .iter()
            .map(|name| group(name))
            .collect::<io::Result<_>>()?
    } else {
        match &user {
            Some(user) if !template.user.is_empty() => {
                let name = std::ffi::CString::new(user.name.as_str())?;
                nix::unistd::getgrouplist(&name, gid)?
            }
            Some(_) | None => vec![gid],
        }
    };
    Ok(Some(Credentials {
        uid: user.map_or_else(Uid::effective, |user| user.uid).as_raw(),
        gid: gid.as_raw(),
        groups: groups.into_iter().map(Gid::as_raw).collect(),
    }))
}

fn user(name: &str) -> io::Result<User> {
    let found = match name.parse() {
        Ok(number) => {
            let uid = Uid::from_raw(number);
            // A number needs no name on this machine.
            let nameless = || User {
                name: name.to_owned(),
                passwd: std::ffi::CString::default(),
                uid,
                gid: Gid::from_raw(number),
                gecos: std::ffi::CString::default(),
                dir: "/".into(),
                shell: "/bin/sh".into(),
            };
            Some(User::from_uid(uid)?.unwrap_or_else(nameless))
        }
        Err(_) => User::from_name(name)?,
    };
    found.ok_or_else(|| unknown("user", name))
}

fn group(name: &str) -> io::Result<Gid> {
    match name.parse() {
        Ok(number) => Ok(Gid::from_raw(number)),
        Err(_) => Group::from_name(name)?
            .map(|group| group.gid)
            .ok_or_else(|| unknown("group", name)),
    }
}

/// Trying again does not help, which is what this kind of error stands for here.
fn unknown(kind: &str, name: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!(
            "there is no {kind} `{name}` on this machine: make it, or change `{kind}` of the template"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(user: &str, group: &str, groups: &[&str]) -> io::Result<Option<Credentials>> {
        resolve(&Template {
            user: user.into(),
            group: group.into(),
            groups: groups.iter().map(|&name| name.to_owned()).collect(),
            ..Template::default()
        })
    }

    #[test]
    fn names_and_numbers_become_numbers() {
        assert_eq!(who("", "", &[]).unwrap(), None);
        let root = who("root", "", &[]).unwrap().unwrap();
        assert_eq!((root.uid, root.gid), (0, 0));
        let number = who("54321", "54322", &["54323"]).unwrap().unwrap();
        let expected = Credentials {
            uid: 54321,
            gid: 54322,
            groups: vec![54323],
        };
        assert_eq!(number, expected);
    }

    #[test]
    fn an_unknown_user_is_named() {
        let error = who("nobody-of-that-name", "", &[]).unwrap_err().to_string();

        assert!(
            error.starts_with("there is no user `nobody-of-that-name`"),
            "{error}"
        );
    }
}
