package link_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/quic-go/quic-go"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/wire"
)

func TestBadEntries(t *testing.T) {
	flipped := upTo(t, 101, 102)
	flipped[len(flipped)-1] ^= 1
	half := func() []byte {
		var e wire.EntriesEncoder
		if err := e.Add(key(101, 0), nil); err != nil {
			t.Fatal(err)
		}
		return e.AppendFrame(nil, 101, true, nil)
	}()
	for _, test := range []struct {
		name   string
		frames [][]byte
		stays  int64
		want   string
	}{
		{"gap at the start", [][]byte{upTo(t, 102, 103)}, 100, "do not follow"},
		{"duplicate at the start", [][]byte{upTo(t, 100, 103)}, 100, "do not follow"},
		{"gap between frames", [][]byte{upTo(t, 101, 102), upTo(t, 104, 105)}, 102, "do not follow"},
		{"frame twice", [][]byte{upTo(t, 101, 102), upTo(t, 101, 102)}, 102, "do not follow"},
		{"frames swapped", [][]byte{upTo(t, 103, 104), upTo(t, 101, 102)}, 100, "do not follow"},
		{"gap within a frame", [][]byte{entries(t, 103, 101, 103)}, 100, "malformed"},
		{"duplicate within a frame", [][]byte{entries(t, 103, 101, 101)}, 100, "malformed"},
		{"order within a frame", [][]byte{entries(t, 103, 102, 101)}, 100, "malformed"},
		{"revision that is not ended", [][]byte{half, upTo(t, 102, 102)}, 100, "do not follow"},
		{"flipped bit", [][]byte{flipped}, 100, "checksum"},
		{"snapshot chunk", [][]byte{wire.AppendChunk(nil, 0, []byte("x"), nil)}, 100, "snapshot-chunk frame among"},
		{"oversize", [][]byte{{byte(wire.TypeEntries), 0xff, 0xff, 0xff, 0xff}}, 100, "larger than"},
		{"garbage", [][]byte{bytes.Repeat([]byte{0x5a}, 100)}, 100, "not expected"},
		{"empty", [][]byte{{byte(wire.TypeEntries), 0, 0, 0, 0}}, 100, "malformed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			w.replica.at(100)
			src := w.source(
				func(c *conn) { c.accept(helloAck(105)); put(c.bulk(), test.frames...); c.hold() },
				func(c *conn) { c.refuse(heliograph.CodeDiverged, "enough") },
			)
			l := w.run()
			if err := w.lost(1); !strings.Contains(err.Error(), test.want) {
				t.Errorf("lost: %v, want %q", err, test.want)
			}
			if err := l.wait(t); err == nil {
				t.Error("Run returned nil")
			}
			if got := w.replica.Applied(); got != test.stays {
				t.Errorf("applied %d, want %d", got, test.stays)
			}
			if app, ok := errors.AsType[*quic.ApplicationError](context.Cause(src.conn(0).Context())); !ok || app.ErrorCode != quic.ApplicationErrorCode(heliograph.CodeProtocol) {
				t.Errorf("the source was told %v", context.Cause(src.conn(0).Context()))
			}
		})
	}
}

// Row 8: a revision of several frames is one batch.
func TestRevisionOverSeveralFrames(t *testing.T) {
	w := newWorld(t)
	w.replica.at(100)
	w.source(func(c *conn) {
		c.accept(helloAck(101))
		s := c.bulk()
		for sub := range int64(3) {
			var e wire.EntriesEncoder
			if err := e.Add(key(101, sub), []byte("v")); err != nil {
				t.Error(err)
			}
			put(s, e.AppendFrame(nil, 101, sub < 2, nil))
		}
		c.hold()
	})
	w.run()
	w.applied(101)
	if w.replica.records != 3 || len(w.replica.batches) != 1 {
		t.Errorf("%d records in %d batches", w.replica.records, len(w.replica.batches))
	}
}
