package link_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/heliograph/heliograph/wire"
)

// Row 10: cut anywhere, a snapshot leaves nothing behind, and the next is whole.
func TestCutAtEveryChunk(t *testing.T) {
	w := newWorld(t)
	data := snapshotOf(42, 6*chunkBytes)
	frames := chunks(42, data)
	var scripts []script
	for n := range frames {
		scripts = append(scripts, func(c *conn) {
			c.accept(snapshotAck(42, data))
			s := c.bulk()
			put(s, frames[:n]...)
			put(s, frames[n][:len(frames[n])/2])
			w.bell.until(t, "the chunks arrive", func() bool {
				w.replica.mu.Lock()
				defer w.replica.mu.Unlock()
				return len(w.replica.received) >= min(n, 6)*chunkBytes
			})
		})
	}
	scripts = append(scripts, func(c *conn) { c.accept(snapshotAck(42, data)); c.giveSnapshot(42, data); c.hold() })
	w.source(scripts...)
	w.run()
	w.applied(42)
	w.replica.mu.Lock()
	defer w.replica.mu.Unlock()
	// A stream that was cut before its first byte arrived has begun nothing.
	if w.replica.installs != 1 || w.replica.aborts < len(frames)-1 || w.replica.aborts > len(frames) || w.replica.receiving {
		t.Errorf("%d installed, %d aborted of %d, receiving %v", w.replica.installs, w.replica.aborts, len(frames), w.replica.receiving)
	}
}

func TestBadSnapshots(t *testing.T) {
	data := snapshotOf(42, 3*chunkBytes)
	good := chunks(42, data)
	sum := wire.SnapshotEnd{Rev: 42, Size: int64(len(data))}
	end := func(f func(*wire.SnapshotEnd)) []byte {
		e := sum
		f(&e)
		return e.AppendFrame(nil)
	}
	flipped := bytes.Clone(good[1])
	flipped[len(flipped)-1] ^= 1
	for _, test := range []struct {
		name   string
		frames [][]byte
		want   string
	}{
		{"wrong sum", [][]byte{good[0], good[1], good[2], sum.AppendFrame(nil)}, "SHA-256"},
		{"wrong size", [][]byte{good[0], good[1], good[2], end(func(e *wire.SnapshotEnd) { e.Size-- })}, "the end of a snapshot"},
		{"too short", [][]byte{good[0], good[1], end(func(e *wire.SnapshotEnd) { e.Size = 2 * chunkBytes })}, "the end of a snapshot"},
		{"wrong revision", [][]byte{good[0], good[1], good[2], end(func(e *wire.SnapshotEnd) { e.Rev = 43 })}, "the end of a snapshot"},
		{"chunk left out", [][]byte{good[0], good[2]}, "at offset 2048 after 1024"},
		{"chunk twice", [][]byte{good[0], good[0]}, "at offset 0 after 1024"},
		{"too long", [][]byte{good[0], good[1], good[2], wire.AppendChunk(nil, 3*chunkBytes, []byte("x"), nil)}, "1 bytes at offset 3072"},
		{"flipped bit", [][]byte{good[0], flipped}, "checksum"},
		{"entries within", [][]byte{good[0], entries(t, 43, 43)}, "entries frame within"},
		{"frame behind", [][]byte{good[0], good[1], good[2], good[3], good[0]}, "behind the snapshot"},
		{"control frame", [][]byte{wire.Goodbye{}.AppendFrame(nil)}, "not expected"},
		{"oversize", [][]byte{{byte(wire.TypeChunk), 0xff, 0xff, 0xff, 0xff}}, "larger than"},
		{"voter frame", [][]byte{{0x80, 0, 0, 0, 0}}, "not expected"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			w.source(
				func(c *conn) {
					c.accept(snapshotAck(42, data))
					s := c.bulk()
					put(s, test.frames...)
					if s != nil {
						_ = s.Close()
					}
					c.hold()
				},
				func(c *conn) { c.accept(snapshotAck(42, data)); c.giveSnapshot(42, data); c.hold() },
			)
			w.run()
			if err := w.lost(1); !strings.Contains(err.Error(), test.want) {
				t.Errorf("lost: %v, want %q", err, test.want)
			}
			w.applied(42)
			if w.replica.installs != 1 || w.replica.aborts != 1 {
				t.Errorf("%d installed, %d aborted", w.replica.installs, w.replica.aborts)
			}
		})
	}
}

func TestSnapshotOfAnotherRevision(t *testing.T) {
	w := newWorld(t)
	w.replica.installAs = 41
	data := snapshotOf(42, chunkBytes)
	w.source(func(c *conn) { c.accept(snapshotAck(42, data)); c.giveSnapshot(42, data); c.hold() },
		func(c *conn) { c.accept(helloAck(42)); c.hold() })
	w.run()
	if err := w.lost(1); !strings.Contains(err.Error(), "holds revision 41") {
		t.Errorf("lost: %v", err)
	}
}
