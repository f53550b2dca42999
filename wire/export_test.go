package wire

// PutChecksum makes a payload that a test has changed pass its checksum.
func PutChecksum(payload []byte, crcAt int) { putChecksum(payload, crcAt) }
