package store

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/heliograph/heliograph"
)

// keyValue is a decoded mvccpb.KeyValue. Its slices point into what it was
// decoded from.
type keyValue struct {
	key, value           []byte
	create, mod, version int64
	lease                int64
}

var errNotCanonical = errors.New("value is not in the form that etcd writes")

// decodeKeyValue reads a marshalled mvccpb.KeyValue and accepts only the one
// encoding that etcd itself produces: fields in order, each at most once, none
// that is zero, shortest varints, nothing unknown. So whatever it accepts,
// marshalling the fields again gives the same bytes, and nobody has to compare.
//
//	1 key │ 2 create_revision │ 3 mod_revision │ 4 version │ 5 value │ 6 lease
func decodeKeyValue(b []byte) (kv keyValue, err error) {
	last := byte(0)
	for len(b) > 0 {
		tag := b[0]
		if tag <= last {
			return keyValue{}, errNotCanonical
		}
		last = tag
		n, width := binary.Uvarint(b[1:])
		if width <= 0 || n == 0 || width > 1 && b[width] == 0 {
			return keyValue{}, errNotCanonical
		}
		b = b[1+width:]
		switch tag {
		case 1<<3 | 2, 5<<3 | 2:
			if n > uint64(len(b)) {
				return keyValue{}, errNotCanonical
			}
			if tag == 1<<3|2 {
				kv.key = b[:n:n]
			} else {
				kv.value = b[:n:n]
			}
			b = b[n:]
		case 2 << 3:
			kv.create = int64(n)
		case 3 << 3:
			kv.mod = int64(n)
		case 4 << 3:
			kv.version = int64(n)
		case 6 << 3:
			kv.lease = int64(n)
		default:
			return keyValue{}, errNotCanonical
		}
	}
	if len(kv.key) == 0 {
		return keyValue{}, errors.New("value names no key")
	}
	return kv, nil
}

// decodeRecord decodes a record and checks what can be checked of it alone. Its
// errors name no key and no value.
func decodeRecord(key, value []byte) (heliograph.RevisionKey, keyValue, error) {
	rk, err := heliograph.ParseRevisionKey(key)
	if err != nil {
		return rk, keyValue{}, err
	}
	kv, err := decodeKeyValue(value)
	if err != nil {
		return rk, keyValue{}, fmt.Errorf("record %d/%d: %w", rk.Main, rk.Sub, err)
	}
	switch {
	case rk.Delete && (kv.create != 0 || kv.mod != 0 || kv.version != 0 || kv.lease != 0 || len(kv.value) != 0):
		err = fmt.Errorf("record %d/%d: a delete holds more than its key", rk.Main, rk.Sub)
	case !rk.Delete && kv.mod != rk.Main:
		err = fmt.Errorf("record %d/%d: the mod revision in its value is %d", rk.Main, rk.Sub, kv.mod)
	case !rk.Delete && (kv.create <= 0 || kv.create > kv.mod || kv.version <= 0):
		err = fmt.Errorf("record %d/%d: create revision %d with version %d is impossible", rk.Main, rk.Sub, kv.create, kv.version)
	}
	return rk, kv, err
}
