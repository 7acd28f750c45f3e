package powercut

import (
	"maps"
	"slices"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	// cacheFor is how long the kernel may believe what it was told: nobody else changes the folder.
	cacheFor = time.Hour
	// What the disk says of its room: enough for any box, in blocks and files.
	diskBlocks, diskFiles = 16 << 20, 1 << 20
	blockSize             = 4096
	nameMax               = 255
)

// raw answers the kernel. Its nodes are numbered as their inodes.
type raw struct {
	fuse.RawFileSystem // what is not served
	d                  *Disk

	// Guarded by d.mu.
	lists  map[uint64][]fuse.DirEntry // of open folders
	opened uint64
}

func (r *raw) String() string { return "powercut" }

// A status of errno, as go-fuse has no name for each.
func status(e unix.Errno) fuse.Status { return fuse.Status(e) }

// within begins an operation on a node; the caller calls d.mu.Unlock if it gets one.
func (r *raw) within(number uint64, changes bool) (*node, fuse.Status) {
	if code := r.d.enter(changes); code != fuse.OK {
		return nil, code
	}
	n := r.d.tree.nodes[number]
	if n == nil {
		r.d.mu.Unlock()
		return nil, status(unix.ESTALE)
	}
	return n, fuse.OK
}

func (n *node) attr(to *fuse.Attr) {
	*to = fuse.Attr{
		Ino: n.number, Size: uint64(len(n.seen)), Blocks: uint64(len(n.seen)+511) / 512, Mode: n.mode, Nlink: n.links, Blksize: blockSize,
		Owner: fuse.Owner{Uid: uint32(unix.Getuid()), Gid: uint32(unix.Getgid())},
	}
	if n.folder {
		to.Mode |= unix.S_IFDIR
		to.Nlink = 2
	} else {
		to.Mode |= unix.S_IFREG
	}
	to.SetTimes(&n.time, &n.time, &n.time)
}

func (n *node) entry(to *fuse.EntryOut) {
	to.NodeId = n.number
	n.attr(&to.Attr)
	to.SetAttrTimeout(cacheFor)
	to.SetEntryTimeout(cacheFor)
}

func (r *raw) Lookup(_ <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	n, code := r.within(in.NodeId, false)
	if code != fuse.OK {
		return code
	}
	defer r.d.mu.Unlock()
	below := n.names[name]
	if below == nil {
		return fuse.ENOENT
	}
	below.entry(out)
	return fuse.OK
}

func (r *raw) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	n, code := r.within(in.NodeId, false)
	if code != fuse.OK {
		return code
	}
	defer r.d.mu.Unlock()
	n.attr(&out.Attr)
	out.SetTimeout(cacheFor)
	return fuse.OK
}

func (r *raw) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	size, resize := in.GetSize()
	n, code := r.within(in.NodeId, resize)
	if code != fuse.OK {
		return code
	}
	defer r.d.mu.Unlock()
	if resize && int64(size) != int64(len(n.seen)) {
		n.resize(int64(size))
	}
	if mode, ok := in.GetMode(); ok {
		n.mode = mode & 0o7777
	}
	n.time = time.Now()
	n.attr(&out.Attr)
	out.SetTimeout(cacheFor)
	return fuse.OK
}

// add makes a file or a folder, and its name.
func (r *raw) add(folder uint64, name string, isFolder bool, mode uint32, out *fuse.EntryOut) fuse.Status {
	n, code := r.within(folder, true)
	if code != fuse.OK {
		return code
	}
	defer r.d.mu.Unlock()
	if n.names[name] != nil {
		return status(unix.EEXIST)
	}
	made := r.d.tree.make(name, isFolder, mode&0o7777)
	r.d.tree.change(step{place{n, name}: made})
	made.entry(out)
	return fuse.OK
}

func (r *raw) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	return r.add(in.NodeId, name, true, in.Mode, out)
}

func (r *raw) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	return r.add(in.NodeId, name, false, in.Mode, &out.EntryOut)
}

func (r *raw) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	n, code := r.within(in.NodeId, true)
	if code != fuse.OK {
		return code
	}
	defer r.d.mu.Unlock()
	to := r.d.tree.nodes[in.Oldnodeid]
	switch {
	case to == nil:
		return status(unix.ESTALE)
	case n.names[name] != nil:
		return status(unix.EEXIST)
	}
	r.d.tree.change(step{place{n, name}: to})
	to.entry(out)
	return fuse.OK
}

// remove takes a name away.
func (r *raw) remove(folder uint64, name string, isFolder bool) fuse.Status {
	n, code := r.within(folder, true)
	if code != fuse.OK {
		return code
	}
	defer r.d.mu.Unlock()
	switch was := n.names[name]; {
	case was == nil:
		return fuse.ENOENT
	case isFolder && !was.folder:
		return fuse.ENOTDIR
	case !isFolder && was.folder:
		return status(unix.EISDIR)
	case isFolder && len(was.names) > 0:
		return status(unix.ENOTEMPTY)
	}
	r.d.tree.change(step{place{n, name}: nil})
	return fuse.OK
}

func (r *raw) Unlink(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return r.remove(in.NodeId, name, false)
}

func (r *raw) Rmdir(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return r.remove(in.NodeId, name, true)
}

func (r *raw) Rename(_ <-chan struct{}, in *fuse.RenameIn, from, to string) fuse.Status {
	n, code := r.within(in.NodeId, true)
	if code != fuse.OK {
		return code
	}
	defer r.d.mu.Unlock()
	target := r.d.tree.nodes[in.Newdir]
	if target == nil {
		return status(unix.ESTALE)
	}
	moved, over := n.names[from], target.names[to]
	switch {
	case moved == nil:
		return fuse.ENOENT
	case in.Flags&^unix.RENAME_NOREPLACE != 0:
		return fuse.EINVAL
	case over == moved:
		return fuse.OK // two names of one file: POSIX leaves both
	case over != nil && in.Flags&unix.RENAME_NOREPLACE != 0:
		return status(unix.EEXIST)
	case over != nil && over.folder && len(over.names) > 0:
		return status(unix.ENOTEMPTY)
	}
	r.d.tree.change(step{place{n, from}: nil, place{target, to}: moved})
	return fuse.OK
}

func (r *raw) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	_, code := r.within(in.NodeId, false)
	if code != fuse.OK {
		return code
	}
	defer r.d.mu.Unlock()
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	return fuse.OK
}

func (r *raw) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	n, code := r.within(in.NodeId, false)
	if code != fuse.OK {
		return nil, code
	}
	defer r.d.mu.Unlock()
	if in.Offset >= uint64(len(n.seen)) {
		return fuse.ReadResultData(nil), fuse.OK
	}
	return fuse.ReadResultData(buf[:copy(buf, n.seen[in.Offset:])]), fuse.OK
}

func (r *raw) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	n, code := r.within(in.NodeId, true)
	if code != fuse.OK {
		return 0, code
	}
	defer r.d.mu.Unlock()
	n.write(int64(in.Offset), data)
	n.time = time.Now()
	return uint32(len(data)), fuse.OK
}

func (r *raw) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	n, code := r.within(in.NodeId, true)
	if code != fuse.OK {
		return code
	}
	defer r.d.mu.Unlock()
	r.d.sync(n, in.FsyncFlags&fdatasync != 0)
	return fuse.OK
}

// fdatasync is the bit of FsyncFlags that tells it from fsync.
const fdatasync = 1

func (r *raw) FsyncDir(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return r.Fsync(cancel, in)
}

func (r *raw) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	if in.Mode != 0 {
		return status(unix.EOPNOTSUPP)
	}
	n, code := r.within(in.NodeId, true)
	if code != fuse.OK {
		return code
	}
	defer r.d.mu.Unlock()
	if end := int64(in.Offset + in.Length); end > int64(len(n.seen)) {
		n.resize(end)
	}
	return fuse.OK
}

func (r *raw) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.OK }

func (r *raw) Access(<-chan struct{}, *fuse.AccessIn) fuse.Status { return fuse.OK }

// OpenDir takes the list that is then read, so that names which come and go meanwhile hide no other.
func (r *raw) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n, code := r.within(in.NodeId, false)
	if code != fuse.OK {
		return code
	}
	defer r.d.mu.Unlock()
	var list []fuse.DirEntry
	for _, name := range slices.Sorted(maps.Keys(n.names)) {
		mode := uint32(unix.S_IFREG)
		if n.names[name].folder {
			mode = unix.S_IFDIR
		}
		list = append(list, fuse.DirEntry{Name: name, Ino: n.names[name].number, Mode: mode, Off: uint64(len(list) + 1)})
	}
	r.opened++
	r.lists[r.opened] = list
	out.Fh = r.opened
	return fuse.OK
}

func (r *raw) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	if code := r.d.enter(false); code != fuse.OK {
		return code
	}
	defer r.d.mu.Unlock()
	list := r.lists[in.Fh]
	for i := int(in.Offset); i < len(list) && out.AddDirEntry(list[i]); i++ {
	}
	return fuse.OK
}

func (r *raw) ReleaseDir(in *fuse.ReleaseIn) {
	r.d.mu.Lock()
	defer r.d.mu.Unlock()
	delete(r.lists, in.Fh)
}

func (r *raw) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	*out = fuse.StatfsOut{Blocks: diskBlocks, Bfree: diskBlocks, Bavail: diskBlocks, Files: diskFiles, Ffree: diskFiles, Bsize: blockSize, Frsize: blockSize, NameLen: nameMax}
	return fuse.OK
}
