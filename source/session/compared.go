//go:build !heliograph_nodigest

package session

// digestsCompared is false in a build that tests use to show that they notice.
const digestsCompared = true
