//! How long the messages of a request are: the one thing of them that is looked at.

/// What comes before each message: a flag and its length, in bytes.
pub(crate) const PREFIX: u32 = 5;

#[derive(Debug)]
pub(crate) struct Meter {
    limit: u32,
    prefix: [u8; 5],
    read: usize,
    /// Bytes of the present message still to come.
    rest: usize,
}

impl Meter {
    pub(crate) fn new(limit: u32) -> Self {
        Self {
            limit,
            prefix: [0; 5],
            read: 0,
            rest: 0,
        }
    }

    /// Looks at the next bytes of a stream; a message over the limit is an error, with its length.
    pub(crate) fn feed(&mut self, mut data: &[u8]) -> Result<(), u32> {
        while !data.is_empty() {
            if self.rest > 0 {
                let skip = self.rest.min(data.len());
                self.rest -= skip;
                data = &data[skip..];
                continue;
            }
            self.prefix[self.read] = data[0];
            self.read += 1;
            data = &data[1..];
            if self.read == self.prefix.len() {
                let [_flag, length @ ..] = self.prefix;
                let length = u32::from_be_bytes(length);
                if length > self.limit {
                    return Err(length);
                }
                self.read = 0;
                self.rest = length as usize;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: u32) -> Vec<u8> {
        let mut message = vec![0];
        message.extend(length.to_be_bytes());
        message.resize(5 + length as usize, 7);
        message
    }

    #[test]
    fn a_message_over_the_limit_is_found_however_the_bytes_are_cut() {
        let stream: Vec<u8> = [message(10), message(0), message(11)].concat();
        for size in 1..stream.len() {
            let mut meter = Meter::new(10);

            let found = stream
                .chunks(size)
                .find_map(|chunk| meter.feed(chunk).err());

            assert_eq!(found, Some(11), "cut into {size}");
        }
    }

    #[test]
    fn messages_at_the_limit_pass() {
        let stream: Vec<u8> = [message(10), message(10)].concat();

        assert_eq!(Meter::new(10).feed(&stream), Ok(()));
    }
}
