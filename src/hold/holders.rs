//! Placeholder until the scan is merged.
use crate::disk::real::RealFile;
/// Who.
pub fn describe(_: &RealFile) -> String {
    "somebody has it open for writing".into()
}
