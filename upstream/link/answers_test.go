package link_test

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/upstream/link"
)

// A source answers if it has a history to send, whichever. Nothing of it is taken.
func TestAnswers(t *testing.T) {
	accept := func(c *conn) { c.accept(helloAck(101)); put(c.bulk(), upTo(t, 101, 101)); c.hold() }
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	nobody := silent.LocalAddr().String()
	for _, test := range []struct {
		name   string
		hosts  []string // before the source
		script script
		want   string // why it does not; "": it does
	}{
		{"accepted", nil, accept, ""},
		{"another history", nil, func(c *conn) { c.refuse(heliograph.CodeDiverged, "another") }, ""},
		{"another origin", nil, func(c *conn) {
			ack := helloAck(100)
			ack.Origin = "prod-us/default@def"
			c.accept(ack)
			c.hold()
		}, ""},
		{"the first is silent", []string{nobody}, accept, ""},
		{"not ready", nil, func(c *conn) { c.refuse(heliograph.CodeNotReady, "nothing here yet") }, "nothing here yet"},
		{"not authorized", nil, func(c *conn) { c.refuse(heliograph.CodeNotAuthorized, "not you") }, "not you"},
		{"nobody", []string{nobody}, nil, "no answer from " + nobody},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			w.replica.at(100)
			w.cfg.Address.Hosts = test.hosts
			if test.script != nil {
				w.source(test.script)
			}
			l, err := link.New(w.cfg)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			if err := l.Answers(ctx); (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
			if w.replica.Applied() != 100 || len(w.reporter.connected) > 0 {
				t.Error("it was followed")
			}
		})
	}
}
