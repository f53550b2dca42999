package etcdtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// Newest is the etcd that tests run unless HELIO_TEST_ETCD says another of [Versions].
const Newest = "3.7"

// Versions returns the versions of etcd that can be built, the newest first.
func Versions() []string { return []string{Newest, "3.6", "3.5"} }

// releases are what is built of a version: they have to be what its module pins.
var releases = map[string]struct{ release, module string }{
	Newest: {"3.7.3", "binaries"},
	"3.6":  {"3.6.16", "binaries/v3.6"},
	"3.5":  {"3.5.35", "binaries/v3.5"},
}

// packages maps each program to its main package.
var packages = map[string]string{
	"etcd":    "go.etcd.io/etcd/server/v3",
	"etcdctl": "go.etcd.io/etcd/etcdctl/v3",
	"etcdutl": "go.etcd.io/etcd/etcdutl/v3",
}

// Release returns the release of etcd that tests run, such as 3.7.3.
func Release() string { return releases[version()].release }

func version() string {
	if v := os.Getenv("HELIO_TEST_ETCD"); v != "" {
		return v
	}
	return Newest
}

// Binary returns the path of etcd, etcdctl or etcdutl, of the version that tests
// run. A failure to build it fails the test.
func Binary(tb testing.TB, name string) string {
	tb.Helper()
	return BinaryOf(tb, version(), name)
}

// BinaryOf returns the path of a program of one of [Versions], as [Binary] does.
func BinaryOf(tb testing.TB, version, name string) string {
	tb.Helper()
	path, err := build(tb.Context(), version, name)
	if err != nil {
		tb.Fatalf("build %s of etcd %s: %v", name, version, err)
	}
	return path
}

// build returns the path of a program in the user's cache, and builds it first if
// it is not there. Processes that ask at the same time wait for one build.
func build(ctx context.Context, version, name string) (string, error) {
	pkg, ok := packages[name]
	if !ok {
		return "", errors.New("no such program: want etcd, etcdctl or etcdutl")
	}
	of, ok := releases[version]
	if !ok {
		return "", fmt.Errorf("no such version: want one of %v", Versions())
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "heliograph", "etcd-v"+of.release)
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	unlock, err := lock(path + ".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(path); err == nil {
		return path, nil // built while this process waited for the lock
	}
	return path, compile(ctx, of.module, pkg, path)
}

// compile builds pkg beside path and renames the result, so that a build that
// is cut short leaves nothing that looks like a program.
func compile(ctx context.Context, module, pkg, path string) error {
	_, file, _, _ := runtime.Caller(0)
	dir := filepath.Join(filepath.Dir(file), module)
	if _, err := os.Stat(filepath.Join(dir, "go.mod")); err != nil {
		return fmt.Errorf("the module that pins etcd is not found (built with -trimpath?): %w", err)
	}
	tmp := path + ".building"
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-o", tmp, pkg)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=-mod=readonly")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return os.Rename(tmp, path)
}

// lock takes an exclusive lock on the file at path and blocks until it has it.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, err
		}
	}
}
