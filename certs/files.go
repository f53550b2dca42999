package certs

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// maxFileBytes bounds every file that is read: room for some hundred
// certificates, where a bundle of two CAs has less than 2 KiB.
const maxFileBytes = 256 << 10

// Files names the three PEM files that a node needs.
type Files struct {
	Cert string // the node's certificate; intermediates may follow it
	Key  string // its private key
	CA   string // every CA that is believed; two while a CA is being replaced
}

// contents is what Files held when they were read.
type contents struct {
	cert, key, ca []byte
}

func (f Files) read() (contents, error) {
	var c contents
	for _, file := range []struct {
		what, path string
		into       *[]byte
	}{
		{"certificate", f.Cert, &c.cert},
		{"key", f.Key, &c.key},
		{"CA", f.CA, &c.ca},
	} {
		if file.path == "" {
			return contents{}, fmt.Errorf("no %s file is named: certificate, key and CA are needed together", file.what)
		}
		data, err := readFile(file.path)
		if err != nil {
			return contents{}, fmt.Errorf("%s file: %w", file.what, err)
		}
		*file.into = data
	}
	return c, nil
}

func (c contents) equal(o contents) bool {
	return bytes.Equal(c.cert, o.cert) && bytes.Equal(c.key, o.key) && bytes.Equal(c.ca, o.ca)
}

// readFile reads path, which must have at most maxFileBytes.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFileBytes {
		return nil, fmt.Errorf("%s is larger than %d bytes: it is no file of PEM certificates", path, maxFileBytes)
	}
	return data, nil
}

// parseCertificates returns the certificates of a PEM file, at least one. A
// block that is cut off or damaged is an error: encoding/pem skips it silently,
// and a CA would be missing.
func parseCertificates(path string, data []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	begun, decoded := bytes.Count(data, []byte("-----BEGIN ")), 0
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		decoded++
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: certificate %d: %w", path, len(certs)+1, err)
		}
		certs = append(certs, cert)
	}
	if decoded != begun {
		return nil, fmt.Errorf("%s is damaged or cut off: %d of %d PEM blocks are whole; copy it again", path, decoded, begun)
	}
	if len(certs) == 0 {
		return nil, fmt.Errorf("%s holds no PEM certificate", path)
	}
	return certs, nil
}

// createFile writes a file that must not exist yet. Unless it returns nil it
// leaves nothing behind.
func createFile(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := fill(f, data); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return syncDir(filepath.Dir(path))
}

// replaceFile writes a file whole: a reader, or a crash, finds the old contents
// or the new.
func replaceFile(path string, data []byte) error {
	dir, base := filepath.Split(path)
	f, err := os.CreateTemp(dir, "."+base+".*") // 0600
	if err != nil {
		return err
	}
	if err := fill(f, data); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(filepath.Dir(path))
}

// fill writes data to f, makes it durable and closes f.
func fill(f *os.File, data []byte) error {
	_, err := f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
