package etcd_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/internal/etcdtest"
	"github.com/heliograph/heliograph/upstream/etcd"
)

// unanswered reports whether an error says that nothing has answered.
func unanswered(err error) bool {
	_, ok := errors.AsType[*heliograph.UnansweredError](err)
	return ok
}

// readIndex returns what ReadIndex says, and fails the test if it takes as long as
// no pause may.
func (r *rig) readIndex() (rev int64, err error) {
	r.tb.Helper()
	answered := make(chan struct{})
	go func() { // waited for below
		rev, err = r.up.ReadIndex(r.tb.Context())
		close(answered)
	}()
	select {
	case <-answered:
	case <-time.After(patience):
		r.tb.Fatal("ReadIndex does not return")
	}
	return rev, err
}

// A node that waits for its next try asks at once when somebody wants to know, and
// says whether nothing has answered, at no endpoint.
func TestReadIndexDoesNotWaitForTheNextTry(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Options{Members: 3})
	r := newRig(t, c)
	r.cfg.RetryBase, r.cfg.RetryCap = 1000*time.Hour, 1000*time.Hour
	rev := etcdtest.Fill(t, c.Client(t), 100)
	r.start()
	r.reaches(rev)
	for _, m := range c.Members() {
		m.Kill()
	}
	r.until("lost", func() bool { return r.heard.why() != nil })
	if rev, err := r.readIndex(); !unanswered(err) || !strings.Contains(err.Error(), "no answer from etcd at ") {
		t.Errorf("of a dead etcd: %d, %v", rev, err)
	}
	c.Restart(t)
	if rev, err := r.readIndex(); rev < 100 || err != nil {
		t.Errorf("of an etcd that is back: %d, %v", rev, err)
	}
	r.reaches(etcdtest.Fill(t, c.Client(t), 10)) // and it is followed again
}

// An etcd that stands still is asked, and does not answer.
func TestReadIndexOfAPausedEtcd(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Options{})
	r := newRig(t, c)
	r.cfg.Silence = time.Second
	r.start()
	r.reaches(etcdtest.Fill(t, c.Client(t), 10))
	c.Member(0).Pause()
	defer c.Member(0).Resume()
	r.until("silent", func() bool { return r.heard.why() != nil })
	if rev, err := r.readIndex(); !unanswered(err) {
		t.Errorf("%d, %v", rev, err)
	}
}

// Whoever refuses, or is another etcd, is there.
func TestReadIndexOfAnEtcdThatIsNotFollowed(t *testing.T) {
	t.Run("denied", func(t *testing.T) {
		c := etcdtest.Start(t, etcdtest.Options{})
		r := newRig(t, c)
		c.EnableAuth(t, "secret")
		r.start()
		_, err := r.readIndex()
		if _, denied := errors.AsType[*etcd.DeniedError](err); !denied || unanswered(err) {
			t.Errorf("%v", err)
		}
	})
	t.Run("other certificates", func(t *testing.T) {
		c := etcdtest.Start(t, etcdtest.Options{TLS: true})
		r := newRig(t, c)
		r.cfg.TLS = nil
		r.start()
		if _, err := r.readIndex(); err == nil || unanswered(err) {
			t.Errorf("%v", err)
		}
	})
	t.Run("created anew", func(t *testing.T) {
		c := etcdtest.Start(t, etcdtest.Options{})
		r := newRig(t, c)
		story(t, c.Client(t), 2, 50, 0)
		r.start()
		r.reaches(50)
		c.Wipe(t)
		c.Restart(t)
		story(t, c.Client(t), 2, 60, 20)
		r.diverged()
		if _, err := r.readIndex(); err == nil || unanswered(err) || !strings.Contains(err.Error(), "diverged") {
			t.Errorf("%v", err)
		}
	})
}
