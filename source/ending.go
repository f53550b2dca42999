package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/wire"
)

const (
	// goodbyeWait bounds the last frame of a connection, lingerWait how long
	// the peer has to read it: closing drops what is still on its way.
	goodbyeWait = 500 * time.Millisecond
	lingerWait  = time.Second
	// reasonBytes is what surely fits into the packet that closes a connection.
	reasonBytes = 512
)

// ending is why the source ends a connection; the mirror is told.
type ending struct {
	code   heliograph.Code
	detail string
	origin string // session.Decision.Origin
}

func end(code heliograph.Code, format string, args ...any) *ending {
	return &ending{code: code, detail: fmt.Sprintf(format, args...)}
}

func (e *ending) Error() string { return e.code.String() + ": " + e.detail }

// errLeft says that the mirror went on its own account.
var errLeft = errors.New("the mirror left")

// endingOf turns the error that ended a session into what the mirror is told;
// nil if there is nobody to tell. life is that of the server.
func endingOf(life context.Context, err error) *ending {
	if e, ok := errors.AsType[*ending](err); ok {
		return e
	}
	if life.Err() != nil {
		return end(heliograph.CodeShuttingDown, "the source is stopping")
	}
	return nil
}

// closeConn sends a last message, if there is one, waits until the peer has gone
// or had time to read it, and closes the connection.
func closeConn(conn *quic.Conn, stream *quic.Stream, last wire.Message, e *ending) {
	if stream != nil && last != nil {
		_ = stream.SetWriteDeadline(time.Now().Add(goodbyeWait))
		if _, err := stream.Write(last.AppendFrame(nil)); err == nil {
			_ = stream.Close()
			linger := time.NewTimer(lingerWait)
			defer linger.Stop()
			select {
			case <-conn.Context().Done():
			case <-linger.C:
			}
		}
	}
	_ = conn.CloseWithError(quic.ApplicationErrorCode(e.code), e.detail[:min(len(e.detail), reasonBytes)])
}

// frameEnding turns an error of reading a control frame of type t into what the
// mirror is told. The errors of a lost connection stay what they are.
func frameEnding(t wire.Type, err error) error {
	for _, bad := range []error{wire.ErrTooLarge, wire.ErrUnexpected, wire.ErrMalformed, wire.ErrChecksum, io.ErrUnexpectedEOF} {
		if errors.Is(err, bad) {
			if t.Voter() {
				return end(wire.CodeOf(t, err), "an observer does not vote, propose or change the membership: %v", err)
			}
			return end(wire.CodeOf(t, err), "%v", err)
		}
	}
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: its control stream ended", errLeft)
	}
	return err
}
