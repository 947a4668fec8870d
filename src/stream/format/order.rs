//! What may follow what in a stream.

use super::Record;
use super::name::Name;

/// What a stream says of itself before its data.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Head {
    /// The base; none of a whole snapshot.
    pub base: Option<Name>,
    /// The snapshot.
    pub snapshot: Option<Name>,
    /// The snapshot's size.
    pub size: Option<u64>,
}

/// What is wrong with a record where it is.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
pub enum Disorder {
    /// A second one of a kind that there is one of.
    #[error("there are two records of one kind, which may be there once")]
    Twice,
    /// A record about the whole after the first data.
    #[error("a record about the whole comes after data")]
    Late,
    /// A name of something else.
    #[error("the name '{}' is none that 'rclone-img send' gives", .0.escape_debug())]
    Foreign(String),
    /// No snapshot's name, or no size, before data or the end.
    #[error("it does not say which snapshot it is of")]
    Nameless,
    /// The size in the name and the size beside it.
    #[error("it gives two sizes of the snapshot, {0} and {1} bytes")]
    Sizes(u64, u64),
    /// A range that does not come after the one before.
    #[error("bytes from {0} on come after those up to {1}")]
    Backwards(u64, u64),
    /// A range past the end.
    #[error("there are bytes up to {0} of a snapshot of {1}")]
    Beyond(u64, u64),
}

/// Looks at one record after the other.
#[derive(Debug, Default)]
pub struct Order {
    head: Head,
    /// Where the last range ended; none before the first.
    reached: Option<u64>,
}

impl Order {
    /// What the stream says of itself; all of it is known once [`Order::take`] has accepted data or the end.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Takes the next record.
    ///
    /// # Errors
    /// What is wrong with it there.
    pub fn take(&mut self, record: &Record) -> Result<(), Disorder> {
        match record {
            Record::From(_) | Record::To(_) | Record::Size(_) if self.reached.is_some() => Err(Disorder::Late),
            Record::From(name) => put(&mut self.head.base, parse(name)?),
            Record::To(name) => put(&mut self.head.snapshot, parse(name)?),
            Record::Size(size) => put(&mut self.head.size, *size),
            Record::Data(range) | Record::Zero(range) => {
                let size = self.size()?;
                let reached = self.reached.unwrap_or(0);
                if range.start() < reached {
                    return Err(Disorder::Backwards(range.start(), reached));
                }
                if range.end() > size {
                    return Err(Disorder::Beyond(range.end(), size));
                }
                self.reached = Some(range.end());
                Ok(())
            }
            Record::End => self.size().map(drop),
        }
    }

    fn size(&self) -> Result<u64, Disorder> {
        let (name, size) = self.head.snapshot.zip(self.head.size).ok_or(Disorder::Nameless)?;
        if name.size == size { Ok(size) } else { Err(Disorder::Sizes(name.size, size)) }
    }
}

fn put<T>(slot: &mut Option<T>, value: T) -> Result<(), Disorder> {
    if slot.replace(value).is_some() { Err(Disorder::Twice) } else { Ok(()) }
}

fn parse(name: &[u8]) -> Result<Name, Disorder> {
    let text = String::from_utf8_lossy(name);
    text.parse().map_err(|()| Disorder::Foreign(text.into_owned()))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::range::ByteRange;
    use crate::stream::format::name::Kind;

    fn name(size: u64) -> Vec<u8> {
        Name { t0: jiff::Timestamp::UNIX_EPOCH, size, job: Uuid::from_u128(5), kind: Kind::Mixed }
            .to_string()
            .into_bytes()
    }

    fn data(start: u64, end: u64) -> Record {
        Record::Data(ByteRange::new(start, end).expect("not empty"))
    }

    /// The error of the last record; all before it are fine.
    fn last(records: &[Record]) -> Option<Disorder> {
        let (last, before) = records.split_last().expect("a record");
        let mut order = Order::default();
        before.iter().for_each(|it| order.take(it).expect("in order"));
        order.take(last).err()
    }

    #[test]
    fn only_what_makes_one_snapshot_is_taken() {
        let head = [Record::From(name(5)), Record::To(name(100)), Record::Size(100)];
        let after = |more: &[Record]| last(&[&head, more].concat());
        assert_eq!(after(&[data(0, 10), Record::Zero(ByteRange::new(10, 20).expect("not empty")), Record::End]), None);
        assert_eq!(after(&[data(0, 10), data(9, 12)]), Some(Disorder::Backwards(9, 10)));
        assert_eq!(after(&[data(99, 101)]), Some(Disorder::Beyond(101, 100)));
        assert_eq!(after(&[data(0, 10), Record::Size(5)]), Some(Disorder::Late));
        assert_eq!(after(&[Record::To(name(100))]), Some(Disorder::Twice));
        assert_eq!(last(&[Record::To(b"a\n".to_vec())]), Some(Disorder::Foreign("a\n".into())));
        assert_eq!(last(&[Record::To(name(100)), data(0, 1)]), Some(Disorder::Nameless));
        assert_eq!(last(&[Record::End]), Some(Disorder::Nameless));
        assert_eq!(last(&[Record::To(name(100)), Record::Size(99), Record::End]), Some(Disorder::Sizes(100, 99)));
    }
}
