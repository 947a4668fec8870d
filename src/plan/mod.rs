//! Planning: what one FICLONERANGE call may clone, and how fast calls may follow each other.
//!
//! [`chunk`] cuts a range so that no call is larger than `--chunk` bytes or has more extents than the latency budget
//! allows; [`pacer`] turns the calls' measured cost into that budget; [`cluster`] is how large the unit of what guests wait for is. Pure: the
//! caller brings the map and the time.

pub mod chunk;
pub mod cluster;
pub mod pacer;
