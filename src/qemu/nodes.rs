//! QEMU's block nodes, as `query-named-block-nodes` tells them. Pure.

use std::path::PathBuf;

use serde_json::{Map, Value};

/// What is looked at to tell whether a node is as it was. Its other fields count things, or are of its limits.
const OPTIONS: [&str; 5] = ["drv", "file", "ro", "cache", "detect_zeroes"];

/// A node that reads and writes a file of the host.
#[derive(Clone, PartialEq, Debug)]
pub struct FileNode {
    /// Its name; QEMU makes up one that begins with # where it was given none.
    pub name: String,
    /// Its file's name as QEMU opened it: relative to QEMU's working directory, in QEMU's view of the file systems.
    pub file: PathBuf,
    /// Whether the file is open with O_DIRECT (`cache.direct`).
    pub direct: bool,
    /// What can be seen of its options.
    pub options: Map<String, Value>,
}

impl FileNode {
    /// Whether QEMU was given an open descriptor (`/dev/fdset/N`): it duplicates that, and opens nothing.
    pub fn is_passed(&self) -> bool {
        self.file.starts_with("/dev/fdset")
    }

    /// Whether the name can stand in a line for QEMU's human monitor. QEMU gives and takes no others.
    pub fn has_plain_name(&self) -> bool {
        let plain = |c: char| c.is_ascii_alphanumeric() || "#-._".contains(c);
        !self.name.is_empty() && self.name.chars().all(plain)
    }
}

/// The nodes with driver `file` in the answer; those of which something is missing are left out.
pub fn file_nodes(answer: &Value) -> Vec<FileNode> {
    answer.as_array().into_iter().flatten().filter_map(file_node).collect()
}

fn file_node(node: &Value) -> Option<FileNode> {
    if node.get("drv")?.as_str()? != "file" {
        return None;
    }
    let options = OPTIONS.iter().filter_map(|key| Some(((*key).to_owned(), node.get(*key)?.clone())));
    Some(FileNode {
        name: node.get("node-name")?.as_str()?.to_owned(),
        file: file(node.get("file")?.as_str()?)?,
        direct: node.get("cache")?.get("direct")?.as_bool()?,
        options: options.collect(),
    })
}

/// A file's name; `json:{...}` is how QEMU writes one with options that a name cannot hold.
fn file(name: &str) -> Option<PathBuf> {
    let Some(json) = name.strip_prefix("json:") else { return Some(PathBuf::from(name)) };
    let options: Value = serde_json::from_str(json).ok()?;
    Some(PathBuf::from(options.get("filename")?.as_str()?))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    /// Of QEMU 7.2, shortened.
    fn node(name: &str, driver: &str, file: &str, direct: bool) -> Value {
        json!({
            "iops_rd": 0, "detect_zeroes": "off", "ro": false, "node-name": name, "drv": driver, "file": file,
            "image": {"virtual-size": 67108864, "filename": file, "format": driver, "actual-size": 0},
            "cache": {"no-flush": false, "direct": direct, "writeback": true}
        })
    }

    #[test]
    fn nodes_of_files_are_found_whatever_they_are_called() {
        let told = json!([
            node("r0", "raw", "/vm/a.img", false),
            node("f0", "file", "/vm/a.img", true),
            node("#block123", "file", "b.img", false),
            node("j", "file", "json:{\"driver\": \"file\", \"filename\": \"/vm/ c\"}", false),
            node("p", "file", "/dev/fdset/1", false),
            node("x", "nbd", "nbd://x", false),
            json!({"drv": "file", "node-name": "half"}),
            json!(7),
        ]);
        let found = file_nodes(&told);
        let names: Vec<_> =
            found.iter().map(|n| (n.name.as_str(), n.file.as_path(), n.direct, n.is_passed())).collect();
        let path = Path::new;
        assert_eq!(
            names,
            [
                ("f0", path("/vm/a.img"), true, false),
                ("#block123", path("b.img"), false, false),
                ("j", path("/vm/ c"), false, false),
                ("p", path("/dev/fdset/1"), false, true),
            ]
        );
        assert_eq!(file_nodes(&json!({"error": 1})), []);
    }

    #[test]
    fn only_options_are_compared() {
        let mut told = node("f0", "file", "/vm/a.img", true);
        let before = file_nodes(&json!([told]));
        told["image"]["actual-size"] = json!(4096);
        assert_eq!(file_nodes(&json!([told])), before);
        told["cache"]["no-flush"] = json!(true);
        assert_ne!(file_nodes(&json!([told])), before);
    }

    #[test]
    fn names_that_could_be_more_than_a_name_are_not_plain() {
        let check =
            |name, expect| assert_eq!(file_nodes(&json!([node(name, "file", "x", true)]))[0].has_plain_name(), expect);
        check("libvirt-1-storage", true);
        check("#block001", true);
        check("a b", false);
        check("a\"", false);
        check("", false);
    }
}
