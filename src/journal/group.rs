//! The snapshots that have one T0 and are put into place together, as each of their journals names them.
//!
//! The first one leads: its journal's state `committing` is the commit record of all. Pure.

/// Bytes that a group may take in a journal.
pub const GROUP_MAX: usize = 8192;

/// One of the snapshots.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Its job's id.
    pub job: [u8; 16],
    /// UUID of the file system that it is on: where another one is found at its path, its own is not mounted.
    pub fs: [u8; 16],
    /// Absolute path of the snapshot.
    pub dst: Vec<u8>,
}

/// All of them, in the order of the command; none where the job is of one image.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Group(pub Vec<Member>);

impl Group {
    /// Whether the job is of one image only.
    pub fn is_alone(&self) -> bool {
        self.0.is_empty()
    }

    /// The member whose journal has the commit record.
    pub fn leader(&self) -> Option<&Member> {
        self.0.first()
    }

    /// Whether this snapshot leads the others.
    pub fn is_led_by(&self, job: [u8; 16]) -> bool {
        self.leader().is_some_and(|leader| leader.job == job)
    }

    /// The others, of which this is one.
    pub fn others(&self, job: [u8; 16]) -> impl Iterator<Item = &Member> {
        self.0.iter().filter(move |member| member.job != job)
    }

    /// As bytes: for each member the id, the UUID, the path's length in two bytes (little-endian), the path. `None` where a journal has
    /// no room for them.
    pub fn to_bytes(&self) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        for Member { job, fs, dst } in &self.0 {
            bytes.extend(job);
            bytes.extend(fs);
            bytes.extend(u16::try_from(dst.len()).ok()?.to_le_bytes());
            bytes.extend(dst);
        }
        (bytes.len() <= GROUP_MAX).then_some(bytes)
    }

    /// From such bytes; `None` where they are none.
    pub fn from_bytes(mut bytes: &[u8]) -> Option<Self> {
        let mut members = Vec::new();
        while let Some((job, rest)) = bytes.split_first_chunk::<16>() {
            let (fs, rest) = rest.split_first_chunk::<16>()?;
            let (length, rest) = rest.split_first_chunk::<2>()?;
            let (dst, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
            members.push(Member { job: *job, fs: *fs, dst: dst.to_vec() });
            bytes = rest;
        }
        bytes.is_empty().then_some(Self(members))
    }
}

#[cfg(test)]
mod tests {
    use super::{GROUP_MAX, Group, Member};

    #[test]
    fn a_group_comes_back_from_its_bytes_and_from_no_part_of_them() {
        let member = |n: u8| Member { job: [n; 16], fs: [n + 1; 16], dst: vec![b'/'; usize::from(n)] };
        let group = Group(vec![member(1), member(0), member(7)]);
        let bytes = group.to_bytes().expect("it fits");
        assert_eq!(Group::from_bytes(&bytes), Some(group.clone()));
        for length in 0..bytes.len() {
            let part = Group::from_bytes(&bytes[..length]);
            assert!(part.is_none_or(|part| group.0.starts_with(&part.0)), "{length}");
        }
        assert_eq!(Group::from_bytes(&[]), Some(Group::default()));
        let long = Member { job: [0; 16], fs: [0; 16], dst: vec![b'/'; GROUP_MAX / 3] };
        let long = Group(vec![long; 3]);
        assert_eq!(long.to_bytes(), None);
    }
}
