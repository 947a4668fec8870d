//! What a snapshot is, as a name that Ceph takes for one of its own: letters, digits, dots and dashes.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use uuid::Uuid;

use crate::record::Record;

/// How a name begins.
const PREFIX: &str = "rclone-img";

/// A snapshot's identity: two that have the same are the same bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Name {
    /// The instant that it shows.
    pub t0: Timestamp,
    /// Its size, in bytes.
    pub size: u64,
    /// The job that made it.
    pub job: Uuid,
    /// What its bytes have to do with each other.
    pub kind: Kind,
}

/// What the bytes of a snapshot have to do with each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Of one instant, at which the guest's file systems were frozen.
    Quiesced,
    /// Of one instant.
    Instant,
    /// Of several (`--consistency none`).
    Mixed,
}

impl Kind {
    const ALL: [(Self, &str); 3] = [(Self::Quiesced, "quiesced"), (Self::Instant, "instant"), (Self::Mixed, "mixed")];

    /// As the name has it.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or("", |(_, name)| name)
    }
}

impl From<&Record> for Name {
    fn from(record: &Record) -> Self {
        let kind = match (record.point_in_time, record.quiesced) {
            (true, true) => Kind::Quiesced,
            (true, false) => Kind::Instant,
            (false, _) => Kind::Mixed,
        };
        Self { t0: record.t0, size: record.size, job: record.job, kind }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let t0 = self.t0.strftime("%Y%m%dT%H%M%S.%9fZ");
        write!(f, "{PREFIX}.{t0}.{}.{}.{}", self.size, self.job.hyphenated(), self.kind.name())
    }
}

impl FromStr for Name {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let parts: Vec<&str> = text.split('.').collect();
        let [PREFIX, seconds, fraction, size, job, kind] = parts[..] else { return Err(()) };
        let t0 = DateTime::strptime("%Y%m%dT%H%M%S.%fZ", format!("{seconds}.{fraction}")).map_err(drop)?;
        let t0 = t0.to_zoned(TimeZone::UTC).map_err(drop)?.timestamp();
        let kind = Kind::ALL.iter().find(|(_, name)| *name == kind).ok_or(())?.0;
        let name = Self { kind, t0, size: size.parse().map_err(drop)?, job: job.parse().map_err(drop)? };
        // One way to write it, so that two names are equal only if they are the same.
        if name.to_string() == text { Ok(name) } else { Err(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_comes_back_and_another_is_none() {
        let t0 = "2026-11-22T02:00:00.123456789Z".parse().expect("a time");
        let name = Name { t0, size: 10 << 30, job: Uuid::from_u128(7), kind: Kind::Instant };
        let text = name.to_string();
        assert_eq!(
            text,
            "rclone-img.20261122T020000.123456789Z.10737418240.00000000-0000-0000-0000-000000000007.instant"
        );
        assert_eq!(text.parse(), Ok(name));
        let whole = Name { t0: "2026-11-22T02:00:00Z".parse().expect("a time"), ..name };
        assert_eq!(whole.to_string().parse(), Ok(whole));
        for wrong in
            ["", "nightly", &text[1..], &text.replace("10737418240", "+10737418240"), &text.replace("T02", "T25")]
        {
            assert_eq!(wrong.parse::<Name>(), Err(()), "{wrong}");
        }
    }
}
