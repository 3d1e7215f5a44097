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
    resolve_for((Uid::effective(), Gid::effective()), template)
}

fn resolve_for(agent: (Uid, Gid), template: &Template) -> io::Result<Option<Credentials>> {
    if template.user.is_empty() && template.group.is_empty() && template.groups.is_empty() {
        return Ok(None);
    }
    let user = match template.user.as_str() {
        "" => User::from_uid(agent.0)?,
        name => Some(user(name)?),
    };
    let gid = match (template.group.as_str(), &user) {
        ("", Some(user)) => user.gid,
        ("", None) => agent.1,
        (name, _) => group(name)?,
    };
    let uid = user.as_ref().map_or(agent.0, |user| user.uid);
    // One that may not become anybody need not become who it is.
    if !agent.0.is_root() && (uid, gid) == agent && template.groups.is_empty() {
        return Ok(None);
    }
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
        uid: uid.as_raw(),
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
    fn an_agent_without_rights_can_run_its_own_user_by_name() {
        let own = |groups: &[&str]| {
            let template = Template {
                user: "54321".into(),
                group: "54322".into(),
                groups: groups.iter().map(|&name| name.to_owned()).collect(),
                ..Template::default()
            };
            resolve_for((Uid::from_raw(54321), Gid::from_raw(54322)), &template).unwrap()
        };

        assert_eq!(own(&[]), None);
        assert!(own(&["54323"]).is_some());
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
