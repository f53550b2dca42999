package promote

import "fmt"

// MisuseError is an error of what was asked for: nothing was changed, and it takes
// another request.
type MisuseError struct{ Err error }

// Error says what is wrong, and the way out.
func (e *MisuseError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *MisuseError) Unwrap() error { return e.Err }

func misuse(format string, args ...any) error { return &MisuseError{fmt.Errorf(format, args...)} }
