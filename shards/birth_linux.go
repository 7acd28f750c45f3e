package shards

import "golang.org/x/sys/unix"

// birth is when a folder was made, in ns since 1970, and its inode; 0 for what the system does not tell.
func birth(dir string) (born int64, inode uint64) {
	var x unix.Statx_t
	if unix.Statx(unix.AT_FDCWD, dir, 0, unix.STATX_BTIME|unix.STATX_INO, &x) == nil {
		if x.Mask&unix.STATX_BTIME != 0 {
			born = x.Btime.Sec*1e9 + int64(x.Btime.Nsec)
		}
		return born, x.Ino
	}
	var st unix.Stat_t // a kernel, or a sandbox, that knows no statx
	if unix.Stat(dir, &st) == nil {
		inode = st.Ino
	}
	return 0, inode
}
