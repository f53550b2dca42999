package zaplog_test

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"go.uber.org/zap"

	"github.com/heliograph/heliograph/internal/zaplog"
)

func capture(level slog.Level) (*zap.Logger, *bytes.Buffer) {
	var buf bytes.Buffer
	h := slog.NewTextHandler(&buf, &slog.HandlerOptions{Level: level})
	return zaplog.New(slog.New(h)), &buf
}

func TestLevels(t *testing.T) {
	lg, buf := capture(slog.LevelDebug)
	lg.Debug("debug")
	lg.Info("info")
	lg.Warn("warn")
	lg.Error("error")
	for _, want := range []string{"level=DEBUG msg=info", "level=WARN msg=warn", "level=ERROR msg=error"} {
		if !strings.Contains(buf.String(), want) {
			t.Errorf("log lacks %q:\n%s", want, buf)
		}
	}
	if strings.Contains(buf.String(), "msg=debug") {
		t.Errorf("debug entry was written:\n%s", buf)
	}

	lg, buf = capture(slog.LevelWarn)
	lg.Info("info")
	if buf.Len() != 0 {
		t.Errorf("info was written at warn: %s", buf)
	}
}

func TestPanicIsLoggedFirst(t *testing.T) {
	lg, buf := capture(slog.LevelInfo)
	func() {
		defer func() {
			if recover() == nil {
				t.Error("Panic did not panic")
			}
		}()
		lg.Panic("failed to open database", zap.Error(errors.New("no such file")))
	}()
	for _, want := range []string{"level=ERROR", "etcd_level=panic", "no such file"} {
		if !strings.Contains(buf.String(), want) {
			t.Errorf("log lacks %q: %s", want, buf)
		}
	}
}

func TestUserDataStaysOut(t *testing.T) {
	lg, buf := capture(slog.LevelDebug)
	lg = lg.With(zap.String("key", "secret"), zap.String("path", "/data/x.db"))
	lg.Error("failed", zap.Binary("end", []byte("secret")), zap.ByteString("value", []byte("secret")),
		zap.Any("panic", []string{"secret"}), zap.Strings("keys", []string{"secret"}),
		zap.Int64("revision-main", 7), zap.Bool("ok", true))
	if got := buf.String(); strings.Contains(got, "secret") || strings.Contains(got, "c2VjcmV0") {
		t.Errorf("user data in the log: %s", got)
	}
	for _, want := range []string{"path=/data/x.db", "revision-main=7", "ok=true"} {
		if !strings.Contains(buf.String(), want) {
			t.Errorf("log lacks %q: %s", want, buf)
		}
	}
}

func TestNilDiscards(t *testing.T) {
	zaplog.New(nil).Error("nothing happens")
}
