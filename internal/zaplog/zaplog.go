// Package zaplog lets etcd's libraries, which log to zap, write to a
// [slog.Logger].
//
// etcd puts keys of users into some of its fields. They must not reach a log,
// so a field is kept only if its type cannot hold them (numbers, times, errors)
// or its name is known to be harmless; the others are left out.
package zaplog

import (
	"context"
	"log/slog"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// New returns a zap logger that writes to log; nil discards. What etcd calls
// information is debugging to us. Debug entries are dropped before they are
// built. Panic and Fatal are errors in the log and still end the goroutine or
// the process afterwards, as etcd relies on.
func New(log *slog.Logger) *zap.Logger {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return zap.New(&core{handler: log.Handler()})
}

// text holds the names of the string fields that are kept.
var text = map[string]bool{
	"path":                   true,
	"bucket-name":            true,
	"meta-bucket-name-key":   true,
	"lease-id":               true,
	"current-db-size":        true,
	"current-db-size-in-use": true,
	"stack":                  true,
	"stacktrace":             true,
}

type core struct {
	handler slog.Handler
}

// Enabled implements [zapcore.LevelEnabler].
func (c *core) Enabled(l zapcore.Level) bool {
	return l >= zapcore.InfoLevel && c.handler.Enabled(context.Background(), level(l))
}

// With implements [zapcore.Core].
func (c *core) With(fields []zapcore.Field) zapcore.Core {
	return &core{handler: c.handler.WithAttrs(attrs(fields))}
}

// Check implements [zapcore.Core].
func (c *core) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

// Write implements [zapcore.Core].
func (c *core) Write(e zapcore.Entry, fields []zapcore.Field) error {
	r := slog.NewRecord(e.Time, level(e.Level), e.Message, 0)
	if e.LoggerName != "" {
		r.AddAttrs(slog.String("logger", e.LoggerName))
	}
	if e.Level > zapcore.ErrorLevel {
		r.AddAttrs(slog.String("etcd_level", e.Level.String()))
	}
	r.AddAttrs(attrs(fields)...)
	return c.handler.Handle(context.Background(), r)
}

// Sync implements [zapcore.Core]; slog has nothing to flush.
func (c *core) Sync() error { return nil }

func level(l zapcore.Level) slog.Level {
	switch {
	case l <= zapcore.InfoLevel:
		return slog.LevelDebug
	case l == zapcore.WarnLevel:
		return slog.LevelWarn
	}
	return slog.LevelError
}

func attrs(fields []zapcore.Field) []slog.Attr {
	out := make([]slog.Attr, 0, len(fields))
	for _, f := range fields {
		switch f.Type {
		case zapcore.ErrorType:
			if err, ok := f.Interface.(error); ok {
				out = append(out, slog.Any("err", err))
			}
			continue
		case zapcore.StringType, zapcore.StringerType:
			if !text[f.Key] {
				continue
			}
		case zapcore.BoolType, zapcore.DurationType, zapcore.TimeType, zapcore.TimeFullType,
			zapcore.Float64Type, zapcore.Float32Type,
			zapcore.Int64Type, zapcore.Int32Type, zapcore.Int16Type, zapcore.Int8Type,
			zapcore.Uint64Type, zapcore.Uint32Type, zapcore.Uint16Type, zapcore.Uint8Type:
		default:
			continue
		}
		enc := zapcore.NewMapObjectEncoder()
		f.AddTo(enc)
		out = append(out, slog.Any(f.Key, enc.Fields[f.Key]))
	}
	return out
}
