//! A program in the place of this one, and the descriptors that it finds.

use alloc::ffi::CString;
use alloc::vec::Vec;
use core::ffi::c_char;
use core::ptr;

use rustix::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use rustix::io::Errno;

use crate::call::call;

/// Closes every descriptor from `first` on.
///
/// To be called where nothing in this process will use, or close again, a descriptor from `first` on.
pub fn close_from(first: RawFd) {
    // SAFETY: memory is not touched. A kernel without the call leaves them open, which costs descriptors.
    let _ = unsafe { call!(close_range, first, u32::MAX, 0) };
}

/// Puts these descriptors at `first` and the numbers after it, open across an exec.
///
/// To be called in a child that is about to exec: what is at those numbers is closed.
///
/// # Errors
/// Those of `dup2(2)`.
pub fn place(descriptors: &[BorrowedFd<'_>], first: RawFd) -> Result<(), Errno> {
    // Out of the way first: one of them may be where another one goes.
    let above = first + descriptors.len() as RawFd;
    let moved: Vec<OwnedFd> = descriptors
        .iter()
        .map(|descriptor| rustix::io::fcntl_dupfd_cloexec(descriptor, above))
        .collect::<Result<_, _>>()?;
    for (number, descriptor) in (first..).zip(&moved) {
        // SAFETY: memory is not touched, and whoever owned `number` is about to be replaced by a program.
        unsafe { call!(dup3, descriptor.as_raw_fd(), number, 0)? };
    }
    Ok(())
}

/// The arguments and the environment of a program, laid out as the kernel wants them before there is a child:
/// the child allocates nothing, in memory that is not its own and would not be given back.
#[derive(Debug)]
pub struct Words {
    argv: Vec<*const c_char>,
    env: Vec<*const c_char>,
    /// What the pointers above point into.
    _texts: Vec<CString>,
    own_ids: Vec<OwnId>,
}

/// A variable with the process's own id, which is known only there: in a namespace it is another number than
/// outside.
#[derive(Debug)]
struct OwnId {
    text: Vec<u8>,
    number_at: usize,
}

/// Digits of the largest id, and the end of the text.
const ID_BYTES: usize = 11;

impl Words {
    /// Lays them out; each of `own_ids` is the name of a variable that will hold the process's own id.
    pub fn new(argv: Vec<CString>, env: Vec<CString>, own_ids: &[&str]) -> Self {
        let own_ids: Vec<OwnId> = own_ids
            .iter()
            .map(|name| {
                let mut text = [name.as_bytes(), b"="].concat();
                let number_at = text.len();
                text.resize(number_at + ID_BYTES, 0);
                OwnId { text, number_at }
            })
            .collect();
        let end = [ptr::null()];
        let ids = own_ids.iter().map(|id| id.text.as_ptr().cast());
        let pointers = |texts: &[CString]| -> Vec<*const c_char> {
            texts.iter().map(|text| text.as_ptr()).collect()
        };
        Self {
            argv: pointers(&argv).into_iter().chain(end).collect(),
            env: pointers(&env).into_iter().chain(ids).chain(end).collect(),
            _texts: argv.into_iter().chain(env).collect(),
            own_ids,
        }
    }

    /// In the process itself: writes its id where it belongs.
    pub fn tell_own_id(&mut self) {
        let own = rustix::process::getpid().as_raw_nonzero().get();
        for id in &mut self.own_ids {
            let mut digits = [0; ID_BYTES];
            let mut rest = own;
            let mut first = ID_BYTES - 1;
            while rest > 0 {
                first -= 1;
                digits[first] = b'0' + (rest % 10) as u8;
                rest /= 10;
            }
            // With the zero behind the last digit.
            let digits = &digits[first..];
            id.text[id.number_at..][..digits.len()].copy_from_slice(digits);
        }
    }
}

/// Runs the program at `path`; returns only where that failed.
pub fn exec(path: &CString, words: &Words) -> Errno {
    // SAFETY: both arrays end in a null pointer, and they and what they point into live as long as `words`,
    // which nobody writes to meanwhile.
    let failed = unsafe {
        call!(
            execve,
            path.as_ptr(),
            words.argv.as_ptr(),
            words.env.as_ptr()
        )
    };
    failed.err().unwrap_or(Errno::INVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_finds_its_own_id_in_its_environment() {
        let text = |text: &str| CString::new(text).unwrap();
        let script = "test $OWN = $$ -a $LISTEN_PID = $$ -a $OTHER = kept -a $1 = last";
        let argv = ["sh", "-c", script, "sh", "last"].map(text).to_vec();
        let mut words = Words::new(argv, vec![text("OTHER=kept")], &["OWN", "LISTEN_PID"]);
        let mut become_shell = || {
            words.tell_own_id();
            exec(&text("/bin/sh"), &words);
        };
        let child = crate::become_beside(&crate::Birth::default(), &mut become_shell).unwrap();

        let options = rustix::process::WaitOptions::empty();
        let (_, status) = rustix::process::waitpid(Some(child.pid), options)
            .unwrap()
            .unwrap();
        assert_eq!(status.exit_status(), Some(0));
    }
}
