package node

import (
	"context"
	"time"

	"github.com/heliograph/heliograph"
)

// Verifier lets tests see how verifications are shared.
type Verifier struct{ v verifier }

// NewVerifier returns one that is not running.
func NewVerifier(interval time.Duration, once func(context.Context) heliograph.Verification, current func(heliograph.Verification) bool) *Verifier {
	return &Verifier{verifier{
		once: once, current: current, ended: func(heliograph.Verification) {},
		interval: interval, wake: make(chan struct{}, 1),
	}}
}

func (v *Verifier) Run(ctx context.Context) { v.v.run(ctx) }

func (v *Verifier) Ask(ctx context.Context, shared bool) heliograph.Verification {
	return v.v.ask(ctx, shared)
}

func (v *Verifier) Forget() { v.v.forget() }

func (v *Verifier) Results() (last, good heliograph.Verification) { return v.v.results() }
