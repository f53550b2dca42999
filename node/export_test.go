package node

// Marks returns how many heads t remembers.
func Marks(t *Tracker) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.marks)
}
