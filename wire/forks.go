package wire

import (
	"fmt"
	"time"

	"github.com/tinylib/msgp/msgp"

	"github.com/heliograph/heliograph"
)

// MaxAckForks is how many forks a HelloAck can tell of: what surely fits into it
// beside everything else, however long the names.
const MaxAckForks = 5

// forkFields is how many values stand for a fork:
//
//	origin str │ revision u64 │ heir str │ bump u64 │ token str │ milliseconds since 1970 u64
const forkFields = 6

func appendForks(b []byte, forks []heliograph.Fork) []byte {
	b = msgp.AppendArrayHeader(msgp.AppendString(b, "forks"), uint32(len(forks)))
	for _, f := range forks {
		b = msgp.AppendArrayHeader(b, forkFields)
		b = msgp.AppendString(b, cut(f.Origin, maxText))
		b = msgp.AppendUint64(b, uint64(f.Revision))
		b = msgp.AppendString(b, f.Heir().String())
		b = msgp.AppendUint64(b, uint64(f.Bump))
		b = msgp.AppendString(b, cut(f.Token, heliograph.MaxTokenBytes))
		b = msgp.AppendUint64(b, uint64(max(f.At.UnixMilli(), 0)))
	}
	return b
}

// forks reads what appendForks wrote. Values behind those that are known belong to
// a later version and are passed over.
func (f *fields) forks() (list []heliograph.Fork) {
	if f.err != nil {
		return nil
	}
	var n uint32
	n, f.rest, f.err = msgp.ReadArrayHeaderBytes(f.rest)
	if f.err == nil && n > MaxAckForks {
		f.err = fmt.Errorf("%w: %d forks, at most %d", ErrMalformed, n, MaxAckForks)
	}
	for range n {
		fork := f.fork()
		if f.err != nil {
			return nil
		}
		list = append(list, fork)
	}
	return list
}

func (f *fields) fork() (fork heliograph.Fork) {
	if f.err != nil {
		return fork
	}
	var n uint32
	n, f.rest, f.err = msgp.ReadArrayHeaderBytes(f.rest)
	if f.err == nil && n < forkFields {
		f.err = fmt.Errorf("%w: fork of %d values, at least %d", ErrMalformed, n, forkFields)
	}
	fork.Origin = f.str(maxText)
	fork.Revision = f.rev()
	heir := f.str(maxText)
	fork.Bump = f.rev()
	fork.Token = f.str(heliograph.MaxTokenBytes)
	at := f.rev()
	for i := uint32(forkFields); i < n && f.err == nil; i++ {
		f.skip()
	}
	if f.err != nil {
		return fork
	}
	o, err := heliograph.ParseOrigin(heir)
	if err == nil {
		fork.Cluster, fork.Database, fork.EtcdID = o.Cluster, o.Database, heliograph.EtcdID(o.EtcdID)
		fork.At = time.UnixMilli(min(at, maxForkMS)).UTC()
		err = fork.Check()
	}
	if err != nil {
		f.err = fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return fork
}

// maxForkMS is the last millisecond that JSON can write, at the end of year 9999.
const maxForkMS = 253_402_300_799_999
