package etcd_test

import (
	"context"
	"testing"
	"time"

	"github.com/heliograph/heliograph/internal/etcdtest"
	"github.com/heliograph/heliograph/upstream/etcd"
)

// Etcd answers if any endpoint does and has a majority; nothing is followed for it.
func TestAnswers(t *testing.T) {
	c := etcdtest.Start(t, etcdtest.Options{Members: 3})
	r := newRig(t, c)
	answers := func(endpoints ...string) error {
		t.Helper()
		cfg := r.cfg
		cfg.Endpoints = endpoints
		up, err := etcd.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		return up.Answers(ctx)
	}
	all := c.Endpoints()
	if err := answers(all...); err != nil {
		t.Error(err)
	}
	c.Member(0).Pause()
	if err := answers(all...); err != nil {
		t.Errorf("with one member of three silent: %v", err)
	}
	c.Member(1).Kill()
	if err := answers(all...); err == nil {
		t.Error("one member of three answers")
	}
	if r.store.Applied() != 0 || r.heard.view().addr != "" {
		t.Errorf("it was followed: %s", r.heard)
	}
}
