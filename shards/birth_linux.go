package shards

import "golang.org/x/sys/unix"

// birth is when a folder was made, in ns since 1970, 0 where the file system does not tell, and its inode.
func birth(dir string) (born int64, inode uint64, err error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, dir, 0, unix.STATX_BTIME|unix.STATX_INO, &st); err != nil {
		return 0, 0, err
	}
	if st.Mask&unix.STATX_BTIME != 0 {
		born = st.Btime.Sec*1e9 + int64(st.Btime.Nsec)
	}
	return born, st.Ino, nil
}
