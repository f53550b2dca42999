package promote

// Steps are the points between two changes on the disk, in order.
var Steps = []string{
	string(stepBegun), string(stepBuilt), string(stepCommitted), string(stepMoved), string(stepNamed), string(stepRecorded),
}

// OnStep makes f hear of every step that is reached.
func OnStep(f func(string)) { reached = func(s step) { f(string(s)) } }

// KeyAndLease is the decoder of records.
var KeyAndLease = keyAndLease
