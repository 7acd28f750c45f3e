package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	probeBlock  = 4 << 10
	probeWrites = 200
	// clockTick is the unit of CPU time in /proc on every Linux that Go runs on (USER_HZ).
	clockTick = 10 * time.Millisecond
)

// fsyncTimes are a probe's quantiles.
type fsyncTimes struct{ p50, p99 time.Duration }

func (t fsyncTimes) String() string {
	return fmt.Sprintf("p50 %s, p99 %s", micros(t.p50), micros(t.p99))
}

// probeDisk appends 4 KiB blocks to a file of dir and syncs each.
func probeDisk(dir string) (_ fsyncTimes, err error) {
	f, err := os.CreateTemp(dir, "fsync-")
	if err != nil {
		return fsyncTimes{}, err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	block := bytes.Repeat([]byte("tender"), probeBlock/6+1)[:probeBlock]
	var times []time.Duration
	for range probeWrites {
		began := time.Now()
		if _, err := f.Write(block); err != nil {
			return fsyncTimes{}, err
		}
		if err := syscall.Fdatasync(int(f.Fd())); err != nil {
			return fsyncTimes{}, err
		}
		times = append(times, time.Since(began))
	}
	slices.Sort(times)
	return fsyncTimes{times[probeWrites/2], times[probeWrites*99/100]}, nil
}

// diskTypes names the file systems on which somebody may measure, by statfs's magic number. On one in memory an fsync
// costs nothing, and neither do the figures.
var diskTypes = map[int64]string{0xef53: "ext4", 0x58465342: "xfs", 0x9123683e: "btrfs", 0x01021994: "tmpfs: in memory, so these figures say nothing about a disk", 0x794c7630: "overlayfs"}

func printMachine(dir string) {
	disk := "unknown"
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err == nil {
		disk = fmt.Sprintf("%#x", fs.Type)
		if name, ok := diskTypes[int64(fs.Type)]; ok {
			disk = name
		}
	}
	fmt.Printf("%d cores, %s, %s/%s, disk: %s\n", runtime.NumCPU(), runtime.Version(), runtime.GOOS, runtime.GOARCH, disk)
}

// cpuTime is what a process has used so far.
type cpuTime struct{ user, system time.Duration }

func (t cpuTime) total() time.Duration { return t.user + t.system }
func (t cpuTime) minus(earlier cpuTime) cpuTime {
	return cpuTime{t.user - earlier.user, t.system - earlier.system}
}

func processCPU(pid int) (cpuTime, error) {
	content, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return cpuTime{}, err
	}
	return parseStat(content)
}

// parseStat reads fields 14 and 15. The second field is the program's name, in parentheses, and may hold anything.
func parseStat(content []byte) (cpuTime, error) {
	fields := bytes.Fields(content[bytes.LastIndexByte(content, ')')+1:])
	if len(fields) < 13 {
		return cpuTime{}, fmt.Errorf("/proc stat: %q", content)
	}
	user, uerr := strconv.ParseInt(string(fields[11]), 10, 64)
	system, serr := strconv.ParseInt(string(fields[12]), 10, 64)
	return cpuTime{time.Duration(user) * clockTick, time.Duration(system) * clockTick}, errors.Join(uerr, serr)
}

// resident is a process's resident memory. Pages of mapped files are in it, and are the kernel's to take back at any time.
type resident struct{ all, files float64 } // MiB

func (r resident) String() string {
	return fmt.Sprintf("%.0f MiB (%.0f of it mapped files)", r.all, r.files)
}

func residentOf(pid int) (r resident, err error) {
	f, err := os.Open(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		return resident{}, err
	}
	defer f.Close()
	fields := map[string]*float64{"VmRSS": &r.all, "RssFile": &r.files}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ":")
		field := fields[name]
		if field == nil {
			continue
		}
		kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		if err != nil {
			return resident{}, fmt.Errorf("/proc status: %w", err)
		}
		*field = float64(kib) / 1024
		delete(fields, name)
	}
	if len(fields) > 0 {
		return resident{}, errors.Join(errors.New("/proc status has no VmRSS or no RssFile"), lines.Err())
	}
	return r, nil
}

func micros(d time.Duration) string {
	if d >= 10*time.Millisecond {
		return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
	}
	return fmt.Sprintf("%.0f µs", float64(d)/float64(time.Microsecond))
}

// median of a copy of vs; the middle one of an odd number, the upper of the two middle ones of an even number.
func median[T int | int64 | float64 | time.Duration](vs []T) T {
	if len(vs) == 0 {
		return 0
	}
	return slices.Sorted(slices.Values(vs))[len(vs)/2]
}

// figures takes one figure of each.
func figures[S any, T any](all []S, of func(S) T) []T {
	vs := make([]T, len(all))
	for i, s := range all {
		vs[i] = of(s)
	}
	return vs
}

// spread prints the median and, of several, the range.
func spread(format string, vs []float64) string {
	if len(vs) < 2 {
		return fmt.Sprintf(format, median(vs))
	}
	return fmt.Sprintf(format+" ("+format+"–"+format+")", median(vs), slices.Min(vs), slices.Max(vs))
}
