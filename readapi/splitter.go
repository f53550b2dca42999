package readapi

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
)

// grpcBegins is how every HTTP/2 connection begins, and no request of HTTP/1.
const grpcBegins = "PRI "

// protocols is what the server offers over TLS, in the order of its choice. A
// client that knows HTTP/1.1 too is a browser or curl, and wants a page; gRPC
// clients know nothing but h2. Should one of them name both, it goes on with
// HTTP/2 all the same, and how a connection begins counts.
var protocols = []string{"http/1.1", "h2"}

// splitter accepts connections, completes TLS, and hands gRPC and plain HTTP to
// a server each. gRPC's own transport keeps its speed: it gets the connection
// itself.
//
//	listener ─► TLS ─► first bytes ─┬─► grpc
//	                                └─► http
type splitter struct {
	lis  net.Listener
	tls  *tls.Config // nil: clear text
	grpc *lane
	http *lane

	ctx    context.Context // ends at close
	cancel context.CancelFunc
	all    context.Context // ends every connection, whoever has it
	cut    context.CancelFunc
	wg     sync.WaitGroup // connections whose kind is not known yet
}

func newSplitter(lis net.Listener, conf *tls.Config) *splitter {
	ctx, cancel := context.WithCancel(context.Background())
	s := &splitter{lis: lis, tls: offering(conf), ctx: ctx, cancel: cancel}
	s.all, s.cut = context.WithCancel(context.Background())
	s.grpc, s.http = newLane(s), newLane(s)
	return s
}

// offering returns a configuration that offers our protocols, also where it is
// chosen for each client.
func offering(conf *tls.Config) *tls.Config {
	if conf == nil {
		return nil
	}
	conf = conf.Clone()
	conf.NextProtos = protocols
	if choose := conf.GetConfigForClient; choose != nil {
		conf.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			chosen, err := choose(hello)
			if chosen != nil {
				chosen = chosen.Clone()
				chosen.NextProtos = protocols
			}
			return chosen, err
		}
	}
	return conf
}

// close ends accepting, and connections whose kind is not known yet.
func (s *splitter) close() {
	s.cancel()
	s.lis.Close()
}

// run accepts until the listener is closed or fails. When it returns, everything
// that it started has ended.
func (s *splitter) run() {
	defer s.wg.Wait()
	pause := time.Duration(0)
	for {
		c, err := s.lis.Accept()
		if err == nil {
			pause = 0
			s.wg.Go(func() { s.sort(c) })
			continue
		}
		// Too many open files, say: others close some.
		if passing, ok := errors.AsType[interface {
			error
			Temporary() bool
		}](err); ok && passing.Temporary() && s.ctx.Err() == nil {
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			select {
			case <-time.After(pause):
			case <-s.ctx.Done():
			}
			continue
		}
		s.cancel()
		s.grpc.end(err)
		s.http.end(err)
		return
	}
}

// sort hands a connection on, or closes it.
func (s *splitter) sort(c net.Conn) {
	stop := context.AfterFunc(s.ctx, func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(handshakeTimeout))
	begun, err := s.begin(c)
	if err == nil {
		_ = c.SetDeadline(time.Time{})
	}
	if !stop() || err != nil {
		if begun != nil {
			begun.Close()
		}
		c.Close()
		return
	}
	to := s.http
	if string(begun.head) == grpcBegins {
		to = s.grpc
	}
	to.put(begun)
}

func (s *splitter) begin(c net.Conn) (*begunConn, error) {
	b := &begunConn{Conn: c, head: make([]byte, len(grpcBegins))}
	if s.tls != nil {
		secured := tls.Server(c, s.tls)
		if err := secured.HandshakeContext(s.ctx); err != nil {
			return nil, err
		}
		b.Conn, b.tls = secured, true
		b.state = secured.ConnectionState()
	}
	_, err := io.ReadFull(b.Conn, b.head)
	b.stop = context.AfterFunc(s.all, func() { b.Conn.Close() })
	return b, err
}

// begunConn is a connection of which the first bytes have been read.
type begunConn struct {
	net.Conn
	head  []byte // read, and not yet handed out
	tls   bool
	state tls.ConnectionState // with tls
	stop  func() bool         // takes it back from splitter.all
}

// Close implements [net.Conn].
func (c *begunConn) Close() error {
	c.stop()
	return c.Conn.Close()
}

// Read implements [net.Conn].
func (c *begunConn) Read(p []byte) (int, error) {
	if len(c.head) == 0 {
		return c.Conn.Read(p)
	}
	n := copy(p, c.head)
	c.head = c.head[n:]
	return n, nil
}

// lane is the listener of one of the servers behind a splitter. To close it is
// to close the splitter.
type lane struct {
	of    *splitter
	conns chan net.Conn
	done  chan struct{} // closed when err is set
	err   error
}

func newLane(s *splitter) *lane {
	return &lane{of: s, conns: make(chan net.Conn), done: make(chan struct{})}
}

func (l *lane) put(c net.Conn) {
	select {
	case l.conns <- c:
	case <-l.of.ctx.Done():
		c.Close()
	}
}

func (l *lane) end(err error) {
	l.err = err
	close(l.done)
}

// Accept implements [net.Listener].
func (l *lane) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, l.err
	}
}

// Close implements [net.Listener].
func (l *lane) Close() error { l.of.close(); return nil }

// Addr implements [net.Listener].
func (l *lane) Addr() net.Addr { return l.of.lis.Addr() }

// begunTLS tells gRPC of the TLS that the splitter has completed.
type begunTLS struct {
	credentials.TransportCredentials
}

func newBegunTLS(conf *tls.Config) begunTLS { return begunTLS{credentials.NewTLS(conf)} }

// ServerHandshake implements [credentials.TransportCredentials].
func (t begunTLS) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	begun, ok := c.(*begunConn)
	if !ok || !begun.tls {
		return nil, nil, errors.New("a connection without TLS")
	}
	return c, credentials.TLSInfo{
		State:          begun.state,
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
	}, nil
}

// Clone implements [credentials.TransportCredentials].
func (t begunTLS) Clone() credentials.TransportCredentials {
	return begunTLS{t.TransportCredentials.Clone()}
}
