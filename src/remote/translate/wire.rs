//! Protocol buffers as bytes, where decoding them whole would be wrong or dear.
//!
//! - A directory is named by the digest of its bytes as they were sent. Decoding and encoding it again
//!   would drop the fields that we do not know, and with them the name.
//! - Two bytes can claim a message that takes hundreds in memory. Here records are looked at one by one,
//!   so that whoever reads them can stop.

/// Bytes that are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// The fields of a message that have a length (messages, strings, bytes) with their numbers, in the order in
/// which they stand. Other fields are passed over; after an error there are no more.
pub(super) struct Fields<'a>(&'a [u8]);

/// The ways of writing a value that are still in use; the two that mark groups are not.
const NUMBER: u64 = 0;
const EIGHT_BYTES: u64 = 1;
const WITH_LENGTH: u64 = 2;
const FOUR_BYTES: u64 = 5;

impl<'a> Fields<'a> {
    pub(super) fn of(message: &'a [u8]) -> Fields<'a> {
        Fields(message)
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], Malformed> {
        let length = usize::try_from(length).map_err(|_| Malformed)?;
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    /// LEB128 of at most 64 bits, minimal or not.
    fn number(&mut self) -> Result<u64, Malformed> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed)
    }

    fn field(&mut self) -> Result<Option<(u64, &'a [u8])>, Malformed> {
        let key = self.number()?;
        match key & 7 {
            NUMBER => {
                self.number()?;
            }
            EIGHT_BYTES => {
                self.take(8)?;
            }
            FOUR_BYTES => {
                self.take(4)?;
            }
            WITH_LENGTH => {
                let length = self.number()?;
                return Ok(Some((key >> 3, self.take(length)?)));
            }
            _ => return Err(Malformed),
        }
        Ok(None)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, &'a [u8]), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.0.is_empty() {
            match self.field() {
                Ok(Some(field)) => return Some(Ok(field)),
                Ok(None) => {}
                Err(Malformed) => {
                    self.0 = &[];
                    return Some(Err(Malformed));
                }
            }
        }
        None
    }
}

/// Appends a field that has a length. Its number must be one of the first fifteen, whose key is one byte.
pub(super) fn append_field(message: &mut Vec<u8>, number: u8, contents: &[u8]) {
    debug_assert!((1..16).contains(&number), "such a key takes one byte");
    message.push(number << 3 | WITH_LENGTH as u8);
    let mut length = contents.len() as u64;
    while length >= 0x80 {
        message.push(length as u8 | 0x80);
        length >>= 7;
    }
    message.push(length as u8);
    message.extend_from_slice(contents);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(message: &[u8]) -> Result<Vec<(u64, &[u8])>, Malformed> {
        Fields::of(message).collect()
    }

    #[test]
    fn what_is_appended_is_found() {
        let long = vec![b'x'; 300];
        let mut message = Vec::new();
        append_field(&mut message, 1, b"");
        append_field(&mut message, 15, &long);
        assert_eq!(fields(&message), Ok(vec![(1, b"".as_slice()), (15, long.as_slice())]));
    }

    #[test]
    fn fields_without_a_length_are_passed_over() {
        // 3: the number 300; 4: eight bytes; 5: four bytes; 2000: "y".
        let message = [
            &[0x18, 0xac, 0x02, 0x21, 1, 2, 3, 4, 5, 6, 7, 8, 0x2d, 1, 2, 3, 4][..],
            &[0x82, 0x7d, 1, b'y'],
        ]
        .concat();
        assert_eq!(fields(&message), Ok(vec![(2000, b"y".as_slice())]));
    }

    #[test]
    fn what_is_cut_or_cannot_be_is_an_error() {
        let too_long = [[0x0a].as_slice(), &[0xff; 9], &[1]].concat();
        let endless = [0xff; 11];
        for bad in [
            &[0x0a][..],
            &[0x0a, 2, 1],
            &[0x18],
            &[0x21, 1],
            &[0x2d, 1],
            &[0x0b],
            &[0x0c],
            &too_long,
            &endless,
        ] {
            assert_eq!(fields(bad), Err(Malformed), "{bad:?}");
        }
    }
}
