package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/heliograph/heliograph"
	"github.com/heliograph/heliograph/promote"
)

// maxPromoteBytes bounds the options that come with a request.
const maxPromoteBytes = 4 << 10

// planTimeout bounds how long a plan may take: longer than its question.
const planTimeout = originWait + heliograph.MaxHosts*hostWait

// promotionRoutes adds what promotion has in the admin API:
//
//	GET  /v1/promotion?bump_revision=N&peer_url=URL   a [Plan]; for who may read the status
//	POST /v1/promote  {"force", "bump_revision", "peer_url"}  operator; a promote.Record when
//	     writes are accepted; 409 with {"error", "refusals"} if it is refused
//	POST /v1/export   [ExportOptions]                 operator; the heliograph.Fork that was written
//
// What is wrong with a request is answered with 400, what the node cannot do as it is
// with 409, and a sentence.
//
// Each may take minutes.
func (n *Node) promotionRoutes(mux *http.ServeMux, lis net.Listener) {
	mux.HandleFunc("GET /v1/promotion", func(w http.ResponseWriter, r *http.Request) {
		opts := PromoteOptions{PeerURL: r.URL.Query().Get("peer_url")}
		if bump := r.URL.Query().Get("bump_revision"); bump != "" {
			var err error
			if opts.BumpRevision, err = strconv.ParseInt(bump, 10, 64); err != nil {
				http.Error(w, fmt.Sprintf("bump_revision %.40q: want a number", bump), http.StatusBadRequest)
				return
			}
		}
		n.patience(w, planTimeout)
		answer(w, n.Plan(r.Context(), opts))
	})
	mux.HandleFunc("POST /v1/promote", func(w http.ResponseWriter, r *http.Request) {
		var opts PromoteOptions
		if !n.take(w, r, lis, &opts, &opts.By) {
			return
		}
		rec, err := n.Promote(r.Context(), opts)
		var refused *NotPromotableError
		switch {
		case errors.As(err, &refused):
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusConflict)
			answer(w, struct {
				Error    string    `json:"error"`
				Refusals []Refusal `json:"refusals"`
			}{err.Error(), refused.Refusals})
		case err != nil:
			http.Error(w, err.Error(), errorCode(err))
		default:
			answer(w, rec)
		}
	})
	mux.HandleFunc("POST /v1/export", func(w http.ResponseWriter, r *http.Request) {
		var opts ExportOptions
		if !n.take(w, r, lis, &opts, &opts.By) {
			return
		}
		fork, err := n.Export(r.Context(), opts)
		if err != nil {
			http.Error(w, err.Error(), errorCode(err))
			return
		}
		answer(w, fork)
	})
}

// conflictError is an error of what was asked for, given what the node is now: nothing
// was changed.
type conflictError struct{ error }

func (e *conflictError) Unwrap() error { return e.error }

// errorCode returns the status that err is answered with.
func errorCode(err error) int {
	if _, misused := errors.AsType[*promote.MisuseError](err); misused {
		return http.StatusBadRequest
	}
	if _, conflict := errors.AsType[*conflictError](err); conflict {
		return http.StatusConflict
	}
	if _, only := errors.AsType[*OnlyCopyError](err); only {
		return http.StatusConflict
	}
	return http.StatusInternalServerError
}

// readOptions reads what comes with a request; an [io.EOF] says that nothing does.
func readOptions(w http.ResponseWriter, r *http.Request, options any) error {
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxPromoteBytes))
	dec.DisallowUnknownFields()
	if err := dec.Decode(options); err != nil {
		return fmt.Errorf("the options cannot be read: %w", err)
	}
	return nil
}

// take reads an operator's request into options, or answers why not. The answer may
// take promoteTimeout from then on.
func (n *Node) take(w http.ResponseWriter, r *http.Request, lis net.Listener, options any, by *string) bool {
	who, err := n.operator(lis, r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return false
	}
	if err := readOptions(w, r, options); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return false
	}
	*by = who
	n.patience(w, promoteTimeout+etcdStartTimeout)
	return true
}

// patience says how long an answer may take.
func (n *Node) patience(w http.ResponseWriter, d time.Duration) {
	limit := time.Now().Add(d)
	control := http.NewResponseController(w)
	// The read deadline, too: when it passes, the request counts as given up.
	if err := errors.Join(control.SetReadDeadline(limit), control.SetWriteDeadline(limit)); err != nil {
		n.cfg.Log.Debug("a long answer without a longer deadline", "err", err)
	}
}
