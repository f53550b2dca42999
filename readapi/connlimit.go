package readapi

import (
	"net"
	"sync"
	"sync/atomic"
)

// connLimit is a listener that closes connections beyond a limit as soon as
// they are accepted, so that their clients learn of it and try elsewhere
// instead of waiting in the kernel's queue.
type connLimit struct {
	net.Listener
	max     int64
	open    atomic.Int64
	metrics *metrics
}

func newConnLimit(lis net.Listener, limit int, m *metrics) *connLimit {
	return &connLimit{Listener: lis, max: int64(limit), metrics: m}
}

// Accept implements [net.Listener].
func (l *connLimit) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.open.Add(1) <= l.max {
			l.metrics.connections.Inc()
			return &limitedConn{Conn: c, limit: l}, nil
		}
		l.open.Add(-1)
		l.metrics.connectionsRefused.Inc()
		c.Close()
	}
}

// limitedConn gives its place back when it is closed.
type limitedConn struct {
	net.Conn
	limit *connLimit
	once  sync.Once
}

// Close implements [net.Conn].
func (c *limitedConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() {
		c.limit.open.Add(-1)
		c.limit.metrics.connections.Dec()
	})
	return err
}
