package readapi

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"time"

	"go.etcd.io/etcd/api/v3/version"
)

// Limits of the HTTP endpoints, whose callers are probes.
const (
	webTimeout     = 10 * time.Second
	webHeaderBytes = 16 << 10
)

// webServer answers /health and /version as etcd does, to anyone: they tell
// nothing of the data.
func (s *Server) webServer() *http.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", s.webHealth)
	mux.HandleFunc("GET /version", s.webVersion)
	return &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: webTimeout,
		ReadTimeout:       webTimeout,
		WriteTimeout:      s.cfg.ReadTimeout + webTimeout,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    webHeaderBytes,
		ErrorLog:          slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug),
	}
}

// healthReport is etcd's answer to /health.
type healthReport struct {
	Health string `json:"health"` // "true" or "false"
	Reason string `json:"reason"` // empty if "true"
}

// webHealth says whether a read would be answered: a linearizable one, or with
// ?serializable=true any. A mirror has no alarms to exclude.
func (s *Server) webHealth(w http.ResponseWriter, r *http.Request) {
	report, code := healthReport{Health: "true"}, http.StatusOK
	if err := s.fresh(r.Context(), r.URL.Query().Get("serializable") == "true"); err != nil {
		report, code = healthReport{Health: "false", Reason: "RANGE ERROR:" + err.Error()}, http.StatusServiceUnavailable
	}
	s.webJSON(w, code, report)
}

// webVersion says that this is an etcd of the source's version.
func (s *Server) webVersion(w http.ResponseWriter, _ *http.Request) {
	v := s.cfg.etcdVersion()
	answer := version.Versions{Server: v, Cluster: version.Cluster(v) + ".0", Storage: storageVersion(v)}
	if answer.Storage == "" {
		answer.Storage = "unknown"
	}
	s.webJSON(w, http.StatusOK, &answer)
}

func (s *Server) webJSON(w http.ResponseWriter, code int, answer any) {
	b, err := json.Marshal(answer)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	if _, err := w.Write(b); err != nil {
		s.cfg.Log.Debug("answer not sent", "err", err)
	}
}
