//! Refuses file systems on which SQLite's locks and write-ahead log don't hold.

use std::path::Path;

/// Types that live on another machine or behind a process. Types that start with `fuse` are refused as well.
const NETWORK: [&str; 18] = [
    "9p",
    "afs",
    "beegfs",
    "ceph",
    "cifs",
    "coda",
    "gfs2",
    "glusterfs",
    "gpfs",
    "lustre",
    "ncpfs",
    "nfs",
    "nfs4",
    "ocfs2",
    "pvfs2",
    "smb3",
    "smbfs",
    "virtiofs",
];

/// The type of the network file system that `path` (absolute, without links) is on, if it is on one.
///
/// `mountinfo` is the text of `/proc/self/mountinfo`.
pub(super) fn network_type<'a>(mountinfo: &'a str, path: &Path) -> Option<&'a str> {
    let mut longest = 0;
    let mut found = None;
    for line in mountinfo.lines() {
        let Some((mount_point, kind)) = mount(line) else {
            continue;
        };
        // Of two mounts on one point the later one covers the earlier.
        if path.starts_with(&mount_point) && mount_point.len() >= longest {
            longest = mount_point.len();
            found = Some(kind);
        }
    }
    found.filter(|kind| NETWORK.contains(kind) || kind.starts_with("fuse"))
}

/// The mount point and the type of one line: `36 35 98:0 /root /mount options [optional] - type source super`.
fn mount(line: &str) -> Option<(String, &str)> {
    let (left, right) = line.split_once(" - ")?;
    let mount_point = left.split(' ').nth(4)?;
    let kind = right.split(' ').next()?;
    Some((unescape(mount_point), kind))
}

/// The kernel writes blanks and backslashes as three octal digits.
fn unescape(text: &str) -> String {
    let escapes = [(r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", r"\")];
    escapes.iter().fold(text.to_owned(), |text, (escape, plain)| text.replace(escape, plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:40 / /data rw - nfs4 server:/export rw
31 30 254:1 / /data/local rw master:2 - xfs /dev/vdb rw
32 22 0:41 / /with\\040blank rw - fuse.sshfs me@there: rw
33 22 0:42 / /covered rw - ext4 /dev/vdc rw
34 33 0:43 / /covered rw - cifs //server/share rw";

    #[test]
    fn network_mounts_are_told_from_local_ones() {
        for (path, expected) in [
            ("/", None),
            ("/var/lib", None),
            ("/data", Some("nfs4")),
            ("/data/deep/er", Some("nfs4")),
            ("/data/local/db", None),
            ("/database", None),
            ("/with blank/db", Some("fuse.sshfs")),
            ("/covered/db", Some("cifs")),
        ] {
            assert_eq!(network_type(MOUNTS, Path::new(path)), expected, "{path}");
        }
    }

    #[test]
    fn lines_in_no_known_form_are_passed_over() {
        assert_eq!(network_type("", Path::new("/")), None);
        assert_eq!(network_type("nonsense\n1 2 3 - x", Path::new("/")), None);
    }
}
