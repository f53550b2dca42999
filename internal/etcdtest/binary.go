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

// Version is the etcd release that [Build] builds.
const Version = "3.7.3"

// packages maps each program to its main package.
var packages = map[string]string{
	"etcd":    "go.etcd.io/etcd/server/v3",
	"etcdctl": "go.etcd.io/etcd/etcdctl/v3",
	"etcdutl": "go.etcd.io/etcd/etcdutl/v3",
}

// Binary returns the path of etcd, etcdctl or etcdutl. A failure to build it
// fails the test.
func Binary(tb testing.TB, name string) string {
	tb.Helper()
	path, err := Build(tb.Context(), name)
	if err != nil {
		tb.Fatal(err)
	}
	return path
}

// Build returns the path of etcd, etcdctl or etcdutl in the user's cache, and
// builds it first if it is not there. Processes that ask at the same time wait
// for one build.
func Build(ctx context.Context, name string) (string, error) {
	pkg, ok := packages[name]
	if !ok {
		return "", fmt.Errorf("build %q: want etcd, etcdctl or etcdutl", name)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("build %s: %w", name, err)
	}
	dir := filepath.Join(cache, "heliograph", "etcd-v"+Version)
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("build %s: %w", name, err)
	}
	unlock, err := lock(path + ".lock")
	if err != nil {
		return "", fmt.Errorf("build %s: %w", name, err)
	}
	defer unlock()
	if _, err := os.Stat(path); err == nil {
		return path, nil // built while this process waited for the lock
	}
	if err := compile(ctx, pkg, path); err != nil {
		return "", fmt.Errorf("build %s: %w", name, err)
	}
	return path, nil
}

// compile builds pkg beside path and renames the result, so that a build that
// is cut short leaves nothing that looks like a program.
func compile(ctx context.Context, pkg, path string) error {
	_, file, _, _ := runtime.Caller(0)
	module := filepath.Join(filepath.Dir(file), "binaries")
	if _, err := os.Stat(filepath.Join(module, "go.mod")); err != nil {
		return fmt.Errorf("the module that pins etcd is not found (built with -trimpath?): %w", err)
	}
	tmp := path + ".building"
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-o", tmp, pkg)
	cmd.Dir = module
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
