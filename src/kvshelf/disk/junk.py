"""Names that file systems, desktops and scanners put into any folder. Pure.

An entry of such a name is neither kvshelf's nor anybody's data: it keeps no directory from becoming
a shelf, it is neither counted nor reported, and kvshelf never removes it. It may lie in the root
and in the folders of namespaces, ranks and hashes. No name of kvshelf's own is junk. The native
core gets this list from ``kvshelf.upkeep.evict.native``.
"""

from __future__ import annotations

from kvshelf.disk.layout import parse_temp_name

# In lower case, as file systems without case have them in any.
JUNK_NAMES = frozenset(
    {
        # File systems: ext4; snapshots of NetApp, Storage Scale, Isilon, Weka, VAST, CephFS, UFS,
        # ZFS; GlusterFS, Lustre, Storage Scale's HSM, JuiceFS; VFAT after fsck.
        "lost+found",
        ".snapshot",
        ".snapshots",
        "~snapshot",
        ".snap",
        ".zfs",
        ".glusterfs",
        ".glusterfs-anonymous-inode",
        ".trashcan",
        ".lustre",
        ".spaceman",
        ".mmsharedtmpdir",
        ".trash",
        "lost.dir",
        "found.000",
        # Quota files of ext3 and ext4.
        "aquota.user",
        "aquota.group",
        "quota.user",
        "quota.group",
        # macOS.
        ".ds_store",
        ".appledouble",
        ".appledb",
        ".appledesktop",
        ".localized",
        ".apdisk",
        ".fseventsd",
        ".spotlight-v100",
        ".temporaryitems",
        ".documentrevisions-v100",
        ".com.apple.timemachine.donotpresent",
        ".metadata_never_index",
        ".volumeicon.icns",
        "network trash folder",
        "temporary items",
        # Windows.
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "system volume information",
        "recycler",
        "$recycle.bin",
        # Linux desktops.
        ".directory",
        ".hidden",
        # Synology, QNAP.
        "@eadir",
        "@tmp",
        "@sharebin",
        "#recycle",
        "#snapshot",
        "@recycle",
        "@recently-snapshot",
        ".@__thumb",
        ".@upload_cache",
        # Tools that keep directories alike.
        ".stfolder",
        ".stversions",
        ".stignore",
        ".sync",
        # Scanners' quarantine.
        ".quarantine",
        ".clamav",
        ".sophos",
        "$av_asw",
        "$av_avg",
    }
)
JUNK_PREFIXES = (
    ".nfs",  # NFS: a file that was removed while open
    ".fuse_hidden",  # libfuse, likewise
    ".__smb",  # SMB, likewise
    ".smbdelete",  # SMB of macOS, likewise
    ".__afs",  # AFS, likewise
    ".panfs",  # PanFS, likewise
    ".trash-",  # freedesktop.org's trash: .Trash-1000
    ".trashes",  # macOS
    "._",  # AppleDouble: what SMB and VFAT cannot keep of a file
    ".~lock.",  # office programs
    ".stfolder",  # Syncthing: .stfolder (1)
    ".syncthing.",
    ".goutputstream-",  # GLib
)
# What scanners append to the name of a file that they put away.
JUNK_SUFFIXES = (".vir", ".virus", ".infected", ".quarantine", ".quarantined", ".malware")


def is_junk(name: str) -> bool:
    """Whether a file system, a desktop or a scanner puts an entry of this name into folders."""
    low = name.lower()
    if low in JUNK_NAMES or low.endswith(JUNK_SUFFIXES):
        return True
    # A temp file of ours in the root begins with a dot and a host name, such as nfs-1.
    return low.startswith(JUNK_PREFIXES) and parse_temp_name(name[1:]) is None
