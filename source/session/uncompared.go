//go:build heliograph_nodigest

package session

const digestsCompared = false
