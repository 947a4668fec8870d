//! How large a cluster is, unless somebody says so.

use crate::cbw::Clusters;
use crate::range::PowerOfTwo;

/// The cluster where nobody waits for one.
const CLUSTER: u64 = 64 << 10;

/// The cluster where accesses wait for theirs: the least that is cloned for one. What lies beside it comes along where the machine is fast
/// enough ([`crate::plan::pacer::Pacer::promotion`]). 4 KiB made nobody wait for less (BENCHMARKS.md).
const CLUSTER_WAITED_FOR: u64 = 8 << 10;

/// The most memory that the states of that many clusters may take, in bytes: those of 512 GiB.
const STATES_WAITED_FOR: u64 = 16 << 20;

/// The cluster that is used unless another one is asked for, for an image of `size` bytes; `waited_for` where accesses wait
/// for theirs.
pub fn cluster(waited_for: bool, size: u64) -> PowerOfTwo {
    let mut bytes = if waited_for { CLUSTER_WAITED_FOR } else { CLUSTER };
    while bytes < CLUSTER && Clusters::memory(size, PowerOfTwo::at_most(bytes)) > STATES_WAITED_FOR {
        bytes *= 2;
    }
    PowerOfTwo::at_most(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cluster_is_small_where_somebody_waits_for_it_and_the_states_stay_so() {
        const TIB: u64 = 1 << 40;
        assert_eq!(cluster(false, 16 * TIB).get(), 64 << 10);
        for (tib, kib) in [(0, 8), (1, 16), (2, 32), (4, 64), (64, 64)] {
            assert_eq!(cluster(true, tib * TIB).get(), kib << 10, "{tib} TiB");
        }
    }
}
