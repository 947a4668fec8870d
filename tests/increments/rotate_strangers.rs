//! `rotate` and other users, who may put files where the snapshots are.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};

use crate::support::on_both;
use crate::support::rotating::{PATTERN, begin, rotate, snaps};

/// In a directory of all anybody may put files, and nobody may remove another one's.
#[test]
fn made_up_snapshots_of_other_users_push_no_real_one_out() {
    on_both(|s| {
        begin(s);
        (0..3).for_each(|_| drop(rotate(s, 0, &["--keep-last", "9"])));
        let real = snaps(s);
        fs::set_permissions(s.path("snaps"), fs::Permissions::from_mode(0o1777)).expect("chmod");
        for day in 1..=4 {
            let name = format!("snaps/a-2020010{day}T000000.000000000+0000.snap");
            s.exits(0, &["snapshot", "-q", "a.img", &name]);
            chown(s.path(&name), Some(2000), None).expect("chown");
        }
        let all = snaps(s);
        let alone = PATTERN.split_once('=').expect("a pattern").1;
        for pattern in [PATTERN, alone] {
            let prune = ["rotate", "--prune-only", pattern, "--keep-last", "3"];
            let plan = s.exits(0, &[&prune[..], &["--json", "--dry-run"]].concat());
            assert!(plan.len() == 3 && plan.iter().all(|it| it["what"] == "keep"), "{plan:?}");
            let told = s.exits(0, &[&prune[..], &["--json"]].concat());
            let pruned = told.last().expect("an end");
            assert_eq!((&pruned["kept"], &pruned["of_other_users"]), (&3.into(), &4.into()), "{:?}: {told:?}", s.fs);
            for more in [&["-q"][..], &["--dry-run"]] {
                let out = s.run(&[&prune[..], more].concat());
                let said = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
                assert!(said.contains("4 snapshots of other users left alone"), "{said}");
            }
            assert_eq!(snaps(s), all, "{:?}", s.fs);
        }
        rotate(s, 0, &["--keep-last", "2", "--prune-only"]);
        assert_eq!(snaps(s).intersection(&real).count(), 2, "{:?}: {:?}", s.fs, snaps(s));
        // Those of the image's owner count, and where nobody else may put files all do.
        chown(s.path("a.img"), Some(2000), None).expect("chown");
        rotate(s, 0, &["--keep-last", "4", "--prune-only"]);
        assert!(snaps(s).len() == 4 && snaps(s).is_disjoint(&real), "{:?}: {:?}", s.fs, snaps(s));
        chown(s.path("a.img"), Some(0), None).expect("chown");
        fs::set_permissions(s.path("snaps"), fs::Permissions::from_mode(0o755)).expect("chmod");
        rotate(s, 0, &["--keep-last", "1", "--prune-only"]);
        assert_eq!(snaps(s).len(), 1, "{:?}: {:?}", s.fs, snaps(s));
    });
}
