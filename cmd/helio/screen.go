package main

import (
	"io"
	"os"
	"sync"

	"golang.org/x/term"
)

// clearLine goes to the beginning of a terminal's line and empties it.
const clearLine = "\r\x1b[K"

// screen is where a node talks: log lines, and on a terminal a bar below them
// that redraws itself. It is safe for concurrent use.
type screen struct {
	terminal bool

	mu  sync.Mutex
	w   io.Writer
	bar bool // the last line is a bar
}

func newScreen(w io.Writer) *screen {
	f, ok := w.(*os.File)
	return &screen{w: w, terminal: ok && term.IsTerminal(int(f.Fd()))}
}

// Write writes whole lines, in the place of the bar if there is one.
func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.eraseLocked(); err != nil {
		return 0, err
	}
	return s.w.Write(p)
}

// draw shows line as the bar; an empty one removes it.
func (s *screen) draw(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.eraseLocked() != nil || line == "" {
		return
	}
	_, err := io.WriteString(s.w, line)
	s.bar = err == nil
}

func (s *screen) eraseLocked() error {
	if !s.bar {
		return nil
	}
	s.bar = false
	_, err := io.WriteString(s.w, clearLine)
	return err
}
