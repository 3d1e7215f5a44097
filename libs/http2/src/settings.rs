//! What the two sides tell each other about themselves (RFC 9113, 6.5).

use bytes::{BufMut as _, BytesMut};

use crate::{
    error::Reason,
    frame::{self, MAX_FRAME, SETTINGS},
    hpack::TABLE_SIZE,
};

const HEADER_TABLE_SIZE: u16 = 1;
const ENABLE_PUSH: u16 = 2;
const MAX_CONCURRENT_STREAMS: u16 = 3;
const INITIAL_WINDOW_SIZE: u16 = 4;
const MAX_FRAME_SIZE: u16 = 5;
const MAX_HEADER_LIST_SIZE: u16 = 6;

/// The window everything begins with.
pub(crate) const FIRST_WINDOW: u32 = 65_535;
/// The largest there may be.
pub(crate) const LARGEST_WINDOW: u32 = (1 << 31) - 1;

/// The largest frame we write, whatever the other side takes: others are to have their turn in between.
const LARGEST_WRITTEN: usize = 64 << 10;

/// What the other side has said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Theirs {
    pub(crate) table: usize,
    pub(crate) max_streams: u32,
    pub(crate) window: u32,
    pub(crate) max_frame: usize,
    /// The most metadata of one message.
    pub(crate) header_list: Option<usize>,
}

impl Default for Theirs {
    fn default() -> Self {
        Self {
            table: TABLE_SIZE,
            max_streams: u32::MAX,
            window: FIRST_WINDOW,
            max_frame: MAX_FRAME,
            header_list: None,
        }
    }
}

impl Theirs {
    /// Takes what a frame says; the last word on a thing counts.
    pub(crate) fn read(&mut self, payload: &[u8], from_server: bool) -> Result<(), Reason> {
        let (settings, []) = payload.as_chunks::<6>() else {
            return Err(Reason::FRAME_SIZE_ERROR);
        };
        for [a, b, value @ ..] in settings {
            let value = frame::number(value);
            match u16::from_be_bytes([*a, *b]) {
                HEADER_TABLE_SIZE => self.table = value as usize,
                ENABLE_PUSH if value > u32::from(!from_server) => {
                    return Err(Reason::PROTOCOL_ERROR);
                }
                MAX_CONCURRENT_STREAMS => self.max_streams = value,
                INITIAL_WINDOW_SIZE if value > LARGEST_WINDOW => {
                    return Err(Reason::FLOW_CONTROL_ERROR);
                }
                INITIAL_WINDOW_SIZE => self.window = value,
                MAX_FRAME_SIZE => match value as usize {
                    size @ MAX_FRAME..=0xff_ffff => self.max_frame = size.min(LARGEST_WRITTEN),
                    _ => return Err(Reason::PROTOCOL_ERROR),
                },
                MAX_HEADER_LIST_SIZE => self.header_list = Some(value as usize),
                // Others are to be ignored.
                _ => {}
            }
        }
        Ok(())
    }
}

/// What we say, once and first of all.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ours {
    /// A client's word on what it does not want.
    pub(crate) no_push: bool,
    pub(crate) max_streams: Option<u32>,
    pub(crate) window: u32,
    pub(crate) header_list: u32,
}

impl Ours {
    pub(crate) fn write(&self, to: &mut BytesMut) {
        let all = [
            (ENABLE_PUSH, self.no_push.then_some(0)),
            (MAX_CONCURRENT_STREAMS, self.max_streams),
            (INITIAL_WINDOW_SIZE, Some(self.window)),
            (MAX_HEADER_LIST_SIZE, Some(self.header_list)),
        ];
        let told = all
            .iter()
            .filter_map(|(key, value)| Some((*key, (*value)?)));
        frame::head(to, 6 * told.clone().count(), SETTINGS, 0, 0);
        for (key, value) in told {
            to.put_u16(key);
            to.put_u32(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(settings: &[(u16, u32)], from_server: bool) -> Result<Theirs, Reason> {
        let mut payload = BytesMut::new();
        for (key, value) in settings {
            payload.put_u16(*key);
            payload.put_u32(*value);
        }
        let mut theirs = Theirs::default();
        theirs.read(&payload, from_server).map(|()| theirs)
    }

    #[test]
    fn the_last_word_counts_and_what_is_unknown_does_not() {
        let theirs = read(&[(3, 1), (3, 7), (0xeeee, 9), (5, 1 << 20), (2, 1)], false).unwrap();
        assert_eq!((theirs.max_streams, theirs.max_frame), (7, LARGEST_WRITTEN));
        assert_eq!(read(&[], true), Ok(Theirs::default()));
    }

    #[test]
    fn values_that_cannot_be_are_refused() {
        for (setting, from_server, reason) in [
            ((2, 2), false, Reason::PROTOCOL_ERROR),
            ((2, 1), true, Reason::PROTOCOL_ERROR),
            ((4, 1 << 31), false, Reason::FLOW_CONTROL_ERROR),
            ((5, 16_383), false, Reason::PROTOCOL_ERROR),
            ((5, 1 << 24), false, Reason::PROTOCOL_ERROR),
        ] {
            assert_eq!(read(&[setting], from_server), Err(reason), "{setting:?}");
        }
        assert_eq!(
            Theirs::default().read(&[0; 5], false),
            Err(Reason::FRAME_SIZE_ERROR)
        );
    }

    #[test]
    fn what_we_say_reads_back() {
        let ours = Ours {
            no_push: true,
            max_streams: Some(5),
            window: 70_000,
            header_list: 9,
        };
        let mut to = BytesMut::new();
        ours.write(&mut to);
        let mut theirs = Theirs::default();
        theirs.read(&to[frame::HEAD..], false).unwrap();

        assert_eq!((theirs.max_streams, theirs.window), (5, 70_000));
        assert_eq!(theirs.header_list, Some(9));
    }
}
