//! What a freezer is to do, as it goes over the socket, its numbers little-endian.

use std::io::{self, Read};
use std::time::Duration;

use super::freezer::{SLACK, THAW};
use super::{LONGEST, Method};
use crate::error::{Error, Kind, Result};

/// The most guests that one job freezes.
pub const MOST: usize = 64;

/// What to freeze.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Order {
    /// Each is frozen in this order, and thawed in the other.
    pub methods: Vec<Method>,
    /// How long a freeze may take, and how long it may last until T0 is set.
    pub limit: Duration,
}

impl Order {
    /// How long a freezer may take from the beginning to its last answer.
    pub fn longest(&self) -> Duration {
        let guests = u32::try_from(self.methods.len()).unwrap_or(u32::MAX);
        (self.limit + THAW) * guests + SLACK
    }

    /// The limit in milliseconds (8 bytes), the number of methods (4), and each with its length (4).
    pub(super) fn to_bytes(&self) -> Result<Vec<u8>> {
        if self.methods.len() > MOST {
            let what = format!("more than {MOST} guests cannot be frozen for one job");
            return Err(Error::new(Kind::Usage, what, "use --freeze with a command that freezes them all"));
        }
        let mut bytes = u64::try_from(self.limit.as_millis()).unwrap_or(u64::MAX).to_le_bytes().to_vec();
        bytes.extend((self.methods.len() as u32).to_le_bytes());
        for method in &self.methods {
            let method = method.to_bytes()?;
            bytes.extend((method.len() as u32).to_le_bytes());
            bytes.extend(method);
        }
        Ok(bytes)
    }

    /// `None` where the other end is closed before the first byte.
    pub(super) fn read(from: &mut impl Read) -> io::Result<Option<Self>> {
        let malformed = || io::Error::from(io::ErrorKind::InvalidData);
        let mut limit = [0; 8];
        match from.read_exact(&mut limit) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        let number = |from: &mut dyn Read, most: usize| {
            let mut bytes = [0; 4];
            from.read_exact(&mut bytes)?;
            let number = u32::from_le_bytes(bytes) as usize;
            if number <= most { Ok(number) } else { Err(malformed()) }
        };
        let mut methods = Vec::new();
        for _ in 0..number(from, MOST)? {
            let length = number(from, LONGEST)?;
            let mut bytes = vec![0; length];
            from.read_exact(&mut bytes)?;
            methods.push(Method::from_bytes(&bytes).map_err(|_| malformed())?);
        }
        Ok(Some(Self { methods, limit: Duration::from_millis(u64::from_le_bytes(limit)) }))
    }
}

#[cfg(test)]
mod tests {
    use super::{Duration, Method, Order};

    #[test]
    fn an_order_comes_back_as_it_was_given() {
        let commands = Method::Commands { freeze: "true".into(), thaw: "echo thawed".into() };
        let order =
            Order { methods: vec![Method::Agent("/run/a".into()), commands], limit: Duration::from_millis(1500) };
        let bytes = order.to_bytes().expect("short");
        assert_eq!(Order::read(&mut &bytes[..]).expect("whole"), Some(order));
        assert_eq!(Order::read(&mut &bytes[..0]).expect("nothing"), None);
        for cut in 8..bytes.len() {
            assert!(Order::read(&mut &bytes[..cut]).is_err(), "{cut} bytes of it");
        }
        assert!(Order { methods: vec![Method::Agent("a".into()); 65], limit: Duration::ZERO }.to_bytes().is_err());
    }
}
