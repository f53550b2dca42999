package faulttest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Of ext4: from now on nothing reaches the disk, the journal included.
const (
	ioctlShutdown     = 0x8004587d // FS_IOC_SHUTDOWN
	shutdownNoLogSync = 2
)

// loopMajor is the number of the loop devices' driver. Nothing else is ever shut
// down.
const loopMajor = 7

// detachWait is how long the kernel may take to let go of a disk whose last
// process has ended.
const detachWait = 30 * time.Second

// Disk is an ext4 file system in a file. It is mounted only for the processes that
// use it, and goes with them. It must not be mounted twice at once: see
// [Disk.WaitDetached]. Its methods belong to the goroutine of the test.
//
// What a process has written and not fsynced is in memory, and a cut loses it:
// the kernel writes it back only after half a minute or so. What was fsynced
// is in the file, and stays.
type Disk struct {
	tb          testing.TB
	image, root string
}

// NewDisk makes an empty disk. Without the right to mount it, the test is
// skipped.
func NewDisk(tb testing.TB, bytes int64) *Disk {
	tb.Helper()
	if os.Getuid() != 0 {
		tb.Skip("needs root, to mount a file system")
	}
	d := &Disk{tb: tb, image: filepath.Join(tb.TempDir(), "disk.img"), root: tb.TempDir()}
	err := os.WriteFile(d.image, nil, 0o600)
	if err == nil {
		err = os.Truncate(d.image, bytes)
	}
	if err != nil {
		tb.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", d.image).CombinedOutput(); err != nil {
		tb.Skipf("needs mkfs.ext4: %v\n%s", err, out)
	}
	if out, err := d.Command("true").CombinedOutput(); err != nil {
		tb.Skipf("needs loop mounts in a mount namespace: %v\n%s", err, out)
	}
	d.WaitDetached()
	return d
}

// Path returns where a file of the disk is, for those processes that have it.
func (d *Disk) Path(elem ...string) string {
	return filepath.Join(append([]string{d.root}, elem...)...)
}

// mounted is a script that mounts its first argument on the second and becomes the
// program named by the rest.
const mounted = `mount -o loop "$1" "$2" && shift 2 && exec "$@"`

// Command returns a command for which the disk is mounted.
func (d *Disk) Command(name string, args ...string) *exec.Cmd {
	return exec.Command("unshare", append([]string{"--mount", "sh", "-c", mounted, "sh", d.image, d.root, name}, args...)...)
}

// Run runs a command for which the disk is mounted, and waits until it is free
// again. A failure fails the test.
func (d *Disk) Run(name string, args ...string) {
	d.tb.Helper()
	out, err := d.Command(name, args...).CombinedOutput()
	d.WaitDetached()
	if err != nil {
		d.tb.Fatalf("%s: %v\n%s", name, err, out)
	}
}

// Program returns the path of a program that is binary, but has the disk mounted.
// It keeps its process id all the way.
func (d *Disk) Program(binary string) string {
	d.tb.Helper()
	path := filepath.Join(d.tb.TempDir(), filepath.Base(binary))
	script := fmt.Sprintf("#!/bin/sh\nexec unshare --mount sh -c '%s' sh '%s' '%s' '%s' \"$@\"\n", mounted, d.image, d.root, binary)
	if err := os.WriteFile(path, []byte(script), 0o700); err != nil {
		d.tb.Fatal(err)
	}
	return path
}

// Cut loses what the disk has not been told to keep. The process with that id is
// one that has it mounted; it goes on, and every write of it fails.
func (d *Disk) Cut(pid int) {
	d.tb.Helper()
	if err := CutPower(filepath.Join("/proc", strconv.Itoa(pid), "root", d.root)); err != nil {
		d.tb.Fatal(err)
	}
}

// CutPower loses what the file system that is mounted at dir has not been told to
// keep. It refuses to do that to anything but a loop device.
func CutPower(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("cut the power: %w", err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("cut the power of %s: %w", dir, err)
	}
	if unix.Major(st.Dev) != loopMajor {
		return fmt.Errorf("cut the power of %s: no loop device is mounted there", dir)
	}
	if err := unix.IoctlSetPointerInt(int(f.Fd()), ioctlShutdown, shutdownNoLogSync); err != nil {
		return fmt.Errorf("cut the power of %s: %w", dir, err)
	}
	return nil
}

// WaitDetached waits until the disk is mounted nowhere. The kernel unmounts it a
// moment after the last of its processes has been waited for; who mounts it before
// that gets the file system that was shut down.
func (d *Disk) WaitDetached() {
	d.tb.Helper()
	for deadline := time.Now().Add(detachWait); ; time.Sleep(time.Millisecond) {
		attached, err := d.attached()
		if err != nil {
			d.tb.Fatal(err)
		}
		if !attached {
			return
		}
		if time.Now().After(deadline) {
			d.tb.Fatalf("%s is still mounted somewhere after %s", d.image, detachWait)
		}
	}
}

func (d *Disk) attached() (bool, error) {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return false, err
	}
	for _, f := range files {
		name, err := os.ReadFile(f)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENXIO) {
			continue // detached meanwhile
		}
		if err != nil {
			return false, err
		}
		// A file that was removed has more behind its name.
		if bytes.HasPrefix(name, []byte(d.image)) {
			return true, nil
		}
	}
	return false, nil
}
