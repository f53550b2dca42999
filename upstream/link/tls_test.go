package link_test

import (
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/heliograph/heliograph/upstream/link"
)

// Every mistake with certificates is named, with the way out.
func TestTLSTrouble(t *testing.T) {
	for _, test := range []struct {
		name string
		edit func(w *world, server, client *tls.Config)
		want string
	}{
		{"foreign CA", func(w *world, server, _ *tls.Config) {
			server.Certificates = []tls.Certificate{newPKI(w.t).issue(w.t, "prod-us", time.Hour)}
		}, "signed by a CA that is not in our --ca file"},
		{"other cluster", func(w *world, server, _ *tls.Config) {
			server.Certificates = []tls.Certificate{w.pki.issue(w.t, "prod-eu", time.Hour)}
		}, "its certificate is for prod-eu and the address names cluster prod-us"},
		{"expired", func(w *world, server, _ *tls.Config) {
			server.Certificates = []tls.Certificate{w.pki.issue(w.t, "prod-us", -time.Minute)}
		}, "is not valid now: renew it"},
		{"the owner's check", func(w *world, _, client *tls.Config) {
			client.VerifyConnection = func(tls.ConnectionState) error { return errors.New("its role is mirror, which may not be followed") }
		}, "is not trusted (CRYPTO_ERROR 0x12a (local): its role is mirror, which may not be followed"},
		{"no certificate", func(w *world, _, client *tls.Config) { client.Certificates = nil }, "we showed none: set --cert and --key"},
		{"our CA unknown", func(w *world, server, _ *tls.Config) { server.ClientCAs = newPKI(w.t).pool }, "refused us: "},
		{"ours expired", func(w *world, _, client *tls.Config) {
			client.Certificates = []tls.Certificate{w.pki.issue(w.t, nodeID, -time.Minute)}
		}, "our certificate has expired"},
		{"other protocol", func(w *world, server, _ *tls.Config) { server.NextProtos = []string{"h3"} }, "does not speak heliograph/1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			server, client := w.pki.server(t, "prod-us", time.Hour), w.pki.client(t)
			test.edit(w, server, client)
			w.cfg.TLS = func() *tls.Config { return client }
			socket, err := net.ListenPacket("udp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			w.sourceOn(socket, server, func(c *conn) { c.hold() })
			w.run()
			err = w.lost(1)
			if _, ok := errors.AsType[*link.ConfigurationError](err); !ok || !strings.Contains(err.Error(), test.want) {
				t.Errorf("lost: %v, want %q", err, test.want)
			}
		})
	}
}

func TestTLSIsAskedForEveryDial(t *testing.T) {
	w := newWorld(t)
	w.replica.at(100)
	good, calls := w.pki.client(t), 0
	w.cfg.TLS = func() *tls.Config {
		calls++
		switch calls {
		case 1:
			return nil
		case 2:
			return &tls.Config{RootCAs: newPKI(t).pool, Certificates: good.Certificates}
		}
		return good
	}
	w.source(func(c *conn) { c.accept(helloAck(101)); put(c.bulk(), upTo(t, 101, 101)); c.hold() })
	w.run()
	w.applied(101)
	if good.ServerName != "" || good.NextProtos != nil {
		t.Error("the owner's configuration was changed")
	}
}
