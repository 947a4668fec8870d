//! Which snapshots are kept: the most recent of each of so many hours, days, weeks, months and years that have one, as restic's `forget`
//! has it since its version 0.16. A period that has none counts for nothing; as long as a rule has found fewer than it may keep it keeps the
//! oldest snapshot as well, so that what there is goes back as far as it can. Periods are those of the clock on the wall that the times are of. Pure.

use jiff::civil::DateTime;

/// A reason to keep a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// It is one of the last.
    Last,
    /// It is the last of an hour.
    Hourly,
    /// Of a day.
    Daily,
    /// Of a week, from Monday on.
    Weekly,
    /// Of a month.
    Monthly,
    /// Of a year.
    Yearly,
}

impl Reason {
    /// All of them, from the shortest period to the longest.
    pub const ALL: [Self; 6] = [Self::Last, Self::Hourly, Self::Daily, Self::Weekly, Self::Monthly, Self::Yearly];

    fn name(self) -> &'static str {
        match self {
            Self::Last => "last",
            Self::Hourly => "hourly",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
            Self::Yearly => "yearly",
        }
    }

    /// A number that all times of one period have and no others; every snapshot is a period of its own for [`Reason::Last`].
    fn period(self, at: DateTime, nth: usize) -> i64 {
        let (year, month, day) = (i64::from(at.year()), i64::from(at.month()), i64::from(at.day()));
        match self {
            Self::Last => nth as i64,
            Self::Hourly => ((year * 100 + month) * 100 + day) * 100 + i64::from(at.hour()),
            Self::Daily => (year * 100 + month) * 100 + day,
            Self::Weekly => {
                let week = at.date().iso_week_date();
                i64::from(week.year()) * 100 + i64::from(week.week())
            }
            Self::Monthly => year * 100 + month,
            Self::Yearly => year,
        }
    }
}

/// Why a snapshot is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Why {
    /// By this rule.
    pub reason: Reason,
    /// Only because it is the oldest, and the rule has found fewer than it may keep.
    pub oldest: bool,
}

impl Why {
    /// Its name: the rule's, or `oldest-` and the rule's.
    pub fn name(self) -> String {
        format!("{}{}", if self.oldest { "oldest-" } else { "" }, self.reason.name())
    }
}

/// How many are kept for each reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Policy {
    counts: [u32; Reason::ALL.len()],
}

impl Policy {
    /// So many for each of [`Reason::ALL`], in that order; `None` where nothing would be kept.
    pub fn new(counts: [u32; Reason::ALL.len()]) -> Option<Self> {
        counts.iter().any(|count| *count > 0).then_some(Self { counts })
    }

    /// The same where some are not of one instant: none of these takes the place of one that is, so those that are one are kept for whatever
    /// reason they would have without the others, too. The newest is always kept, and the newest that is of one instant.
    pub fn reasons_of(&self, newest_first: &[(DateTime, bool)]) -> Vec<Vec<Why>> {
        let times = |all: &mut dyn Iterator<Item = &(DateTime, bool)>| all.map(|it| it.0).collect::<Vec<_>>();
        let whole = |it: &&(DateTime, bool)| it.1;
        let mut alone = self.reasons(&times(&mut newest_first.iter().filter(whole))).into_iter();
        let all = self.reasons(&times(&mut newest_first.iter())).into_iter().zip(newest_first);
        let all = all.map(|(reasons, it)| match it.1.then(|| alone.next()).flatten() {
            Some(alone) if reasons.is_empty() => alone,
            _ => reasons,
        });
        all.collect()
    }

    /// Why each is kept, the newest first; for no reason where it is not.
    pub fn reasons(&self, newest_first: &[DateTime]) -> Vec<Vec<Why>> {
        let mut left = self.counts;
        let mut seen = [None; Reason::ALL.len()];
        let reasons = newest_first.iter().enumerate().map(|(nth, at)| {
            let wanted = Reason::ALL.into_iter().enumerate().filter_map(|(index, reason)| {
                let period = reason.period(*at, nth);
                let oldest = seen[index] == Some(period);
                let wanted = left[index] > 0 && (!oldest || nth + 1 == newest_first.len());
                if wanted {
                    left[index] -= 1;
                    seen[index] = Some(period);
                }
                wanted.then_some(Why { reason, oldest })
            });
            wanted.collect()
        });
        reasons.collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop, prop_assert, prop_assert_eq, proptest};

    use super::*;

    fn at(text: &str) -> DateTime {
        text.parse().expect("a time")
    }

    /// The names of the reasons, newest first.
    fn check(counts: [u32; 6], times: &[&str], expect: &[&str]) {
        let times: Vec<DateTime> = times.iter().map(|time| at(time)).collect();
        let reasons = Policy::new(counts).expect("not empty").reasons(&times);
        let names: Vec<String> =
            reasons.iter().map(|all| all.iter().map(|it| it.name()).collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(names, expect);
    }

    #[test]
    fn the_most_recent_of_each_period_is_kept() {
        check([1, 0, 0, 0, 0, 0], &["2026-01-02T00:00", "2026-01-01T00:00"], &["last", ""]);
        check(
            [0, 0, 2, 0, 0, 0],
            &["2026-01-05T23:00", "2026-01-05T01:00", "2026-01-03T10:00", "2026-01-01T00:00"],
            &["daily", "", "daily", ""],
        );
        // The first days of 2027 are of the last week of 2026.
        check(
            [0, 0, 0, 2, 0, 0],
            &["2027-01-03T00:00", "2026-12-28T00:00", "2026-12-27T23:00"],
            &["weekly", "", "weekly"],
        );
        check(
            [0, 0, 1, 0, 1, 2],
            &["2026-02-01T00:00", "2026-01-31T00:00", "2025-12-31T00:00", "2025-12-30T00:00"],
            &["daily monthly yearly", "", "yearly", ""],
        );
        check([0, 1, 0, 0, 0, 0], &["2026-01-01T10:59", "2026-01-01T10:00", "2026-01-01T09:59"], &["hourly", "", ""]);
        assert_eq!(Policy::new([0; 6]), None);
    }

    #[test]
    fn the_oldest_is_kept_by_a_rule_that_has_found_too_few() {
        let times =
            ["2026-01-05T23:00", "2026-01-05T01:00", "2026-01-03T10:00", "2026-01-03T09:00", "2026-01-03T08:00"];
        check([0, 0, 3, 0, 0, 0], &times, &["daily", "", "daily", "", "oldest-daily"]);
        check([0, 0, 2, 0, 0, 0], &times, &["daily", "", "daily", "", ""]);
        check([0, 0, 3, 0, 0, 2], &times, &["daily yearly", "", "daily", "", "oldest-daily oldest-yearly"]);
        check([0, 0, 0, 0, 0, 2], &times[..1], &["yearly"]);
    }

    #[test]
    fn what_is_torn_costs_nothing_that_is_whole() {
        let policy = Policy::new([1, 0, 0, 0, 0, 0]).expect("not empty");
        let times = ["2026-01-04T00:00", "2026-01-03T00:00", "2026-01-02T00:00", "2026-01-01T00:00"].map(at);
        let kept = |whole: [bool; 4]| {
            let all: Vec<_> = times.into_iter().zip(whole).collect();
            policy.reasons_of(&all).iter().map(|it| !it.is_empty()).collect::<Vec<_>>()
        };
        assert_eq!(kept([true; 4]), [true, false, false, false]);
        assert_eq!(kept([false, false, true, true]), [true, false, true, false]);
        assert_eq!(kept([true, false, true, false]), [true, false, false, false]);
        assert_eq!(kept([false; 4]), [true, false, false, false]);
    }

    /// The rules once more, period by period: the most recent of each of the newest periods, and the oldest where these are too few.
    fn model(counts: [u32; 6], times: &[DateTime]) -> Vec<bool> {
        let kept = |nth: usize| {
            Reason::ALL.iter().zip(counts).any(|(reason, count)| {
                let period = |nth: usize| reason.period(times[nth], nth);
                let newest_of_its = (0..nth).all(|other| period(other) != period(nth));
                let mut newer: Vec<i64> = (0..nth).map(period).collect();
                newer.dedup();
                (newest_of_its || nth + 1 == times.len()) && newer.len() < count as usize
            })
        };
        (0..times.len()).map(kept).collect()
    }

    proptest! {
        /// Whatever is asked for, and whatever comes that is torn.
        #[test]
        fn the_newest_good_one_is_always_kept(
            counts in prop::array::uniform6(0_u32..3),
            all in prop::collection::vec((1_i64..2000, prop::bool::ANY), 1..40),
        ) {
            let Some(policy) = Policy::new(counts) else { return Ok(()) };
            let mut now = at("2024-02-27T22:30");
            let back = |(hours, whole): &(i64, bool)| {
                now = now.checked_sub(jiff::Span::new().hours(*hours)).expect("in range");
                (now, *whole)
            };
            let all: Vec<(DateTime, bool)> = all.iter().map(back).collect();
            let reasons = policy.reasons_of(&all);
            prop_assert!(!reasons[0].is_empty());
            prop_assert!(all.iter().position(|it| it.1).is_none_or(|good| !reasons[good].is_empty()));
        }

        /// Years of runs that come, fail and come again, each followed by a removal: what is left is what the rules say of what there was.
        #[test]
        fn over_years_the_newest_is_never_lost(
            counts in prop::array::uniform6(0_u32..8),
            hours in prop::collection::vec(1_i64..2000, 1..150),
        ) {
            let Some(policy) = Policy::new(counts) else { return Ok(()) };
            let mut now = at("2024-02-27T22:30");
            let mut held: Vec<DateTime> = Vec::new();
            for hours in hours {
                now = now.checked_add(jiff::Span::new().hours(hours)).expect("in range");
                held.insert(0, now);
                let kept: Vec<bool> = policy.reasons(&held).iter().map(|reasons| !reasons.is_empty()).collect();
                prop_assert_eq!(&kept, &model(counts, &held));
                prop_assert!(kept[0]);
                let mut kept = kept.into_iter();
                held.retain(|_| kept.next() == Some(true));
                prop_assert!(held.len() <= counts.iter().sum::<u32>() as usize);
                // What is kept is kept the next time as well, as long as nothing comes.
                prop_assert!(policy.reasons(&held).iter().all(|reasons| !reasons.is_empty()));
            }
        }
    }
}
