package shardstest

import (
	"strings"
	"sync"
	"unsafe"

	"modernc.org/libc"
	sqlite3 "modernc.org/sqlite/lib"
)

// The shim is a SQLite VFS that passes every call on to the operating system's and
// asks the Disk of the file's folder first. It becomes the process's default VFS, so
// the code under test needs no hook for it; files outside of any Disk pass through.

var shim struct {
	once   sync.Once
	parent uintptr // *Tsqlite3_vfs of the operating system

	mu     sync.Mutex
	disks  []*Disk
	files  map[uintptr]*shimFile // by *Tsqlite3_file
	tables map[uintptr]uintptr   // the system's method table → ours
}

// shimFile is an open file below a Disk.
type shimFile struct {
	disk    *Disk
	path    string
	methods uintptr // the system's *Tsqlite3_io_methods
}

// ptr converts an address of memory that Go does not manage.
func ptr(p uintptr) unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Pointer(&p)) }

// fn and call convert between Go functions and the driver's function pointers.
func fn[T any](f T) uintptr   { return *(*uintptr)(unsafe.Pointer(&struct{ f T }{f})) }
func call[T any](p uintptr) T { return *(*T)(unsafe.Pointer(&struct{ p uintptr }{p})) }

type (
	openFn     = func(*libc.TLS, uintptr, uintptr, uintptr, int32, uintptr) int32
	deleteFn   = func(*libc.TLS, uintptr, uintptr, int32) int32
	closeFn    = func(*libc.TLS, uintptr) int32
	ioFn       = func(*libc.TLS, uintptr, uintptr, int32, int64) int32
	truncateFn = func(*libc.TLS, uintptr, int64) int32
	syncFn     = func(*libc.TLS, uintptr, int32) int32
)

func registerShim() {
	shim.once.Do(func() {
		tls := libc.NewTLS() // lives as long as the process
		shim.parent = sqlite3.Xsqlite3_vfs_find(tls, 0)
		shim.files = map[uintptr]*shimFile{}
		shim.tables = map[uintptr]uintptr{}
		size := int(unsafe.Sizeof(sqlite3.Tsqlite3_vfs{}))
		p := libc.Xcalloc(tls, 1, libc.Tsize_t(size))
		vfs := (*sqlite3.Tsqlite3_vfs)(ptr(p))
		*vfs = *(*sqlite3.Tsqlite3_vfs)(ptr(shim.parent))
		name, err := libc.CString("shardstest")
		if err != nil {
			panic(err)
		}
		vfs.FpNext = 0
		vfs.FzName = name
		vfs.FxOpen = fn(shimOpen)
		vfs.FxDelete = fn(shimDelete)
		if rc := sqlite3.Xsqlite3_vfs_register(tls, p, 1); rc != sqlite3.SQLITE_OK {
			panic("shardstest: the fault-injecting VFS was not accepted")
		}
	})
}

func diskOf(path string) *Disk {
	shim.mu.Lock()
	defer shim.mu.Unlock()
	for _, d := range shim.disks {
		if strings.HasPrefix(path, d.dir+"/") {
			return d
		}
	}
	return nil
}

func fileOf(p uintptr) *shimFile {
	shim.mu.Lock()
	defer shim.mu.Unlock()
	return shim.files[p]
}

func (f *shimFile) table() *sqlite3.Tsqlite3_io_methods {
	return (*sqlite3.Tsqlite3_io_methods)(ptr(f.methods))
}

func shimOpen(tls *libc.TLS, _, zName, pFile uintptr, flags int32, pOut uintptr) int32 {
	parent := (*sqlite3.Tsqlite3_vfs)(ptr(shim.parent))
	var path string
	if zName != 0 {
		path = libc.GoString(zName)
	}
	d := diskOf(path)
	if d != nil {
		if rc := d.before(OpOpen, path, 0, 0); rc != 0 {
			return sqlite3.SQLITE_CANTOPEN
		}
	}
	rc := call[openFn](parent.FxOpen)(tls, shim.parent, zName, pFile, flags, pOut)
	file := (*sqlite3.Tsqlite3_file)(ptr(pFile))
	if rc != sqlite3.SQLITE_OK || d == nil || file.FpMethods == 0 {
		return rc
	}
	shim.mu.Lock()
	defer shim.mu.Unlock()
	ours := shim.tables[file.FpMethods]
	if ours == 0 {
		ours = libc.Xcalloc(tls, 1, libc.Tsize_t(unsafe.Sizeof(sqlite3.Tsqlite3_io_methods{})))
		m := (*sqlite3.Tsqlite3_io_methods)(ptr(ours))
		*m = *(*sqlite3.Tsqlite3_io_methods)(ptr(file.FpMethods))
		m.FxClose = fn(shimClose)
		m.FxRead = fn(shimRead)
		m.FxWrite = fn(shimWrite)
		m.FxTruncate = fn(shimTruncate)
		m.FxSync = fn(shimSync)
		shim.tables[file.FpMethods] = ours
	}
	shim.files[pFile] = &shimFile{disk: d, path: path, methods: file.FpMethods}
	file.FpMethods = ours
	return rc
}

func shimDelete(tls *libc.TLS, _, zPath uintptr, dirSync int32) int32 {
	parent := (*sqlite3.Tsqlite3_vfs)(ptr(shim.parent))
	path := libc.GoString(zPath)
	d := diskOf(path)
	if d != nil {
		if rc := d.before(OpDelete, path, 0, 0); rc != 0 {
			return sqlite3.SQLITE_IOERR_DELETE
		}
	}
	rc := call[deleteFn](parent.FxDelete)(tls, shim.parent, zPath, dirSync)
	if d != nil && rc == sqlite3.SQLITE_OK {
		d.deleted(path)
	}
	return rc
}

func shimClose(tls *libc.TLS, pFile uintptr) int32 {
	f := fileOf(pFile)
	shim.mu.Lock()
	delete(shim.files, pFile)
	shim.mu.Unlock()
	// The system's close clears the file by its own table.
	(*sqlite3.Tsqlite3_file)(ptr(pFile)).FpMethods = f.methods
	return call[closeFn](f.table().FxClose)(tls, pFile)
}

func shimRead(tls *libc.TLS, pFile, buf uintptr, n int32, off int64) int32 {
	f := fileOf(pFile)
	if rc := f.disk.before(OpRead, f.path, off, n); rc != 0 {
		return sqlite3.SQLITE_IOERR_READ
	}
	return call[ioFn](f.table().FxRead)(tls, pFile, buf, n, off)
}

func shimWrite(tls *libc.TLS, pFile, buf uintptr, n int32, off int64) int32 {
	f := fileOf(pFile)
	data := unsafe.Slice((*byte)(ptr(buf)), n)
	switch f.disk.before(OpWrite, f.path, off, n) {
	case NoSpace:
		return sqlite3.SQLITE_FULL
	case IOError:
		return sqlite3.SQLITE_IOERR_WRITE
	case ShortWrite:
		if n > 1 {
			half := n / 2
			if rc := call[ioFn](f.table().FxWrite)(tls, pFile, buf, half, off); rc == sqlite3.SQLITE_OK {
				f.disk.wrote(f.path, off, data[:half])
			}
		}
		return sqlite3.SQLITE_IOERR_WRITE
	}
	rc := call[ioFn](f.table().FxWrite)(tls, pFile, buf, n, off)
	if rc == sqlite3.SQLITE_OK {
		f.disk.wrote(f.path, off, data)
	}
	return rc
}

func shimTruncate(tls *libc.TLS, pFile uintptr, size int64) int32 {
	f := fileOf(pFile)
	if rc := f.disk.before(OpTruncate, f.path, size, 0); rc != 0 {
		return sqlite3.SQLITE_IOERR_TRUNCATE
	}
	rc := call[truncateFn](f.table().FxTruncate)(tls, pFile, size)
	if rc == sqlite3.SQLITE_OK {
		f.disk.truncated(f.path, size)
	}
	return rc
}

func shimSync(tls *libc.TLS, pFile uintptr, flags int32) int32 {
	f := fileOf(pFile)
	if rc := f.disk.before(OpSync, f.path, 0, 0); rc != 0 {
		return sqlite3.SQLITE_IOERR_FSYNC
	}
	rc := call[syncFn](f.table().FxSync)(tls, pFile, flags)
	if rc == sqlite3.SQLITE_OK {
		f.disk.synced(f.path)
	}
	return rc
}
